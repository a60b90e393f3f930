"""A fake of Hugging Face's hub: no real hub, but a server that answers what huggingface_hub's client asks.

`Hub` answers the few requests of snapshot_download from a dictionary; `WritableHub` those of create_repo, create_commit
and whoami besides. What each request is and what comes back was read from huggingface_hub's own client (hf_api.py,
_commit_api.py, lfs.py), which does not talk to it otherwise than to the hub; what only the hub itself decides, such as
its limits of rate and size, it does not know.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

ID = "acme/tiny-bert"
FIRST = "1" * 40


Answer = tuple[int, dict[str, str], bytes]


class Hub:
    """A fake of the hub: repositories by id, each with its commits; what was asked for is noted in `paths`."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.commits = {FIRST: files}
        self.main = FIRST
        self.gated = False
        self.paths: list[str] = []
        self.tokens: set[str | None] = set()
        self.token: str | None = None  # of the request under way
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(*hub.response(urlsplit(self.path).path))

            def do_GET(self) -> None:
                hub.tokens.add(self.headers.get("Authorization"))
                hub.token = self.headers.get("Authorization")
                self.answer(*hub.response(urlsplit(self.path).path))

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                if self.command != "HEAD":
                    hub.paths.append(unquote(self.path))
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_POST(self) -> None:
                self.answer(*hub.written(self.command, urlsplit(self.path).path, self.body(), self.headers))

            def do_PUT(self) -> None:
                self.answer(*hub.written(self.command, urlsplit(self.path).path, self.body(), self.headers))

            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def response(self, path: str) -> Answer:
        if ID not in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if found := re.fullmatch(rf"/api/models/{ID}(?:/revision/(.+))?", path):
            commit = self.main if found[1] in (None, "main") else found[1]
            if commit not in self.commits:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            return self.json({"id": ID, "sha": commit, "siblings": []})
        if found := re.fullmatch(rf"/api/models/{ID}/tree/(\w+)", path):
            entries = self.commits[found[1]].items()
            listed = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha256(b).hexdigest()} for n, b in entries
            ]
            return self.json(listed)
        if found := re.fullmatch(rf"/{ID}/resolve/(\w+)/(.+)", path):
            body = self.commits[found[1]].get(unquote(found[2]))
            if body is None:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": found[1]}, body
        return 404, {}, b""

    def written(self, method: str, path: str, body: bytes, headers: Any) -> Answer:
        return 405, {}, b""

    @staticmethod
    def json(content: object, status: int = 200) -> Answer:
        return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


class WritableHub(Hub):
    """A hub with accounts by token, that takes commits; each is noted in `log`, as its message and what it changed."""

    def __init__(self) -> None:
        self.accounts: dict[str, dict[str, Any]] = {}
        self.repositories: dict[str, dict[str, Any]] = {}
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.log: list[tuple[str, list[str]]] = []
        self.refuses = 0  # the status that any write is answered with
        self.stores = True  # whether large files are taken
        super().__init__({})

    def account(self, token: str, name: str, role: str = "write", organisations: tuple[str, ...] = ()) -> None:
        self.accounts[f"Bearer {token}"] = {
            "name": name,
            "orgs": [{"name": organisation} for organisation in organisations],
            "auth": {"accessToken": {"displayName": "tuning", "role": role}},
        }

    def content(self, repository: str) -> dict[str, bytes]:
        return dict(self.repositories[repository]["commits"][-1][1])

    def response(self, path: str) -> Answer:
        if path == "/api/whoami-v2":
            account = self.accounts.get(self.token or "")
            return self.json(account) if account else self.json({"error": "Invalid credentials"}, 401)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
        if not found or found[1] not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        held = self.repositories[found[1]]
        commits = dict(held["commits"])
        commit = held["commits"][-1][0] if found[3] in (None, "main") else unquote(found[3])
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if found[2] == "tree":
            return self.json(
                [{"type": "file", "path": n, "size": len(b), "oid": git_oid(b)} for n, b in commits[commit].items()]
            )
        siblings = [{"rfilename": name} for name in commits[commit]]
        return self.json({"id": found[1], "sha": commit, "private": held["private"], "siblings": siblings})

    def written(self, method: str, path: str, body: bytes, headers: Any) -> Answer:
        if path == "/api/validate-yaml":
            return self.json({"warnings": [], "errors": []})
        if method == "PUT":  # what a signed address of the store takes, without a token
            if not self.stores:
                return 403, {}, b"<Error><Code>AccessDenied</Code></Error>"
            self.large[hashlib.sha256(body).hexdigest()] = body
            return 200, {}, b""
        account = self.accounts.get(headers.get("Authorization") or "")
        if account is None:
            return self.json({"error": "Invalid credentials"}, 401)
        if self.refuses:
            return self.json({"error": "You are not allowed to."}, self.refuses)
        if path == "/api/repos/create":
            return self.create(json.loads(body), account)
        return self.changed(path, body, account)

    def changed(self, path: str, body: bytes, account: dict[str, Any]) -> Answer:
        """What is asked of a repository that is there."""
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(/preupload/main|/commit/main|\.git/.*)", path)
        if not found or found[1] not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if found[1].partition("/")[0] not in self.owners(account):
            return self.json({"error": "You are not allowed to write there."}, 403)
        if found[2] == "/preupload/main":
            return self.json({"files": [self.mode(found[1], one) for one in json.loads(body)["files"]]})
        if found[2] == "/commit/main":
            return self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        assert found[2] == ".git/info/lfs/objects/batch"
        return self.json({"transfer": "basic", "objects": [self.action(one) for one in json.loads(body)["objects"]]})

    @staticmethod
    def owners(account: dict[str, Any]) -> list[str]:
        return [account["name"], *(one["name"] for one in account["orgs"])]

    def create(self, asked: dict[str, Any], account: dict[str, Any]) -> Answer:
        owner = asked["organization"] or account["name"]
        name = f"{owner}/{asked['name']}"
        if owner not in self.owners(account) or account["auth"]["accessToken"]["role"] == "read":
            return self.json({"error": f"You don't have the rights to create a model under the namespace {owner}"}, 403)
        url = {"url": f"{self.url}/{name}", "name": name}
        if name in self.repositories:
            return self.json({"error": "You already created this model repo", **url}, 409)
        first = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
        private = asked.get("visibility") == "private"
        self.repositories[name] = {"private": private, "commits": [(git_oid(name.encode()), first)]}
        return self.json(url)

    def mode(self, repository: str, file: dict[str, Any]) -> dict[str, Any]:
        """Whether a file goes to the store of large ones, and what it is at present."""
        name = file["path"]
        large = name.endswith(".safetensors")
        held = self.content(repository).get(name)
        oid = None if held is None else hashlib.sha256(held).hexdigest() if large else git_oid(held)
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def action(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.large:
            return one
        return one | {"actions": {"upload": {"href": f"{self.url}/store/{one['oid']}"}}}

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> Answer:
        held, files, changed = self.repositories[repository], self.content(repository), []
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, held["commits"][-1][0]):
            return self.json({"error": "A commit has happened since. Please refresh and try again."}, 412)
        for line in lines[1:]:
            value, kind = line["value"], line["key"]
            changed.append(value["path"])
            if kind == "deletedFile":
                del files[value["path"]]
            elif kind == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        commit = hashlib.sha1(repr((held["commits"][-1][0], changed)).encode(), usedforsecurity=False).hexdigest()
        held["commits"].append((commit, files))
        self.log.append((header["summary"], changed))
        return self.json({"commitUrl": f"{self.url}/{repository}/commit/{commit}", "commitOid": commit})


def git_oid(content: bytes) -> str:
    """What git calls a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
