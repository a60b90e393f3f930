"""Digests that take three times as long as a collective operation may end no training: nobody waits for them in one.

The slow disk is a fake: `SLOW` makes what digests files, as they are read or written, sleep first, once a process for
the optimizer's file of each checkpoint that a variable names. All else is real: processes, timeout, files.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.training.fsdp_on_cpus import SITE

pytestmark = pytest.mark.slow

TIMEOUT = 8  # of a collective operation, in seconds; ZeRO-3's own take less
SLOW = """
import os, re, sys, time
import importlib.abc, importlib.util

STEPS, SECONDS, slept = os.environ["SLOW_CHECKPOINTS"].split(","), float(os.environ["SLOW_SECONDS"]), set()

def wait(path):
    found = re.search(r"checkpoint-(\\d+)", str(path))
    if found and found[1] in STEPS and "optim" in f"{path.parent.name}/{path.name}" and found[1] not in slept:
        slept.add(found[1])
        print(f"fake of a slow disk: rank {os.environ.get('RANK')} sleeps at {path}", flush=True)
        time.sleep(SECONDS)

def slowed(module):
    plain, close = module.sha256, module.HashedFile.close
    def sha256(path):
        wait(path)
        return plain(path)
    def closed(self):
        if not self.closed:
            wait(self.path)
        close(self)
    module.sha256, module.HashedFile.close = sha256, closed

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "tuneport.digests":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (plain(module), slowed(module))
        return spec

sys.meta_path.insert(0, Finder())
"""

VALUES = {
    "max_steps": "4",
    "logging_steps": "1",
    "evaluation_strategy": "steps",
    "eval_steps": "2",
    "per_device_train_batch_size": "4",
    "number_of_gpu_to_use_finetuning": "2",
    "ddp_timeout": str(TIMEOUT),
    "lr_scheduler_type": "constant",
}
WAYS = {
    "DDP": {},
    "ZeRO-2": {"apply_deepspeed": "true", "deepspeed_stage": "2"},
    "ZeRO-3": {"apply_deepspeed": "true", "deepspeed_stage": "3"},
    "FSDP": {"fsdp": "full_shard"},
}


CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def flags_of(still: SimpleNamespace, output: Path, **values: str) -> list[str]:
    folders = {"model_selector_output": still.model, "preprocess_output": still.rows, "pytorch_model_folder": output}
    given = {"task_name": "text_classification", **folders, **VALUES, **values}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def finetune(
    still: SimpleNamespace, output: Path, folder: Path, slow: str = "", **values: str
) -> subprocess.CompletedProcess[str]:
    """Run a training in two processes; the digests of the checkpoints in ``slow`` take 3 × the timeout."""
    argv = [sys.executable, "-m", "steps", "finetune", *flags_of(still, output, **values)]
    env = os.environ | CPU
    if slow:
        (folder / "sitecustomize.py").write_text(SLOW + (SITE if "fsdp" in values else ""))
        paths = [str(folder), *filter(None, [env.get("PYTHONPATH", "")])]
        env |= {"PYTHONPATH": os.pathsep.join(paths), "SLOW_CHECKPOINTS": slow}
        env |= {"SLOW_SECONDS": str(3 * TIMEOUT)}
    return subprocess.run(
        argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False
    )


def slept(said: str) -> set[str]:
    """The ranks whose digests were slow."""
    return {line.split("rank ")[1].split()[0] for line in said.splitlines() if line.startswith("fake of a slow disk")}


def test_a_process_that_is_late_for_a_collective_operation_for_longer_than_the_timeout_ends_the_training(
    still: SimpleNamespace, tmp_path: Path
) -> None:
    """The parameter reaches the group of processes: here rank 1 sleeps before its second step."""
    late = """
import os, sys, time, transformers.trainer
plain = transformers.trainer.Trainer.training_step
def training_step(self, *args, **kwargs):
    if os.environ["RANK"] == "1" and self.state.global_step == 1:
        print("fake of a slow step", flush=True)
        time.sleep(30)
    return plain(self, *args, **kwargs)
transformers.trainer.Trainer.training_step = training_step
import runpy
runpy.run_module("steps", run_name="__main__", alter_sys=True)
"""
    (tmp_path / "late.py").write_text(late)
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "late.py", "finetune"]
    flags = [*flags_of(still, tmp_path / "out"), "--ddp_timeout", "5"]
    env = os.environ | CPU | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*argv, *flags], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    said = done.stdout + done.stderr
    assert "fake of a slow step" in said and done.returncode != 0
    assert "Timed out waiting 5000ms" in said, said


@pytest.mark.parametrize("way", WAYS)
def test_slow_digests_of_a_middle_and_the_last_checkpoint_and_at_the_resume_end_no_training(
    way: str, still: SimpleNamespace, tmp_path: Path
) -> None:
    """Rank 0 alone reads an unsharded checkpoint; of shards each rank its own."""
    out = tmp_path / "out"
    done = finetune(still, out, tmp_path, slow="2,4", **WAYS[way])
    assert done.returncode == 0, done.stdout
    assert slept(done.stdout) == ({"0"} if way == "DDP" else {"0", "1"}), done.stdout
    goes_on = {**WAYS[way], "resume_from_checkpoint": "true", "max_steps": "6"}
    done = finetune(still, out, tmp_path, slow="4", **goes_on)
    assert done.returncode == 0, done.stdout
    assert "resuming from checkpoint-4" in done.stdout and "0" in slept(done.stdout)
    assert json.loads((out / "training.json").read_text())["steps"] == 6
