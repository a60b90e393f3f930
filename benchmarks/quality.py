"""Whether training without padding learns as well as with it: `python benchmarks/quality.py [--results FILE]`.

Each case trains an example's model on the example's rows, cut short, with several seeds, without padding and with it,
and compares metrics of the validation rows: the means of both may lie no further apart than one seed's result from
another's, which is how far runs of one kind spread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from training_speed import machine

EXAMPLES = Path(__file__).parent.parent / "examples"
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {  # a task's metrics, and what cuts its example short
    "text_classification": (("accuracy", "f1_macro"), {"num_train_epochs": 1}),
    "token_classification": (("accuracy",), {"max_steps": 120}),
    "text_generation": (("perplexity",), {"max_steps": 40}),
}


def main() -> None:
    """Train, print a table, exit 1 where the means lie further apart than runs of one kind."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", choices=CASES, default=[*CASES])
    parser.add_argument("--results", type=Path, help="file to write the measurements to, as JSON")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    found: dict[str, Any] = {"machine": machine(options.threads), "cases": {}}
    met = True
    for task in options.only:
        metrics, shorter = CASES[task]
        with tempfile.TemporaryDirectory() as folder:
            runs = compare(task, metrics, shorter, seeds=options.seeds, root=Path(folder))
        found["cases"][task] = runs
        for metric in metrics:
            met &= report(task, metric, runs)
    if options.results:
        options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(not met)


def report(task: str, metric: str, runs: dict[str, list[dict[str, float]]]) -> bool:
    """Print the figures of one metric; return whether the kinds are as near as the seeds."""
    found = {kind: [scores[metric] for scores in entries] for kind, entries in runs.items()}
    for kind, values in found.items():
        listed = ", ".join(f"{value:.4f}" for value in values)
        print(f"{task:22}{metric:12}{kind:17}{statistics.mean(values):9.4f}  ({listed})")
    spread = max(max(values) - min(values) for values in found.values())
    one, other = map(statistics.mean, found.values())
    near = abs(one - other) <= spread
    verdict = "met" if near else "missed"
    print(f"{task:22}{metric:12}means apart {abs(one - other):.4f}, goal <= the seeds' spread, {spread:.4f}: {verdict}")
    return near


def compare(
    task: str, metrics: tuple[str, ...], shorter: dict[str, Any], *, seeds: list[int], root: Path
) -> dict[str, list[dict[str, float]]]:
    """The metrics of every run, by kind and seed."""
    path = EXAMPLES / task / "config.yaml"
    if not (path.parent / "data").is_dir():
        sys.exit(f"the data of {path.parent} is not here; its fetch.py fetches it.")
    values = yaml.safe_load(path.read_text("utf-8")) | shorter
    model, rows = root / "model", root / "rows"
    step("model_import", task, {"pytorch_model_path": path.parent / values.pop("pytorch_model_path")}, model)
    paths = {"train_file_path": path.parent / values.pop("train_file_path"), "model_selector_output": model}
    step("preprocess", task, values | paths, rows)
    found: dict[str, list[dict[str, float]]] = {"without padding": [], "padded": []}
    for seed in seeds:
        for kind, scores in found.items():
            inputs = {"model_selector_output": model, "preprocess_output": rows}
            changes = {"seed": seed, "padding_free": kind != "padded"}
            output = step("finetune", task, values | inputs | changes, root / f"{seed} {kind}")
            log = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
            last = [entry for entry in log if "eval_loss" in entry][-1]
            scores.append({metric: last[f"eval_{metric}"] for metric in metrics})
    return found


def step(name: str, task: str, values: dict[str, Any], output: Path) -> Path:
    """Run a stage in a process of its own with those of the values that it takes."""
    import steps

    ports = steps.load(name, None if name == "model_import" else task).ports()
    (result,) = (port for port, entry in ports.items() if entry.kind == "output")
    command = [sys.executable, "-m", "steps", name, *(["--task_name", task] if name != "model_import" else [])]
    for port, value in values.items():
        if port in ports:
            command += [f"--{port}", str(value).lower() if isinstance(value, bool) else str(value)]
    done = subprocess.run(
        [*command, f"--{result}", str(output)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
    return output


if __name__ == "__main__":
    main()
