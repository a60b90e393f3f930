"""Batches hold so many tokens, get smaller where memory does not suffice, and change no answer."""

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tuneport.serving.token_batches import TokenBatches

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


def batches_of(batches: TokenBatches, lengths: list[int]) -> list[list[int]]:
    made: list[list[int]] = []

    def compute(picked: list[int]) -> list[int]:
        made.append(picked)
        return [10 * i for i in picked]

    assert batches(lengths, compute) == [10 * i for i in range(len(lengths))]
    return made


def test_batches_are_of_rows_of_like_length_the_longest_first() -> None:
    assert batches_of(TokenBatches(8), [1, 4, 2, 9, 4, 1]) == [[3], [1, 4], [2, 0, 5]]
    assert batches_of(TokenBatches(8, rows=1), [1, 4, 2]) == [[1], [2], [0]]
    assert batches_of(TokenBatches(8, overhead=3), [1, 1, 1]) == [[0, 1], [2]]
    assert batches_of(TokenBatches(8), []) == []
    assert batches_of(TokenBatches(8), [0, 0]) == [[0, 1]]


def test_where_memory_does_not_suffice_batches_are_halved_and_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def compute(picked: list[int]) -> list[int]:
        tried.append(len(picked))
        if len(picked) > 3:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return picked

    with caplog.at_level(logging.WARNING):
        assert TokenBatches(64)([4] * 10, compute) == list(range(10))
    assert tried == [10, 5, 2, 2, 2, 2, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "the memory does not suffice for 10 rows at once: batches are of at most 20 tokens from here on",
        "the memory does not suffice for 5 rows at once: batches are of at most 8 tokens from here on",
    ]


@pytest.mark.parametrize(
    ("error", "rows"),
    [(torch.OutOfMemoryError(OUT_OF_MEMORY), 1), (RuntimeError("size mismatch"), 4), (ValueError("a row"), 4)],
)
def test_one_row_that_does_not_fit_and_any_other_error_are_raised(error: Exception, rows: int) -> None:
    def compute(picked: list[int]) -> list[int]:
        raise error

    with pytest.raises(type(error), match=str(error)):
        TokenBatches(64)([4] * rows, compute)


def test_a_real_allocation_that_fails_is_known_for_what_it_is() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert TokenBatches.is_out_of_memory(caught.value)
    assert not TokenBatches.is_out_of_memory(RuntimeError("expected all tensors on one device"))


def llama(vocabulary: int = 50) -> LlamaForCausalLM:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, num_hidden_layers=3, **sizes))


def test_the_kept_bytes_of_a_token_are_those_that_the_library_keeps() -> None:
    model = llama()
    kept = model(torch.ones(2, 7, dtype=torch.long), use_cache=True).past_key_values
    bytes_ = sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.layers)
    assert TokenBatches.kept_bytes(model) * 2 * 7 == bytes_
    assert TokenBatches.kept_bytes(model.bfloat16()) * 2 * 7 == bytes_ // 2


def test_beams_and_layers_leave_room_for_fewer_rows_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    assert TokenBatches.of_generation(model).tokens == TokenBatches.CPU_WRITTEN
    kept = TokenBatches.kept_bytes(model)
    monkeypatch.setattr(TokenBatches, "CPU_BYTES", 100 * kept)
    assert TokenBatches.of_generation(model).tokens == 100
    assert TokenBatches.of_generation(model, beams=4).tokens == 25
    assert TokenBatches.of_forward(model).tokens == TokenBatches.CPU_TOKENS


def test_free_memory_of_a_gpu_decides_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, free = llama(), 10**7
    monkeypatch.setattr(TokenBatches, "_free", classmethod(lambda cls, model: free))
    few, many = (TokenBatches.of_generation(model).tokens, TokenBatches.of_forward(model).tokens)
    assert few * TokenBatches.kept_bytes(model) < free and few < many < free
    assert TokenBatches.of_generation(llama(vocabulary=50_000)).overhead > 100
    monkeypatch.setattr(TokenBatches, "_free", classmethod(lambda cls, model: 0))
    assert TokenBatches.of_generation(model).tokens == 1


def test_of_a_model_that_processes_share_only_the_given_rows_bound_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenBatches, "_in_step", classmethod(lambda cls: True))
    unused = SimpleNamespace()  # memory is not looked at
    for made in (TokenBatches.of_generation(unused, 8), TokenBatches.of_forward(unused, 8)):
        assert (made.tokens, made.rows) == (TokenBatches.MOST_TOKENS, 8)
