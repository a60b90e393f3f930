"""Peak memory of model_evaluation beside few and many training rows: `python benchmarks/evaluation_memory.py`.

The model is a classifier of two small layers, the test rows are 1,000 each time. The real stage runs as a process of
its own; what its trivial baselines need of the training rows is all that may grow.
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

from preprocess_memory import LABELS, make_model, vocabulary

from tuneport.artifacts import Model, write_manifest

GOAL = 100  # MB between the smallest and the largest peak
TEST_ROWS = 1000


def main() -> None:
    """Measure all sizes, print the spread of the peaks, exit 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description="Peak memory of model_evaluation beside few and many training rows.")
    parser.add_argument("--rows", type=int, nargs="+", default=(10_000, 100_000, 1_000_000))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        words = vocabulary()
        base = make_model(root / "base", words)
        tuned = make_classifier(base, root / "tuned")
        peaks = [measure(root, base, tuned, words, rows) for rows in options.rows]
    spread = max(peaks) - min(peaks)
    print(f"peaks differ by {spread:.0f} MB, goal <= {GOAL} MB: {'met' if spread <= GOAL else 'missed'}")
    sys.exit(spread > GOAL)


def make_classifier(base: Path, folder: Path) -> Path:
    """A model for the labels, with random weights, and the same without its head in ``base``."""
    from transformers import BertConfig, BertForSequenceClassification, set_seed

    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    names = dict(enumerate(sorted(LABELS)))
    config = BertConfig(vocab_size=4000, max_position_embeddings=128, id2label=names, **sizes)
    config.label2id = {label: i for i, label in names.items()}
    model = BertForSequenceClassification(config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes((base / name).read_bytes())
    model.save_pretrained(folder)
    model.bert.save_pretrained(base)
    for place in (base, folder):
        write_manifest(Model(place), "benchmark", "0", {}, {})
    return folder


def write_rows(file: Path, words: list[str], rows: int, seed: int) -> Path:
    """So many generated rows as JSON lines."""
    rng = random.Random(seed)
    with file.open("w") as f:
        for i in range(rows):
            text = " ".join(rng.choices(words, k=rng.randint(8, 16)))
            f.write(json.dumps({"text": text, "label": LABELS[i % len(LABELS)]}) + "\n")
    return file


def measure(root: Path, base: Path, tuned: Path, words: list[str], rows: int) -> float:
    """Prepare so many training rows and run the stage; return its peak resident memory in MB."""
    data = root / f"data-{rows}"
    files = {"train": rows, "validation": TEST_ROWS, "test": TEST_ROWS}
    given = {
        f"{split}_file_path": write_rows(root / f"{split}-{rows}.jsonl", words, count, len(split))
        for split, count in files.items()
    }
    shared = {"task_name": "text_classification", "model_selector_output": base, "preprocess_output": data}
    run("preprocess", shared | {"sentence1_key": "text", "label_key": "label", **given})
    started = time.monotonic()
    report = {"pytorch_model_folder": tuned, "evaluation_result": root / f"report-{rows}"}
    peak = run("model_evaluation", shared | report)
    print(f"{rows:>9,} training rows: peak {peak:.0f} MB, {time.monotonic() - started:.1f} s", flush=True)
    return peak


def run(stage: str, values: dict[str, object]) -> float:
    """Run a stage as a command; return its peak resident memory in MB."""
    command = [sys.executable, "-m", "steps", stage, *(f"--{name}={value}" for name, value in values.items())]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{stage} failed:\n{said}")
    return usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
