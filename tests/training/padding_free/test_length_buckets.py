"""A batch that is computed in length buckets gives what it gives as a whole: outputs, loss and gradients."""

import itertools
import random
from typing import Any

import pytest
import torch
import transformers

from tests.training.padding_free.test_unpad import SIZES, batch_for, computed, prepared, steady, trainer_of
from tuneport.modeling.likelihood import shifted, token_losses
from tuneport.training.padding_free import choose
from tuneport.training.padding_free.length_buckets import LengthBuckets, buckets

SIDES = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
ENDS = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "vocab_size": 60}
STILL = dict.fromkeys(
    ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"), 0.0
)
BART = {**ENDS, **SIDES, **STILL, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_labels": 3}
T5 = {**ENDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
DEBERTA = {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "num_labels": 3}
GEMMA2 = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BartForConditionalGeneration": ("BartConfig", BART),
    "BartForSequenceClassification": ("BartConfig", BART),
    "BartForQuestionAnswering": ("BartConfig", {**BART, "num_labels": 2}),
    "MBartForConditionalGeneration": ("MBartConfig", BART),
    "M2M100ForConditionalGeneration": ("M2M100Config", BART),
    "MarianMTModel": ("MarianConfig", {**BART, "decoder_start_token_id": 0}),
    "T5ForConditionalGeneration": ("T5Config", {**T5, "decoder_start_token_id": 0}),
    "DebertaV2ForSequenceClassification": ("DebertaV2Config", DEBERTA),
    "DebertaV2ForTokenClassification": ("DebertaV2Config", DEBERTA),
    "DebertaV2ForQuestionAnswering": ("DebertaV2Config", {**DEBERTA, "num_labels": 2}),
    "Gemma2ForCausalLM": ("Gemma2Config", GEMMA2),
    "Gemma2ForSequenceClassification": ("Gemma2Config", {**GEMMA2, "num_labels": 3, "pad_token_id": 0}),
}
LENGTHS = (3, 11, 7, 1)
TARGETS = (4, 2, 9, 5)


def made(kind: str) -> Any:
    name, values = MODELS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, name)(**values))
    return steady(model, head_of(kind))


def head_of(kind: str) -> str:
    return kind.partition("For")[2] or "ConditionalGeneration"


def rows_for(model: Any, kind: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Rows as a collator gets them, and their batch."""
    batch = batch_for(model, "CausalLM" if (head := head_of(kind)) == "ConditionalGeneration" else head)
    if "Classification" in kind and kind.startswith("Bart"):  # its head looks at the last token
        batch["input_ids"][torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1] = 2
    if head == "ConditionalGeneration":
        mask = torch.arange(max(TARGETS)) < torch.tensor(TARGETS)[:, None]
        labels = torch.randint(4, 60, (len(LENGTHS), max(TARGETS)))
        batch["labels"] = labels.where(mask, torch.tensor(-100))
    return [{"input_ids": range(length)} for length in LENGTHS], batch


@pytest.mark.parametrize("kind", MODELS)
def test_outputs_loss_and_gradients_are_those_of_the_whole_batch(kind: str) -> None:
    model = made(kind).train()
    rows, batch = rows_for(model, kind)
    wanted, gradients = computed(model, batch)
    choice = prepared(model)
    assert choice.enabled and isinstance(choice.method, LengthBuckets) and choice.refused
    choice.settle(trainer_of(model), model)
    assert choice.enabled, choice.refused
    seen: list[tuple[int, ...]] = []
    trunk = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    trunk.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs.get("input_ids", args[0] if args else None)).shape),
        with_kwargs=True,
    )
    whole = {**batch, "lengths": choice.method.measure(rows, batch)}
    with choice.method.tested():
        found, own = computed(model, whole)
        assert sorted(seen) == sorted((1, length) for length in LENGTHS)
        with torch.no_grad():
            again = model(**whole)
    assert float(found["loss"].detach()) == pytest.approx(float(wanted["loss"].detach()), abs=1e-5)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (own[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
    if model.can_generate():
        assert found.get("logits") is None, "in training nobody asks for them"
        pair = (wanted["logits"].detach(), batch["labels"])
        losses = token_losses(*(pair if model.config.is_encoder_decoder else shifted(*pair)))
        assert torch.allclose(again["logits"], losses, atol=1e-4)
        return
    real = batch["attention_mask"].bool()
    for name in ("logits", "start_logits", "end_logits"):
        if name in wanted:
            one, other = wanted[name].detach(), again[name]
            assert one.shape == other.shape
            by_token = one.shape[:2] == real.shape
            assert torch.allclose(one[real] if by_token else one, other[real] if by_token else other, atol=1e-4)


def test_several_labels_a_row_are_not_taken_for_those_of_tokens() -> None:
    name, values = MODELS["DebertaV2ForSequenceClassification"]
    several = {**values, "num_labels": max(LENGTHS), "problem_type": "multi_label_classification"}
    model = transformers.DebertaV2ForSequenceClassification(getattr(transformers, name)(**several)).eval()
    rows, batch = rows_for(model, "DebertaV2ForSequenceClassification")
    batch["labels"] = torch.rand(len(LENGTHS), max(LENGTHS)).round()
    choice = prepared(model)
    wanted, _ = computed(model, batch)
    with choice.method.tested():
        found, _ = computed(model, {**batch, "lengths": choice.method.measure(rows, batch)})
    assert found["loss"].item() == pytest.approx(wanted["loss"].item(), abs=1e-5)


def test_rows_without_a_label_are_parts_that_weigh_nothing() -> None:
    model = made("DebertaV2ForTokenClassification")
    rows, batch = rows_for(model, "DebertaV2ForTokenClassification")
    batch["labels"][1] = -100
    wanted, _ = computed(model, batch)
    choice = prepared(model)
    with choice.method.tested():
        found, gradients = computed(model, {**batch, "lengths": choice.method.measure(rows, batch)})
    assert found["loss"].item() == pytest.approx(wanted["loss"].item(), abs=1e-5)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    batch["labels"][:] = -100
    with choice.method.tested(), torch.no_grad():
        none = model(**batch, lengths=choice.method.measure(rows, batch))["loss"]
    assert torch.isnan(none) and torch.isnan(model(**batch)["loss"])


def cost(chosen: list[list[int]], sizes: list[tuple[int, int, int]], of_part: int) -> int:
    return sum(
        len(part) * (max(sizes[row][0] for row in part) + max(sizes[row][1] for row in part)) + of_part
        for part in chosen
    )


def divisions(rows: list[int]) -> Any:
    """Every way to cut a sequence."""
    for cuts in itertools.product((False, True), repeat=len(rows) - 1):
        found = [[rows[0]]]
        for row, cut in zip(rows[1:], cuts, strict=True):
            if cut:
                found.append([])
            found[-1].append(row)
        yield found


@pytest.mark.parametrize("of_part", [0, 10, 100, 10_000])
def test_parts_hold_every_row_once_at_the_least_cost(of_part: int) -> None:
    draw = random.Random(0)
    for _ in range(20):
        sizes = [(draw.randint(1, 60), draw.randint(0, 60), 1) for _ in range(8)]
        found = buckets(sizes, of_part)
        assert sorted(row for part in found for row in part) == list(range(8))
        order = sorted(range(8), key=lambda row: sizes[row])
        assert cost(found, sizes, of_part) == min(cost(way, sizes, of_part) for way in divisions(order))
    assert len(buckets(sizes, 10_000)) == 1


def test_a_model_whose_rows_move_each_other_is_padded(caplog: pytest.LogCaptureFixture) -> None:
    class Mixing(transformers.DebertaV2ForTokenClassification):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits - output.logits.mean()
            return output

    model = Mixing(transformers.DebertaV2Config(**DEBERTA))
    choice = prepared(model)
    choice.settle(trainer_of(model), model)
    assert not choice.enabled
    assert "padded batches: without padding, outputs are off by" in caplog.text
    rows, batch = rows_for(model, "DebertaV2ForTokenClassification")
    assert choice.computed_tokens(17, choice.method.measure(rows, batch)) == 17


def test_padding_that_was_asked_for_stays() -> None:
    model = made("T5ForConditionalGeneration")
    for asked in ({"wanted": False, "pad_to": None}, {"wanted": True, "pad_to": 64}):
        assert choose.choose(model, ("sdpa", ""), **asked, devices=1).method is None
