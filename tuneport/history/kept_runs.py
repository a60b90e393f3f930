"""Runs that are kept: found by name, read, removed."""

from __future__ import annotations

import dataclasses as dc
import shutil
import typing as t
from collections.abc import Iterator
from pathlib import Path

from tuneport.artifacts import MANIFEST
from tuneport.errors import UserError, did_you_mean
from tuneport.json_yaml import read_json
from tuneport.runner import run_record, score_table
from tuneport.runner.cache import RECORD
from tuneport.runner.ending import warnings_of
from tuneport.runner.run import LATEST, point_latest
from tuneport.runner.run_record import RunRecord
from tuneport.runner.score_table import Scores
from tuneport.runner.shared_stages import others

ROOT = "runs"


@dc.dataclass(frozen=True, kw_only=True)
class KeptRun:
    """A run and what it left."""

    folder: Path
    record: RunRecord

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def outputs(self) -> dict[str, Path]:
        """The folders that are whole, by the output's name."""
        found = sorted(self.folder.glob(f"*/*/{MANIFEST}"))
        return {path.parent.name: path.parent for path in found if not path.parent.name.startswith(".")}

    @property
    def evaluation(self) -> Path | None:
        """The folder of the evaluation; None where there is none."""
        return next((path for path in self.outputs.values() if (path / score_table.FILE).is_file()), None)

    @property
    def scores(self) -> Scores | None:
        return score_table.read(self.evaluation) if self.evaluation else None

    @property
    def parameters(self) -> dict[str, t.Any]:
        """Every parameter of the stages that are done, by name, without secrets."""
        return self._of_stages("parameters")

    @property
    def data(self) -> dict[str, str]:
        """The digest of what the user supplied, by the input's name: data and base model."""
        return {name: digest for name, digest in self._of_stages("inputs").items() if name not in self.outputs}

    @property
    def versions(self) -> dict[str, str]:
        """The versions of libraries, and of what was fetched from a hub."""
        return self._of_stages("libraries") | self._of_stages("origins")

    @property
    def warnings(self) -> dict[str, list[str]]:
        return warnings_of(self.record.stages, self.folder)

    def _of_stages(self, part: str) -> dict[str, t.Any]:
        found: dict[str, t.Any] = {}
        for stage in self.record.stages:
            try:
                found |= read_json(self.folder / stage / RECORD)[part]
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def as_json(self) -> dict[str, t.Any]:
        """The run as `tuneport runs show --json` prints it."""
        scores = self.scores
        return {
            "name": self.name,
            "run": str(self.folder),
            **{f: getattr(self.record, f) for f in ("pipeline", "status", "started", "seconds", "values")},
            "metrics": {} if scores is None else {name: dict(values) for name, values in scores.values.items()},
            "verdict": scores.verdict if scores else None,
            "data": self.data,
            "outputs": {name: str(path) for name, path in self.outputs.items()},
            "warnings": [{"stage": stage, "text": text} for stage, texts in self.warnings.items() for text in texts],
        }


def listed(root: Path, pipeline: str | None = None) -> Iterator[KeptRun]:
    """The runs below ``root``, such as runs/, those of one pipeline or of all; the newest of each first."""
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if pipeline is None or folder.name == pipeline:
            for run in others(folder, folder) if folder.is_dir() else ():
                if record := run_record.read(run):
                    yield KeptRun(folder=run, record=record)


def find(text: str, root: Path) -> KeptRun:
    """A run by its folder, its name, or ``PIPELINE/NAME`` below ``root``; ``latest`` is the one that began last.

    Raises `UserError` where there is none, or more than one.
    """
    for folder in (Path.cwd() / text, root / text):
        if record := run_record.read(folder.resolve()):
            return KeptRun(folder=folder.resolve(), record=record)
    known = list(listed(root))
    if text == LATEST and known:
        return max(known, key=lambda run: run.record.started)
    named = [run for run in known if run.name == text]
    if len(named) == 1:
        return named[0]
    if named:
        raise UserError(f"{text}: is a run of {', '.join(run.record.pipeline for run in named)}. Name PIPELINE/NAME.")
    there = ", ".join(run.name for run in known[:10]) or "none"
    guess = did_you_mean(text, [run.name for run in known])
    raise UserError(f"{text}: no such run; expected a run's folder, or the name of one in {root}: {there}.{guess}")


def remove(run: KeptRun) -> None:
    """Delete a run; the link `latest` names the newest that is left. What other runs share of it stays.

    Raises `UserError` where it is at work.
    """
    if run_record.is_locked(run.folder):
        raise UserError(f"{run.folder}: is at work. Stop it, then remove it.")
    shutil.rmtree(run.folder)
    link = run.folder.parent / LATEST
    if link.is_symlink() and not link.exists():
        link.unlink()
        if newest := next(others(run.folder.parent, run.folder), None):
            point_latest(run.folder.parent, newest)
