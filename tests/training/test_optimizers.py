"""Each optimizer that transformers offers trains where its package is installed, or says what it lacks."""

import hashlib
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.tracking import Run
from tuneport.training import optimizers
from tuneport.training.conflicts import CPU, check
from tuneport.training.machine import here
from tuneport.training.muon import MuonBesideAdamW
from tuneport.training.parameters import TrainingParams
from tuneport.training.train import train

TASK = "text_classification"
CHOICES = TrainingParams.ports()["optim"].choices
INSTALLED = here().packages
USABLE = [
    name
    for name in CHOICES
    if all(module in INSTALLED for module, (_, names) in optimizers.PACKAGES.items() if name in names)
]

needs_muon = pytest.mark.skipif("muon" not in USABLE, reason="this torch is without Muon")


class Stepped(TrainerCallback):  # type: ignore[misc]
    """The optimizer that steps are made with."""

    def __init__(self) -> None:
        self.kind, self.groups = "", list[dict[str, Any]]()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self.kind, self.groups = type(optimizer).__name__, optimizer.param_groups


def stage(**values: Any) -> Any:
    inputs = {"model_selector_output": "m", "preprocess_output": "d"}
    return steps.load("finetune", TASK)(**inputs, **values)


def stepped(still: SimpleNamespace, output: Path, **values: Any) -> tuple[Stepped, str]:
    """The optimizer, and a digest of the weights that it came to."""
    callback = Stepped()
    chosen = stage(per_device_train_batch_size=8, max_steps=7, learning_rate=1e-3, **values)
    train(
        tasks.load(TASK),
        still.model,
        Prepared(still.rows),
        chosen,
        metric_for_best_model="loss",
        output=output,
        run=Run(),
        callbacks=[callback],
    )
    return callback, hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()


def test_the_choices_and_the_refused_are_transformers_own() -> None:
    own = {*optimizers.DEFAULTS, optimizers.MUON}
    assert {*CHOICES, *optimizers.NOT_OFFERED} - own == {name.value for name in OptimizerNames}
    assert not {*CHOICES} & {*optimizers.NOT_OFFERED}
    in_packages = [name for _, names in optimizers.PACKAGES.values() for name in names]
    assert {*in_packages} < {*CHOICES} and len(in_packages) == len({*in_packages})


@pytest.mark.parametrize("name", optimizers.NOT_OFFERED)
def test_an_optimizer_that_is_not_offered_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UserError, match=f"^optim='{name}': {optimizers.NOT_OFFERED[name]}; expected one of"):
        stage(optim=name)


@pytest.mark.parametrize("module", optimizers.PACKAGES)
def test_an_optimizer_whose_package_is_missing_is_refused_with_what_to_install(module: str) -> None:
    package, names = optimizers.PACKAGES[module]
    for name in names:
        chosen = stage(optim=name)
        chosen.check()
        with pytest.raises(UserError, match=rf"^optim={name}: .*\(pip install {re.escape(package)}\)"):
            check(chosen, CPU)


def test_each_optimizer_that_is_installed_trains_in_its_own_way(still: SimpleNamespace, tmp_path: Path) -> None:
    found = {name: stepped(still, tmp_path / f"of {name}", optim=name) for name in USABLE}
    kinds = {name: of_one.kind for name, (of_one, _) in found.items()}
    own = {"adafactor": "Adafactor", "sgd": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop"}
    own |= {"muon": "MuonBesideAdamW"} if "muon" in USABLE else {}
    assert kinds.items() >= own.items()
    assert {name for name, kind in kinds.items() if kind == "AdamW"} >= {
        "",
        "adamw_hf",
        "adamw_torch",
        "adamw_torch_fused",
    }
    fused = {name: of_one.groups[0].get("fused") for name, (of_one, _) in found.items()}
    assert fused["adamw_torch_fused"] and fused[""] and fused["adamw_hf"] and not fused["adamw_torch"]
    weights = {name: digest for name, (_, digest) in found.items()}
    assert weights[""] == weights["adamw_hf"] == weights["adamw_torch_fused"]
    others = [digest for name, digest in weights.items() if name not in (*optimizers.DEFAULTS, "adamw_torch")]
    assert len({*others}) == len(others)


@needs_muon
def test_muon_moves_the_matrices_of_linear_layers_and_a_resume_goes_on(still: SimpleNamespace, tmp_path: Path) -> None:
    model = tasks.load(TASK).load_model(still.model, Prepared(still.rows).info.meta)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    of_layers = [shape for name, shape in shapes.items() if len(shape) == 2 and "embeddings" not in name]
    values = {"optim": "muon", "evaluation_strategy": "steps", "eval_steps": 2, "weight_decay": 0.1}
    callback, whole = stepped(still, tmp_path / "whole", **values)
    found = {own: [g for g in callback.groups if g["matrices"] is own] for own in (True, False)}
    assert sorted(tuple(w.shape) for g in found[True] for w in g["params"]) == sorted(of_layers)
    assert sum(len(g["params"]) for g in callback.groups) == len(shapes)
    assert {g["weight_decay"] for g in found[True]} == {0.1} and {g["weight_decay"] for g in found[False]} == {0.1, 0.0}
    assert len({g["lr"] for g in callback.groups}) == 1
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for step in (6, 7):
        shutil.rmtree(tmp_path / "part" / "checkpoints" / f"checkpoint-{step}")
    _, resumed = stepped(still, tmp_path / "part", **values, resume_from_checkpoint="true")
    folders = [tmp_path / run / "checkpoints" / "checkpoint-7" for run in ("whole", "part")]
    last = [load_file(folder / "model.safetensors") for folder in folders]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0]) and resumed == whole


@needs_muon
def test_muon_makes_the_steps_that_torch_makes(still: SimpleNamespace) -> None:
    torch.manual_seed(0)
    start = [torch.randn(8, 8), torch.randn(8)]
    mixed, alone = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    both = MuonBesideAdamW(
        [{"params": mixed, "weight_decay": 0.0}], matrices={id(mixed[0])}, lr=0.1, betas=(0.9, 0.99), eps=1e-8
    )
    parts = [
        torch.optim.Muon(alone[:1], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(alone[1:], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    ]
    for _ in range(3):
        for weights, optimizers_ in ((mixed, [both]), (alone, parts)):
            for weight, one in zip(weights, start, strict=True):
                weight.grad = one.sin()
            for optimizer in optimizers_:
                optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(mixed, alone, strict=True))
    assert not torch.equal(mixed[0], start[0])


@pytest.mark.parametrize("name", CHOICES)
def test_parameters_of_adam_are_refused_where_an_optimizer_has_none_of_them(
    name: str, still: SimpleNamespace, tmp_path: Path
) -> None:
    for parameter, value, takes in (
        ("adam_beta1", 0.8, optimizers.takes_betas),
        ("adam_beta2", 0.8, optimizers.takes_betas),
        ("adam_epsilon", 1e-3, optimizers.takes_epsilon),
    ):
        chosen = stage(optim=name, **{parameter: value})
        if not takes(name):
            with pytest.raises(UserError, match="this optimizer has no such parameters"):
                chosen.check()
            continue
        chosen.check()
        if name in USABLE:
            _, plain = stepped(still, tmp_path / "plain", optim=name)
            _, changed = stepped(still, tmp_path / parameter, optim=name, **{parameter: value})
            assert plain != changed
