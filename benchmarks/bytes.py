"""How many bytes a run reads, writes, hashes, leaves and moves, in multiples of its base model's:
`python benchmarks/bytes.py [--size 30M] [--case full] [--precision 32] [--results FILE]`.

A whole run of a random Llama in bfloat16 with three evaluations, its weights trained in full, and adapters of LoRA that
are not merged. Each process of the run counts what it gives to SHA-256, and asks the kernel what it read and wrote
(/proc/self/io: calls, not mapped pages). What is left are the files' sizes, each inode once. What Kubeflow Pipelines
moves follows from the graph and the run's own artifacts: its launcher downloads each input of a stage whole, and
uploads each output.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from random_models import SIZES, TASK, write_base, write_rows

import pipelines
from tuneport.graph import Ref
from tuneport.runner.bind import output_path

EVALUATIONS = 3
ROWS, TOKENS = 64, 64
VALUES = {
    "text_key": "text",
    "max_seq_length": TOKENS,
    "deduplicate": "none",
    "precision": "bf16",
    "per_device_train_batch_size": 2,
    "max_steps": 2 * EVALUATIONS,
    "evaluation_strategy": "steps",
    "eval_steps": 2,
    "generated_samples": 1,
    "max_new_tokens": 2,
    "registered_model_name": "bytes",
}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, weights alone": {"checkpoint_contents": "weights"},
    "lora, adapter": {"apply_lora": True, "merge_lora_weights": False},
}
# In multiples of M, beside the checkpoints: a run of this machine, and what Kubeflow Pipelines moves. Down go the
# user's model, then one to finetune and export, and two to evaluation; up the imported, the tuned
# with checkpoints and without, and the exported one.
FULL = {"left": 1.1, "written": 1.1, "hashed": 2.1, "down": 5.1, "up": 4.1}
# Of adapters that are not merged nothing of the model's size is written; up goes the base model beside them.
LORA = FULL | {"left": 0.1, "written": 0.1, "hashed": 1.1, "up": 3.1}
GOALS = {"full": FULL, "full, weights alone": FULL, "lora, adapter": LORA}
COUNTER = """
import atexit, hashlib, json, os, sys
real, hashed = hashlib.sha256, [0]
class Counted:
    def __init__(self, data=b"", **named):
        self.inner = real(**named)
        self.update(data)
    def update(self, data):
        hashed[0] += memoryview(data).nbytes
        self.inner.update(data)
    def __getattr__(self, name):
        return getattr(self.inner, name)
hashlib.sha256 = Counted
@atexit.register
def say():
    name = sys.argv[1] if sys.argv[0].endswith("steps/__main__.py") else "tuneport run"
    io = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    found = {"stage": name, "hashed": hashed[0], "read": int(io["rchar"]), "written": int(io["wchar"])}
    with open(os.path.join(os.environ["COUNTS"], f"{os.getpid()}.json"), "w") as f:
        json.dump(found, f)
"""


def counts(folder: Path, values: Mapping[str, Any]) -> dict[str, Counter[str]]:
    """Run the pipeline in a folder; returns by stage what its processes counted."""
    counters, found = folder / "counter", folder / "counts"
    counters.mkdir()
    found.mkdir()
    (counters / "sitecustomize.py").write_text(COUNTER)
    env = {**os.environ, "COUNTS": str(found), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(counters), str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")])
    flags = [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()]
    command = [sys.executable, "-m", "pipelines", "run", TASK, "--output_dir", str(folder / "run"), *flags]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    stages: dict[str, Counter[str]] = {}
    for file in found.iterdir():
        said = json.loads(file.read_text())
        stage = stages.setdefault(said.pop("stage"), Counter())
        stage.update(said)
    run = stages["tuneport run"]  # the kernel adds to a process what its children did
    for name in ("read", "written"):
        run[name] -= sum(stage[name] for of, stage in stages.items() if of != "tuneport run")
    return stages


def left(folder: Path, known: set[int]) -> int:
    """Bytes of the files in a folder whose inodes are not known, which they are then."""
    total = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (status := path.stat()).st_ino not in known:
            known.add(status.st_ino)
            total += status.st_size
    return total


def moved(run: Path, values: Mapping[str, Any], stages: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """By stage that ran, the bytes of the artifacts that it reads, the user's model too, and of those it writes."""
    model = {"pytorch_model_path": run.parent / "model"}
    for node in pipelines.load(TASK).nodes:
        if node.name not in stages:
            continue
        read = [
            output_path(run, ref) if ref.node else model[ref.port]
            for ref in node.values.values()
            if isinstance(ref, Ref) and (ref.node or ref.port in model)
        ]
        written = [output_path(run, Ref(node.name, p.name)) for p in node.step.ports().values() if p.kind == "output"]
        yield node.name, sum(left(path, set()) for path in read), sum(left(path, set()) for path in written)


def measure(folder: Path, size: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """The table of one run, in multiples of M."""
    base, rows = write_base(folder / "model", size, weights=True), write_rows(folder / "rows.jsonl", ROWS, TOKENS)
    values = {**VALUES, **case, "pytorch_model_path": base, "train_file_path": rows}
    one = (base / "model.safetensors").stat().st_size
    known = {path.stat().st_ino for path in folder.rglob("*")}
    stages = counts(folder, values)
    store = left_of(folder, known, list(stages))
    table = {}
    for name, down, up in moved(folder / "run", values, stages):
        found = {**stages[name], "left": store[name], "down": down, "up": up}
        table[name] = {
            what: round(found[what] / one, 3) for what in ("read", "written", "hashed", "left", "down", "up")
        }
    own = {**stages["tuneport run"], "left": store["MLflow's store"], "down": 0, "up": 0}
    table["tuneport run, and MLflow's store"] = {what: round(own[what] / one, 3) for what in table["finetune"]}
    checkpoints = left(folder / "run" / "finetune" / "pytorch_model_folder" / "checkpoints", set())
    total = {what: round(sum(row[what] for row in table.values()), 3) for what in table["finetune"]}
    return {"M": one, "checkpoints": round(checkpoints / one, 3), "stages": table, "total": total}


def left_of(folder: Path, known: set[int], stages: list[str]) -> dict[str, int]:
    """By stage what it left, and what lies in MLflow's store beyond that; a file counts where it was written first."""
    order = [node.name for node in pipelines.load(TASK).nodes if node.name in stages]
    found = {name: left(folder / "run" / name, known) for name in order}
    return found | {"MLflow's store": left(folder, known)}


def judge(case: str, found: Mapping[str, Any]) -> dict[str, str]:
    """By quantity, whether it is within its goal."""
    added = {"left", "written", "hashed", "up"}
    bounds = {what: goal + (found["checkpoints"] if what in added else 0) for what, goal in GOALS[case].items()}
    verdicts = {what: "met" if found["total"][what] <= bound else "missed" for what, bound in bounds.items()}
    return {what: f"{found['total'][what]:.2f} M, goal ≤ {bounds[what]:.2f}: {v}" for what, v in verdicts.items()}


def main() -> None:
    """Print the tables; exit 1 where one misses a goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="30M")
    parser.add_argument("--case", choices=CASES, action="append", help="one of the cases, instead of all")
    parser.add_argument("--precision", default=VALUES["precision"], help="32 is faster on a CPU without bfloat16")
    parser.add_argument("--results", type=Path, help="file to write the measurements to, as JSON")
    options = parser.parse_args()
    results: dict[str, Any] = {"size": options.size, "precision": options.precision, "evaluations": EVALUATIONS}
    results["cases"] = {}
    for case in options.case or CASES:
        folder = Path(tempfile.mkdtemp(prefix="tuneport-bytes-"))
        try:
            found = measure(folder, options.size, {**CASES[case], "precision": options.precision})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        found["verdicts"] = judge(case, found)
        results["cases"][case] = found
        print(f"{case}: M = {found['M'] / 1e6:.1f} MB, checkpoints {found['checkpoints']:.2f} M")
        for name, row in (*found["stages"].items(), ("total", found["total"])):
            print(f"  {name:34}" + "  ".join(f"{what} {value:6.2f}" for what, value in row.items()))
        for what, verdict in found["verdicts"].items():
            print(f"  {what}: {verdict}")
        sys.stdout.flush()
    if options.results:
        options.results.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    sys.exit(any("missed" in v for case in results["cases"].values() for v in case["verdicts"].values()))


if __name__ == "__main__":
    main()
