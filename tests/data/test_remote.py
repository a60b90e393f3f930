"""Data in an object store or on a web server: the same rows as of local files, whatever the connection does."""

import gzip
import http.server
import importlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.object_store import VARIABLES, CuttingProxy, client, moto_server, reached
from tuneport.address import Address
from tuneport.data import remote
from tuneport.data.mltable import find_mltable
from tuneport.data.readers import Source, find
from tuneport.errors import UserError
from tuneport.limits import DataLimits

ROWS = [{"text": f"row {i} of the data", "label": i % 3} for i in range(3000)]
WANTED = {"sentence1_key": "text", "label_key": "label"}
LARGE = [{"text": f"{i} " + "abcdefgh" * 40, "label": i % 3} for i in range(40_000)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def values(source: Source) -> list[dict[str, Any]]:
    return [row.values for row in source.rows(WANTED)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with moto_server() as url:
        store = client(url)
        store.create_bucket(Bucket="rows")
        for part in range(3):
            body = gzip.compress(lines(ROWS[part * 1000 : (part + 1) * 1000]))
            store.put_object(Bucket="rows", Key=f"shards/part-{part}.jsonl.gz", Body=body)
        store.put_object(Bucket="rows", Key="shards/_SUCCESS", Body=b"")
        table = pa.Table.from_pylist(ROWS)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=500)
        store.put_object(Bucket="rows", Key="all.parquet", Body=sink.getvalue().to_pybytes())
        store.put_object(Bucket="rows", Key="all.jsonl.zst", Body=pa.compress(lines(ROWS), "zstd", asbytes=True))
        store.put_object(Bucket="rows", Key="large.jsonl", Body=lines(LARGE))
        store.put_object(Bucket="rows", Key="table/MLTable", Body=b"paths: [{pattern: ./*.jsonl}]")
        store.put_object(Bucket="rows", Key="table/a.jsonl", Body=lines(ROWS[:10]))
        store.put_object(Bucket="rows", Key="hostile/MLTable", Body=b"paths: [{file: /etc/passwd}]")
        store.put_object(Bucket="rows", Key="leaving/MLTable", Body=b"paths: [{file: 's3://rows/table/a.jsonl'}]")
        bomb = gzip.compress(b'{"text": "' + b"a" * (8 << 20) + b'", "label": 1}\n')
        store.put_object(Bucket="rows", Key="bomb.jsonl.gz", Body=bomb)
        wide = lines([*ROWS[:10], {"text": "a" * 200_000, "label": 1}])
        store.put_object(Bucket="rows", Key="wide.jsonl", Body=wide)
        yield url


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    from fsspec.spec import AbstractFileSystem

    AbstractFileSystem.clear_instance_cache()
    with reached(server, monkeypatch):
        yield monkeypatch


def source(address: str, limits: DataLimits | None = None) -> Source:
    return find(Address.of(address), "train_file_path", limits=limits or DataLimits())


@pytest.mark.parametrize(
    "address",
    ["s3://rows/shards", "s3://rows/shards/*.jsonl.gz", "s3://rows/all.parquet", "s3://rows/all.jsonl.zst"],
)
def test_a_folder_a_glob_gzip_zstd_and_parquet_hold_the_rows_that_were_put_there(address: str, s3: Any) -> None:
    found = source(address)
    assert values(found) == ROWS
    assert found.identity


def test_row_ids_name_shards_and_rows_as_those_of_local_files_do(s3: Any) -> None:
    first, *_, last = source("s3://rows/shards").rows(WANTED)
    assert (first.row_id, last.row_id) == ("part-0.jsonl.gz:1", "part-2.jsonl.gz:1000")


@pytest.mark.parametrize("seed", range(3))
def test_connections_cut_at_ten_points_lose_and_double_no_row(
    seed: int, server: str, s3: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(lines(LARGE))
    proxy = CuttingProxy(server, cuts=10, span=size - 1_000_000, seed=seed)
    s3.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    assert values(source("s3://rows/large.jsonl")) == LARGE
    assert proxy.cut == 10
    proxy.close()


def test_gzip_shards_and_parquet_are_whole_when_connections_are_cut(
    server: str, s3: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    for address, span in (("s3://rows/shards", 12_000), ("s3://rows/all.parquet", 12_000)):
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        proxy = CuttingProxy(server, cuts=5, span=span)
        s3.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert values(source(address)) == ROWS
        assert proxy.cut == 5
        proxy.close()


@pytest.mark.slow
def test_a_connection_that_never_comes_back_is_named_with_the_row(
    server: str, s3: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TRIES", 2)
    monkeypatch.setattr(remote, "BLOCK", 1 << 20)
    proxy = CuttingProxy(server, cuts=0, span=1)
    s3.setenv("AWS_ENDPOINT_URL", proxy.url)
    rows = source("s3://rows/large.jsonl").rows(WANTED)
    next(rows)
    proxy.close()
    with pytest.raises(UserError, match=r"large\.jsonl row \d+: cannot be read \(the connection broke at byte"):
        list(rows)


def test_data_that_changes_while_it_is_read_is_refused_and_its_identity_differs(server: str, s3: Any) -> None:
    store = client(server)
    store.put_object(Bucket="rows", Key="moving.jsonl", Body=lines(ROWS[:20]))
    found = source("s3://rows/moving.jsonl")
    before = found.identity
    rows = found.rows(WANTED)
    next(rows)
    store.put_object(Bucket="rows", Key="moving.jsonl", Body=lines(ROWS[:5]))
    with pytest.raises(UserError, match=r"s3://rows/moving\.jsonl: changed while it was read"):
        list(rows)
    assert source("s3://rows/moving.jsonl").identity != before


def test_limits_hold_for_remote_data(s3: Any) -> None:
    with pytest.raises(UserError, match="decompresses to more than 200 times its size"):
        values(source("s3://rows/bomb.jsonl.gz"))
    with pytest.raises(UserError, match="row 11: the row has more than 100,000 bytes"):
        values(source("s3://rows/wide.jsonl", DataLimits(max_row_bytes=100_000)))


def test_a_table_elsewhere_names_only_what_stands_in_its_folder(s3: Any) -> None:
    def table(name: str, limits: DataLimits | None = None) -> Source:
        return find_mltable(Address.of(f"s3://rows/{name}"), "train_mltable_path", limits=limits or DataLimits())

    assert values(table("table")) == ROWS[:10]
    with pytest.raises(UserError, match="'/etc/passwd', which leads outside of its folder"):
        table("hostile")
    with pytest.raises(UserError, match=r"outside of its folder. Set allow_outside=true"):
        table("leaving")
    assert values(table("leaving", DataLimits(allow_outside=True))) == ROWS[:10]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://rows/absent.jsonl", r"train_file_path=s3://rows/absent\.jsonl: not found"),
        ("s3://no-such-bucket/x.jsonl", r"s3://no-such-bucket/x\.jsonl: not found \(The specified bucket does not"),
        ("minio://rows/x.jsonl", r"minio://rows/x\.jsonl: no data can be read from there; expected a path, or"),
    ],
)
def test_what_is_not_there_is_said(address: str, message: str, s3: Any) -> None:
    with pytest.raises(UserError, match=message):
        source(address)


@pytest.mark.parametrize(
    ("address", "module", "extra"),
    [
        ("s3://b/x.csv", "s3fs", "s3"),
        ("gs://b/x.csv", "gcsfs", "gcs"),
        ("abfs://c@account.dfs.core.windows.net/x.csv", "adlfs", "azure"),
    ],
)
def test_a_store_whose_package_is_absent_names_the_extra(
    address: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(registry._registry, address.partition(":")[0], raising=False)
    with pytest.raises(UserError, match=rf"needs a package that is not installed.*pip install 'tuneport\[{extra}\]'"):
        source(address)


def test_a_refusal_says_which_credential_was_tried(s3: pytest.MonkeyPatch) -> None:
    class Refusing(Web):  # moto grants everything to everybody
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815

    with serving(Refusing) as url:
        s3.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(UserError, match=r"access was refused .* Tried: the key AKIA… \(from env\)") as e:
            source("s3://rows/all.parquet")
    assert VARIABLES["AWS_SECRET_ACCESS_KEY"] not in str(e.value)


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


class Web(http.server.BaseHTTPRequestHandler):
    """A web server without ranges; ``broken`` answers end in the middle."""

    body = lines(ROWS)
    broken = False

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.send_header("ETag", '"v1"')
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.body[: len(self.body) // 2] if self.broken else self.body)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_web_server_without_ranges_is_read_as_it_sends_and_a_break_is_named() -> None:
    handler = type("Own", (Web,), {})
    with serving(handler) as url:
        address = f"{url.replace('://', '://user:secret@')}/rows.jsonl?sig=SECRET"
        found = source(address)
        assert values(found) == ROWS
        assert found.identity == f"v1 ({len(Web.body)} bytes)"
        handler.broken = True
        with pytest.raises(UserError, match=r"rows\.jsonl: cannot be read \(the connection broke") as e:
            values(source(address))
        assert "secret" not in str(e.value) and "SECRET" not in str(e.value)


def test_a_file_address_is_the_path_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "a b.jsonl").write_bytes(lines(ROWS[:3]))
    assert values(source(f"file://{tmp_path}/a%20b.jsonl")) == ROWS[:3]
