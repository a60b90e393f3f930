"""How busy the machine of a training is: processor, memory, disk, network, GPUs, by MLflow's own monitors."""

from __future__ import annotations

import logging
import threading
import typing as t
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

log = logging.getLogger("tuneport.tracking")

INTERVAL = 10.0  # seconds between two looks


@contextmanager
def watched(send: Callable[[Mapping[str, float], int], None]) -> Iterator[None]:
    """While entered, hand on the figures of each `INTERVAL` by MLflow's names (system/…), with the look's number.

    Without psutil nothing is watched. A thread of its own looks; ``send`` must return at once.
    """
    monitors = _monitors()
    ended = threading.Event()

    def look() -> None:
        number = 0
        while True:
            for monitor in monitors:
                monitor.collect_metrics()
            if ended.wait(INTERVAL):
                return
            send({f"system/{k}": v for m in monitors for k, v in m.aggregate_metrics().items()}, number)
            for monitor in monitors:
                monitor.clear_metrics()
            number += 1

    thread = threading.Thread(target=look, daemon=True, name="system metrics")
    if monitors:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if monitors:
            thread.join()


def _monitors() -> list[t.Any]:
    try:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    except ImportError as e:
        log.debug("the machine is not watched: %s", e)
        return []
    found = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        try:
            found.append(kind())
        except Exception as e:  # a machine without a GPU, or without a driver that answers
            log.debug("%s: %s", kind.__name__, e)
    return found
