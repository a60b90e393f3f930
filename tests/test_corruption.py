"""Every kind of file that a run writes and reads again, harmed in every way: its next reader refuses it by name, or the
stage whose record it is runs again."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import steps
from tests.whole_run import plan
from tuneport.artifacts import CustomModel, LoggedModel, Model
from tuneport.errors import UserError
from tuneport.replay import read
from tuneport.runner import cache
from tuneport.runner.process import holders
from tuneport.runner.run import Stage, _locked
from tuneport.stage import execute
from tuneport.training.checkpoint.checkpoint_folder import CheckpointFolder
from tuneport.training.checkpoint.resume import prepare

BASE = "model_import/model_selector_output"
TOKENIZER = "model_import/tokenizer_folder"
ROWS = "preprocess/preprocess_output"
TUNED = "finetune/pytorch_model_folder"
BEST = "finetune/tuned_model"
CHECKPOINT = f"{TUNED}/checkpoints/checkpoint-8"
EXPORTED = "model_export/mlflow_model_folder"
LOGGED = "model_export/logged_model_folder"
REPORT = "model_evaluation/evaluation_result"

# By the stage that reads it next: every kind of file.
READ = {
    "preprocess": {
        TOKENIZER: (
            "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "manifest.json",
        ),
    },
    "finetune": {
        BASE: (
            "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
            "manifest.json",
        ),
        ROWS: (
            "encoded/train-00000.arrow", "encoded/validation-00000.arrow", "rows/train-00000.arrow", "dataset.json",
            "data_report.json", "dropped.jsonl", "manifest.json",
        ),
    },
    "model_export": {
        BEST: (
            "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "trainer_state.json",
            "training.json", "tracking.json", "manifest.json",
        ),
    },
    "model_registration": {
        LOGGED: ("tracking.json", "model_digest.json", "manifest.json"),
        EXPORTED: (
            "MLmodel", "served_model.py", "artifacts/model/model.safetensors", "artifacts/model/config.json",
            "artifacts/model/tokenizer.json", "conda.yaml", "python_env.yaml", "requirements.txt",
            "input_example.json", "serving_input_example.json", "tracking.json", "manifest.json",
        ),
        REPORT: ("metrics.json", "predictions.jsonl", "report.html", "manifest.json"),
    },
}  # fmt: skip
PARTS = (
    "adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "trainer_state.json", "run_state.json", "config.json", "tokenizer.json", "manifest.json", "manifest.sha256",
)  # fmt: skip


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes()) or bytearray(b"\0")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] or b"more")  # of an empty file there is nothing to cut


def delete(path: Path) -> None:
    path.unlink()


def add(path: Path) -> None:
    shutil.copy(path, path.with_name(f"added-{path.name}"))


def swap(path: Path) -> None:
    """Exchange it with another file of its folder."""
    content, other = path.read_bytes(), sibling(path)
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def sibling(path: Path) -> Path:
    """The first other file of its folder with another content; for one alone, a file of the folder above."""
    content = path.read_bytes()
    for folder in (path.parent, path.parent.parent):
        for other in sorted(folder.iterdir()):
            if other.is_file() and other.read_bytes() != content:
                return other
    raise AssertionError(path)


HARMS = (flip, truncate, delete, add, swap)
Harm = Callable[[Path], None]


@pytest.fixture(scope="module")
def copied(whole_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(whole_run.parent, tmp_path_factory.mktemp("harmed") / "whole"))


@pytest.fixture(scope="module")
def stages(copied: Path) -> Mapping[str, Stage]:
    return {stage.name: stage for stage in plan(copied).stages}


@pytest.fixture
def run(copied: Path) -> Iterator[Path]:
    """The folder of a finished run; what a test does to it is undone."""
    folder = copied / "run"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield folder
    for path in folder.rglob("*"):
        if path.is_file() and path not in before:
            path.unlink()
    for path, content in before.items():
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as e:
        read()
    return str(e.value)


def names(path: Path, harm: Harm) -> tuple[str, ...]:
    """What a refusal may name: the harmed file, or of two the other."""
    if harm is add:
        return (f"added-{path.name}",)
    return (path.name, sibling(path).name) if harm is swap else (path.name,)


CASES = [
    (reader, artifact, name, harm)
    for reader, artifacts in READ.items()
    for artifact, files in artifacts.items()
    for name in files
    for harm in HARMS
]


@pytest.mark.parametrize(
    ("reader", "artifact", "name", "harm"), CASES, ids=[f"{a.split('/')[1]}/{n}-{h.__name__}" for _, a, n, h in CASES]
)
def test_the_next_stage_refuses_an_artifact_by_the_harmed_file_and_its_own_stage_runs_again(
    reader: str, artifact: str, name: str, harm: Harm, *, run: Path, stages: Mapping[str, Stage]
) -> None:
    path, writer = run / artifact / name, stages[artifact.partition("/")[0]]
    assert cache.stale(writer.folder, record(writer), writer.outputs) == ""
    wanted = names(path, harm)
    harm(path)
    step = copy.copy(stages[reader].step)
    if artifact == EXPORTED:  # which this stage reads where it runs alone
        step.mlflow_model_folder = LoggedModel(run / EXPORTED)
    message = refusal(lambda: execute(step))
    assert any(n in message for n in wanted), message
    assert cache.stale(writer.folder, record(writer), writer.outputs)


def record(stage: Stage) -> cache.Record:
    return cache.record(stage.name, stage.parameters, stage.inputs, ["steps"], cache.Digests(), origins={})


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", PARTS)
def test_a_training_does_not_go_on_from_a_checkpoint_with_a_harmed_part(
    name: str, harm: Harm, run: Path, tmp_path: Path
) -> None:
    path = run / CHECKPOINT / name
    wanted = names(path, harm)
    harm(path)
    ports = steps.load("finetune", "text_classification").ports()
    message = refusal(lambda: prepare(str(run / CHECKPOINT), CheckpointFolder(path=tmp_path), ports, 8))
    assert "cannot be resumed from, as it is damaged" in message
    assert any(n in message for n in wanted), message
    if name != "manifest.sha256" or harm is not add:
        whole = CheckpointFolder(path=run / TUNED / "checkpoints").last_whole()
        assert whole is None or whole.step == 4  # None: the best one was the harmed one


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "trainer_state.json"])
def test_a_tuned_model_that_a_user_hands_on_is_refused_by_its_harmed_file(
    name: str, harm: Harm, run: Path, tmp_path: Path
) -> None:
    stage = steps.load("model_import")(
        pytorch_model_path=CustomModel(run / TUNED), model_selector_output=Model(tmp_path / "base")
    )
    wanted = names(run / TUNED / name, harm)
    harm(run / TUNED / name)
    message = refusal(lambda: execute(stage))
    assert any(n in message for n in wanted), message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", [flip, truncate, delete])
@pytest.mark.parametrize("stage", ["model_import", "preprocess", "finetune", "model_export", "model_evaluation"])
def test_a_stage_whose_record_is_harmed_runs_again(
    stage: str, harm: Harm, run: Path, stages: Mapping[str, Stage]
) -> None:
    harm(run / stage / "stage.json")
    assert cache.stale(run / stage, record(stages[stage]), stages[stage].outputs)


def test_no_byte_of_a_record_ends_a_run_with_a_traceback(run: Path, stages: Mapping[str, Stage]) -> None:
    stage = stages["model_import"]
    path, now = stage.folder / "stage.json", record(stage)
    content = path.read_bytes()
    again = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        again += bool(cache.stale(stage.folder, now, stage.outputs))
    assert again > 0.8 * len(content)  # the others: how long it took, white space, what no result depends on


@pytest.mark.parametrize("text", ["[]", '{"key": 1}', '{"outputs": []}', '{"outputs": {}, "inputs": []}', "[" * 9999])
def test_a_record_of_another_shape_is_none(text: str, run: Path, stages: Mapping[str, Stage]) -> None:
    stage = stages["model_import"]
    now, path = record(stage), stage.folder / "stage.json"
    path.write_text(text)
    assert cache.stale(stage.folder, now, stage.outputs) == "no finished result"
    path.write_text(json.dumps({**now, "outputs": list(stage.outputs)}))
    assert cache.stale(stage.folder, now, stage.outputs) == "no finished result"
    path.write_text(json.dumps({key: value for key, value in now.items() if key != "key"} | {"outputs": {}}))
    assert cache.stale(stage.folder, now, stage.outputs) == "no finished result"


@pytest.mark.parametrize("harm", [flip, truncate, delete, swap])
@pytest.mark.parametrize("stage", ["preprocess", "finetune", "model_registration"])
def test_a_stage_is_not_repeated_from_harmed_values(stage: str, harm: Harm, run: Path) -> None:
    path = run / "logs" / f"{stage}.inputs.json"
    other = sibling(path)
    assert read(run / stage, None)[0] == stage
    harm(path)
    if harm is swap:  # a whole record of another stage
        assert read(path, None)[0] == other.name.removesuffix(".inputs.json")
    else:
        assert str(path) in refusal(lambda: read(run / stage, None))


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 50, b"9" * 99, b"0\n1\n", b"-1"])
def test_a_lock_holds_whatever_is_written_in_it(content: bytes, run: Path) -> None:
    (run / ".lock").write_bytes(content)
    with _locked(run) as lock:
        (run / ".lock").write_bytes(content)
        assert isinstance(holders(lock), list)
        assert "another run" in refusal(lambda: _locked(run).__enter__())
