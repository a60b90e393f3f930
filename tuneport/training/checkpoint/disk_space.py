"""How much of a disk the checkpoints of a training take, and whether that is there. No torch."""

from __future__ import annotations

import dataclasses as dc
import shutil
from pathlib import Path

from tuneport.errors import UserError
from tuneport.training import optimizers, rank_memory
from tuneport.training.distributed import deepspeed
from tuneport.training.parameters import TrainingParams

ALL = -1  # save_total_limit: no limit


@dc.dataclass(frozen=True, kw_only=True)
class DiskSpace:
    """Bytes, but for what is named otherwise."""

    weights: int  # in each checkpoint
    states: int  # of the optimizer, in each that a training can go on from
    model: int  # the tuned model beside them
    made: int  # how many checkpoints: one an evaluation
    limit: int  # the most that are kept, or `ALL`
    contents: str  # as `checkpoint_contents` says

    @property
    def kept(self) -> int:
        """How many checkpoints are there in the end."""
        return self.made if self.limit == ALL else min(self.made, self.limit)

    @property
    def checkpoint(self) -> int:
        """The largest one."""
        return self.weights + (0 if self.contents == "weights" else self.states)

    @property
    def total(self) -> int:
        """What is there in the end."""
        with_states = {"resumable": self.kept, "newest_resumable": min(self.kept, 1), "weights": 0}[self.contents]
        return self.kept * self.weights + with_states * self.states + self.model

    @property
    def peak(self) -> int:
        """The most there is at once: a checkpoint is whole before an older one goes."""
        more = self.made > self.kept
        over = self.checkpoint - self.model if more else 0
        if self.contents == "newest_resumable" and self.made > 1 and not more:
            over = self.states - self.model
        return self.total + max(over, 0)

    def said(self) -> str:
        """For people: how many checkpoints, how large, and all together."""
        return (
            f"{self.kept} checkpoint{'s' * (self.kept != 1)} of {gigabytes(self.checkpoint)} "
            f"(checkpoint_contents={self.contents}), {gigabytes(self.total)} of disk with the model"
        )


def of_training(options: TrainingParams, *, trained: int, width: int, model: int, made: int) -> DiskSpace:
    """What a training takes at least, by its trained weights, their number and the bytes of each.

    Optimizers whose states nobody knows before the first step count as if they had none.
    """
    sharded = bool(deepspeed.stage(options)) or bool(options.fsdp)
    half = options.precision in rank_memory.HALF
    copies = 2 if deepspeed.stage(options) and half else 0  # ZeRO keeps weights in 32 bits besides
    each = 4 + copies if sharded else width
    states = rank_memory.known_states(options.optim)
    if states is None:
        states = 2 * (4 if sharded else width) if options.optim in optimizers.ADAMW else 0
    return DiskSpace(
        weights=each * trained,
        states=int(states * trained),
        model=model,
        made=made,
        limit=options.save_total_limit,
        contents=options.checkpoint_contents,
    )


def check(folder: Path, space: DiskSpace, there: int = 0) -> None:
    """Raise `UserError` where a folder's disk has no room for a training's checkpoints; ``there``: those it has."""
    free = shutil.disk_usage(folder).free
    needed = space.peak - min(there, space.kept) * space.checkpoint
    if needed > free:
        raise UserError(
            f"{folder}: {gigabytes(free)} of disk are free; expected {gigabytes(needed)}: {space.said()}. Keep fewer "
            "(save_total_limit), without what only a resume needs (checkpoint_contents=newest_resumable or weights), "
            "evaluate less often, or write to another disk."
        )


def gigabytes(count: int) -> str:
    """A number of bytes in decimal units, as disks are sold."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
