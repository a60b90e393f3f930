"""Attention over rows without padding is that of each row by itself, by every way that it is computed."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional

from tuneport.training.padding_free.varlen_attention import How, bounds, padded_within, row_by_row

LENGTHS = (5, 1, 17, 9)


def whole(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How) -> torch.Tensor:
    """The same by one mask over everything."""
    row = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    places = torch.arange(len(row))
    seen = row[:, None] == row
    if how.causal:
        seen &= places[:, None] >= places
    if how.window is not None:
        seen &= (places[:, None] - places).abs() < how.window
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    found = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=how.scale)
    return found.transpose(1, 2)


def parts(heads: int, key_heads: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, sum(LENGTHS), n, 8).transpose(1, 2).requires_grad_() for n in (heads, key_heads, key_heads)]


@pytest.mark.parametrize("compute", [row_by_row, padded_within])
@pytest.mark.parametrize(("causal", "window", "key_heads"), [*itertools.product((True, False), (None, 4), (4, 2))])
def test_outputs_and_gradients_are_those_of_one_mask_over_all(
    compute: Callable[..., torch.Tensor], *, causal: bool, window: int | None, key_heads: int
) -> None:
    how = How(rows=bounds(LENGTHS, torch.device("cpu")), causal=causal, window=window, scale=0.3)
    weights = torch.randn(1, sum(LENGTHS), 4, 8)
    found = []
    for function in (whole, compute):
        given = parts(4, key_heads)
        output = function(*given, how)
        (output * weights).sum().backward()
        found.append([output.detach(), *(part.grad for part in given)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("compute", [row_by_row, padded_within])
def test_dropout_leaves_the_mean_as_it_is_and_out_what_it_should(compute: Callable[..., torch.Tensor]) -> None:
    query, key, _ = (part.detach() for part in parts(4, 4))
    ones = torch.ones_like(query)
    how = How(rows=bounds(LENGTHS, torch.device("cpu")), causal=False, dropout=0.25)
    torch.manual_seed(0)
    drawn = torch.stack([compute(query, key, ones, how) for _ in range(400)])
    assert drawn.std() > 0.05
    assert torch.allclose(drawn.mean(0), torch.ones(()), atol=0.15)
    lone = drawn[:, 0, 5]  # a row of one token: kept and scaled, or left out
    assert lone.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (lone == 0).float().mean() == pytest.approx(0.25, abs=0.05)


def test_bounds_take_no_memory_for_the_longest_row() -> None:
    found = bounds((3, 100_000), torch.device("cpu"))
    assert found.shape == (1, 1, 100_000, 3) and found[0, 0, 0].tolist() == [0, 3, 100_003]
    assert found.untyped_storage().nbytes() == 12


def test_padded_batches_are_computed_as_by_sdpa() -> None:
    """As the answers to validation rows are, by a model in training."""
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids, mask = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 4]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    found: list[Any] = []
    for attention in ("sdpa", "varlen"):
        model.set_attn_implementation(attention)
        found.append(model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0))
    assert torch.equal(*found)
