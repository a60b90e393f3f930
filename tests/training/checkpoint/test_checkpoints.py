"""A damaged checkpoint is passed over, a failed save loses nothing, and the best and the last one are never deleted."""

import errno
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import steps
from tuneport.artifacts import Model, verify
from tuneport.errors import UserError
from tuneport.links import link_or_copy
from tuneport.stage import execute
from tuneport.training.checkpoint import plain_model
from tuneport.training.checkpoint.async_writer import HostCopy, Writer
from tuneport.training.checkpoint.checkpoint_folder import Checkpoint, CheckpointFolder
from tuneport.training.trainer import BestModelTrainer, without_checksums

VALUES = {"learning_rate": 3e-3, "per_device_train_batch_size": 8, "save_total_limit": 4}
FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run_state.json"]
FILES += ["manifest.json", "manifest.sha256", "config.json", "tokenizer.json"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def earlier(imported_model: Path, prepared_questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(imported_model, prepared_questions, tmp_path_factory.mktemp("earlier") / "out", num_train_epochs=3)


def finetune(model: Path, rows: Path, output: Path, **values: Any) -> Path:
    stage = steps.load("finetune", "text_classification")
    given = VALUES | values
    execute(stage(model_selector_output=model, preprocess_output=rows, pytorch_model_folder=output, **given))
    return output


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
def test_a_damaged_file_sends_the_resume_to_the_checkpoint_before(
    harm: Callable[[Path], None], name: str, earlier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(earlier / "checkpoints", tmp_path / "checkpoints"))
    assert CheckpointFolder(path=folder).last_whole() == Checkpoint(folder / "checkpoint-36")
    harm(folder / "checkpoint-36" / name)
    with caplog.at_level(logging.WARNING, logger="tuneport.finetune"):
        assert CheckpointFolder(path=folder).last_whole() == Checkpoint(folder / "checkpoint-24")
    assert "checkpoint-36 is skipped" in caplog.text


def test_the_pointers_name_the_last_and_the_best_checkpoint(earlier: Path) -> None:
    best = json.loads((earlier / "training.json").read_text())["best_checkpoint"]
    assert (earlier / "checkpoints" / "LATEST").read_text() == "checkpoint-36"
    assert f"checkpoints/{(earlier / 'checkpoints' / 'BEST').read_text()}" == best


def test_a_checkpoint_moved_aside_by_a_killed_process_comes_back(earlier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(earlier / "checkpoints", tmp_path / "checkpoints"))
    (folder / "checkpoint-36").rename(folder / ".checkpoint-36.old")
    shutil.copytree(folder / "checkpoint-24", folder / ".checkpoint-36.partial")
    CheckpointFolder(path=folder).tidy()
    assert CheckpointFolder(path=folder).last_whole() == Checkpoint(folder / "checkpoint-36")
    assert not list(folder.glob(".*"))


def test_resuming_with_another_learning_rate_is_refused(
    earlier: Path, imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    values = {"resume_from_checkpoint": str(earlier), "learning_rate": 1e-3, "num_train_epochs": 4}
    with pytest.raises(UserError, match=r"trained with learning_rate=0.003 \(now 0.001\)"):
        finetune(imported_model, prepared_questions, tmp_path / "out", **values)
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_not_there_is_refused(imported_model: Path, prepared_questions: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        finetune(imported_model, prepared_questions, tmp_path / "out", resume_from_checkpoint=str(tmp_path / "no"))


def test_a_finished_run_goes_on_for_more_epochs(
    earlier: Path, imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    values = {"resume_from_checkpoint": str(earlier / "checkpoints" / "checkpoint-24"), "num_train_epochs": 4}
    out = finetune(imported_model, prepared_questions, tmp_path / "out", **values)
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["global_step"] == 48
    assert [e["step"] for e in state["log_history"] if "eval_loss" in e] == [12, 24, 36, 48]


def test_a_finished_run_goes_on_at_the_rate_of_the_longer_schedule_from_its_first_step(
    earlier: Path,
    imported_model: Path,
    prepared_questions: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = {"resume_from_checkpoint": str(earlier), "evaluation_strategy": "steps", "eval_steps": 1}
    with caplog.at_level(logging.WARNING, logger="tuneport.finetune"):
        out = finetune(imported_model, prepared_questions, tmp_path / "out", **values, max_steps=72, logging_steps=1)
    # The earlier run's 36 steps ended at 0; of 72 steps, half of the rate is left.
    assert (
        "the schedule of 72 steps: step 37 is trained with 0.0015, where the earlier run's schedule had 0"
        in caplog.text
    )
    log = json.loads((out / "trainer_state.json").read_text("utf-8"))["log_history"]
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry and entry["step"] > 36}
    assert rates == {step: pytest.approx(3e-3 * (73 - step) / 72) for step in range(37, 73)}
    losses = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    assert losses[37] != losses[36], "step 37 moved the weights"


def test_a_run_that_goes_on_to_its_own_end_keeps_its_rates_and_says_nothing(
    earlier: Path,
    imported_model: Path,
    prepared_questions: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = {"resume_from_checkpoint": str(earlier / "checkpoints" / "checkpoint-24"), "num_train_epochs": 3}
    with caplog.at_level(logging.WARNING, logger="tuneport.finetune"):
        finetune(imported_model, prepared_questions, tmp_path / "out", **values)
    assert "schedule" not in caplog.text


def test_a_failed_save_surfaces_and_leaves_what_was_saved(
    earlier: Path, imported_model: Path, prepared_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = CheckpointFolder.publish

    def full(self: CheckpointFolder, step: int, best: int | None, parts: Any) -> None:
        if step > 24:
            raise OSError(errno.ENOSPC, "No space left on device")
        publish(self, step, best, parts)

    monkeypatch.setattr(CheckpointFolder, "publish", full)
    with pytest.raises(UserError, match="the disk is full"):
        finetune(imported_model, prepared_questions, tmp_path / "out", num_train_epochs=6)
    left = CheckpointFolder(path=tmp_path / ".out.partial" / "checkpoints")
    assert [c.step for c in left.all()] == [24, 12] and not left.all()[0].damage()
    assert not list(left.path.glob(".*")), "nothing half-written"


def wait_for_states(trainer: BestModelTrainer) -> None:
    """Wait until a thread has written the states of the checkpoint that follows this evaluation."""
    folder = trainer.checkpoints.partial(trainer.state.global_step)
    for _ in range(3000):
        if (folder / "scheduler.pt").exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{folder}: nothing is written before the evaluation ends")


def test_a_checkpoint_is_written_while_its_evaluation_is_made_and_the_last_one_without_a_copy(
    earlier: Path, imported_model: Path, prepared_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, copy, copied = BestModelTrainer.evaluation_loop, HostCopy.copy, list[int]()

    def evaluate_late(self: BestModelTrainer, *args: Any, **kwargs: Any) -> Any:
        wait_for_states(self)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(BestModelTrainer, "evaluation_loop", evaluate_late)
    monkeypatch.setattr(HostCopy, "copy", lambda self, states: copied.append(1) or copy(self, states))
    output = finetune(imported_model, prepared_questions, tmp_path / "out", num_train_epochs=3)
    assert len(copied) == 2, "nothing changes the weights after the third"
    for step in (12, 24, 36):
        names = [f"checkpoints/checkpoint-{step}/{name}" for name in ("model.safetensors", "optimizer.pt")]
        assert [(output / name).read_bytes() for name in names] == [(earlier / name).read_bytes() for name in names]


def test_an_evaluation_that_fails_leaves_no_half_of_its_checkpoint(
    imported_model: Path, prepared_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = BestModelTrainer.evaluation_loop

    def fail(self: BestModelTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 24:
            wait_for_states(self)
            raise UserError("no more")
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(BestModelTrainer, "evaluation_loop", fail)
    with pytest.raises(UserError, match="no more"):
        finetune(imported_model, prepared_questions, tmp_path / "out", num_train_epochs=3)
    left = CheckpointFolder(path=tmp_path / ".out.partial" / "checkpoints")
    assert [c.step for c in left.all()] == [12] and not left.all()[0].damage()
    assert not list(left.path.glob(".*")), "nothing half-written"


def test_the_best_model_is_written_before_the_last_checkpoint_is_sealed(
    imported_model: Path, prepared_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, waited = CheckpointFolder.publish, list[bool]()

    def publish_late(self: CheckpointFolder, step: int, best: int | None, parts: Any) -> None:
        for _ in range(3000 if step == 36 else 0):
            if (self.path.parent / "trainer_state.json").exists():  # written after the model
                break
            time.sleep(0.02)
        waited.append((self.path.parent / "trainer_state.json").exists())
        publish(self, step, best, parts)

    monkeypatch.setattr(CheckpointFolder, "publish", publish_late)
    output = finetune(imported_model, prepared_questions, tmp_path / "out", num_train_epochs=3)
    assert waited == [False, False, True]
    best = Checkpoint(output / json.loads((output / "training.json").read_text())["best_checkpoint"])
    assert best.step == 36, "it was under way as the model was read from it"
    assert not best.damage()
    assert load_file(output / "model.safetensors").keys() == load_file(best.path / "model.safetensors").keys()
    verify(Model(output))


def test_a_best_model_that_cannot_be_written_leaves_the_last_checkpoint_whole(
    imported_model: Path, prepared_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plain_model, "write", full)
    with pytest.raises(UserError, match="the disk is full"):
        finetune(imported_model, prepared_questions, tmp_path / "out", num_train_epochs=3)
    left = CheckpointFolder(path=tmp_path / ".out.partial" / "checkpoints")
    assert [c.step for c in left.all()] == [36, 24, 12] and not any(c.damage() for c in left.all())
    assert not list(left.path.glob(".*")), "nothing half-written"


@pytest.mark.parametrize("what", ["weights", "optimizer"])
def test_a_disk_that_fills_with_the_last_checkpoint_is_named_and_not_what_follows_from_it(
    what: str, imported_model: Path, prepared_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, write, reading = BestModelTrainer._save, plain_model.write, threading.Event()

    def save_none(self: BestModelTrainer, output_dir: str | None = None, state_dict: Any = None) -> None:
        if what == "weights" and "checkpoint-36" in str(output_dir):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, output_dir, state_dict)

    def save_states(state: Any, f: Any) -> None:
        if "checkpoint-36" in str(getattr(f, "path", "")):  # none is a file that transformers opens
            assert reading.wait(60)
            raise OSError(errno.ENOSPC, "No space left on device")
        torch_save(state, f)

    def write_late(*args: Any) -> None:
        reading.set()
        time.sleep(0.5)  # the thread gives the checkpoint up meanwhile, or would
        write(*args)

    torch_save = torch.save
    monkeypatch.setattr(BestModelTrainer, "_save", save_none)
    monkeypatch.setattr(plain_model, "write", write_late)
    if what == "optimizer":
        monkeypatch.setattr(torch, "save", save_states)
    with pytest.raises(UserError, match="the disk is full"):
        finetune(imported_model, prepared_questions, tmp_path / "out", num_train_epochs=3)
    left = CheckpointFolder(path=tmp_path / ".out.partial" / "checkpoints")
    assert [c.step for c in left.all()] == [24, 12] and not any(c.damage() for c in left.all())
    assert not list(left.path.glob(".*")), "nothing half-written"


def test_a_checkpoint_is_not_moved_while_it_is_read(tmp_path: Path) -> None:
    folder = CheckpointFolder(path=tmp_path)
    (folder.begin(3) / "model.safetensors").write_bytes(b"weights")
    with folder.in_place(3) as place:
        sealing = threading.Thread(target=folder.publish, args=(3, 3))
        sealing.start()
        sealing.join(0.5)
        assert sealing.is_alive()
        assert place == folder.partial(3) and (place / "model.safetensors").read_bytes() == b"weights"
    sealing.join()
    with folder.in_place(3) as place:
        assert place == folder.checkpoint(3).path
    assert not folder.checkpoint(3).damage()


def test_an_older_checkpoint_keeps_its_place_and_its_states_while_it_is_read(tmp_path: Path) -> None:
    folder = CheckpointFolder(path=tmp_path, states_of_all=False)
    for step in (1, 2):
        partial = folder.begin(step)
        for name in ("model.safetensors", "optimizer.pt", "run_state.json"):
            (partial / name).write_text(name)
        if step == 1:
            folder.publish(1, 1)
    with folder.in_place(1) as place:
        sealing = threading.Thread(target=folder.publish, args=(2, 1))
        sealing.start()
        sealing.join(0.5)
        assert sealing.is_alive()
        assert place == folder.checkpoint(1).path and (place / "optimizer.pt").exists()
    sealing.join()
    assert not (place / "optimizer.pt").exists() and (place / "model.safetensors").exists()
    assert not any(checkpoint.damage() for checkpoint in folder.all())


def test_tensors_without_checksums_are_loaded(tmp_path: Path) -> None:
    state = {"weight": torch.arange(1000.0)}
    with without_checksums():
        torch.save(state, tmp_path / "state.pt")
    assert torch.serialization.get_crc32_options()
    assert torch.equal(torch.load(tmp_path / "state.pt", weights_only=True, mmap=True)["weight"], state["weight"])


def test_copies_share_memory_where_the_tensors_do_and_do_not_follow_them() -> None:
    weight = torch.ones(3)
    copier = HostCopy()
    first = copier.copy({"a": weight, "b": weight, "state": {0: {"step": torch.tensor(1.0)}, "lr": [0.5]}})
    assert first["a"].data_ptr() == first["b"].data_ptr() != weight.data_ptr()
    weight.zero_()
    assert first["a"].tolist() == [1, 1, 1]
    assert copier.copy({"a": weight})["a"].data_ptr() == first["a"].data_ptr(), "the buffer is used again"


def test_the_error_of_a_save_is_raised_once() -> None:
    writer = Writer()

    def fail() -> None:
        raise OSError("broken")

    writer.start(fail)
    with pytest.raises(OSError, match="broken"):
        writer.wait()
    writer.wait()


@pytest.mark.parametrize("fails", [False, True])
def test_work_goes_on_after_what_is_under_way_unless_that_fails(fails: bool) -> None:
    writer, may_end, done = Writer(), threading.Event(), list[str]()

    def first() -> None:
        may_end.wait(60)
        done.append("first")
        if fails:
            raise OSError("broken")

    writer.start(first)
    writer.go_on(lambda: done.append("second"))
    assert done == []
    may_end.set()
    with pytest.raises(OSError, match="broken") if fails else nullcontext():
        writer.wait()
    assert done == (["first"] if fails else ["first", "second"])


def test_a_link_is_a_copy_where_a_link_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("old")
    link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_text() == "x"


@pytest.mark.parametrize(("value", "meant"), [(True, "true"), ("TRUE", "TRUE"), ("runs/a", "runs/a")])
def test_resuming_takes_true_as_a_word_as_a_value_and_a_path(value: Any, meant: str) -> None:
    assert steps.load("finetune", "text_classification").ports()["resume_from_checkpoint"].parse(value) == meant


def test_true_in_capitals_resumes_and_a_run_without_checkpoints_starts_from_the_beginning(
    imported_model: Path, prepared_questions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO, logger="tuneport.finetune"):
        finetune(imported_model, prepared_questions, out, resume_from_checkpoint="TRUE")
        assert "starting from the beginning" in caplog.text
        finetune(imported_model, prepared_questions, out, resume_from_checkpoint="TRUE", num_train_epochs=2)
    assert "resuming from checkpoint-12" in caplog.text
    assert json.loads((out / "training.json").read_text())["steps"] == 24
