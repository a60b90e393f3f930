"""Processes wait for each other's words as long as the other lives; real stores of torch, threads for processes."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneport.errors import UserError
from tuneport.training.distributed import waiting
from tuneport.training.distributed.waiting import Peers


@pytest.fixture(params=["TCPStore", "FileStore"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """Gives each process its own connection to one store."""
    if request.param == "FileStore":
        return lambda: torch.distributed.FileStore(str(tmp_path / "store"), -1)
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30))
    return lambda: torch.distributed.TCPStore("127.0.0.1", server.port, timeout=timedelta(seconds=30))


@pytest.fixture
def two(store: Callable[[], Any]) -> Iterator[tuple[Peers, Peers]]:
    both = (Peers(0, 2, store()), Peers(1, 2, store()))
    yield both
    ending = threading.Thread(target=both[1].leave)
    ending.start()
    both[0].leave()
    ending.join()


def later(work: Callable[[], Any], seconds: float = 0.3) -> threading.Thread:
    thread = threading.Timer(seconds, work)
    thread.start()
    return thread


def test_what_is_said_is_heard_in_order_however_late(two: tuple[Peers, Peers]) -> None:
    first, second = two
    second.say("digests", {"a": 1})
    thread = later(lambda: second.say("digests", {"a": 2}))
    assert [first.hear(1, "digests"), first.hear(1, "digests")] == [{"a": 1}, {"a": 2}]
    thread.join()


def test_all_gather_share_and_meet(two: tuple[Peers, Peers]) -> None:
    first, second = two
    found: list[Any] = []

    def work() -> None:
        found.append(second.gather("loss", float("nan")))
        found.append(second.share("step", "not looked at"))
        second.meet("end")

    thread = later(work)
    assert first.gather("loss", 0.1)[0] == 0.1
    assert first.share("step", 7) == 7
    first.meet("end")
    thread.join()
    assert found[0][0] == 0.1 and found[1] == 7


def test_one_process_alone_waits_for_nobody() -> None:
    alone = Peers()
    alone.meet("start")
    assert alone.gather("loss", 1) == [1] and alone.share("step", None) is None
    alone.leave()


def test_a_slow_process_is_waited_for_longer_than_a_silent_one(
    two: tuple[Peers, Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works for twice the time of which a silent one would be given up; its signs of life come meanwhile."""
    monkeypatch.setattr(waiting, "SIGN_SECONDS", 0.1)
    first, second = two
    first.silent_seconds = 2.5  # the threads give a sign each `SIGN_SECONDS`, the first after as it was at the start
    later(lambda: second.say("slow work"), 5.5)
    started = time.monotonic()
    first.hear(1, "slow work")
    assert time.monotonic() - started > 5


def test_a_process_that_is_silent_for_long_is_named(store: Callable[[], Any]) -> None:
    first, dead = Peers(0, 2, store(), silent=0.6), 1
    first.leave()  # nobody is there to say goodbye
    with pytest.raises(UserError, match=r"rank 1: has given no sign of life .* rank 0 waited for it \(its digests\)"):
        first.hear(dead, "its digests")


def test_after_an_error_nobody_is_waited_for_long() -> None:
    peers = Peers()
    peers.hurry()
    assert peers.silent_seconds == waiting.SILENT_SECONDS_AFTER_AN_ERROR < waiting.SILENT_SECONDS
