"""Manifests: what they record, and that every kind of damage is named."""

import json
import os
from pathlib import Path

import pytest

from tuneport.artifacts import (
    MANIFEST,
    Dataset,
    File,
    MLTable,
    Model,
    digest,
    expand,
    read_manifest,
    sha256,
    verify,
    write_atomically,
    write_manifest,
)
from tuneport.errors import UserError


@pytest.fixture
def model(tmp_path: Path) -> Model:
    model = Model(tmp_path / "a 'model' \\ ü\n")
    (model.path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (model.path / "config.json").write_text("{}")
    (model.path / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (model.path / "checkpoints" / "checkpoint-1" / "optimizer.pt").write_bytes(b"0" * 100)
    write_manifest(model, "finetune", "1.2", {"seed": 3}, {"data": "abc"})
    return model


def test_a_manifest_records_type_producer_parameters_lineage_and_every_file(model: Model) -> None:
    manifest = read_manifest(model)
    assert manifest["type"] == "Model"
    assert manifest["producer"] == {"step": "finetune", "version": "1.2"}
    assert (manifest["parameters"], manifest["inputs"]) == ({"seed": 3}, {"data": "abc"})
    assert list(manifest["files"]) == ["checkpoints/checkpoint-1/optimizer.pt", "config.json", "model.safetensors"]
    assert manifest["files"]["config.json"] == {"size": 2, "sha256": sha256(model.path / "config.json")}


def test_an_untouched_artifact_verifies_and_a_new_file_beside_its_own_is_no_damage(model: Model) -> None:
    verify(model)
    (model.path / "note.txt").write_text("mine")
    verify(model)


def test_equal_work_gives_an_equal_manifest(model: Model) -> None:
    before = digest(model)
    write_manifest(model, "finetune", "1.2", {"seed": 3}, {"data": "abc"})
    assert digest(model) == before
    write_manifest(model, "finetune", "1.2", {"seed": 4}, {"data": "abc"})
    assert digest(model) != before


@pytest.mark.parametrize("offset", [0, 5000, 10239])
def test_one_altered_byte_is_found_and_its_file_named(model: Model, offset: int) -> None:
    path = model.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: was altered after it was written"):
        verify(model)


def test_a_truncated_file_is_named_with_both_sizes(model: Model) -> None:
    os.truncate(model.path / "model.safetensors", 10_000)
    with pytest.raises(UserError, match=r"model\.safetensors: has 10000 bytes, its manifest says 10240"):
        verify(model)


def test_a_missing_file_is_named(model: Model) -> None:
    (model.path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: is missing"):
        verify(model)


def test_checkpoints_are_held_against_their_sizes_alone(model: Model) -> None:
    optimizer = model.path / "checkpoints" / "checkpoint-1" / "optimizer.pt"
    optimizer.write_bytes(b"1" * 100)
    verify(model)
    optimizer.write_bytes(b"1" * 99)
    with pytest.raises(UserError, match=r"optimizer\.pt: has 99 bytes"):
        verify(model)


def test_another_type_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match="is a Model artifact; expected a Dataset"):
        verify(Dataset(model.path))


def test_an_absent_folder_and_one_without_manifest_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; expected a Dataset artifact"):
        verify(Dataset(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"has no manifest\.json, so it is not a finished Dataset"):
        verify(Dataset(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"type": "Model"}', '{"type": 1, "schema_version": 1, "files": 2}']
)
def test_a_damaged_manifest_is_the_manifests_fault(model: Model, text: str) -> None:
    (model.path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: is damaged"):
        verify(model)


@pytest.mark.parametrize("text", ["\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "ÿþ"])
def test_a_manifest_that_is_no_utf8_is_damaged(model: Model, text: str) -> None:
    (model.path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"manifest\.json: is damaged"):
        verify(model)


def test_entries_of_a_manifest_that_are_no_entries_are_damage(model: Model) -> None:
    manifest = json.loads((model.path / MANIFEST).read_text())
    manifest["files"]["config.json"] = 7
    (model.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: is damaged"):
        verify(model)


def test_a_newer_schema_asks_for_a_newer_tuneport(model: Model) -> None:
    manifest = json.loads((model.path / MANIFEST).read_text())
    (model.path / MANIFEST).write_text(json.dumps(manifest | {"schema_version": 2}))
    with pytest.raises(UserError, match="schema version 2; this tuneport reads up to 1"):
        verify(model)


def test_a_users_data_is_a_file_a_folder_or_a_glob(tmp_path: Path) -> None:
    shards = [tmp_path / folder / "part.jsonl" for folder in ("x", "y")]
    for shard in shards:
        shard.parent.mkdir()
        shard.write_text(shard.parent.name)
    assert expand(tmp_path) == expand(tmp_path / "*" / "part.jsonl") == shards
    assert expand(shards[0]) == [shards[0]]
    assert expand(tmp_path / "nothing") == []


def test_the_digest_of_a_users_data_follows_its_bytes_and_names(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    shard = tmp_path / "x" / "1.csv"
    shard.write_text("a")
    data = File(tmp_path / "*" / "1.csv")
    first = digest(data)
    shard.write_text("b")
    second = digest(data)
    shard.write_text("a")
    assert digest(data) == first != second
    shard.rename(tmp_path / "x" / "2.csv")
    assert digest(File(tmp_path / "*" / "2.csv")) != first


def test_writing_atomically_replaces_the_whole_text_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "long old text")
    write_atomically(path, "ü")
    assert path.read_text("utf-8") == "ü"
    assert list(tmp_path.iterdir()) == [path]


def test_an_mltables_digest_covers_the_files_that_its_yaml_names_elsewhere(tmp_path: Path) -> None:
    table, data = tmp_path / "table", tmp_path / "data.csv"
    table.mkdir()
    (table / "MLTable").write_text("paths:\n  - file: ../data.csv\n")
    data.write_text("text,label\na,b\n")
    before = digest(MLTable(table))
    data.write_text("text,label\na,c\n")
    assert digest(MLTable(table)) != before
