"""Attention over rows that stand one after another without padding, each row by itself, as transformers calls it.

Such rows need no mask. We pass their `bounds` (1, 1, longest row, rows + 1) in the attention mask's place, because
transformers forwards that argument unchanged to the function that computes the attention, whatever the model.
"""

from __future__ import annotations

import dataclasses as dc
import typing as t
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

VARLEN, VARLEN_FA2 = "varlen", "varlen_fa2"  # by torch's own kernels, by flash-attn's


def bounds(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Cumulative row lengths, from 0, as int32 of shape (1, 1, longest row, rows + 1).

    The third dimension carries the longest row's length in tokens: reading a shape does not wait for a GPU, reading a
    value does. It is an expanded view, so it takes no memory. Its attribute ``lengths`` has them for kernels that are
    called row by row.
    """
    places = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    found = places.to(device, non_blocking=True).expand(1, 1, max(lengths), len(places))
    found.lengths = tuple(lengths)  # type: ignore[attr-defined]
    return found


Compute = t.Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "How"], torch.Tensor]


def attention_by(compute: Compute) -> t.Callable[..., tuple[torch.Tensor, None]]:
    """An attention function as transformers calls it: by ``compute`` where the mask is `bounds`, else by sdpa.

    ``compute`` maps a query (1, heads, tokens, size), a key and a value (1, key heads, tokens, size) and `How` to an
    output (1, tokens, heads, size).
    """

    def attention(
        module: t.Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: t.Any,
    ) -> tuple[torch.Tensor, None]:
        if attention_mask is None or attention_mask.dtype != torch.int32:
            plain: t.Any = sdpa_attention_forward
            return t.cast(tuple[torch.Tensor, None], plain(module, query, key, value, attention_mask, **kwargs))
        return compute(query, key, value, _how(module, attention_mask, **kwargs)), None

    return attention


def _torch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How) -> torch.Tensor:
    """By torch's kernels; shapes as `attention_by` says. Raises ValueError for a soft cap, which they do not have."""
    if how.softcap:
        raise ValueError("torch's attention has no softcap")
    if query.device.type != "cuda":
        return row_by_row(query, key, value, how)
    if how.dropout or query.dtype not in (torch.float16, torch.bfloat16):  # varlen_attn has neither dropout nor float32
        return padded_within(query, key, value, how)
    return _torch_varlen(query, key, value, how)


@dc.dataclass(frozen=True, kw_only=True)
class How:
    """How to attend: the rows, by their `bounds`, and the settings that the model's layer passes."""

    rows: torch.Tensor
    dropout: float = 0.0
    scale: float | None = None
    causal: bool
    window: int | None = None  # in tokens, the token itself included: looking back, and forward unless causal
    softcap: float = 0.0

    @property
    def starts(self) -> torch.Tensor:
        """(rows + 1,): each row's first token, then the number of tokens."""
        return self.rows[0, 0, 0]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the rows, in tokens."""
        known: tuple[int, ...] | None = getattr(self.rows, "lengths", None)
        return tuple(self.starts.diff().tolist()) if known is None else known

    @property
    def longest(self) -> int:
        return self.rows.shape[2]

    @property
    def sides(self) -> tuple[int, int]:
        """Tokens seen before and after one, as flash attention's kernels take them; -1: all."""
        side = -1 if self.window is None else self.window - 1
        return side, 0 if self.causal else side


def _how(module: t.Any, rows: torch.Tensor, **kwargs: t.Any) -> How:
    causal = kwargs.get("is_causal")
    return How(
        rows=rows,
        dropout=kwargs.get("dropout") or 0.0,
        scale=kwargs.get("scaling"),
        causal=bool(module.is_causal if causal is None else causal),
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap") or 0.0,
    )


def row_by_row(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How) -> torch.Tensor:
    """One kernel call a row; shapes as `attention_by` says. For CPUs: reading lengths would wait for a GPU."""
    lengths = [length for length in how.lengths if length]
    parts = [torch.split(part, lengths, 2) for part in (query, key, value)]
    found = []
    for row in zip(*parts, strict=True):
        length = row[0].shape[2]
        band = None if how.window is None or length <= how.window else _within(length, how, query.device)
        causal = how.causal and band is None
        found.append(_scaled(row, attn_mask=band, dropout_p=how.dropout, is_causal=causal, scale=how.scale))
    return torch.cat(found, 2).transpose(1, 2)


def padded_within(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How) -> torch.Tensor:
    """One kernel call over rows padded for it alone; shapes as `attention_by` says. Nothing waits for the GPU."""
    tokens, device = query.shape[2], query.device
    columns = torch.arange(how.longest, device=device)
    is_real = columns < how.starts.diff()[:, None]
    source = (how.starts[:-1, None] + columns).clamp(max=tokens - 1)
    padded = [part[0].transpose(0, 1)[source].transpose(1, 2) for part in (query, key, value)]
    allowed = is_real[:, None, None, :] & _within(how.longest, how, device)
    allowed = allowed | ~is_real[:, None, :, None]  # a padded query must see something: softmax over nothing is NaN
    found = _scaled(padded, attn_mask=allowed, dropout_p=how.dropout, scale=how.scale)
    places = torch.arange(tokens, device=device, dtype=torch.int32)
    row = torch.bucketize(places, how.starts[1:], right=True)
    return found.transpose(1, 2)[row, places - how.starts[row]][None]


def _torch_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    kernel: t.Any = varlen_attn
    parts = [part[0].transpose(0, 1) for part in (query, key, value)]
    rows = (how.starts, how.starts, how.longest, how.longest)
    grouped = query.shape[1] != key.shape[1]
    found: torch.Tensor = kernel(*parts, *rows, scale=how.scale, window_size=how.sides, enable_gqa=grouped)
    return found[None]


def _flash_attn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    half = query.dtype if query.dtype != torch.float32 else torch.get_autocast_dtype("cuda")
    found: torch.Tensor = flash_attn_varlen_func(
        *(part[0].transpose(0, 1).to(half) for part in (query, key, value)),
        *(how.starts, how.starts, how.longest, how.longest),
        dropout_p=how.dropout,
        softmax_scale=how.scale,
        causal=how.causal,
        window_size=how.sides,
        softcap=how.softcap,
    )
    return found[None].to(query.dtype)


def _scaled(parts: t.Any, **kwargs: t.Any) -> torch.Tensor:
    """Of a query, a key and a value (rows, heads, tokens, size), where several of the query's heads may share a key."""
    query, key, value = parts
    shares = query.shape[1] != key.shape[1]
    return functional.scaled_dot_product_attention(query, key, value, enable_gqa=shares, **kwargs)


def _within(length: int, how: How, device: torch.device) -> torch.Tensor:
    """(length, length) of bool: which key each query sees, as transformers' masks have it."""
    places = torch.arange(length, device=device)
    back = places[:, None] - places
    seen = back >= 0 if how.causal else torch.ones_like(back, dtype=torch.bool)
    return seen if how.window is None else seen & (back.abs() < how.window)


attention = attention_by(_torch)
AttentionInterface.register(VARLEN, attention)
AttentionInterface.register(VARLEN_FA2, attention_by(_flash_attn))
for _name in (VARLEN, VARLEN_FA2):
    AttentionMaskInterface.register(_name, sdpa_mask)  # for batches that come padded: answers are generated from those
