"""Summaries of texts."""

from __future__ import annotations

import typing as t

from tuneport.serving.completer import Completer


class Summarizer:
    """Answers rows with a summary of their ``document``; ``params`` are those of the settings, for one call."""

    def __init__(self, folder: str, settings: t.Any = None, model: t.Any = None, batch_size: int | None = None) -> None:
        self.complete = Completer(folder, settings, model, batch_size)

    def __call__(
        self, rows: t.Sequence[dict[str, t.Any]], batch_size: int | None = None, **params: t.Any
    ) -> list[dict[str, t.Any]]:
        texts = self.complete([row["document"] for row in rows], batch_size, params)
        return [{"summary": text} for text in texts]
