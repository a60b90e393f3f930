"""Prompts and completions of rows as token ids and labels, many rows at once."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuneport.encoding.prompts import joined
from tuneport.encoding.seams import Seams
from tuneport.encoding.token_ids import Lengths, ToIds, TokenIds, concatenate
from tuneport.labels import IGNORED
from tuneport.serving.prompt_encoder import PromptEncoder

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer

ACROSS = (
    "prompt and completion become tokens apart, as in serving; as one text they would be others, with a token across "
    "their seam"
)


@dataclass(frozen=True)
class EncodedRows:
    """Token ids and labels of many rows; of an encoder–decoder's, the labels are the target's ids."""

    input_ids: TokenIds
    labels: TokenIds
    truncated: npt.NDArray[np.bool_]
    notes: Sequence[Sequence[str]] = ()  # by row, what has to be said of it; empty: nothing of any

    def columns(self) -> dict[str, t.Any]:
        """As a task's encoder returns them, with whether a token of the row has a label."""
        return {
            "input_ids": self.input_ids.column(),
            "labels": self.labels.column(),
            "truncated": self.truncated,
            "trainable": np.bincount(self.labels.rows[self.labels.values != IGNORED], minlength=len(self)) > 0,
            "notes": self.notes or [()] * len(self),
        }

    def __len__(self) -> int:
        return len(self.truncated)


class CompletionEncoder:
    """Prompt and completion of rows as token ids, with the loss on the completion alone.

    ``settings`` are the prompt's (see `PromptEncoder`) plus ``encoder_decoder``, ``target_prefix``, ``target_suffix``.
    A prompt has at most ``max_prompt_tokens``, where the settings say so. With a decoder, prompt and completion share
    ``max_seq_length``; of a completion, at most ``max_target_tokens`` stay, its end token among them if it was not cut
    or the settings say ``always_ends``. ``to_ids`` gives the ids that ``tokenizer`` gives.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        to_ids: ToIds,
        settings: Mapping[str, t.Any],
        *,
        max_seq_length: int,
        max_target_tokens: int,
    ) -> None:
        tokenizer.no_truncation()
        self.to_ids = to_ids
        self.seams = Seams(to_ids)
        self.prompts = PromptEncoder(tokenizer, dict(settings))
        self.encoder_decoder = bool(settings["encoder_decoder"])
        self.prefix, self.suffix = settings["target_prefix"], settings["target_suffix"]
        self.max_seq_length, self.max_target_tokens = max_seq_length, max_target_tokens
        self.max_prompt_tokens = settings.get("max_prompt_tokens") or max_seq_length
        self.always_ends = settings.get("always_ends", False)

    def __call__(self, texts: Sequence[str], completions: Sequence[str]) -> EncodedRows:
        """Encode rows of a text and its completion."""
        if not self.encoder_decoder:
            completions = [joined(self.prompts.after or text, c) for text, c in zip(texts, completions, strict=True)]
        targets, target_cut = self._targets(completions)
        rooms = np.full(len(texts), self.max_seq_length) - (0 if self.encoder_decoder else targets.lengths)
        prompts, prompt_cut = self._prompts(texts, np.minimum(rooms, self.max_prompt_tokens))
        cut = prompt_cut | target_cut
        if self.encoder_decoder:
            return EncodedRows(prompts, targets, cut)
        ids = concatenate(prompts, targets).cut(self.max_seq_length)
        unlearnt = np.maximum(1, prompts.lengths)  # nothing stands before the first token to predict it from
        labels = np.where(ids.places < np.repeat(unlearnt, ids.lengths), np.int32(IGNORED), ids.values)
        asked = [self.prompts.before + text + self.prompts.after for text in texts]
        across = self.seams.differ(list(zip(asked, completions, strict=True)), apart=True)
        return EncodedRows(ids, TokenIds(labels, ids.lengths), cut, [[ACROSS] * bool(found) for found in across])

    def _targets(self, completions: Sequence[str]) -> tuple[TokenIds, npt.NDArray[np.bool_]]:
        """Completions between special tokens, and which of them are cut."""
        ids = self.to_ids(completions)
        room = self.max_target_tokens - len(self.prefix)
        cut = ids.lengths + len(self.suffix) > room
        everywhere = np.ones(len(cut), bool)
        kept = ids.cut(np.where(cut, room - len(self.suffix) * self.always_ends, ids.lengths))
        suffix = TokenIds.same(self.suffix, everywhere if self.always_ends else ~cut)
        return concatenate(TokenIds.same(self.prefix, everywhere), kept, suffix), cut

    def _prompts(self, texts: Sequence[str], most: Lengths) -> tuple[TokenIds, npt.NDArray[np.bool_]]:
        """What `PromptEncoder` returns: it cuts the texts that are too long, the others need no cutting."""
        settings = self.prompts
        whole = self.to_ids([settings.before + text + settings.after for text in texts])
        cut = whole.lengths > most - len(settings.prefix) - len(settings.suffix)
        shortened: list[list[int]] = [[]] * len(texts)
        if places := np.flatnonzero(cut).tolist():
            for place, (ids, _) in zip(places, settings([texts[i] for i in places], most[cut].tolist()), strict=True):
                shortened[place] = ids
        prefix, suffix = (TokenIds.same(ids, ~cut) for ids in (settings.prefix, settings.suffix))
        whole = whole.cut(np.where(cut, 0, whole.lengths))
        return concatenate(prefix, whole, suffix, TokenIds.of(shortened)), cut
