"""What this machine and a loaded model can do, as `tuneport.training.conflicts` asks for it."""

from __future__ import annotations

import importlib.util
import typing as t

import psutil
import torch

from tuneport.serving.placement import Machine as HostMemory
from tuneport.training import optimizers
from tuneport.training.conflicts import Machine

INCLUSIVE = ("multi_label_classification", "regression")  # problems, in transformers' words


def here(model: t.Any = None) -> Machine:
    """This machine; without a model one that can do everything is supposed."""
    gpus = torch.cuda.device_count()
    of_model: dict[str, t.Any] = {}
    if model is not None:
        of_model = {
            "model_type": model.config.model_type,
            "exclusive_classes": getattr(model.config, "problem_type", None) not in INCLUSIVE,
            "recomputes": model.supports_gradient_checkpointing,
            "attentions": _attentions(model),
        }
    return Machine(
        gpus=gpus,
        bf16=not gpus or torch.cuda.is_bf16_supported(),
        tf32=gpus > 0 and torch.cuda.get_device_capability() >= (8, 0),
        packages=frozenset(module for module in optimizers.PACKAGES if importlib.util.find_spec(module) is not None),
        flash_attn=importlib.util.find_spec("flash_attn") is not None,
        **of_model,
    )


def _attentions(model: t.Any) -> frozenset[str]:
    """The attentions that a model has code for."""
    if not model._can_set_attn_implementation():
        return frozenset({model.config._attn_implementation})
    found = {"eager": True, "sdpa": model._supports_sdpa, "flash_attention_2": model._supports_flash_attn}
    return frozenset(name for name, supported in found.items() if supported)


def available_memory(processes: int = 1) -> int:
    """Bytes that one of so many processes of this machine can have, what it has already included: of a GPU, or of the
    CPU's memory within the container's limit.
    """
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free) + torch.cuda.memory_reserved()
    return HostMemory().host() // processes + psutil.Process().memory_info().rss


def free_memory(processes: int = 1) -> int:
    """Bytes that one of so many processes of this machine can have beside what it has."""
    if torch.cuda.is_available():
        return available_memory() - torch.cuda.memory_allocated()
    return HostMemory().host() // processes
