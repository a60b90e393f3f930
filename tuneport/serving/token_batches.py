"""Batches of rows by their tokens, as many at once as memory allows."""

from __future__ import annotations

import typing as t


class TokenBatches:
    """Computes rows in batches, the longest first, each of at most ``tokens`` tokens with its padding. Self-contained.

    ``rows``: the most rows of a batch, whatever their tokens; None: as many as there are. ``overhead``: what a row
    takes besides its tokens, in tokens. Where the memory does not suffice for a batch, it and all after it are halved.
    """

    CPU_TOKENS = 4096  # of a forward pass on the CPU: more rows at once save no time there
    CPU_WRITTEN = 16_384  # of prompts and answers on the CPU, whose keys and values may take CPU_BYTES
    CPU_BYTES = 2 << 30
    MOST_TOKENS = 262_144  # on any device
    FREE_SHARE = 0.7  # of a GPU's free memory; the rest is for what the estimate leaves out

    def __init__(self, tokens: int, rows: int | None = None, overhead: int = 0) -> None:
        self.tokens, self.rows, self.overhead = tokens, rows, overhead

    @classmethod
    def of_forward(cls, model: t.Any, rows: int | None = None) -> TokenBatches:
        """Batches of forward passes without a gradient."""
        if cls._in_step():
            return cls(cls.MOST_TOKENS, rows)
        free = cls._free(model)
        return cls(cls.CPU_TOKENS if free is None else cls._within(free, cls._working_bytes(model)), rows)

    @classmethod
    def of_generation(cls, model: t.Any, rows: int | None = None, beams: int = 1) -> TokenBatches:
        """Batches of prompts and what is written after them, whose keys and values are kept meanwhile."""
        if cls._in_step():
            return cls(cls.MOST_TOKENS, rows)
        free, kept = cls._free(model), cls.kept_bytes(model) * beams
        if free is None:
            return cls(max(1, min(cls.CPU_WRITTEN, cls.CPU_BYTES // kept)), rows)
        each = kept + cls._working_bytes(model)
        vocabulary = getattr(model.config.get_text_config(), "vocab_size", 0)
        return cls(cls._within(free, each), rows, overhead=16 * vocabulary * beams // each)

    @classmethod
    def _in_step(cls) -> bool:
        """Whether other processes compute with a part of the same model: then all must make the same batches, and
        memory, of which each has its own, may not decide."""
        import torch

        return torch.distributed.is_available() and torch.distributed.is_initialized()

    @classmethod
    def _within(cls, free: int, each: int) -> int:
        return max(1, min(cls.MOST_TOKENS, int(cls.FREE_SHARE * free) // each))

    @staticmethod
    def device_of(model: t.Any) -> t.Any:
        """The device that a model takes its inputs on; weights that wait elsewhere say the meta device, and accelerate
        brings the inputs of such a model to where they are needed."""
        return "cpu" if model.device.type == "meta" else model.device

    @classmethod
    def _free(cls, model: t.Any) -> int | None:
        """The bytes that are free on a model's GPUs, as much on each as on the fullest; None for one on the CPU."""
        import torch

        devices = {weight.device for weight in model.parameters() if weight.device.type == "cuda"}
        free = [
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
            for device in devices
        ]
        return min(free) * len(free) if free else None

    @classmethod
    def kept_bytes(cls, model: t.Any) -> int:
        """The bytes of a token's keys and values in all layers."""
        config = model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 1
        size = getattr(config, "hidden_size", None) or 1
        of_head = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or size // heads
        pairs = getattr(config, "num_key_value_heads", None) or heads
        layers = [
            getattr(config, name, None) or 0 for name in ("num_hidden_layers", "num_decoder_layers", "decoder_layers")
        ]
        return max(1, max(layers) * pairs * of_head * 2 * cls._itemsize(model))

    @classmethod
    def _working_bytes(cls, model: t.Any) -> int:
        """About the bytes that a layer takes for a token while it computes, the widest of its values three times."""
        config = model.config.get_text_config()
        size = getattr(config, "hidden_size", None) or 1
        names = ("intermediate_size", "d_ff", "ffn_dim", "n_inner", "encoder_ffn_dim")
        inner = max([4 * size, *(getattr(config, name, None) or 0 for name in names)])
        return int((3 * inner + 8 * size) * cls._itemsize(model))

    @classmethod
    def _itemsize(cls, model: t.Any) -> int:
        return max((weight.element_size() for weight in model.parameters()), default=4)

    def __call__(self, lengths: t.Sequence[int], compute: t.Callable[[list[int]], t.Iterable[t.Any]]) -> list[t.Any]:
        """Return what ``compute`` returns for the rows of given lengths (tokens), in their order.

        ``compute``: the places of a batch's rows -> something for each of them. Raises what it raises, running out of
        memory included where the batch is of one row.
        """
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        found: list[t.Any] = [None] * len(lengths)
        first = 0
        while first < len(order):
            width = max(1, lengths[order[first]]) + self.overhead
            size = max(1, min(self.tokens // width, self.rows or len(order)))
            picked = order[first : first + size]
            computed = self._try(picked, compute)
            if computed is None:
                self._halve(len(picked), width)
                continue
            for i, value in zip(picked, computed, strict=True):
                found[i] = value
            first += len(picked)
        return found

    def _try(self, picked: list[int], compute: t.Callable[[list[int]], t.Iterable[t.Any]]) -> list[t.Any] | None:
        """What is computed; None where the memory does not suffice for several rows."""
        try:
            return list(compute(picked))
        except (RuntimeError, MemoryError) as e:
            if len(picked) == 1 or not self.is_out_of_memory(e):
                raise
            return None

    def _halve(self, rows: int, width: int) -> None:
        import gc
        import logging

        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.tokens = rows // 2 * width
        logging.getLogger("tuneport.serving").warning(
            "the memory does not suffice for %d rows at once: batches are of at most %d tokens from here on",
            rows,
            self.tokens,
        )

    @staticmethod
    def is_out_of_memory(error: BaseException) -> bool:
        """Whether the error says that an allocation failed, on the CPU or on an accelerator."""
        import torch

        words = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
        return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and any(word in str(error) for word in words)
        )
