"""Training spread over processes: start DeepSpeed, configure FSDP."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import typing as t
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from transformers import TrainingArguments
from transformers.core_model_loading import WeightConverter, revert_weight_conversion
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from tuneport.errors import UserError
from tuneport.training.distributed import deepspeed
from tuneport.training.parameters import TrainingParams

SHARDS, WHOLE = "SHARDED_STATE_DICT", "FULL_STATE_DICT"
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def backend(options: TrainingParams) -> str:
    """What the processes talk through: GPUs by NCCL, CPUs by Gloo; FSDP gathers checkpoints in CPU memory as well."""
    if not torch.cuda.is_available():
        return "gloo"
    return "cuda:nccl,cpu:gloo" if options.fsdp else "nccl"


def timeout(options: TrainingParams) -> timedelta:
    """Of collective operations."""
    return timedelta(seconds=options.ddp_timeout)


def import_no_deepspeed() -> None:
    """Keep accelerate from importing DeepSpeed, and MLflow with it, to see that a model is none of DeepSpeed's.

    A model can be one only where DeepSpeed is imported already, which takes seconds.
    """
    from accelerate.utils import other

    other.is_deepspeed_available = lambda: "deepspeed" in sys.modules


def start_deepspeed(options: TrainingParams, *, bf16: bool, fp16: bool, world_size: int) -> dict[str, t.Any]:
    """Start the group of processes and return DeepSpeed's configuration.

    Raises `UserError` where DeepSpeed is not installed or its file contradicts the parameters.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("apply_deepspeed=true: DeepSpeed is not installed. Run: pip install 'tuneport[deepspeed]'")
    config = deepspeed.configuration(options, bf16=bf16, fp16=fp16, world_size=world_size)
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # it has not caught up
    import deepspeed as library

    # Several processes have a group already, and it is taken; transformers would start one with the GPUs' backend.
    library.init_distributed(backend(options), timeout=timeout(options))
    _load_no_code()
    return config


def _load_no_code() -> None:
    """Let DeepSpeed's checkpoints hold tensors, plain values and four classes of its own: nothing that runs."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address])
    os.environ[WEIGHTS_ONLY] = "1"  # it asks torch to unpickle anything


@contextmanager
def set_aside(arguments: TrainingArguments) -> Iterator[None]:
    """While entered, models are loaded whole, also with ZeRO-3, which else spreads each as it is loaded."""
    unset: t.Any = unset_hf_deepspeed_config
    unset()
    try:
        yield
    finally:
        if config := getattr(arguments, "hf_deepspeed_config", None):
            set_hf_deepspeed_config(config)  # type: ignore[no-untyped-call]


def fsdp(options: TrainingParams) -> dict[str, t.Any]:
    """FSDP's configuration in transformers' words; each layer of the model is a unit."""
    os.environ[WEIGHTS_ONLY] = "1"  # torch would unpickle anything in shards
    return {
        "version": 2,
        "reshard_after_forward": options.fsdp == "full_shard",
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": WHOLE,
    }


def state_dict_type(model: t.Any) -> str:
    """How FSDP's checkpoints of a model hold it: in `SHARDS`, or `WHOLE`.

    Whole are adapters, which are small, and a model whose files have other weights than it has in memory, as some
    mixtures of experts.
    """
    if hasattr(model, "peft_config"):
        return WHOLE
    names = {name: torch.empty_like(weight, device="meta") for name, weight in model.state_dict().items()}
    conversions = vars(model).get("_weight_conversions") or []
    converted = any(isinstance(entry, WeightConverter) for entry in conversions)
    return WHOLE if converted or revert_weight_conversion(model, names).keys() != names.keys() else SHARDS


def join_tables(model: t.Any) -> None:
    """Let tied embeddings of an encoder and a decoder be one module, as FSDP takes a weight in one unit only."""
    table = model.get_input_embeddings()
    for module in model.modules():
        for name, child in module.named_children():
            if child is not table and type(child) is type(table) and child.weight is table.weight:
                same = {k: v for k, v in vars(child).items() if not k.startswith("_")}
                if same == {k: v for k, v in vars(table).items() if not k.startswith("_")}:
                    setattr(module, name, table)


def units(model: t.Any) -> list[str]:
    """The classes of a model's layers, each of which FSDP gathers and frees as one.

    transformers also names the class of some models' embeddings, and accelerate makes the table within a unit of its
    own, which may not be in another.
    """
    table = model.get_input_embeddings()
    found: dict[str, None] = {}
    for module in model.modules():
        name = type(module).__name__
        if name in model._no_split_modules and all(inner is not table for inner in module.modules()):
            found[name] = None
    return list(found)
