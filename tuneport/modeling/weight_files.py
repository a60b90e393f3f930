"""Safetensors files read and written one weight at a time, so that no process needs memory for a whole model."""

from __future__ import annotations

import dataclasses as dc
import json
import math
import typing as t
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tuneport.digests import HashedFile
from tuneport.errors import UserError
from tuneport.modeling.weight_types import TYPES, converted

if t.TYPE_CHECKING:
    import torch

MAX_SHARD = "4GB"  # of a file of weights; one weight may be larger
# How a header names the type of a tensor; weights are of the first three.
NAMED = {name: short for short, name in TYPES.items()} | {
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dc.dataclass(frozen=True, kw_only=True)
class Weight:
    """One that is not in memory: ``make`` returns it, in ``shape``, and it is written in ``dtype``."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]


def stored(folder: Path, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Weight]]:
    """Each weight in a folder's safetensors files, by the name that it has there.

    With ``dtype``, floating-point numbers are to be written in that type. Raises `UserError` for numbers of other types
    than models have.
    """
    import torch
    from safetensors import safe_open

    own = {short: getattr(torch, name) for name, short in NAMED.items()}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
            if unknown := next((part.get_dtype() for part in parts.values() if part.get_dtype() not in own), None):
                raise UserError(f"{file}: holds numbers of the type {unknown}; expected one of {', '.join(own)}.")
            found = {name: (tuple(part.get_shape()), own[part.get_dtype()]) for name, part in parts.items()}
        for name, (shape, kept) in found.items():
            chosen = dtype if dtype is not None and kept.is_floating_point else kept
            yield name, Weight(shape=shape, dtype=chosen, make=_Read(file, name))


@dc.dataclass(frozen=True)
class _Read:
    file: Path
    name: str

    def __call__(self) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as tensors:  # opened for each: what was read does not stay mapped
            return t.cast("torch.Tensor", tensors.get_tensor(self.name))


def write(folder: Path, weights: Mapping[str, Weight], max_shard_size: str | int = MAX_SHARD) -> None:
    """Write weights as transformers names its files: one, or shards with an index; one weight is held at a time."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    empty = {name: torch.empty(w.shape, dtype=w.dtype, device="meta") for name, w in weights.items()}
    split = split_torch_state_dict_into_shards(
        empty, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        _write_file(folder / file, {name: weights[name] for name in names})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, "utf-8")


def _write_file(file: Path, weights: Mapping[str, Weight]) -> None:
    """Source of the format: https://huggingface.co/docs/safetensors/index#format."""
    ordered = sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))  # so each begins where it may
    header: dict[str, t.Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in ordered:
        weight = weights[name]
        end = place + math.prod(weight.shape) * weight.dtype.itemsize
        kind = NAMED[str(weight.dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(weight.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with HashedFile(file) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            weight = weights[name]
            made = weight.make().detach()
            if tuple(made.shape) != weight.shape:
                raise ValueError(f"{name}: is {list(made.shape)}, expected {list(weight.shape)}")
            f.write(_raw(converted(made.cpu(), weight.dtype)))
            del made


def _raw(tensor: torch.Tensor) -> t.Any:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
