"""A model's answers, kept in the stage's output for the next evaluation into the same place or of another run.

A base model answers the same whatever was tuned from it. Its answers count again only where all that they follow from
is the same: weights, rows, tokenizer, settings, type, device, code and libraries.
"""

from __future__ import annotations

import hashlib
import json
import typing as t
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from tuneport.artifacts import Artifact, digest, read_manifest, write_atomically
from tuneport.digests import sha256
from tuneport.json_yaml import read_json, to_json
from tuneport.tasks.task import Row

FOLDER = "base_answers"
ANSWERS, KEY = "answers.jsonl", "key.json"
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class KeptAnswers:
    """The answers in a stage's output folder, and all that they follow from, as JSON."""

    def __init__(self, output: Path, follows_from: Mapping[str, t.Any]) -> None:
        self.folder = output / FOLDER
        self.key = json.loads(json.dumps(follows_from, sort_keys=True))

    def read(self) -> list[Row] | None:
        """What an earlier run wrote; None where it followed from something else, or is not whole."""
        file = self.folder / ANSWERS
        try:
            known = read_json(self.folder / KEY)
            if known["follows_from"] != self.key or known["sha256"] != sha256(file):
                return None
            return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, answers: Sequence[Row]) -> None:
        """Keep answers, in the place of others."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / KEY).unlink(missing_ok=True)
        text = "".join(json.dumps(answer) + "\n" for answer in answers)
        write_atomically(self.folder / ANSWERS, text)
        known = {"follows_from": self.key, "sha256": sha256(self.folder / ANSWERS)}
        write_atomically(self.folder / KEY, to_json(known, indent=1))


def provenance(model: Artifact, rows: Artifact, tokenizer: Artifact) -> dict[str, t.Any]:
    """The digests of what a model's answers follow from, and the versions of what computes them."""
    import torch

    prepared, tuned = (read_manifest(artifact)["files"] for artifact in (rows, tokenizer))
    test = {name: entry["sha256"] for name, entry in prepared.items() if Path(name).name.startswith("test-")}
    return {
        "model": digest(model),
        "rows": {**test, "dataset.json": prepared["dataset.json"]["sha256"]},
        "tokenizer": {name: tuned[name]["sha256"] for name in TOKENIZER if name in tuned},
        "libraries": {name: version(name) for name in LIBRARIES},
        "code": _code(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _code() -> str:
    """One SHA-256 over tuneport's own modules."""
    total = hashlib.sha256()
    root = Path(str(files("tuneport")))
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root)}\0{sha256(path)}\n".encode())
    return total.hexdigest()
