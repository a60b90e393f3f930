"""The small encoder-decoder is made the same each time, and its tokenizer reads and writes both languages."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]

ROW = {"en": "This package provides the shared library (see http://x.org).", "fr": "L’été, « Ça » marche : voilà !"}


def make(script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["make_model.py", str(folder)])
    script("translation/make_model.py").main()
    return folder / "t5"


def test_a_model_is_made_of_the_fetched_paragraphs(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    (tmp_path / "paragraphs.jsonl").write_text(json.dumps(ROW) + "\n", "utf-8")
    first = make(script, tmp_path, monkeypatch)
    weights = (first / "model.safetensors").read_bytes()

    tokenizer = AutoTokenizer.from_pretrained(first)
    for text in ROW.values():
        ids = tokenizer(text).input_ids
        assert ids[-1] == tokenizer.eos_token_id == 1
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    model = AutoModelForSeq2SeqLM.from_pretrained(first)
    assert model.config.decoder_start_token_id == tokenizer.pad_token_id == 0
    assert model(**tokenizer(ROW["en"], text_target=ROW["fr"], return_tensors="pt")).loss > 1

    assert make(script, tmp_path, monkeypatch) == first
    assert (first / "model.safetensors").read_bytes() == weights


def test_without_paragraphs_it_is_said_how_to_get_them(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"paragraphs\.jsonl: not found; make it with python .*fetch\.py"):
        make(script, tmp_path, monkeypatch)
