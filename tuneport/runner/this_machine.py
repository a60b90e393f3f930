"""What this machine has, and whether that is enough for a run: GPUs, memory, disk; no torch."""

from __future__ import annotations

import dataclasses as dc
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from tuneport.artifacts import Artifact
from tuneport.step import Step

WEIGHTS = (".safetensors", ".bin", ".gguf")
CGROUP = Path("/sys/fs/cgroup/memory.max")
MIB = 1 << 20


@dc.dataclass(frozen=True, kw_only=True)
class Machine:
    """CPUs, bytes of memory, and each GPU's name and bytes."""

    cpus: int
    memory: int
    gpus: tuple[tuple[str, int], ...] = ()


@cache
def machine() -> Machine:
    """This machine, as far as this process may use it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # there need not be such a limit
        memory = min(memory, int(CGROUP.read_text()))
    return Machine(cpus=len(os.sched_getaffinity(0)), memory=memory, gpus=tuple(_gpus()))


def _gpus() -> Iterator[tuple[str, int]]:
    """What NVIDIA's own program says; nothing where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return
    for line in done.stdout.splitlines():
        name, _, size = line.rpartition(", ")
        if size.strip().isdecimal():
            yield name, int(size) * MIB


def seen(folder: Path) -> str:
    """This machine in words, and how much disk is free where a run would be written."""
    here = machine()
    gpus = ", ".join(f"{name} of {_size(memory)}" for name, memory in here.gpus) or "no NVIDIA GPU"
    return f"{here.cpus} CPUs, {_size(here.memory)} of memory, {gpus}; {_size(_free(folder))} free in {_there(folder)}"


def worth_a_look(steps: Mapping[str, Step], folder: Path, here: Machine | None = None) -> list[str]:
    """Where a run's least needs are above what this machine has, in words."""
    return list(_worth_a_look(steps, folder, here or machine()))


def _worth_a_look(steps: Mapping[str, Step], folder: Path, here: Machine) -> Iterator[str]:
    asked = {name: value for step in steps.values() for name, value in _processes(step)}
    for name, value in asked.items():
        if 0 < len(here.gpus) < value:
            yield f"{name}={value}: this machine has {len(here.gpus)} NVIDIA GPUs."
    model = max((_weights(a) for step in steps.values() for a in step.inputs().values()), default=0)
    if not model:
        return
    least = {name: step.least(model) for name, step in steps.items()}
    device, size = max(here.gpus, key=lambda gpu: gpu[1], default=("memory of the CPUs", here.memory))
    for name, needs in least.items():
        if needs.memory > size:
            yield (
                f"{name} takes at least about {_size(needs.memory)} of memory on a device, and {device} has "
                f"{_size(size)}. apply_lora=true or a smaller model takes less; tuneport estimate says what."
            )
    disk = model + sum(needs.disk for needs in least.values())
    if disk > (free := _free(folder)):
        yield f"the run takes at least about {_size(disk)} of disk, and {_size(free)} are free in {_there(folder)}."


def _processes(step: Step) -> Iterator[tuple[str, int]]:
    for name, port in step.ports().items():
        if port.resource == "processes":
            yield name, getattr(step, name)


def _weights(artifact: Artifact) -> int:
    """Bytes of the weights in a model of the user's; 0 of what holds none."""
    if not artifact.user_supplied or not artifact.address.is_local:
        return 0
    path = artifact.path
    if path.suffix in WEIGHTS and path.is_file():
        return path.stat().st_size
    nested = path / "data" / "model" if (path / "MLmodel").is_file() else path  # of an MLflow model
    if not (nested / "config.json").is_file():
        return 0
    return sum(file.stat().st_size for file in nested.iterdir() if file.suffix in WEIGHTS and file.is_file())


def _there(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _free(folder: Path) -> int:
    return shutil.disk_usage(_there(folder)).free


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
