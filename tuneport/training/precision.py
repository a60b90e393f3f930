"""The precision that training computes in."""

from __future__ import annotations

from transformers import TrainingArguments


def precision_of(arguments: TrainingArguments) -> str:
    """The number format of matrix products: bf16, fp16, tf32 or fp32."""
    return "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "tf32" if arguments.tf32 else "fp32"
