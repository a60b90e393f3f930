"""Checkpoints on the disk: whole or absent, found again after a crash, deleted when there are too many. No torch."""

from __future__ import annotations

import dataclasses as dc
import json
import logging
import os
import shutil
import threading
import typing as t
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import tuneport
from tuneport import stored_artifacts
from tuneport.artifacts import (
    MANIFEST,
    SEAL,
    Artifact,
    entries,
    read_manifest,
    verify,
    write_atomically,
    write_manifest,
)
from tuneport.digests import sha256
from tuneport.errors import UserError
from tuneport.links import link_or_copy
from tuneport.stored_artifacts import NotWhole
from tuneport.training.checkpoint.checkpoint_store import CheckpointStore

log = logging.getLogger("tuneport.finetune")

PREFIX = "checkpoint-"
LATEST = "LATEST"
BEST = "BEST"
TRAINER_STATE = "trainer_state.json"  # transformers' own name
RUN_STATE = "run_state.json"  # what transformers' checkpoints lack


class Checkpoint(Artifact):
    """All that a training needs to go on as if it had never stopped."""

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix(PREFIX))

    def best_step(self) -> int | None:
        """The step whose weights were the best ones when this checkpoint was written."""
        found: int | None = json.loads((self.path / TRAINER_STATE).read_text("utf-8"))["best_global_step"]
        return found

    def is_resumable(self) -> bool:
        """Whether it holds the states of a training beside the weights; also true of one whose manifest is damaged."""
        try:
            return RUN_STATE in read_manifest(self)["files"]
        except UserError:
            return True

    def damage(self) -> str:
        """What is wrong with its files, or an empty string: every byte is held against the manifest."""
        try:
            if sha256(self.path / MANIFEST) != (self.path / SEAL).read_text("ascii"):
                return f"{self.path / MANIFEST}: does not match {SEAL}"
            verify(self)
        except UserError as e:
            return str(e).partition(" Run the step")[0].rstrip(".")
        except (OSError, ValueError) as e:
            return f"{self.path}: {e}"
        return ""


@dc.dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """A folder of checkpoints named ``checkpoint-<step>``, and the pointers `LATEST` and `BEST` to two of them.

    ``parameters`` and ``inputs`` go into every manifest; ``limit`` is the most checkpoints to keep, None for all.
    ``states_of_all``: whether older ones keep what only a resume needs. ``store``: where checkpoints stand as well, of
    machines that share no folder; what each process wrote meets there.
    """

    path: Path
    parameters: Mapping[str, t.Any] = dc.field(default_factory=dict)
    inputs: Mapping[str, str] = dc.field(default_factory=dict)
    limit: int | None = None
    states_of_all: bool = True
    store: CheckpointStore | None = None
    moving: threading.Lock = dc.field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def checkpoint(self, step: int) -> Checkpoint:
        return Checkpoint(self.path / f"{PREFIX}{step}")

    def all(self) -> list[Checkpoint]:
        """The checkpoints by step, newest first; nothing is verified."""
        if not self.path.is_dir():
            return []
        names = [p for p in self.path.iterdir() if p.name.startswith(PREFIX) and p.name[len(PREFIX) :].isdigit()]
        return sorted(map(Checkpoint, names), key=lambda c: c.step, reverse=True)

    def begin(self, step: int) -> Path:
        """Return an empty folder, beside its place, to write a checkpoint to."""
        partial = self.partial(step)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def partial(self, step: int) -> Path:
        """Where a checkpoint is written before it is moved into its place."""
        return _beside(self.checkpoint(step).path, "partial")

    @contextmanager
    def in_place(self, step: int) -> Iterator[Path]:
        """Where a checkpoint is, perhaps still being written; none is moved or given up while this is entered."""
        with self.moving:
            final = self.checkpoint(step).path
            yield final if final.is_dir() else self.partial(step)

    def part(self, step: int, names: Iterable[str]) -> dict[str, dict[str, t.Any]]:
        """By name, the manifest's entries of files that this process wrote since `begin`; they are on the disk then,
        and in the store where there is one."""
        paths = {name: self.partial(step) / name for name in names}
        for path in paths.values():
            _fsync(path)
        found = entries(paths)
        if self.store is not None:
            self.store.put(self.checkpoint(step).path.name, paths)
        return found

    def publish(self, step: int, best: int | None, parts: Mapping[str, Mapping[str, t.Any]] | None = None) -> None:
        """Seal what was written since `begin`, put it in its place in one move, and delete what is one too many.

        ``parts``: what `part` said to the other processes.
        """
        partial = Checkpoint(self.partial(step))
        if self.store is not None:
            self.store.bring(self.checkpoint(step).path.name, partial.path, parts or {})
        write_manifest(partial, "finetune", tuneport.__version__, self.parameters, self.inputs, known=parts)
        self._place(step, synced=parts or {})
        write_atomically(self.path / LATEST, self.checkpoint(step).path.name)
        if best is not None:
            write_atomically(self.path / BEST, self.checkpoint(best).path.name)
        self._rotate({step, best})
        for checkpoint in () if self.states_of_all else self.all():
            if checkpoint.step != step and checkpoint.is_resumable():
                self._drop_states(checkpoint)
        if self.store is not None:
            self.store.mirror(self.all(), {self.checkpoint(step).path.name: parts or {}})

    def _place(self, step: int, synced: Container[str]) -> None:
        """Seal the manifest of what was written since `begin`, and put all in its place in one move."""
        final = self.checkpoint(step).path
        partial, old = self.partial(step), _beside(final, "old")
        write_atomically(partial / SEAL, sha256(partial / MANIFEST))
        for path in (*partial.rglob("*"), partial):
            if path.relative_to(partial).as_posix() not in synced:
                _fsync(path)
        with self.moving:
            if final.exists():  # written at the same step before: an evaluation came after it
                final.replace(old)
            partial.replace(final)
        _fsync(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def _drop_states(self, checkpoint: Checkpoint) -> None:
        """Put the same checkpoint without its states in a checkpoint's place; its files are linked, not read."""
        if checkpoint.damage():
            return
        manifest, partial = read_manifest(checkpoint), self.begin(checkpoint.step)
        kept = {name: entry for name, entry in manifest["files"].items() if not _is_state(name)}
        for name in kept:
            (partial / name).parent.mkdir(exist_ok=True)
            link_or_copy(str(checkpoint.path / name), str(partial / name))
        inputs, version = manifest["inputs"], manifest["producer"]["version"]
        write_manifest(Checkpoint(partial), "finetune", version, manifest["parameters"], inputs, known=kept)
        self._place(checkpoint.step, synced=())

    def abandon(self, step: int) -> None:
        """Delete what was written since `begin`."""
        with self.moving:
            shutil.rmtree(self.partial(step), ignore_errors=True)

    def _rotate(self, kept: Iterable[int | None]) -> None:
        if self.limit is None:
            return
        spare = [c for c in self.all() if c.step not in set(kept)]
        room = max(0, self.limit - (len(self.all()) - len(spare)))
        for checkpoint in spare[room:]:
            shutil.rmtree(checkpoint.path, ignore_errors=True)

    def tidy(self) -> None:
        """Clear away what a killed process left: folders half written, or moved aside and not yet deleted."""
        for path in self.path.glob(f".{PREFIX}*.old"):
            place = path.with_name(path.name.removeprefix(".").removesuffix(".old"))
            if place.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.replace(place)
        for path in self.path.glob(f".{PREFIX}*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def last_whole(self) -> Checkpoint | None:
        """The newest resumable checkpoint that is whole and whose best one is, too; each that is damaged is named."""
        for checkpoint in self.all():
            if not checkpoint.is_resumable():
                continue
            damage = checkpoint.damage()
            if not damage and (best := checkpoint.best_step()) is not None and best != checkpoint.step:
                damage = self.checkpoint(best).damage()
            if not damage:
                return checkpoint
            log.warning("%s is skipped, as a file is damaged or missing: %s", checkpoint.path.name, damage)
        return None

    def take(self) -> None:
        """Bring the newest whole checkpoint of the store, and its best one, to this disk, unless it has one so new.

        Older ones are not brought, so that the store's are deleted once it mirrors this folder; each that is damaged is
        named.
        """
        if self.store is None:
            return
        own = self.last_whole()
        steps = sorted((int(s) for n in self.store.names() if (s := n.removeprefix(PREFIX)).isdigit()), reverse=True)
        for step in steps:
            if own is not None and own.step >= step:
                return
            try:
                if RUN_STATE not in stored_artifacts.listed(Checkpoint, self.store.of(f"{PREFIX}{step}"))[1]:
                    continue  # weights alone
                self.fetch(step)
                if best := self.checkpoint(step).best_step():
                    self.fetch(best)
            except NotWhole as e:
                log.warning("%s%d is skipped, as a file is damaged or missing: %s", PREFIX, step, e)
                continue
            if older := [f"{PREFIX}{s}" for s in steps if s not in (step, best) and s < step]:
                log.info("of the store, %s go, as they are older than %s%d", ", ".join(older), PREFIX, step)
            return

    def fetch(self, step: int) -> None:
        """Bring a checkpoint of the store to this disk, unless just that one is here and whole.

        Another one of the same step may be: of before an evaluation, or of when rank 0 was here.
        """
        checkpoint = self.checkpoint(step)
        if checkpoint.path.is_dir():
            if not checkpoint.damage() and (self.store is None or self.store.holds(checkpoint)):
                return
            shutil.rmtree(checkpoint.path)
        if self.store is not None:
            self.store.fetch(checkpoint)

    def keep_up_to(self, last: Checkpoint | None) -> None:
        """Delete the checkpoints that are newer than ``last`` (None: every one): training writes them again."""
        for checkpoint in self.all():
            if last is None or checkpoint.step > last.step:
                shutil.rmtree(checkpoint.path)
        latest, best = (last.step, last.best_step()) if last else (None, None)
        for pointer, step in ((LATEST, latest), (BEST, best)):
            if step is None:
                (self.path / pointer).unlink(missing_ok=True)
            else:
                write_atomically(self.path / pointer, self.checkpoint(step).path.name)

    def bring(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint of another folder, and its best one, into this one; files are linked where they can be."""
        self.path.mkdir(parents=True, exist_ok=True)
        theirs = CheckpointFolder(path=checkpoint.path.parent)
        for step in {checkpoint.step, checkpoint.best_step() or checkpoint.step}:
            final = self.checkpoint(step).path
            partial = self.partial(step)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(theirs.checkpoint(step).path, partial, copy_function=link_or_copy)
            partial.replace(final)
        self.keep_up_to(self.checkpoint(checkpoint.step))


def _is_state(name: str) -> bool:
    """Whether a file of a checkpoint is needed for a resume alone."""
    return name == RUN_STATE or Path(name).suffix in (".pt", ".pth")


def origin(checkpoint: Checkpoint) -> tuple[dict[str, t.Any], dict[str, str]]:
    """The parameters and the digests of the inputs that a checkpoint was trained with."""
    manifest = read_manifest(checkpoint)
    return manifest["parameters"], manifest["inputs"]


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
