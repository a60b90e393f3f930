"""Work in several processes: results in order, errors at their item, and no loss where a process ends."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import steps
from tuneport.data import encode_rows, prepare, read_blocks, workers
from tuneport.errors import UserError
from tuneport.stage import execute


def items() -> Iterator[int]:
    return iter(range(50))


def run(make: Callable[[int], int], processes: int) -> list[tuple[int, int]]:
    work = workers.Work(make=make, pack=lambda n: n.to_bytes(8, "big"), unpack=lambda b: int.from_bytes(b, "big"))
    return list(workers.mapped(work, items, processes, theirs=lambda *_: items()))


def test_results_come_in_the_order_of_the_items_from_other_processes() -> None:
    squares = [(n, n * n) for n in range(50)]
    assert run(lambda n: n * n, 1) == run(lambda n: n * n, 3) == squares
    assert {process for _, process in run(lambda _: os.getpid(), 1)} == {os.getpid()}
    made_by = {process for _, process in run(lambda _: os.getpid(), 3)}
    assert len(made_by) == 3 and os.getpid() not in made_by
    for process in made_by:
        with pytest.raises(ChildProcessError):  # it has ended, and was waited for
            os.waitpid(process, os.WNOHANG)


def test_what_the_work_raises_is_raised_at_its_item() -> None:
    def refuse(n: int) -> int:
        if n == 30:
            raise UserError("row 30: is wrong")
        if n == 40:
            raise ValueError("never reached")
        return n

    with pytest.raises(UserError, match="row 30: is wrong"):
        run(refuse, 2)

    def break_down(n: int) -> int:
        return 1 // (n - 7)

    with pytest.raises((RuntimeError, OverflowError), match="ZeroDivisionError"):
        run(lambda n: abs(break_down(n)), 2)


def test_what_the_items_of_a_process_raise_is_raised_where_the_next_of_them_is_expected() -> None:
    def ended(first: int, step: int) -> Iterator[int]:
        yield from range(10)
        raise UserError("row 10: the file ends in the middle")

    work = workers.Work[int, int](make=lambda n: n, pack=lambda n: bytes([n]), unpack=lambda b: b[0])
    made = workers.mapped(work, items, 3, theirs=ended)
    assert [next(made) for _ in range(10)] == [(n, n) for n in range(10)]
    with pytest.raises(UserError, match="row 10: the file ends"):
        next(made)
    made.close()


def test_the_items_of_a_process_that_is_killed_or_silent_are_worked_on_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = os.getpid()

    def die(n: int) -> int:
        if n == 10 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    assert run(die, 2) == [(n, n) for n in range(50)]
    assert "has ended early; its rows are prepared here" in caplog.text
    monkeypatch.setattr(workers, "PATIENCE", 0.2)

    def wait(n: int) -> int:
        if n == 11 and os.getpid() != here:
            signal.pause()
        return n

    assert run(wait, 2) == [(n, n) for n in range(50)]
    assert "says nothing for 0 seconds" in caplog.text


def test_where_no_process_can_be_started_all_is_done_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fork, calls = os.fork, []

    def once() -> int:
        calls.append(1)
        if len(calls) > 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", once)
    assert run(lambda n: os.getpid(), 3) == [(n, os.getpid()) for n in range(50)]
    assert "as no other can be started (Resource temporarily unavailable)" in caplog.text


def test_one_thing_is_made_aside_and_here_where_its_process_is_lost_or_there_is_one_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = os.getpid()

    def made(make: Callable[[None], int], processes: int) -> int:
        work = workers.Work(make=make, pack=lambda n: n.to_bytes(8, "big"), unpack=lambda b: int.from_bytes(b, "big"))
        with workers.aside(work, processes) as result:
            return result()

    assert made(lambda _: os.getpid(), 1) == here
    other = made(lambda _: os.getpid(), 2)
    assert other != here
    with pytest.raises(ChildProcessError):  # it has ended, and was waited for
        os.waitpid(other, os.WNOHANG)

    def die(_: None) -> int:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return 7

    assert made(die, 2) == 7
    assert "has ended early" in caplog.text


def test_pipes_that_may_not_be_larger_do_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(workers.fcntl, "fcntl", refuse)
    assert run(lambda n: n * n, 2) == [(n, n * n) for n in range(50)]


def test_the_cgroup_s_share_of_the_cpus_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = len(os.sched_getaffinity(0))
    for text, expected in (("max 100000", allowed), ("100000 100000", 1), ("50000 100000", 1), ("oops", allowed)):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(workers, "CGROUP", tmp_path / "cpu.max")
        assert workers.cores() == expected
    monkeypatch.setattr(workers, "CGROUP", tmp_path / "none")
    assert workers.cores() == allowed


def test_few_rows_are_encoded_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.write_bytes(bytes(1000))
    monkeypatch.setattr(encode_rows, "cores", lambda: 8)
    assert encode_rows._processes(scratch, 1000) == 1
    monkeypatch.setattr(encode_rows, "WORTHWHILE", 1000)
    assert [encode_rows._processes(scratch, batches) for batches in (1000, 9, 3)] == [8, 2, 1]


def test_what_is_written_does_not_depend_on_the_number_of_processes(
    imported_model: Path, questions: list[dict[str, str]], tmp_path: Path, write_jsonl: Any, monkeypatch: Any
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [*questions, *questions[:7]])
    made = []
    for processes in (1, 3):
        for module in (encode_rows, read_blocks):
            monkeypatch.setattr(module, "_processes", lambda *_, n=processes: n)
        monkeypatch.setattr(prepare, "cores", lambda n=processes: n)
        monkeypatch.setattr(prepare, "WORTHWHILE", 0)
        output = tmp_path / str(processes)
        execute(
            steps.load("preprocess", "text_classification")(
                model_selector_output=imported_model,
                train_file_path=rows,
                sentence1_key="text",
                label_key="label",
                batch_size=8,
                max_seq_length=6,
                preprocess_output=output,
            )
        )
        files = sorted(path for path in output.rglob("*") if path.is_file())
        made.append({p.relative_to(output).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert made[0] == made[1]
