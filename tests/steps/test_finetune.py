"""finetune: real training of a tiny model; the best checkpoint comes out, and mistakes leave nothing behind."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

import steps
from tuneport import tasks
from tuneport.artifacts import Model, verify, write_manifest
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute
from tuneport.tracking import Run
from tuneport.training.train import Result, train

FAST = {
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 64,
    "num_train_epochs": 2,
}


def finetune(model: Path, prepared: Path, output: Path, **values: Any) -> Path:
    stage = steps.load("finetune", "text_classification")(
        model_selector_output=model, preprocess_output=prepared, pytorch_model_folder=output, **FAST | values
    )
    execute(stage)
    return output


def run_train(model: Path, prepared: Path, stage: Any, output: Path, callback: TrainerCallback) -> Result:
    """Train in this process, with a callback that interferes."""
    metric, task = stage.metric_for_best_model, tasks.load("text_classification")
    run, callbacks = Run(), [callback]
    read = Prepared(prepared)
    return train(task, model, read, stage, metric_for_best_model=metric, output=output, run=run, callbacks=callbacks)


def history(output: Path, key: str) -> list[float]:
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in log if key in entry]


@pytest.fixture(scope="module")
def trained(imported_model: Path, prepared_questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(imported_model, prepared_questions, tmp_path_factory.mktemp("finetune") / "out", num_train_epochs=8)


def test_training_learns_and_the_output_loads_with_its_labels(trained: Path, prepared_questions: Path) -> None:
    assert history(trained, "eval_loss")[-1] < 0.8 * history(trained, "eval_loss")[0]
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    assert set(model.config.label2id) == {"animal", "colour", "number"}
    assert AutoTokenizer.from_pretrained(trained).model_max_length == Prepared(prepared_questions).info.max_seq_length
    verify(Model(trained))


def test_every_evaluation_leaves_a_whole_checkpoint(trained: Path) -> None:
    checkpoints = sorted((trained / "checkpoints").glob("checkpoint-*"))
    assert len(checkpoints) == len(history(trained, "eval_loss")) == 8
    parts = {"model.safetensors", "config.json", "tokenizer.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    for checkpoint in checkpoints:
        assert parts | {"trainer_state.json"} <= {f.name for f in checkpoint.iterdir()}


def test_nothing_written_needs_unguarded_unpickling(trained: Path) -> None:
    import numpy as np
    from numpy._core.multiarray import _reconstruct  # what transformers allows for its own RNG state

    assert not list(trained.rglob("training_args.bin"))
    allowed = [_reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32)), type(np.dtype(np.int64))]
    with torch.serialization.safe_globals(allowed):
        for file in [*trained.rglob("*.pt"), *trained.rglob("*.pth")]:
            torch.load(file, weights_only=True)


def test_no_written_text_names_an_absolute_path_of_the_run(trained: Path) -> None:
    for file in trained.rglob("*.json"):
        assert str(trained.parent) not in file.read_text(), file


class SpoilLastEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets the weights to zero when the last epoch ends, before it is evaluated: all rows get the same answer."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            with torch.no_grad():
                for weight in kwargs["model"].parameters():
                    weight.zero_()


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_planted_worse_last_epoch_does_not_come_out(
    metric: str, imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    stage = steps.load("finetune", "text_classification")(
        model_selector_output=imported_model,
        preprocess_output=prepared_questions,
        metric_for_best_model=metric,
        **FAST | {"num_train_epochs": 6},
    )
    result = run_train(imported_model, prepared_questions, stage, tmp_path, SpoilLastEpoch())
    losses = history(tmp_path, f"eval_{metric}")
    best = min(losses) if metric == "loss" else max(losses)
    assert losses[-1] != best, "the planted epoch must be worse"
    assert result.best_metric == best and result.best_step < result.steps
    out = load_file(tmp_path / "model.safetensors")
    kept = load_file(tmp_path / result.best_checkpoint / "model.safetensors")
    spoilt = load_file(tmp_path / "checkpoints" / f"checkpoint-{result.steps}" / "model.safetensors")
    assert all(torch.equal(out[name], kept[name]) for name in out)
    assert any(not torch.equal(out[name], spoilt[name]) for name in out)


def test_early_stopping_on_loss_does_not_fire_while_the_loss_falls(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    out = finetune(
        imported_model,
        prepared_questions,
        tmp_path / "out",
        learning_rate=5e-4,
        num_train_epochs=4,
        apply_early_stopping=True,
    )
    losses = history(out, "eval_loss")
    assert losses == sorted(losses, reverse=True), "a falling loss is the premise"
    assert len(losses) == 4


def test_early_stopping_fires_when_the_metric_no_longer_improves(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    values = {"num_train_epochs": 6, "apply_early_stopping": True, "early_stopping_threshold": 100.0}
    out = finetune(imported_model, prepared_questions, tmp_path / "out", **values)
    assert len(history(out, "eval_loss")) < 6


def test_the_last_step_is_evaluated_too(imported_model: Path, prepared_questions: Path, tmp_path: Path) -> None:
    values = {"evaluation_strategy": "steps", "eval_steps": 5, "max_steps": 7}
    out = finetune(imported_model, prepared_questions, tmp_path / "out", **values)
    assert sorted(c.name for c in (out / "checkpoints").glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-7"]
    assert len(history(out, "eval_loss")) == 2


def test_evaluations_may_lie_a_fraction_of_an_epoch_apart(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    """Also with packs, of which an epoch has fewer than rows."""
    values = {"evaluation_steps_interval": 0.25, "per_device_train_batch_size": 4, "num_train_epochs": 2}
    out = finetune(imported_model, prepared_questions, tmp_path / "out", **values)
    steps = -(-Prepared(prepared_questions).info.splits["train"] // 4)
    apart = -(-steps // 4)
    checkpoints = {int(c.name.partition("-")[2]) for c in (out / "checkpoints").glob("checkpoint-*")}
    assert checkpoints == {*range(apart, 2 * steps + 1, apart), 2 * steps}
    assert len(history(out, "eval_loss")) == len(checkpoints)
    values = {"evaluation_steps_interval": 0.5, "packing": True, "per_device_train_batch_size": 1}
    out = finetune(imported_model, prepared_questions, tmp_path / "packed", **values, num_train_epochs=1)
    assert len(history(out, "eval_loss")) == 2


def test_save_total_limit_keeps_the_best_checkpoint(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    values = {"num_train_epochs": 5, "learning_rate": 2e-2, "save_total_limit": 1, "seed": 3}
    out = finetune(imported_model, prepared_questions, tmp_path / "out", **values)
    assert (out / json.loads((out / "training.json").read_text())["best_checkpoint"]).is_dir()
    assert len(list((out / "checkpoints").glob("checkpoint-*"))) <= 2


def test_the_same_seed_gives_the_same_weights(imported_model: Path, prepared_questions: Path, tmp_path: Path) -> None:
    a = load_file(finetune(imported_model, prepared_questions, tmp_path / "a") / "model.safetensors")
    b = load_file(finetune(imported_model, prepared_questions, tmp_path / "b") / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_diverged_training_is_explained_and_leaves_no_artifact(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    values = {
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
        "adam_epsilon": 1e-30,
        "num_train_epochs": 1,
    }

    class Ruin(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                next(kwargs["model"].parameters()).fill_(float("nan"))

    stage = steps.load("finetune", "text_classification")(
        model_selector_output=imported_model, preprocess_output=prepared_questions, **FAST | values
    )
    with pytest.raises(UserError, match=r"^step 2: the loss is nan on these training rows: questions\.jsonl:"):
        run_train(imported_model, prepared_questions, stage, tmp_path, Ruin())


def test_rows_tokenised_for_another_model_are_refused(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(imported_model, tmp_path / "other"))
    write_manifest(Model(other), "model_import", "0", {"changed": True}, {})
    with pytest.raises(UserError, match="tokenised for another model"):
        finetune(other, prepared_questions, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_input_altered_by_one_byte_is_refused_by_name(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    altered = Path(shutil.copytree(prepared_questions, tmp_path / "altered"))
    file = altered / "encoded" / "train-00000.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    command = [sys.executable, "-m", "steps", "finetune", "--task_name", "text_classification"]
    command += ["--model_selector_output", str(imported_model), "--preprocess_output", str(altered)]
    done = subprocess.run(
        [*command, "--pytorch_model_folder", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "train-00000.arrow: was altered" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_classify_is_refused_by_its_type(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    from transformers import MarianConfig

    marian = tmp_path / "marian"
    MarianConfig().save_pretrained(marian)
    with pytest.raises(UserError, match="no AutoModelForSequenceClassification for a model of type 'marian'"):
        tasks.load("text_classification").load_model(marian, Prepared(prepared_questions).info.meta)


@pytest.mark.parametrize(("name", "value"), [("max_steps", 0), ("save_total_limit", 0), ("eval_accumulation_steps", 0)])
def test_a_zero_that_means_nothing_is_refused(
    name: str, value: int, imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"{name}=0"):
        finetune(imported_model, prepared_questions, tmp_path / "out", **{name: value})


@pytest.mark.slow
def test_the_network_is_never_touched(imported_model: Path, prepared_questions: Path, tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise SystemExit('network touched')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "import steps; from tuneport.cli.stage_command import run_stage\n"
        "sys.exit(run_stage(sys.argv[1:], names=steps.names(), load=steps.load))\n"
    )
    flags = ["finetune", "--task_name", "text_classification", "--max_steps", "2"]
    flags += ["--model_selector_output", str(imported_model), "--preprocess_output", str(prepared_questions)]
    subprocess.run([sys.executable, "-c", code, *flags, "--pytorch_model_folder", str(tmp_path / "out")], check=True)


def on_a_small_disk(size: str, disk: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run finetune into ``out`` on a disk of its own of this size; lists what is there when it ends."""
    disk.mkdir()
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system lets nobody mount a small disk")
    script = (
        f'mount -t tmpfs -o size={size} none "$0" && cd "$0" || exit 99; "$@" --pytorch_model_folder "$0/out"; '
        'code=$?; find "$0" | sort; exit $code'
    )
    return subprocess.run(
        [*namespace, "sh", "-c", script, str(disk), sys.executable, "-m", "steps", "finetune", *command],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def nine_epochs(imported_model: Path, prepared_questions: Path) -> list[str]:
    command = ["--model_selector_output", str(imported_model), "--preprocess_output", str(prepared_questions)]
    command += ["--task_name", "text_classification", "--num_train_epochs", "9", "--per_device_train_batch_size", "8"]
    return [*command, "--learning_rate", "1e-3"]


@pytest.mark.slow
def test_a_disk_without_room_for_the_checkpoints_is_told_before_the_first_step(
    nine_epochs: list[str], tmp_path: Path
) -> None:
    done = on_a_small_disk("2200k", tmp_path / "disk", nine_epochs)
    assert done.returncode == 2, done.stderr
    assert re.search(r"2\.\d MB of disk are free; expected \d\.\d MB: 9 checkpoints of 0\.\d MB", done.stderr)
    assert "Traceback" not in done.stderr and done.stdout.splitlines() == [str(tmp_path / "disk")]


@pytest.mark.slow
def test_a_full_disk_during_a_checkpoint_is_explained_and_keeps_the_whole_ones(
    nine_epochs: list[str], tmp_path: Path
) -> None:
    may_stop = ["--apply_early_stopping", "true"]  # so that nobody knows how many checkpoints there will be
    done = on_a_small_disk("2200k", tmp_path / "disk", [*nine_epochs, *may_stop])
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr and "Traceback" not in done.stderr
    left = done.stdout.splitlines()
    ours = [name for name in left if "/checkpoints/" not in name]
    assert not [name for name in ours if name.endswith("out") or "manifest.json" in name], "no artifact"
    checkpoints = {name.partition("/checkpoints/")[2].partition("/")[0] for name in left if "/checkpoints/" in name}
    checkpoints = {name for name in checkpoints if name.startswith("checkpoint-")}  # not the pointers
    assert checkpoints, "what was saved before is not lost"
    for checkpoint in checkpoints:
        parts = {name.rpartition("/")[2] for name in left if f"/{checkpoint}/" in name}
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= parts


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has this arithmetic")
@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_arithmetic_that_the_cpu_lacks_is_refused(
    precision: str, imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"precision={precision}: needs an NVIDIA GPU.*precision=bf16"):
        finetune(imported_model, prepared_questions, tmp_path / "out", precision=precision)
    assert not (tmp_path / "out").exists()
