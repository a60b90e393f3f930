"""A model with a head for given labels."""

from __future__ import annotations

import typing as t
from collections.abc import Sequence
from pathlib import Path


def load_with_labels(
    auto_class: t.Any, folder: Path, labels: Sequence[str], problem_type: str | None = None, **loading: t.Any
) -> t.Any:
    """Load a model in 32 bits with one output a label; a head for other labels is replaced by one of random weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    same_head = config.id2label == dict(enumerate(labels))
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    if problem_type is not None:
        config.problem_type = problem_type
    loading |= {"ignore_mismatched_sizes": not same_head, "dtype": "float32"}
    return auto_class.from_pretrained(folder, config=config, **loading)
