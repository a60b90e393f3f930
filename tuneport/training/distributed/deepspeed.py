"""DeepSpeed's configuration: ours, or the user's file made to agree with the parameters. No torch."""

from __future__ import annotations

import copy
import json
import typing as t
from collections.abc import Iterator
from pathlib import Path

from tuneport.errors import UserError
from tuneport.stage import read_json_object
from tuneport.step import show
from tuneport.training.parameters import TrainingParams

AUTO = "auto"
# What transformers fills in once it knows the model's size and the number of steps.
FILLED_LATER = (
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "scheduler.params.total_num_steps",
    "scheduler.params.warmup_num_steps",  # with warmup_ratio
)


def configuration(options: TrainingParams, *, bf16: bool, fp16: bool, world_size: int) -> dict[str, t.Any]:
    """DeepSpeed's configuration as its engine takes it.

    Raises one `UserError` that lists every value of the user's file that contradicts a parameter.
    """
    wanted = _values(options, world_size) | {"bf16.enabled": (bf16, "precision"), "fp16.enabled": (fp16, "precision")}
    config = _read(options.deepspeed.path) if options.deepspeed else _ours(options)
    problems = list(_fill(config, wanted))
    problems += [
        f"{path}: 'auto' is not known here; expected a value"
        for path in _autos(config)
        if path not in FILLED_LATER and path not in wanted
    ]
    if problems:
        listed = "; ".join(problems)
        raise UserError(
            f"deepspeed={options.deepspeed and options.deepspeed.path}: contradicts the parameters: {listed}. Change "
            "one of the two, or write 'auto' in the file."
        )
    return config


def check(options: TrainingParams) -> None:
    """Raise `UserError` for a file that cannot be used with these parameters, without knowing the machine."""
    if options.deepspeed is None:
        return
    world_size = options.number_of_gpu_to_use_finetuning * options.num_nodes_finetune
    config = _read(options.deepspeed.path)
    half = {name: _get(config, f"{name}.enabled") is True for name in ("bf16", "fp16")}
    allowed = {"32": (), "tf32": (), "16": ("bf16", "fp16")}.get(options.precision, (options.precision,))
    if wrong := [name for name, enabled in half.items() if enabled and name not in allowed]:
        raise UserError(
            f"deepspeed={options.deepspeed.path}: enables {wrong[0]}, but precision={options.precision}. "
            f"Set precision={wrong[0]}, or write 'auto' in the file."
        )
    stage = _get(config, "zero_optimization.stage")
    if stage is not None and str(stage) != options.deepspeed_stage != type(options).ports()["deepspeed_stage"].default:
        raise UserError(
            f"deepspeed_stage={show(options.deepspeed_stage)}: {options.deepspeed.path} has stage {stage}. "
            "Leave deepspeed_stage out: the file's stage holds."
        )
    configuration(options, **half, world_size=world_size)


def stage(options: TrainingParams) -> int:
    """The ZeRO stage, the file's where there is one; 0 without DeepSpeed."""
    if not options.apply_deepspeed:
        return 0
    found = _get(_read(options.deepspeed.path), "zero_optimization.stage") if options.deepspeed else None
    return int(options.deepspeed_stage) if found is None else int(found)


def set_batches(config: dict[str, t.Any], batch_size: int, accumulation: int, world_size: int) -> None:
    """Write into a configuration the batches that were found to fit."""
    config["train_micro_batch_size_per_gpu"] = batch_size
    config["gradient_accumulation_steps"] = accumulation
    if "train_batch_size" in config:
        config["train_batch_size"] = batch_size * accumulation * world_size


def _ours(options: TrainingParams) -> dict[str, t.Any]:
    """The optimizer and the schedule are the Trainer's own, so that a step is that of training without DeepSpeed."""
    zero: dict[str, t.Any] = {"stage": int(options.deepspeed_stage), "contiguous_gradients": True}
    zero["reduce_bucket_size"] = 50_000_000  # elements of a buffer; DeepSpeed's own default takes 2 GB
    if options.deepspeed_offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if options.deepspeed_stage == "3":
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        zero |= {path.partition(".")[2]: AUTO for path in FILLED_LATER if path.startswith("zero")}
        if options.deepspeed_offload:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": AUTO,
        "gradient_accumulation_steps": AUTO,
        "gradient_clipping": AUTO,
        "bf16": {"enabled": AUTO},
        "fp16": {"enabled": AUTO},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def _values(options: TrainingParams, world_size: int) -> dict[str, tuple[t.Any, str]]:
    """By path in the configuration: the value that the parameters give it, and which parameters those are."""
    size, accumulation = options.per_device_train_batch_size, options.gradient_accumulation_steps
    found: dict[str, tuple[t.Any, str]] = {
        "train_micro_batch_size_per_gpu": (size, "per_device_train_batch_size"),
        "gradient_accumulation_steps": (accumulation, "gradient_accumulation_steps"),
        "train_batch_size": (
            size * accumulation * world_size,
            "per_device_train_batch_size × gradient_accumulation_steps × processes",
        ),
        "gradient_clipping": (options.max_grad_norm, "max_grad_norm"),
        "optimizer.params.lr": (options.learning_rate, "learning_rate"),
        "optimizer.params.betas": ([options.adam_beta1, options.adam_beta2], "adam_beta1, adam_beta2"),
        "optimizer.params.eps": (options.adam_epsilon, "adam_epsilon"),
        "optimizer.params.weight_decay": (options.weight_decay, "weight_decay"),
        "scheduler.params.warmup_min_lr": (0, "the schedule's start"),
        "scheduler.params.warmup_max_lr": (options.learning_rate, "learning_rate"),
    }
    if not options.warmup_ratio:
        found["scheduler.params.warmup_num_steps"] = (max(1, options.warmup_steps), "warmup_steps")
    return found


def _read(file: Path) -> dict[str, t.Any]:
    return read_json_object("deepspeed", file, "DeepSpeed's configuration")


def _fill(config: dict[str, t.Any], wanted: dict[str, tuple[t.Any, str]]) -> Iterator[str]:
    """Put the parameters' values where the file says 'auto' or nothing; yields what contradicts them."""
    for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        config.setdefault(name, AUTO)
    for path, (value, parameters) in wanted.items():
        found = _get(config, path)
        if found == AUTO:
            *parents, last = path.split(".")
            section = config
            for parent in parents:
                section = section[parent]
            section[last] = copy.copy(value)
        elif found is not None and found != value:
            yield f"{path} is {json.dumps(found)}, {parameters} make{'' if ',' in parameters else 's'} it {value}"


def _get(config: dict[str, t.Any], path: str) -> t.Any:
    found: t.Any = config
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found


def _autos(config: dict[str, t.Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _autos(value, f"{prefix}{name}.")
        elif value == AUTO:
            yield prefix + name
