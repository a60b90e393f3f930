"""`tuneport preview`: of each task, the first rows as the model will see them; and what is said of the rest."""

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import pipelines
from steps.model_import import ModelImport
from tests.evaluation.test_report import CHROMIUM, browse
from tests.model_source.test_gguf import write_gguf
from tests.tasks.conftest import CHATML
from tuneport.artifacts import CustomModel, Model
from tuneport.errors import UserError
from tuneport.inspection.look import Preview, Window, preview
from tuneport.inspection.show import render, save_html
from tuneport.json_yaml import read_json
from tuneport.model_source.settings_only import copy_settings
from tuneport.stage import execute


@pytest.fixture
def look(tmp_path: Path, write_jsonl: Callable[..., Path]) -> Callable[..., Preview]:
    """The preview of a task's rows."""

    def run(task: str, model: Path, rows: list[Mapping[str, Any]], shown: int = 1, **values: Any) -> Preview:
        pipeline = pipelines.load(task)
        data = write_jsonl(tmp_path / "rows.jsonl", rows)
        given = {"pytorch_model_path": model, "train_file_path": data, **values}
        return preview(pipeline, pipeline.resolve(given), shown)

    return run


def learnt(window: Window) -> str:
    return "".join(token.text for token in window.tokens if token.trained)


def text_of(found: Preview) -> str:
    from rich.console import Console

    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(render(found))
    return capture.get()


def test_a_classification_shows_labels_with_examples_what_is_left_out_and_what_is_cut(
    look: Callable[..., Preview], imported_model: Path, questions: list[dict[str, str]]
) -> None:
    rows = [*questions, questions[0], {"text": " ", "label": "animal"}]
    found = look(
        "text_classification", imported_model, rows, 2, sentence1_key="text", label_key="label", max_seq_length=7
    )
    assert [len(row.windows) for row in found.rows] == [1, 1]
    window = found.rows[0].windows[0]
    assert window.tokens[0].special and not window.tokens[1].special and window.answer in ("animal", "colour", "number")
    counts = {label: count for label, (count, _) in found.labels.items()}
    assert counts == dict.fromkeys(("animal", "colour", "number"), 40)
    assert 0 < found.truncated <= found.encoded == 120
    assert found.whole and found.steps == 96
    text = text_of(found)
    assert "1 empty text in column 'text'" in text
    assert f"cut at 7 tokens: {found.truncated} of 120" in text
    assert "122" in text and "[CLS]" in text


def test_more_rows_than_are_looked_at_are_said_and_no_steps_are_guessed(
    look: Callable[..., Preview], imported_model: Path, questions: list[dict[str, str]]
) -> None:
    rows = [{**row, "text": f"{row['text']} {i}"} for i in range(10) for row in questions]
    log = logging.getLogger("tuneport.preprocess")
    log.setLevel(logging.INFO)
    found = look("text_classification", imported_model, rows, sentence1_key="text", label_key="label")
    assert log.level == logging.INFO
    log.setLevel(logging.NOTSET)
    assert found.report["sources"]["train"]["read"] == 1000
    assert found.steps is None
    assert "has more rows than were looked at" in text_of(found)


def test_of_several_sources_the_first_rows_of_each_are_looked_at(
    imported_model: Path, questions: list[dict[str, str]], tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    pipeline = pipelines.load("text_classification")
    long = [{**row, "text": f"{row['text']} {i}"} for i in range(10) for row in questions]
    files = [write_jsonl(tmp_path / "a.jsonl", long), write_jsonl(tmp_path / "b.jsonl", questions)]
    given = {"pytorch_model_path": imported_model, "sentence1_key": "text", "label_key": "label"}

    def found(first: dict[str, Any]) -> Preview:
        sources = [{"path": str(files[0]), "weight": 1, **first}, {"path": str(files[1]), "weight": 1}]
        return preview(pipeline, pipeline.resolve({**given, "train_file_path": sources}), 1)

    cut = found({})
    assert [entry["read"] for entry in cut.report["sources"]["train"]["mixture"]] == [1000, 120]
    assert cut.steps is None
    assert "880 of a.jsonl, beyond its weight" in text_of(cut)
    assert found({"max_rows": 500}).steps == 8 * 24


def test_a_tagging_names_the_tag_of_each_word_that_is_learnt(
    look: Callable[..., Preview], imported_model: Path, questions: list[dict[str, str]]
) -> None:
    rows = [
        {"words": row["text"].split(), "tags": ["O"] * (len(row["text"].split()) - 1) + ["B-X"]} for row in questions
    ]
    window = look("token_classification", imported_model, rows, token_key="words", tag_key="tags").rows[0].windows[0]
    assert [token.label for token in window.tokens if token.trained][-1] == "B-X"
    assert not window.tokens[0].trained and window.tokens[0].label == ""


def test_a_question_shows_its_answer_in_each_window(look: Callable[..., Preview], imported_model: Path) -> None:
    context = " ".join(["white black red green"] * 12) + " goat"
    rows = [
        {"q": f"what is it {i}", "c": context, "a": {"text": ["goat"], "answer_start": [len(context) - 4]}}
        for i in range(20)
    ]
    keys = {"question_key": "q", "context_key": "c", "answers_key": "a", "max_seq_length": 32, "doc_stride": 8}
    windows = look("question_answering", imported_model, rows, **keys).rows[0].windows
    assert len(windows) > 1
    assert windows[-1].answer == "goat" == learnt(windows[-1])
    assert windows[0].answer == "no answer in this window" and learnt(windows[0]) == ""


@pytest.mark.parametrize(("kind", "task"), [("t5", "summarization"), ("llama", "summarization"), ("t5", "translation")])
def test_a_text_that_is_written_is_what_is_learnt(
    kind: str, task: str, look: Callable[..., Preview], writer: Callable[[str], Path], rows: list[dict[str, str]]
) -> None:
    keys: dict[str, Any] = {"document_key": "document", "summary_key": "summary", "max_target_length": 16}
    if task == "translation":
        keys = {"source_lang": "en", "target_lang": "de"}
    window = look(task, writer(kind), rows, **keys).rows[0].windows[0]
    said = [t.text for t in window.target] if kind == "t5" else [t.text for t in window.tokens if t.trained]
    by_text = {row["summary" if task == "summarization" else "de"] for row in rows}
    assert " ".join(said).replace(" </s>", "").strip() in by_text
    assert said[-1] == "</s>"


def test_a_completion_and_a_conversation_learn_the_answer_alone(look: Callable[..., Preview], decoder: Any) -> None:
    rows = [{"p": f"say {i}: ", "c": f"it is {i}"} for i in range(20)]
    window = look("text_generation", decoder("llama"), rows, text_key="p", ground_truth_key="c").rows[0].windows[0]
    assert learnt(window).startswith("it is") and not learnt(window).startswith("say")
    said = [("user", "say"), ("assistant", "it is")]
    turns = [[{"role": role, "content": f"{text} {i}"} for role, text in said] for i in range(20)]
    model = decoder("gpt2", CHATML, eos_token="<|im_end|>")
    window = look("chat_completion", model, [{"messages": t} for t in turns]).rows[0].windows[0]
    assert learnt(window).startswith("it is") and "say" not in learnt(window)
    assert window.answer.endswith("tokens are learnt")


def test_the_page_is_whole_and_holds_the_rows_as_text(
    look: Callable[..., Preview], imported_model: Path, questions: list[dict[str, str]], tmp_path: Path
) -> None:
    rows = [{**row, "text": f"<script>alert(1)</script> {row['text']}"} for row in questions]
    found = look("text_classification", imported_model, rows, sentence1_key="text", label_key="label")
    save_html(found, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    HTMLParser().feed(html)
    assert "<script" not in html and html.rstrip().endswith("</html>")
    assert "&lt;script&gt;" in html
    with pytest.raises(UserError, match="cannot be written"):
        save_html(found, tmp_path / "none" / "page.html")


def test_a_gguf_model_is_looked_into_without_its_weights_as_its_import_would_be(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_gguf(tmp_path / "model" / "x.gguf")
    step = ModelImport(pytorch_model_path=CustomModel(tmp_path / "model"), model_selector_output=Model(tmp_path / "m"))
    found = copy_settings(step, tmp_path / "base")
    execute(step)
    with safe_open(tmp_path / "m" / "model.safetensors", "numpy") as weights:
        count = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    assert found == {"F32": count}
    assert (tmp_path / "base" / "model.safetensors").stat().st_size < 200, "one number stands for the weights"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "base" / name).read_bytes() == (tmp_path / "m" / name).read_bytes(), name
    settings, imported = (read_json(tmp_path / folder / "config.json") for folder in ("base", "m"))
    assert settings == {name: value for name, value in imported.items() if name != "architectures"}


def test_the_rows_are_shown_as_the_tokenizer_in_a_gguf_file_reads_them(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    write_gguf(tmp_path / "x.gguf")
    rows = write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": f"tell {i}", "completion": f"hello {i}"} for i in range(30)]
    )
    pipeline = pipelines.load("text_generation")
    given = {"pytorch_model_path": tmp_path / "x.gguf", "train_file_path": rows}
    given |= {"text_key": "prompt", "ground_truth_key": "completion"}
    shown = preview(pipeline, pipeline.resolve(given), 1).rows[0].windows[0]
    assert [token.text for token in shown.tokens][-6:-2] == ["he", "ll", "o", " "]
    assert "".join(token.text for token in shown.tokens if token.trained).startswith(" hello")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"huggingface_id": "acme/tiny", "gguf_file": "x.gguf"}, "gguf_file: such a model has to be imported before"),
        ({"pytorch_model_path": "x.gguf"}, "x.gguf: cannot be read as a model"),
    ],
)
def test_what_cannot_be_looked_into_is_said(
    values: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03" + bytes(19))
    with pytest.raises(UserError, match=says):
        copy_settings(ModelImport(**values, model_selector_output=Model(tmp_path / "m")), tmp_path / "base")


def test_the_command_loads_no_torch_and_says_a_mistake_in_one_message(
    tmp_path: Path, imported_model: Path, questions: list[dict[str, str]], write_jsonl: Callable[..., Path]
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", questions)
    script = "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; "
    script += "from pipelines.__main__ import command; sys.exit(command(sys.argv[1:]))"
    values = [f"pytorch_model_path={imported_model}", "train_file_path=rows.jsonl", "sentence1_key=text"]

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, "-c", script, "preview", "text_classification", *values, *words]
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin"}
        return subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = run("label_key=label", "--rows", "2", "--html", "page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("→ ") == 2 and (tmp_path / "page.html").is_file()
    done = run("label_key=lable")
    assert done.returncode == 2 and "Did you mean 'label'?" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["label"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_chromium_opens_the_page_without_a_console_error(
    look: Callable[..., Preview], imported_model: Path, questions: list[dict[str, str]], tmp_path: Path
) -> None:
    save_html(
        look("text_classification", imported_model, questions, sentence1_key="text", label_key="label"),
        tmp_path / "preview.html",
    )
    rendered, lines = browse((tmp_path / "preview.html").read_text("utf-8"), tmp_path / "browser")
    assert "rows looked at" in rendered and lines == []
