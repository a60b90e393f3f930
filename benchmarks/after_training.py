"""What finetune does after its last step: `python benchmarks/after_training.py [--size 500M] [--against CHECKOUT]`.

A random model in bfloat16 is trained in full, with three evaluations, each with a whole checkpoint. Beside the
seconds of the stage stand those from its last step to its end, in which the last evaluation is made, its checkpoint
written, and the best model written, hashed and sealed. ``--against``: another checkout of this repository, with the
same model and rows. An evaluation's own seconds are the least that one took in either, as checkpoints may be written
beside them; what else the end takes is its share, and the goal is for that.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from random_models import SIZES, TASK, write_base, write_rows

STEPS, EVALUATIONS, ROWS, TOKENS = 12, 3, 4, 128
GOAL = 0.05
SCHEDULE = {
    "max_steps": STEPS,
    "evaluation_strategy": "steps",
    "eval_steps": STEPS // EVALUATIONS,
    "logging_steps": 1,
    "per_device_train_batch_size": ROWS,
}


def stage(checkout: Path, name: str, values: dict[str, Any]) -> list[tuple[float, str]]:
    """Run a stage of a checkout; returns its lines, each with the seconds until it came; the last one is its end."""
    flags = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    own = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # the last as in any run
    task = [] if name == "model_import" else ["--task_name", TASK]
    command = [sys.executable, "-m", "steps", name, *task, *flags]
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = [(time.perf_counter() - started, line) for line in process.stdout]
    if process.wait():
        sys.exit("".join(line for _, line in lines))
    return [*lines, (time.perf_counter() - started, "")]


def measure(checkout: Path, model: Path, rows: Path, folder: Path) -> dict[str, float]:
    """Seconds of the stage, of those after its last step, and of its shortest evaluation."""
    imported, prepared = folder / "imported", folder / "prepared"
    stage(checkout, "model_import", {"pytorch_model_path": model, "model_selector_output": imported})
    inputs = {"model_selector_output": imported}
    data = {**inputs, "train_file_path": rows, "text_key": "text", "max_seq_length": TOKENS, "deduplicate": "none"}
    stage(checkout, "preprocess", {**data, "preprocess_output": prepared})
    values = {**inputs, "preprocess_output": prepared, **SCHEDULE, "pytorch_model_folder": folder / "tuned"}
    lines = stage(checkout, "finetune", values)

    def at(step: int, said: str) -> float:
        return next(seconds for seconds, line in lines if f"[{step}/{STEPS}] {said}" in line)

    evaluated = range(STEPS // EVALUATIONS, STEPS + 1, STEPS // EVALUATIONS)
    whole = lines[-1][0]
    return {
        "stage": round(whole, 1),
        "after": round(whole - at(STEPS, "loss"), 1),
        "evaluation": round(min(at(step, "validation") - at(step, "loss") for step in evaluated), 1),
    }


def main() -> None:
    """Print the table; exit 1 where this checkout misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="500M")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--results", type=Path, help="file to write the measurements to, as JSON")
    options = parser.parse_args()
    checkouts = {"this checkout": Path(__file__).resolve().parents[1]}
    if options.against:
        checkouts["the other one"] = options.against.resolve()
    found: dict[str, Any] = {"size": options.size, "steps": STEPS, "evaluations": EVALUATIONS, "goal": GOAL}
    folder = Path(tempfile.mkdtemp(prefix="tuneport-after-"))
    try:
        model = write_base(folder / "model", options.size, weights=True)
        rows = write_rows(folder / "rows.jsonl", 8 * STEPS, TOKENS)
        for name, checkout in checkouts.items():
            (folder / "run").mkdir()
            found[name] = measure(checkout, model, rows, folder / "run")
            shutil.rmtree(folder / "run")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    evaluation = min(found[name]["evaluation"] for name in checkouts)
    for name in checkouts:
        found[name]["share"] = round((found[name]["after"] - evaluation) / found[name]["stage"], 3)
        print(f"{name}: {found[name]}")
    if options.results:
        options.results.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    sys.exit(found["this checkout"]["share"] > GOAL)


if __name__ == "__main__":
    main()
