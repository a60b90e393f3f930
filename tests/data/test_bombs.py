"""Small files that stand for more than any memory holds end in one message: soon, and in little memory."""

import gzip
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fork_server import ForkServer
from tuneport.artifacts import Model, write_manifest

MOST_SECONDS, MOST_MEMORY = 12, 1 << 30  # of processor time; bytes
STAGE = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({4 << 30}, {4 << 30}))
from steps.__main__ import main
from tuneport.cli.exit_codes import guard
code = guard(main)
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
sys.exit(code)
"""
LIBRARIES = (
    *("ijson", "jinja2.sandbox", "numpy", "pyarrow.parquet", "safetensors", "tokenizers", "yaml"),
    *("steps.preprocess", "steps.model_import", "tuneport.cli.stage_command", "tuneport.data.prepare"),
    "tuneport.tasks.chat_completion",
)
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    root = str(Path(__file__).parents[2])
    server = ForkServer({**os.environ, "PYTHONPATH": root}, tmp_path_factory.mktemp("server"), LIBRARIES)
    yield server
    server.close()


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))  # writes text, by its name
    write_manifest(Model(folder), "model_import", "0", {}, {})
    return folder


@pytest.fixture
def refusal(server: ForkServer, tmp_path: Path) -> Callable[..., str]:
    """What a stage says that refuses its input in time and memory, and leaves nothing behind."""

    def run(stage: str, **flags: Any) -> str:
        output = {"preprocess": "preprocess_output", "model_import": "model_selector_output"}[stage]
        flags = {output: tmp_path / "out", **flags} if output not in flags else flags
        arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        result = server.run(STAGE, stage, *arguments, input="", cwd=tmp_path)
        assert result.returncode == 2, result.stderr[-2000:]
        assert "Traceback" not in result.stderr
        seconds, memory = map(float, result.stdout.split()[-2:])
        assert seconds < MOST_SECONDS
        assert memory < MOST_MEMORY
        assert not (tmp_path / "out").exists()
        return result.stderr

    return run


# -- data --------------------------------------------------------------------------------------------------------------

ROW = b'{"text": "x", "label": "a"}\n'


def parquet(file: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), file, compression="zstd", use_dictionary=False)


def repeated(file: Path) -> None:
    """2000 rows of one and the same value of 8 MB, which stands there once."""
    value = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * (8 * MEBIBYTE)]))
    pq.write_table(pa.table({"text": value, "label": ["a"] * 2000}), file, compression="zstd", store_schema=False)


def zstandard(file: Path, content: bytes) -> None:
    with pa.CompressedOutputStream(str(file), "zstd") as f:
        f.write(content)


DATA: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nested.json": (lambda f: f.write_bytes(b'[{"text": ' + b"[" * 80_000), "nested too deep: more than 100"),
    "hidden.json": (
        lambda f: f.write_bytes(b'[{"text": "' + b"]" * 90_000 + b'", "more": ' + b"[" * 80_000),
        "row 1: is not JSON .nested too deep: more than 100",
    ),
    "members.json": (lambda f: f.write_bytes(b'{"text":' * 80_000), "nested too deep: more than 100"),
    "nested.jsonl": (
        lambda f: f.write_bytes(ROW + b'{"text": ' + b"[" * 80_000),
        "row 2: is not JSON .nested too deep",
    ),
    "line.jsonl": (
        lambda f: f.write_bytes(ROW + b'{"text": "' + b"x" * (18 * MEBIBYTE)),
        "row 2: the row has more than",
    ),
    "text.json": (
        lambda f: f.write_bytes(b'[{"text": "' + b"x" * (18 * MEBIBYTE)),
        r"row 1: the row has more than 16 MiB.*max_row_bytes",
    ),
    "lists.json": (lambda f: f.write_bytes(b'[{"text": [' + b"[]," * (6 * MEBIBYTE)), "row 1: the row has more than"),
    "line.csv": (
        lambda f: f.write_bytes(b"text,label\nx,a\n" + b"x" * (18 * MEBIBYTE)),
        r"line 3: the row has more than 16 MiB.*max_row_bytes",
    ),
    "quote.csv": (
        lambda f: f.write_bytes(b'text,label\nx,a\n"' + b"text,a\n" * (3 * MEBIBYTE)),
        "the row has more than 16 MiB.*a quote or bracket that is never closed",
    ),
    "cells.csv": (lambda f: f.write_bytes(b'text,label\n"' + b'\n","' * (5 * MEBIBYTE)), "the row has more than"),
    "columns.csv": (
        lambda f: f.write_bytes(b",".join(b"%d" % i for i in range(10**5))),
        "'sentence1_key=text'.* not found",
    ),
    "zeros.csv.gz": (
        lambda f: f.write_bytes(gzip.compress(b"text,label\n" + bytes(24 * MEBIBYTE))),
        "decompresses to more than 200 times its size",
    ),
    "blank.jsonl.gz": (
        lambda f: f.write_bytes(gzip.compress(ROW + b"\n" * (24 * MEBIBYTE))),
        r"decompresses to more than 200 times its size.*max_compression_ratio",
    ),
    "blank.csv.zst": (
        lambda f: zstandard(f, b"text,label\n" + b"\n" * (24 * MEBIBYTE)),
        r"decompresses to more than 200 times its size.*max_compression_ratio",
    ),
    "repeated.parquet": (repeated, r"rows 1 to .*: take more than 512 MiB of memory.*max_row_bytes"),
    "nulls.parquet": (
        lambda f: parquet(f, text=pa.array([[None] * 20_000_000], pa.list_(pa.string())), label=["a"]),
        "take more than 512 MiB of memory",
    ),
    "absent.parquet": (
        lambda f: parquet(f, text=pa.array([None] * 1000, pa.binary(MEBIBYTE)), label=["a"] * 1000),
        "take more than 512 MiB of memory",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_a_bomb_in_the_data_is_refused(name: str, refusal: Any, model: Path, tmp_path: Path) -> None:
    write, expected = DATA[name]
    write(tmp_path / name)
    said = refusal(
        "preprocess",
        task_name="text_classification",
        model_selector_output=model,
        train_file_path=tmp_path / name,
        sentence1_key="text",
        label_key="label",
    )
    assert name in said
    assert re.search(expected, said), said


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {k: v}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        (ALIASES + "paths: *i\n", "more than 100,000 values, with those that aliases repeat"),
        ("paths: &a\n  - *a\n", "more than 100,000 values, with those that aliases repeat"),
        (MERGED + "paths: []\n", "more than 100,000 values, with those that aliases repeat"),
        ("paths: " + "[" * 100_000, "nested too deep"),
        ("paths: [" + "a," * 10**6, "has more than 262,144 bytes"),
    ],
    ids=["aliases", "itself", "merged", "nested", "long"],
)
def test_a_bomb_in_an_mltable_is_refused(yaml: str, expected: str, refusal: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "MLTable").write_text(yaml)
    said = refusal(
        "preprocess",
        task_name="text_classification",
        model_selector_output=model,
        train_mltable_path=tmp_path,
        sentence1_key="text",
        label_key="label",
        preprocess_output=tmp_path.parent / f"{tmp_path.name}-out",
    )
    assert "train_mltable_path=" in said
    assert expected in said


# -- chat templates ----------------------------------------------------------------------------------------------------

OVER_TIME = "a chat template that runs for more than 2 seconds on one conversation"
TOO_MUCH = "a chat template that writes too much"
TEMPLATES = {
    "{% for i in range(10**9) %}{% endfor %}{{ messages }}": "Range too big",
    "{{ 'a' * 10**10 }}": TOO_MUCH,
    "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}{{ messages }}": OVER_TIME,
    "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}": TOO_MUCH,
    "{{ ('a' * 9999999).translate({97: 'a' * 9999999}) }}": "takes all memory",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_bomb_in_a_chat_template_is_refused(template: str, refusal: Any, model: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "Ann"}]
    rows = [
        json.dumps({"messages": [{**turn, "content": f"{turn['content']} {i}"} for turn in turns]}) for i in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    said = refusal(
        "preprocess",
        task_name="chat_completion",
        model_selector_output=model,
        train_file_path=tmp_path / "rows.jsonl",
        chat_template=template,
    )
    assert TEMPLATES[template] in said
    assert "chat_template" in said


# -- models ------------------------------------------------------------------------------------------------------------


def gguf(file: Path, *numbers: Any, rest: bytes = b"") -> None:
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *numbers) + rest)


def sparse(file: Path, size: int) -> None:
    with file.open("r+b" if file.exists() else "wb") as f:
        f.truncate(size)


KEY = struct.pack("<Q", 1) + b"k"
MODELS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "entries": ("m.gguf", lambda f: gguf(f, 0, 2**60), "expected at most 100,000"),
    "tensors": ("m.gguf", lambda f: gguf(f, 2**60, 0), "expected at most 100,000"),
    "key": ("m.gguf", lambda f: gguf(f, 0, 1, rest=struct.pack("<Q", 2**62)), "reaches beyond the end of the file"),
    "array": ("m.gguf", lambda f: gguf(f, 0, 1, rest=KEY + struct.pack("<IIQ", 9, 8, 2**50)), "an array of"),
    "numbers": (
        "m.gguf",
        lambda f: gguf(f, 0, 1, rest=KEY + struct.pack("<IIQ", 9, 4, 2**50)),
        "reaches beyond the end",
    ),
    "shape": (
        "m.gguf",
        lambda f: gguf(f, 1, 0, rest=KEY + struct.pack("<I2Q", 2, 2**30, 2**30) + bytes(12)),
        "numbers in",
    ),
    "header": (
        "model.safetensors",
        lambda f: f.write_bytes(struct.pack("<Q", 2**40) + b"{"),
        "its header says that it has",
    ),
    "config": ("config.json", lambda f: sparse(f, 2**27), "has more than 64 MiB"),
    "nested config": ("config.json", lambda f: f.write_bytes(b'{"a":' * 100_000), "nested too deep"),
    "nested tokenizer": ("tokenizer.json", lambda f: f.write_bytes(b'{"a":' * 100_000), "tokenizer.json: is damaged"),
    "long tokenizer": ("tokenizer.json", lambda f: sparse(f, 2**30), "has more than 512 MiB, which no such file"),
    "nested settings": ("tokenizer_config.json", lambda f: f.write_bytes(b'{"a":' * 100_000), "nested too deep"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_bomb_in_a_model_is_refused(case: str, refusal: Any, tiny_model: Path, tmp_path: Path) -> None:
    name, write, expected = MODELS[case]
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    write(folder / name)
    flags = {"gguf_file": name} if name.endswith(".gguf") else {}
    said = refusal("model_import", pytorch_model_path=folder, **flags)
    assert name in said
    assert expected in said
