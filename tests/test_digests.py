"""Digests of files: in parallel, while writing, and never trusted of a file that changed."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tuneport import digests
from tuneport.artifacts import Model, read_manifest, verify, write_manifest
from tuneport.digests import SMALL, HashedFile, KnownDigests, known, of_all, recorded, sha256
from tuneport.errors import UserError
from tuneport.links import link_or_copy, take_or_copy

LARGE = SMALL + 7


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read for their digests, in order."""
    paths: list[Path] = []

    def counted(path: Path) -> str:
        paths.append(path)
        return sha256(path)

    monkeypatch.setattr(digests, "sha256", counted)
    return paths


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(LARGE))
    os.utime(path, ns=(0, time.time_ns() - 10**9))
    yield path
    known.files.clear()


def test_a_file_that_was_read_is_not_read_again(weights: Path, reads: list[Path]) -> None:
    assert known.of(weights) == known.of(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert reads == [weights]


def write(path: Path) -> None:
    with path.open("r+b") as f:
        f.write(bytes([f.read(1)[0] ^ 1]))


def write_in_the_past(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as f:
        f.seek(5)
        f.write(b"harmed")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    other, before = path.with_name("other"), path.stat()
    other.write_bytes(os.urandom(before.st_size))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("harm", [write, write_in_the_past, replace])
def test_a_file_that_changed_is_read_whatever_its_size_and_time_say(
    harm: Callable[[Path], None], weights: Path, tmp_path: Path
) -> None:
    model = Model(tmp_path)
    write_manifest(model, "model_import", "1", {}, {})
    verify(model)
    time.sleep(0.02)  # the clock of the file system
    harm(weights)
    with pytest.raises(UserError, match=r"model\.safetensors: was altered after it was written"):
        verify(model)


def test_a_file_that_was_written_just_before_it_was_read_is_read_again(weights: Path, reads: list[Path]) -> None:
    weights.write_bytes(os.urandom(LARGE))  # a second write in the same tick would change no time
    known.of(weights)
    known.of(weights)
    assert len(reads) == 2


def test_a_file_system_that_knows_no_fractions_of_a_second_is_given_longer(weights: Path, reads: list[Path]) -> None:
    os.utime(weights, ns=(0, (time.time_ns() // 10**9 - 1) * 10**9))
    known.of(weights)
    known.of(weights)
    assert len(reads) == 2
    os.utime(weights, ns=(0, (time.time_ns() // 10**9 - 9) * 10**9))
    known.of(weights)
    known.of(weights)
    assert len(reads) == 3


def test_a_small_file_is_always_read(tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "config.json").write_text("{}")
    known.of(tmp_path / "config.json")
    known.of(tmp_path / "config.json")
    assert len(reads) == 2


def test_several_files_come_in_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "cab"]
    for path in paths:
        path.write_text(path.name)
    assert list(of_all(paths).items()) == [(p, hashlib.sha256(p.name.encode()).hexdigest()) for p in paths]


def test_a_linked_file_is_known_under_both_names(weights: Path, reads: list[Path]) -> None:
    known.of(weights)
    link_or_copy(str(weights), str(weights.with_name("linked")))
    assert known.of(weights) == known.of(weights.with_name("linked"))
    assert reads == [weights]


def test_a_file_that_was_changed_before_it_is_linked_is_not_known(weights: Path, reads: list[Path]) -> None:
    known.of(weights)
    time.sleep(0.02)
    write_in_the_past(weights)
    link_or_copy(str(weights), str(weights.with_name("linked")))
    assert known.of(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert len(reads) == 2


def test_a_record_spares_another_process_the_reading(weights: Path, tmp_path: Path, reads: list[Path]) -> None:
    record = tmp_path / "record.jsonl"
    with recorded(record):
        digest = known.of(weights)
    other = KnownDigests()
    other.read(record)
    assert other.of(weights) == digest
    assert reads == [weights]


@pytest.mark.parametrize("line", ["[", "[]", "{}", "[1, 2, 3, 4, 5, 6, 7, 8]", '"x"', "\x80"])
def test_damaged_lines_of_a_record_and_those_of_another_start_of_the_machine_say_nothing(
    line: str, weights: Path, tmp_path: Path, reads: list[Path]
) -> None:
    record = tmp_path / "record.jsonl"
    with recorded(record):
        known.of(weights)
    known.files.clear()
    values = json.loads(record.read_text())
    record.write_text(f"{line}\n{json.dumps(['another boot', *values[1:]])}\n")
    with recorded(record):
        known.of(weights)
    assert len(reads) == 2


def test_a_record_that_cannot_be_written_costs_a_reading_and_no_more(weights: Path, tmp_path: Path) -> None:
    with recorded(tmp_path / "no" / "folder"):
        assert known.of(weights) == sha256(weights)
    with recorded(tmp_path / "record"):
        (tmp_path / "record").unlink()
        (tmp_path / "record").mkdir()
        known.files.clear()
        assert known.of(weights) == sha256(weights)


def test_a_file_is_hashed_as_it_is_written(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "optimizer.pt"
    states = {"a": torch.arange(1_000_000), "b": [torch.ones(3), 1], "c": torch.randn(999, 1001)}
    with HashedFile(path) as f:
        torch.save(states, f)
    assert known.of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reads == []
    assert torch.equal(torch.load(path, weights_only=True)["c"], states["c"])


def test_a_manifest_takes_the_digests_of_sealed_checkpoints(tmp_path: Path, reads: list[Path]) -> None:
    from tuneport.training.checkpoint.checkpoint_folder import CheckpointFolder

    model = Model(tmp_path / "model")
    checkpoints = CheckpointFolder(path=model.path / "checkpoints")
    (checkpoints.begin(4) / "optimizer.pt").write_bytes(os.urandom(LARGE))
    checkpoints.publish(4, 4)
    known.files.clear()
    reads.clear()
    write_manifest(model, "finetune", "1", {}, {})
    assert not [path for path in reads if path.name == "optimizer.pt"]
    listed = read_manifest(model)["files"]["checkpoints/checkpoint-4/optimizer.pt"]
    assert listed["sha256"] == sha256(checkpoints.checkpoint(4).path / "optimizer.pt")


def test_a_linked_file_refuses_a_write(weights: Path) -> None:
    link_or_copy(str(weights), str(weights.with_name("linked")))
    places = [place for place in weights.parents if place.stat().st_uid == os.getuid() and len(place.parts) > 2]
    modes = [place.stat().st_mode for place in places]
    try:
        for place in places:
            place.chmod(place.stat().st_mode | 0o755)
        user = 65534 if os.getuid() == 0 else None  # the administrator may write to every file
        for name in ("model.safetensors", "linked"):
            command = ("sh", "-c", 'printf x >> "$0"', str(weights.with_name(name)))
            refused = subprocess.run(command, user=user, capture_output=True, text=True, check=False)
            assert "ermission denied" in refused.stderr
        assert weights.stat().st_size == LARGE
    finally:
        for place, mode in zip(places, modes, strict=True):
            place.chmod(mode)


def test_a_copy_is_made_where_there_is_no_room_for_a_link_and_it_is_said_once(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "there"
    target.write_text("old")  # no link can take its place
    with caplog.at_level("INFO", logger="tuneport.links"):
        link_or_copy(str(weights), str(target))
        link_or_copy(str(weights), str(target))
    assert target.read_bytes() == weights.read_bytes() and target.stat().st_ino != weights.stat().st_ino
    assert caplog.text.count("files are copied") == 1


def test_what_a_user_writes_into_an_imported_file_is_refused_and_its_mode_stays(weights: Path, tmp_path: Path) -> None:
    mode = weights.stat().st_mode
    model = Model(tmp_path / "imported")
    model.path.mkdir()
    take_or_copy(weights, model.path / weights.name)
    assert weights.stat().st_mode == mode
    write_manifest(model, "model_import", "1", {}, {})
    verify(model)
    write(weights)
    if weights.stat().st_ino == (model.path / weights.name).stat().st_ino:
        with pytest.raises(UserError, match=r"model\.safetensors: was altered"):
            verify(model)
    else:  # a file system that clones
        verify(model)
