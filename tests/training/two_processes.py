"""Two processes of a group on this machine, for what they do together."""

import faulthandler
import multiprocessing
import os
import traceback
from datetime import timedelta
from typing import Any

import torch

PATIENCE = 300  # seconds, for two processes that start on a busy machine


def _process(rank: int, port: int, results: Any, work: Any, *given: Any) -> None:
    faulthandler.dump_traceback_later(PATIENCE - 60)  # says where it waits
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=PATIENCE))
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        work(results, rank, *given)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # whoever waits for the other process in a collective operation would do so for long
    torch.distributed.destroy_process_group()


def in_two(work: Any, *given: Any) -> list[Any]:
    """What two processes put into a queue, by rank."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    results = context.Queue()
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = [(rank, server.port, results, work, *given) for rank in range(2)]
    processes = [context.Process(target=_process, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0]
    return sorted(results.get(timeout=10) for _ in processes)
