"""Metrics of the user's own: functions in a Python file, or entry points of `tuneport.metrics`.

    def politeness(predictions, references, rows):
        return ["please" in text for text in predictions]

A function is given texts and rows in one order. It returns a number, or one number a row, which gets an interval, or
several of either by name, as a dict. With ``politeness.greater_is_better = False`` lower is better.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import math
import sys
import traceback
import typing as t
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.metrics.answers import METRIC_NAMES, AnsweredRows, named, of_rows
from tuneport.metrics.metric import AnyMetric, Metric, Undefined
from tuneport.plugins import Plugin, plugins

if t.TYPE_CHECKING:
    import numpy as np

Function = Callable[[list[str], list[str], list[dict[str, t.Any]]], t.Any]
GROUP = "tuneport.metrics"


@dataclass(frozen=True, kw_only=True)
class OwnMetric:
    """A function, by the name that a parameter, ``metrics`` or another ``option``, gives it."""

    name: str
    function: Function
    file: str
    option: str = "metrics"

    def __call__(self, rows: AnsweredRows) -> dict[str, float | np.ndarray]:
        """What it finds, by name: a number, or one of each row.

        Raises `UserError` that names the row where it fails, and for what is neither.
        """
        given = (list(rows.predicted), list(rows.truth), [dict(row) for row in rows.raw])
        try:
            found = self.function(*given)
        except Exception as e:  # the user's code may raise anything
            raise UserError(self._failure(e, self._row_that_fails(given))) from e
        several = found if isinstance(found, Mapping) else {self.name: found}
        if not several:
            raise UserError(
                f"{self.option}: '{self.name}' returned {{}} for {len(given[0]):,} rows; expected at least one "
                "number, by name."
            )
        return {str(name): self._numbers(str(name), value, len(given[0])) for name, value in several.items()}

    def _row_that_fails(self, given: tuple[list[str], list[str], list[dict[str, t.Any]]]) -> str:
        for prediction, reference, row in zip(*given, strict=True):
            try:
                self.function([prediction], [reference], [row])
            except Exception:
                return f" at {row.get('row_id', 'a row')}, whose answer is {excerpt(prediction)}"
        return ""

    def _failure(self, error: Exception, where: str) -> str:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.file]
        line = f" (line {frames[-1].lineno} of {self.file})" if frames else ""
        return f"{self.option}: '{self.name}' failed{where}: {type(error).__name__}: {error}{line}. Mend the function."

    def _numbers(self, name: str, value: t.Any, rows: int) -> float | np.ndarray:
        import numpy as np

        try:
            found = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            found = np.zeros((0, 0))
        if found.ndim == 0 and value is not None:
            return float(found)
        if found.shape != (rows,):
            raise UserError(
                f"{self.option}: '{self.name}' returned {excerpt(value)} for {name}; expected a number, or {rows:,} of "
                "them, one a row, or a dict of these."
            )
        return found


def load(text: str, file: Path | None) -> list[str | OwnMetric]:
    """What ``metrics`` names, in its order: own functions, and names of other metrics.

    Raises `UserError` where a function is not there or cannot be loaded.
    """
    declared = plugins(GROUP, METRIC_NAMES)
    return [_own(name, declared, file) or name for name in named(text)]


def origins(text: str) -> dict[str, str]:
    """Which distributions the named metrics come from, with their versions, as `Step.origins` has it."""
    declared = plugins(GROUP, METRIC_NAMES)
    found = [f"{name} of {declared[name].distribution}" for name in named(text) if name in declared]
    return {"metrics": ", ".join(found)} if found else {}


def brought() -> Collection[str]:
    """The metrics of other distributions, by name."""
    return plugins(GROUP, METRIC_NAMES).keys()


def _own(name: str, declared: Mapping[str, Plugin], file: Path | None) -> OwnMetric | None:
    place, colon, function = name.rpartition(":")
    if colon:
        return _in_file(place, function, file)
    if name not in declared:
        return None
    plugin = declared[name]
    module, _, attribute = plugin.value.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute or name)
    except Exception as e:  # whatever the code of somebody else does when it is imported
        raise UserError(plugin.refusal(f"cannot be loaded ({type(e).__name__}: {e})")) from e
    return OwnMetric(name=name, function=found, file="")


def _in_file(place: str, function: str, file: Path | None, option: str = "metrics_file") -> OwnMetric:
    if file is None:
        raise UserError(
            f"metrics: '{place}:{function}' names a function of a file, and metrics_file is not set. Set metrics_file "
            f"to the path of {place or 'the file'}, so that the stage has it wherever it runs."
        )
    loader = importlib.machinery.SourceFileLoader("tuneport_own_metrics", str(file))  # whatever the file is called
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # where dataclasses look up the names of annotations
    try:
        loader.exec_module(module)
    except Exception as e:  # the user's code may raise anything
        sys.modules.pop(loader.name, None)
        raise UserError(f"{option}={file}: cannot be loaded ({type(e).__name__}: {e}). Mend the file.") from e
    found = getattr(module, function, None)
    if not callable(found):
        there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        listed = ", ".join(there) or "none"
        raise UserError(
            f"{option}={file}: has no function '{function}'; it has: {listed}.{did_you_mean(function, there)}"
        )
    return OwnMetric(name=function, function=found, file=str(file))


def scored(own: OwnMetric, rows: AnsweredRows) -> list[AnyMetric]:
    """The records of what a function finds in written answers; it is called once."""
    found: Mapping[str, float | np.ndarray] = own(rows) if rows.predicted else {own.name: math.nan}
    better = getattr(own.function, "greater_is_better", True)
    return [_record(name, value, better=better) for name, value in found.items()]


def is_function(metric_for_best_model: str) -> bool:
    """Whether it names a function of the user's."""
    return ":" in metric_for_best_model


def chosen_function(options: t.Any) -> tuple[str, bool]:
    """Name and direction of the function that metric_for_best_model names.

    Raises `UserError` where the function is not there or cannot be loaded.
    """
    found, value = _chosen(options)
    return value or found.name, getattr(found.function, "greater_is_better", True)


def training_score(options: t.Any, rows: AnsweredRows) -> dict[str, float]:
    """What that function finds in answers to the validation rows, by its name; empty where it is undefined on them.

    Raises `UserError` where it fails, and where it gives several values of which none is named.
    """
    if options is None or not is_function(getattr(options, "metric_for_best_model", "")):
        return {}
    function, value = _chosen(options)
    records = {record.name: record for record in scored(function, rows)}
    if value is None and len(records) > 1:
        raise UserError(
            f"metric_for_best_model={options.metric_for_best_model}: returned {', '.join(records)}; say which one, as "
            f"in {options.metric_for_best_model}.{next(iter(records))}."
        )
    if value is not None and value not in records:
        raise UserError(
            f"metric_for_best_model={options.metric_for_best_model}: returned no {value}, but {', '.join(records)}."
            f"{did_you_mean(value, records)}"
        )
    record = records[value] if value else next(iter(records.values()))
    try:
        return {value or function.name: float(record.compute(rows))}
    except Undefined:
        return {}


def check_choice(options: t.Any, metrics: Collection[str], *, files: bool) -> None:
    """Raise `UserError` for a function that cannot choose a checkpoint; it is looked for with ``files``.

    ``metrics``: the names of the task's own.
    """
    name, file = getattr(options, "metric_for_best_model", ""), getattr(options, "validation_metric_file", None)
    if not is_function(name):
        if file is not None:
            raise UserError(
                f"validation_metric_file={file}: has no effect with metric_for_best_model={name}; set that to "
                f"{file.path.name}:function, or leave the file out."
            )
        return
    if file is None:
        raise UserError(
            f"metric_for_best_model={name}: names a function of a file, and validation_metric_file is not set. Set "
            "it to the path of the file, so that the stage has it wherever it runs."
        )
    if not files:
        return
    found, _ = chosen_function(options)
    if found in metrics:
        raise UserError(
            f"metric_for_best_model={name}: '{found}' is the name of another metric; give the function another one."
        )


def _chosen(options: t.Any) -> tuple[OwnMetric, str | None]:
    """The function that metric_for_best_model names, and which value of a dict that it returns."""
    name: str = options.metric_for_best_model
    place, _, function = name.rpartition(":")
    function, _, value = function.partition(".")
    return _loaded(place, function, options.validation_metric_file.path), value or None


@cache
def _loaded(place: str, function: str, file: Path) -> OwnMetric:
    """Loaded once a process, as it may hold a model that judges."""
    return replace(_in_file(place, function, file, "validation_metric_file"), option="metric_for_best_model")


def _record(name: str, value: float | np.ndarray, *, better: bool) -> AnyMetric:
    title = name.replace("_", " ").capitalize()
    if not isinstance(value, float):
        claim = (f"has a {name} of", "one of")
        return of_rows(name, title, lambda rows: value, claim, percent=False, greater_is_better=better)

    def compute(rows: AnsweredRows) -> float:
        if not rows.predicted:
            raise Undefined("no text was written")
        return value

    return Metric(name=name, title=title, compute=compute, greater_is_better=better, resampled=False)
