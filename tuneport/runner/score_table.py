"""The scores of an evaluation, `metrics.json`, read and shown: each predictor a row, with 95 % intervals."""

from __future__ import annotations

import dataclasses as dc
import typing as t
from collections.abc import Mapping
from pathlib import Path

from tuneport.json_yaml import read_json

if t.TYPE_CHECKING:
    from rich.table import Table

FILE = "metrics.json"
TUNED, BASE = "tuned model", "base model"
HEADLESS = "base model, untrained head"
CELL = len("0.942 (0.930–0.955)")


@dc.dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluation found: by predictor, each main metric's value and its interval."""

    main: tuple[str, ...]
    headline: str
    rows: int
    values: Mapping[str, Mapping[str, float | None]]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]
    verdict: str
    sentences: tuple[str, ...]

    def cell(self, predictor: str, metric: str, *, interval: bool) -> str:
        value = self.values[predictor].get(metric)
        if value is None:
            return "–"
        found = self.intervals[predictor].get(metric) if interval else None
        return f"{value:.3f}" + (f" ({found[0]:.3f}–{found[1]:.3f})" if found else "")


def read(folder: Path) -> Scores | None:
    """The scores in an evaluation's folder; None where it holds none."""
    try:
        found = read_json(folder / FILE)
        named = {TUNED: found["tuned"]}
        if found["base"]["metrics"]:
            named[BASE if found["base_has_head"] else HEADLESS] = found["base"]
        named |= found["baselines"]
        verdict = found.get("verdict") or {}
        return Scores(
            main=tuple(found["main"]),
            headline=found["headline"],
            rows=found["test_rows"],
            values={name: dict(scores["metrics"]) for name, scores in named.items()},
            intervals={
                name: {metric: (low, high) for metric, (low, high) in scores["intervals"].items()}
                for name, scores in named.items()
            },
            verdict=verdict.get("headline", ""),
            sentences=tuple(verdict.get("sentences", ())),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def table(scores: Scores, width: int) -> Table:
    """The scores as a table of at most ``width`` characters: of metrics that have no room there is no interval, or
    no column.
    """
    from rich import box
    from rich.table import Table

    name = max(map(len, scores.values))
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    shown.add_column("", no_wrap=True)
    with_intervals, columns = _columns(scores, width - name - 2)
    for metric in columns:
        shown.add_column(metric, no_wrap=True)
    for predictor in scores.values:
        cells = [scores.cell(predictor, metric, interval=metric in with_intervals) for metric in columns]
        shown.add_row(predictor, *cells, style="bold" if predictor == TUNED else None)
    return shown


def _columns(scores: Scores, room: int) -> tuple[list[str], list[str]]:
    """The metrics with an interval, and all that are shown, in so much room; the headline metric is the first."""
    metrics = sorted(scores.main, key=lambda metric: metric != scores.headline)
    wide: list[str] = []
    shown: list[str] = []
    for i, metric in enumerate(metrics):
        plain_rest = sum(max(len(other), 5) + 3 for other in metrics[i + 1 :])
        needed = max(len(metric), CELL) + 3
        if needed + plain_rest <= room or not shown:
            wide.append(metric)
        else:
            needed = max(len(metric), 5) + 3
        if needed <= room or not shown:
            shown.append(metric)
            room -= needed
    return wide, shown
