"""What the demo costs besides training and forward passes: `python benchmarks/demo_overhead.py [RUN_FOLDER]`.

Reads a finished run (by default that of `make demo`): the seconds of every stage, less those inside the Trainer's own
`train()` and those of the forward passes in evaluation.
"""

import json
import re
import sys
from pathlib import Path

GOAL = 25.0
STAGES = ("model_import", "preprocess", "finetune", "model_export", "model_evaluation")


def main() -> None:
    """Print where the time went; exit 1 where the goal is missed."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/text_classification/latest")
    if not all((run / stage / "stage.json").is_file() for stage in STAGES):
        sys.exit(f"{run}: holds no finished run; start one with `make demo`, or name another folder.")
    seconds = {stage: json.loads((run / stage / "stage.json").read_text("utf-8"))["seconds"] for stage in STAGES}
    training = json.loads((run / "finetune" / "pytorch_model_folder" / "training.json").read_text("utf-8"))
    log = (run / "logs" / "model_evaluation.log").read_text("utf-8")
    inside = {
        "finetune": training["runtime_seconds"],
        "model_evaluation": sum(map(float, re.findall(r"rows in ([\d.]+) s on", log))),
    }
    print(f"{'stage':18}{'total':>9}{'train, forward':>16}{'besides':>9}")
    for stage, total in seconds.items():
        print(f"{stage:18}{total:8.1f}s{inside.get(stage, 0.0):15.1f}s{total - inside.get(stage, 0.0):8.1f}s")
    besides = sum(seconds.values()) - sum(inside.values())
    share, verdict = besides / sum(seconds.values()), "met" if besides <= GOAL else "missed"
    print(f"besides: {besides:.1f} s ({share:.0%} of the run), goal <= {GOAL:g} s: {verdict}")
    sys.exit(besides > GOAL)


if __name__ == "__main__":
    main()
