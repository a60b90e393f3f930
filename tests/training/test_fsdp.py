"""FSDP in two processes: trains, resumes and hands back what two plain processes do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.training import test_slow_disks
from tests.training.fsdp_on_cpus import SITE

pytestmark = pytest.mark.slow

VALUES = test_slow_disks.VALUES | {"ddp_timeout": "600", "learning_rate": "1e-3"}


def finetune(of: SimpleNamespace, output: Path, until: str = "", **values: str) -> str:
    """Run a training to its end; returns what it says. ``until``: the checkpoint at which all its processes are killed.

    Raises `subprocess.TimeoutExpired` where they were.
    """
    folders = {"model_selector_output": of.model, "preprocess_output": of.rows, "pytorch_model_folder": output}
    given = {"task_name": of.task, **folders, **VALUES, **values}
    env = os.environ | test_slow_disks.CPU
    if "fsdp" in values:
        site = output.with_name("site")
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(SITE)
        env["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [env.get("PYTHONPATH", "")])])
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    argv = [sys.executable, "-m", "steps", "finetune", *flags]
    with (
        output.with_suffix(".log").open("w+", encoding="utf-8") as log,
        subprocess.Popen(argv, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        partial, deadline = output.with_name(f".{output.name}.partial"), time.monotonic() + 600
        while process.poll() is None:
            if time.monotonic() > deadline or (until and (partial / "checkpoints" / until).is_dir()):
                os.killpg(process.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(argv, 600)
            time.sleep(0.02)
        log.seek(0)
        done = SimpleNamespace(returncode=process.returncode, stdout=log.read())
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


def files(output: Path, step: int) -> set[str]:
    """Those of a checkpoint that hold weights and optimizer states."""
    folder = output / "checkpoints" / f"checkpoint-{step}"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if Path(name).suffix in (".safetensors", ".bin", ".distcp")}


@pytest.mark.parametrize("way", ["full_shard", "shard_grad_op"])
def test_the_model_is_that_of_two_plain_processes_also_after_a_resume(
    way: str, still: SimpleNamespace, plain: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    finetune(still, output, fsdp=way, max_steps="2")
    said = finetune(still, output, fsdp=way, resume_from_checkpoint="true")
    assert "resuming from checkpoint-2" in said
    shards = {f"{folder}/__{rank}_0.distcp" for folder in ("pytorch_model_fsdp_0", "optimizer_0") for rank in (0, 1)}
    assert files(output, 2) == files(output, 4) == shards
    expected, found = weights(plain), weights(output)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)
    assert [step for step, _ in losses(output)] == [step for step, _ in losses(plain)]
    assert [loss for _, loss in losses(output)] == pytest.approx([loss for _, loss in losses(plain)], abs=1e-4)


def test_a_killed_training_goes_on_bit_for_bit(still: SimpleNamespace, tmp_path: Path) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    values = {"fsdp": "full_shard", "max_steps": "24", "eval_steps": "4"}
    finetune(still, unbroken, **values)
    with pytest.raises(subprocess.TimeoutExpired):
        finetune(still, killed, until="checkpoint-8", **values)
    said = finetune(still, killed, resume_from_checkpoint="true", **values)
    assert "resuming from checkpoint-" in said
    expected, found = weights(unbroken), weights(killed)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(killed) == losses(unbroken)


def test_adapters_go_on_bit_for_bit(still: SimpleNamespace, tmp_path: Path) -> None:
    lora = {"fsdp": "full_shard", "apply_lora": "true"}
    finetune(still, tmp_path / "unbroken", **lora)
    finetune(still, tmp_path / "stopped", **lora, max_steps="2")
    assert "adapter_model.safetensors" in files(tmp_path / "stopped", 2)
    assert "model.safetensors" not in files(tmp_path / "stopped", 2)
    assert "resuming from checkpoint-2" in finetune(still, tmp_path / "stopped", **lora, resume_from_checkpoint="true")
    expected, found = weights(tmp_path / "unbroken"), weights(tmp_path / "stopped")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    plain = tmp_path / "plain"
    finetune(still, plain, apply_lora="true")
    for name, weight in weights(plain).items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-5)


def test_adapters_and_mixed_precision_are_trained(still: SimpleNamespace, tmp_path: Path) -> None:
    finetune(still, tmp_path / "lora", apply_lora="true", fsdp="full_shard")
    base, tuned = weights(still.model), weights(tmp_path / "lora")
    same = {name: torch.equal(weight, tuned[f"bert.{name}"]) for name, weight in base.items()}
    assert all(same[name] for name in same if "embeddings" in name)
    assert not any(same[name] for name in same if name.endswith("query.weight"))
    finetune(still, tmp_path / "bf16", precision="bf16", fsdp="full_shard")
    assert all(bool(weight.isfinite().all()) for weight in weights(tmp_path / "bf16").values())
