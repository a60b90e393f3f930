"""Give every reader of files that people bring what mutation makes of them: each refuses with `UserError`, or reads it.

Run: `python tests/fuzz.py --count 2000 --seed 1 --record`, with `--only NAME…` for some readers. Exits with 1 and the
input where anything but `UserError` comes out, or a reader takes long or much memory. `--record` adds the figures to
benchmarks/results/reliability.json.
"""

import argparse
import io
import json
import logging
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a program, the folder of tests stands first

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests import reliability_record, tiny
from tuneport.errors import UserError

LONGEST = 20.0  # seconds of the processor that a case may take
LARGEST = 600 << 20  # bytes by which a case may raise the most memory that the process ever had

# What readers of text stumble over.
TOKENS = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\r", b"\n", b"\r\n\r\n", b"\t", b",", b";", b'"',
    b'""', b"'", b"\\", b"\\u0000", b"\\ud800", b"{", b"}", b"[", b"]", b"[]", b"{}", b":", b": ", b"- ", b"&a ",
    b"*a", b"<<: ", b"!!python/name:os ", b"? ", b"|", b">", b"%", b"#", b"---\n", b"null", b"true", b"NaN",
    b"-Infinity", b"1e999", b"9" * 5000, b"-1", b"0x", b"1_0", b"2026-02-31", b"[" * 3000, b'{"a":' * 3000, b"..",
    b"../", b"/", b"file://", b"s3://", b"azureml:", b"~", b"$HOME", b"\x1b[31m", b"\xe2\x80\xae", "é".encode(),
    b"{{", b"}}", b"{% for x in y %}", b"{% endfor %}", b"{% raw %}", b"{{ 1/0 }}", b"{{ a.b.c }}",
    b"{{ ''.__class__ }}", b"{% set x = 9 ** 9 %}",
]  # fmt: skip


# What stands in the place of a value of JSON or YAML.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, 1e308, 2 ** 70, -(2 ** 63), "", "x", "é\u202e", "0", "1e5", "a" * 3000, [], {},
    [[]], [None], ["a", 1], {"a": {}}, {"": None}, [{"content": "x", "role": 3}], "/", "..",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """One of the originals after one to three mutations, of its bytes or, where it is JSON or YAML, of its values."""
    content = draw(st.sampled_from(originals))
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        change = of_value if draw(st.booleans()) else of_bytes
        content = change(draw, content, originals)
    return content


def of_value(draw: st.DrawFn, content: bytes, originals: Sequence[bytes]) -> bytes:
    """Another value, a value less, or one more, somewhere in a document; of JSON lines, in one of them."""
    lines = content.splitlines()
    if len(lines) > 1 and all(line.startswith(b"{") for line in lines):
        chosen = draw(st.integers(0, len(lines) - 1))
        lines[chosen] = of_value(draw, lines[chosen], originals)
        return b"\n".join(lines) + b"\n"
    try:
        document, write = json.loads(content), json.dumps
    except (ValueError, RecursionError):
        try:
            document, write = yaml.safe_load(content), yaml.safe_dump
        except (yaml.YAMLError, ValueError, RecursionError):
            document = None
    places = list(nodes(document))
    if not places:
        return of_bytes(draw, content, originals)
    node, key = places[draw(st.integers(0, 2**32)) % len(places)]
    kind = draw(st.sampled_from(["replace", "replace", "delete", "rename"]))
    if kind == "replace":
        node[key] = draw(st.sampled_from(VALUES))
    elif kind == "delete":
        del node[key]
    elif isinstance(node, dict):
        node[draw(st.sampled_from(["", "x", "é", "type", "content"]))] = node.pop(key)
    return write(document).encode()


def nodes(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key of a document; of long lists, the first few."""
    if not isinstance(document, (dict, list)):
        return
    for key in list(document) if isinstance(document, dict) else range(min(20, len(document))):
        yield document, key
        yield from nodes(document[key])


def of_bytes(draw: st.DrawFn, original: bytes, originals: Sequence[bytes]) -> bytes:
    content = bytearray(original)
    begin = draw(st.integers(0, 2**32)) % (len(content) + 1)
    end = min(len(content), begin + draw(st.sampled_from([0, 1, 2, 8, 64, 1024])))
    kind = draw(st.sampled_from(["flip", "cut", "repeat", "insert", "insert", "splice", "truncate", "number"]))
    if kind == "flip" and begin < len(content):
        content[begin] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del content[begin:end]
    elif kind == "repeat":
        content[begin:begin] = content[begin:end] * draw(st.sampled_from([1, 2, 100]))
    elif kind == "insert":
        content[begin:begin] = draw(st.sampled_from(TOKENS))
    elif kind == "splice":
        other = draw(st.sampled_from(originals))
        place = draw(st.integers(0, 2**32)) % (len(other) + 1)
        content[begin:end] = other[place : place + 64]
    elif kind == "truncate":
        del content[begin:]
    elif kind == "number" and begin + 8 <= len(content):  # as binary headers hold lengths and counts
        number = draw(st.sampled_from([0, 1, 255, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]))
        content[begin : begin + 8] = number.to_bytes(8, "little")
    return bytes(content)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What is mutated, and how it is read from a file in an empty folder."""

    originals: Sequence[bytes]
    read: Callable[[bytes, Path], None]
    quick: int  # how many cases take a second or so


@dataclass
class Found:
    """What came of the cases of one reader."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds of the processor


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def rows_of(name: str) -> Reader:
    """A data file, read as preprocess does: the check before the run, then every row."""
    import pandas as pd

    from tuneport.data.readers import find

    table = pd.DataFrame(tiny.questions()[:6])
    table.loc[2, "text"] = 'a "quoted", cell\nof two lines; é'
    nested = [{"text": "a", "label": "b", "more": {"x": [1, None, 2.5, True]}}, {"text": "ü", "label": 3}]
    written = {
        "rows.csv": [table.to_csv(index=False).encode(), table.to_csv(index=False, sep=";").encode("utf-8-sig")],
        "rows.tsv": [table.to_csv(index=False, sep="\t").encode()],
        "rows.jsonl": ["".join(json.dumps(row) + "\n" for row in nested).encode()],
        "rows.json": [json_bytes(nested), json_bytes({"data": nested}), json_bytes({"version": 1, "data": nested})],
        "rows.parquet": [parquet(table), parquet(pd.DataFrame({"text": ["a"], "label": [["b", "c"]]}))],
    }

    def read(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        source = find(folder / name, "train_file_path")
        wanted = {"sentence1_key": "text", "label_key": "label"}
        source.peek(wanted)
        for row in source.rows(wanted):
            assert isinstance(row.where, str)

    return Reader(originals=written[name], read=read, quick=60)


def parquet(table: Any) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


def mltable() -> Reader:
    from tuneport.data.mltable import find_mltable

    delimited = b"transformations:\n  - read_delimited:\n      delimiter: ','\n      encoding: utf8\n"
    texts = [
        b"type: mltable\npaths:\n  - file: ./rows.csv\n" + delimited + b"      header: all_files_same_headers\n",
        b"paths:\n  - pattern: ./*.csv\ntransformations:\n  - read_delimited\n  - keep_columns: [text, label]\n",
        b"paths:\n  - file: rows.csv\n",
    ]

    def read(content: bytes, folder: Path) -> None:
        (folder / "MLTable").write_bytes(content)
        (folder / "rows.csv").write_text("text,label\na,b\nc,d\n")
        wanted = {"sentence1_key": "text", "label_key": "label"}
        for row in find_mltable(folder, "train_mltable_path").rows(wanted):
            assert row.values

    return Reader(originals=texts, read=read, quick=80)


def configuration() -> Reader:
    import pipelines
    from tuneport import targets
    from tuneport.config import given as values_given
    from tuneport.config import platform
    from tuneport.runner.request import Request

    pipeline = pipelines.load("text_classification")
    digest, common = b"@sha256:" + b"0" * 64, b"train_file_path: r.csv\nsentence1_key: text\nlabel_key: label\n"
    texts = [
        common + b"pytorch_model_path: model\nlearning_rate: 2e-5\napply_lora: true\nlora_target_modules: all-linear\n",
        common + b"huggingface_id: a/b\nplatform:\n  azureml: {image_base: 'r/b:1', workspace: work}\n"
        b"  docker:\n    images: {base: a, trainer: b}\n    gpus: none\n    memory: 4g\n",
        common
        + b"huggingface_id: a/b\nplatform:\n  kfp:\n    images: {base: r/b"
        + digest
        + b", trainer: r/t"
        + digest
        + b"}\n",
    ]

    def read(content: bytes, folder: Path) -> None:
        file = folder / "config.yaml"
        file.write_bytes(content)
        section = platform(file)
        request = Request(output_dir=folder, folder=folder, environment={}, platform=section)
        for name in {"local", *section} & set(targets.names()):
            targets.settings(targets.load(name), request)
        pipeline.resolve(values_given(pipeline, file, [], folder))

    return Reader(originals=texts, read=read, quick=60)


@cache
def model_files() -> Mapping[str, bytes]:
    """A tiny BERT, by the names of its files."""
    with tempfile.TemporaryDirectory() as name:
        tiny.write_model(Path(name))
        return {file.name: file.read_bytes() for file in Path(name).iterdir()}


def model_file(name: str) -> Reader:
    """One file of a model folder, read as model_import does."""

    def read(content: bytes, folder: Path) -> None:
        write_files(folder / "model", model_files() | {name: content})
        import_folder(folder / "model", folder)

    return Reader(originals=[model_files()[name]], read=read, quick=12)


def import_folder(model: Path, folder: Path, **sources: Any) -> None:
    import steps
    from tuneport.artifacts import CustomModel, Model
    from tuneport.stage import execute

    given_as = sources or {"pytorch_model_path": CustomModel(model)}
    execute(steps.load("model_import")(**given_as, model_selector_output=Model(folder / "imported")))


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def safetensors_header() -> Reader:
    """The header alone, with its length before it; the tensors behind it stay as they are."""
    content = model_files()["model.safetensors"]
    length = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + length], content[8 + length :]

    def read(changed: bytes, folder: Path) -> None:
        whole = len(changed).to_bytes(8, "little") + changed + tensors
        write_files(folder / "model", model_files() | {"model.safetensors": whole})
        import_folder(folder / "model", folder)

    return Reader(originals=[header], read=read, quick=12)


def mlmodel() -> Reader:
    from tuneport.artifacts import CustomMLflowModel

    text = (
        b"artifact_path: model\nflavors:\n  python_function:\n    loader_module: mlflow.transformers\n  transformers:\n"
        b"    source_model_name: a/b\n    model_binary: model\n    task: text-classification\nmodel_uuid: x\n"
    )

    def read(content: bytes, folder: Path) -> None:
        write_files(folder / "exported" / "model", model_files())
        (folder / "exported" / "MLmodel").write_bytes(content)
        import_folder(folder, folder, mlflow_model_path=CustomMLflowModel(folder / "exported"))

    return Reader(originals=[text], read=read, quick=12)


@cache
def gguf_file() -> bytes:
    from tests.model_source.test_gguf import write_gguf

    with tempfile.TemporaryDirectory() as name:
        write_gguf(Path(name) / "tiny.gguf")
        return (Path(name) / "tiny.gguf").read_bytes()


def gguf() -> Reader:
    content = gguf_file()
    header, tensors = content[:6000], content[6000:]

    def read(changed: bytes, folder: Path) -> None:
        (folder / "tiny.gguf").write_bytes(changed + tensors)
        import_folder(folder / "tiny.gguf", folder)

    return Reader(originals=[header], read=read, quick=6)


@cache
def chat_model() -> Mapping[str, bytes]:
    """What preprocess reads of a chat model: a tokenizer, byte by byte, and a configuration."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    with tempfile.TemporaryDirectory() as name:
        fast.save_pretrained(name)
        LlamaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(name)
        return {file.name: file.read_bytes() for file in Path(name).iterdir()}


TEMPLATES = [
    (
        b"{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        b"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    (
        b"{% for m in messages %}{{ m.role }}: {{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        b"{{ c.function | tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
    ),
]
CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is red?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "a colour"},
]


def prepare_chat(folder: Path, rows: bytes, **values: Any) -> None:
    """Preprocess conversations."""
    import steps
    from tuneport.artifacts import Model, write_manifest
    from tuneport.stage import execute

    write_files(folder / "model", chat_model())
    write_manifest(Model(folder / "model"), "model_import", "0", {}, {})
    (folder / "rows.jsonl").write_bytes(rows)
    stage = steps.load("preprocess", "chat_completion")(
        model_selector_output=folder / "model",
        train_file_path=folder / "rows.jsonl",
        preprocess_output=folder / "rows",
        **values,
    )
    execute(stage)


def chat_rows() -> bytes:
    asked = ({"role": "user", "content": f"what is {i}?"} for i in range(12))
    return b"".join(json_bytes({"messages": [question, CONVERSATION[4]]}) + b"\n" for question in asked)


def chat_template() -> Reader:
    def read(content: bytes, folder: Path) -> None:
        file = folder / "template.jinja"
        file.write_bytes(content)
        prepare_chat(folder, chat_rows(), chat_template=str(file))

    return Reader(originals=TEMPLATES, read=read, quick=8)


def conversations() -> Reader:
    def read(content: bytes, folder: Path) -> None:
        prepare_chat(folder, content, chat_template=TEMPLATES[1].decode())

    return Reader(originals=[chat_rows() + json_bytes({"messages": CONVERSATION}) + b"\n"], read=read, quick=8)


READERS: dict[str, Callable[[], Reader]] = {
    **{
        name: lambda name=name: rows_of(name)
        for name in ("rows.csv", "rows.tsv", "rows.jsonl", "rows.json", "rows.parquet")
    },
    "MLTable": mltable,
    "configuration": configuration,
    **{
        name: lambda name=name: model_file(name)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    },
    "safetensors header": safetensors_header,
    "MLmodel": mlmodel,
    "GGUF": gguf,
    "chat template": chat_template,
    "conversations": conversations,
}  # type: ignore[misc]


def fuzz(name: str, count: int, number: int, *, shrink: bool = True) -> Found:
    """So many cases of one reader; raises what is no `UserError` (several together), with the input in its notes."""
    reader, found = READERS[name](), Found()
    for original in reader.originals:  # each is fine as it stands: else nothing behind its fault would be tried
        with tempfile.TemporaryDirectory() as folder:
            reader.read(original, Path(folder))
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(content=mutated(reader.originals))
    def case(content: bytes) -> None:
        began, memory = time.process_time(), most_memory()
        folder = Path(tempfile.mkdtemp())
        (folder / "a" / "b").mkdir(parents=True)  # what '..' names is empty
        try:
            reader.read(content, folder / "a" / "b")
            found.outcomes["read"] += 1
        except UserError:
            found.outcomes["refused"] += 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        seconds = time.process_time() - began
        found.slowest = max(found.slowest, seconds)
        assert seconds < LONGEST, f"{seconds:.0f} s"
        assert most_memory() - memory < LARGEST, f"{(most_memory() - memory) >> 20} MB"

    case()
    return found


def most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    figures: dict[str, Any] = {}
    failed = 0
    for name in arguments.only:
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                found = fuzz(name, arguments.count, arguments.seed)
        except BaseException:
            failed += 1
            print(f"{name}: FAILED", traceback.format_exc(), sep="\n", flush=True)
            continue
        figures[name] = dict(found.outcomes)
        print(f"{name}: {figures[name]}, the slowest {found.slowest:.2f} s", flush=True)
    if arguments.record:
        reliability_record.add("fuzz", {"cases": figures, "readers_failed": failed})
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
