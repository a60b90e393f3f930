"""The whole demo beside a plain script for the same: `python benchmarks/demo_speed.py [--seeds 0 1 2]`.

`tuneport run` of the demo's configuration, all stages, against `benchmarks/peers/sentence_classifier.py` on the same
model, rows, splits and hyperparameters, which pads to the longest row of a batch (`longest`) or to the maximum
(`maximum`), and neither scores the base model nor exports. They run by turns, once a seed. Prints wall times, the
ratios' median, and the accuracies on the test rows, which the seeds spread.
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
from typing import Any

from training_speed import machine

HERE = Path(__file__).parent
CONFIG = HERE.parent / "examples" / "text_classification" / "config.yaml"
PEERS = ("longest", "maximum")
GOAL = 2.0


def main() -> None:
    """Run all by turns, print a table, exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, help="file to write the measurements to, as JSON")
    options = parser.parse_args()
    if not (CONFIG.parent / "data" / "questions.jsonl").is_file():
        sys.exit("the demo's data is not here; `make demo` or examples/text_classification/fetch.py fetches it.")
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = {"seed": seed, **one_run(Path(folder), seed)}
        print(json.dumps(run), flush=True)
        runs.append(run)
    found = {"machine": machine(options.threads), "runs": runs}
    met = True
    for peer in PEERS:
        ratios = [run[peer]["seconds"] / run["tuneport"]["seconds"] for run in runs]
        ratio = statistics.median(ratios)
        verdict = "met" if ratio >= GOAL else "missed"
        print(f"speed / {peer:9} {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), goal >= {GOAL}: {verdict}")
        met &= ratio >= GOAL
    for who in ("tuneport", *PEERS):
        scores = [run[who]["accuracy"] for run in runs]
        print(f"{who:9} accuracy {statistics.mean(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})")
    if options.results:
        options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(not met)


def one_run(root: Path, seed: int) -> dict[str, dict[str, float]]:
    """Seconds and accuracy of all three with one seed, one after another."""
    command = [str(Path(sys.executable).with_name("tuneport")), "run", "text_classification", "--config", str(CONFIG)]
    seconds = timed([*command, f"seed={seed}", "--output_dir", str(root / "run")], root)[0]
    metrics = json.loads((root / "run/model_evaluation/evaluation_result/metrics.json").read_text("utf-8"))
    found = {"tuneport": {"seconds": seconds, "accuracy": metrics["tuned"]["metrics"]["accuracy"]}}
    write_rows(root)
    for padding in PEERS:
        output = root / padding
        peer = [sys.executable, str(HERE / "peers" / "sentence_classifier.py"), str(CONFIG), str(root), str(output)]
        seconds, printed = timed([*peer, padding, str(seed)], root)
        found[padding] = {"seconds": seconds, **json.loads(printed.splitlines()[-1])}
    return found


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    """Wall time of a command and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
    return seconds, done.stdout


def write_rows(root: Path) -> None:
    """The rows of the demo's splits, as files that any script reads."""
    from tuneport.data.prepared import Prepared

    prepared = Prepared(root / "run" / "preprocess" / "preprocess_output")
    for split in ("train", "validation", "test"):
        lines = (json.dumps({"text": r["sentence1"], "label": r["label"]}) for r in prepared.rows(split))
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
