"""In which number type a model's weights are held: in files, in training, in an answering model, in what is written."""

from __future__ import annotations

import math
import typing as t
from collections import Counter
from pathlib import Path

from tuneport.errors import UserError

if t.TYPE_CHECKING:
    import torch

AUTO = "auto"
TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # of weights, by safetensors' names
# What a CPU is said to have, by `torch.cpu.get_capabilities`, that multiplies bfloat16 matrices: x86, then ARM.
BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def of_files(folder: Path) -> torch.dtype:
    """The type that most weights in a folder's safetensors files have, whatever its config.json says.

    float32 where the files are of another type, or there are none. Reads the files' headers alone.
    """
    import torch
    from safetensors import safe_open

    weights: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                part = tensors.get_slice(name)
                weights[part.get_dtype()] += math.prod(part.get_shape())
    floating = {name: count for name, count in weights.items() if name in TYPES}
    most = max(floating, key=floating.__getitem__, default="F32")
    return t.cast("torch.dtype", getattr(torch, TYPES[most]))


def for_inference(folder: Path, device: str | torch.device) -> torch.dtype:
    """The type to load the model in ``folder`` in, to compute answers on a device."""
    return computed_in(of_files(folder), device)


def computed_in(own: torch.dtype, device: str | torch.device) -> torch.dtype:
    """The type to compute answers in, of a model in the type ``own``.

    The same, on an accelerator. On a CPU bfloat16 stays where the CPU has units for it; all else is computed in
    float32, as it is faster there.
    """
    import torch

    if torch.device(device).type != "cpu":
        return own
    return own if own == torch.bfloat16 and computes_bfloat16() else torch.float32


def for_training(base: Path, wanted: str, *, frozen: bool, computes_in_16_bits: bool) -> torch.dtype:
    """The type to load the model in ``base`` in, to train it; ``frozen``: it stays as it is beside adapters.

    auto is float32, as small updates would be rounded away in 16 bits; a frozen model has none, and keeps the type of
    its files where it is computed with in 16 bits: else each use of a weight would make a copy in 16 bits.
    """
    import torch

    if wanted != AUTO:
        return t.cast("torch.dtype", getattr(torch, wanted))
    return of_files(base) if frozen and computes_in_16_bits else torch.float32


def for_output(wanted: str, base: Path) -> torch.dtype:
    """The type that a model made from the one in ``base`` is written in; auto: that of the base model's files."""
    import torch

    return of_files(base) if wanted == AUTO else t.cast("torch.dtype", getattr(torch, wanted))


def stays(wanted: str, folder: Path) -> bool:
    """Whether what is made of the model in ``folder`` has the type of its files, if ``wanted`` is asked for."""
    return wanted == AUTO or for_output(wanted, folder) == of_files(folder)


def cast(model: t.Any, dtype: torch.dtype) -> None:
    """Bring a model's floating-point weights into a type, where they are, one after the other.

    Takes no more memory than the largest of them; what the model computes with is changed.
    """
    for weight in [*model.parameters(), *model.buffers()]:
        if weight.is_floating_point():
            weight.data = converted(weight.data, dtype)


def converted(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight in a type.

    Raises `UserError` where it holds a number that is beyond what float16 holds.
    """
    import torch

    made = weight.to(dtype)
    if dtype == torch.float16 and weight.is_floating_point() and weight.dtype != dtype:
        most = float(weight.abs().max()) if weight.numel() else 0.0
        if torch.finfo(dtype).max < most < math.inf:
            raise UserError(
                f"output_dtype=float16: a weight has the value {most:,.0f}, and float16 holds numbers up to 65,504. "
                "Take output_dtype=bfloat16, or float32."
            )
    return made


def computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by itself; of a torch that cannot tell, none does."""
    import torch

    known: t.Mapping[str, t.Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(unit) is True for unit in BFLOAT16_UNITS)
