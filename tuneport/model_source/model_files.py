"""The files that a model's folder consists of, by name, and how to find and read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tuneport.errors import UserError, excerpt
from tuneport.json_yaml import read_json

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES, PICKLE_INDEX = "pytorch_model*.bin", "pytorch_model.bin.index.json"
WEIGHT_FILES = (WEIGHTS, WEIGHTS_INDEX, "pytorch_model.bin", PICKLE_INDEX)
SENTENCEPIECE = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model"),
    *("spm_char.model", "bpe.model"),
)
TIKTOKEN = ("tiktoken.model", "qwen.tiktoken", "hy.tiktoken")
TOKENIZER_SOURCES = ("tokenizer.json", "vocab.txt", "vocab.json", *SENTENCEPIECE, *TIKTOKEN)
# Names, no patterns: what is copied reaches the served model and MLflow.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "vocab.txt", "vocab.json", "vocab.bpe", "merges.txt"),
    *SENTENCEPIECE,
    *TIKTOKEN,
)
SHARD = re.compile(r"\w[\w.-]*\.(safetensors|bin)")


def find(folders: list[Path], *patterns: str) -> Path | None:
    """The first file in the folders that matches a pattern."""
    return next((f for folder in folders for p in patterns for f in sorted(folder.glob(p)) if f.is_file()), None)


def read_config(folders: list[Path]) -> dict[str, Any]:
    """The model's config.

    Raises `UserError` where there is none or it does not name a model type.
    """
    where = folders[0]
    file = find(folders, "config.json")
    if file is None:
        if find(folders, "adapter_config.json"):
            raise UserError(
                f"{where}: holds a LoRA adapter without its base model. Merge it into the base model first."
            )
        raise UserError(f"{where}: has no config.json; expected a Hugging Face model folder.")
    try:
        config = read_json(file)
    except (ValueError, UnicodeDecodeError) as e:
        raise UserError(f"{file}: is not JSON ({e}). Download the model again.") from None
    if not isinstance(config, dict) or not config.get("model_type"):
        raise UserError(f"{file}: names no model_type; expected the config of a Hugging Face model.")
    return config


def indexed_files(index: Path) -> list[str]:
    """The shards that an index of weights lists.

    Raises `UserError` where the index is damaged.
    """
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        if strange := next((name for name in names if not SHARD.fullmatch(name)), None):
            raise ValueError(f"{excerpt(strange)} is not the name of a file of weights in the same folder")
    except (ValueError, KeyError, AttributeError, TypeError) as e:
        raise UserError(f"{index}: is damaged ({e}). Download the model again.") from None
    return names
