"""Encoded rows as a batch of tensors."""

from __future__ import annotations

import inspect
import typing as t
from collections.abc import Callable, Mapping, Sequence

Row = dict[str, t.Any]


def collator(
    model: t.Any,
    pad_to: int | None,
    per_token: Mapping[str, int],
    per_row: Sequence[str] = (),
    per_target: Sequence[str] = (),
) -> Callable[[list[Row]], dict[str, t.Any]]:
    """Return a function encoded rows -> batch of tensors; ``input_ids`` and ``attention_mask`` are always in it.

    ``per_token`` maps columns of one value a token to what fills them up, to the longest row of the batch or to
    ``pad_to`` tokens; ``per_target`` names those of them that have a length of their own; ``per_row`` those of one
    value a row. Columns that a row or the model does not know are left out.
    """
    import torch

    accepted = inspect.signature(model.forward).parameters
    fills = {"input_ids": model.config.pad_token_id or 0, "token_type_ids": 0, **per_token}

    def collate(rows: list[Row]) -> dict[str, t.Any]:
        width = pad_to or max(len(row["input_ids"]) for row in rows)

        def pad(values: Sequence[list[int]], fill: int, width: int = width) -> torch.Tensor:
            return torch.tensor([[*v, *[fill] * (width - len(v))] for v in values])

        def own(name: str) -> int:
            return max(len(row[name]) for row in rows) if name in per_target else width

        batch = {
            name: pad([row[name] for row in rows], fill, own(name))
            for name, fill in fills.items()
            if name in rows[0] and name in accepted
        }
        batch["attention_mask"] = pad([[1] * len(row["input_ids"]) for row in rows], 0)
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in per_row}

    return collate
