"""FSDP in two processes: trains, resumes and hands back what two plain processes do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.training import test_slow_disks
from tests.training.fsdp_on_cpus import SITE

pytestmark = pytest.mark.slow

VALUES = test_slow_disks.VALUES | {"ddp_timeout": "600", "learning_rate": "1e-3"}


def finetune(of: SimpleNamespace, output: Path, **values: str) -> str:
    """Run a training to its end; returns what it says."""
    folders = {"model_selector_output": of.model, "preprocess_output": of.rows, "pytorch_model_folder": output}
    given = {"task_name": of.task, **folders, **VALUES, **values}
    env = os.environ | test_slow_disks.CPU
    if "fsdp" in values:
        site = output.with_name("site")
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(SITE)
        env["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [env.get("PYTHONPATH", "")])])
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "steps", "finetune", *flags],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert ("fake of GPUs: FSDP on CPUs" in done.stdout) == ("fsdp" in values)
    return done.stdout


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def losses(output: Path) -> list[tuple[int, float]]:
    log = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
    return [(entry["step"], entry[name]) for entry in log for name in ("loss", "eval_loss") if name in entry]


@pytest.fixture(scope="module")
def plain(still: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes with the whole model each."""
    output = tmp_path_factory.mktemp("plain") / "out"
    finetune(still, output)
    return output


@pytest.mark.parametrize("way", ["full_shard", "shard_grad_op"])
def test_the_model_is_that_of_two_plain_processes_also_after_a_resume(
    way: str, still: SimpleNamespace, plain: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    finetune(still, output, fsdp=way, max_steps="2")
    said = finetune(still, output, fsdp=way, resume_from_checkpoint="true")
    assert "resuming from checkpoint-2" in said
    expected, found = weights(plain), weights(output)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)
    assert [step for step, _ in losses(output)] == [step for step, _ in losses(plain)]
    assert [loss for _, loss in losses(output)] == pytest.approx([loss for _, loss in losses(plain)], abs=1e-4)


def test_adapters_and_mixed_precision_are_trained(still: SimpleNamespace, tmp_path: Path) -> None:
    finetune(still, tmp_path / "lora", apply_lora="true", fsdp="full_shard")
    base, tuned = weights(still.model), weights(tmp_path / "lora")
    same = {name: torch.equal(weight, tuned[f"bert.{name}"]) for name, weight in base.items()}
    assert all(same[name] for name in same if "embeddings" in name)
    assert not any(same[name] for name in same if name.endswith("query.weight"))
    finetune(still, tmp_path / "bf16", precision="bf16", fsdp="full_shard")
    assert all(bool(weight.isfinite().all()) for weight in weights(tmp_path / "bf16").values())
