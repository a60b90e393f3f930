"""Rows on a hub, read at one commit: against a fake that answers as the hub does, and says that it is one."""

import http.server
import json
import os
import subprocess
import sys
import threading
import typing as t
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(500)]
READ = """
import sys, json
from tuneport.address import Address
from tuneport.data.readers import find
from tuneport.errors import UserError
try:
    found = find(Address.of(sys.argv[1]), "train_file_path")
    rows = [row.values for row in found.rows({"sentence1_key": "text"})]
    print(json.dumps({"identity": found.identity, "rows": len(rows), "first": rows[0], "last": rows[-1]}))
except UserError as e:
    print(json.dumps({"error": str(e)}))
"""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class FakeHub(http.server.BaseHTTPRequestHandler):
    """A fake of the hub: `commits` has each commit's files, `main` names one; a private data set asks for a token."""

    commits: t.ClassVar[dict[str, dict[str, bytes]]] = {}
    main = ""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Server-Note": "fake of a hub", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def sha(self, revision: str) -> str:
        return self.main if revision == "main" else revision

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        api = "/api/datasets/acme/rows"
        if path.startswith("/api/datasets/acme/private") and self.headers.get("Authorization") != "Bearer hf_token":
            return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="no access")
        path = path.replace("/acme/private", "/acme/rows")
        if path == api or path.startswith(f"{api}/revision/"):
            sha = self.sha(path.removeprefix(f"{api}/revision/") if path != api else "main")
            if sha not in self.commits:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            return self.json({"id": "acme/rows", "sha": sha, "siblings": []})
        if path.startswith(f"{api}/tree/"):
            sha, _, folder = path.removeprefix(f"{api}/tree/").partition("/")
            recursive = "recursive=true" in self.path.lower()
            return self.json(list(self.tree(sha, f"{folder}/" if folder else "", recursive)))
        prefix = "/datasets/acme/rows/resolve/"
        if path.startswith(prefix):
            sha, _, name = path.removeprefix(prefix).partition("/")
            return self.file(sha, self.files(sha)[name])
        return self.answer(404)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        asked = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        sha = self.path.rpartition("/")[2]
        self.json([self.entry(n, self.files(sha)[n]) for n in asked.get("paths", []) if n in self.files(sha)])

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits.get(self.sha(revision), {})

    def tree(self, revision: str, folder: str, recursive: bool) -> Iterator[dict[str, Any]]:
        folders = set()
        for name, body in self.files(revision).items():
            inside, slash, _ = name.removeprefix(folder).partition("/")
            if name.startswith(folder) and slash and inside not in folders:
                folders.add(inside)
                yield {"type": "directory", "path": folder + inside, "size": 0, "oid": "tree"}
            if name.startswith(folder) and (recursive or not slash):
                yield self.entry(name, body)

    def entry(self, name: str, body: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(body), "oid": f"blob-{hash(body)}"}

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def file(self, sha: str, body: bytes) -> None:
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.answer(200, body, ETag='"x"', X_Repo_Commit=sha)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or len(body)), len(body) - 1)
        part = body[begin : end + 1]
        return self.answer(206, part, Content_Range=f"bytes {begin}-{end}/{len(body)}", X_Repo_Commit=sha)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[FakeHub]]]:
    first = {"README.md": b"# card", "data/a.jsonl": lines(ROWS[:300]), "data/b.jsonl": lines(ROWS[300:])}
    handler = type("Own", (FakeHub,), {"commits": {"1" * 40: first, "3" * 40: {"rows.py": b"1"}}, "main": "1" * 40})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()


def read(endpoint: str, address: str, **more: str) -> dict[str, Any]:
    """What a process of its own finds: the hub's library reads its settings when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT), **more}
    done = subprocess.run(
        [sys.executable, "-c", READ, address], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_data_set_is_read_at_one_commit_which_its_identity_names(hub: tuple[str, type[FakeHub]]) -> None:
    endpoint, handler = hub
    whole = read(endpoint, "hf://datasets/acme/rows")
    assert whole == {"identity": f"commit {'1' * 40}, 2 files", "rows": 500, "first": ROWS[0], "last": ROWS[-1]}
    one = read(endpoint, "hf://datasets/acme/rows/data/b.jsonl")
    assert (one["rows"], one["identity"]) == (200, f"commit {'1' * 40}, 1 files")
    handler.commits["2" * 40] = {"data/a.jsonl": lines(ROWS[:7])}
    handler.main = "2" * 40
    assert read(endpoint, "hf://datasets/acme/rows")["identity"] == f"commit {'2' * 40}, 1 files"
    assert read(endpoint, f"hf://datasets/acme/rows@{'1' * 40}/data")["rows"] == 500


def test_what_is_gone_private_or_made_by_code_is_said(hub: tuple[str, type[FakeHub]]) -> None:
    endpoint, _ = hub
    assert f"has no revision '{'9' * 40}' (any more)" in read(endpoint, f"acme/rows@{'9' * 40}:train")["error"]
    assert "has no revision 'v1' (any more)" in read(endpoint, "hf://datasets/acme/rows@v1/data")["error"]
    error = read(endpoint, "hf://datasets/acme/private")["error"]
    assert "hf://datasets/acme/private" in error and ("refused" in error or "not found" in error)
    assert read(endpoint, "hf://datasets/acme/private", HF_TOKEN="hf_token")["rows"] == 500
    assert (
        "made by code of its own (rows.py), which is not run"
        in (read(endpoint, f"hf://datasets/acme/rows@{'3' * 40}")["error"])
    )


NAMED = {f"data/{split}-00000-of-00001.jsonl": lines(ROWS[:count]) for split, count in (("train", 9), ("test", 4))}


def test_a_split_is_named_as_people_write_it_and_found_by_the_names_of_files(hub: tuple[str, type[FakeHub]]) -> None:
    endpoint, handler = hub
    handler.commits["4" * 40] = {**NAMED, "README.md": b"# no front matter", "val.jsonl": lines(ROWS[:2])}
    handler.main = "4" * 40
    assert [read(endpoint, f"acme/rows:{split}")["rows"] for split in ("train", "validation", "test")] == [9, 2, 4]
    assert read(endpoint, f"acme/rows@{'4' * 40}:test")["identity"] == f"commit {'4' * 40}, 1 files"
    error = read(endpoint, "acme/rows:dev2")["error"]
    assert "train_file_path=hf://datasets/acme/rows:dev2: no file of it is of a split 'dev2'" in error
    assert "expected one of: train, validation, test." in error
    assert "made by code of its own (rows.py)" in read(endpoint, f"acme/rows@{'3' * 40}:train")["error"]


def test_a_card_says_which_files_a_split_has(hub: tuple[str, type[FakeHub]]) -> None:
    endpoint, handler = hub
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: fit, path: 'data/t*'}\n"
    other = "- config_name: other\n  data_files: x.jsonl\n"
    handler.commits["5" * 40] = {**NAMED, "README.md": f"{card}---\n# card\n".encode()}
    handler.commits["6" * 40] = {**NAMED, "README.md": f"{card}{other}---\n".replace("default", "more").encode()}
    assert read(endpoint, f"acme/rows@{'5' * 40}:fit")["rows"] == 13
    assert "has no split 'train'; it has: fit" in read(endpoint, f"acme/rows@{'5' * 40}:train")["error"]
    assert (
        "several sets of data (more, other) and none by default" in read(endpoint, f"acme/rows@{'6' * 40}:fit")["error"]
    )


def test_a_data_set_is_read_from_the_cache_where_the_hub_is_out_of_reach(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "datasets--acme--rows"
    for name, body in {**NAMED, "README.md": b"# card"}.items():
        path = repository / "snapshots" / ("7" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("7" * 40)
    closed = "http://127.0.0.1:9"
    cache = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    for offline in ("1", "0"):
        found = read(closed, "acme/rows:train", HF_HUB_OFFLINE=offline, **cache)
        assert (found["rows"], found["identity"]) == (9, f"commit {'7' * 40}, 1 files")
    for address, rows in (("data", 13), ("data/test-00000-of-00001.jsonl", 4), ("data/te*.jsonl", 4)):
        assert read(closed, f"hf://datasets/acme/rows/{address}", HF_HUB_OFFLINE="1", **cache)["rows"] == rows
    error = read(closed, f"acme/rows@{'8' * 40}:train", HF_HUB_OFFLINE="1", **cache)["error"]
    assert "is not in the cache" in error and "HF_HUB_OFFLINE is set. Run `hf download --repo-type dataset" in error
