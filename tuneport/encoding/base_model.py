"""What preparing data knows of the model to train."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping
from dataclasses import dataclass

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """An imported model's files beside its weights."""

    config: Mapping[str, t.Any]
    tokenizer: Tokenizer  # cuts at ``max_seq_length`` tokens
    tokenizer_config: Mapping[str, t.Any]
    generation_config: Mapping[str, t.Any]  # empty where the model has none
    chat_template: str | None
    max_seq_length: int  # tokens
