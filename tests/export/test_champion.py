"""The alias champion: it moves to what is clearly better on the same rows, also where two come at once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from tuneport.export import champion

NAME = "it's a model"


def scores(right: int, rows: str = "r") -> dict[str, Any]:
    """Of 100 rows, so many answered right."""
    parts = [[float(i < right), 1.0] for i in range(100)]
    return {"metric": "accuracy", "greater_is_better": True, "rows": rows, "parts": parts}


@pytest.fixture
def registry(mlflow_store: Callable[[Path], str], tmp_path: Path) -> SimpleNamespace:
    client = MlflowClient(mlflow_store(tmp_path))
    client.create_registered_model(NAME)

    def version() -> int:
        return int(client.create_model_version(NAME, str(tmp_path)).version)

    return SimpleNamespace(client=client, version=version)


def now(registry: SimpleNamespace) -> int:
    return int(registry.client.get_registered_model(NAME).aliases.get("champion", 0))


def test_the_first_version_is_champion_and_only_a_clearly_better_one_follows(registry: SimpleNamespace) -> None:
    known: dict[int, Any] = {}

    def challenge(given: Any) -> champion.Decision:
        version = registry.version()
        known[version] = given
        return champion.challenge(registry.client, NAME, version, known)

    assert challenge(scores(50)).is_champion and now(registry) == 1
    found = challenge(scores(51))
    assert not found.is_champion and "version 2 beside version 1: accuracy +0.0100 (" in found.reason
    assert challenge(scores(80)).is_champion and now(registry) == 3
    assert "same metric on the same rows" in challenge(scores(99, "others")).reason
    assert "not known" in challenge(None).reason
    assert not challenge(scores(50)).is_champion and now(registry) == 3
    assert champion.challenge(registry.client, NAME, 3, known).reason == "it is the champion already"


def test_lower_is_better_where_the_metric_says_so() -> None:
    low, high = ({**scores(n), "metric": "loss", "greater_is_better": False} for n in (20, 80))
    assert champion.beats(low, high)[0] and not champion.beats(high, low)[0]


def test_an_alias_that_a_person_moved_back_stays_until_something_beats_it(
    registry: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {1: scores(50), 2: scores(80), 3: scores(51)}
    for version in (1, 2):
        registry.version()
        champion.challenge(registry.client, NAME, version, known)
    registry.client.set_registered_model_alias(NAME, "champion", "1")
    start = time.time()
    monkeypatch.setattr(champion.time, "time", lambda: start + 3600)
    registry.version()
    assert not champion.challenge(registry.client, NAME, 3, known).is_champion and now(registry) == 1


@pytest.mark.parametrize("pause", ["set_model_version_tag", "search_model_versions", "set_registered_model_alias"])
@pytest.mark.parametrize("better", [2, 3])
def test_of_two_at_once_the_better_one_wins_whoever_is_slower(
    pause: str, better: int, registry: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them stops before a call until the other is through."""
    for _ in range(3):
        registry.version()
    known = {1: scores(40), 2: scores(60), 3: scores(60), better: scores(90)}
    champion.challenge(registry.client, NAME, 1, known)
    through = threading.Event()
    call = getattr(MlflowClient, pause)

    class Slow(MlflowClient):
        pass

    def waits(self: Any, *args: Any, **kwargs: Any) -> Any:
        through.wait(60)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Slow, pause, waits, raising=False)
    slow = Slow(registry.client._tracking_client.tracking_uri)
    with ThreadPoolExecutor() as pool:
        second = pool.submit(champion.challenge, slow, NAME, 2, known)
        champion.challenge(registry.client, NAME, 3, known)
        through.set()
        second.result()
    assert now(registry) == better


def test_many_at_once_come_to_the_best_one_and_none_is_lost(registry: SimpleNamespace) -> None:
    versions = [registry.version() for _ in range(4)]
    known = {version: scores(20 * i) for i, version in enumerate([3, 1, 4, 2], 1)}
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda version: champion.challenge(registry.client, NAME, version, known), versions)
        assert len([*found]) == 4
    assert now(registry) == 2
    assert len(registry.client.search_model_versions('name="it\'s a model"')) == 4
