"""Find the checkpoint that a training goes on from, and see that it is one of the same training. No torch."""

from __future__ import annotations

import json
import logging
import typing as t
from collections.abc import Mapping
from pathlib import Path

from tuneport.errors import UserError
from tuneport.step import Port, show
from tuneport.training.checkpoint.checkpoint_folder import PREFIX, RUN_STATE, Checkpoint, CheckpointFolder, origin

log = logging.getLogger("tuneport.finetune")

NO, YES = "false", "true"
WEIGHTS_ALONE = "holds weights alone (checkpoint_contents)"
# What a resume may change. What is not listed decides the weights, so a checkpoint with another value is refused.
MAY_CHANGE = {
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",  # the rows of a step are compared instead
    "gradient_accumulation_steps",
    "number_of_gpu_to_use_finetuning",
    "num_nodes_finetune",
    "ddp_timeout",
    "per_device_eval_batch_size",
    "eval_accumulation_steps",
    "evaluation_strategy",
    "eval_steps",
    "evaluation_steps_interval",
    "logging_strategy",
    "logging_steps",
    "report_to",
    "save_total_limit",
    "checkpoint_contents",
    "apply_early_stopping",
    "early_stopping_patience",
    "early_stopping_threshold",
    "resume_from_checkpoint",
}


def wanted(value: str) -> str:
    """``resume_from_checkpoint`` as it is meant: true and false in any case, else a path as it stands."""
    return value.lower() if value.lower() in (NO, YES) else value


def check(value: str) -> None:
    """Raise `UserError` where a path to resume from does not exist."""
    if wanted(value) not in (NO, YES) and not Path(value).is_dir():
        raise UserError(
            f"resume_from_checkpoint={show(value)}: no such folder; expected true, false, a checkpoint, or the folder "
            "of an earlier run."
        )


def prepare(
    value: str,
    own: CheckpointFolder,
    ports: Mapping[str, Port],
    rows_per_step: int,
    processes: int | None = None,
) -> Checkpoint | None:
    """Return the checkpoint in ``own`` to go on from, brought there if need be, or None to start from the beginning.

    ``processes``: how many there must have been, where each has written a part of its own.

    Newer checkpoints, damaged ones, are deleted from ``own``. Raises `UserError` for a path without a whole checkpoint
    and for a checkpoint of another training.
    """
    if wanted(value) == NO:
        return None
    own.tidy()
    found = own.last_whole()
    if wanted(value) != YES and (found is None or origin(found)[0].get("resume_from_checkpoint") != value):
        found = _of_earlier_run(Path(value))
        _check_same_training(found, own, ports, rows_per_step, processes)
        own.keep_up_to(None)
        own.bring(found)
        found = own.checkpoint(found.step)
    elif found is not None:
        _check_same_training(found, own, ports, rows_per_step, processes)
    if found is None and (weights := next((c for c in own.all() if not c.is_resumable()), None)):
        raise UserError(
            f"resume_from_checkpoint={value}: {weights.path} {WEIGHTS_ALONE}. Set resume_from_checkpoint=false to "
            "start from the beginning, or import it as the base model to go on from its weights."
        )
    if found is None:
        log.info("no whole checkpoint to resume from in %s: starting from the beginning", own.path)
    else:
        log.info("resuming from %s", found.path.name)
    own.keep_up_to(found)
    return found


def _of_earlier_run(path: Path) -> Checkpoint:
    """The checkpoint that a path names, or the last whole one of the run that it names."""
    if path.name.startswith(PREFIX):
        checkpoint = Checkpoint(path)
        if damage := checkpoint.damage():
            raise UserError(f"{path}: cannot be resumed from, as it is damaged ({damage}). Name another checkpoint.")
        if not checkpoint.is_resumable():
            raise UserError(f"{path}: cannot be resumed from, as it {WEIGHTS_ALONE}. Name another checkpoint.")
        return checkpoint
    folder, hidden = "pytorch_model_folder", ".pytorch_model_folder.partial"
    places = (
        path,
        path / "checkpoints",
        path.with_name(f".{path.name}.partial") / "checkpoints",
        path / "finetune" / hidden / "checkpoints",
        path / "finetune" / folder / "checkpoints",
    )
    for place in places:
        if found := CheckpointFolder(path=place).last_whole():
            return found
    raise UserError(
        f"resume_from_checkpoint={show(str(path))}: holds no whole checkpoint; expected a checkpoint, or the folder of "
        "an earlier run."
    )


def _check_same_training(
    checkpoint: Checkpoint,
    own: CheckpointFolder,
    ports: Mapping[str, Port],
    rows_per_step: int,
    processes: int | None,
) -> None:
    parameters, inputs = origin(checkpoint)
    saved: t.Any = json.loads((checkpoint.path / RUN_STATE).read_text("utf-8"))
    differing = [
        f"{name}={show(parameters.get(name, ports[name].default))} (now {show(value)})"
        for name, value in own.parameters.items()
        if name not in MAY_CHANGE and parameters.get(name, ports[name].default) != value
    ]
    if saved["rows_per_step"] != rows_per_step:
        items = "packs" if own.parameters.get("packing") else "rows"
        differing.append(f"{saved['rows_per_step']} {items} an optimizer step (now {rows_per_step})")
    if processes is not None and saved["world_size"] != processes:
        differing.append(
            f"{saved['world_size']} processes, each of which wrote a part of the optimizer's states (now {processes})"
        )
    if inputs != dict(own.inputs):
        differing.append("other rows or another base model")
    if differing:
        raise UserError(
            f"{checkpoint.path}: cannot be resumed from, as it was trained with {', '.join(differing)}. Give the same "
            "again, or start again with resume_from_checkpoint=false; to go on from its weights alone, import it as "
            "the base model."
        )
