"""Continuations of texts."""

from __future__ import annotations

import typing as t

from tuneport.serving.generator import Generator
from tuneport.serving.prompt_encoder import PromptEncoder


class TextGenerator:
    """Answers rows with the text that follows ``text``; of a prompt too long for the model, the start is cut."""

    def __init__(self, folder: str, settings: t.Any = None, model: t.Any = None, batch_size: int | None = None) -> None:
        self.generator = Generator(folder, settings, model)
        self.prompts = PromptEncoder(self.generator.tokenizer, settings)
        self.settings = settings
        self.batch_size = batch_size

    def __call__(
        self, rows: t.Sequence[dict[str, t.Any]], batch_size: int | None = None, **params: t.Any
    ) -> list[dict[str, t.Any]]:
        params = {**self.settings["params"], **params}
        max_positions, new = self.settings["max_positions"], params["max_new_tokens"]
        if max_positions is not None and new >= max_positions:
            raise ValueError(
                f"params: max_new_tokens={new} leaves no room for a prompt; expected a number < {max_positions}"
            )
        room = 10**9 if max_positions is None else max_positions - new
        prompts = [ids for ids, _ in self.prompts([row["text"] for row in rows], [room] * len(rows))]
        for number, ids in enumerate(prompts, 1):
            if not ids:
                raise ValueError(f"row {number}: is an empty text; expected one to go on from")
        return [{"text": text} for text in self.generator(prompts, batch_size or self.batch_size, params)]
