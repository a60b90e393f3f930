"""What checkpoints hold, by choice, and the disk that they take."""

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import steps
from tuneport.artifacts import Model, verify
from tuneport.errors import UserError
from tuneport.stage import Preempted, execute
from tuneport.training.checkpoint import disk_space
from tuneport.training.checkpoint.checkpoint_folder import CheckpointFolder
from tuneport.training.checkpoint.disk_space import ALL, DiskSpace
from tuneport.training.trainer import BestModelTrainer

VALUES = {
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,
    "lr_scheduler_type": "constant",
}
Train = Callable[..., CheckpointFolder]


@pytest.fixture
def train(imported_model: Path, prepared_questions: Path, tmp_path: Path) -> Train:
    """Train, with given values, into a folder of ``tmp_path``; returns its checkpoints."""

    def run(name: str, **values: Any) -> CheckpointFolder:
        inputs = {"model_selector_output": imported_model, "preprocess_output": prepared_questions}
        stage = steps.load("finetune", "text_classification")
        execute(stage(**inputs, pytorch_model_folder=tmp_path / name, **VALUES | values))
        return CheckpointFolder(path=tmp_path / name / "checkpoints")

    return run


def with_states(checkpoints: CheckpointFolder) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints.all() if (checkpoint.path / "optimizer.pt").exists()]


def test_only_the_newest_checkpoint_keeps_its_states_and_a_resume_goes_on_from_it(train: Train) -> None:
    found = train("out", checkpoint_contents="newest_resumable")
    assert [checkpoint.step for checkpoint in found.all()] == [36, 24, 12]
    assert with_states(found) == [36]
    assert [checkpoint.damage() for checkpoint in found.all()] == ["", "", ""]
    verify(Model(found.path.parent))
    assert not [path for path in found.path.iterdir() if path.name.startswith(".")]
    whole = train("whole", num_train_epochs=4)
    more = train("out", checkpoint_contents="newest_resumable", num_train_epochs=4, resume_from_checkpoint="true")
    assert with_states(more) == [48]
    name = "checkpoint-48/model.safetensors"
    assert (more.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_without_states_the_same_model_comes_out_and_nothing_is_resumed_from_weights_alone(train: Train) -> None:
    alone, whole = train("alone", checkpoint_contents="weights"), train("whole")
    assert with_states(alone) == [] and with_states(whole) == [36, 24, 12]
    for name in ("../model.safetensors", "checkpoint-12/model.safetensors"):
        assert (alone.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert not list(alone.path.rglob("*.pt*"))
    with pytest.raises(UserError, match=r"checkpoint-36 holds weights alone .*Set resume_from_checkpoint=false"):
        train("alone", resume_from_checkpoint="true")
    assert len(alone.all()) == 3
    with pytest.raises(UserError, match=r"checkpoint-12: cannot be resumed from, as it holds weights alone"):
        train("other", resume_from_checkpoint=str(alone.path / "checkpoint-12"))
    with pytest.raises(UserError, match="holds no whole checkpoint"):
        train("other", resume_from_checkpoint=str(alone.path))


def test_a_signal_leaves_a_checkpoint_to_go_on_from_whatever_they_hold(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_done = BestModelTrainer.log

    def log(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        steps_done(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(BestModelTrainer, "log", log)
        with pytest.raises(Preempted) as stopped:
            train("out", checkpoint_contents="weights")
    assert stopped.value.checkpoint.name in ("checkpoint-20", "checkpoint-21")
    found = train("out", checkpoint_contents="weights", resume_from_checkpoint="true")
    assert [checkpoint.step for checkpoint in found.all()] == [36, 24, int(stopped.value.checkpoint.name[11:]), 12]
    assert with_states(found) == []
    whole = train("whole")
    assert (found.path / "../model.safetensors").read_bytes() == (whole.path / "../model.safetensors").read_bytes()


def test_a_signal_while_weights_alone_are_written_beside_an_evaluation_leaves_states_too(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = BestModelTrainer.evaluation_loop

    def stopped(self: BestModelTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 24:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(BestModelTrainer, "evaluation_loop", stopped)
        with pytest.raises(Preempted) as preempted:
            train("out", checkpoint_contents="weights")
    assert preempted.value.checkpoint.name == "checkpoint-24"
    assert (preempted.value.checkpoint / "optimizer.pt").exists()
    found = train("out", checkpoint_contents="weights", resume_from_checkpoint="true")
    whole = train("whole")
    assert (found.path / "../model.safetensors").read_bytes() == (whole.path / "../model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("contents", "limit", "total", "peak"),
    [
        ("resumable", ALL, 3 * 60 + 10, 3 * 60 + 10),
        ("resumable", 1, 60 + 10, 2 * 60),
        ("newest_resumable", ALL, 3 * 20 + 40 + 10, 3 * 20 + 2 * 40),
        ("weights", ALL, 3 * 20 + 10, 3 * 20 + 10),
        ("weights", 2, 2 * 20 + 10, 3 * 20),
    ],
)
def test_the_disk_of_checkpoints_is_the_sum_of_their_parts(contents: str, limit: int, total: int, peak: int) -> None:
    space = DiskSpace(weights=20, states=40, model=10, made=3, limit=limit, contents=contents)
    assert (space.total, space.peak) == (total, peak)


@pytest.mark.parametrize("contents", ["resumable", "newest_resumable", "weights"])
def test_the_first_line_says_what_checkpoints_will_take(
    contents: str, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tuneport.finetune"):
        found = train("out", checkpoint_contents=contents)
    said = re.search(r"3 checkpoints of ([\d.]+) MB \(checkpoint_contents=(\w+)\), ([\d.]+) MB of disk", caplog.text)
    assert said is not None and said[2] == contents
    tensors = [*found.path.glob("*/*.safetensors"), *found.path.glob("*/optimizer.pt")]
    total = sum(file.stat().st_size for file in (*tensors, found.path.parent / "model.safetensors"))
    assert float(said[3]) == pytest.approx(total / 1e6, rel=0.15, abs=0.1)


def test_a_training_whose_checkpoints_have_no_room_does_not_begin(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No disk is filled here: what it says of its free space is replaced."""
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: SimpleNamespace(free=300_000))
    with pytest.raises(
        UserError, match=r"0\.3 MB of disk are free; expected [\d.]+ MB: 3 checkpoints .*save_total_limit"
    ):
        train("out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert shutil.disk_usage(tmp_path).free > 300_000
    trained = json.loads((train("out").path.parent / "training.json").read_text())
    assert trained["steps"] == 36
