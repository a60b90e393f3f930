"""How long finetune takes to its first step: `python benchmarks/first_step.py [--pairs N] [--results FILE]`.

By turns with a script that imports torch and what it trains with of transformers and loads the same model, each in a
process of its own; wall seconds from the start of the process to the first step's forward pass, or to the loaded model.
The model is small, so that imports are most of it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from evaluation_loop import prepared

GOAL = 1.5
BARE = """
import os, sys
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=3)
os._exit(0)
"""
FINETUNE = """
import os, runpy, sys
import transformers.trainer
def first(self, *args, **kwargs):
    os._exit(0)
transformers.trainer.Trainer.compute_loss = first
runpy.run_module("steps", run_name="__main__", alter_sys=True)
"""


def seconds(code: str, *arguments: str) -> float:
    """Wall time of a program."""
    started = time.perf_counter()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - started


def main() -> None:
    """Print the times and their ratio; exit 1 where it misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--results", type=Path, help="file to write the measurements to, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = prepared(folder, 64)
        stage = ["finetune", "--task_name", "text_classification", "--per_device_train_batch_size", "8"]
        stage += ["--model_selector_output", str(made["model"]), "--preprocess_output", str(made["rows"])]

        def pair(number: int) -> tuple[float, float]:
            output = ["--pytorch_model_folder", str(folder / f"output-{number}")]
            return seconds(BARE, str(made["model"])), seconds(FINETUNE, *stage, *output)

        pairs = [pair(i) for i in range(options.pairs + 1)][1:]  # the first fills the disk's cache
    bare, finetune = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    verdict = "met" if ratio <= GOAL else "missed"
    print(f"bare script {bare:.1f} s, finetune's first step {finetune:.1f} s: {ratio:.2f} ×, goal ≤ {GOAL}: {verdict}")
    if options.results:
        rounded = [[round(value, 2) for value in times] for times in pairs]
        found = {"seconds_bare_and_finetune": rounded, "ratio": round(ratio, 2), "verdict": verdict}
        options.results.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    sys.exit(verdict == "missed")


if __name__ == "__main__":
    main()
