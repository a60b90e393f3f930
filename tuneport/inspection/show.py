"""A preview for people: in the terminal, or as one HTML file; what is learnt stands in ⟦ ⟧ and in colour."""

from __future__ import annotations

import dataclasses as dc
import typing as t
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneport.data.splits import SPLITS
from tuneport.errors import excerpt
from tuneport.inspection.look import MOST_LABELS, Preview, Token, Window
from tuneport.runner import html_page

LEARNT, SPECIAL, CLASS = "bold green", "yellow", "cyan"
MOST_TOKENS = 400  # of a window that are shown


@dc.dataclass(frozen=True)
class Page:
    """A preview that shows itself in a notebook, and on a console of rich."""

    preview: Preview

    def __rich__(self) -> RenderableType:
        return render(self.preview)

    def _repr_html_(self) -> str:
        return html(self.preview)

    def save_html(self, path: Path) -> None:
        """Write it as one HTML file. Raises `UserError` where it cannot be written."""
        save_html(self.preview, path)


def render(preview: Preview) -> RenderableType:
    """All of a preview, for a console of rich."""
    return Group(*_parts(preview))


def html(preview: Preview) -> str:
    """A preview as a page that needs no other file."""
    return html_page.as_html(render(preview), _title(preview))


def save_html(preview: Preview, path: Path) -> None:
    """Write a preview as one HTML file that needs no other. Raises `UserError` where it cannot be written."""
    html_page.save_html(render(preview), _title(preview), path)


def _title(preview: Preview) -> str:
    return f"{preview.task}: the first rows as the model sees them (max_seq_length {preview.max_seq_length})"


def _parts(preview: Preview) -> Iterator[RenderableType]:
    yield Text(_title(preview), style="bold")
    yield Text.assemble("learnt ", ("⟦like this⟧", LEARNT), ", special tokens ", ("like this", SPECIAL), "\n")
    for row in preview.rows:
        for number, window in enumerate(row.windows, 1):
            part = f", window {number} of {len(row.windows)}" if len(row.windows) > 1 else ""
            yield Text(f"{row.row_id}{part}: {len(window.tokens)} tokens", style="underline")
            yield from _window(window)
            yield Text()
    yield _counts(preview)
    if preview.labels:
        yield _labels(preview)
    yield from (Text(line) for line in _lines(preview))


def _window(window: Window) -> Iterator[Text]:
    yield _tokens(window.tokens)
    if window.target:
        yield Text.assemble(("target: ", CLASS), _tokens(window.target))
    if window.answer:
        yield Text.assemble(("→ ", CLASS), (window.answer, CLASS))


def _tokens(tokens: Sequence[Token]) -> Text:
    text = Text()
    for trained, run in groupby(tokens[:MOST_TOKENS], key=lambda token: token.trained):
        text.append("⟦" if trained else "", LEARNT)
        for number, token in enumerate(run):
            spaced = " " if number and not token.text.startswith((" ", "##")) and _is_word(token) else ""
            style = SPECIAL if token.special else LEARNT if trained else ""
            text.append(spaced + token.text.replace("\n", "⏎\n"), style)
            if token.label:
                text.append(f"/{token.label}", CLASS)
        text.append("⟧" if trained else "", LEARNT)
    if len(tokens) > MOST_TOKENS:
        text.append(f" … and {len(tokens) - MOST_TOKENS} more tokens", "dim")
    return text


def _is_word(token: Token) -> bool:
    return token.special or bool(token.label) or token.text.strip() != ""


def _counts(preview: Preview) -> Table:
    table = Table(title="rows looked at", title_justify="left")
    for name in ("data", "read", "kept", "duplicates", "left out, and why"):
        table.add_column(name)
    for split in SPLITS:
        if source := preview.report["sources"].get(split):
            dropped = [f"{found['rows']:,} {reason}" for reason, found in source["dropped"].items()]
            dropped += [
                f"{found['left_out']:,} of {found['file']}, beyond its weight"
                for found in source.get("mixture", ())
                if found["left_out"]
            ]
            cells = (f"{source['read']:,}", f"{source['kept']:,}", f"{source['duplicates_removed']:,}")
            table.add_row(f"{source['file']} ({split})", *cells, "; ".join(dropped) or "none")
    return table


def _labels(preview: Preview) -> Table:
    table = Table(title="labels", title_justify="left")
    for name in ("label", "rows", "for example"):
        table.add_column(name)
    for label, (count, examples) in list(preview.labels.items())[:MOST_LABELS]:
        table.add_row(excerpt(label, 40), f"{count:,}", "\n".join(excerpt(text, 70) for text in examples))
    if len(preview.labels) > MOST_LABELS:
        table.add_row(f"and {len(preview.labels) - MOST_LABELS} more", "", "")
    return table


def _lines(preview: Preview) -> Iterator[str]:
    share = preview.truncated / max(preview.encoded, 1)
    yield f"cut at {preview.max_seq_length} tokens: {preview.truncated:,} of {preview.encoded:,} ({share:.1%})"
    for split in SPLITS:
        found: dict[str, t.Any] = preview.report["splits"][split]
        if tokens := found["tokens"]:
            told = ", ".join(f"{name} {tokens[name]:,}" for name in ("min", "median", "p95", "max"))
            yield f"{split}: {found['rows']:,} rows, tokens {told}"
        for note, rows in found.get("notes", {}).items():
            yield f"{split}: {rows['rows']:,} rows: {note}"
    if preview.steps is None:
        yield "The training data has more rows than were looked at."
    else:
        yield f"optimizer steps of the training: {preview.steps:,}"
