"""Saving without stopping the training: tensors are copied to CPU memory, a thread writes the copies."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Callable

import torch


class HostCopy:
    """Copies nested states to CPU memory, into buffers that the next copy uses again."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[t.Any, ...], torch.Tensor] = {}
        self.shared: dict[tuple[t.Any, ...], torch.Tensor] = {}

    def copy(self, states: dict[str, t.Any]) -> dict[str, t.Any]:
        """Return the states with every tensor copied; tensors that share memory share it in the copy, too."""
        self.shared.clear()
        copied: dict[str, t.Any] = self._copy(states, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies are asked for without waiting for each
        return copied

    def _copy(self, value: t.Any, key: tuple[t.Any, ...]) -> t.Any:
        if isinstance(value, torch.Tensor):
            return self._copy_tensor(value, key)
        if isinstance(value, dict):
            return type(value)((k, self._copy(v, (*key, k))) for k, v in value.items())
        if isinstance(value, list):
            return [self._copy(v, (*key, i)) for i, v in enumerate(value)]
        if isinstance(value, tuple):
            return tuple(self._copy(v, (*key, i)) for i, v in enumerate(value))
        return value

    def _copy_tensor(self, value: torch.Tensor, key: tuple[t.Any, ...]) -> torch.Tensor:
        same = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and same in self.shared:
            return self.shared[same]
        buffer = self.buffers.get(key)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self.buffers[key] = buffer
        buffer.copy_(value.detach(), non_blocking=True)
        self.shared[same] = buffer
        return buffer


class Writer:
    """Runs one piece of work at a time in a thread; its error is raised by whatever is called next."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        self.wait()
        self.go_on(work)

    def go_on(self, work: Callable[[], None]) -> None:
        """Start work that is done once what is under way has ended, and not at all if that fails."""
        before = self.thread

        def then() -> None:
            if before is not None:
                before.join()
            if self.error is None:
                work()

        self.thread = threading.Thread(target=self._run, args=(then,), name="checkpoint")
        self.thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as e:
            self.error = e

    def raise_error(self) -> None:
        """Raise the error of the last work, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait for the work to end.

        Raises its error.
        """
        self.join()
        self.raise_error()

    def join(self) -> None:
        """Wait for the work to end."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
