"""Frozen weights in 8 or 4 bits beside adapters that are trained: QLoRA (arXiv 2305.14314)."""

from __future__ import annotations

import importlib.util
import typing as t

import torch
from transformers import BitsAndBytesConfig

from tuneport.errors import UserError
from tuneport.training.parameters import AdapterParams


def loading(options: AdapterParams) -> dict[str, t.Any]:
    """What from_pretrained takes to quantize a model while it loads it onto this process's GPU; nothing for none.

    Raises `UserError` where bitsandbytes is not installed.
    """
    if options.quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantization={options.quantization}: bitsandbytes is not installed. "
            "Run: pip install 'tuneport[quantization]'"
        )
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=options.quantization == "4bit",
        load_in_8bit=options.quantization == "8bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_half(),
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _half() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def freeze(model: t.Any) -> None:
    """Freeze a quantized model, and let what is not quantized be in 32 bits, but for the vocabulary's matrices in 16.

    Its config is to load the base model's full weights again, so it does not say that these were quantized.
    """
    from peft import prepare_model_for_kbit_training

    prepare: t.Any = prepare_model_for_kbit_training
    prepare(model, use_gradient_checkpointing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            module.to(_half())
    del model.config.quantization_config
