"""Pickled weights become safetensors one after the other, whatever their size."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tuneport.model_source.conversion import convert_pickles

MEASURED = """
import resource, sys, torch, huggingface_hub, safetensors.torch
from pathlib import Path
from tuneport.model_source.conversion import convert_pickles
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
convert_pickles([Path(sys.argv[1])], Path(sys.argv[2]))
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    weights = {f"layer.{i}": torch.full((1_000_000,), float(i)) for i in range(48)}
    torch.save(weights, source / "pytorch_model.bin")
    argv = [sys.executable, "-c", MEASURED, str(source), str(out)]
    grown = int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)  # KiB
    assert grown * 1024 < (source / "pytorch_model.bin").stat().st_size / 2
    written = load_file(out / "model.safetensors")
    assert written.keys() == weights.keys() and all(torch.equal(written[n], w) for n, w in weights.items())


def test_weights_that_share_memory_or_come_from_a_torch_before_1_6_are_written_whole(tmp_path: Path) -> None:
    tied = torch.arange(12.0).reshape(3, 4)
    for new in (True, False):
        source, out = tmp_path / f"source {new}", tmp_path / f"out {new}"
        source.mkdir()
        out.mkdir()
        weights = {"embedding": tied, "head": tied, "transposed": tied.t(), "one": torch.tensor(2.5).bfloat16()}
        torch.save(weights, source / "pytorch_model.bin", _use_new_zipfile_serialization=new)
        convert_pickles([source], out)
        written = load_file(out / "model.safetensors")
        assert all(torch.equal(written[n], w) and written[n].dtype == w.dtype for n, w in weights.items())
