"""Exported MLflow models answer as the predictor does, where nothing of tuneport can be imported."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.types import DataType
from mlflow.types.schema import Array, Map

from tuneport import tasks
from tuneport.export import write_mlflow_model
from tuneport.export.mlflow_model import requirements

LOAD = """
import json, sys, mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps([model.predict(payload).to_dict("records") for payload in json.loads(sys.stdin.read())]))
"""


@dataclass(frozen=True)
class Exported:
    """A model folder, its MLflow model, and the rows of the example."""

    model: Path
    folder: Path
    columns: dict[str, str]
    rows: list[dict[str, Any]]

    @property
    def expected(self) -> list[dict[str, Any]]:
        """The in-process predictor's answers."""
        return tasks.load("text_classification").predictor(str(self.model))(self.rows)


@pytest.fixture(scope="session")
def export(
    tiny_model: Path, questions: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Exported]:
    """Export the tiny model with a new head."""

    def make(columns: dict[str, str], *, multi_label: bool = False, extra: dict[str, str] | None = None) -> Exported:
        import torch
        from transformers import AutoTokenizer

        task, folder = tasks.load("text_classification"), tmp_path_factory.mktemp("exported")
        meta = {"labels": ["animal", "colour", "number 'x' \\ {y}"], "multi_label": multi_label}
        torch.manual_seed(7)
        model = task.load_model(tiny_model, meta)
        model.classifier.weight.data *= 50  # answers that differ
        model.save_pretrained(folder / "model")
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "model")
        for name, text in (extra or {}).items():
            (folder / "model" / name).parent.mkdir(exist_ok=True)
            (folder / "model" / name).write_text(text)
        texts = [row["text"] for row in questions]
        rows = [{f: texts[i + 20 * n] for n, f in enumerate(columns) if f != "label"} for i in range(8)]
        rows[-1]["sentence1"] *= 40  # longer than the model takes
        write_mlflow_model(
            task,
            folder / "model",
            columns=columns,
            meta=meta,
            settings={},
            example_rows=rows,
            destination=folder / "mlflow",
        )
        return Exported(model=folder / "model", folder=folder / "mlflow", columns=columns, rows=rows)

    return make


@pytest.fixture(scope="session")
def single(export: Callable[..., Exported]) -> Exported:
    extra = {
        "LICENSE": "Apache-2.0",
        "checkpoints/weights": "x",
        "trainer_state.json": "{}",
        "tracking.json": "{}",
        "manifest.json": "{}",
    }
    return export({"sentence1": "the 'text'\n\\ {ä}", "label": "label"}, extra=extra)


@pytest.fixture(scope="session")
def pair(export: Callable[..., Exported]) -> Exported:
    return export({"sentence1": "premise", "sentence2": "hypothesis", "label": "label"})


@pytest.fixture(scope="session")
def multi_label(export: Callable[..., Exported]) -> Exported:
    return export({"sentence1": "text", "label": "label"}, multi_label=True)


def table(exported: Exported) -> dict[str, list[str]]:
    """The rows under the user's column names."""
    fields = [field for field in exported.columns if field != "label"]
    return {exported.columns[field]: [row[field] for row in exported.rows] for field in fields}


def same(got: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    return len(got) == len(wanted) and all(
        g["label"] == w["label"]
        and g["score"] == pytest.approx(w["score"], abs=1e-5)
        and g["scores"] == pytest.approx(w["scores"], abs=1e-5)
        for g, w in zip(got, wanted, strict=True)
    )


@pytest.mark.parametrize("kind", ["single", "pair", "multi_label"])
def test_every_payload_is_answered_as_in_process_without_tuneport_or_network(
    kind: str, request: pytest.FixtureRequest, fenced_python: Any, tmp_path: Path
) -> None:
    exported: Exported = request.getfixturevalue(kind)
    columns = table(exported)
    records = pd.DataFrame(columns).to_dict("records")
    payloads = [columns, records, records[0], {c: v[:1] for c, v in columns.items()}]
    done = fenced_python(LOAD, str(exported.folder), input=json.dumps(payloads), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = exported.expected
    for got, wanted in zip(json.loads(done.stdout), [expected, expected, expected[:1], expected[:1]], strict=True):
        assert same(got, wanted)


def test_the_rows_have_different_answers(single: Exported, multi_label: Exported) -> None:
    assert len({row["score"] for row in single.expected}) > 4
    assert len({tuple(row["score"]) for row in multi_label.expected}) > 4
    assert any(len(row["label"]) > 1 for row in multi_label.expected)


def test_a_data_frame_may_hold_more_columns_and_any_index(single: Exported) -> None:
    model = mlflow.pyfunc.load_model(str(single.folder))
    frame = pd.DataFrame({"label": "x", **table(single)}, index=[7] * 8)
    assert same(model.predict(frame).to_dict("records"), single.expected)


def test_batch_size_is_a_parameter_of_predict(single: Exported) -> None:
    model = mlflow.pyfunc.load_model(str(single.folder))
    assert same(model.predict(table(single), params={"batch_size": 3}).to_dict("records"), single.expected)
    with pytest.raises(MlflowException, match="batch_size=0 is not valid; expected a number > 0"):
        model.predict(table(single), params={"batch_size": 0})


def test_a_missing_column_and_a_null_are_refused_by_name(pair: Exported) -> None:
    model = mlflow.pyfunc.load_model(str(pair.folder))
    with pytest.raises(MlflowException, match=r"missing inputs \['hypothesis'\]"):
        model.predict({"premise": "a", "hypotheses": "b"})
    with pytest.raises(MlflowException, match=r"row 2: column .hypothesis. holds (nan|None); expected text"):
        model.predict(pd.DataFrame({"premise": ["a", "b"], "hypothesis": ["c", None]}))


@pytest.mark.parametrize(
    ("kind", "label", "score"),
    [
        ("single", DataType.string, DataType.double),
        ("multi_label", Array(DataType.string), Array(DataType.double)),
    ],
)
def test_the_signature_names_the_users_columns_and_types_the_answer(
    kind: str, label: Any, score: Any, request: pytest.FixtureRequest
) -> None:
    exported: Exported = request.getfixturevalue(kind)
    signature = mlflow.models.get_model_info(str(exported.folder)).signature
    assert signature.inputs.input_dict().keys() == {exported.columns["sentence1"]}
    assert [c.type for c in signature.inputs] == [DataType.string]
    assert {c.name: c.type for c in signature.outputs} == {
        "label": label,
        "score": score,
        "scores": Map(DataType.double),
    }
    assert [(p.name, p.default) for p in signature.params] == [("batch_size", 32)]


def test_the_input_example_is_real_rows_and_can_be_served(pair: Exported) -> None:
    model = mlflow.pyfunc.load_model(str(pair.folder))
    example = model.input_example
    assert example.to_dict("list") == {column: values[:3] for column, values in table(pair).items()}
    assert same(model.predict(example).to_dict("records"), pair.expected[:3])
    assert "dataframe_split" in json.loads((pair.folder / "serving_input_example.json").read_text())


def test_requirements_are_pinned_without_local_parts(single: Exported) -> None:
    lines = (single.folder / "requirements.txt").read_text().split()
    assert lines == requirements()
    assert {line.partition("==")[0] for line in lines} >= {"mlflow", "torch", "transformers", "pandas", "safetensors"}
    assert all("==" in line and "+" not in line for line in lines)


def test_the_folder_holds_what_serving_needs_and_nothing_of_training(single: Exported) -> None:
    model = single.folder / "artifacts" / "model"
    names = {p.name for p in model.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "LICENSE"}
    assert not any(p.is_symlink() for p in single.folder.rglob("*"))
    names = {p.name for p in single.folder.iterdir()} - {"__pycache__"}  # which a test that loads the model leaves
    assert names == {
        "MLmodel",
        "artifacts",
        "conda.yaml",
        "input_example.json",
        "python_env.yaml",
        "requirements.txt",
        "served_model.py",
        "serving_input_example.json",
    }
    assert str(single.folder.parent) not in (single.folder / "MLmodel").read_text()


def test_nothing_that_is_served_needs_unpickling(single: Exported) -> None:
    assert not [p for p in single.folder.rglob("*") if p.suffix in (".pkl", ".bin", ".pt", ".pth")]
    flavor = yaml.safe_load((single.folder / "MLmodel").read_text())["flavors"]["python_function"]
    assert flavor["loader_module"] == "mlflow.pyfunc.loaders.code_model"


def test_a_model_that_was_moved_still_loads(single: Exported, tmp_path: Path) -> None:
    shutil.copytree(single.folder, tmp_path / "moved here")
    model = mlflow.pyfunc.load_model(str(tmp_path / "moved here"))
    assert same(model.predict(table(single)).to_dict("records"), single.expected)


def test_two_fields_may_read_one_column(export: Callable[..., Exported]) -> None:
    exported = export({"sentence1": "text", "sentence2": "text", "label": "label"})
    model = mlflow.pyfunc.load_model(str(exported.folder))
    texts = [row["sentence1"] for row in exported.rows]
    predictor = tasks.load("text_classification").predictor(str(exported.model))
    wanted = predictor([{"sentence1": text, "sentence2": text} for text in texts])
    assert same(model.predict({"text": texts}).to_dict("records"), wanted)


@pytest.fixture(scope="module")
def ask(single: Exported, serve: Any) -> Iterator[Callable[[Any], tuple[int, Any]]]:
    with serve(single.folder) as ask:
        yield ask


def test_the_model_is_served_over_http_without_tuneport(ask: Any, single: Exported) -> None:
    ((column, texts),) = table(single).items()
    for body in (
        {"dataframe_split": {"columns": [column], "data": [[text] for text in texts]}},
        {"dataframe_records": [{column: text} for text in texts], "params": {"batch_size": 2}},
        {"inputs": {column: texts}},
        {"inputs": [{column: text} for text in texts]},
        {"inputs": texts},
    ):
        status, answer = ask(body)
        assert status == 200, answer
        assert same(answer["predictions"], single.expected)


def test_the_server_refuses_a_missing_column_with_400(ask: Any) -> None:
    status, answer = ask({"dataframe_records": [{"wrong": "x"}]})
    assert status == 400
    assert "missing inputs" in answer["message"] and "wrong" in answer["message"]
