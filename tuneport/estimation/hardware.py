"""GPUs by the names that clouds and clusters give them, and how much memory each has; no torch."""

from __future__ import annotations

import dataclasses as dc
import re

from tuneport.errors import UserError, did_you_mean

GIB = 1024**3
# About as many GiB as torch.cuda.mem_get_info() reports of an empty one: drivers and error correction take a part.
GPUS: dict[str, float] = {
    "T4": 14.6,
    "V100-16GB": 15.8,
    "V100-32GB": 31.7,
    "A10": 22.0,
    "A10G": 22.0,
    "L4": 22.0,
    "RTX-4090": 23.5,
    "A100-40GB": 39.4,
    "L40S": 44.4,
    "RTX-A6000": 47.4,
    "A100-80GB": 79.2,
    "H100-80GB": 79.2,
    "H100-NVL": 93.1,
    "H200": 139.8,
    "B200": 178.4,
}
# GPUs of a machine by the name of the size, https://learn.microsoft.com/azure/virtual-machines/sizes/overview
AZURE_SIZES: dict[str, tuple[int, str]] = {
    "standard_nc4as_t4_v3": (1, "T4"),
    "standard_nc8as_t4_v3": (1, "T4"),
    "standard_nc16as_t4_v3": (1, "T4"),
    "standard_nc64as_t4_v3": (4, "T4"),
    "standard_nc6s_v3": (1, "V100-16GB"),
    "standard_nc12s_v3": (2, "V100-16GB"),
    "standard_nc24s_v3": (4, "V100-16GB"),
    "standard_nc24rs_v3": (4, "V100-16GB"),
    "standard_nd40rs_v2": (8, "V100-32GB"),
    "standard_nv36ads_a10_v5": (1, "A10"),
    "standard_nv72ads_a10_v5": (2, "A10"),
    "standard_nc24ads_a100_v4": (1, "A100-80GB"),
    "standard_nc48ads_a100_v4": (2, "A100-80GB"),
    "standard_nc96ads_a100_v4": (4, "A100-80GB"),
    "standard_nd96asr_v4": (8, "A100-40GB"),
    "standard_nd96amsr_a100_v4": (8, "A100-80GB"),
    "standard_nc40ads_h100_v5": (1, "H100-NVL"),
    "standard_nc80adis_h100_v5": (2, "H100-NVL"),
    "standard_nd96isr_h100_v5": (8, "H100-80GB"),
    "standard_nd96isr_h200_v5": (8, "H200"),
}


@dc.dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU: what it is called, and the bytes that a process can have of it."""

    name: str
    memory: int


def gpu(name: str) -> Gpu:
    """A GPU by its product's name, or by that of an Azure size that has it: H100-80GB, NVIDIA-L40S, Standard_NC24rs_v3.

    Raises `UserError` for one that is not known.
    """
    size = AZURE_SIZES.get(name.lower())
    wanted = size[1] if size else re.sub(r"^(NVIDIA|TESLA)-", "", name.upper().replace(" ", "-").replace("_", "-"))
    wanted = re.sub(r"-(SXM\d?|PCIE|HBM\d\w?)\b", "", wanted.removeprefix("TESLA-"))
    if wanted not in GPUS:
        known = [*GPUS, *(size.replace("standard", "Standard") for size in AZURE_SIZES)]
        raise UserError(
            f"gpu={name}: not known; expected one of {', '.join(GPUS)}, or an Azure size that has one. Or give its "
            f"memory: --gpu_memory 80g.{did_you_mean(name, known)}"
        )
    return Gpu(name=wanted, memory=int(GPUS[wanted] * GIB))


def of_memory(text: str) -> Gpu:
    """A GPU of so much memory: 80g, 24GiB, 40960m.

    Raises `UserError` for what is no such size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([gm])(?:i?b)?", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise UserError(f"gpu_memory={text}: not valid; expected GiB or MiB, as in 80g or 40960m.")
    unit = GIB if found[2] == "g" else GIB // 1024
    return Gpu(name=f"GPU of {text}", memory=int(float(found[1]) * unit))
