"""Peak memory of preprocess on 100,000 and 1,000,000 rows: `python benchmarks/preprocess_memory.py [--model FOLDER]`.

Generates the rows, runs the real stage as a process of its own for each size, and prints peak resident memory, rows a
second, and the ratio of the peaks against its goal of 1.3.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tuneport.artifacts import Model, write_manifest

GOAL = 1.3
LABELS = ("question", "order", "complaint", "praise", "other", "spam")


def main() -> None:
    """Measure both sizes, print the ratio, exit 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", type=Path, help="a model_import output; by default a small tokenizer is trained here"
    )
    parser.add_argument("--rows", type=int, nargs=2, default=(100_000, 1_000_000), metavar=("FEW", "MANY"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        words = vocabulary()
        model = options.model or make_model(root / "model", words)
        peaks = [measure(root, model, words, rows) for rows in options.rows]
    ratio = peaks[1] / peaks[0]
    print(f"peak ratio {ratio:.2f}, goal <= {GOAL}: {'met' if ratio <= GOAL else 'missed'}")
    sys.exit(ratio > GOAL)


def vocabulary() -> list[str]:
    """5,000 made-up words."""
    rng = random.Random(0)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    return ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(5000)]


def make_model(folder: Path, words: list[str]) -> Path:
    """A folder with what preprocess reads of a model: configurations and a WordPiece tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        words, trainers.WordPieceTrainer(vocab_size=4000, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 128}))
    write_manifest(Model(folder), "benchmark", "0", {}, {})
    return folder


def measure(root: Path, model: Path, words: list[str], rows: int) -> float:
    """Run the stage on so many generated rows; return its peak resident memory in MB."""
    data = root / f"{rows}.jsonl"
    rng = random.Random(rows)
    with data.open("w") as f:
        for i in range(rows):
            text = " ".join(rng.choices(words, k=rng.randint(8, 16)))
            f.write(json.dumps({"text": text, "label": LABELS[i % len(LABELS)]}) + "\n")
    command = [sys.executable, "-m", "steps", "preprocess", "--task_name", "text_classification"]
    command += ["--model_selector_output", str(model), "--train_file_path", str(data)]
    command += ["--sentence1_key", "text", "--label_key", "label", "--preprocess_output", str(root / f"out-{rows}")]
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"preprocess ended with exit code {process.returncode}")
    seconds = time.monotonic() - started
    peak = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    print(f"{rows:>9,} rows: peak {peak:.0f} MB, {seconds:.1f} s, {rows / seconds:,.0f} rows/s", flush=True)
    return peak


if __name__ == "__main__":
    main()
