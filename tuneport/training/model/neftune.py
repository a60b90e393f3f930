"""NEFTune (arXiv 2310.05914): in training, uniform noise on the embeddings of the tokens that a model reads."""

from __future__ import annotations

import inspect
import typing as t

import torch


class Noise:
    """Adds to each token of a row of L tokens, of d numbers each, numbers between ±alpha / sqrt(L·d).

    L counts a row's own tokens, as in the paper's code, so that neither padding nor leaving it out changes the noise.
    Of an encoder–decoder it is the encoder's embeddings that get noise.
    """

    def __init__(self, model: t.Any, alpha: float) -> None:
        self.alpha = alpha
        self.lengths: torch.Tensor | None = None  # of the rows that are being read
        reader = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
        self._names = list(inspect.signature(reader.forward).parameters)
        reader.register_forward_pre_hook(self._begin, with_kwargs=True)  # before what leaves the padding out
        reader.register_forward_hook(self._end, always_call=True)
        reader.get_input_embeddings().register_forward_hook(self._add)

    def _begin(self, reader: t.Any, args: tuple[t.Any, ...], kwargs: dict[str, t.Any]) -> None:
        mask = (dict(zip(self._names, args, strict=False)) | kwargs).get("attention_mask")
        self.lengths = mask.sum(1) if reader.training and mask is not None else None

    def _end(self, reader: t.Any, args: t.Any, output: t.Any) -> None:
        self.lengths = None

    def _add(self, embeddings: t.Any, args: t.Any, output: torch.Tensor) -> torch.Tensor:
        lengths = self.lengths
        if lengths is None:
            return output
        in_one = len(lengths) != len(output)  # the tokens of all rows
        lengths = lengths.repeat_interleave(lengths)[None] if in_one else lengths[:, None]
        most = self.alpha / (lengths * output.shape[-1]).sqrt()
        return output + torch.zeros_like(output).uniform_(-1, 1) * most[..., None].to(output.dtype)
