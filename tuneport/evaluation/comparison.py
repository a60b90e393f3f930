"""Tuned model, base model and trivial baselines side by side on the same rows, and the verdict in words."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tuneport.metrics import bootstrap
from tuneport.metrics.metric import AnyMetric
from tuneport.metrics.scores import Evaluation

TUNED = "tuned model"

Level = t.Literal["good", "unclear", "bad"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison comes to: a headline and the numbers behind it."""

    level: Level
    headline: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How far the tuned model's headline metric is above another's, with its paired 95 % interval."""

    metric: AnyMetric
    value: float | None  # None, as the interval, where a model's scores are not all numbers
    interval: tuple[float, float] | None

    @property
    def level(self) -> Level:
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "unclear"
        return "good" if (self.interval[0] > 0) == self.metric.greater_is_better else "bad"

    def as_json(self) -> dict[str, t.Any]:
        return {"value": self.value, "interval": self.interval and list(self.interval)}

    def __str__(self) -> str:
        return self.metric.gain_in_words(self.value, self.interval)


@dataclass(frozen=True, kw_only=True)
class OfSource:
    """Scores on the test rows of one source of a mixture."""

    rows: int
    tuned: Evaluation
    base: Evaluation | None


@dataclass(frozen=True)
class Comparison:
    """Evaluations of the same rows; ``base_has_head`` says whether the base model was trained for these labels.

    ``base`` is None where the base model was left out. ``by_source``: where the rows come from several sources.
    """

    tuned: Evaluation
    base: Evaluation | None
    base_has_head: bool
    baselines: Mapping[str, Evaluation]
    seed: int
    by_source: Mapping[str, OfSource] = field(default_factory=dict)

    @property
    def base_name(self) -> str:
        return "base model" if self.base_has_head else "base model, untrained head"

    @property
    def _base_phrase(self) -> str:
        return "base model" if self.base_has_head else "base model (untrained head)"

    @property
    def rows(self) -> int:
        return len(self.tuned.row_parts)

    @cached_property
    def all(self) -> dict[str, Evaluation]:
        """Every predictor by the name to show, the tuned one first."""
        base = {} if self.base is None else {self.base_name: self.base}
        return {TUNED: self.tuned, **base, **self.baselines}

    @cached_property
    def gains(self) -> dict[str, Gain]:
        """How far the tuned model is above each other predictor, by that one's name."""
        return {name: self._gain(other) for name, other in self.all.items() if other is not self.tuned}

    def _gain(self, other: Evaluation) -> Gain:
        name = self.tuned.headline.name
        known = self.tuned.metrics[name] is not None and other.metrics.get(name) is not None
        found = bootstrap.difference(other.row_parts, self.tuned.row_parts, self.seed) if known else None
        value, interval = (None, None) if found is None else found
        return Gain(metric=self.tuned.headline, value=value, interval=interval)

    @cached_property
    def paired(self) -> dict[str, dict[str, Gain]]:
        """The gains by each metric beside the headline that is made of rows: by its name, then the other's."""
        found: dict[str, dict[str, Gain]] = {}
        for metric in self.tuned.records:
            parts = self.tuned.parts.get(metric.name)
            if parts is None or metric.name == self.tuned.headline.name:
                continue
            for name, other in self.all.items():
                if other is not self.tuned and metric.name in other.parts:
                    difference = bootstrap.difference(other.parts[metric.name], parts, self.seed)
                    value, interval = difference or (None, None)
                    found.setdefault(metric.name, {})[name] = Gain(metric=metric, value=value, interval=interval)
        return found

    @property
    def _rival(self) -> str | None:
        """The baseline that the tuned model is least ahead of."""
        sign = 1 if self.tuned.headline.greater_is_better else -1
        ahead = {name: sign * value for name in self.baselines if (value := self.gains[name].value) is not None}
        return min(ahead, key=lambda name: ahead[name], default=None)

    @cached_property
    def verdict(self) -> Verdict:
        rival = self._rival
        claim, other_claim = self.tuned.claim
        of_tuned = f"On {self.rows:,} test rows the {TUNED} {claim} {_share(self.tuned)}"
        if self.base is None:
            sentences = [f"{of_tuned}.", "The base model was left out (evaluate_base_model=false)."]
        else:
            gain = self.gains[self.base_name]
            sentences = [f"{of_tuned}, the {self._base_phrase} {other_claim} {_share(self.base)}: {gain}."]
        if rival is not None:
            share = _share(self.baselines[rival])
            sentences.append(f"The best trivial baseline, {rival}, {claim} {share}: {self.gains[rival]}.")
        if self.base is not None and not self.base_has_head:
            sentences.append(
                "The base model brings no head for these labels. Its head has random weights, so its score is that of "
                "guessing and says nothing of what the model knows."
            )
        sentences += [
            f"{gains[self.base_name].metric.title}, beside the {self._base_phrase}: {gains[self.base_name]}."
            for gains in self.paired.values()
            if self.base_name in gains
        ]
        sentences += self.tuned.details.get("notes", ())
        level, headline = self._headline_alone(rival) if self.base is None else self._headline(rival)
        return Verdict(level=level, headline=headline, sentences=tuple(sentences))

    def _headline_alone(self, rival: str | None) -> tuple[Level, str]:
        """What there is to say where the base model was left out."""
        if rival is None:
            return "unclear", "Scored alone, beside no other model"
        level = self.gains[rival].level
        words = {"good": "Better than every trivial baseline", "bad": f"Worse than {rival}"}
        return level, words.get(level, f"Not clearly better than {rival}")

    def _headline(self, rival: str | None) -> tuple[Level, str]:
        against_base = self.gains[self.base_name].level
        if against_base == "bad":
            return "bad", f"Worse than the {self._base_phrase}"
        if against_base == "unclear":
            return "unclear", f"No clear difference from the {self._base_phrase}"
        if rival is None:
            return "good", f"Better than the {self._base_phrase}"
        against_rival = self.gains[rival].level
        if against_rival == "good":
            return "good", f"Better than the {self._base_phrase} and every trivial baseline"
        word = "worse than" if against_rival == "bad" else "not clearly better than"
        return against_rival, f"Better than the {self._base_phrase}, but {word} {rival}"

    def as_json(self) -> dict[str, t.Any]:
        """What metrics.json holds."""
        return {
            "main": [metric.name for metric in self.tuned.main],
            "headline": self.tuned.headline.name,
            "test_rows": self.rows,
            "base_has_head": None if self.base is None else self.base_has_head,
            "tuned": _scores(self.tuned),
            "base": _scores(self.base),
            "baselines": {name: _scores(found) for name, found in self.baselines.items()},
            "gains": {name: gain.as_json() for name, gain in self.gains.items()},
            "paired_gains": {
                metric: {name: gain.as_json() for name, gain in gains.items()} for metric, gains in self.paired.items()
            },
            **(
                {"by_source": {name: _of_source(found) for name, found in self.by_source.items()}}
                if self.by_source
                else {}
            ),
            "level": self.verdict.level,
            "better_than_base": None if self.base is None else self.gains[self.base_name].level == "good",
            "worse_than_base": None if self.base is None else self.gains[self.base_name].level == "bad",
            "per_class": self.tuned.details.get("per_class"),
            "confusion_matrix": self.tuned.details.get("confusion_matrix"),
            "labels": self.tuned.details.get("labels"),
            "notes": self.tuned.details.get("notes", []),
        }

    def lines(self) -> list[str]:
        """The main scores of all predictors as aligned lines."""
        width = max(map(len, self.all))
        head = " " * width + "".join(f"  {metric.name:>10}" for metric in self.tuned.main)
        return [head] + [
            f"{name:<{width}}" + "".join(f"  {_number(found.metrics.get(m.name)):>10}" for m in self.tuned.main)
            for name, found in self.all.items()
        ]


def _scores(found: Evaluation | None) -> dict[str, t.Any]:
    if found is None:
        return {"metrics": {}, "intervals": {}}
    return {"metrics": dict(found.metrics), "intervals": {k: list(v) for k, v in found.intervals.items()}}


def _of_source(found: OfSource) -> dict[str, t.Any]:
    return {"rows": found.rows, "tuned": _scores(found.tuned), "base": _scores(found.base)}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(found: Evaluation) -> str:
    name = found.headline.name
    return found.headline.in_words(found.metrics[name], found.intervals.get(name))
