"""What a person sees of a run while it runs: a live table at a terminal, plain lines anywhere else, or nothing."""

from __future__ import annotations

import os
import sys
import time
import typing as t
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tuneport.runner.stage_lines import StageState, warning_of

if t.TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

Show = t.Literal["progress", "quiet", "json"]
STATES = {"done": "green", "cached": "green", "reused": "green", "running": "yellow", "failed": "red", "stopped": "red"}
BAR = 24  # characters


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

    def __init__(self, stream: t.TextIO | None = None) -> None:
        super().__init__()
        self.stream = stream

    def line(self, stage: str, text: str) -> None:
        say(f"{stage} | {text}", self.stream)

    def end(self, stage: str, state: str, note: str = "") -> None:
        took = f" in {self.elapsed(stage)}" if state == "done" else ""
        say(f"{stage} | {state}{took}" + (f" ({note})" if note else ""), self.stream)


class QuietProgress(Progress):
    """Warnings alone, on standard error."""

    def line(self, stage: str, text: str) -> None:
        if warning := warning_of(text):
            say(f"{stage}: warning: {warning}", sys.stderr)

    def end(self, stage: str, state: str, note: str = "") -> None:
        pass


def say(text: str, stream: t.TextIO | None = None) -> None:
    """Print a text for the user, where there still is one."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # whoever read along is gone; the run goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@dataclass
class Row:
    """One stage's line in the table."""

    state: str = "waiting"
    elapsed: str = ""
    note: str = ""
    said: StageState = field(default_factory=StageState)


class LiveProgress(Progress):
    """A row a stage: state, time, and while it runs a bar and beneath it what it measures. Warnings stay above."""

    def __init__(self, stages: Sequence[str], console: Console) -> None:
        super().__init__()
        self.rows = {stage: Row() for stage in stages}
        self.console = console
        self.live: Live | None = None

    def begin(self, stage: str) -> None:
        super().begin(stage)
        self.rows[stage].state = "running"

    def line(self, stage: str, text: str) -> None:
        if text.startswith("running"):
            text = text.removeprefix("running").strip(" ()").replace("no finished result", "") or "starting"
        if warning := self.rows[stage].said.take(text):
            from rich.text import Text

            self.console.print(Text.assemble((f"{stage}: warning: ", "yellow"), warning))

    def end(self, stage: str, state: str, note: str = "") -> None:
        row = self.rows[stage]
        row.elapsed = self.elapsed(stage) if stage in self.started else ""
        row.state, row.note = state, note
        if self.live:
            self.live.refresh()

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        return Group(*(part for stage in self.rows for part in self._parts(stage)))

    def _parts(self, stage: str) -> Iterator[RenderableType]:
        """A stage's row, and of a running one a second line with what it measures."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = self.rows[stage]
        said, running = row.said, row.state == "running"
        table = Table.grid(padding=(0, 2))
        table.add_column(width=max(map(len, self.rows)))
        table.add_column(width=7)
        table.add_column(width=7, justify="right")
        table.add_column(width=BAR)
        table.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=said.total, completed=said.done, width=BAR) if running and said.total else ""
        count = f"{said.done}/{said.total}" if running and said.total else ""
        state = Text(row.state, style=STATES.get(row.state, "dim"))
        elapsed = self.elapsed(stage) if running else row.elapsed
        if row.note and not running:
            yield Text.assemble(f"{stage:{max(map(len, self.rows))}}  ", state, f"  {elapsed:>7}  ", (row.note, "dim"))
        else:
            table.add_row(stage, state, elapsed, bar, count)
            yield table
        if details := (said.details() if row.state in ("running", "failed", "stopped") else ""):
            yield Text(f"  {details}", style="dim", no_wrap=True, overflow="ellipsis")


@contextmanager
def open_progress(stages: Sequence[str], show: Show = "progress") -> Iterator[Progress]:
    """A live table where standard output is a terminal, plain lines otherwise; on standard error beside JSON."""
    if show != "progress":
        yield QuietProgress() if show == "quiet" else PlainProgress(sys.stderr)
        return
    if not sys.stdout.isatty():
        yield PlainProgress()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if console.is_dumb_terminal:
        yield PlainProgress()
        return
    progress = LiveProgress(stages, console)
    with Live(progress, console=console, refresh_per_second=4, redirect_stderr=True) as live:
        progress.live = live
        yield progress
