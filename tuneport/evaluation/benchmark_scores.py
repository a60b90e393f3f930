"""Scores of the tuned model on benchmarks beside those of its base model: what it gained, and what it forgot."""

from __future__ import annotations

import math
import typing as t
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from tuneport.evaluation.comparison import Gain
from tuneport.evaluation.harness import Measured, Sample
from tuneport.metrics import bootstrap
from tuneport.metrics.metric import AnyMetric, Metric

PAGE = "benchmark.html.j2"
NORMAL = 1.96  # standard errors on either side of a mean that hold 95 % of a normal distribution
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task or group, of both models."""

    task: str
    key: str  # as lm_eval has it: the metric, and the filter of answers that it is of
    metric: AnyMetric
    tuned: float | None
    base: float | None
    intervals: tuple[Interval | None, Interval | None]  # of the tuned and of the base model
    gain: Gain | None  # where the metric is a mean over rows

    @property
    def name(self) -> str:
        """As metrics.json and MLflow have it."""
        metric, _, answers = self.key.partition(",")
        return f"{self.task}/{metric}" if answers == "none" else f"{self.task}/{metric}/{answers}"

    @property
    def sentence(self) -> str:
        return f"{self.name}: tuned {self.metric.number(self.tuned)}, base {self.metric.number(self.base)}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """What was measured of both models, by the task's or group's name; both were asked the same rows."""

    tuned: Mapping[str, Measured]
    base: Mapping[str, Measured]
    seed: int

    @cached_property
    def scores(self) -> list[Score]:
        return [self._score(name, key) for name, measured in self.tuned.items() for key in measured.scores]

    def _score(self, name: str, key: str) -> Score:
        tuned, base = self.tuned[name], self.base[name]
        word = key.partition(",")[0]
        better = tuned.greater_is_better.get(word)
        metric: AnyMetric = Metric(
            name=word,
            title=word,
            compute=lambda rows: math.nan,
            greater_is_better=better is not False,
            ranked=better is not None,
        )
        return Score(
            task=name,
            key=key,
            metric=metric,
            tuned=tuned.scores[key],
            base=base.scores.get(key),
            intervals=(_interval(tuned, key), _interval(base, key)),
            gain=self._gain(name, key, metric),
        )

    def _gain(self, name: str, key: str, metric: AnyMetric) -> Gain | None:
        """By the rows of both models in pairs; None where the score is not their mean."""
        tuned, base = (_rows(measured, name, key) for measured in (self.tuned, self.base))
        if tuned is None or base is None or tuned.keys() != base.keys() or not metric.ranked:
            return None
        before, after = ([(side[row], 1.0) for row in tuned] for side in (base, tuned))
        found = bootstrap.difference(before, after, self.seed)
        return None if found is None else Gain(metric=metric, value=found[0], interval=found[1])

    @property
    def worse(self) -> list[Score]:
        """Where the tuned model is worse than its base beyond doubt: what it forgot."""
        return [score for score in self.scores if score.gain is not None and score.gain.level == "bad"]

    @property
    def better(self) -> list[Score]:
        return [score for score in self.scores if score.gain is not None and score.gain.level == "good"]

    @property
    def headline(self) -> str:
        known = [score for score in self.scores if score.gain is not None]
        if not known:
            return "No score here is a mean over rows, so that none can be compared in pairs."
        if self.worse:
            return f"The tuned model forgot: it is clearly worse than its base by {_listed(self.worse)}."
        return f"Nothing forgotten is seen: of {len(known)} scores none is clearly worse than the base model's."

    @cached_property
    def notes(self) -> list[str]:
        found = []
        for name, measured in self.tuned.items():
            if measured.cut:
                found.append(
                    f"{name}: {measured.cut:,} of {measured.rows:,} rows have a prompt that is longer than the model "
                    "takes; it read their ends."
                )
        return found

    def as_json(self) -> dict[str, t.Any]:
        """What metrics.json holds."""
        sides = {
            side: {
                "metrics": {score.name: getattr(score, side) for score in self.scores},
                "intervals": {
                    score.name: list(interval)
                    for score in self.scores
                    if (interval := score.intervals[place]) is not None
                },
            }
            for place, side in enumerate(("tuned", "base"))
        }
        tasks = {
            name: {
                "rows": measured.rows,
                "num_fewshot": measured.shots,
                "version": measured.version,
                "cut": measured.cut,
            }
            for name, measured in self.tuned.items()
        }
        return {
            **sides,
            "gains": {score.name: score.gain.as_json() for score in self.scores if score.gain is not None},
            "worse": [score.name for score in self.worse],
            "better": [score.name for score in self.better],
            "tasks": tasks,
            "headline": self.headline,
            "notes": self.notes,
        }

    def tracked(self) -> dict[str, float]:
        """The scores by the names that MLflow groups: ``benchmark/hellaswag/acc``."""
        groups = {"benchmark": "tuned", "benchmark/base_model": "base"}
        return {
            f"{group}/{score.name}": value
            for group, side in groups.items()
            for score in self.scores
            if (value := getattr(score, side)) is not None and math.isfinite(value)
        }

    def lines(self) -> Iterator[str]:
        """One for each score, and the headline."""
        for score in self.scores:
            yield f"{score.sentence}{f': {score.gain}' if score.gain else ''}"
        yield from self.notes
        yield self.headline

    def samples(self) -> Iterator[dict[str, t.Any]]:
        """Each row of each task: what was asked, what both models said, and how that was scored."""
        for name, measured in self.tuned.items():
            others = {(row["doc_id"], row["filter"]): row for row in self.base[name].samples}
            for row in measured.samples:
                other = others[row["doc_id"], row["filter"]]
                yield {
                    "benchmark": name,
                    "doc_id": row["doc_id"],
                    "filter": row["filter"],
                    "target": _plain(row["target"]),
                    "asked": _plain(row["arguments"]),
                    "tuned": _said(row),
                    "base": _said(other),
                }

    def page(self, subject: str, facts: Sequence[str]) -> str:
        """The report, as HTML; ``subject``: the models in a few words, ``facts`` how they were asked."""
        from jinja2 import Environment

        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(files(__package__).joinpath(PAGE).read_text("utf-8")).render(
            subject=subject, facts=facts, found=self, lines=[self._line(score) for score in self.scores]
        )

    def _line(self, score: Score) -> dict[str, t.Any]:
        best = score.metric.best([score.tuned, score.base])
        cells = [
            {
                "value": score.metric.number(value),
                "interval": "" if interval is None else " to ".join(map(score.metric.number, interval)),
                "best": value is not None and value == best,
            }
            for value, interval in zip((score.tuned, score.base), score.intervals, strict=True)
        ]
        measured = self.tuned[score.task]
        return {
            "score": score,
            "cells": cells,
            "rows": "–" if measured.rows is None else f"{measured.rows:,}",
            "shots": "–" if measured.shots is None else measured.shots,
        }


def _interval(measured: Measured, key: str) -> Interval | None:
    value, error = measured.scores.get(key), measured.errors.get(key)
    if value is None or error is None or not math.isfinite(error):
        return None
    return value - NORMAL * error, value + NORMAL * error


def _rows(measured: Mapping[str, Measured], name: str, key: str) -> dict[tuple[str, t.Any], float] | None:
    """A metric's value of each row of a task, or of the tasks of a group; None where the score is not their mean."""
    metric, _, answers = key.partition(",")
    found: dict[tuple[str, t.Any], float] = {}
    for task in _tasks(measured, name):
        for sample in measured[task].samples:
            if sample["filter"] == answers:
                value = _plain(sample.get(metric))
                if not isinstance(value, (int, float)):
                    return None
                found[task, sample["doc_id"]] = float(value)
    score = measured[name].scores.get(key)
    if not found or score is None or not math.isclose(sum(found.values()) / len(found), score, abs_tol=1e-9):
        return None
    return found


def _tasks(measured: Mapping[str, Measured], name: str) -> Iterator[str]:
    """The tasks of a group, and of the groups in it; a task is its own."""
    if not measured[name].children:
        yield name
    for child in measured[name].children:
        if child in measured:
            yield from _tasks(measured, child)


def _said(row: Sample) -> dict[str, t.Any]:
    return {"answers": _plain(row["filtered_resps"]), **{metric: _plain(row[metric]) for metric in row["metrics"]}}


def _plain(value: t.Any) -> t.Any:
    """A value in types that JSON has: NumPy's, of which some metrics make a row's part, as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _listed(scores: Sequence[Score]) -> str:
    return ", ".join(f"{score.name} {score.gain}" for score in scores)
