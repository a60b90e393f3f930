"""Manifests: what they record, and that every kind of damage is named."""

import json
import os
from pathlib import Path

import pytest

from tuneport.artifacts import (
    MANIFEST,
    CustomModel,
    Dataset,
    File,
    MLTable,
    Model,
    Tokenizer,
    digest,
    digest_without,
    expand,
    is_sealed,
    read_manifest,
    verify,
    write_atomically,
    write_manifest,
)
from tuneport.digests import sha256
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


def test_an_untouched_artifact_verifies(model: Model) -> None:
    verify(model)


ADDED = ["chat_template.jinja", "model-00002-of-00002.safetensors", "deeper/tokenizer.json", "note.txt", "tokenizer.md"]


@pytest.mark.parametrize("name", ADDED)
def test_a_file_that_was_added_is_named_with_what_to_do(model: Model, name: str) -> None:
    (model.path / name).parent.mkdir(exist_ok=True)
    (model.path / name).write_text("")
    with pytest.raises(UserError, match=rf"{name}: was added after .* Move it elsewhere, or run the step"):
        verify(model)
    with pytest.raises(UserError, match=rf"{name}: was added after .* if you mean it to belong there, delete manifest"):
        verify(CustomModel(model.path))


@pytest.mark.parametrize("name", [".DS_Store", "README.md", "LICENSE", ".cache/x", "code/__pycache__/x.pyc", "empty/"])
def test_what_desktops_hubs_python_and_people_leave_in_a_folder_is_no_damage(model: Model, name: str) -> None:
    path = model.path / name
    (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
    if not name.endswith("/"):
        path.write_text("mine")
    verify(model)


def test_a_link_to_a_folder_that_was_added_is_named_and_a_checkpoint_that_was_added_is_not(
    model: Model, tmp_path: Path
) -> None:
    (model.path / "checkpoints" / "checkpoint-2").mkdir()
    (model.path / "checkpoints" / "checkpoint-2" / "optimizer.pt").touch()
    verify(model)
    (model.path / "modules").symlink_to(tmp_path)
    with pytest.raises(UserError, match="modules: was added"):
        verify(model)


@pytest.mark.parametrize("part", [{"parameters": {"seed": 4}}, {"inputs": {}}, {"more": 1}, {"sha256": None}])
def test_an_altered_manifest_is_the_manifests_fault(model: Model, part: dict[str, object]) -> None:
    manifest = json.loads((model.path / MANIFEST).read_text())
    (model.path / MANIFEST).write_text(json.dumps(manifest | part))
    with pytest.raises(UserError, match=r"manifest\.json: was altered after it was written"):
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
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"type": "Model"}',
        '{"type": 1, "schema_version": 1, "files": 2}',
        '{"type": "Model", "schema_version": "2", "files": {}}',
    ],
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
    (model.path / MANIFEST).write_text(json.dumps(manifest | {"schema_version": 3}))
    with pytest.raises(UserError, match="schema version 3; this tuneport reads up to 2"):
        verify(model)


def test_what_was_written_before_manifests_held_their_own_digest_is_still_read(model: Model) -> None:
    manifest = json.loads((model.path / MANIFEST).read_text())
    del manifest["sha256"]
    (model.path / MANIFEST).write_text(json.dumps(manifest | {"schema_version": 1}))
    verify(model)
    (model.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: was altered after it was written"):
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


FOREIGN = [
    '{"name": "app", "icons": []}',
    '{"version": 1, "files": ["a"]}',
    "[1, 2]",
    "not json",
    "[" * 100_000,
    "\xff",
]


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_a_manifest_of_another_program_in_a_users_folder_is_data_as_any_other(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    data = File(tmp_path)
    assert not is_sealed(data)
    before = digest(data)
    (tmp_path / MANIFEST).write_text(text + " ", encoding="latin-1")
    assert digest(data) != before


def test_an_own_manifest_in_a_users_folder_still_holds_its_files_to_what_they_were(model: Model) -> None:
    assert is_sealed(CustomModel(model.path))
    (model.path / MANIFEST).write_text((model.path / MANIFEST).read_text()[:-20])
    assert is_sealed(CustomModel(model.path))
    with pytest.raises(UserError, match=r"manifest\.json: is damaged"):
        verify(CustomModel(model.path))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_manifest_lists_files_of_its_own_folder(model: Model, name: str) -> None:
    manifest = json.loads((model.path / MANIFEST).read_text())
    manifest["files"][name] = {"size": 1, "sha256": "0"}
    (model.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="which lies outside of the folder"):
        verify(model)


def test_outputs_of_one_step_are_known_to_belong_together(tmp_path: Path) -> None:
    model, tokenizer = Model(tmp_path / "model"), Tokenizer(tmp_path / "tokenizer")
    for folder in (model.path, tokenizer.path):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")
    (model.path / "model-00001-of-00001.safetensors").write_text("weights")
    for artifact in (model, tokenizer):
        write_manifest(artifact, "model_import", "1.2", {"huggingface_id": "acme/bert"}, {"huggingface_id": "commit"})
    assert digest_without(model, Tokenizer) == digest(tokenizer)
    write_manifest(model, "model_import", "1.2", {"huggingface_id": "acme/bert"}, {"huggingface_id": "another"})
    assert digest_without(model, Tokenizer) != digest(tokenizer)


def test_where_a_tokenizer_is_read_a_model_does_and_its_weights_are_not_read(tmp_path: Path) -> None:
    model = Model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    write_manifest(model, "model_import", "1.2", {}, {})
    (tmp_path / "model.safetensors").write_text("altered")
    verify(Tokenizer(tmp_path))
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer\.json: was altered"):
        verify(Tokenizer(tmp_path))
    with pytest.raises(UserError, match="is a Model artifact; expected a Dataset"):
        verify(Dataset(tmp_path))
