"""The type of a model's weights is what its files hold, and answers are computed in it where that is no slower."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneport.modeling import weight_types


def in_type(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A copy of a model's folder with its weights in another type."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("manifest.json"))
    weights = load_file(folder / "model.safetensors")
    cast = {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}
    save_file(cast, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_files_say_the_type_not_the_config(dtype: torch.dtype, tiny_model: Path, tmp_path: Path) -> None:
    folder = in_type(tiny_model, tmp_path / "model", dtype)
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"dtype": "float64"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert weight_types.of_files(folder) == dtype
    assert weight_types.for_inference(folder, "cuda") == dtype
    on_cpu = weight_types.for_inference(folder, torch.device("cpu"))
    assert on_cpu == (dtype if dtype == torch.bfloat16 and weight_types.computes_bfloat16() else torch.float32)


def test_most_weights_decide_and_what_is_no_weight_does_not_count(tmp_path: Path) -> None:
    assert weight_types.of_files(tmp_path) == torch.float32
    save_file({"positions": torch.arange(1000)}, tmp_path / "model-00001-of-00002.safetensors")
    assert weight_types.of_files(tmp_path) == torch.float32
    mixed = {"norm": torch.ones(50), "one": torch.ones(6, 5).bfloat16(), "other": torch.ones(30).bfloat16()}
    save_file(mixed, tmp_path / "model-00002-of-00002.safetensors")
    assert weight_types.of_files(tmp_path) == torch.bfloat16


def test_a_cpu_computes_bfloat16_where_the_kernel_says_that_it_has_units_for_it() -> None:
    flags = Path("/proc/cpuinfo").read_text("utf-8").replace("Features", "flags")
    has = {flag for line in flags.splitlines() if line.startswith("flags") for flag in line.split()[2:]}
    known = hasattr(torch.cpu, "get_capabilities")
    assert weight_types.computes_bfloat16() == bool(known and has & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
