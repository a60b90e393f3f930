"""The fast encoder is chosen where it finds in the rows what the slow one finds, and else it is said why not."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

import steps
from tuneport.artifacts import Model, write_manifest
from tuneport.data import choose_encoder
from tuneport.data.prepared import Prepared
from tuneport.encoding import fast_tokenizer
from tuneport.stage import execute

TEXTS = [
    f"Line {i} of film {i % 7}: {'really ' * (i % 40)}“is it”?\n{'né ' * (i % 3)}{'<s>' * (i % 2)}" for i in range(200)
]
CHAT = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
PAIRS = {"sentence1_key": "text", "sentence2_key": "title", "label_key": "label"}
TASKS: dict[str, dict[str, Any]] = {
    "text_generation": {"text_key": "text"},
    "summarization": {"document_key": "text", "summary_key": "title"},
    "text_classification": {"sentence1_key": "text", "label_key": "label"},
    "token_classification": {"token_key": "words", "tag_key": "tags"},
    "chat_completion": {"messages_key": "messages", "chat_template": CHAT},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    found.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    found.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return found


def made_row(text: str, label: str) -> dict[str, Any]:
    words, turns = text.split(), [("user", text[:60]), ("assistant", text[60:] or "“Yes”")]
    return {
        "text": text,
        "title": text[:12],
        "reversed": text[::-1],
        "label": label,
        "words": words,
        "tags": ["B-X" if word.isdigit() else "O" for word in words],
        "messages": [{"role": role, "content": content} for role, content in turns],
    }


@pytest.fixture
def preprocess(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Prepared]:
    """Run the stage in this process on the texts, with a model whose tokenizer cuts as named."""

    def run(task_name: str, out: str, side: str = "right", **values: Any) -> Prepared:
        model = tmp_path / f"model-{out}"
        model.mkdir()
        tokenizer.save(str(model / "tokenizer.json"))
        kind = "roberta" if task_name.endswith("classification") else "gpt2"
        (model / "config.json").write_text(json.dumps({"model_type": kind, "n_positions": 64}))
        named = {"truncation_side": side, "eos_token": "</s>"}
        (model / "tokenizer_config.json").write_text(json.dumps(named))
        write_manifest(Model(model), "model_import", "0", {}, {})
        rows = [made_row(text, str(i % 2)) for i, text in enumerate(TEXTS)]
        data = tmp_path / "rows.jsonl"
        data.write_text("\n".join(map(json.dumps, rows)))
        step = steps.load("preprocess", task_name)
        values = {"max_seq_length": 40, "train_file_path": data, **TASKS[task_name], **values}
        execute(step(model_selector_output=model, preprocess_output=tmp_path / out, **values))
        return Prepared(tmp_path / out)

    return run


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", [*TASKS, "pairs", "long pairs"])
def test_the_fast_encoder_writes_what_the_slow_one_writes(
    kind: str,
    side: str,
    preprocess: Callable[..., Prepared],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    task_name = kind if kind in TASKS else "text_classification"
    more = {"max_target_length": 16} if task_name == "summarization" else {}
    if kind != task_name:
        more = PAIRS | ({} if kind == "pairs" else {"sentence2_key": "reversed"})
    slow = preprocess(task_name, "slow", side, **more)
    assert "the fast tokenizer" not in caplog.text, "so few rows do not pay"
    monkeypatch.setattr(choose_encoder, "WORTHWHILE", 0)
    fast = preprocess(task_name, "fast", side, **more)
    assert "the fast tokenizer is used: of 200 rows it finds what the tokenizers library finds" in caplog.text
    for split in ("train", "validation", "test"):
        assert fast.encoded(split).equals(slow.encoded(split))
    assert fast.report() == slow.report()
    assert sum(entry["truncated"] for entry in fast.report()["splits"].values()) > 20


def test_a_difference_in_the_rows_is_said_and_the_slow_encoder_writes_them(
    preprocess: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slow = preprocess("text_generation", "slow")
    monkeypatch.setattr(choose_encoder, "WORTHWHILE", 0)
    monkeypatch.setattr(fast_tokenizer, "probes", lambda added: iter(()))
    core = fast_tokenizer._core

    def other_core(description: str) -> Any:
        changed = json.loads(description)
        vocabulary = changed["model"]["vocab"]
        vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
        return core(json.dumps(changed))

    monkeypatch.setattr(fast_tokenizer, "_core", other_core)
    found = preprocess("text_generation", "found")
    assert "the fast tokenizer is not used: it finds other input_ids in the rows" in caplog.text
    assert found.encoded("train").equals(slow.encoded("train"))


def test_a_tokenizer_that_the_fast_one_does_not_know_is_named_with_the_reason(
    preprocess: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(choose_encoder, "WORTHWHILE", 0)
    monkeypatch.setitem(sys.modules, "fastokens", None)
    assert preprocess("text_generation", "out").info.splits["train"] > 100
    assert caplog.text.count("the fast tokenizer is not used: fastokens cannot be imported") == 1
