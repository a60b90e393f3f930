"""Texts in, what a language model writes for each of them out."""

from __future__ import annotations

import typing as t

from tuneport.serving.generator import Generator
from tuneport.serving.prompt_encoder import PromptEncoder


class Completer:
    """Writes a text for each text, after the prompt that the model was trained with. Self-contained, beside
    `PromptEncoder` and `Generator`, whose settings it takes.

    ``settings`` also hold ``max_prompt_tokens`` and ``max_positions``, the most that the model has, or None.
    """

    def __init__(
        self, folder: str, settings: dict[str, t.Any], model: t.Any = None, batch_size: int | None = None
    ) -> None:
        self.settings, self.batch_size = settings, batch_size
        self.generator = Generator(folder, settings, model)
        self.prompts = PromptEncoder(self.generator.tokenizer, settings)

    def __call__(self, texts: t.Sequence[str], batch_size: int | None, params: dict[str, t.Any]) -> list[str]:
        """``params`` go before those of the settings. Raises ValueError for one that is not known or not valid."""
        known = self.settings["params"]
        if unknown := [name for name in params if name not in known]:
            raise ValueError(f"params: {', '.join(unknown)} not known; expected some of {', '.join(known)}")
        chosen = {**known, **params}
        most = [self._room(chosen["max_new_tokens"])] * len(texts)
        prompts = [ids for ids, _ in self.prompts(texts, most)]
        return self.generator(prompts, batch_size or self.batch_size, chosen)

    def _room(self, new_tokens: int) -> int:
        """The most tokens of a prompt; more than in training are never read, fewer where the answers need the room."""
        most, positions = self.settings["max_prompt_tokens"], self.settings["max_positions"]
        if positions is None:
            return t.cast(int, most)
        left = positions if self.settings["encoder_decoder"] else positions - 1
        if new_tokens > left:
            raise ValueError(f"params: max_new_tokens={new_tokens} is more than the model takes; expected <= {left}")
        return t.cast(int, most if self.settings["encoder_decoder"] else min(most, positions - new_tokens))
