"""FSDP's part of a checkpoint: each process writes its shards, as torch does and accelerate reads them."""

from __future__ import annotations

import pickle
import typing as t
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.checkpoint import state_dict, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from tuneport.errors import UserError

WEIGHTS, STATES = "pytorch_model_fsdp_0", "optimizer_0"  # accelerate's names of the two folders
WHOLE = "pytorch_model_fsdp.bin"  # and of the weights in one file
METADATA = ".metadata"  # torch's: which part of a weight is in which file
# Processes meet in torch's own collectives once all have written: that may take longer than adding up gradients.
PATIENCE = timedelta(days=1)
# What torch writes into `METADATA`, which it would unpickle whatever it holds.
_OF_METADATA = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
KNOWN = {
    *(("torch.distributed.checkpoint.metadata", name) for name in _OF_METADATA),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}


class _Writer(FileSystemWriter):
    """Names no path of this machine in what it writes, which is brought to the disk with the rest of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sync_files=False)

    def storage_meta(self) -> None:
        return None


def group() -> t.Any:
    """The processes, as they meet where shards are written; all of them call it together."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def save(folder: Path, model: t.Any, optimizer: t.Any, processes: t.Any) -> None:
    """Write this process's shards of a model and of its optimizer's states; all ``processes`` call it together."""
    weights = {"model": state_dict.get_model_state_dict(model)}
    state_dict_saver.save(weights, storage_writer=_Writer(folder / WEIGHTS), process_group=processes)
    states = {"optimizer": state_dict.get_optimizer_state_dict(model, optimizer)}
    state_dict_saver.save(states, storage_writer=_Writer(folder / STATES), process_group=processes)


def check(checkpoint: Path) -> None:
    """Raise `UserError` for a checkpoint that is not in shards, and for one with anything but shards in it."""
    if (checkpoint / WHOLE).is_file():
        raise UserError(
            f"{checkpoint}: cannot be resumed from, as an earlier version wrote it, its weights in one piece. Finish "
            "with that version, or import it as the base model to go on from its weights."
        )
    for folder in (WEIGHTS, STATES):
        file = checkpoint / folder / METADATA
        try:
            with file.open("rb") as f:
                _Metadata(f).load()
        except (OSError, pickle.UnpicklingError, EOFError) as e:
            raise UserError(f"{file}: cannot be resumed from ({e}). Name another checkpoint.") from None


class _Metadata(pickle.Unpickler):
    """Unpickles nothing but what torch's metadata is made of."""

    def find_class(self, module: str, name: str) -> t.Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_type and (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no shards need")
        return super().find_class(module, name)
