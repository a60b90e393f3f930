"""A model with a head for given labels."""

from __future__ import annotations

import json
import typing as t
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneport.modeling import pretrained


def load_with_labels(
    architecture: str, folder: Path, labels: Sequence[str], problem_type: str | None = None, **loading: t.Any
) -> t.Any:
    """Load a model in 32 bits with one output a label; a head for another number of labels gets random weights.

    Raises `UserError` as `pretrained.load`, whose arguments ``loading`` are.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    if problem_type is not None:
        config.problem_type = problem_type
    if config.pad_token_id is None:
        config.pad_token_id = _padding(folder, config)
    return pretrained.load(architecture, folder, **{"dtype": "float32", **loading, "config": config})


def _padding(folder: Path, config: t.Any) -> int:
    """What fills up the rows of a model that names no token for that: its tokenizer's, or its end of text.

    A decoder's classifier reads the last token of a row that is another one.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    named = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    for name in ("pad_token", "eos_token"):
        token = named.get(name)
        id_ = tokenizer.token_to_id(str(token.get("content") if isinstance(token, Mapping) else token))
        if id_ is not None and id_ < config.vocab_size:
            return id_
    ends = config.eos_token_id
    return int(ends[0] if isinstance(ends, list) else ends or 0)
