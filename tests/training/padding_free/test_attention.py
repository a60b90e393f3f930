"""Attention is computed as asked for, or by the fastest way that there is, and the log says which and why."""

import dataclasses as dc
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import TrainerCallback

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.tracking import Run
from tuneport.training.conflicts import CPU, Machine, check
from tuneport.training.machine import here
from tuneport.training.padding_free.attention import automatic, choose
from tuneport.training.train import train

TASK = "text_classification"
EVERYTHING = Machine(gpus=1, flash_attn=True)
SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("machine", "precision", "chosen", "why"),
    [
        (EVERYTHING, "bf16", "flash_attention_2", "flash-attn is installed"),
        (EVERYTHING, "fp32", "sdpa", "flash-attn computes in 16 bits, not in fp32"),
        (dc.replace(EVERYTHING, flash_attn=False), "bf16", "sdpa", "flash-attn is not installed"),
        (dc.replace(EVERYTHING, gpus=0), "bf16", "sdpa", "there is no NVIDIA GPU"),
        (dc.replace(EVERYTHING, attentions=frozenset({"eager", "sdpa"})), "bf16", "sdpa", "has no flash attention"),
        (dc.replace(EVERYTHING, attentions=frozenset({"eager"})), "bf16", "eager", "has no sdpa, and"),
        (
            dc.replace(EVERYTHING, attentions=frozenset({"eager", "flash_attention_2"}), gpus=0),
            "bf16",
            "eager",
            "no NVI",
        ),
    ],
)
def test_auto_is_the_fastest_that_there_is(machine: Machine, precision: str, chosen: str, why: str) -> None:
    found, reason = automatic(machine, precision)
    assert found == chosen and why in reason


class Used(TrainerCallback):  # type: ignore[misc]
    """The attention that the model in training has."""

    attention = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.attention = kwargs["model"].config._attn_implementation


@pytest.mark.skipif(torch.cuda.is_available(), reason="another one may be the fastest on a GPU")
@pytest.mark.parametrize(
    ("values", "used", "said"),
    [
        ({}, "varlen", "sdpa (there is no NVIDIA GPU); no padding: each row by itself"),
        ({"padding_free": False}, "sdpa", "sdpa (there is no NVIDIA GPU); padded batches: padding_free=false"),
        (
            {"attention": "eager"},
            "eager",
            "eager (as asked for); batches in length buckets: eager attention takes rows of one length",
        ),
    ],
)
def test_a_training_uses_the_attention_that_its_log_names(
    *,
    values: dict[str, Any],
    used: str,
    said: str,
    imported_model: Path,
    prepared_questions: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="tuneport.finetune")
    stage: Any = steps.load("finetune", TASK)(
        model_selector_output=imported_model, preprocess_output=prepared_questions, max_steps=1, **values
    )
    seen = Used()
    train(
        tasks.load(TASK),
        imported_model,
        Prepared(prepared_questions),
        stage,
        metric_for_best_model="loss",
        output=tmp_path,
        run=Run(),
        callbacks=[seen],
    )
    assert seen.attention == used
    assert [message for message in caplog.messages if "attention:" in message] == [f"attention: {said}"]
    assert "attn" not in (tmp_path / "config.json").read_text(), "who loads the model chooses again"


MODELS = {
    "BertForTokenClassification": transformers.BertConfig(**SMALL),
    "BertForQuestionAnswering": transformers.BertConfig(**SMALL),
    "LlamaForCausalLM": transformers.LlamaConfig(**SMALL),
    "BartForConditionalGeneration": transformers.BartConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind_compute_alike_with_each_attention(name: str) -> None:
    model = getattr(transformers, name)(MODELS[name]).eval()
    assert {"eager", "sdpa"} <= here(model).attentions
    ids, logits, kinds = torch.tensor([[5, 6, 7, 8]]), [], []
    for wanted in ("sdpa", "eager"):
        choose(model, wanted, here(model), "fp32")
        kinds.append({m.config._attn_implementation for m in model.modules() if hasattr(m, "config")})
        logits.append(model(input_ids=ids)[0])
    assert kinds == [{"sdpa"}, {"eager"}]
    assert torch.allclose(*logits, atol=1e-5)


def test_a_model_with_one_attention_only_takes_that_and_refuses_another() -> None:
    model = transformers.DebertaV2Model(transformers.DebertaV2Config(**SMALL))
    machine = here(model)
    assert machine.attentions == {"eager"}
    choose(model, "auto", machine, "fp32")
    assert model.config._attn_implementation == "eager"
    wanted: Any = steps.load("finetune", TASK)(model_selector_output="m", preprocess_output="p", attention="sdpa")
    with pytest.raises(UserError, match="attention=sdpa: a model of type 'deberta-v2' has no such attention"):
        check(wanted, machine)


def test_flash_attention_that_the_machine_lacks_is_refused() -> None:
    wanted: Any = steps.load("finetune", TASK)(
        model_selector_output="m", preprocess_output="p", attention="flash_attention_2", precision="bf16"
    )
    message = "attention=flash_attention_2: needs an NVIDIA GPU and the package flash-attn. Install it"
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        check(wanted, CPU)
