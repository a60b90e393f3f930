"""Checkpoints of two machines without a common folder, in a real S3 server (moto's): whole, or named and left out."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import bucket, client, reached
from tuneport.address import Address
from tuneport.training.checkpoint.checkpoint_folder import CheckpointFolder
from tuneport.training.checkpoint.checkpoint_store import CheckpointStore


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with bucket("runs") as url:
        yield url


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CheckpointStore]:
    with reached(server, monkeypatch):
        yield CheckpointStore(Address(f"s3://runs/{tmp_path.name}/checkpoints"))


class Machines:
    """Two of them; the first holds rank 0."""

    def __init__(self, folder: Path, store: CheckpointStore, **options: Any) -> None:
        self.first, self.second = (
            CheckpointFolder(path=folder / name, store=store, **options) for name in ("first", "second")
        )

    def write(self, step: int, best: int) -> None:
        partial = self.first.begin(step)
        (partial / "model.safetensors").write_bytes(b"weights" * step)
        (partial / "optimizer.pt").write_bytes(b"moments" * step)
        (partial / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
        (partial / "run_state.json").write_text("{}")
        (partial / "rng_state_0.pth").write_bytes(b"0" * step)
        (self.second.begin(step) / "rng_state_1.pth").write_bytes(b"1" * step)
        self.first.publish(step, best, self.second.part(step, ["rng_state_1.pth"]))


@pytest.fixture
def machines(tmp_path: Path, store: CheckpointStore) -> Machines:
    return Machines(tmp_path, store)


def held(server: str, store: CheckpointStore) -> list[str]:
    prefix = store.address.key.removeprefix("runs/") + "/"
    found = client(server).list_objects_v2(Bucket="runs", Prefix=prefix).get("Contents", [])
    return sorted(entry["Key"].removeprefix(prefix) for entry in found)


def key(store: CheckpointStore, name: str) -> str:
    return f"{store.address.key.removeprefix('runs/')}/{name}"


def test_what_each_machine_wrote_is_sealed_on_the_first_and_whole_in_the_store(
    machines: Machines, store: CheckpointStore, server: str, tmp_path: Path
) -> None:
    machines.write(4, best=4)
    assert machines.first.checkpoint(4).damage() == ""
    assert (machines.first.checkpoint(4).path / "rng_state_1.pth").read_bytes() == b"1111"
    names = ["manifest.json", "model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"]
    assert held(server, store) == [f"checkpoint-4/{n}" for n in [*names, "run_state.json", "trainer_state.json"]]
    new = CheckpointFolder(path=tmp_path / "new", store=store)
    new.take()
    found = new.last_whole()
    assert found is not None and found.step == 4
    assert (found.path / "manifest.json").read_bytes() == (
        machines.first.checkpoint(4).path / "manifest.json"
    ).read_bytes()


def test_a_new_machine_takes_the_newest_and_the_best_one_and_the_others_go(
    machines: Machines, store: CheckpointStore, server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4, 6):
        machines.write(step, best=4)
    new = CheckpointFolder(path=tmp_path / "new", store=store)
    with caplog.at_level(logging.INFO):
        new.take()
    assert [c.step for c in new.all()] == [6, 4]
    assert "of the store, checkpoint-2 go, as they are older than checkpoint-6" in caplog.text
    store.mirror(new.all(), {})
    assert {name.partition("/")[0] for name in held(server, store)} == {"checkpoint-4", "checkpoint-6"}


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("optimizer.pt", b"mom", r"checkpoint-6/optimizer\.pt: has 3 bytes, its manifest says 42"),
        ("optimizer.pt", b"M" * 42, r"checkpoint-6/optimizer\.pt: was altered after it was written"),
        ("rng_state_1.pth", None, r"checkpoint-6/rng_state_1\.pth: is missing"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_named_and_the_one_before_is_taken(
    name: str, body: bytes | None, said: str, machines: Machines, request: pytest.FixtureRequest
) -> None:
    server, store, caplog = map(request.getfixturevalue, ("server", "store", "caplog"))
    for step in (4, 6):
        machines.write(step, best=4)
    place = {"Bucket": "runs", "Key": key(store, f"checkpoint-6/{name}")}
    client(server).put_object(**place, Body=body) if body else client(server).delete_object(**place)
    new = CheckpointFolder(path=machines.first.path.with_name("new"), store=store)
    new.take()
    assert [c.step for c in new.all()] == [4]
    (skipped,) = (message for message in caplog.messages if message.startswith("checkpoint-6 is skipped"))
    assert re.search(said, skipped)


def test_without_its_manifest_a_checkpoint_is_none(machines: Machines, store: CheckpointStore, server: str) -> None:
    machines.write(4, best=4)
    client(server).delete_object(Bucket="runs", Key=key(store, "checkpoint-4/manifest.json"))
    new = CheckpointFolder(path=machines.first.path.with_name("new"), store=store)
    new.take()
    assert new.all() == []


def test_a_machine_that_has_the_newest_one_fetches_nothing_and_a_damaged_one_again(
    machines: Machines, store: CheckpointStore, server: str
) -> None:
    machines.write(4, best=4)
    (machines.first.checkpoint(4).path / "optimizer.pt").write_bytes(b"")
    machines.first.take()
    assert machines.first.checkpoint(4).damage() == ""
    inode = (machines.first.checkpoint(4).path / "optimizer.pt").stat().st_ino
    machines.first.take()
    assert (machines.first.checkpoint(4).path / "optimizer.pt").stat().st_ino == inode


def test_a_machine_that_has_another_checkpoint_of_the_same_step_takes_the_one_that_counts(
    machines: Machines, tmp_path: Path, store: CheckpointStore
) -> None:
    machines.write(4, best=4)
    other = CheckpointFolder(path=tmp_path / "other", store=store)
    other.fetch(4)
    machines.write(4, best=2)  # again, after an evaluation that it owed
    other.fetch(4)
    assert other.checkpoint(4).best_step() == 2


def test_the_store_holds_as_many_checkpoints_as_the_folder_and_states_in_the_newest_alone_where_that_is_asked_for(
    tmp_path: Path, store: CheckpointStore, server: str
) -> None:
    machines = Machines(tmp_path, store, limit=2, states_of_all=False)
    for step in (2, 4, 6):
        machines.write(step, best=6)
    assert [n for n in held(server, store) if n.startswith("checkpoint-4/")] == [
        "checkpoint-4/manifest.json",
        "checkpoint-4/model.safetensors",
        "checkpoint-4/trainer_state.json",
    ]
    assert {n.partition("/")[0] for n in held(server, store)} == {"checkpoint-4", "checkpoint-6"}
    shutil.rmtree(machines.first.path)
    machines.first.take()
    assert [c.step for c in machines.first.all()] == [6]
    store.clear()
    assert held(server, store) == []
