"""The loss of an optimizer step: the mean over all that is labelled in it, whichever batch or rank it stands in."""

from __future__ import annotations

import contextlib
import typing as t

import torch
from transformers import Trainer

from tuneport.labels import IGNORED


@contextlib.contextmanager
def inputs_as_computed(model: t.Any, *, mixed: bool) -> t.Iterator[None]:
    """While entered, in mixed precision, adapters take their inputs as they are; for a forward and its backward pass.

    peft gives each of them a copy in the type of the adapter's weights, 32 bits, of which autocast makes one in 16 bits
    again: a third of all activations. The products are the same without.
    """
    if not (mixed and hasattr(model, "peft_config")):
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(model):
        yield


class LossByItem(Trainer):
    """A Trainer whose steps weigh every labelled token (where rows have one label: every row) alike.

    A model returns the mean over a batch. transformers leaves the rest to models that take ``num_items_in_batch``, and
    takes every model with ``**kwargs`` for one of those, which makes a multiple of the loss of the others.
    """

    loss_is_scaled_for_ga = True  # by `compute_loss`, for Trainer.training_step

    def __init__(self, **kwargs: t.Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False

    def training_step(self, model: t.Any, inputs: t.Any, *args: t.Any, **kwargs: t.Any) -> torch.Tensor:
        with inputs_as_computed(self.model, mixed=self.args.bf16 or self.args.fp16):
            return super().training_step(model, inputs, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[t.Any], device: torch.device) -> torch.Tensor:
        """Scalar of int64: how many labels the batches of a step have, over all ranks."""
        items = torch.as_tensor(sum(self._items(batch) for batch in batch_samples), device=device)
        return self.accelerator.reduce(items) if self.args.world_size > 1 else items

    def _items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Scalar of int64: how many labels a batch has; labels are (rows, width), or one a row."""
        labels = batch.get("labels")
        if labels is None:  # a span's start and end
            return torch.tensor(len(next(iter(batch.values()))))
        return (labels[..., 1:] if self._loss_shifts_labels else labels).ne(IGNORED).sum()

    def compute_loss(
        self, model: t.Any, inputs: t.Any, return_outputs: bool = False, num_items_in_batch: t.Any = None
    ) -> t.Any:
        """The mean over this batch, weighed by its share of the step's items; ranks' gradients are averaged later."""
        items = self._items(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if num_items_in_batch is not None:
            loss = loss * (items.to(loss.device) * self.args.world_size / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss
