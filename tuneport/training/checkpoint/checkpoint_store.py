"""Checkpoints in an object store: they outlive the machines that wrote them, which share no folder. No torch.

Each process puts there what it wrote; rank 0 brings what it lacks to its disk, seals the checkpoint as it would have
done alone, and puts the manifest there last.
"""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneport import stored_artifacts
from tuneport.address import Address
from tuneport.artifacts import MANIFEST, SEAL, Artifact, write_atomically
from tuneport.digests import sha256
from tuneport.stored_artifacts import PATIENCE_SECONDS, Entries, StoredFolder


@dc.dataclass(frozen=True)
class CheckpointStore:
    """An address under which each checkpoint stands in a folder of its name.

    Each method raises `UserError` where the store refuses, or stays away for ``patience`` seconds.
    """

    address: Address
    patience: float = PATIENCE_SECONDS
    sent: dict[str, str] = dc.field(default_factory=dict, compare=False)  # by checkpoint, the digest of its manifest

    def of(self, name: str) -> Address:
        """Where a checkpoint stands."""
        return self.address.child(name)

    def names(self) -> list[str]:
        """The checkpoints that have a manifest."""
        found = StoredFolder(self.address, self.patience).sizes()
        return [folder for name in found for folder, slash, file in [name.partition("/")] if slash and file == MANIFEST]

    def holds(self, checkpoint: Artifact) -> bool:
        """Whether it is this very checkpoint that stands there, by its manifest."""
        folder = StoredFolder(self.of(checkpoint.path.name), self.patience)
        return MANIFEST in folder.sizes() and folder.read(MANIFEST) == (checkpoint.path / MANIFEST).read_bytes()

    def put(self, name: str, files: Mapping[str, Path]) -> None:
        """Put files of this process there, for a checkpoint that is not sealed yet."""
        self.sent.pop(name, None)
        folder = StoredFolder(self.of(name), self.patience)
        for file, path in files.items():
            folder.put(path, file)

    def bring(self, name: str, place: Path, files: Entries) -> None:
        """Bring those files of other processes here that another machine has put there."""
        folder = StoredFolder(self.of(name), self.patience)
        for file, entry in files.items():
            if not (place / file).is_file():
                folder.fetch(file, entry["size"], place / file)

    def fetch(self, checkpoint: Artifact) -> None:
        """Bring a sealed checkpoint to its place. Raises `NotWhole` where a file is missing, truncated or altered."""
        stored_artifacts.fetch(checkpoint, self.of(checkpoint.path.name), self.patience)
        write_atomically(checkpoint.path / SEAL, sha256(checkpoint.path / MANIFEST))

    def mirror(self, checkpoints: Sequence[Artifact], put: Mapping[str, Entries]) -> None:
        """Let the store hold just these checkpoints. ``put``: by checkpoint, what other processes have put there."""
        for checkpoint in checkpoints:
            name, digest = checkpoint.path.name, sha256(checkpoint.path / MANIFEST)
            if self.sent.get(name) != digest:
                stored_artifacts.send(checkpoint, self.of(name), known=put.get(name, {}), patience=self.patience)
                self.sent[name] = digest
        self._keep({checkpoint.path.name for checkpoint in checkpoints})

    def clear(self) -> None:
        """Delete all that is there."""
        self.sent.clear()
        self._keep(set())

    def _keep(self, names: set[str]) -> None:
        folder = StoredFolder(self.address, self.patience)
        spare = [file for file in folder.sizes() if "/" in file and file.partition("/")[0] not in names]
        folder.delete(sorted(spare, key=lambda file: not file.endswith(f"/{MANIFEST}")))  # whole or no checkpoint
