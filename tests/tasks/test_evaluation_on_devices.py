"""Metrics do not depend on where a model's weights are, on how many processes answer, or on how many rows at once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import steps
from tuneport import tasks
from tuneport.artifacts import Report, verify
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.evaluation.prediction import Subject, place, predict
from tuneport.evaluation.ranks import Ranks
from tuneport.serving.placement import Placement
from tuneport.stage import execute
from tuneport.tasks.task import Split

ROOT = Path(__file__).parents[2]
SHORT = {"max_new_tokens": 8}
every_task = pytest.mark.parametrize("name", tasks.names())


@pytest.fixture(scope="module")
def tuned(ready: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SimpleNamespace]:
    """Return a function task -> the inputs of its evaluation, the tuned model after two steps."""

    @cache
    def make(name: str) -> SimpleNamespace:
        folder = tmp_path_factory.mktemp(name) / "tuned"
        values = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 5e-3}
        execute(ready(name).stage(pytorch_model_folder=folder, **values))
        evaluation = steps.load("model_evaluation", name)
        short = SHORT if SHORT.keys() <= evaluation.ports().keys() else {}
        return SimpleNamespace(name=name, base=ready(name).model, data=ready(name).prepared, model=folder, values=short)

    return make


class Halves(Placement):
    """A model split over two devices, without a GPU: some of its weights stay in the memory of the CPU, the others are
    on the disk and brought in for each layer. accelerate's hooks move weights and inputs as between two GPUs."""

    def __init__(self, model: Path, folder: Path, share: float) -> None:
        super().__init__(sum(file.stat().st_size for file in model.glob("*.safetensors")), {0: 0}, 0)
        self.folder, self.share = folder, share

    def loading(self) -> dict[str, Any]:
        # Room for the largest layer of the others is kept there by accelerate.
        memory = {"cpu": int(self.share * self.needed)}
        return {"device_map": "auto", "max_memory": memory, "offload_folder": str(self.folder)}


def answers(run: SimpleNamespace, placement: Placement, batch_size: int | None = None) -> tuple[Any, Any]:
    """The metrics of a tuned model's answers, and the devices of its modules."""
    task, prepared = tasks.load(run.name), Prepared(run.data)
    meta, split = prepared.info.meta, Split(prepared.rows("test"), prepared.encoded("test"))
    options = steps.load("model_evaluation", run.name)(
        model_selector_output=run.base, pytorch_model_folder=run.model, preprocess_output=run.data, **run.values
    )
    subject = Subject(
        folder=run.model,
        name="tuned model",
        base=run.base,
        tokenizer=run.model,
        placement=placement,
        seed=1,
        ignore_mismatched_sizes=False,
    )
    found = predict(
        task,
        subject,
        meta,
        split,
        questions=task.questions(split.rows, options),
        settings=task.settings(meta, options),
        batch_size=batch_size,
        ranks=Ranks(),
    )
    assert found is not None
    devices = getattr(subject.load(task, meta), "hf_device_map", {})
    return task.evaluate(split.rows, found, meta, 0).metrics, set(map(str, devices.values()))


@every_task
def test_a_model_split_over_two_devices_has_the_metrics_of_one_that_is_whole(
    name: str, tuned: Callable[[str], SimpleNamespace], tmp_path: Path
) -> None:
    run = tuned(name)
    whole, on_one = answers(run, place([run.model]))
    split, on_two = answers(run, Halves(run.model, tmp_path, 0.8 if name == "summarization" else 0.95))
    assert not on_one and on_two == {"cpu", "disk"}
    assert split == pytest.approx(whole, rel=1e-6, abs=1e-5, nan_ok=True)


@every_task
def test_metrics_do_not_depend_on_how_many_rows_are_in_a_batch(
    name: str, tuned: Callable[[str], SimpleNamespace]
) -> None:
    run = tuned(name)
    placement = place([run.model])
    one, many = (answers(run, placement, batch_size)[0] for batch_size in (1, None))
    assert many == pytest.approx(one, rel=1e-6, abs=1e-5, nan_ok=True)


def short_of_memory(rows: int) -> Callable[..., Any]:
    """`Subject.load`, of a model whose forward pass finds no memory for more rows than these."""
    load = Subject.load

    def loaded(self: Subject, *args: Any) -> Any:
        model = load(self, *args)

        def check(_: Any, __: Any, inputs: dict[str, Any]) -> None:
            if len(inputs["input_ids"]) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        model.register_forward_pre_hook(check, with_kwargs=True)
        return model

    return loaded


@pytest.mark.parametrize("name", ["text_classification", "translation", "chat_completion"])
def test_where_memory_suffices_for_fewer_rows_the_answers_are_the_same(
    name: str, tuned: Callable[[str], SimpleNamespace], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    run = tuned(name)
    wanted, _ = answers(run, place([run.model]))
    monkeypatch.setattr(Subject, "load", short_of_memory(2))
    found, _ = answers(run, place([run.model]))
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-5, nan_ok=True)
    assert "the memory does not suffice for 6 rows at once" in caplog.text


@pytest.mark.parametrize("name", ["text_classification", "translation"])
def test_memory_that_does_not_suffice_for_one_row_is_explained(
    name: str, tuned: Callable[[str], SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tuned(name)
    monkeypatch.setattr(Subject, "load", short_of_memory(0))
    with pytest.raises(UserError, match=r"^tuned model: the memory does not suffice, .* \(CUDA out of memory.*max_seq"):
        answers(run, place([run.model]))


def evaluated(run: SimpleNamespace, report: Path, processes: int) -> tuple[Any, list[Any], str]:
    """What a command wrote: metrics, predictions, and its log."""
    flags = {
        "task_name": run.name,
        "model_selector_output": run.base,
        "pytorch_model_folder": run.model,
        "preprocess_output": run.data,
        "evaluation_result": report,
        "number_of_gpu_to_use_evaluation": processes,
        **run.values,
    }
    command = [sys.executable, "-m", "steps", "model_evaluation", *(f"--{k}={v}" for k, v in flags.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    verify(Report(report))
    lines = [json.loads(line) for line in (report / "predictions.jsonl").read_text().splitlines()]
    return json.loads((report / "metrics.json").read_text()), lines, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_classification", "question_answering", "summarization", "chat_completion"])
def test_two_processes_give_the_metrics_of_one(
    name: str, tuned: Callable[[str], SimpleNamespace], tmp_path: Path
) -> None:
    run = tuned(name)
    one, lines, _ = evaluated(run, tmp_path / "one", 1)
    two, lines_of_two, log = evaluated(run, tmp_path / "two", 2)
    assert "2 processes on this machine" in log and "one of 2 processes" in log
    assert [line["row_id"] for line in lines_of_two] == [line["row_id"] for line in lines]
    for who in ("tuned", "base"):
        assert two[who]["metrics"] == pytest.approx(one[who]["metrics"], rel=1e-6, abs=1e-5)
        assert two[who]["intervals"].keys() == one[who]["intervals"].keys()
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
