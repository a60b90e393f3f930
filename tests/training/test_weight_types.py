"""Weights are trained in the type asked for, and what comes out has the type of the base model's files."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

import steps
from steps.model_import import ModelImport
from tuneport import tasks
from tuneport.artifacts import CustomModel, Model
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.modeling import merged_adapters, weight_types
from tuneport.stage import execute
from tuneport.step import show
from tuneport.tracking import Run
from tuneport.training import optimizers
from tuneport.training.machine import here
from tuneport.training.train import train

TASK = "text_classification"
FAST = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "max_steps": 4, "learning_rate": 1e-3}
LORA = {"apply_lora": True, "lora_alpha": 16, "learning_rate": 1e-2}
BF16 = {"precision": "bf16"}


@pytest.fixture(scope="module")
def base(imported_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model in a type, as model_import hands it on, and rows prepared for it beside it."""
    made: dict[str, Path] = {}

    def make(dtype: str) -> Path:
        if dtype not in made:
            folder = tmp_path_factory.mktemp(dtype)
            shutil.copytree(imported_model, folder / "tiny", ignore=shutil.ignore_patterns("manifest.json"))
            weights = load_file(folder / "tiny" / "model.safetensors")
            kind = getattr(torch, dtype)
            cast = {name: w.to(torch.bfloat16).to(kind) if w.is_floating_point() else w for name, w in weights.items()}
            save_file(cast, folder / "tiny" / "model.safetensors", metadata={"format": "pt"})
            made[dtype] = folder / "base"
            execute(
                ModelImport(pytorch_model_path=CustomModel(folder / "tiny"), model_selector_output=Model(made[dtype]))
            )
        return made[dtype]

    return make


@pytest.fixture(scope="module")
def data(
    base: Callable[[str], Path],
    task_rows: list[dict[str, Any]],
    task_columns: dict[str, dict[str, Any]],
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str], Path]:
    made: dict[tuple[str, str], Path] = {}

    def make(dtype: str, task: str = TASK) -> Path:
        if (dtype, task) not in made:
            folder = tmp_path_factory.mktemp("prepared")
            values = {"train_file_path": write_jsonl(folder / "rows.jsonl", task_rows), **task_columns[task]}
            stage = steps.load("preprocess", task)
            execute(stage(model_selector_output=base(dtype), preprocess_output=folder / "out", **values))
            made[dtype, task] = folder / "out"
        return made[dtype, task]

    return make


class Seen(TrainerCallback):  # type: ignore[misc]
    """The types of weights, by whether they are trained, of gradients and of what the optimizer holds."""

    def __init__(self) -> None:
        self.weights: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
        self.gradients: set[torch.dtype] = set()
        self.states: set[torch.dtype] = set()
        self.losses: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for weight in kwargs["model"].parameters():
            self.weights[weight.requires_grad].add(weight.dtype)
            if weight.grad is not None:
                self.gradients.add(weight.grad.dtype)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        held = [value for of_one in optimizer.state.values() for value in of_one.values()]
        self.states = {v.dtype for v in held if isinstance(v, torch.Tensor) and v.dim()}
        self.losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]


def trained(base: Path, data: Path, output: Path, task: str = TASK, metric: str = "loss", **values: Any) -> Seen:
    output.mkdir(exist_ok=True)
    stage: Any = steps.load("finetune", task)(model_selector_output=base, preprocess_output=data, **FAST | values)
    stage.check()
    seen, read = Seen(), Prepared(data)
    train(tasks.load(task), base, read, stage, metric_for_best_model=metric, output=output, run=Run(), callbacks=[seen])
    return seen


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def best_of(output: Path) -> Path:
    found = json.loads((output / "trainer_state.json").read_text("utf-8"))["best_model_checkpoint"]
    return output / str(found)


@pytest.mark.parametrize("wanted", ["auto", "float32", "bfloat16", "float16"])
def test_masters_are_in_32_bits_and_only_the_output_is_in_another_type(
    wanted: str, base: Callable[[str], Path], data: Callable[..., Path], tmp_path: Path
) -> None:
    seen = trained(base("bfloat16"), data("bfloat16"), tmp_path, output_dtype=wanted)
    assert seen.weights[True] == seen.gradients == seen.states == {torch.float32}
    written = torch.bfloat16 if wanted == "auto" else getattr(torch, wanted)
    kept, out = weights_of(best_of(tmp_path)), weights_of(tmp_path)
    assert kept.keys() == out.keys() and {weight.dtype for weight in kept.values()} == {torch.float32}
    assert all(torch.equal(out[name], kept[name].to(written)) and out[name].dtype == written for name in out)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["dtype"] == str(written).removeprefix("torch.")
    assert weight_types.of_files(tmp_path) == written


def test_training_in_32_bits_does_not_depend_on_the_type_of_the_files(
    base: Callable[[str], Path], data: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tuneport")
    for more in ({}, LORA):
        half, full = (
            trained(base(d), data(d), tmp_path / f"{d}{len(more)}", output_dtype="float32", **more)
            for d in ("bfloat16", "float32")
        )
        assert half.losses == full.losses and half.weights == full.weights
        first, other = (weights_of(tmp_path / f"{d}{len(more)}") for d in ("bfloat16", "float32"))
        assert all(torch.equal(first[name], other[name]) for name in first)
    line = "frozen weights are held in float32, twice the base model's bfloat16, which precision=bf16 keeps"
    assert [line in message for message in caplog.messages].count(True) == 1


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("judged", [(TASK, "loss"), ("token_classification", "f1"), ("question_answering", "f1")])
def test_frozen_weights_keep_the_bases_type_and_what_is_trained_beside_them_is_in_32_bits(
    judged: tuple[str, str], merge: bool, base: Callable[[str], Path], data: Callable[..., Path], tmp_path: Path
) -> None:
    task, metric = judged
    values = {**LORA, **BF16, "merge_lora_weights": merge, "use_dora": merge}
    seen = trained(base("bfloat16"), data("bfloat16", task), tmp_path, task, metric, **values)
    assert seen.weights == {True: {torch.float32}, False: {torch.bfloat16}}
    assert seen.gradients == seen.states == {torch.float32}
    adapter = load_file(best_of(tmp_path) / "adapter_model.safetensors")
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    if not merge:
        own = load_file(tmp_path / "adapter_model.safetensors")
        assert own.keys() == adapter.keys() and all(torch.equal(own[name], adapter[name]) for name in own)
        return
    out = weights_of(tmp_path)
    expected = merged_adapters.load_merged(best_of(tmp_path), base("bfloat16")).state_dict()
    assert {weight.dtype for weight in out.values()} == {torch.bfloat16}
    assert all(torch.equal(out[name], expected[name].bfloat16()) for name in out) and out.keys() <= expected.keys()
    assert (tmp_path / "tokenizer.json").is_file() and not list(tmp_path.glob("adapter_*"))
    before = weights_of(base("bfloat16"))
    changed = [n for n, w in before.items() if not torch.equal(out.get(n, out.get(f"bert.{n}", w)), w)]
    assert any("query" in name for name in changed) and not any("embeddings" in name for name in changed)


def test_pure_bfloat16_halves_weights_gradients_and_states_and_resumes_bit_for_bit(
    base: Callable[[str], Path], data: Callable[..., Path], tmp_path: Path
) -> None:
    values = {**BF16, "weights_dtype": "bfloat16", "evaluation_strategy": "steps", "eval_steps": 2}
    whole = trained(base("float32"), data("float32"), tmp_path / "whole", **values)
    assert whole.weights[True] == whole.gradients == whole.states == {torch.bfloat16}
    kept = weights_of(tmp_path / "whole" / "checkpoints" / "checkpoint-4")
    assert {weight.dtype for weight in kept.values()} == {torch.bfloat16}
    assert {weight.dtype for weight in weights_of(tmp_path / "whole").values()} == {torch.float32}  # the base's
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "checkpoint-4")
    trained(base("float32"), data("float32"), tmp_path / "part", **values, resume_from_checkpoint="true")
    again = weights_of(tmp_path / "part" / "checkpoints" / "checkpoint-4")
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_small_updates_of_weights_in_bfloat16_are_rounded_away_below_the_rate_that_is_refused(
    base: Callable[[str], Path], data: Callable[..., Path], tmp_path: Path
) -> None:
    values = {**BF16, "weights_dtype": "bfloat16", "learning_rate": 2e-5}
    with pytest.raises(UserError, match=r"8 bits.* optim=stable_adamw, .*Kahan summation"):
        trained(base("bfloat16"), data("bfloat16"), tmp_path / "refused", **values)
    weight, rate = torch.nn.Parameter(torch.full((64,), 0.1).bfloat16()), 2e-5
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0, fused=True)
    for _ in range(10):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert torch.equal(weight, before)  # a hundred such updates would be as none


@pytest.mark.parametrize("optim", [*optimizers.ROUNDED_AT_RANDOM, *optimizers.SUMMED_UP])
def test_an_optimizer_that_keeps_small_updates_does_or_says_what_to_install(
    optim: str, base: Callable[[str], Path], data: Callable[..., Path], tmp_path: Path
) -> None:
    values = {**BF16, "weights_dtype": "bfloat16", "learning_rate": 2e-5, "optim": optim}
    package = next(module for module, (_, names) in optimizers.PACKAGES.items() if optim in names)
    if package not in here().packages:
        with pytest.raises(UserError, match=rf"^optim={optim}: .* not installed. Install it \(pip install"):
            trained(base("bfloat16"), data("bfloat16"), tmp_path, **values)
        return
    trained(base("bfloat16"), data("bfloat16"), tmp_path, **values)
    before, after = weights_of(base("bfloat16")), weights_of(tmp_path)
    name = "encoder.layer.0.attention.self.query.weight"
    assert float((before[name] != after[f"bert.{name}"]).float().mean()) > 0.2


def test_a_number_that_float16_does_not_hold_is_refused(base: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base("float32"), folder, ignore=shutil.ignore_patterns("manifest.json"))
    weights = weights_of(folder)
    name = next(name for name, weight in weights.items() if weight.is_floating_point())
    weights[name].view(-1)[3] = -70_000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with (
        pytest.raises(UserError, match=r"^output_dtype=float16: a weight has the value 70,000, .* Take output_dtype="),
        merged_adapters.merged(folder, None, tmp_path, "float16"),
    ):
        pass
    with merged_adapters.merged(folder, None, tmp_path, "bfloat16") as made:
        assert float(weights_of(made)[name].view(-1)[3]) == float(torch.tensor(-70_000).bfloat16())
    assert [*tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize("merge", [True, False])
def test_the_exported_model_has_the_bases_type_or_the_one_asked_for(
    merge: bool, base: Callable[[str], Path], data: Callable[..., Path], tmp_path: Path
) -> None:
    values = {**FAST, **LORA, **BF16, "merge_lora_weights": merge}
    inputs = {"model_selector_output": base("bfloat16"), "preprocess_output": data("bfloat16")}
    execute(steps.load("finetune", TASK)(**inputs, pytorch_model_folder=tmp_path / "tuned", **values))
    for wanted, dtype in (("auto", torch.bfloat16), ("float16", torch.float16)):
        exported, stage = tmp_path / wanted, steps.load("model_export", TASK)
        inputs["pytorch_model_folder"] = tmp_path / "tuned"
        execute(stage(**inputs, mlflow_model_folder=exported, output_dtype=wanted))
        (weights,) = exported.rglob("model.safetensors")
        assert {weight.dtype for weight in load_file(weights).values()} == {dtype}
        config = json.loads((weights.parent / "config.json").read_text("utf-8"))
        assert config["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "dtype"),
    [("two processes", "bfloat16"), ("ZeRO-2", "bfloat16"), ("ZeRO-3", "bfloat16"), ("ZeRO-3", "float32")],
)
def test_several_processes_keep_frozen_weights_and_write_the_bases_type(
    how: str, dtype: str, base: Callable[[str], Path], data: Callable[..., Path], tmp_path: Path
) -> None:
    sharded = {"apply_deepspeed": True, "deepspeed_stage": how[-1]} if "ZeRO" in how else {}
    values = {**FAST, **LORA, **BF16, **sharded, "number_of_gpu_to_use_finetuning": 2}
    values |= {"model_selector_output": base(dtype), "preprocess_output": data(dtype)}
    argv = [sys.executable, "-m", "steps", "finetune", "--task_name", TASK, "--pytorch_model_folder", tmp_path / "out"]
    for name, value in values.items():
        argv += [f"--{name}", show(value) if isinstance(value, bool) else str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    out, adapter = weights_of(tmp_path / "out"), best_of(tmp_path / "out")
    expected = merged_adapters.load_merged(adapter, base(dtype), dtype=dtype).state_dict()
    assert {weight.dtype for weight in out.values()} == {getattr(torch, dtype)}
    assert all(torch.equal(out[name], expected[name]) for name in out)
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text("utf-8"))["log_history"]
    assert min(entry["eval_loss"] for entry in log if "eval_loss" in entry) < 1.2
