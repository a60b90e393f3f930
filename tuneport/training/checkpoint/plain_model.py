"""The plain model of a checkpoint, written tensor by tensor from the files that are there.

No process holds it whole: what is in memory at once is one tensor.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import typing as t
from functools import partial
from pathlib import Path

import torch

from tuneport.artifacts import MANIFEST, SEAL
from tuneport.json_yaml import read_json
from tuneport.links import link_or_copy
from tuneport.modeling import weight_files
from tuneport.modeling.weight_files import Weight
from tuneport.stage import save_json
from tuneport.training.checkpoint import fsdp_shards
from tuneport.training.checkpoint.checkpoint_folder import RUN_STATE, TRAINER_STATE

CONFIG = "config.json"
# What of a checkpoint is the state of a training: all but the model, its config and its tokenizer.
STATES = (MANIFEST, SEAL, TRAINER_STATE, RUN_STATE, "latest", "zero_to_fp32.py")
STATE_SUFFIXES = (".pt", ".pth", ".bin")


def write(checkpoint: Path, output: Path, dtype: torch.dtype | None = None) -> None:
    """Write to a folder the model in a checkpoint, or its adapter, as it would be saved without shards.

    ``dtype``: that of its floating-point weights; None: the checkpoint's.
    """
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(checkpoint.glob("[!.]*")):  # hidden ones are being written
        if path.is_file() and path.name not in STATES and path.suffix not in (*STATE_SUFFIXES, ".safetensors"):
            shutil.copyfile(path, output / path.name)
    whole = sorted(checkpoint.glob("*.safetensors"))
    if whole and dtype is None:
        for file in whole:
            link_or_copy(str(file), str(output / file.name))
    elif whole:
        twice = _tied(checkpoint)
        kept = {name: weight for name, weight in weight_files.stored(checkpoint, dtype) if name not in twice}
        weight_files.write(output, kept)
    else:
        parts = _of_fsdp if (checkpoint / fsdp_shards.WEIGHTS).is_dir() else _of_zero
        own = getattr(torch, str(read_json(checkpoint / CONFIG)["dtype"]))
        weight_files.write(output, parts(checkpoint, dtype or own))
    if dtype is not None and (output / CONFIG).is_file():
        config = read_json(output / CONFIG)
        save_json(output / CONFIG, {**config, "dtype": str(dtype).removeprefix("torch.")})


def _tied(checkpoint: Path) -> set[str]:
    """The names of a model's weights that are another weight, too: what DeepSpeed gathers has their numbers twice."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint)
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    if kind is None:
        return set()
    with torch.device("meta"):
        model = kind(config)
    model.tie_weights()
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return names - {name for name, _ in model.named_parameters()}


def _of_zero(checkpoint: Path, dtype: torch.dtype) -> dict[str, Weight]:
    """The weights of which ZeRO-3's files hold a part each, in 32 bits; shared ones once."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # bars
        gathered = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), lazy_mode=True)
    once = {id(tensor): (name, tensor) for name, tensor in reversed(gathered.items())}
    return {
        name: Weight(dtype=_kept(tensor.dtype, dtype), shape=tuple(tensor.shape), make=tensor.contiguous)
        for name, tensor in reversed(once.values())
    }


def _of_fsdp(checkpoint: Path, dtype: torch.dtype) -> dict[str, Weight]:
    """The weights of which torch's distributed checkpoint holds a part a process."""
    from torch.distributed import checkpoint as library

    torchs: t.Any = library
    folder, twice = checkpoint / fsdp_shards.WEIGHTS, _tied(checkpoint)

    def read(key: str, size: torch.Size, own: torch.dtype) -> torch.Tensor:
        found = {key: torch.empty(size, dtype=own)}
        torchs.load(found, storage_reader=torchs.FileSystemReader(folder))
        return found[key]

    lazy = {}
    for key, entry in torchs.FileSystemReader(folder).read_metadata().state_dict_metadata.items():
        name = key.removeprefix("model.")
        if isinstance(entry, torchs.TensorStorageMetadata) and name not in twice:
            size, own = entry.size, entry.properties.dtype
            lazy[name] = Weight(dtype=_kept(own, dtype), shape=tuple(size), make=partial(read, key, size, own))
    return lazy


def _kept(own: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    return dtype if own.is_floating_point else own
