"""The plain model of a checkpoint: the same tensors, whatever files they stand in, and little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as library

from tuneport.training.checkpoint import fsdp_shards, plain_model

TENSORS = {
    "encoder.weight": torch.randn(6, 5),
    "encoder.scale": torch.tensor(0.5),
    "positions": torch.arange(7),
    "mask": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """All that a checkpoint holds beside its weights."""
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "run_state.json", "latest"):
        (folder / name).write_text("state")
    (folder / "manifest.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "dtype": "float32"}))
    return folder


def test_the_files_of_a_model_are_copied_and_those_of_its_training_are_not(checkpoint: Path, tmp_path: Path) -> None:
    save_file(TENSORS, checkpoint / "model.safetensors", {"format": "pt"})
    plain_model.write(checkpoint, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_type_is_that_of_floating_point_weights_and_of_the_config(
    dtype: torch.dtype, checkpoint: Path, tmp_path: Path
) -> None:
    save_file(TENSORS, checkpoint / "model.safetensors", {"format": "pt"})
    plain_model.write(checkpoint, tmp_path / "out", dtype)
    assert_same(load_file(tmp_path / "out/model.safetensors"), dtype)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_the_shards_of_a_distributed_checkpoint_are_put_together(checkpoint: Path, tmp_path: Path) -> None:
    """As accelerate saves FSDP's: under "model", beside the optimizer's states in a folder of their own."""
    library.save({"model": TENSORS}, checkpoint_id=checkpoint / fsdp_shards.WEIGHTS)
    plain_model.write(checkpoint, tmp_path / "out")
    assert_same(load_file(tmp_path / "out/model.safetensors"), torch.float32)


def assert_same(found: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype and torch.equal(found[name], expected), name


MEASURED = """
import sys, threading, time
from pathlib import Path
import torch
from safetensors import safe_open
from tuneport.training.checkpoint import fsdp_shards, plain_model

plain_model._tied(Path(sys.argv[1]))  # imports what it needs

def held():
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024

before, most, done = held(), [0.0], threading.Event()
def watch():
    while not done.wait(0.002):
        most[0] = max(most[0], held())
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
plain_model.write(Path(sys.argv[1]), Path(sys.argv[2]), torch.bfloat16)
done.set()
watcher.join()
print(most[0] - before)
"""


@pytest.mark.slow
def test_a_tensor_is_in_memory_at_a_time(checkpoint: Path, tmp_path: Path) -> None:
    """Of 12 tensors of 32 MiB, 384 in all, never more than 3 beside what the process holds."""
    save_file({f"layer.{i}": torch.zeros(2048, 4096) for i in range(12)}, checkpoint / "model.safetensors")
    argv = [sys.executable, "-c", MEASURED, str(checkpoint), str(tmp_path / "out")]
    give_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # else the C library keeps some of what is freed
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=give_back)
    assert float(done.stdout) < 3 * 32
