"""Translations of texts."""

from __future__ import annotations

import typing as t

from tuneport.serving.completer import Completer


class Translator:
    """Answers rows with a translation of their ``source``; ``params`` are those of the settings, for one call."""

    def __init__(self, folder: str, settings: t.Any = None, model: t.Any = None, batch_size: int | None = None) -> None:
        self.complete = Completer(folder, settings, model, batch_size)

    def __call__(
        self, rows: t.Sequence[dict[str, t.Any]], batch_size: int | None = None, **params: t.Any
    ) -> list[dict[str, t.Any]]:
        texts = self.complete([row["source"] for row in rows], batch_size, params)
        return [{"translation": text} for text in texts]
