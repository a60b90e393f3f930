"""One self-contained HTML report: verdict, scores, curves, errors, data, lineage and parameters."""

from __future__ import annotations

import base64
import hashlib
import json
import typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tuneport import __version__
from tuneport.artifacts import Artifact, digest, read_manifest
from tuneport.evaluation import figures
from tuneport.evaluation.comparison import Comparison
from tuneport.evaluation.shown_rows import FIRST_ROWS, Shown, as_json
from tuneport.evaluation.slices import Slice, by_kind
from tuneport.json_yaml import finite
from tuneport.licences import notices
from tuneport.metrics.metric import AnyMetric
from tuneport.metrics.scores import Evaluation
from tuneport.step import show

SURE = 0.9  # the probability of a wrong answer above which the row's own label is worth a look


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an input of the evaluation came from: its manifest in short."""

    name: str
    type: str
    step: str
    version: str
    digest: str
    inputs: Mapping[str, str]  # name -> digest
    parameters: Mapping[str, str]
    files: int
    notices: Sequence[str]  # the licences and notices among them
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """With which probabilities answers came, and which were right; empty where they came with none."""

    probabilities: Sequence[float] = ()
    hits: Sequence[bool] = ()


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the training left behind: transformers' log, and our summary of it."""

    history: Sequence[Mapping[str, t.Any]]
    best_step: int | None
    summary: Mapping[str, t.Any]


def origin(name: str, artifact: Artifact) -> Origin:
    """Read where an artifact came from out of its manifest."""
    manifest = read_manifest(artifact)
    return Origin(
        name=name,
        type=manifest["type"],
        step=manifest["producer"]["step"],
        version=manifest["producer"]["version"],
        digest=digest(artifact),
        inputs=manifest["inputs"],
        parameters={k: _parameter(v) for k, v in manifest["parameters"].items()},
        files=len(manifest["files"]),
        notices=notices(manifest["files"]),
        bytes=sum(entry["size"] for entry in manifest["files"].values()),
    )


def training(folder: Path) -> Training:
    """Read a tuned model's training log; empty where the folder holds none."""
    state, summary = (_read_json(folder / name) for name in ("trainer_state.json", "training.json"))
    history = [_finite(entry) for entry in state.get("log_history", ())]
    return Training(history=history, best_step=state.get("best_global_step"), summary=summary)


def _read_json(path: Path) -> dict[str, t.Any]:
    found: dict[str, t.Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def _finite(entry: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """A log entry without what a diverged training writes: no curve can be drawn through it."""
    return {k: v for k, v in finite(entry).items() if v is not None}


def render(
    *,
    task_name: str,
    comparison: Comparison,
    subject: str,
    answers: Sequence[Shown],
    parts: Sequence[Slice],
    confidence: Confidence,
    training: Training,
    data: Mapping[str, t.Any],
    max_seq_length: int,
    lineage: Sequence[Origin],
    parameters: Mapping[str, t.Any],
) -> str:
    """Return the report as one HTML page that needs nothing beside it.

    ``subject``: model and data in a few words; ``data`` is preprocess's data report, ``parameters`` are those of the
    evaluation.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"score": _score, "size": _size, "duration": _duration, "counted": _counted}
    template, script = (files(__package__).joinpath(f"report.{kind}").read_text("utf-8") for kind in ("html.j2", "js"))
    wrong = None if (right := comparison.tuned.row_correct) is None else sum(not correct for correct in right)
    columns = _columns(comparison, written=wrong is None)
    return environment.from_string(template).render(
        subject=subject,
        version=__version__,
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        embedded={"rows": as_json(answers), "columns": columns},
        columns=columns,
        first_rows=FIRST_ROWS,
        slices=by_kind(parts),
        calibration_error=figures.calibration_error(confidence.probabilities, confidence.hits),
        marked=any(kind for answer in answers for _, kind, _ in answer.pieces),
        sure_errors=_sure_errors(answers, wrong),
        sure=SURE,
        task=task_name.replace("_", " ").capitalize(),
        comparison=comparison,
        verdict=comparison.verdict,
        details=comparison.tuned.details,
        table=_table(comparison),
        figures=_figures(comparison, training, data, confidence),
        answers=answers,
        wrong=wrong,
        training=training,
        data=data,
        sources=_by_source(comparison),
        reasons=_drop_reasons(data),
        max_seq_length=max_seq_length,
        lineage=lineage,
        parameters={k: _parameter(v) for k, v in parameters.items()},
    )


def _table(comparison: Comparison) -> list[dict[str, t.Any]]:
    """One entry a metric: each predictor's value and interval, and which is best."""
    rows = []
    for metric in comparison.tuned.records:
        values = [found.metrics.get(metric.name) for found in comparison.all.values()]
        best = metric.best(values)
        cells = [
            {**_cell(metric, found), "best": value is not None and value == best}
            for value, found in zip(values, comparison.all.values(), strict=True)
        ]
        rows.append({"metric": metric, "cells": cells, "main": metric in comparison.tuned.main})
    return rows


def _cell(metric: AnyMetric, found: Evaluation) -> dict[str, t.Any]:
    """A value and its interval, as tables show them."""
    bounds = found.intervals.get(metric.name, ())
    return {"value": metric.number(found.metrics.get(metric.name)), "interval": [metric.number(b) for b in bounds]}


def _by_source(comparison: Comparison) -> list[dict[str, t.Any]]:
    """One entry a source of the test rows: how many they are, and each main metric of both models."""
    return [
        {
            "name": name,
            "rows": found.rows,
            "cells": [
                _cell(metric, scores)
                for metric in comparison.tuned.main
                for scores in (found.tuned, found.base)
                if scores is not None
            ],
        }
        for name, found in comparison.by_source.items()
    ]


def _columns(comparison: Comparison, *, written: bool) -> list[dict[str, str]]:
    """The columns of the table of answers: what of a row stands there, under which title, in which style."""
    kind = "text answer" if written else "text label"
    titles = ("Reference", "Tuned model") if written else ("True", "Predicted")
    found = [("texts", "Text", "words"), ("truth", titles[0], kind)]
    found += [("predicted", titles[1], kind if written else f"{kind} wrong"), ("score", "Score", "score")]
    found += [("base", "Base model", kind)] if comparison.base else []
    return [{"key": key, "title": title, "css": css} for key, title, css in found]


def _sure_errors(answers: Sequence[Shown], wrong: int | None) -> list[Shown]:
    """Wrong answers of which the model is sure: their labels may be what is wrong."""

    def sure(text: str) -> bool:
        try:
            return float(text) >= SURE
        except ValueError:  # several scores, or none
            return False

    return [] if wrong is None else [answer for answer in answers if sure(answer.score)]


def _figures(
    comparison: Comparison, training: Training, data: Mapping[str, t.Any], confidence: Confidence
) -> dict[str, t.Any]:
    """The SVGs by name; they are ours, so the template takes them as they are."""
    from markupsafe import Markup

    main = comparison.tuned.main
    found: dict[str, str | None] = {"scores": figures.score_intervals(comparison.all, main)}
    if training.history:
        found["curves"] = figures.training_curves(training.history, training.best_step, main)
    if matrix := comparison.tuned.details.get("confusion_matrix"):
        labels = comparison.tuned.details["labels"]
        found["confusion"] = figures.confusion_matrix(matrix, labels, "Tuned model", figures.ACCENT, 4.9)
        if comparison.base is not None:
            other = comparison.base.details["confusion_matrix"]
            title = comparison.base_name.capitalize()
            found["base_confusion"] = figures.confusion_matrix(other, labels, title, figures.SECOND, 3.7)
    if confidence.hits:
        found["confidence"] = figures.confidence(confidence.probabilities, confidence.hits)
    splits = data["splits"]
    if labels := {name: split["labels"] for name, split in splits.items() if split.get("labels")}:
        found["labels"] = figures.label_shares(labels)
    if tokens := {name: split["tokens"] for name, split in splits.items() if split.get("tokens")}:
        found["lengths"] = figures.token_lengths({name: entry["histogram"] for name, entry in tokens.items()})
    return {name: Markup(svg) for name, svg in found.items() if svg}


def _drop_reasons(data: Mapping[str, t.Any]) -> list[tuple[str, str, int, Sequence[str]]]:
    """(split, reason, rows, where the first ones stand) of every reason for which rows were dropped."""
    return [
        (split, reason, entry["rows"], entry["first"])
        for split, source in data["sources"].items()
        for reason, entry in source["dropped"].items()
    ]


def _parameter(value: t.Any) -> str:
    if value in (None, ""):
        return "not set" if value is None else "empty"
    return value if isinstance(value, str) else show(value)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _size(value: float) -> str:
    for unit, limit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f} bytes"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes / 60:.1f} h"
