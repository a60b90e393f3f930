"""Weights go onto one GPU where it holds them, else over all of them, else into the host's memory, too."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneport.modeling.weight_types import for_inference
from tuneport.serving.placement import Machine, Placement

GB = 10**9


def test_a_machine_without_a_gpu_computes_on_the_cpu() -> None:
    found = Placement(3 * GB, {}, 16 * GB)
    assert (found.kind, found.device, found.loading()) == ("cpu", "cpu", {})
    assert found.said() == "3.0 GB of weights on the CPU (16.0 GB free)"


@pytest.mark.parametrize(
    ("needed", "kind"),
    [(16, "gpu"), (63, "gpu"), (65, "gpus"), (114, "gpus"), (116, "offload"), (194, "offload"), (196, "none")],
)
def test_a_fifth_of_each_gpu_is_left_for_what_is_computed(needed: int, kind: str) -> None:
    found = Placement(needed * GB, {0: 80 * GB, 1: 80 * GB}, 100 * GB)
    assert found.kind == kind, found.said()
    assert found.one_device == (kind == "gpu")


def test_a_small_gpu_keeps_a_gigabyte() -> None:
    assert Placement(int(0.9 * GB), {0: 2 * GB}, 0).kind == "gpu"
    assert Placement(int(0.95 * GB), {0: 2 * GB}, 8 * GB).kind == "offload"


def test_the_first_of_the_gpus_is_the_one_that_is_taken() -> None:
    found = Placement(4 * GB, {3: 10 * GB}, 0)
    assert (found.kind, found.device) == ("gpu", "cuda:3")


def test_what_from_pretrained_gets_is_the_room_on_each_gpu_and_in_the_host() -> None:
    found = Placement(100 * GB, {0: 80 * GB, 1: 60 * GB}, 50 * GB)
    memory = {0: 64 * GB, 1: 48 * GB, "cpu": 40 * GB}
    assert found.loading() == {"device_map": "auto", "max_memory": memory}
    assert found.said() == "100.0 GB of weights over 2 GPUs (80.0 GB, 60.0 GB free), as one does not hold them"


def test_too_large_a_model_is_refused_with_the_figures() -> None:
    found = Placement(300 * GB, {0: 80 * GB}, 50 * GB)
    with pytest.raises(
        ValueError, match=r"^300\.0 GB of weights have no room on the GPUs \(80\.0 GB free\) and .* \(50\.0 GB\)\. Take"
    ):
        found.loading()
    offloaded = Placement(90 * GB, {0: 80 * GB}, 50 * GB)
    assert "on the GPU (80.0 GB free) and, for what has no room there, in the host's memory" in offloaded.said()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bytes_and_the_type_are_those_of_the_files(dtype: torch.dtype, tiny_model: Path, tmp_path: Path) -> None:
    weights = {name: weight.to(dtype) for name, weight in load_file(tiny_model / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    wanted = sum(weight.numel() * weight.element_size() for weight in weights.values())
    assert Machine().weight_bytes(str(tmp_path), dtype.itemsize) == wanted
    assert Machine().weight_type(str(tmp_path)) == for_inference(
        tmp_path, "cuda" if torch.cuda.is_available() else "cpu"
    )
