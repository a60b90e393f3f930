"""Exported models, scored by rows with true answers: side by side, without what they were trained from."""

from __future__ import annotations

import gc
import typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

from tuneport import tasks
from tuneport.errors import UserError, excerpt
from tuneport.labels import Spellings
from tuneport.metrics import bootstrap
from tuneport.metrics.metric import AnyMetric
from tuneport.metrics.scores import Evaluation
from tuneport.tasks.task import SCORING, Drop, Meta, Refuse, Row, Task, check_text
from tuneport.tracking import quieten

PAGE = "side_by_side.html.j2"


@dataclass(frozen=True)
class SavedScoring:
    """An exported model and what it says of how it is scored."""

    name: str
    folder: Path

    @cached_property
    def _said(self) -> tuple[str, Mapping[str, t.Any]]:
        quieten()
        from mlflow.models import Model

        try:
            found = Model.load(str(self.folder)).metadata or {}
            return str(found["task"]), found[SCORING]
        except Exception as e:  # MLflow raises whatever reading a file does
            raise UserError(
                f"{self.name}={self.folder}: is not a model that this version of model_export wrote ({excerpt(e)}); "
                "expected the mlflow_model_folder of a run. Run model_export again."
            ) from None

    @property
    def task(self) -> Task:
        return tasks.load(self._said[0])

    @property
    def meta(self) -> Meta:
        return dict(self._said[1]["meta"])

    @property
    def reading(self) -> t.Any:
        """What preprocess was told of the task's columns, as options."""
        return SimpleNamespace(**self._said[1]["reading"])

    def answers(self, questions: Sequence[Row]) -> list[Row]:
        """Load the model, ask it, and give its memory back."""
        import mlflow

        predictor = mlflow.pyfunc.load_model(str(self.folder)).unwrap_python_model().predictor
        found: list[Row] = predictor(questions)
        del predictor
        gc.collect()
        if (torch := _torch()).cuda.is_available():
            torch.cuda.empty_cache()
        return found


def _torch() -> t.Any:
    import torch

    return torch


def check_together(models: Sequence[SavedScoring]) -> None:
    """Raise `UserError` for models of several tasks, or of other labels."""
    first = models[0]
    for model in models[1:]:
        if model.task.name != first.task.name:
            raise UserError(
                f"{model.name}={model.folder}: is of the task {model.task.name}, and {first.name} of "
                f"{first.task.name}; expected models of one task."
            )
        own, other = (set(m.meta.get("labels") or ()) for m in (model, first))
        if own != other:
            raise UserError(
                f"{model.name}={model.folder}: has the labels {', '.join(sorted(own))}, and {first.name} "
                f"{', '.join(sorted(other))}; expected models of the same labels."
            )


class RowsToScore:
    """Rows with true answers, as the task reads them; ``dropped`` are those that cannot be used."""

    def __init__(self, model: SavedScoring) -> None:
        self.task, self.options, self.meta = model.task, model.reading, model.meta
        self.rows: list[Row] = []
        self.dropped: dict[str, int] = {}
        self._read = self.task.reader(self.options)
        self._spellings = Spellings(getattr(self.options, "equal_labels", "exact"))
        for label in self.meta.get("labels") or ():
            self._spellings(label)

    def add(self, values: Mapping[str, t.Any], where: str, row_id: str) -> None:
        """Read a row. Raises `UserError` for one that is wrong, or has a label that the model does not know."""
        try:
            row = self.task.spelt(self._read(values, where), self._spellings)
            check_text(self.task.identity(row), self.task.reference(row) or "", *self.task.labels(row))
        except Drop as e:
            self.dropped[str(e)] = self.dropped.get(str(e), 0) + 1
            return
        except Refuse as e:
            raise UserError(
                f"{where}: {e.problem}{f': {e.found}' if e.found else ''}. Mend or remove the row."
            ) from None
        known = self.meta.get("labels")
        if unknown := [label for label in self.task.labels(row) if known and not self._knows(label, known)]:
            raise UserError(
                f"{where}: has the label {excerpt(unknown[0])}, which the models do not know; expected one of "
                f"{', '.join(known or ())}."
            )
        row.pop("notes", None)
        self.rows.append({"row_id": row_id, **row})

    def _knows(self, label: str, known: Sequence[str]) -> bool:
        return label in known or any(tag.partition("-")[2] == label for tag in known)


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """Evaluations of models by the same rows, the first one being what others are held against."""

    models: Mapping[str, Evaluation]
    seed: int

    @property
    def first(self) -> str:
        return next(iter(self.models))

    def gains(self) -> dict[str, dict[str, tuple[AnyMetric, tuple[float, tuple[float, float]] | None]]]:
        """By metric and other model: how far that is above the first one, with its paired interval."""
        base = self.models[self.first]
        found: dict[str, dict[str, t.Any]] = {}
        for metric in base.records:
            for name, other in self.models.items():
                before, after = (self._parts(metric.name, evaluation) for evaluation in (base, other))
                if name != self.first and before is not None and after is not None:
                    found.setdefault(metric.name, {})[name] = (metric, bootstrap.difference(before, after, self.seed))
        return found

    def _parts(self, metric: str, found: Evaluation) -> t.Any:
        return found.row_parts if metric == found.headline.name else found.parts.get(metric)

    def as_json(self) -> dict[str, t.Any]:
        """What metrics.json holds."""
        base = self.models[self.first]
        return {
            "main": [metric.name for metric in base.main],
            "headline": base.headline.name,
            "test_rows": len(base.row_parts),
            "models": {
                name: {
                    "metrics": dict(found.metrics),
                    "intervals": {key: list(value) for key, value in found.intervals.items()},
                }
                for name, found in self.models.items()
            },
            "gains": {
                metric: {
                    name: None if found is None else {"value": found[0], "interval": list(found[1])}
                    for name, (_, found) in by.items()
                }
                for metric, by in self.gains().items()
            },
            "notes": list(base.details.get("notes", ())),
        }

    def sentences(self) -> list[str]:
        """One for each gain."""
        return [
            f"{metric.title}, {name}: {metric.gain_in_words(*(found or (None, None)))}"
            for by in self.gains().values()
            for name, (metric, found) in by.items()
        ]

    def page(self, task: Task, places: Mapping[str, str], dropped: Mapping[str, int]) -> str:
        """The report, as HTML."""
        from jinja2 import Environment

        base = self.models[self.first]
        notes = [*base.details.get("notes", ()), *(f"left out: {rows} rows, {why}" for why, rows in dropped.items())]
        return (
            Environment(autoescape=True)
            .from_string(files(__package__).joinpath(PAGE).read_text("utf-8"))
            .render(
                task=task.name.replace("_", " ").capitalize(),
                names=list(self.models),
                rows=f"{len(base.row_parts):,}",
                lines=[self._line(metric) for metric in base.records],
                gains=self.sentences(),
                notes=notes,
                places=places,
            )
        )

    def _line(self, metric: AnyMetric) -> dict[str, t.Any]:
        values = [found.metrics.get(metric.name) for found in self.models.values()]
        best = metric.best(values)
        cells = [
            {
                "value": metric.number(value),
                "interval": " to ".join(metric.number(bound) for bound in found.intervals.get(metric.name, ())),
                "best": value is not None and value == best,
            }
            for value, found in zip(values, self.models.values(), strict=True)
        ]
        return {"title": metric.title, "note": metric.note, "cells": cells}
