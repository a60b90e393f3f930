"""Hub models: from the cache without a network, and over HTTP from a server that is a fake of the hub."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.model_import import ModelImport
from tests.fake_hub import FIRST, ID, Hub
from tuneport.artifacts import Model, read_manifest
from tuneport.errors import UserError

SECOND = "2" * 40


@pytest.fixture
def files(tiny_model: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in tiny_model.iterdir() if f.is_file()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files | {"README.md": b"a card", "pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"other"})
    yield hub
    hub.server.shutdown()


def model_import(tmp_path: Path, environment: dict[str, str], **values: str) -> tuple[int, str, Path]:
    """Run the stage as a process of its own, with a hub cache in ``tmp_path``."""
    output = tmp_path / "out"
    flags = [f for name, value in values.items() for f in (f"--{name}", value)]
    command = [sys.executable, "-m", "steps", "model_import", *flags, "--model_selector_output", str(output)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    done = subprocess.run(
        command, env=kept | {"HF_HOME": str(tmp_path / "hf")} | environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr, output


def fill_cache(tmp_path: Path, files: dict[str, bytes], commit: str = FIRST, revision: str = "main") -> None:
    """Lay out what huggingface_hub keeps of a model: blobs, a snapshot of links to them, and the branch."""
    root = tmp_path / "hf" / "hub" / f"models--{ID.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (root / "snapshots" / commit / name).symlink_to(Path("../../blobs") / blob.name)


def test_a_cached_model_is_imported_without_a_network(files: dict[str, bytes], tmp_path: Path) -> None:
    fill_cache(tmp_path, files)
    code, log, out = model_import(tmp_path, {"HF_HUB_OFFLINE": "1"}, huggingface_id=ID)
    assert code == 0, log
    assert (out / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert read_manifest(Model(out))["inputs"] == {"huggingface_id": FIRST}
    assert (tmp_path / "hf/hub/models--acme--tiny-bert/refs/main").read_text() == FIRST, "the cache is left alone"


def test_a_cached_model_is_imported_when_the_hub_does_not_answer(files: dict[str, bytes], tmp_path: Path) -> None:
    fill_cache(tmp_path, files)
    code, log, _ = model_import(tmp_path, {"HF_ENDPOINT": "http://127.0.0.1:9"}, huggingface_id=ID)
    assert code == 0, log


def test_a_mirror_is_used_and_only_what_is_imported_is_fetched(hub: Hub, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"}
    code, log, out = model_import(tmp_path, environment, huggingface_id=ID)
    assert code == 0, log
    fetched = {p.rpartition("/")[2] for p in hub.paths if "/resolve/" in p}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= fetched
    assert "pytorch_model.bin" not in fetched and not any("onnx/" in p for p in hub.paths)
    assert "Bearer hf_secret" in hub.tokens and "hf_secret" not in log
    assert read_manifest(Model(out))["inputs"] == {"huggingface_id": FIRST}
    code, log, _ = model_import(tmp_path, {"HF_HUB_OFFLINE": "1"}, huggingface_id=ID)
    assert code == 0, log


def test_a_revision_is_honoured(hub: Hub, tmp_path: Path) -> None:
    hub.commits[SECOND] = hub.commits[FIRST] | {"README.md": b"newer"}
    code, log, out = model_import(tmp_path, {"HF_ENDPOINT": hub.url}, huggingface_id=ID, huggingface_revision=SECOND)
    assert code == 0, log
    assert (out / "README.md").read_text() == "newer"


@pytest.mark.parametrize(
    ("name", "revision", "gated", "says"),
    [
        ("acme/unknown", None, False, "has no such model that you may read"),
        (ID, "no-such-branch", False, "has no such branch, tag or commit"),
        (ID, None, True, "set HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    name: str, revision: str | None, *, gated: bool, says: str, hub: Hub, tmp_path: Path
) -> None:
    hub.gated = gated
    given = {"huggingface_id": name} | ({"huggingface_revision": revision} if revision else {})
    code, log, out = model_import(tmp_path, {"HF_ENDPOINT": hub.url}, **given)
    assert code == 2 and says in log
    assert not out.exists()


@pytest.mark.parametrize(
    ("environment", "says"),
    [({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached")],
)
def test_neither_network_nor_cache_is_explained(environment: dict[str, str], says: str, tmp_path: Path) -> None:
    code, log, out = model_import(tmp_path, environment, huggingface_id=ID)
    assert code == 2 and says in log and "HF_ENDPOINT" in log and f"hf download {ID}" in log
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("https://huggingface.co/acme/tiny-bert/tree/main", "Set huggingface_id=acme/tiny-bert"),
        ("./models/bert", "is a path"),
        ("a/b/c", "is a path"),
        ("acme/tiny bert", "not valid"),
        ("acme/--x..y", "not valid"),
    ],
)
def test_an_id_that_cannot_be_one_is_refused_before_anything_runs(name: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        ModelImport(huggingface_id=name).check()


def test_a_revision_without_an_id_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="no effect without huggingface_id"):
        ModelImport(pytorch_model_path=tiny_model, huggingface_revision="main").check()


def commit(tmp_path: Path, **environment: str) -> str:
    """What `commit_of` says in a process of its own."""
    code = f"from tuneport.model_source.hub import commit_of; print(commit_of({ID!r}, None))"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    command = [sys.executable, "-c", code]
    settings = kept | {"HF_HOME": str(tmp_path / "hf")} | environment
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_an_id_is_the_hubs_then_the_caches_then_unknown(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    assert commit(tmp_path, HF_HUB_OFFLINE="1") == "None"
    assert commit(tmp_path, HF_ENDPOINT=hub.url) == FIRST
    hub.main = SECOND
    hub.commits[SECOND] = hub.commits[FIRST]
    assert commit(tmp_path, HF_ENDPOINT=hub.url) == SECOND
    fill_cache(tmp_path, files)
    assert commit(tmp_path, HF_HUB_OFFLINE="1") == FIRST
