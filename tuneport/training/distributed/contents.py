"""FSDP: the first process alone reads a model's weights, and the others get their shards of it.

Until the model is sharded, the others have memory in the weights' place that nothing was written to: the system gives
such memory only an address. Weights on torch's meta device would not do, as all have the address 0 there, by which
accelerate knows them apart.
"""

from __future__ import annotations

import math
import typing as t
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.tensor import DTensor, distribute_tensor

from tuneport.serving.adapter_sum import LoraAdapter
from tuneport.training.distributed.waiting import Peers
from tuneport.training.parameters import TrainingParams

Names = Mapping[str, str]


def can_be_absent(base: Path, options: TrainingParams) -> bool:
    """Whether a model can be loaded without contents: none that is made of them, quantized or a sum with an adapter."""
    return options.quantization == "none" and not LoraAdapter(str(base)).has_base()


def loaded(load: t.Callable[..., t.Any], peers: Peers) -> t.Any:
    """The model that ``load`` gives, which takes from_pretrained's arguments; on the first process with its weights."""
    first = peers.rank == 0
    model = load() if first else load(device_map="meta")
    names = peers.share("which weights are the same", shared(model) if first else None)
    if not first:
        hollow(model, names)
    return model


def shared(model: torch.nn.Module) -> dict[str, str]:
    """By the name of each weight, the first name of the same one: another one's where weights are tied."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(weight), name) for name, weight in model.named_parameters(remove_duplicate=False)}


def hollow(model: t.Any, names: Names) -> None:
    """Give a model that was loaded without contents memory in the place of its weights and buffers, untouched.

    ``names`` are the first process's `shared`: which weights are tied may depend on their contents.
    """
    vars(model).pop("hf_device_map", None)
    made: dict[str, torch.nn.Parameter] = {}
    for name, weight in [*model.named_parameters(remove_duplicate=False)]:
        first = names[name]
        if first not in made:
            made[first] = torch.nn.Parameter(_untouched(weight), requires_grad=weight.requires_grad)
        _put(model, name, made[first])
    for name, buffer in [*model.named_buffers(remove_duplicate=False)]:
        _put(model, name, _untouched(buffer))


def whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights, by name, as they are before they are sharded."""
    return {name: weight.detach() for name, weight in model.named_parameters()}


def fill(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Spread ``weights``, the first process's `whole`, over all processes' shards, one after the other.

    The others give none. All of them enter it together.
    """
    first = distributed.get_rank() == 0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            shard = t.cast(DTensor, weight)
            local = shard.to_local()
            full = weights[name].to(local) if first else local.new_empty(shard.shape)
            spread = distribute_tensor(full, shard.device_mesh, shard.placements)
            local.copy_(spread.to_local())
        for _, buffer in model.named_buffers(remove_duplicate=False):
            distributed.broadcast(buffer, 0)


def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is trained of a sharded model, whole, on the first process; the others get nothing and help."""
    first = distributed.get_rank() == 0
    state = model.state_dict()  # also shards again what a forward pass has gathered
    found = {}
    for name in [name for name, weight in model.named_parameters() if weight.requires_grad]:
        full = state[name].full_tensor()
        if first:
            found[name] = full.cpu()
    return found


def _untouched(tensor: torch.Tensor) -> torch.Tensor:
    """Memory for a tensor's size. `torch.empty` would write to it where algorithms have to be deterministic."""
    make: t.Any = torch.UntypedStorage
    empty: t.Any = torch.empty(0, dtype=tensor.dtype)
    return t.cast(torch.Tensor, empty.set_(make(math.prod(tensor.shape) * tensor.element_size()), 0, tensor.shape))


def _put(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    module, _, own = name.rpartition(".")
    setattr(model.get_submodule(module), own, tensor)
