"""Shards that two processes write become the plain model, and nothing else is read from their files."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.training.distributed import test_contents
from tests.training.distributed.test_contents import MODELS, sharded
from tests.training.two_processes import in_two
from tuneport.errors import UserError
from tuneport.training.checkpoint import fsdp_shards, plain_model


def written(folder: Path) -> None:
    """A checkpoint's shards, of one process."""
    from torch.distributed import checkpoint as library

    for name in (fsdp_shards.WEIGHTS, fsdp_shards.STATES):
        library.save({"model": {"weight": torch.ones(2)}}, storage_writer=fsdp_shards._Writer(folder / name))


def test_what_torch_writes_is_known_and_names_no_path(tmp_path: Path) -> None:
    written(tmp_path)
    fsdp_shards.check(tmp_path)
    assert str(tmp_path).encode() not in (tmp_path / fsdp_shards.WEIGHTS / fsdp_shards.METADATA).read_bytes()


def test_metadata_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    written(tmp_path)
    (tmp_path / fsdp_shards.STATES / fsdp_shards.METADATA).write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match="which no shards need"):
        fsdp_shards.check(tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_in_one_piece_and_one_without_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Name another checkpoint"):
        fsdp_shards.check(tmp_path)
    (tmp_path / fsdp_shards.WHOLE).touch()
    with pytest.raises(UserError, match="an earlier version wrote it, its weights in one piece"):
        fsdp_shards.check(tmp_path)


def _train(results: Any, rank: int, folder: Path) -> None:
    """A step of each model, its shards, and what it is then, whole."""
    results.put(rank)
    processes = fsdp_shards.group()
    for number, (_, architecture, _) in enumerate(MODELS.values()):
        base, out = folder / str(number), folder / f"{number}-tuned"
        model = sharded(architecture, base, rank)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        fsdp_shards.save(out, model, optimizer, processes)
        whole = {name: weight.full_tensor().detach() for name, weight in model.named_parameters()}
        if rank == 0:
            model.config.save_pretrained(out)
            torch.save(whole | dict(model.named_buffers()), folder / f"{number}.pt")


@pytest.mark.slow
def test_the_plain_model_is_the_whole_one(tmp_path: Path) -> None:
    test_contents.write(tmp_path)
    in_two(_train, tmp_path)
    for number, (name, (_, architecture, _)) in enumerate(MODELS.items()):
        checkpoint, expected = tmp_path / f"{number}-tuned", torch.load(tmp_path / f"{number}.pt")
        fsdp_shards.check(checkpoint)
        assert {path.name for path in (checkpoint / fsdp_shards.WEIGHTS).glob("__*")} == {
            "__0_0.distcp",
            "__1_0.distcp",
        }
        config = transformers.AutoConfig.from_pretrained(checkpoint)
        config.architectures = [type(getattr(transformers, architecture).from_config(config)).__name__]
        config.dtype = torch.float32
        config.save_pretrained(checkpoint)
        plain_model.write(checkpoint, tmp_path / f"{number}-plain")
        found = load_file(tmp_path / f"{number}-plain" / "model.safetensors")
        trained = {key for key in expected if key in found}
        assert trained == found.keys() and all(torch.equal(found[key], expected[key]) for key in found), name
        model, lacking = getattr(transformers, architecture).from_pretrained(
            tmp_path / f"{number}-plain", output_loading_info=True
        )
        assert not any(lacking.values()), name
        assert all(torch.equal(weight, expected[key]) for key, weight in model.named_parameters()), name
