"""What is shown on a terminal as one HTML file, in colours that can be read on its paper."""

from __future__ import annotations

import html
import io
import typing as t
from pathlib import Path

from tuneport.artifacts import write_atomically
from tuneport.errors import UserError

if t.TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 110  # characters of a line
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
body {{ color: {foreground}; background-color: {background}; }}
pre, code {{ font-family: Menlo, "DejaVu Sans Mono", Consolas, "Courier New", monospace; }}
{stylesheet}
</style>
</head>
<body>
<main><pre><code>{code}</code></pre></main>
</body>
</html>
"""
PAPER, INK = (255, 255, 255), (0, 0, 0)
# Black, red, green, yellow, blue, magenta, cyan, grey: each at least 4.5 to 1 on the paper, as WCAG asks of text.
COLOURS = [INK, (170, 0, 0), (0, 110, 0), (122, 92, 0), (0, 0, 170), (128, 0, 128), (0, 100, 110), (90, 90, 90)]


def as_html(shown: RenderableType, title: str) -> str:
    """What is shown, as a page that needs no other file."""
    from rich.console import Console
    from rich.terminal_theme import TerminalTheme

    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(shown)
    page = PAGE.replace("TITLE", html.escape(title).replace("{", "{{").replace("}", "}}"))
    theme = TerminalTheme(PAPER, INK, COLOURS, COLOURS)
    return console.export_html(theme=theme, code_format=page, inline_styles=True)


def save_html(shown: RenderableType, title: str, path: Path) -> None:
    """Write what is shown as one HTML file. Raises `UserError` where it cannot be written."""
    try:
        write_atomically(path, as_html(shown, title))
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}). Name another file with --html.") from None
