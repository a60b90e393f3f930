"""Kill a training again and again, resume it each time, and compare with one that nobody killed.

Run: `python tests/kill_and_resume.py --model MODEL --rows ROWS --kills 50 --mode ddp`, where MODEL and ROWS are what
model_import and preprocess wrote; without them, a tiny model and its rows. Exits with 1 unless the final weights and
the loss trace are equal bit for bit and at least 40 % of the kills came while a checkpoint was being written. A
training of one process is forked off one that has done the imports, so that a kill costs a second and not ten.
`--record` adds the figures to benchmarks/results/reliability.json.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import reliability_record
import tiny
from fork_server import STAGE, TRAINING, Forked, ForkServer

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


Training = subprocess.Popen[bytes] | Forked
Start = Callable[[Path], Training]


@contextmanager
def trainings(model: Path, rows: Path, mode: str = "plain", **given: str) -> Iterator[Start]:
    """A function that starts the training whose output goes to a folder; FOLDER.log beside it has what it says."""
    values = {"model_selector_output": model, "preprocess_output": rows, **VALUES, **MODES[mode], **given}
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    stage = ["finetune", "--task_name", "text_classification", *flags, "--pytorch_model_folder"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(output: Path) -> Training:
        command = [sys.executable, "-m", "steps", *stage, str(output)]
        with output.with_name(f"{output.name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def fork(output: Path) -> Training:
        log = output.with_name(f"{output.name}.log")
        return server.start(STAGE, [*stage, str(output)], output=log, errors=log, cwd=Path.cwd())

    if mode != "plain":
        yield start
        return
    with tempfile.TemporaryDirectory() as folder:
        server = ForkServer(environment, Path(folder), TRAINING)
        yield fork
        server.close()


def saving(output: Path) -> bool:
    folder = output.with_name(f".{output.name}.partial") / "checkpoints"
    return any(folder.glob(".checkpoint-*"))


def steps_done(output: Path) -> int:
    folder = output.with_name(f".{output.name}.partial") / "checkpoints"
    return max((int(p.name.removeprefix("checkpoint-")) for p in folder.glob("checkpoint-*")), default=0)


def kill_once(process: Training, output: Path, rng: random.Random, *, in_save: bool) -> bool | None:
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


def prepare(folder: Path) -> tuple[Path, Path]:
    """A tiny model and its rows, as model_import and preprocess hand them on."""
    import steps
    from tuneport.artifacts import CustomModel
    from tuneport.stage import execute

    model, rows = folder / "base", folder / "rows"
    tiny.write_model(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.questions()), "utf-8")
    execute(steps.load("model_import")(pytorch_model_path=CustomModel(folder / "model"), model_selector_output=model))
    columns = {"sentence1_key": "text", "label_key": "label", "train_file_path": folder / "rows.jsonl"}
    preprocess = steps.load("preprocess", "text_classification")
    execute(preprocess(model_selector_output=model, preprocess_output=rows, **columns))
    return model, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--mode", choices=MODES, default="plain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        made = (arguments.model, arguments.rows) if arguments.model else prepare(Path(folder))
        start = stack.enter_context(trainings(*made, arguments.mode))
        whole = Path(folder) / "whole"
        if start(whole).wait() != 0:
            sys.exit((whole.parent / "whole.log").read_text())
        expected = outcome(whole)
        kills = in_save = runs = equal = 0
        while kills < arguments.kills:
            runs += 1
            output = Path(folder) / f"killed-{runs}"
            while True:
                process = start(output)
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
    if arguments.record:
        figures = {"kills": kills, "in_save": in_save, "trainings": runs, "bit_identical": equal}
        reliability_record.add("trainings", {arguments.mode: figures, "seeds": [arguments.seed]})
    sys.exit(not (equal == runs and in_save >= 0.4 * kills))


if __name__ == "__main__":
    main()
