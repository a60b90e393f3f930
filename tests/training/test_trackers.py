"""The figures of a training reach every tracker that report_to names, under the names that MLflow has them by."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import steps
from tuneport.artifacts import Dataset, Model, Report
from tuneport.errors import UserError
from tuneport.runner.ending import next_commands
from tuneport.stage import execute
from tuneport.step import Context
from tuneport.tracking import Run
from tuneport.training import trackers

VALUES = {"learning_rate": 1e-3, "max_steps": 4, "logging_steps": 2, "per_device_train_batch_size": 8}
NAMED = {"train/loss", "train/learning_rate", "train/tokens_per_second", "train/mean_loss", "validation/loss"}


def finetune(still: SimpleNamespace, output: Path, **values: Any) -> Any:
    step = steps.load("finetune", still.task)(
        model_selector_output=Model(still.model),
        preprocess_output=Dataset(still.rows),
        pytorch_model_folder=Model(output),
        **VALUES | values,
    )
    step.context = Context(tracking_uri=values.get("uri"))
    return step


def scalars(output: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads, by name: each step's figure."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(output / "logs" / "tensorboard"))
    read.Reload()
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_tensorboard_reads_the_figures_that_mlflow_has(still: SimpleNamespace, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    step = finetune(still, tmp_path / "out", report_to="mlflow, TensorBoard")
    step.context = Context(tracking_uri=uri)
    execute(step)
    found = scalars(tmp_path / "out")
    assert found.keys() >= NAMED
    run_id = json.loads((tmp_path / "out" / "tracking.json").read_text("utf-8"))["run_id"]
    client = MlflowClient(uri)
    tracked = {m for m in client.get_run(run_id).data.metrics if not m.startswith("system/")}
    assert found.keys() == tracked
    for name, figures in found.items():
        of_mlflow = {m.step: m.value for m in client.get_metric_history(run_id, name)}
        assert dict(figures) == pytest.approx(of_mlflow, rel=1e-6), name
    commands = next_commands({"pytorch_model_folder": Model(tmp_path / "out")}, uri, None)
    assert f"tensorboard --logdir {tmp_path}/out/logs/tensorboard" in commands.values()
    assert not next_commands({"evaluation_result": Report(tmp_path)}, uri, None).keys() & {
        "See the training in TensorBoard"
    }


def test_what_a_failed_training_logged_stays_and_a_resume_hides_what_it_repeats(
    still: SimpleNamespace, tmp_path: Path
) -> None:
    values = {"report_to": "tensorboard", "logging_steps": 1, "evaluation_strategy": "steps", "eval_steps": 2}
    run = trackers.TensorBoardRun(tmp_path / ".out.partial" / "logs" / "tensorboard", {})
    for number in range(1, 4):  # as of a training that was killed in its third step
        run.log_metrics({"train/loss": 100.0 + number}, number)
    run.writer.close()
    (tmp_path / ".out.partial" / "INCOMPLETE").touch()
    execute(finetune(still, tmp_path / "out", resume_from_checkpoint="true", **values))
    losses = scalars(tmp_path / "out")["train/loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4] and max(loss for _, loss in losses) < 100


def test_all_runs_that_a_resumed_training_wrote_offline_are_named_to_be_sent(tmp_path: Path) -> None:
    for name in ("offline-run-20261101_100000-a", "offline-run-20261102_100000-b"):
        (tmp_path / "logs" / "wandb" / name).mkdir(parents=True)
    commands = next_commands({"pytorch_model_folder": Model(tmp_path)}, "sqlite:///x.db", None)
    there = f"{tmp_path}/logs/wandb/offline-run"
    sent = commands["Send the training to Weights & Biases"]
    assert sent == f"wandb sync {there}-20261101_100000-a {there}-20261102_100000-b"


def test_no_tracker_gets_the_secrets_of_an_address(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = {"resume_from_checkpoint": "s3://user:aSecretOfTests@bucket/run"}
    with trackers.opened("tensorboard", Run(), tmp_path, name="x", parameters=given) as run:
        run.log_metrics({"train/loss": 1.0}, 1)
    read = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    read.Reload()
    (text,) = read.Tensors("parameters/text_summary")
    said = text.tensor_proto.string_val[0].decode()
    assert "resume_from_checkpoint" in said and "aSecretOfTests" not in said


def records(file: Path) -> Iterator[Any]:
    """The messages in a run's file: a log of LevelDB's, in blocks of 32 KiB, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, message = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := -place % 32768) and left < 7:  # too few bytes for a header end a block
            place += left
        length, part = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


@pytest.mark.slow
def test_weights_and_biases_gets_the_figures_of_rank_0_alone(still: SimpleNamespace, tmp_path: Path) -> None:
    """Offline: read back from the run's file, which `wandb sync` would send."""
    done = stage(still, tmp_path / "out", {"WANDB_MODE": "offline"}, "wandb", number_of_gpu_to_use_finetuning=2)
    assert done.returncode == 0, done.stdout
    (folder,) = (tmp_path / "out" / "logs" / "wandb").glob("offline-run-*")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    figures, configured, projects = {}, {}, set()
    for record in records(next(folder.glob("*.wandb"))):
        if record.HasField("run"):
            projects.add(record.run.project)
            configured |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        figures |= {(row["_step"], name): float(value) for name, value in row.items() if "/" in name}
    assert projects == {"tuneport"} and configured["learning_rate"] == 1e-3
    assert {name for _, name in figures} >= NAMED
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text("utf-8"))["log_history"]
    losses = {str(entry["step"]): entry["loss"] for entry in history if "loss" in entry}
    assert {step: value for (step, name), value in figures.items() if name == "train/loss"} == pytest.approx(losses)
    texts = [path.read_text("utf-8", "replace") for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in texts if "--model_selector_output" in text]  # nothing of the command line


DYING = """
import logging, pathlib, sys, psutil
from tuneport.tracking import Run
from tuneport.training import trackers

logging.basicConfig(level=logging.INFO)
with trackers.opened("wandb", Run(), pathlib.Path(sys.argv[1]), name="x", parameters={}) as run:
    run.log_metrics({"train/loss": 1.0}, 1)
    for process in psutil.Process().children(recursive=True):
        process.kill()
        process.wait()
    for step in range(2, 6):
        run.log_metrics({"train/loss": 1.0}, step)
print("trained to the end")
"""


@pytest.mark.slow
def test_a_training_goes_on_where_the_process_of_weights_and_biases_dies(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(tmp_path)],
        env=os.environ | {"WANDB_MODE": "offline"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "trained to the end" in done.stdout, done.stderr
    assert done.stderr.count("figures from here on are missing there") == 1, done.stderr


@pytest.mark.slow
def test_weights_and_biases_without_a_key_is_refused_before_the_first_step(
    still: SimpleNamespace, tmp_path: Path
) -> None:
    home = {"HOME": str(tmp_path), "WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = stage(still, tmp_path / "out", home, "wandb")
    assert done.returncode == 2 and "Traceback" not in done.stdout, done.stdout
    assert "Weights & Biases cannot be used" in done.stdout and "WANDB_MODE=offline" in done.stdout
    assert not list(tmp_path.glob("*out*"))


def stage(
    still: SimpleNamespace, output: Path, environment: dict[str, str], report_to: str, **values: Any
) -> subprocess.CompletedProcess[str]:
    given = {**VALUES, **values, "report_to": report_to, "task_name": still.task, "pytorch_model_folder": output}
    given |= {"model_selector_output": still.model, "preprocess_output": still.rows}
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-m", "steps", "finetune", *flags],
        env=kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("report_to", "says"),
    [
        ("tensorbord", "mlflow, tensorboard, wandb, with commas between, or none. Did you mean 'tensorboard'?"),
        ("mlflow,mlflow", "names a tracker twice"),
        ("none,mlflow", "names none beside others"),
        ("", "'' is not a tracker"),
    ],
)  # fmt: skip
def test_a_tracker_that_is_not_known_is_refused_at_once(report_to: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        steps.load("finetune", "text_classification")(report_to=report_to, **PLACES).check()
    assert says in str(refused.value)


PLACES = dict.fromkeys(("model_selector_output", "preprocess_output", "pytorch_model_folder"), Path("nowhere"))


def test_a_tracker_whose_package_lacks_is_refused_where_it_would_run_and_not_where_it_is_described(
    *,
    tuneport: Callable[..., int],
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in ("wandb", "tensorboard") else find(name, *rest)
    )
    rows = write_jsonl(tmp_path / "rows.jsonl", questions)
    values = (f"pytorch_model_path={tiny_model}", f"train_file_path={rows}", "sentence1_key=text", "label_key=label")
    given = (*values, "report_to=mlflow,tensorboard,wandb")
    assert tuneport("validate", "text_classification", *given) == 2
    assert "needs tensorboard and wandb, not installed here. Install them (pip install tensorboard wandb)" in (
        capsys.readouterr().err
    )
    assert tuneport("validate", "text_classification", *given, "--target", "docker") == 0


def test_only_weights_and_biases_needs_the_network() -> None:
    def made(report_to: str) -> Any:
        return steps.load("finetune", "text_classification")(report_to=report_to, **PLACES)

    assert made("mlflow,wandb").needs_network()
    assert not made("mlflow,tensorboard").needs_network()
