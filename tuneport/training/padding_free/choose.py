"""Choose how a model trains: on tokens alone, in length buckets, or on padded batches.

The model's kind decides first, a self-test before the first step decides last.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import inspect
import logging
import typing as t
from collections.abc import Callable, Sequence

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneport.errors import UserError
from tuneport.labels import IGNORED
from tuneport.modeling.likelihood import shifted, token_losses
from tuneport.training.padding_free.attention import EAGER, FLASH
from tuneport.training.padding_free.length_buckets import LengthBuckets
from tuneport.training.padding_free.unpad import Unpadding
from tuneport.training.padding_free.varlen_attention import VARLEN, VARLEN_FA2
from tuneport.training.precision import precision_of

log = logging.getLogger("tuneport.finetune")
LENGTHS = "lengths"  # of a batch's rows, which a model in a `Unpadding` takes beside its tensors
LENGTHS_TESTED = (7, 12, 5)
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}  # relative to the largest number

Batch = dict[str, t.Any]
Measure = Callable[[Sequence[Batch], Batch], t.Any]


@dc.dataclass(frozen=True)
class _WithLengths:
    """A collator with the rows' lengths in each of its batches."""

    collate: Callable[[list[Batch]], Batch]
    measure: Measure

    def __call__(self, rows: list[Batch]) -> Batch:
        batch = self.collate(rows)
        return batch | {LENGTHS: self.measure(rows, batch)}


@dc.dataclass(kw_only=True)
class PaddingFree:
    """A model's attention, and how it does without padding, if it does.

    ``refused`` says why the model does not compute with the tokens alone, but in length buckets or with all padding.
    """

    attention: str
    why: str
    refused: str | None
    method: Unpadding | LengthBuckets | None = None
    needed: bool = False  # for batches of many rows, of whatever lengths

    @property
    def enabled(self) -> bool:
        return self.method is not None and self.method.enabled

    @property
    def gives_losses(self) -> bool:
        """Whether the model gives losses of labelled tokens in the place of logits, as `likelihood.token_losses`."""
        return self.method is not None and self.method.enabled and self.method.gives_losses

    @property
    def skips_unlabelled(self) -> bool:
        """Whether a language model's head is given the tokens alone that have a label."""
        return isinstance(self.method, Unpadding) and self.method.gives_losses

    def computed_tokens(self, padded: int, lengths: t.Any) -> int:
        """How many tokens are computed for a batch whose padded size is ``padded`` tokens."""
        return padded if self.method is None or not self.method.enabled else self.method.computed_tokens(lengths)

    def collator(self, collate: Callable[[list[Batch]], Batch]) -> Callable[[list[Batch]], Batch]:
        """The collator whose batches the model takes."""
        return collate if self.method is None else _WithLengths(collate, self.method.measure)

    def settle(self, trainer: Trainer, model: t.Any) -> None:
        """Test the model, pad where it has to be, and say in one line what holds. ``model`` is what is called.

        Raises `UserError` where it has to be padded and must not.
        """
        method, attention = self.method, f"attention: {self.attention} ({self.why})"
        if method is None:
            self._refuse(str(self.refused))
            log.info("%s; padded batches: %s", attention, self.refused)
            return
        wrong = self_test(trainer, model, method)
        if wrong is not None and isinstance(method, Unpadding) and method.head is not None:
            method.head = None  # it may do more than is known here
            wrong = wrong if self_test(trainer, model, method) else None
        if wrong is not None:
            self._refuse(f"without padding, {wrong}")
            method.enabled = False
            if isinstance(method, Unpadding):
                inner_of(trainer).set_attn_implementation(self.attention)
            log.warning("%s; padded batches: without padding, %s", attention, wrong)
            self.refused = wrong
        elif self.refused is not None:
            log.info("%s; batches in length buckets: %s", attention, self.refused)
        else:
            log.info("%s; no padding: each row by itself", attention)

    def _refuse(self, reason: str) -> None:
        if self.needed:
            raise UserError(
                f"packing=true: batches of this training have to be padded ({reason}), and a pack's short rows would "
                "be padded to its longest. Set packing=false."
            )


class SettleAtStart(TrainerCallback):
    """Tests a model whose weights are in place only where training begins."""

    def __init__(self, trainer: Trainer, choice: PaddingFree) -> None:
        self.trainer, self.choice = trainer, choice

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> None:
        self.choice.settle(self.trainer, self.trainer.model_wrapped)


def choose(
    model: t.Any,
    attention: tuple[str, str],
    *,
    wanted: bool,
    needed: bool = False,
    pad_to: int | None,
    devices: int = 1,
    sharded: bool = False,
    label_smoothing: float = 0.0,
) -> PaddingFree:
    """Let a model, with its adapters if any, compute without padding where nothing that is known stands against it.

    ``attention`` is what was chosen for the model and why, ``devices`` how many it is spread over in this process.
    ``needed``: a training that has to pad is refused when it is settled. ``sharded``: its weights are spread over
    processes, which then have to call each layer as often as the others.
    """
    chosen, why = attention
    model = plain(model)
    asked = {
        "padding_free=false": not wanted,
        "pad_to_max_length=true": pad_to is not None,
        "one process has several GPUs": devices > 1,
    }
    refused = next((reason for reason, applies in asked.items() if applies), None)
    if refused is not None:
        return PaddingFree(attention=chosen, why=why, refused=refused, needed=needed)
    refused = obstacle(model, chosen)
    if refused is not None and sharded:
        refused = f"{refused}, and its weights are spread over processes"
        return PaddingFree(attention=chosen, why=why, refused=refused, needed=needed)
    method = Unpadding(model, label_smoothing) if refused is None else LengthBuckets(model)
    if refused is None:
        model.set_attn_implementation(VARLEN_FA2 if chosen == FLASH else VARLEN)
    method.enabled = True
    return PaddingFree(attention=chosen, why=why, refused=refused, method=method, needed=needed)


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


def self_test(trainer: Trainer, model: t.Any, method: Unpadding | LengthBuckets) -> str | None:
    """Say how a model differs without padding from itself with padding; None where it does not.

    ``model`` is called, the same on all ranks. Its outputs for rows of several lengths must be those of a padded batch,
    and another row in the middle must move none of those beside it. Random numbers are drawn as if nothing were tested.
    """
    batch = _batch(inner_of(trainer), trainer.args.device, method)
    other = batch | {"input_ids": batch["input_ids"].clone()}
    middle = slice(0, LENGTHS_TESTED[1])
    other["input_ids"][1, middle] = other["input_ids"][1, middle].flip(0).roll(1)
    with _evaluating(model), torch.no_grad(), trainer.accelerator.autocast():
        try:
            method.enabled = False
            wanted = _outputs(model, batch, method)
            method.enabled = True
            lengths = {LENGTHS: method.measure([{"input_ids": range(length)} for length in LENGTHS_TESTED], batch)}
            with method.tested():
                found, moved = (_outputs(model, given | lengths, method) for given in (batch, other))
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


def _batch(model: t.Any, device: torch.device, method: Unpadding | LengthBuckets) -> Batch:
    """Rows of tokens drawn at random, none of them padding; with labels for a model that gives losses."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    text: t.Any = config.get_text_config()
    fill, end = getattr(text, "pad_token_id", None) or 0, getattr(text, "eos_token_id", None)
    size, lengths = (len(LENGTHS_TESTED), max(LENGTHS_TESTED)), torch.tensor(LENGTHS_TESTED)
    known = [i for i in range(text.vocab_size) if i not in (fill, end)] or [fill]
    ids = torch.tensor(known)[torch.randint(0, len(known), size, generator=generator)]
    if config.is_encoder_decoder and isinstance(end, int):  # where its heads look
        ids[torch.arange(size[0]), lengths - 1] = end
    mask = torch.arange(size[1]) < lengths[:, None]
    batch = {"input_ids": ids.where(mask, torch.tensor(fill)), "attention_mask": mask.long()}
    types = getattr(text, "type_vocab_size", 0) or 0
    if types > 1 and "token_type_ids" in inspect.signature(model.forward).parameters:
        batch["token_type_ids"] = torch.randint(0, types, size, generator=generator).where(mask, torch.tensor(0))
    if method.gives_losses:
        batch["labels"] = ids.where(mask, torch.tensor(IGNORED))
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _outputs(model: t.Any, batch: Batch, method: Unpadding | LengthBuckets) -> Sequence[torch.Tensor]:
    """By row: what the model puts out for its tokens or for all of it; of one that writes, the losses of its tokens."""
    output = model(**batch)
    if method.gives_losses:
        pair = (output["logits"], batch["labels"])
        found = output["logits"] if method.enabled else token_losses(*(shifted(*pair) if method.shifted else pair))
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
