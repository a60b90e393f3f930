"""The alias `champion` of a registered model: it moves only to a version that beats its present one on the same rows.

A registry has no lock. So each version that may become the champion first leaves a claim, a tag with the version that
was champion then; who writes the alias looks at all recent claims again afterwards, and decides as if the versions had
come one after another, in the order of their numbers. So whoever writes last, all come to the same version.
"""

from __future__ import annotations

import json
import time
import typing as t
from collections.abc import Mapping
from dataclasses import dataclass

from tuneport.metrics import bootstrap

if t.TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "champion"
CLAIM_TAG = "tuneport.champion_claim"  # VERSION of the champion then, 0 for none, and the time: 3@1760000000
CONCURRENT_SECONDS = 600.0  # claims that are older belong to another decision
ROUNDS = 20
SEED = 0

Scores = Mapping[str, t.Any]  # what row_scores.json holds


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What became of a version: whether it is the champion now, and why, in words."""

    is_champion: bool
    reason: str


def place_of(digest: str) -> str:
    """Where a run keeps the row scores of a model that was registered, by the model's digest."""
    return f"registered/{digest}.json"


def challenge(client: MlflowClient, name: str, version: int, scores: Mapping[int, Scores | None]) -> Decision:
    """Give a version the alias where it beats the present champion; ``scores``: of versions, None where unknown."""
    mine = str(version)
    before = _champion(client, name)
    if before == version:
        return Decision(is_champion=True, reason="it is the champion already")
    client.set_model_version_tag(name, mine, CLAIM_TAG, f"{before}@{time.time():.3f}")
    from mlflow.exceptions import MlflowException

    refused: Exception | None = None
    for _ in range(ROUNDS):
        winner, rivals, reason = _decided(client, name, before, scores)
        now = _champion(client, name)
        if now == winner or now not in {before, *rivals}:
            return Decision(is_champion=now == version, reason=reason)
        try:
            client.set_registered_model_alias(name, ALIAS, str(winner))
        except MlflowException as e:  # MLflow's store refuses the one of two that set an alias for the first time
            refused = e
    raise refused or RuntimeError(f"the alias {ALIAS} of {name} does not come to rest")


def _decided(
    client: MlflowClient, name: str, before: int, scores: Mapping[int, Scores | None]
) -> tuple[int, set[int], str]:
    """The champion after ``before``, by all claims of late, the claims' versions, and why the last one won or not."""
    winner, reason, seen = before, "", set[int]()
    while rivals := _claims(client, name, winner) - seen:
        seen |= rivals
        base = winner
        for rival in sorted(rivals):
            won, said = beats(scores[rival], scores[winner] if winner else None, is_first=not winner)
            reason = f"version {rival} beside version {winner}: {said}" if winner else said
            winner = rival if won else winner
        if winner == base:
            break
    return winner, seen, reason


def beats(new: Scores | None, old: Scores | None, *, is_first: bool = False) -> tuple[bool, str]:
    """Whether a model's row scores are clearly better than another's, by the paired 95 % interval, and why."""
    if is_first:
        return True, "there was no champion"
    if new is None or old is None:
        return False, "the scores of its rows are not known"
    if (new["metric"], new["rows"]) != (old["metric"], old["rows"]):
        return False, "they were not scored by the same metric on the same rows"
    found = bootstrap.difference(old["parts"], new["parts"], SEED)
    if found is None:
        return False, "the difference cannot be computed"
    gain, (low, high) = found
    won = low > 0 if new["greater_is_better"] else high < 0
    return won, f"{new['metric']} {gain:+.4f} ({low:+.4f} to {high:+.4f})"


class KnownScores(Mapping[int, "Scores | None"]):
    """The row scores of a registered model's versions, read from their runs when they are asked for."""

    def __init__(self, client: MlflowClient, name: str, digest_tag: str) -> None:
        self.client, self.name, self.digest_tag = client, name, digest_tag
        self.read: dict[int, Scores | None] = {}

    def __getitem__(self, version: int) -> Scores | None:
        if version not in self.read:
            self.read[version] = self._read(self.client.get_model_version(self.name, str(version)))
        return self.read[version]

    def __len__(self) -> int:
        return len(self.read)

    def __iter__(self) -> t.Iterator[int]:
        return iter(self.read)

    def _read(self, version: ModelVersion) -> Scores | None:
        import tempfile
        from pathlib import Path

        from mlflow.exceptions import MlflowException

        digest = version.tags.get(self.digest_tag)
        if digest is None or not version.run_id:
            return None
        with tempfile.TemporaryDirectory(prefix="tuneport-") as folder:
            try:
                file = self.client.download_artifacts(version.run_id, place_of(digest), folder)
                found: Scores = json.loads(Path(file).read_text("utf-8"))
            except (MlflowException, OSError, ValueError):  # another program registered it
                return None
        return found


def _champion(client: MlflowClient, name: str) -> int:
    """The present champion's version; 0: there is none."""
    aliases = client.get_registered_model(name).aliases
    return int(aliases.get(ALIAS, 0))


def _claims(client: MlflowClient, name: str, before: int) -> set[int]:
    """The versions that claimed the alias lately, when ``before`` had it."""
    quote = '"' if "'" in name else "'"
    found = set()
    for version in client.search_model_versions(f"name={quote}{name}{quote}"):
        base, _, at = version.tags.get(CLAIM_TAG, "").partition("@")
        if at and int(base) == before and time.time() - float(at) < CONCURRENT_SECONDS:
            found.add(int(version.version))
    return found
