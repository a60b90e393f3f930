"""A training step that is simulated, in a process of its own: `tuneport.training.simulated_step`.

Of its own, as a Trainer settles for its whole process how many processes there are and on which devices.
The run is simulated in one process, on no device, and with all of the model; `ranks` says what becomes of it where a
model is spread.
"""

from __future__ import annotations

import copy
import dataclasses as dc
import json
import os
import subprocess
import sys
import typing as t
from collections.abc import Sequence
from pathlib import Path

from tuneport.errors import UserError
from tuneport.metrics.metric import LOSS
from tuneport.metrics.own import is_function
from tuneport.training import optimizers
from tuneport.training.parameters import TrainingParams
from tuneport.training.rank_memory import HALF, StepMemory, simulated_optimizer


@dc.dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch to simulate: its rows, and the tokens of each."""

    rows: int
    tokens: int


@dc.dataclass(frozen=True, kw_only=True)
class Run:
    """The training to simulate. ``base`` needs no weights; ``prepared`` may hold a few rows alone."""

    task_name: str
    base: Path
    prepared: Path
    options: TrainingParams
    metric_for_best_model: str


def simulate(run: Run, batches: Sequence[Batch]) -> list[StepMemory]:
    """The memory of a training step on each of the batches, found in another process.

    Raises `UserError` where that process says what is wrong, RuntimeError where it fails.
    """
    request = {
        "task_name": run.task_name,
        "base": str(run.base),
        "prepared": str(run.prepared),
        "values": _values(in_one_process(run.options)),
        "metric": LOSS if is_function(run.metric_for_best_model) else run.metric_for_best_model,
        "batches": [dc.asdict(batch) for batch in batches],
    }
    ours = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    rank = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in rank} | ours
    command = [sys.executable, "-m", "tuneport.training.simulated_step"]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode == 2:
        raise UserError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"the training could not be simulated: {done.stderr.strip()[-2000:]}")
    return [StepMemory(**found) for found in json.loads(done.stdout.splitlines()[-1])]


def _values(options: TrainingParams) -> dict[str, t.Any]:
    return {name: getattr(options, name) for name, port in TrainingParams.ports().items() if port.kind == "param"}


def in_one_process(options: TrainingParams) -> TrainingParams:
    """The same training as one process would do it alone that holds the whole model.

    ZeRO and FSDP in 16 bits compute with weights of 16 bits, which autocast need not copy. The rate at which weights
    change, and what keeps small changes, take no memory.
    """
    alone = copy.copy(options)
    if (options.apply_deepspeed or options.fsdp) and options.precision in HALF:
        alone.weights_dtype, alone.precision = "bfloat16", "bf16"
    alone.learning_rate = max(options.learning_rate, optimizers.LEAST_RATE_IN_BFLOAT16)
    alone.fsdp, alone.apply_deepspeed, alone.auto_find_batch_size = "", False, False
    alone.deepspeed = None
    alone.number_of_gpu_to_use_finetuning = alone.num_nodes_finetune = 1
    alone.quantization = "none"
    alone.optim = t.cast(optimizers.Optimizer, simulated_optimizer(options.optim))
    return alone
