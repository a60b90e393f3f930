"""How long training waits for a checkpoint: `python benchmarks/checkpoint_wait.py [FOLDER]`.

Saves a model of about 100 M weights with AdamW's states four times through the copy and the thread that training uses,
and prints the wait as a share of the time that the save takes.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from tuneport.training.checkpoint.async_writer import HostCopy, Writer
from tuneport.training.checkpoint.checkpoint_folder import CheckpointFolder

GOAL = 0.05


def main() -> None:
    """Print the share of each save; exit 1 where the median misses the goal."""
    weights = {f"layer.{i}": torch.randn(1024, 1024) for i in range(100)}
    moments = {i: {"exp_avg": w.clone(), "exp_avg_sq": w.clone()} for i, w in enumerate(weights.values())}
    copier, writer, shares = HostCopy(), Writer(), []
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else Path.cwd()) as folder:
        checkpoints = CheckpointFolder(path=Path(folder), limit=1)
        for step in range(1, 5):
            started = time.perf_counter()
            checkpoints.begin(step)
            states = copier.copy({"weights": weights, "optimizer": moments})

            def write(step: int = step, states: dict[str, dict[str, torch.Tensor]] = states) -> None:
                save_file(states["weights"], checkpoints.partial(step) / "model.safetensors")
                torch.save(states["optimizer"], checkpoints.partial(step) / "optimizer.pt")
                checkpoints.publish(step, None)

            writer.start(write)
            waited = time.perf_counter() - started
            writer.wait()
            whole = time.perf_counter() - started
            shares.append(waited / whole)
            print(f"save {step}: waited {waited:.2f} s of {whole:.2f} s, {waited / whole:.1%}")
    median = statistics.median(shares)
    verdict = "met" if median < GOAL else "missed"
    print(f"training waits for {median:.1%} of a save (median), goal < {GOAL:.0%}: {verdict}")
    sys.exit(median >= GOAL)


if __name__ == "__main__":
    main()
