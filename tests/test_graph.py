"""Tracing a pipeline: promotion, shared inputs, and wiring mistakes."""

from pathlib import Path
from typing import Any

import pytest

from tuneport.artifacts import Dataset, File, MLflowModel, Model, Registration
from tuneport.errors import UserError
from tuneport.graph import Pipeline, Ref, trace
from tuneport.step import Params, Step, consumes, param, produces


class Seed(Params):
    """Seed."""

    seed: int = param("Random seed.", default=42, ge=0)


class Prepare(Step, Seed):
    """Prepare."""

    rows: File = consumes("Rows.")
    label: str = param("Column.")
    data: Dataset = produces("Data.")


class Train(Step, Seed):
    """Train."""

    data: Dataset = consumes("Data.")
    rate: float = param("Rate.", default=0.1, gt=0)
    model: Model = produces("Model.")


class Publish(Step):
    """Publish."""

    only_if = "name_to_publish"
    model: Model = consumes("Model.")
    name_to_publish: str | None = param("Name.", default=None)
    entry: Registration = produces("Entry.")


class OtherSeed(Step):
    """Another default for a name that is taken."""

    seed: int = param("Random seed.", default=7, ge=0)
    out: Dataset = produces("Data.")


class OtherBound(Step):
    """Another bound for a name that is taken."""

    seed: int = param("Random seed.", default=42, ge=1)
    out: Dataset = produces("Data.")


class OtherType(Step):
    """Another type for a name that is taken."""

    seed: str = param("Random seed.", default="42")
    out: Dataset = produces("Data.")


class ServedModel(Step):
    """Takes another kind of model."""

    model: MLflowModel = consumes("Model.")
    out: Dataset = produces("Data.")


def learning() -> dict[str, Any]:
    """Learn something."""
    prepared = Prepare()
    trained = Train(data=prepared.data)
    Publish(model=trained.model)
    return {"model": trained.model}


@pytest.fixture
def pipeline() -> Pipeline:
    return trace(learning)


def test_tracing_gives_nodes_in_order_their_wiring_and_named_outputs(pipeline: Pipeline) -> None:
    assert (pipeline.name, pipeline.doc) == ("learning", "Learn something.")
    assert [node.name for node in pipeline.nodes] == ["prepare", "train", "publish"]
    assert pipeline.nodes[1].values["data"] == Ref("prepare", "data")
    assert pipeline.nodes[1].upstream() == ["prepare"]
    assert pipeline.outputs == {"model": Ref("train", "model")}


def test_unset_ports_are_promoted_once_with_default_bounds_and_help(pipeline: Pipeline) -> None:
    assert list(pipeline.params) == ["rows", "label", "seed", "rate", "name_to_publish"]
    seed = pipeline.params["seed"]
    assert (seed.default, seed.bounds, seed.help, seed.group) == (42, {"ge": 0}, "Random seed.", "Seed")
    assert pipeline.nodes[0].values["seed"] == pipeline.nodes[1].values["seed"] == Ref(None, "seed")


def test_a_shared_name_gives_every_step_the_same_value(pipeline: Pipeline) -> None:
    values = pipeline.resolve({"rows": "r.csv", "label": "y", "seed": "5"})
    bound = [pipeline.bind(node, values, lambda ref: Path(str(ref.node), ref.port)) for node in pipeline.nodes]
    assert bound[0] == {"rows": File(Path("r.csv")), "label": "y", "seed": 5}
    assert bound[1] == {"data": Path("prepare/data"), "seed": 5, "rate": 0.1}


@pytest.mark.parametrize("other", [OtherSeed, OtherBound, OtherType])
def test_steps_that_disagree_about_a_shared_name_do_not_trace(other: type[Step]) -> None:
    def disagreeing() -> dict[str, Any]:
        Prepare()
        other()
        return {}

    with pytest.raises(TypeError, match=r"\.seed and another step's seed disagree on type, default"):
        trace(disagreeing)


def test_a_literal_in_the_pipeline_settles_a_port_and_is_validated() -> None:
    def quick() -> dict[str, Any]:
        return {"model": Train(data=Prepare(label="y").data, rate="0.5").model}

    pipeline = trace(quick)
    assert "rate" not in pipeline.params
    assert pipeline.nodes[1].values["rate"] == 0.5

    def wrong() -> dict[str, Any]:
        return {"model": Train(data=Prepare().data, rate=-1).model}

    with pytest.raises(UserError, match="rate=-1: not valid; expected a number > 0"):
        trace(wrong)


def wired_to_the_wrong_type() -> dict[str, Any]:
    return {"out": ServedModel(model=Train(data=Prepare().data).model).out}


def missing_an_upstream_output() -> dict[str, Any]:
    return {"model": Train().model}


def with_an_unknown_port() -> dict[str, Any]:
    return {"model": Train(data=Prepare().data, rates=1).model}


def holding_a_step_twice() -> dict[str, Any]:
    Prepare()
    return {"data": Prepare().data}


def reading_what_nothing_produces() -> dict[str, Any]:
    return {"model": Train(data=Ref("nowhere", "data")).model}


def returning_no_output() -> dict[str, Any]:
    Prepare()
    return {"data": "here"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (wired_to_the_wrong_type, r"served_model\.model takes a MLflowModel, but train\.model is a Model"),
        (missing_an_upstream_output, r"train\.data takes a Dataset, and nothing is wired to it"),
        (with_an_unknown_port, "rates"),
        (holding_a_step_twice, "a pipeline holds prepare once"),
        (reading_what_nothing_produces, r"train\.data reads nowhere\.data, which no earlier step produces"),
        (returning_no_output, "output data .* is no step's output"),
    ],
)
def test_wrong_wiring_is_an_error_when_the_pipeline_is_traced(function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        trace(function)


def test_tracing_that_failed_leaves_steps_usable() -> None:
    with pytest.raises(TypeError):
        trace(holding_a_step_twice)
    assert Prepare(rows="r", label="y").label == "y"


def test_resolving_lists_unknown_invalid_and_missing_values_at_once(pipeline: Pipeline) -> None:
    with pytest.raises(UserError) as e:
        pipeline.resolve({"sed": 1, "rate": 0})
    assert str(e.value).splitlines() == [
        "unknown parameter 'sed' for learning. Did you mean 'seed'?",
        "rate=0: not valid; expected a number > 0 (default 0.1).",
        "rows: is required by learning; expected a path (File): Rows.",
        "label: is required by learning; expected text: Column.",
    ]


def test_a_conditional_step_runs_only_with_its_value(pipeline: Pipeline) -> None:
    values = {"rows": "r", "label": "y"}
    without = pipeline.active(pipeline.resolve(values))
    with_name = pipeline.active(pipeline.resolve(values | {"name_to_publish": "m"}))
    assert [node.name for node in without] == ["prepare", "train"]
    assert [node.name for node in with_name] == ["prepare", "train", "publish"]
