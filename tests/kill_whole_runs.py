"""Kill whole runs again and again in every stage, start each again to its end, and compare with one that nobody killed.

Run: `python tests/kill_whole_runs.py --kills 60 --seed 1 --record`. The parent (`tuneport run`), the stage's process or
both get a SIGKILL at a random moment of a random stage. Exits with 1 unless every run ends with the same bytes
(weights, rows, metrics.json, predictions.jsonl), its MLflow run finished and with the scores, and one registered
version. Parent and stages are forked off a server that has done the imports, so that a whole run takes seconds; else
they are the real thing. `--record` adds the figures to benchmarks/results/reliability.json.
"""

import argparse
import fcntl
import itertools
import json
import os
import random
import re
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import reliability_record
import tiny
from fork_server import LIBRARIES, Forked, ForkServer, end_with

STAGES = ("model_import", "preprocess", "finetune", "model_export", "model_evaluation", "model_registration")
KINDS = ("parent", "stage", "both")
VALUES = {
    "pytorch_model_path": "model",
    "train_file_path": "questions.jsonl",
    "sentence1_key": "text",
    "label_key": "label",
    "num_train_epochs": 2,
    "evaluation_strategy": "steps",
    "eval_steps": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "resume_from_checkpoint": "true",
    "registered_model_name": "questions",
}
SAME = (
    "preprocess/preprocess_output/encoded/train-00000.arrow",
    "finetune/pytorch_model_folder/model.safetensors",
    "model_export/mlflow_model_folder/artifacts/model/model.safetensors",
    "model_evaluation/evaluation_result/metrics.json",
    "model_evaluation/evaluation_result/predictions.jsonl",
)
MODULES = ["pipelines.finetuning", "steps.finetune", "tuneport.training.train", "mlflow.pyfunc", "sklearn.metrics"]


class ForkedStage:
    """What the runner uses of `subprocess.Popen`, for ``python -P -m MODULE …``: a fork in place of a new Python."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str], preexec_fn: Callable[[], None], **rest: Any
    ) -> None:
        gone, here = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._be(list(argv), env, preexec_fn, here)
        os.close(here)
        self.stdout = os.fdopen(gone, "rb")

    def _be(self, argv: list[str], environment: Mapping[str, str], preexec: Callable[[], None], output: int) -> None:
        def work() -> None:
            os.setpgid(0, 0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            preexec()
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv[:] = argv[argv.index("-m") + 1 :]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

        end_with(work)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def tuneport() -> None:
    """In a program of the fork server: the `tuneport` command, whose stages are forks of it."""
    from pipelines.__main__ import run
    from tuneport.runner import process

    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "PIPE", "STDOUT")}
    process.subprocess = SimpleNamespace(Popen=ForkedStage, **names)  # type: ignore[assignment]
    run()


class Run:
    """A run in a folder of its own, with a model, rows and an MLflow store."""

    def __init__(self, server: ForkServer, folder: Path, given: Path) -> None:
        shutil.copytree(given, folder)
        self.server, self.folder, self.output = server, folder, folder / "run"
        self.said = folder / "said.txt"
        self.kills: list[tuple[str, str]] = []
        self.ended = False  # by itself, before a kill could come

    def start(self) -> Forked:
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport kill_whole_runs as k; k.tuneport()"
        )
        values = [f"{name}={value}" for name, value in VALUES.items()]
        arguments = ["run", "text_classification", *values, "--output_dir", "run"]
        self.said.write_text("")
        return self.server.start(code, arguments, output=self.said, errors=self.said, cwd=self.folder)

    def stage(self) -> tuple[str, bool]:
        """The stage that was begun last, and whether it is under way."""
        lines = re.findall(r"^(\w+) +\| (running|done|cached|failed|stopped)", self.said.read_text(), re.MULTILINE)
        return (lines[-1][0], lines[-1][1] == "running") if lines else ("", False)

    def kill(self, kind: str, stage: str, seconds: float, allowed: Sequence[str]) -> bool:
        """Start the run, and kill it so long after a stage began, if one is then under way that may be killed.

        Returns whether it was.
        """
        parent = self.start()
        while parent.poll() is None and self.stage() != (stage, True):
            if STAGES.index(self.stage()[0] or STAGES[0]) > STAGES.index(stage):
                break  # it was whole already: the next one is killed in its place
            time.sleep(0.002)
        time.sleep(seconds)
        pids = self.pids(parent)
        if not pids or self.stage()[0] not in allowed:
            self.ended = parent.wait() == 0
            return False
        now = self.stage()[0]
        for pid in {"parent": pids[:1], "stage": pids[1:], "both": pids}[kind]:
            os.kill(pid, signal.SIGKILL)
        status = parent.wait()
        if kind != "stage":
            assert status == -signal.SIGKILL
        elif status == 0:  # the stage had ended, and its process was not yet waited for
            self.ended = True
            return False
        self.kills.append((kind, now))
        self.until_free()
        return True

    def pids(self, parent: Forked) -> list[int]:
        """The processes of a run and of its stage, once both are there; none where the run has ended."""
        while parent.poll() is None:
            pids = [int(word) for word in (self.output / ".lock").read_text().split()]
            if len(pids) == 2 and pids[0] == parent.pid and Path(f"/proc/{pids[1]}").exists():
                return pids
        return []

    def until_free(self) -> None:
        """A stage whose parent was killed ends as after a SIGTERM; until then it holds the run's lock."""
        with (self.output / ".lock").open("r+") as lock:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(0.01)
                else:
                    return
        raise AssertionError(f"{self.kills[-1]}: the stage has outlived its run by a minute")

    def finish(self) -> None:
        assert self.ended or self.start().wait() == 0, f"{self.kills}\n{self.said.read_text()}"

    def outcome(self) -> dict[str, bytes]:
        return {name: (self.output / name).read_bytes() for name in SAME}

    def tracked(self) -> dict[str, int]:
        """What MLflow has: whole runs of the model (1), other runs, registered versions."""
        tracking = json.loads((self.output / "finetune" / "pytorch_model_folder" / "tracking.json").read_text())
        store = sqlite3.connect(self.folder / "mlflow.db")
        runs = dict(store.execute("SELECT run_uuid, status FROM runs").fetchall())
        scores = store.execute(
            "SELECT COUNT(*) FROM latest_metrics WHERE run_uuid = ? AND key = 'test/accuracy'", (tracking["run_id"],)
        )
        whole = runs.pop(tracking["run_id"], None) == "FINISHED" and scores.fetchone()[0] == 1
        versions = store.execute("SELECT COUNT(*) FROM model_versions").fetchone()[0]
        store.close()
        return {"whole": int(whole), "other": len(runs), "versions": versions}

    def seconds(self) -> dict[str, float]:
        return {s: json.loads((self.output / s / "stage.json").read_text())["seconds"] for s in STAGES}


@contextmanager
def prepared() -> Iterator[tuple[ForkServer, Path]]:
    """The server, and a folder; in its ``given`` stands what each run is given."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "given").mkdir()
        tiny.write_model(folder / "given" / "model")
        rows = "".join(json.dumps(row) + "\n" for row in tiny.questions())
        (folder / "given" / "questions.jsonl").write_text(rows)
        root = str(Path(__file__).parents[1])
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        server = ForkServer({**kept, **more}, folder, [*LIBRARIES, *MODULES])
        store = "import mlflow, sys; mlflow.MlflowClient('sqlite:///given/mlflow.db').search_experiments()"
        assert server.run(store, input="", cwd=folder).returncode == 0
        yield server, folder
        server.close()


def schedule(kills: int, stages: Sequence[str], rng: random.Random) -> Iterator[list[tuple[str, str]]]:
    """For each run the kinds and stages of its kills: every kind in every stage equally often."""
    every = list(itertools.product(KINDS, stages))
    drawn: list[tuple[str, str]] = []
    while len(drawn) < kills:
        drawn += rng.sample(every, len(every))
    for start in range(0, kills, 6):
        yield sorted(drawn[start : min(start + 6, kills)], key=lambda kill: stages.index(kill[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="Where kills are aimed at.")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    rng, began = random.Random(arguments.seed), time.monotonic()
    kinds: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    figures: Counter[str] = Counter()
    faults: list[str] = []
    with prepared() as (server, folder):
        untouched = Run(server, folder / "untouched", folder / "given")
        untouched.finish()
        expected, seconds = untouched.outcome(), untouched.seconds()
        for kills in schedule(arguments.kills, arguments.stages, rng):
            figures["runs"] += 1
            run = Run(server, folder / f"killed-{figures['runs']}", folder / "given")
            for kind, stage in kills:
                if not run.ended and run.kill(kind, stage, rng.uniform(0, seconds[stage]), arguments.stages):
                    kinds[kind] += 1
                    stages[run.kills[-1][1]] += 1
            run.finish()
            found, tracked = run.outcome(), run.tracked()
            figures["bit_identical"] += found == expected
            figures["tracked_whole"] += tracked["whole"]
            figures["one_version"] += tracked["versions"] == 1
            figures["runs_of_killed_trainings"] += tracked["other"]
            differing = [name for name in SAME if found[name] != expected[name]]
            if differing or tracked["whole"] != 1 or tracked["versions"] != 1:
                faults.append(f"{run.kills}: differing {differing or 'nothing'}, {tracked}")
            shutil.rmtree(run.folder)
    figures["kills"] = sum(kinds.values())
    summary = {**figures, "kills_of": dict(kinds), "kills_in": dict(stages)}
    print(json.dumps({**summary, "seconds": round(time.monotonic() - began)}), *faults, sep="\n")
    if arguments.record:
        reliability_record.add("whole_runs", {**summary, "seeds": [arguments.seed]})
    sys.exit(bool(faults) or figures["kills"] < 0.7 * arguments.kills)


if __name__ == "__main__":
    main()
