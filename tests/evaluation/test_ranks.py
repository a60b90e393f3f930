"""Processes that answer rows together meet at torch's store; the first one has the answers of all, in order."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from tuneport.evaluation import ranks as module
from tuneport.evaluation.ranks import Ranks


def together(count: int, folder: Path, work: Callable[[Ranks], Any]) -> list[Any]:
    """What some work gives in each of several processes, here threads at one store."""
    store, found = HashStore(), [None] * count
    store.set("answers/folder", str(folder))
    members = [Ranks(rank, count, store) for rank in range(count)]
    members[0].folder = folder

    def run(rank: int) -> None:
        found[rank] = work(members[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@pytest.mark.parametrize("rows", [0, 1, 2, 7])
def test_the_first_process_has_all_answers_in_the_order_of_the_rows(rows: int, tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Any:
        return ranks.join("answers", [{"row": i, "score": i / 3} for i in ranks.own(range(rows))])

    answers = [{"row": i, "score": i / 3} for i in range(rows)]
    assert together(3, tmp_path, work) == [answers, None, None]
    assert Ranks().join("answers", answers) == answers


def test_what_does_not_hold_for_one_process_does_not_hold_for_all(tmp_path: Path) -> None:
    assert together(3, tmp_path, lambda ranks: ranks.all("fits", ranks.rank != 1)) == [False] * 3
    assert together(2, tmp_path, lambda ranks: ranks.all("fits", True)) == [True] * 2
    assert Ranks().all("fits", True) and not Ranks().all("fits", False)


def test_the_first_process_goes_on_alone_and_the_others_have_nothing_left_to_do(tmp_path: Path) -> None:
    alone = together(2, tmp_path, lambda ranks: ranks.alone())
    assert alone[0].count == 1 and alone[1] is None


def test_a_slow_process_is_waited_for_while_it_says_that_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)

    def work(ranks: Ranks) -> Any:
        ended = threading.Event()
        beating = threading.Thread(target=ranks._beat, args=(ended,))
        beating.start()
        if ranks.rank == 1:
            ended.wait(1.5)  # three times as long as a silent one is waited for
        joined = ranks.join("answers", [ranks.rank])
        ended.set()
        beating.join()
        return joined

    assert together(2, tmp_path, work) == [[0, 1], None]


def test_a_process_that_fell_silent_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.2)
    store = HashStore()
    store.set("answers/beat/1", "3")
    first = Ranks(0, 2, store)
    first.folder = tmp_path
    with pytest.raises(RuntimeError, match="process 1 has not been heard of"):
        first.join("answers", [1])
