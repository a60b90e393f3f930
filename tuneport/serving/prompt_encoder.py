"""Prompts as token ids."""

from __future__ import annotations

import typing as t


class PromptEncoder:
    """Prompts as token ids: ``before + text + after`` between special tokens, in at most ``max_tokens``.

    Where a prompt is longer, its text is cut at its end, or at its start with ``cut="start"``. Self-contained: the same
    code encodes the rows to train on, and, exported with the model, the requests.
    """

    def __init__(self, tokenizer: t.Any, settings: dict[str, t.Any]) -> None:
        self.tokenizer = tokenizer
        self.before, self.after = settings["template"].split("{text}")
        self.prefix, self.suffix = settings["prompt_prefix"], settings["prompt_suffix"]
        self.cut = settings["cut"]

    def __call__(self, texts: t.Sequence[str], max_tokens: t.Sequence[int]) -> list[tuple[list[int], bool]]:
        """Return (token ids, whether the text was cut) of each text, in at most as many tokens as ``max_tokens`` says.

        The template alone may be longer than that: then all of the text is cut, and nothing of the template.
        """
        wholes = self._tokens([self.before + text + self.after for text in texts])
        found = []
        for text, whole, most in zip(texts, wholes, max_tokens, strict=True):
            room = most - len(self.prefix) - len(self.suffix)
            ids = whole if len(whole) <= room else self._shortened(text, len(whole) - room, room)
            found.append(([*self.prefix, *ids, *self.suffix], len(whole) > room))
        return found

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _shortened(self, text: str, excess: int, room: int) -> list[int]:
        """Cut as many tokens off the text as are too many; at the seams a few more may have to go."""
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        while True:
            kept = len(offsets) - excess
            if kept <= 0:
                part = ""
            elif self.cut == "start":
                part = text[offsets[-kept][0] :]
            else:
                part = text[: offsets[kept - 1][1]]
            ids: list[int] = self._tokens([self.before + part + self.after])[0]
            if not part or len(ids) <= room:
                return ids
            excess += len(ids) - room
