"""Descriptions of Debian's packages, and their translations, for the examples that learn from them.

`descriptions()` has one entry for each package of a release: its synopsis (the one-line description), the paragraphs of
its long description, and the source package it is built from, which says whose descriptions share text. The archive's
index names the SHA-256 of every file, and each is held against it; the index's own signature is not checked. A point
update of the release may change a few descriptions.
"""

import bz2
import gzip
import lzma
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fetching import cache, digest, fetch_url

HOST = "https://deb.debian.org/debian"
RELEASE = "bookworm"
PACKAGES = "main/binary-amd64/Packages"
OPEN: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}

Fields = dict[str, str]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph on one line; one that is set out in lines of its own, a list mostly, keeps them."""

    text: str
    verbatim: bool


@dataclass(frozen=True)
class Description:
    """What is said of a package in one language."""

    package: str
    source: str
    synopsis: str
    paragraphs: tuple[Paragraph, ...]

    @property
    def prose(self) -> str:
        """The paragraphs that are not verbatim, one a line."""
        return "\n".join(p.text for p in self.paragraphs if not p.verbatim)


def descriptions(language: str = "en") -> list[Description]:
    """Every description in a language, by package name; in other languages than English not all packages have one."""
    index, texts = fetch([PACKAGES, f"main/i18n/Translation-{language}"])
    sources = {
        (s["Package"], s["Description-md5"]): s.get("Source", s["Package"]).split()[0] for s in stanzas(lines(index))
    }
    found = {}
    for stanza in stanzas(lines(texts)):
        key = (stanza["Package"], stanza["Description-md5"])
        if key in sources:  # else of another architecture
            synopsis, _, body = stanza[f"Description-{language}"].partition("\n")
            found[key] = Description(key[0], sources[key], " ".join(synopsis.split()), paragraphs(body))
    return sorted(found.values(), key=lambda d: d.package)


def stanzas(lines: Iterable[str]) -> Iterator[Fields]:
    """The stanzas of a control file; further lines of a field follow its first one as they stand, after a newline."""
    fields: Fields = {}
    name = ""
    for line in lines:
        if line.startswith((" ", "\t")):
            fields[name] += "\n" + line.rstrip()
        elif line.strip():
            name, _, value = line.partition(":")
            fields[name] = value.strip()
        elif fields:
            yield fields
            fields = {}
    if fields:
        yield fields


def paragraphs(body: str) -> tuple[Paragraph, ...]:
    """The paragraphs of a long description (Debian Policy, 5.6.13): ` .` ends one, two spaces begin a verbatim line."""
    found: list[Paragraph] = []
    block: list[str] = []
    was_verbatim = False
    for line in [*body.split("\n"), " ."]:
        verbatim = line.startswith(("  ", "\t"))
        if block and (verbatim != was_verbatim or line.strip() == "."):
            text = "\n".join(block) if was_verbatim else " ".join(" ".join(block).split())
            found.append(Paragraph(text, was_verbatim))
            block = []
        if line.strip() not in ("", "."):
            block.append(line.rstrip() if verbatim else line.strip())
        was_verbatim = verbatim
    return tuple(found)


def fetch(names: list[str]) -> list[Path]:
    """Files of the archive, by their names without compression, out of the cache, which is filled first if need be."""
    folder = f"debian-{RELEASE}"
    index = cache() / folder / "InRelease"
    if index.is_file():
        paths = [(cache() / folder / Path(name).name, want) for name, want in find(index, names)]
        if all(p.is_file() and digest(p) == want for p, want in paths):
            return [p for p, _ in paths]
        index.unlink()  # the archive may have changed since
    base = f"{HOST}/dists/{RELEASE}"
    index = fetch_url(f"{base}/InRelease", f"{folder}/InRelease", None)
    return [fetch_url(f"{base}/{name}", f"{folder}/{Path(name).name}", want) for name, want in find(index, names)]


def find(index: Path, names: list[str]) -> list[tuple[str, str]]:
    """For each name, the compressed file of it that the archive's index lists, and its SHA-256."""
    text = index.read_text(encoding="utf-8").partition("\nSHA256:\n")[2]
    listed = {name: sha256 for sha256, name in re.findall(r"^ ([0-9a-f]{64}) +\d+ (\S+)$", text, re.MULTILINE)}
    found = []
    for name in names:
        compressed = [name + suffix for suffix in OPEN if name + suffix in listed]
        if not compressed:
            sys.exit(
                f"error: {index}: lists no {name}; expected it as one of {', '.join(OPEN)}. Delete it and try again."
            )
        found.append((compressed[0], listed[compressed[0]]))
    return found


def lines(path: Path) -> Iterator[str]:
    """The lines of a compressed text file."""
    with OPEN[path.suffix](path, "rt", encoding="utf-8") as f:
        yield from f
