"""All weights of a sharded model in each process, gathered once, for work that each process does alone."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch.distributed.fsdp import FSDPModule

ROOM = 0.8  # of the memory that is free: the rest is for what is computed with the weights


def fits(model: torch.nn.Module, free: int) -> bool:
    """Whether this process, which has ``free`` bytes, has room for all weights beside what it holds."""
    # A parameter of ZeRO-3 that is spread is empty and has its number.
    size = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in model.parameters())
    return bool(size <= ROOM * free)


def whole(model: torch.nn.Module, engine: t.Any, *, resharded: bool) -> AbstractContextManager[None]:
    """While entered, each process holds all weights, and calls of the model are no collective operations.

    ``engine`` is DeepSpeed's with ZeRO-3, or None with FSDP; ``resharded``: whether FSDP frees weights after each
    forward pass. All processes enter and leave it together. The weights may not be changed within.
    """
    return _of_zero(engine) if engine is not None else _of_fsdp(model, resharded)


@contextmanager
def _of_zero(engine: t.Any) -> Iterator[None]:
    import deepspeed

    offload = engine.optimizer.parameter_offload
    parameters = list(offload.module.parameters())
    for parameter in parameters:
        parameter.ds_active_sub_modules.clear()  # of forward passes that are over
    gathered: t.Any = deepspeed.zero.GatheredParameters(parameters)
    with gathered:
        offload.destroy()  # removes the hooks that gather and free
        try:
            yield
        finally:
            offload.setup_zero_stage3_hooks()


@contextmanager
def _of_fsdp(model: torch.nn.Module, resharded: bool) -> Iterator[None]:
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        # What is used last in the forward pass is used first in the backward pass: accelerate lets it stay.
        head: t.Any = getattr(model, "get_output_embeddings", lambda: None)()
        for unit in units:
            unit.set_reshard_after_forward(resharded, recurse=False)
        for stays in (head, model):  # in this order: the head may share its state with the norm before it
            if isinstance(stays, FSDPModule):
                stays.set_reshard_after_forward(False, recurse=False)
        for unit in units:
            unit.reshard()
