"""A model that computes with the tokens of a batch alone gives what it gives with padding: outputs, loss, gradients."""

import contextlib
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import AttentionInterface

from tuneport import tasks
from tuneport.modeling.likelihood import shifted, token_losses
from tuneport.tasks.question_answering import leave_out_padding
from tuneport.training.padding_free import choose, varlen_attention
from tuneport.training.padding_free.choose import obstacle, self_test
from tuneport.training.padding_free.unpad import rows_of

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0),
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOWED = {**GROUPED, "sliding_window": 4}
GEMMA = {**WINDOWED, "query_pre_attn_scalar": 8}
ENDS = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
STILL = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0}
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": {"pad_token_id": 0},
    "Roberta": {"pad_token_id": 1},
    "XLMRoberta": {"pad_token_id": 1},
    "DistilBert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "dropout": 0.0, "attention_dropout": 0.0}
    | {"qa_dropout": 0.0, "seq_classif_dropout": 0.0},
    "ModernBert": {"num_hidden_layers": 4, "local_attention": 6, **ENDS, **STILL},
    "Electra": {"pad_token_id": 0},
}
DECODERS: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0, **STILL},
    "Llama": {**GROUPED, "tie_word_embeddings": False},
    "Mistral": WINDOWED,
    "Qwen2": {**GROUPED, "tie_word_embeddings": True},
    "Qwen3": {**GROUPED, "tie_word_embeddings": True},
    "Gemma": GROUPED,
    "Gemma3": {**GEMMA, "layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 3.0},
    "Phi": {"partial_rotary_factor": 0.5, "bos_token_id": 0, "eos_token_id": 0, **STILL},
    "Phi3": {**WINDOWED, "pad_token_id": 3, **STILL},
    "Cohere": {**GROUPED, "logit_scale": 0.3},
    "Granite": {**GROUPED, "logits_scaling": 3.0},
    "Mixtral": {**GROUPED, "num_local_experts": 4},
}
HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")
LENGTHS = (3, 11, 7, 1)


def made(family: str, head: str) -> Any:
    """A model of random weights, without dropout, large enough that errors in attention show."""
    extra = (ENCODERS | DECODERS)[family]
    config = {"Gemma3": "Gemma3Text"}.get(family, family)
    kind = "GPT2LMHeadModel" if (family, head) == ("GPT2", "CausalLM") else f"{family}For{head}"
    if not hasattr(transformers, kind):
        pytest.skip(f"there is no {kind}")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(
        getattr(transformers, f"{config}Config")(**SIZES | {"pad_token_id": 0, "num_labels": 3} | extra)
        if head != "QuestionAnswering"
        else getattr(transformers, f"{config}Config")(**SIZES | {"pad_token_id": 0} | extra)
    )
    return steady(model, head)


def steady(model: Any, head: str) -> Any:
    """A model without dropout, of weights so large that errors in attention show."""
    if head == "QuestionAnswering":
        model.register_forward_hook(leave_out_padding, with_kwargs=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return model


def batch_for(model: Any, head: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    rows, width, fill = len(LENGTHS), max(LENGTHS), model.config.pad_token_id or 0
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(4, 60, (rows, width)).where(mask, torch.tensor(fill))
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = torch.randint(0, 2, (rows, width)).where(mask, torch.tensor(0))
    if head == "SequenceClassification":
        return batch | {"labels": torch.tensor([0, 2, 1, 1])}
    if head == "QuestionAnswering":
        return batch | {"start_positions": torch.tensor([1, 3, 0, 0]), "end_positions": torch.tensor([2, 10, 0, 0])}
    labels = ids if head == "CausalLM" else torch.randint(0, 3, (rows, width))
    labelled = mask & (torch.rand(rows, width) < 0.6)
    labelled[1, -1] = labelled[2, 0] = True
    return batch | {"labels": labels.where(labelled, torch.tensor(-100))}


def with_lengths(batch: dict[str, Any]) -> dict[str, Any]:
    labels = batch.get("labels")
    return {
        **batch,
        "lengths": rows_of(LENGTHS, max(LENGTHS), labels if labels is not None and labels.dim() > 1 else None),
    }


def prepared(model: Any) -> Any:
    return choose.choose(model, ("sdpa", "as asked for"), wanted=True, pad_to=None, devices=1)


def computed(model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(**batch)
    output["loss"].backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "head"),
    [*itertools.product(ENCODERS, HEADS), *itertools.product(DECODERS, ("CausalLM", *HEADS))],
)
def test_outputs_loss_and_gradients_are_those_with_padding(family: str, head: str) -> None:
    model = made(family, head).train()
    batch = batch_for(model, head)
    model.set_attn_implementation("sdpa")
    wanted, gradients = computed(model, batch)
    choice = prepared(model)
    assert choice.enabled and choice.gives_losses == (head == "CausalLM")
    packed = with_lengths(batch)
    found, packed_gradients = computed(model, packed)
    assert float(found["loss"].detach()) == pytest.approx(float(wanted["loss"].detach()), abs=1e-5)
    assert packed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (packed_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
    with torch.no_grad():
        again = model(**packed)
    if head == "CausalLM":
        pair = shifted(wanted["logits"].detach(), batch["labels"])
        assert found.get("logits") is None, "in training nobody asks for them"
        assert torch.allclose(again["logits"], token_losses(*pair), atol=1e-4)
    else:
        real = batch["attention_mask"].bool()
        for name in ("logits", "start_logits", "end_logits"):
            if name in wanted:
                one, other = wanted[name].detach(), again[name]
                assert one.shape == other.shape
                by_token = one.shape[:2] == real.shape
                assert torch.allclose(one[real] if by_token else one, other[real] if by_token else other, atol=1e-4)


def test_the_loss_of_spans_is_the_mean_of_the_rows_own_whatever_the_padding(imported_model: Path) -> None:
    model = tasks.load("question_answering").load_model(imported_model, {}).eval()
    batch = batch_for(model, "QuestionAnswering")
    alone = [
        model(**{name: t[i : i + 1, :length] if t.dim() == 2 else t[i : i + 1] for name, t in batch.items()})["loss"]
        for i, length in enumerate(LENGTHS)
    ]
    assert float(model(**batch)["loss"]) == pytest.approx(float(torch.stack(alone).mean()), abs=1e-5)


@pytest.mark.parametrize(("family", "head"), [("Bert", "TokenClassification"), ("Llama", "CausalLM")])
def test_recomputed_activations_are_those_of_the_same_rows(family: str, head: str) -> None:
    model = made(family, head).train()
    choice, batch = prepared(model), with_lengths(batch_for(model, head))
    assert choice.enabled
    _, wanted = computed(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _, found = computed(model, batch)
    assert all(torch.allclose(gradient, found[name], atol=1e-7) for name, gradient in wanted.items())


def test_the_trunk_sees_no_padding() -> None:
    model = made("Bert", "SequenceClassification").eval()
    prepared(model)
    seen: list[torch.Size] = []
    model.base_model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    batch = batch_for(model, "SequenceClassification")
    model(**with_lengths(batch))
    model(**batch)
    assert seen == [(1, sum(LENGTHS), 32), (len(LENGTHS), max(LENGTHS), 32)]


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_dropout_is_drawn_for_tokens_alone_and_its_mean_is_that_with_padding(probability: float) -> None:
    """Losses over many draws have the mean of the padded path's, whose draws are other ones."""
    model = made("Bert", "TokenClassification").train()
    batch = batch_for(model, "TokenClassification")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
    model.set_attn_implementation("sdpa")
    draws: list[torch.Tensor] = []
    choice = prepared(model)
    for enabled in (False, True):
        choice.method.enabled = enabled
        torch.manual_seed(0)
        with torch.no_grad():
            draws.append(torch.stack([model(**with_lengths(batch))["loss"] for _ in range(300)]))
    padded, packed = draws
    error = (padded.var() / 300 + packed.var() / 300).sqrt()
    assert (padded.mean() - packed.mean()).abs() <= 4 * error + 1e-5
    assert (padded.std() > 0.01) == (packed.std() > 0.01) == bool(probability)


# -- the self-test -----------------------------------------------------------------------------------------------------


def trainer_of(model: Any) -> Any:
    accelerator = SimpleNamespace(unwrap_model=lambda wrapped: wrapped, autocast=contextlib.nullcontext)
    args = SimpleNamespace(device=torch.device("cpu"), bf16=False, fp16=False, tf32=False)
    return SimpleNamespace(model=model, accelerator=accelerator, args=args)


@pytest.mark.parametrize(("family", "head"), [("Roberta", "SequenceClassification"), ("Mistral", "CausalLM")])
def test_a_model_that_keeps_rows_apart_passes_the_self_test_and_no_random_number_is_drawn(
    family: str, head: str
) -> None:
    model = made(family, head)
    choice, before = prepared(model), torch.get_rng_state()
    assert self_test(trainer_of(model), model, choice.method) is None
    assert torch.equal(before, torch.get_rng_state()) and choice.enabled


def leaking(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """As a packed batch is computed by who takes it for one row."""
    mask = attention_mask if attention_mask is not None and attention_mask.dtype != torch.int32 else None
    return varlen_attention.attention(module, query, key, value, mask, **kwargs)


@pytest.mark.parametrize(
    ("family", "head"),
    [(family, head) for family in ("Bert", "ModernBert") for head in HEADS]
    + [("Llama", "CausalLM"), ("GPT2", "SequenceClassification")],
)
def test_a_leak_between_rows_is_caught_and_batches_are_padded(
    family: str, head: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, varlen_attention.VARLEN, leaking)
    model = made(family, head)
    choice = prepared(model)
    batch = batch_for(model, head)
    choice.settle(trainer_of(model), model)
    assert not choice.enabled and model.config._attn_implementation == "sdpa"
    message = "attention: sdpa (as asked for); padded batches: without padding, one row moves another row's outputs"
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", message)]
    one, other = computed(model, with_lengths(batch)), computed(model, batch)
    assert torch.equal(one[0]["loss"], other[0]["loss"])


def test_positions_that_are_not_restarted_are_caught() -> None:
    model = made("GPT2", "TokenClassification")
    choice = prepared(model)
    choice.method._positions = lambda rows, ids: torch.arange(len(rows.in_batch))[None]
    found = self_test(trainer_of(model), model, choice.method)
    assert found is not None and re.fullmatch(r"outputs are off by \S+ from those of a padded batch", found)


def test_a_head_that_does_more_than_is_known_is_left_to_the_model(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tuneport.finetune")
    model = made("Llama", "CausalLM")
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: plain(hidden).clamp(-1, 1)
    choice, batch = prepared(model), batch_for(model, "CausalLM")
    object.__setattr__(choice.method.head, "factor", 2.0)
    choice.settle(trainer_of(model), model)
    assert choice.enabled and not choice.gives_losses
    assert caplog.messages == ["attention: sdpa (as asked for); no padding: each row by itself"]
    packed = model(**with_lengths(batch))
    choice.method.enabled = False
    assert torch.allclose(packed["loss"], model(**batch)["loss"], atol=1e-5)


@pytest.mark.parametrize(
    ("model", "attention", "why"),
    [
        (lambda: made("Bert", "TokenClassification"), "eager", "eager attention takes rows of one length"),
        (
            lambda: transformers.BartForSequenceClassification(
                transformers.BartConfig(
                    vocab_size=50,
                    d_model=16,
                    encoder_layers=1,
                    decoder_layers=1,
                    encoder_attention_heads=2,
                    decoder_attention_heads=2,
                )
            ),
            "sdpa",
            "a model of type 'bart' is an encoder–decoder",
        ),
        (
            lambda: transformers.DebertaV2ForTokenClassification(transformers.DebertaV2Config(**SIZES)),
            "sdpa",
            "a model of type 'deberta-v2' has no attention for rows of several lengths",
        ),
    ],
)
def test_what_stands_against_it_is_named(model: Any, attention: str, why: str) -> None:
    assert obstacle(model(), attention) == why


def test_adapters_learn_the_same_without_padding() -> None:
    from peft import LoraConfig, get_peft_model

    found = []
    for wanted in (False, True):
        model = made("Llama", "CausalLM")
        model.set_attn_implementation("sdpa")
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        choice = choose.choose(adapted, ("sdpa", ""), wanted=wanted, pad_to=None, devices=1)
        assert choice.enabled == wanted
        batch = batch_for(model, "CausalLM")
        output, gradients = computed(adapted, with_lengths(batch) if wanted else batch)
        found.append({**gradients, "loss": output["loss"].detach()})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 1 + 2 * 2 * 2
    assert all(torch.allclose(one, found[1][name], atol=1e-5) for name, one in found[0].items())


def test_an_adapter_in_the_head_is_not_passed_over() -> None:
    from peft import LoraConfig, get_peft_model

    model = made("Llama", "CausalLM")
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    choice = choose.choose(adapted, ("sdpa", ""), wanted=True, pad_to=None, devices=1)
    assert choice.enabled and not choice.gives_losses
    _, gradients = computed(adapted, with_lengths(batch_for(model, "CausalLM")))
    assert any("lm_head.lora_A" in name for name in gradients)
