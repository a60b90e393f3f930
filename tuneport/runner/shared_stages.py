"""A stage that another run of the same pipeline has done: its outputs are linked into this run's folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tuneport.artifacts import Artifact, write_atomically
from tuneport.errors import UserError
from tuneport.json_yaml import read_json
from tuneport.links import link_tree
from tuneport.runner import cache, run_record


def others(siblings: Path | None, own: Path) -> Iterator[Path]:
    """The folders of the other runs of a pipeline, the one that began last first."""
    if siblings is None or not siblings.is_dir():
        return
    known = {
        folder: record.started
        for folder in siblings.iterdir()
        if folder != own and not folder.is_symlink() and (record := run_record.read(folder))
    }
    yield from sorted(known, key=lambda folder: known[folder], reverse=True)


def take_done(
    runs: Iterator[Path], own: Path, record: cache.Record, outputs: Mapping[str, Artifact], log: Path
) -> str | None:
    """Link what another run's stage wrote, if it would be the same now, and copy its log; the name of that run."""
    for run in runs:
        folder = run / own.name
        if _key(folder) == record["key"] and not cache.stale(folder, record, _of(folder, outputs)):
            _take(run, own, outputs, log)
            return run.name
    return None


def take_as_it_is(runs: Iterator[Path], own: Path, outputs: Mapping[str, Artifact], log: Path) -> str | None:
    """Link what the newest other run's stage wrote, whatever it was made from; the name of that run."""
    run = next(runs, None)
    if run is None:
        return None
    folder = run / own.name
    try:
        for artifact in _of(folder, outputs).values():
            cache.check_sizes(artifact)
    except UserError:
        return None
    _take(run, own, outputs, log)
    return run.name


def hand_on(runs: Iterator[Path], own: Path, names: Sequence[str], outputs: Mapping[str, Artifact]) -> None:
    """Link those parts of a stage's outputs that the newest other run has, for this run's stage to go on from.

    A part that is there already stays. Whether the stage can use it is for the stage to find out.
    """
    for run in runs if names else ():
        missing = [(port, name) for port in outputs for name in names if not _part(outputs[port], name)]
        for port, name in missing:
            found = run / own.name / port / name
            if found.is_dir():
                link_tree(found, _staged(outputs[port].path) / name)


def _part(artifact: Artifact, name: str) -> bool:
    return any((folder / name).is_dir() for folder in (artifact.path, _staged(artifact.path)))


def _staged(place: Path) -> Path:
    """Where an output is built before it is moved into its place."""
    return place.with_name(f".{place.name}.partial")


def _key(folder: Path) -> object:
    try:
        return read_json(folder / cache.RECORD)["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of(folder: Path, outputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    return {port: type(artifact)(folder / port) for port, artifact in outputs.items()}


def _take(run: Path, own: Path, outputs: Mapping[str, Artifact], log: Path) -> None:
    """Link a stage's outputs, each whole or not at all; then copy its log, and last the record of what it came from."""
    folder = run / own.name
    for port, artifact in outputs.items():
        place = artifact.path
        staged = _staged(place)
        shutil.rmtree(staged, ignore_errors=True)
        link_tree(folder / port, staged)
        shutil.rmtree(place, ignore_errors=True)
        staged.replace(place)
    log.parent.mkdir(parents=True, exist_ok=True)
    if (source := run / "logs" / log.name).is_file():
        shutil.copyfile(source, log)
    if (record := folder / cache.RECORD).is_file():
        write_atomically(own / cache.RECORD, record.read_text("utf-8"))
