"""Which devices hold a model's weights to answer with: one GPU, several of them, or some of the host's memory, too."""

from __future__ import annotations

import typing as t

from tuneport.serving.adapter_sum import LoraAdapter


class Placement:
    """Where ``needed`` bytes of weights go: ``free`` has the free bytes of each GPU, by its number. Self-contained.

    ``host``: the bytes that are free in the host's memory. Where one GPU is enough, it is the first of ``free``.
    ``kind`` is what was chosen: "cpu" (there is no GPU), "gpu", "gpus", "offload" (what the GPUs do not hold stays in
    the host's memory and is copied at each use), or "none" (no place has room for it).
    """

    WORKING_BYTES = 1 << 30  # of each GPU, for what is computed; a fifth of what is free, where that is more
    UNEVEN = 0.9  # of the room of several GPUs: layers are not cut, so that some of it stays empty

    def __init__(self, needed: int, free: t.Mapping[int, int], host: int) -> None:
        self.needed, self.free, self.host = needed, dict(free), host
        self.room = {i: max(0, int(bytes_ - max(self.WORKING_BYTES, 0.2 * bytes_))) for i, bytes_ in free.items()}
        self.kind = self._kind()

    def _kind(self) -> str:
        if not self.free:
            return "cpu"
        if self.needed <= next(iter(self.room.values())):
            return "gpu"
        on_gpus = int(self.UNEVEN * sum(self.room.values()))
        if len(self.free) > 1 and self.needed <= on_gpus:
            return "gpus"
        return "offload" if self.needed <= on_gpus + int(0.8 * self.host) else "none"

    @property
    def one_device(self) -> bool:
        """Whether the model is whole on one device."""
        return self.kind in ("cpu", "gpu")

    @property
    def device(self) -> str:
        """The device of a model that is whole on one."""
        return f"cuda:{next(iter(self.free))}" if self.kind == "gpu" else "cpu"

    def loading(self) -> dict[str, t.Any]:
        """What from_pretrained takes to spread the weights, by accelerate; nothing where one device holds them.

        Raises ValueError where they have no room.
        """
        if self.one_device:
            return {}
        if self.kind == "none":
            raise ValueError(f"{self.said()}. Take GPUs, or a machine, with more memory")
        # Layers are not cut: where the GPUs nearly hold all of them, the last ones may still find no room there.
        memory = [*self.room.items(), ("cpu", int(0.8 * self.host))]
        return {"device_map": "auto", "max_memory": dict[t.Any, int](memory)}

    def said(self) -> str:
        """What was chosen, with figures, in one line."""
        figures = ", ".join(self._size(bytes_) for bytes_ in self.free.values())
        weights = f"{self._size(self.needed)} of weights"
        if self.kind == "cpu":
            return f"{weights} on the CPU ({self._size(self.host)} free)"
        if self.kind == "gpu":
            return f"{weights} on {self.device} ({self._size(next(iter(self.free.values())))} free)"
        if self.kind == "gpus":
            return f"{weights} over {len(self.free)} GPUs ({figures} free), as one does not hold them"
        if self.kind == "offload":
            return (
                f"{weights} on the GPU{'s' * (len(self.free) > 1)} ({figures} free) and, for what has no room there, "
                f"in the host's memory ({self._size(self.host)} free), from where it is copied at each use: slow"
            )
        return f"{weights} have no room on the GPUs ({figures} free) and in the host's memory ({self._size(self.host)})"

    def _size(self, bytes_: int) -> str:
        return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.0f} MB"


class Machine:
    """What memory is free on this machine, and how much a folder's weights take. Self-contained."""

    def has_gpu(self) -> bool:
        import torch

        return torch.cuda.is_available()

    def place(self, needed: int) -> Placement:
        """Where so many bytes of weights go: onto the first GPU where that is enough, without a look at the others."""
        first = Placement(needed, self.gpus(only=0), self.host())
        return first if first.one_device else Placement(needed, self.gpus(), self.host())

    def gpus(self, only: int | None = None) -> dict[int, int]:
        """The free bytes of each GPU, or of one only, by its number; none where there is no GPU."""
        import torch

        numbers = range(torch.cuda.device_count()) if self.has_gpu() else range(0)
        return {i: torch.cuda.mem_get_info(i)[0] for i in numbers if only in (None, i)}

    def host(self) -> int:
        """The free bytes of the host's memory; 0 where that is not known."""
        from pathlib import Path

        try:
            import psutil
        except ImportError:
            return 0
        free = int(psutil.virtual_memory().available)
        for used, limit in (
            ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.max"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        ):  # a container's own limit
            try:
                free = min(free, max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
            except (OSError, ValueError):
                continue
        return free

    def weight_bytes(self, folder: str, itemsize: int) -> int:
        """The bytes that a folder's weights take with ``itemsize`` bytes each, from its files' headers."""
        return sum(self._weights(folder).values()) * itemsize

    def own_type(self, folder: str) -> t.Any:
        """The type of most weights in a folder's files."""
        import torch

        types = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
        weights = {types[name]: count for name, count in self._weights(folder).items() if name in types}
        return max(weights, key=lambda kind: weights[kind], default=torch.float32)

    def weight_type(self, folder: str) -> t.Any:
        """The type to answer in: on a GPU that of most weights in the folder's files, on a CPU float32, which is faster
        there, but for bfloat16 where the CPU multiplies that by itself."""
        import torch

        own = self.own_type(folder)
        if self.has_gpu():
            return own
        known: dict[str, t.Any] = getattr(torch.cpu, "get_capabilities", dict)()
        units = any(known.get(unit) is True for unit in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
        return own if own == torch.bfloat16 and units else torch.float32

    def _weights(self, folder: str) -> dict[str, int]:
        """How many numbers of each type, by safetensors' names, a folder's files hold, or an adapter's base."""
        import json
        import math
        import struct
        from pathlib import Path

        adapter = LoraAdapter(folder)
        folder = adapter.base if adapter.has_base() else folder
        found: dict[str, int] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with file.open("rb") as f:
                header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            for name, tensor in header.items():
                if name != "__metadata__":
                    found[tensor["dtype"]] = found.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
        return found
