"""One self-contained HTML report: verdict, scores, curves, errors, data, lineage and parameters."""

from __future__ import annotations

import dataclasses as dc
import json
import typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tuneport.artifacts import Artifact, digest, read_manifest
from tuneport.evaluation import figures
from tuneport.evaluation.comparison import Comparison
from tuneport.json_yaml import finite
from tuneport.licences import notices
from tuneport.metrics.scores import Evaluation
from tuneport.step import show
from tuneport.tasks.task import Row, ShownAnswer, Task

SHOWN_ANSWERS = 20
TEXT_LENGTH = 600  # characters of a row's text that are shown


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A test row and its answers."""

    row_id: str
    shown: ShownAnswer


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
class Training:
    """What the training left behind: transformers' log, and our summary of it."""

    history: Sequence[Mapping[str, t.Any]]
    best_step: int | None
    summary: Mapping[str, t.Any]


def shown_answers(
    task: Task, rows: Sequence[Row], tuned: Sequence[Row], base: Sequence[Row] | None, found: Evaluation
) -> list[Answer]:
    """The rows that are answered wrong, most wrong first, at most `SHOWN_ANSWERS`.

    Where answers are not right or wrong: as many rows at even steps from the best answer to the worst. ``base`` is None
    where the base model was left out; then what it answers is "".
    """

    def shown(i: int) -> ShownAnswer | None:
        if base is not None:
            return task.shown(rows[i], tuned[i], base[i])
        alone = task.shown(rows[i], tuned[i], tuned[i])
        return alone and dc.replace(alone, base="")

    if found.row_correct is None:
        ranked = sorted(filter(shown, range(len(rows))), key=lambda i: found.row_losses[i])
        steps = min(SHOWN_ANSWERS, len(ranked))
        picked = [ranked[round(i * (len(ranked) - 1) / max(1, steps - 1))] for i in range(steps)]
    else:
        wrong = [i for i, correct in enumerate(found.row_correct) if not correct]
        picked = sorted(wrong, key=lambda i: -found.row_losses[i])[:SHOWN_ANSWERS]
    return [Answer(row_id=rows[i]["row_id"], shown=_cut_all(answer)) for i in picked if (answer := shown(i))]


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


def _cut_all(shown: ShownAnswer) -> ShownAnswer:
    parts = {name: _cut(getattr(shown, name)) for name in ("truth", "predicted", "score", "base")}
    return ShownAnswer(texts=tuple(map(_cut, shown.texts)), **parts)


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
    answers: Sequence[Answer],
    training: Training,
    data: Mapping[str, t.Any],
    max_seq_length: int,
    lineage: Sequence[Origin],
    parameters: Mapping[str, t.Any],
) -> str:
    """Return the report as one HTML page that needs nothing beside it.

    ``data`` is preprocess's data report, ``parameters`` are those of the evaluation.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"score": _score, "size": _size, "duration": _duration}
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        task=task_name.replace("_", " ").capitalize(),
        comparison=comparison,
        verdict=comparison.verdict,
        details=comparison.tuned.details,
        table=_table(comparison),
        figures=_figures(comparison, training, data),
        answers=answers,
        wrong=None if (right := comparison.tuned.row_correct) is None else sum(not correct for correct in right),
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
            {
                "value": metric.number(value),
                "interval": [metric.number(bound) for bound in found.intervals.get(metric.name, ())],
                "best": value is not None and value == best,
            }
            for value, found in zip(values, comparison.all.values(), strict=True)
        ]
        rows.append({"metric": metric, "cells": cells, "main": metric in comparison.tuned.main})
    return rows


def _by_source(comparison: Comparison) -> list[dict[str, t.Any]]:
    """One entry a source of the test rows: how many they are, and each main metric of both models."""
    return [
        {
            "name": name,
            "rows": found.rows,
            "cells": [
                metric.number(scores.metrics.get(metric.name))
                for metric in comparison.tuned.main
                for scores in (found.tuned, found.base)
                if scores is not None
            ],
        }
        for name, found in comparison.by_source.items()
    ]


def _figures(comparison: Comparison, training: Training, data: Mapping[str, t.Any]) -> dict[str, t.Any]:
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
    return "n/a" if value is None else f"{value:.3f}"


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
