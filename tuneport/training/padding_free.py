"""Whether a model trains on tokens alone or on padded batches: by what it is, and by what a self-test finds."""

from __future__ import annotations

import contextlib
import dataclasses as dc
import inspect
import logging
import typing as t
from collections.abc import Callable, Sequence

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneport.modeling.likelihood import shifted, token_losses
from tuneport.training.attention import EAGER, FLASH
from tuneport.training.callbacks import precision_of
from tuneport.training.packing import LENGTHS, Packing
from tuneport.training.varlen import VARLEN, VARLEN_FA2

log = logging.getLogger("tuneport.finetune")
LENGTHS_TESTED = (7, 12, 5)
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}  # relative to the largest number

Batch = dict[str, t.Any]


@dc.dataclass(frozen=True)
class _WithLengths:
    """A collator with the rows' numbers of tokens in each of its batches."""

    collate: Callable[[list[Batch]], Batch]

    def __call__(self, rows: list[Batch]) -> Batch:
        return self.collate(rows) | {LENGTHS: tuple(len(row["input_ids"]) for row in rows)}


@dc.dataclass(kw_only=True)
class PaddingFree:
    """A model's attention, and whether it computes with the tokens of a batch alone; ``refused`` says why not."""

    attention: str
    why: str
    refused: str | None
    packing: Packing | None = None

    @property
    def enabled(self) -> bool:
        return self.packing is not None and self.packing.enabled

    @property
    def gives_losses(self) -> bool:
        """Whether the model gives losses of labelled tokens in the place of logits, as `likelihood.token_losses`."""
        return self.packing is not None and self.packing.gives_losses

    def collator(self, collate: Callable[[list[Batch]], Batch]) -> Callable[[list[Batch]], Batch]:
        """The collator whose batches the model takes."""
        return collate if self.packing is None else _WithLengths(collate)

    def settle(self, trainer: Trainer, model: t.Any) -> None:
        """Test the model, pad where it has to be, and say in one line what holds. ``model`` is what is called."""
        if self.packing is None:
            log.info("attention: %s (%s); padded batches: %s", self.attention, self.why, self.refused)
            return
        self.refused = self_test(trainer, model, self.packing)
        if self.refused is not None and self.packing.head is not None:  # its head may do more than is known here
            self.packing.head, found = None, self.refused
            self.refused = found if self_test(trainer, model, self.packing) else None
        if self.refused is None:
            log.info("attention: %s (%s); no padding: each row by itself", self.attention, self.why)
            return
        self.packing.enabled = False
        inner_of(trainer).set_attn_implementation(self.attention)
        log.warning("attention: %s (%s); padded batches: without padding, %s", self.attention, self.why, self.refused)


class SettleAtStart(TrainerCallback):
    """Tests a model whose weights are in place only where training begins."""

    def __init__(self, trainer: Trainer, choice: PaddingFree) -> None:
        self.trainer, self.choice = trainer, choice

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> None:
        self.choice.settle(self.trainer, self.trainer.model_wrapped)


def prepare(model: t.Any, attention: tuple[str, str], *, wanted: bool, pad_to: int | None, devices: int) -> PaddingFree:
    """Let a model, with its adapters if any, compute without padding where nothing that is known stands against it.

    ``attention`` is what was chosen for the model and why, ``devices`` how many it is spread over in this process.
    """
    chosen, why = attention
    model = plain(model)
    asked = {
        "padding_free=false": not wanted,
        "pad_to_max_length=true": pad_to is not None,
        "one process has several GPUs": devices > 1,
    }
    refused = next((reason for reason, applies in asked.items() if applies), None) or obstacle(model, chosen)
    if refused is not None:
        return PaddingFree(attention=chosen, why=why, refused=refused)
    packing = Packing(model)
    model.set_attn_implementation(VARLEN_FA2 if chosen == FLASH else VARLEN)
    packing.enabled = True
    return PaddingFree(attention=chosen, why=why, refused=None, packing=packing)


def obstacle(model: t.Any, attention: str) -> str | None:
    """What about a model, and the attention that was chosen for it, stands against training without padding."""
    config, trunk, kind = model.config, model.base_model, f"a model of type '{model.config.model_type}'"
    obstacles = {
        f"{kind} is an encoder–decoder": config.is_encoder_decoder,
        f"{EAGER} attention takes rows of one length": attention == EAGER,
        f"{kind} has no attention for rows of several lengths": not (
            model._can_set_attn_implementation() and model._supports_flash_attn and model._supports_sdpa
        ),
        f"{kind} takes no positions": trunk is model
        or "position_ids" not in inspect.signature(trunk.forward).parameters,
        f"{kind} attends within chunks": getattr(config, "attention_chunk_size", None) is not None,
    }
    return next((reason for reason, applies in obstacles.items() if applies), None)


def plain(model: t.Any) -> t.Any:
    """The model of transformers, in which adapters may be."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def inner_of(trainer: Trainer) -> t.Any:
    """The model of transformers that a trainer trains."""
    return plain(trainer.accelerator.unwrap_model(trainer.model))


def self_test(trainer: Trainer, model: t.Any, packing: Packing) -> str | None:
    """What is wrong where a model that is trained without padding does not compute what it does with padding.

    ``model`` is called, the same on all ranks. Its outputs for rows of several lengths must be those of a padded batch,
    and another row in the middle must move none of those beside it. Random numbers are drawn as if nothing were tested.
    """
    batch = _batch(inner_of(trainer), trainer.args.device)
    other = batch | {"input_ids": batch["input_ids"].clone()}
    middle = slice(0, LENGTHS_TESTED[1])
    other["input_ids"][1, middle] = other["input_ids"][1, middle].flip(0).roll(1)
    with _evaluating(model), torch.no_grad(), trainer.accelerator.autocast():
        try:
            packing.enabled = False
            wanted = _outputs(model, batch, packing.head is not None, losses=False)
            packing.enabled = True
            found, moved = (
                _outputs(model, given | {LENGTHS: LENGTHS_TESTED}, packing.head is not None, losses=True)
                for given in (batch, other)
            )
        except Exception as e:  # whatever a model's own code makes of it
            return f"it cannot be computed ({type(e).__name__}: {e})".splitlines()[0]
    if [part.shape for part in found] != [part.shape for part in wanted]:
        return "outputs are not those of its rows"
    scale = max(float(part.abs().max()) for part in wanted)
    if _distance(found[0], moved[0]) > 1e-6 * scale or _distance(found[2], moved[2]) > 1e-6 * scale:
        return "one row moves another row's outputs"
    apart = max(map(_distance, wanted, found))
    if not apart <= TOLERANCE[precision_of(trainer.args)] * max(1.0, scale):
        return f"outputs are off by {apart:.1e} from those of a padded batch"
    return None


def _batch(model: t.Any, device: torch.device) -> Batch:
    """Rows of tokens drawn at random, none of them padding."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    text: t.Any = config.get_text_config()
    fill = getattr(text, "pad_token_id", None) or 0
    size = (len(LENGTHS_TESTED), max(LENGTHS_TESTED))
    ids = torch.randint(0, text.vocab_size - 1, size, generator=generator)
    ids += ids >= fill
    mask = torch.arange(size[1]) < torch.tensor(LENGTHS_TESTED)[:, None]
    batch = {"input_ids": ids.where(mask, torch.tensor(fill)), "attention_mask": mask.long()}
    types = getattr(text, "type_vocab_size", 0) or 0
    if types > 1 and "token_type_ids" in inspect.signature(model.forward).parameters:
        batch["token_type_ids"] = torch.randint(0, types, size, generator=generator).where(mask, torch.tensor(0))
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _outputs(model: t.Any, batch: Batch, writes: bool, *, losses: bool) -> Sequence[torch.Tensor]:
    """By row: what the model puts out for its tokens or for all of it; of one that writes, the losses of its tokens."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model(**batch, labels=labels) if writes else model(**batch)
    if writes:
        found = output["logits"] if losses else token_losses(*shifted(output["logits"], labels))
        return [row[: length - 1, 0] for row, length in zip(found.float(), LENGTHS_TESTED, strict=True)]
    names = ("logits", "start_logits", "end_logits")
    parts = [output[name].float() for name in names if name in output]
    if parts[0].shape[:2] != batch["input_ids"].shape:
        return list(parts[0])
    found = torch.cat([part if part.dim() == 3 else part[..., None] for part in parts], -1)
    return [row[:length] for row, length in zip(found, LENGTHS_TESTED, strict=True)]


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@contextlib.contextmanager
def _evaluating(model: t.Any) -> t.Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
