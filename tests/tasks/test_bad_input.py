"""What a task cannot learn from ends its stage with exit code 2, one message that says what to mend, and no output."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import steps
from tuneport.artifacts import CustomModel, Model
from tuneport.cli.stage_command import run_stage
from tuneport.stage import execute

TEMPLATE = (
    "{% for m in messages %}{% if 'shout' in m.content %}{{ raise_exception('no shouting') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}{% endfor %}"
)
ASKED = {"role": "user", "content": "what is red"}
SAID = {"role": "assistant", "content": "colour"}
CASES = {  # by what is wrong: task, model, parameters, row 2 of the data, and what the message says
    "tokens and tags of different length": (
        ("token_classification", "bert", {}),
        {"words": ["red", "cat"], "tags": ["O"]},
        (
            "columns 'words' and 'tags' differ in length; expected one tag a word "
            "(1 row: rows.jsonl row 2 (2 words, 1 tags)). Mend or remove them."
        ),
    ),
    "a tag that is not IOB among those that are": (
        ("token_classification", "bert", {}),
        {"words": ["red", "cat", "dog"], "tags": ["B-X", "I-X", "NOUN"]},
        "rows.jsonl row 2: column 'tags' mixes the IOB2 tag 'B-X' (rows.jsonl row 2) with",
    ),
    "an answer outside the context": (
        ("question_answering", "bert", {}),
        {"answers": {"text": ["purple rain"], "answer_start": [3]}},
        "(1 row: rows.jsonl row 2 ('purple rain' at 3: it is nowhere)). Mend or remove them.",
    ),
    "an unknown language code": (
        ("translation", "nllb", {"source_lang_code": "eng_Latn", "target_lang_code": "deu_Lat"}),
        {},
        (
            "target_lang_code='deu_Lat': the base model knows no such language code; expected one of deu_Latn, "
            "eng_Latn. Did you mean 'deu_Latn'?"
        ),
    ),
    "a source that is the target": (
        ("translation", "t5", {"target_lang": "text"}),
        {},
        "source_lang and target_lang are both the column 'text'; expected two columns, the text and its translation.",
    ),
    "an empty completion": (
        ("text_generation", "llama", {}),
        {"label": " \n"},
        (
            "column 'label' holds an empty completion; expected text, as nothing else is learnt "
            "(1 row: rows.jsonl row 2). Mend or remove them."
        ),
    ),
    "an unknown role": (
        ("chat_completion", "llama", {}),
        {"messages": [{"role": "bot", "content": "hi"}, SAID]},
        "an unknown role; expected one of system, user, assistant, tool (1 row: rows.jsonl row 2 (turn 1: 'bot')).",
    ),
    "an empty conversation": (
        ("chat_completion", "llama", {}),
        {"messages": []},
        "a conversation without turns; expected a user's at least (1 row: rows.jsonl row 2 (0 turns)).",
    ),
    "an assistant's turn first": (
        ("chat_completion", "llama", {}),
        {"messages": [SAID, ASKED, SAID]},
        "a conversation that the assistant begins; expected a user's turn first (1 row: rows.jsonl row 2).",
    ),
    "a template that raises": (
        ("chat_completion", "llama", {}),
        {"messages": [{"role": "user", "content": "shout"}, SAID]},
        (
            "turns that the chat template does not take (1 of 120 rows: rows.jsonl:2 (TemplateError: no shouting)). "
            "Mend or remove them, or set another chat_template."
        ),
    ),
    "a tokenizer without offsets": (
        ("question_answering", "one token a text", {}),
        {},
        "the base model's tokenizer does not tell which characters its tokens stand for",
    ),
    "an encoder that is to write": (
        ("text_generation", "bert", {}),
        {},
        (
            "the base model is of type 'bert', an encoder, which writes no text; expected a decoder (such as GPT-2, "
            "Llama, Qwen, Mistral, Gemma or Phi) or an encoder–decoder (such as T5, BART, mBART or NLLB)."
        ),
    ),
}


@pytest.fixture(scope="module")
def model(imported_model: Path, decoder: Any, writer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def make(name: str) -> Path:
        if name == "bert":
            return imported_model
        if name == "llama":
            return Path(decoder("llama", TEMPLATE))
        if name != "one token a text":
            return Path(writer(name))
        folder = Path(shutil.copytree(imported_model, tmp_path_factory.mktemp("odd") / "model"))
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "pre_tokenizer": None}))
        (folder / "manifest.json").unlink()
        values = {"pytorch_model_path": CustomModel(folder), "model_selector_output": Model(folder.parent / "base")}
        execute(steps.load("model_import")(**values))
        return folder.parent / "base"

    return make


@pytest.mark.parametrize("wrong", CASES)
def test_it_is_refused(
    wrong: str,
    *,
    model: Any,
    task_rows: list[dict[str, Any]],
    task_columns: dict[str, dict[str, Any]],
    write_jsonl: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (name, base, parameters), change, message = CASES[wrong]
    rows = [task_rows[0], {**task_rows[1], **change}, *task_rows[2:]]
    values = {**task_columns[name], **parameters, "train_file_path": write_jsonl(tmp_path / "rows.jsonl", rows)}
    values |= {"model_selector_output": model(base), "preprocess_output": tmp_path / "out"}
    flags = [f"--{option}={value}" for option, value in values.items()]
    capsys.readouterr()
    assert run_stage(["preprocess", "--task_name", name, *flags], names=steps.names(), load=steps.load) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_model_whose_architecture_cannot_do_the_task_is_refused_and_those_that_can_are_named(
    imported_model: Path,
    task_rows: list[dict[str, Any]],
    task_columns: dict[str, dict[str, Any]],
    write_jsonl: Any,
    *,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import transformers as tf

    folder, base = Path(shutil.copytree(imported_model, tmp_path / "model")), tmp_path / "base"
    (folder / "manifest.json").unlink()
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tf.PhiForCausalLM(tf.PhiConfig(vocab_size=400, **size)).save_pretrained(folder)
    execute(steps.load("model_import")(pytorch_model_path=CustomModel(folder), model_selector_output=Model(base)))
    name, data = "question_answering", tmp_path / "data"
    inputs = {"model_selector_output": base, "preprocess_output": data}
    rows = write_jsonl(tmp_path / "rows.jsonl", task_rows)
    execute(steps.load("preprocess", name)(**inputs, **task_columns[name], max_seq_length=64, train_file_path=rows))
    flags = [f"--{option}={value}" for option, value in {**inputs, "pytorch_model_folder": tmp_path / "out"}.items()]
    capsys.readouterr()
    assert run_stage(["finetune", "--task_name", name, *flags], names=steps.names(), load=steps.load) == 2
    told = capsys.readouterr().err
    assert "transformers has no AutoModelForQuestionAnswering for a model of type 'phi'; expected one of: " in told
    assert all(f" {kind}," in told for kind in ("bert", "deberta-v2", "llama", "qwen2")) and "Traceback" not in told
    assert not (tmp_path / "out").exists()
