"""Which of transformers' attentions a model computes with, and why."""

from __future__ import annotations

import typing as t

from tuneport.training.conflicts import Machine

AUTO, EAGER, FLASH = "auto", "eager", "flash_attention_2"


def choose(model: t.Any, wanted: str, machine: Machine, precision: str) -> tuple[str, str]:
    """Let the model compute with the attention that is expected; returns which it is and why."""
    chosen, why = automatic(machine, precision) if wanted == AUTO else (wanted, "as asked for")
    if model.config._attn_implementation != chosen:
        model.set_attn_implementation(chosen)
    return chosen, why


def automatic(machine: Machine, precision: str) -> tuple[str, str]:
    """The fastest attention that machine, precision (bf16, fp16, tf32, fp32) and model have, and why no faster one."""
    lacking = {
        f"a model of type '{machine.model_type}' has no flash attention": FLASH not in machine.attentions,
        "there is no NVIDIA GPU": not machine.gpus,
        f"flash-attn computes in 16 bits, not in {precision}": precision not in ("bf16", "fp16"),
        "flash-attn is not installed": not machine.flash_attn,
    }
    why = next((reason for reason, applies in lacking.items() if applies), None)
    if why is None:
        return FLASH, "flash-attn is installed"
    if "sdpa" in machine.attentions:
        return "sdpa", why
    return "eager", f"a model of type '{machine.model_type}' has no sdpa, and {why}"
