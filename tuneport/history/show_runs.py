"""Runs for people: the list, one run, and two runs side by side."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneport.history.compare_runs import Pair, RunComparison
from tuneport.history.kept_runs import KeptRun
from tuneport.runner import score_table
from tuneport.runner.score_table import TUNED

DIGEST = 12  # characters
STYLES = {"finished": "green", "running": "yellow", "failed": "red", "stopped": "red"}


def run_list(runs: Sequence[KeptRun]) -> RenderableType:
    """A row a run: name, how it ended, when it began, its headline score and the verdict."""
    table = _table("run", "status", "began (UTC)", "score", "verdict")
    for run in runs:
        scores = run.scores
        record = run.record
        score = f"{scores.headline} {scores.cell(TUNED, scores.headline, interval=False)}" if scores else "–"
        began = record.started[:16].replace("T", " ")
        name = f"{record.pipeline}/{run.name}"
        status = Text(record.status, style=STYLES[record.status])
        table.add_row(Text(name), status, began, score, scores.verdict if scores else "")
    return table


def one_run(run: KeptRun, width: int) -> RenderableType:
    """A run: how it ended, scores, verdict, values, data, warnings and outputs."""
    return Group(*_one_run(run, width))


def _one_run(run: KeptRun, width: int) -> Iterator[RenderableType]:
    record, scores = run.record, run.scores
    took = "" if record.seconds is None else f", {record.seconds:.0f} s"
    yield Text(
        f"{record.pipeline}/{run.name}: {record.status}, began {record.started[:19].replace('T', ' ')} UTC{took}"
    )
    yield Text(str(run.folder), overflow="fold")
    if scores:
        yield Text(f"\nScores on {scores.rows:,} test rows, with 95 % intervals:")
        yield score_table.table(scores, width)
        yield Text(f"\n{scores.verdict}. {' '.join(scores.sentences[:1])}", style="bold")
    yield from _named("Values", {name: str(value) for name, value in record.values.items()})
    yield from _named("Data and base model, by digest", {name: d[:DIGEST] for name, d in run.data.items()})
    warnings = [f"  {stage}: {text}" for stage, texts in run.warnings.items() for text in texts]
    if warnings:
        yield Text("\nWarnings:", style="yellow")
        yield Text("\n".join(warnings))
    yield from _named("Outputs", {name: str(path) for name, path in run.outputs.items()})


def _named(title: str, values: Mapping[str, str]) -> Iterator[RenderableType]:
    if values:
        yield Text(f"\n{title}:")
        width = max(map(len, values))
        lines = "\n".join(f"  {name:{width}}  {value}" for name, value in values.items())
        yield Text(lines, no_wrap=True, overflow="ignore")  # a path is to be copied


def comparison(found: RunComparison) -> RenderableType:
    """Two runs side by side."""
    return Group(*_comparison(found))


def _comparison(found: RunComparison) -> Iterator[RenderableType]:
    names = (found.first.name, found.second.name)
    scores = _table("tuned model", *names, "difference")
    for metric, (first, second) in found.metrics.items():
        gain = "" if first is None or second is None else f"{second - first:+.4f}"
        scores.add_row(metric, *(_number(value) for value in (first, second)), gain)
    if found.metrics:
        yield scores
    yield Text("\n" + difference_in_words(found), style="bold")
    for run in (found.first, found.second):
        if run.scores and run.scores.verdict:
            yield Text(f"{run.name}: {run.scores.verdict}.")
    yield from _pairs("Parameters that differ", names, found.parameters)
    yield from _pairs(
        "Data and base model, by digest",
        names,
        {name: (_short(a), "the same" if a == b else _short(b)) for name, (a, b) in found.data.items()},
    )
    yield from _pairs("Versions that differ", names, found.versions)


def difference_in_words(found: RunComparison) -> str:
    """What the comparison comes to, in one sentence."""
    gain = found.difference
    if gain is None:
        return f"No interval of the difference: {found.why_not}."
    low, high = gain.interval
    clear = "not clearly different from" if low <= 0 <= high else "clearly different from"
    return (
        f"On the same {gain.rows:,} test rows, {gain.metric} of {found.second.name} is {gain.value:+.4f} "
        f"(95 % interval {low:+.4f} to {high:+.4f}): {clear} {found.first.name}."
    )


def _pairs(title: str, names: Sequence[str], pairs: Mapping[str, Pair]) -> Iterator[RenderableType]:
    if not pairs:
        yield Text(f"\n{title}: none.")
        return
    table = _table(f"\n{title}", *(f"\n{name}" for name in names))
    for name, pair in pairs.items():
        table.add_row(Text(name), *(Text("–" if value is None else str(value)) for value in pair))
    yield table


def _short(digest: str | None) -> str:
    return "–" if digest is None else digest[:DIGEST]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def printed(shown: t.Any) -> None:
    """Print what is shown, as wide as the terminal; paths are never broken."""
    Console(highlight=False).print(shown, crop=False)
