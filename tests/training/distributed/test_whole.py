"""A sharded model whose weights are gathered once answers in each process alone, and is sharded again afterwards."""

import os
from typing import Any

import pytest
import torch
import transformers
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.training.two_processes import in_two
from tuneport.training.distributed import whole

pytestmark = pytest.mark.slow

PROMPTS = torch.arange(1, 7).reshape(1, 6)


def model() -> Any:
    transformers.set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 50}
    config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=4, eos_token_id=None, **sizes)
    return transformers.LlamaForCausalLM(config)


def answer(of: Any, tokens: int) -> list[int]:
    with torch.inference_mode():
        written = of.generate(PROMPTS, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return list(written[0].tolist())


def _fsdp(results: Any, rank: int) -> None:
    sharded: Any = model()
    for layer in sharded.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    before = sharded(PROMPTS, labels=PROMPTS).loss
    with whole.whole(sharded, None, resharded=True):
        answers = answer(sharded, 3 + 6 * rank)  # as many forward passes as the other process has not
    spread = all(isinstance(weight, DTensor) for weight in sharded.parameters())
    after = sharded(PROMPTS, labels=PROMPTS).loss
    after.backward()
    results.put((rank, answers, spread and before.item() == after.item()))


def _zero(results: Any, rank: int) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    import deepspeed

    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "zero_allow_untested_optimizer": True}
    plain = model()
    engine, *_ = deepspeed.initialize(
        model=plain, optimizer=torch.optim.SGD(plain.parameters(), lr=0.1), config=config, dist_init_required=False
    )
    before = engine(PROMPTS, labels=PROMPTS).loss
    engine.backward(before)
    with whole.whole(engine.module, engine, resharded=False):
        answers = answer(engine.module, 3 + 6 * rank)
    spread = all(weight.numel() == 0 for weight in engine.module.parameters())
    engine.eval()
    after = engine(PROMPTS, labels=PROMPTS).loss
    results.put((rank, answers, spread and abs(before.item() - after.item()) < 1e-6))


@pytest.mark.parametrize("work", [_fsdp, _zero], ids=["FSDP", "ZeRO-3"])
def test_processes_write_texts_of_different_lengths_and_shard_the_weights_again(work: Any) -> None:
    found = in_two(work)
    expected = model().eval()
    assert found == [(rank, answer(expected, 3 + 6 * rank), True) for rank in range(2)]


def test_room_is_a_question_of_bytes() -> None:
    linear = torch.nn.Linear(10, 10, bias=False)
    assert whole.fits(linear, 500) and not whole.fits(linear, 499)
