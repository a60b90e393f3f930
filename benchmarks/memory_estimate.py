"""The memory estimated for a training step beside what a real one takes: `python benchmarks/memory_estimate.py`.

Trains models with random weights on the CPU, two steps each, in a process of its own. Compared is the largest resident
memory while the steps run with what the process had before a model was loaded plus the estimate. The C library is told
to give freed memory back at once; as it is set by default it keeps some for itself. `--only N …` picks cases.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
GOAL = 0.15  # of the measured memory
LORA = {"apply_lora": True, "precision": "bf16"}
CASES: tuple[tuple[str, int, int, dict[str, Any]], ...] = (  # size, rows, tokens, parameters
    ("30M", 8, 512, {}),
    ("30M", 8, 512, {"gradient_checkpointing": "true"}),
    ("30M", 8, 512, {"precision": "bf16"}),
    ("30M", 2, 2048, {"packing": True}),
    ("135M", 4, 512, {}),
    ("135M", 4, 512, {"gradient_checkpointing": "true"}),
    ("135M", 4, 512, {"apply_lora": True}),
    ("135M", 4, 512, LORA),
    ("1B", 1, 256, LORA),
    ("1B", 2, 512, LORA | {"gradient_checkpointing": "true"}),
)


def train(base: str, prepared: str, output: str, values: dict[str, Any]) -> None:
    """In its own process: train, and print the resident bytes before a model is loaded and at most during steps."""
    import peft  # noqa: F401 - what the libraries take is not the model's
    import psutil
    import torch
    from random_models import finetune

    from tuneport.stage import execute
    from tuneport.training import train as training

    layer = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(8, 64)).sum().backward()
    optimizer.step()
    process, most, steps = psutil.Process(), [0], [0]
    before, done = process.memory_info().rss, threading.Event()

    class Watched(training.BestModelTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 0:
                most[0] = 0
            loss = super().training_step(*args, **kwargs)
            steps[0] = most[0]
            return loss

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], process.memory_info().rss)

    training.BestModelTrainer = Watched  # type: ignore[misc]
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        execute(finetune(Path(base), Path(prepared), Path(output), max_steps=2, **values))
    finally:
        done.set()
        watcher.join()
    print(json.dumps({"before": before, "most": steps[0]}))


def measured(*arguments: Any) -> dict[str, int]:
    """What `train` printed, in a process of its own."""
    command = [sys.executable, __file__, "--train", *map(str, arguments[:3]), json.dumps(arguments[3])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | GIVE_BACK, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(only: list[int]) -> int:
    """Print and record the cases; returns 1 where an estimate is off by more than the goal."""
    from random_models import TASK, finetune, write_base, write_rows

    import steps
    from tuneport.stage import execute
    from tuneport.training.rank_memory import per_rank
    from tuneport.training.simulate import Batch, Run, simulate

    results, missed = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        models: dict[str, Path] = {}
        for number, (size, rows, tokens, values) in enumerate(CASES):
            if only and number not in only:
                continue
            if size not in models:
                source = write_base(Path(scratch, f"{size}-source"), size, weights=True)
                models[size] = Path(scratch, size)
                execute(steps.load("model_import", TASK)(pytorch_model_path=source, model_selector_output=models[size]))
            base, prepared = models[size], Path(scratch, f"prepared-{number}")
            data = write_rows(Path(scratch, "rows.jsonl"), 40, tokens + 10)
            stage = steps.load("preprocess", TASK)
            execute(
                stage(
                    model_selector_output=base,
                    train_file_path=data,
                    preprocess_output=prepared,
                    text_key="text",
                    max_seq_length=tokens,
                )
            )
            given = {"gradient_checkpointing": "false", "per_device_train_batch_size": rows, **values}
            options = finetune(base, prepared, Path(scratch, "out"), **given)
            run = Run(task_name=TASK, base=base, prepared=prepared, options=options, metric_for_best_model="loss")
            (step,) = simulate(run, [Batch(rows=rows, tokens=tokens)])
            found = measured(base, prepared, Path(scratch, f"out-{number}"), given)
            estimate = per_rank(step, options, 1).total
            ratio = (found["before"] + estimate) / found["most"]
            missed |= abs(ratio - 1) > GOAL
            results.append(
                {"model": size, "rows": rows, "tokens": tokens, **values, "estimate": estimate, **found, "ratio": ratio}
            )
            print(
                f"{size:>5} {rows} × {tokens}: estimated {estimate / 2**20:7,.0f} MiB, measured "
                f"{(found['most'] - found['before']) / 2**20:7,.0f}, with libraries {ratio:.3f} of it  {values}",
                flush=True,
            )
    if not only:
        Path(__file__).parent.joinpath("results", "memory_estimate.json").write_text(
            json.dumps(results, indent=1) + "\n"
        )
    return missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="*", default=[])
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train:
        train(*asked.train[:3], values=json.loads(asked.train[3]))
    else:
        sys.exit(main(asked.only))
