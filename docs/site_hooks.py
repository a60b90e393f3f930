"""For mkdocs: what pages link to outside of docs/ becomes a part of the site, under its path in the checkout."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(]\()([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the linked files, and what those that are pages link to in turn."""
    found: set[str] = set()
    pages = [Path(file.abs_src_path).relative_to(ROOT).as_posix() for file in files.documentation_pages()]
    while pages:
        page = pages.pop()
        for target in _targets(page, (ROOT / page).read_text("utf-8")):
            if target not in found and not target.startswith("docs/") and (ROOT / target).is_file():
                found.add(target)
                pages += [target] if target.endswith(".md") else []
    for name in sorted(found):
        content = (ROOT / name).read_text("utf-8") if name.endswith(".md") else (ROOT / name).read_bytes()
        files.append(File.generated(config, f"checkout/{name}", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links lead to where their files lie in the site."""
    own = _in_checkout(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        start, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(own), target))
        if not (ROOT / path).is_file():
            return match[0]
        there = path.removeprefix("docs/") if path.startswith("docs/") else f"checkout/{path}"
        return f"{start}{posixpath.relpath(there, posixpath.dirname(page.file.src_uri))}{anchor or ''})"

    return LINK.sub(rewritten, markdown)


def _in_checkout(site: str) -> str:
    return site.removeprefix("checkout/") if site.startswith("checkout/") else f"docs/{site}"


def _targets(page: str, text: str) -> list[str]:
    return [posixpath.normpath(posixpath.join(posixpath.dirname(page), found[1])) for found in LINK.findall(text)]
