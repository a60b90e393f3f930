"""Artifacts in a real S3 server (moto's): whole or refused by name, each byte sent once, a store that is away."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import VARIABLES, CountingProxy, bucket, client, moto_server, reached
from tuneport.address import Address
from tuneport.artifacts import Model, absent, digest, leave_absent, verify, write_manifest
from tuneport.errors import UserError
from tuneport.links import link_tree
from tuneport.stored_artifacts import (
    NotWhole,
    StoredFolder,
    fault,
    fetch,
    fetch_left,
    fetch_source,
    listed,
    paths_of,
    send,
    sending,
)

MIB = 1 << 20
WEIGHTS = bytes(range(256)) * (3 * MIB // 256)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with bucket("runs") as url:
        yield url


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with reached(server, monkeypatch):
        yield client(server)


@pytest.fixture
def way(s3: Any, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingProxy]:
    """The way to the server, which can be counted on and closed."""
    import s3fs

    found = CountingProxy(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    yield found
    found.stop()


@pytest.fixture
def model(tmp_path: Path) -> Model:
    folder = tmp_path / "model"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text("{}")
    (folder / "checkpoints" / "empty.txt").touch()
    write_manifest(Model(folder), "finetune", "1", {}, {})
    return Model(folder)


@pytest.fixture
def place(tmp_path: Path) -> Address:
    return Address(f"s3://runs/{tmp_path.name}/model")


def keys(s3: Any, place: Address) -> dict[str, int]:
    prefix = place.key.removeprefix("runs/") + "/"
    found = s3.list_objects_v2(Bucket="runs", Prefix=prefix).get("Contents", [])
    return {entry["Key"].removeprefix(prefix): entry["Size"] for entry in found}


def key(place: Address, name: str) -> str:
    return f"{place.key.removeprefix('runs/')}/{name}"


def entry(size: int, sha: str) -> dict[str, Any]:
    return {"size": size, "sha256": sha}


def test_only_what_lacks_is_sent_and_what_the_store_holds_elsewhere_is_copied_there() -> None:
    files = {"a": entry(1, "A"), "b": entry(2, "B"), "c": entry(3, "C"), "d": entry(0, "")}
    there = {"a": 1, "b": 9, "old": 5, "manifest.json": 7}
    todo = sending(files, there, {"a": "A", "b": "B"}, {"C": "runs/other/c"})
    assert todo.send == ("b", "d") and todo.copy == {"c": "runs/other/c"} and todo.delete == ("old",)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"a": 1}, "b: is missing"),
        ({"a": 1, "b": 1}, "b: has 1 bytes, its manifest says 2"),
        ({"a": 1, "b": 2, "c": 1}, "c: was added after the folder was finished"),
        ({"a": 1, "b": 2, "manifest.json": 1, "README.md": 5, "x/.DS_Store": 1}, ""),
    ],
)
def test_the_first_fault_is_named(there: dict[str, int], said: str) -> None:
    found = fault({"a": entry(1, "A"), "b": entry(2, "B")}, there)
    assert found.startswith(said) if said else found == ""


def test_what_is_sent_and_fetched_is_the_same_artifact(s3: Any, model: Model, place: Address, tmp_path: Path) -> None:
    send(model, place)
    assert sorted(keys(s3, place)) == ["checkpoints/empty.txt", "config.json", "manifest.json", "model.safetensors"]
    fetched = Model(tmp_path / "fetched")
    fetch(fetched, place)
    verify(fetched)
    assert digest(fetched) == digest(model)
    assert not list(tmp_path.glob(".*partial"))


def test_an_artifact_sent_again_costs_no_bytes_and_another_one_of_its_files_is_copied_in_the_store(
    s3: Any, way: CountingProxy, model: Model, place: Address, tmp_path: Path
) -> None:
    send(model, place)
    assert 3 * MIB < way.up < 3.2 * MIB
    once = way.up
    send(model, place)
    other = Model(tmp_path / "other")
    link_tree(model.path, other.path, ["manifest.json"])
    write_manifest(other, "finetune", "1", {}, {})
    beside = Address(f"{place.text}-beside")
    send(other, beside, beside=[place])
    assert way.up - once < 0.1 * MIB and way.down < 0.2 * MIB
    assert keys(s3, beside)["model.safetensors"] == 3 * MIB


def test_a_folder_whose_files_changed_has_no_manifest_until_they_are_there(
    s3: Any, model: Model, place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(model, place)
    s3.put_object(Bucket="runs", Key=key(place, "left.bin"), Body=b"of an earlier attempt")
    (model.path / "config.json").write_text('{"changed": true}')
    write_manifest(model, "finetune", "1", {}, {})
    seen = []
    put = StoredFolder.put

    def watched(folder: StoredFolder, path: Path, name: str) -> None:
        seen.append((name, "manifest.json" in keys(s3, place)))
        put(folder, path, name)

    monkeypatch.setattr(StoredFolder, "put", watched)
    send(model, place)
    assert seen == [("config.json", False), ("manifest.json", False)]  # what did not change is not sent
    assert "left.bin" not in keys(s3, place)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", r"model\.safetensors: has 100 bytes, its manifest says 3145728"),
        ("missing", r"config\.json: is missing"),
        ("altered", r"s3://runs/\S+/model\.safetensors: was altered after it was written"),
        ("unfinished", r"s3://runs/\S+/model: has no manifest\.json"),
        ("added", r"extra\.bin: was added after the folder was finished"),
    ],
)
def test_what_is_not_whole_in_the_store_is_refused_by_name(
    damage: str, said: str, s3: Any, model: Model, place: Address
) -> None:
    send(model, place)
    if damage in ("truncated", "altered"):
        body = WEIGHTS[:100] if damage == "truncated" else bytes(len(WEIGHTS))
        s3.put_object(Bucket="runs", Key=key(place, "model.safetensors"), Body=body)
    elif damage == "added":
        s3.put_object(Bucket="runs", Key=key(place, "extra.bin"), Body=b"1")
    else:
        s3.delete_object(Bucket="runs", Key=key(place, "config.json" if damage == "missing" else "manifest.json"))
    with pytest.raises(NotWhole, match=said):
        fetch(Model(model.path.with_name("fetched")), place)
    assert not model.path.with_name("fetched").exists()


LEAVE = ("*.safetensors",)


def test_files_that_a_stage_leaves_in_the_store_are_copied_there_and_its_manifest_is_that_of_the_whole(
    way: CountingProxy, s3: Any, model: Model, place: Address, tmp_path: Path
) -> None:
    send(model, place)
    way.down = way.up = 0
    fetch(Model(tmp_path / "light"), place, leave=LEAVE)
    assert way.down < MIB and not (tmp_path / "light" / "model.safetensors").exists()
    assert digest(Model(tmp_path / "light")) == digest(model)
    verify(Model(tmp_path / "light"), left=True)
    with pytest.raises(UserError, match=r"model\.safetensors: is missing"):  # to whoever does not know the store
        verify(Model(tmp_path / "light"))
    for made, source in (("from-light", tmp_path / "light"), ("from-whole", model.path)):
        (tmp_path / made / "a").mkdir(parents=True)
        (tmp_path / made / "a" / "config.json").write_text("{}")
        (tmp_path / made / "z.txt").touch()
        if left := absent(source):
            leave_absent(tmp_path / made, {"a/model.safetensors": left["model.safetensors"]})
        else:
            (tmp_path / made / "a" / "model.safetensors").write_bytes(WEIGHTS)
        write_manifest(Model(tmp_path / made), "export", "1", {}, {})
    assert (tmp_path / "from-light" / "manifest.json").read_bytes() == (
        tmp_path / "from-whole" / "manifest.json"
    ).read_bytes()
    exported = Address(f"{place}-exported")
    send(Model(tmp_path / "from-light"), exported, beside=[place])
    assert way.up < MIB
    assert keys(s3, exported).keys() == {"a/config.json", "a/model.safetensors", "z.txt", "manifest.json"}
    fetch(Model(tmp_path / "again"), exported)
    assert (tmp_path / "again" / "a" / "model.safetensors").read_bytes() == WEIGHTS


def test_files_that_were_left_are_fetched_and_verified_where_they_are_read_after_all(
    way: CountingProxy, s3: Any, model: Model, place: Address, tmp_path: Path
) -> None:
    send(model, place)
    light = Model(tmp_path / "light")
    fetch(light, place, leave=LEAVE)
    (light.path / "model.safetensors").write_bytes(b"of an attempt that was killed")
    fetch(light, place, leave=LEAVE)  # in the container that is started again
    (light.path / "model.safetensors").write_bytes(b"of an attempt that was killed")
    fetch_left(light, place)
    assert not absent(light.path) and (light.path / "model.safetensors").read_bytes() == WEIGHTS
    other = Model(tmp_path / "other")
    fetch(other, place, leave=LEAVE)
    s3.put_object(Bucket="runs", Key=key(place, "model.safetensors"), Body=WEIGHTS[:-1] + b"!")
    with pytest.raises(NotWhole, match=r"model/model.safetensors: was altered after it was written"):
        fetch_left(other, place)


def test_a_file_that_stays_in_the_store_has_to_be_whole_there_and_to_be_there_when_it_is_copied(
    s3: Any, model: Model, place: Address, tmp_path: Path
) -> None:
    send(model, place)
    fetch(Model(tmp_path / "light"), place, leave=LEAVE)
    s3.put_object(Bucket="runs", Key=key(place, "model.safetensors"), Body=WEIGHTS[:-1])
    with pytest.raises(NotWhole, match=r"model.safetensors: has 3145727 bytes, its manifest says 3145728"):
        fetch(Model(tmp_path / "second"), place, leave=LEAVE)
    (tmp_path / "light" / "manifest.json").unlink()
    write_manifest(Model(tmp_path / "light"), "export", "1", {}, {})
    exported = Address(f"{place}-exported")
    with pytest.raises(NotWhole, match=r"exported/model.safetensors: was left in the store .* is gone from there"):
        send(Model(tmp_path / "light"), exported, beside=[place])
    assert "manifest.json" not in keys(s3, exported)


@pytest.fixture
def source(s3: Any, place: Address) -> Address:
    """A user's folder, which has no manifest."""
    found = Address(f"{place}-of-the-user")
    s3.put_object(Bucket="runs", Key=key(found, "model.safetensors"), Body=WEIGHTS)
    s3.put_object(Bucket="runs", Key=key(found, "tokenizer/vocab.txt"), Body=b"a\nb\n")
    return found


def test_what_a_user_s_folder_holds_already_is_copied_in_the_store(
    way: CountingProxy, source: Address, model: Model, place: Address, tmp_path: Path
) -> None:
    fetched = fetch_source(source, tmp_path / "fetched")
    assert (fetched / "tokenizer" / "vocab.txt").read_text() == "a\nb\n"
    assert (fetched / "model.safetensors").read_bytes() == WEIGHTS
    file = fetch_source(source.child("model.safetensors"), tmp_path / "file")
    assert file == tmp_path / "file" / "model.safetensors" and file.read_bytes() == WEIGHTS
    assert paths_of(source.child("model.safetensors"), file).items() <= paths_of(source, fetched).items()
    way.up = 0
    send(model, place, elsewhere=paths_of(source, fetched))
    assert way.up < MIB
    fetch(Model(tmp_path / "again"), place)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == WEIGHTS


def test_what_the_store_does_not_copy_is_sent(
    s3: Any, model: Model, place: Address, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sha = json.loads((model.path / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"]
    send(model, place, elsewhere={sha: "a-bucket-of-others/model.safetensors"})
    assert "model.safetensors: is sent, as the store does not copy it" in caplog.text
    assert keys(s3, place)["model.safetensors"] == 3 * MIB


def test_a_user_s_address_where_nothing_is_or_whose_names_lead_out_is_refused(
    s3: Any, place: Address, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"model: not found"):
        fetch_source(place, tmp_path / "fetched")
    s3.put_object(Bucket="runs", Key=key(place, "a/../../../x.bin"), Body=b"x")
    with pytest.raises(UserError, match=r"leads out of its folder"):
        fetch_source(place, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_nothing_at_an_address_is_told_from_something_unfinished(s3: Any, place: Address) -> None:
    with pytest.raises(NotWhole, match=r"nothing is there, and no manifest\.json; expected a finished Model artifact"):
        listed(Model, place)


def test_a_store_that_stays_away_is_asked_again_and_then_named(
    s3: Any, way: CountingProxy, model: Model, place: Address, caplog: pytest.LogCaptureFixture
) -> None:
    way.stop()
    with pytest.raises(UserError, match=r"s3://runs/\S+: cannot be read \(no answer in 1 seconds: .*Check the address"):
        send(model, place, patience=1)
    assert "the store did not answer" in caplog.text
    way.start()
    send(model, place)
    assert "manifest.json" in keys(s3, place)


def test_after_a_file_that_cannot_be_sent_no_other_is_begun(
    s3: Any, model: Model, place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        (model.path / f"{number}.txt").write_text(str(number))
    write_manifest(model, "finetune", "1", {}, {})
    begun = []

    def refused(folder: StoredFolder, path: Path, name: str) -> None:
        begun.append(name)
        time.sleep(0.05)  # as if the store were asked again
        raise UserError(f"{name}: no answer")

    monkeypatch.setattr(StoredFolder, "put", refused)
    with pytest.raises(UserError, match="no answer"):
        send(model, place)
    assert len(begun) < 20


def test_who_may_not_write_is_told_which_credential_was_tried(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with moto_server() as url:
        client(url).create_bucket(Bucket="runs")
        asks = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(asks)  # from now on it asks who one is
        for name, value in {**VARIABLES, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        refused = (
            r"s3://runs/model: access was refused \(.*\)\. Tried: {}\. Credentials are taken from AWS_ACCESS_KEY_ID"
        )
        with pytest.raises(UserError, match=refused.format(r"the key AKIA… \(from env\)")) as e:
            send(model, Address("s3://runs/model"))
        assert VARIABLES["AWS_SECRET_ACCESS_KEY"] not in str(e.value)
        for name in VARIABLES:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(UserError, match=refused.format("no credential")):
            fetch(Model(model.path.with_name("fetched")), Address("s3://runs/model"))
    s3fs.S3FileSystem.clear_instance_cache()


def test_json_of_a_manifest_is_what_the_store_holds(s3: Any, model: Model, place: Address) -> None:
    send(model, place)
    content, files = listed(Model, place)
    assert json.loads(content)["type"] == "Model" and files["model.safetensors"]["size"] == len(WEIGHTS)
