"""What a person sees of a run: a live table at a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import re
import sys
import time
import typing as t
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

if t.TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

COUNT = re.compile(r"\[(\d+)/(\d+)\]")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")  # colours, cursor moves
STATES = {"done": "green", "cached": "green", "reused": "green", "running": "yellow", "failed": "red", "stopped": "red"}


class Progress(ABC):
    """Told what happens to each stage; `begin`, `line`…, `end`."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}

    def begin(self, stage: str) -> None:
        self.started[stage] = time.monotonic()

    @abstractmethod
    def line(self, stage: str, text: str) -> None:
        """A stage wrote a line."""

    @abstractmethod
    def end(self, stage: str, state: str, note: str = "") -> None:
        """A stage is done, cached, reused, failed or stopped."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Print a text for the user."""

    def stopping(self, why: str) -> None:
        """The first signal arrived."""
        self.complain(f"{why}: the stage is cleaning up; once more kills it")

    def complain(self, message: str) -> None:
        """Print an error message."""
        first, *rest = message.splitlines()
        print(f"error: {first}", *(f"       {line}" for line in rest), sep="\n", file=sys.stderr, flush=True)  # noqa: T201

    def elapsed(self, stage: str) -> str:
        seconds = time.monotonic() - self.started[stage] if stage in self.started else 0.0
        return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class PlainProgress(Progress):
    """``finetune | …``, a line for each line of a stage."""

    def line(self, stage: str, text: str) -> None:
        self.say(f"{stage} | {text}")

    def end(self, stage: str, state: str, note: str = "") -> None:
        took = f" in {self.elapsed(stage)}" if state == "done" else ""
        self.say(f"{stage} | {state}{took}" + (f" ({note})" if note else ""))

    def say(self, text: str) -> None:
        try:
            print(text, flush=True)  # noqa: T201
        except BrokenPipeError:  # whoever read along is gone; the run goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass
class Row:
    """One stage's line in the table."""

    state: str = "waiting"
    elapsed: str = ""
    done: int = 0
    total: int = 0
    text: str = ""


class LiveProgress(Progress):
    """One table row a stage: state, time, a bar where the stage counts, its last line."""

    def __init__(self, stages: Sequence[str], console: Console) -> None:
        super().__init__()
        self.rows = {stage: Row() for stage in stages}
        self.console = console
        self.live: Live | None = None

    def begin(self, stage: str) -> None:
        super().begin(stage)
        self.rows[stage].state = "running"

    def line(self, stage: str, text: str) -> None:
        row = self.rows[stage]
        row.text = CONTROL.sub("", text)
        if counts := COUNT.findall(text):
            row.done, row.total = map(int, counts[-1])

    def end(self, stage: str, state: str, note: str = "") -> None:
        row = self.rows[stage]
        row.elapsed = self.elapsed(stage) if stage in self.started else ""
        row.state = state
        row.text = note or ("" if state in ("done", "cached", "reused") else row.text)
        if self.live:
            self.live.refresh()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __rich__(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2), expand=True)
        for options in ({"no_wrap": True}, {"no_wrap": True}, {"no_wrap": True, "justify": "right", "min_width": 6}):
            table.add_column(**options)
        table.add_column(width=20)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for stage, row in self.rows.items():
            running = row.state == "running"
            bar = ProgressBar(total=row.total, completed=row.done, width=20) if running and row.total else ""
            elapsed = self.elapsed(stage) if running else row.elapsed
            style = STATES.get(row.state, "dim")
            table.add_row(stage, Text(row.state, style=style), elapsed, bar, Text(row.text, style="dim"))
        return table


@contextmanager
def open_progress(stages: Sequence[str]) -> Iterator[Progress]:
    """A live table where standard output is a terminal, plain lines otherwise."""
    if not sys.stdout.isatty():
        yield PlainProgress()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if console.is_dumb_terminal:
        yield PlainProgress()
        return
    progress = LiveProgress(stages, console)
    with Live(progress, console=console, refresh_per_second=4, redirect_stderr=True) as live:
        progress.live = live
        yield progress
