"""Kill a training again and again, resume it each time, and compare with one that nobody killed.

Run: `python tests/kill_and_resume.py --model MODEL --rows ROWS --kills 50 --mode ddp`, where MODEL and ROWS are what
model_import and preprocess wrote. Exits with 1 unless the final weights and the loss trace are equal bit for bit and at
least 40 % of the kills came while a checkpoint was being written.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VALUES = {
    "num_train_epochs": "10",
    "per_device_train_batch_size": "8",
    "learning_rate": "1e-3",
    "evaluation_strategy": "steps",
    "eval_steps": "2",
    "logging_steps": "3",
    "save_total_limit": "3",
    "resume_from_checkpoint": "true",
}
TWO = {"number_of_gpu_to_use_finetuning": "2", "per_device_train_batch_size": "4"}
MODES = {"plain": {}, "ddp": TWO, "zero2": TWO | {"apply_deepspeed": "true", "deepspeed_stage": "2"}}


def start(model: Path, rows: Path, output: Path, mode: str = "plain") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "steps", "finetune", "--task_name", "text_classification"]
    command += ["--model_selector_output", str(model), "--preprocess_output", str(rows)]
    command += ["--pytorch_model_folder", str(output)]
    for name, value in (VALUES | MODES[mode]).items():
        command += [f"--{name}", value]
    with (output.parent / f"{output.name}.log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def saving(output: Path) -> bool:
    folder = output.with_name(f".{output.name}.partial") / "checkpoints"
    return any(folder.glob(".checkpoint-*"))


def steps_done(output: Path) -> int:
    folder = output.with_name(f".{output.name}.partial") / "checkpoints"
    return max((int(p.name.removeprefix("checkpoint-")) for p in folder.glob("checkpoint-*")), default=0)


def kill_once(process: subprocess.Popen[bytes], output: Path, rng: random.Random, *, in_save: bool) -> bool | None:
    """Kill a training at a random moment, or in a random one of its saves.

    Returns whether a save was under way, None where it ended before.
    """
    before = steps_done(output)
    while process.poll() is None and steps_done(output) <= before:
        time.sleep(0.001)  # what the last kill left half-written is not taken for a save of this process
    if in_save:
        wait_until = time.monotonic() + rng.uniform(0, 0.1)
        while process.poll() is None and (time.monotonic() < wait_until or not saving(output)):
            time.sleep(0.0002)
        time.sleep(rng.uniform(0, 0.004))
    else:
        time.sleep(rng.uniform(0, 0.2))
    if process.poll() is not None:
        return None
    during = saving(output)
    os.killpg(process.pid, signal.SIGKILL)  # every rank at the same moment
    process.wait()
    return during


def outcome(output: Path) -> tuple[dict[str, bytes], list[tuple[int, float]]]:
    """The weights by name, and the trace of training and validation losses."""
    from safetensors.numpy import load_file

    log = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
    trace = [(entry["step"], entry[k]) for entry in log for k in ("loss", "eval_loss", "train_loss") if k in entry]
    return {name: tensor.tobytes() for name, tensor in load_file(output / "model.safetensors").items()}, trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--mode", choices=MODES, default="plain")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        if start(arguments.model, arguments.rows, whole, arguments.mode).wait() != 0:
            sys.exit((whole.parent / "whole.log").read_text())
        expected = outcome(whole)
        kills = in_save = runs = equal = 0
        while kills < arguments.kills:
            runs += 1
            output = Path(folder) / f"killed-{runs}"
            while True:
                process = start(arguments.model, arguments.rows, output, arguments.mode)
                if kills < arguments.kills:
                    during = kill_once(process, output, rng, in_save=rng.random() < 0.7)
                    if during is not None:
                        kills += 1
                        in_save += during
                        continue
                if process.wait() != 0:
                    sys.exit((output.parent / f"{output.name}.log").read_text())
                break
            equal += outcome(output) == expected
    print(
        f"{arguments.mode}: {kills} kills, {in_save} during a save, {runs} trainings resumed to their end, "
        f"{equal} of them bit-identical"
    )
    sys.exit(not (equal == runs and in_save >= 0.4 * kills))


if __name__ == "__main__":
    main()
