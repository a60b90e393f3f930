"""What a training step is said to cost is what torch counts; where that or the GPU's peak is not known, nothing is."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tuneport.training.batch_counts import Counts
from tuneport.training.flops import cost, peak
from tuneport.training.padding_free import choose
from tuneport.training.padding_free.unpad import rows_of

SMALL = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"}


def llama(lora: bool) -> Any:
    model = LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS, head_dim=32, tie_word_embeddings=True))
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")) if lora else model


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=200, n_embd=64, n_layer=4, n_head=4, attn_implementation="eager"))


@pytest.mark.parametrize(("make", "within"), [(lambda: llama(False), 0.01), (lambda: llama(True), 0.06), (gpt2, 0.01)])
def test_the_cost_of_a_step_is_what_torch_counts(make: Any, within: float) -> None:
    model, rows, tokens = make(), 2, 48
    ids = torch.randint(0, 200, (rows, tokens))
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, labels=ids).loss.backward()
    found = cost(model)
    assert found is not None
    told = found.of(Counts(rows=rows, tokens=rows * tokens, squared_lengths=rows * tokens**2))
    assert told == pytest.approx(counted.get_total_flops(), rel=within)


def test_tokens_that_the_head_is_not_given_cost_none_of_it() -> None:
    model, ids = llama(False), torch.randint(0, 200, (2, 48))
    model.lm_head.weight.requires_grad_(False)  # its gradient is added up in place, which torch does not count
    choose.choose(model, ("sdpa", ""), wanted=True, pad_to=None, devices=1)
    some = ids.where(torch.arange(48) <= 15, -100)
    counted, found = [], cost(model)
    for labels in (ids, some):
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, labels=labels, lengths=rows_of((48, 48), 48, labels)).loss.backward()
        counted.append(counter.get_total_flops())
    assert found is not None
    told = [found.of(Counts(rows=2, tokens=96, squared_lengths=2 * 48**2, without_logits=96 - 2 * n)) for n in (47, 15)]
    assert told[0] - told[1] == counted[0] - counted[1] > 0


def test_a_model_of_another_build_has_no_known_cost() -> None:
    experts = MixtralConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2, num_local_experts=2)
    pair = BartConfig(vocab_size=200, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2)
    assert cost(MixtralForCausalLM(experts)) is None
    assert cost(BartForConditionalGeneration(pair)) is None


def test_a_peak_is_given_for_the_gpus_that_are_known_and_no_others() -> None:
    assert peak("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert peak("NVIDIA H100 80GB HBM3", "tf32") == 494.5e12
    assert peak("NVIDIA H200", "bf16") == 989.5e12
    assert peak("Tesla T4", "fp16") == 65e12
    assert peak("Tesla T4", "bf16") is None, "it has no such arithmetic"
    unknown = ("NVIDIA A10G", "NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090", "")
    assert [peak(name, "bf16") for name in unknown] == [None] * len(unknown)
