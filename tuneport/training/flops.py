"""How many floating point operations a training takes, and how many a GPU can do: what MFU is made of.

Model FLOP/s utilisation, as in PaLM (arXiv 2204.02311, appendix B), counts what the model's arithmetic needs, neither
padding nor what is computed twice. Where either number is not known there is no MFU.
"""

from __future__ import annotations

import dataclasses as dc
import re
import typing as t

import torch
from transformers.pytorch_utils import Conv1D

from tuneport.training.batch_counts import Counts
from tuneport.training.padding_free import choose

TERA = 1e12
# Dense TFLOP/s by precision, from NVIDIA's data sheets of these products; where a sheet says "with sparsity", half of
# its figure. The first name that is in torch.cuda.get_device_name() counts.
PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"B200", {"bf16": 2250, "fp16": 2250, "tf32": 1125, "fp32": 75}),
    (r"H200 NVL", {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60}),
    (r"H200", {"bf16": 989.5, "fp16": 989.5, "tf32": 494.5, "fp32": 67}),
    (r"H100 NVL", {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60}),
    (r"H100 PCIe", {"bf16": 756, "fp16": 756, "tf32": 378, "fp32": 51}),
    (r"H100 80GB HBM3", {"bf16": 989.5, "fp16": 989.5, "tf32": 494.5, "fp32": 67}),
    (r"A100", {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5}),
    (r"A30", {"bf16": 165, "fp16": 165, "tf32": 82, "fp32": 10.3}),
    (r"A10", {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2}),
    (r"L40S", {"bf16": 362, "fp16": 362, "tf32": 183, "fp32": 91.6}),
    (r"L40", {"bf16": 181, "fp16": 181, "tf32": 90.5, "fp32": 90.5}),
    (r"L4", {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3}),
    (r"V100-SXM2", {"fp16": 125, "fp32": 15.7}),
    (r"V100-PCIE", {"fp16": 112, "fp32": 14}),
    (r"T4", {"fp16": 65, "fp32": 8.1}),
)


@dc.dataclass(frozen=True, kw_only=True)
class Cost:
    """Floating point operations of a forward and a backward pass."""

    per_token: int
    per_square: int  # for each row, times the square of its tokens
    of_head: int  # the part of a token's that is the vocabulary's matrix

    def of(self, counts: Counts) -> int:
        without_logits = self.of_head * counts.without_logits
        return self.per_token * counts.tokens + self.per_square * counts.squared_lengths - without_logits


def peak(device_name: str, precision: str) -> float | None:
    """FLOP/s that a GPU can do in a precision (bf16, fp16, tf32, fp32); None where that is not known."""
    if "MIG" in device_name:  # a part of a GPU
        return None
    found = next((peaks for name, peaks in PEAKS if re.search(rf"\b{name}\b", device_name)), {})
    return found[precision] * TERA if precision in found else None


def cost(model: t.Any) -> Cost | None:
    """What training a dense transformer costs; None for a model of another build, whose operations are not known here.

    Each weight of a matrix takes two operations a token in the forward pass and two for the gradient of what goes in;
    a trained one two more for its own gradient. Heads that read one token a row are left out.
    """
    inner = choose.plain(model)
    config, trunk = inner.config, inner.base_model
    layers, width, heads = (
        getattr(config, n, None) for n in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    if config.is_encoder_decoder or not (layers and width and heads) or not _only_matrices(trunk):
        return None
    if any("expert" in key for key in config.to_dict()):
        return None
    matrices = [m for name, m in trunk.named_modules() if _is_matrix(m) and "pooler" not in name]
    vocabulary = inner.get_output_embeddings()
    of_head = _per_token(vocabulary) if vocabulary is not None else 0
    attention = heads * (getattr(config, "head_dim", None) or width // heads)
    return Cost(per_token=sum(map(_per_token, matrices)) + of_head, per_square=12 * layers * attention, of_head=of_head)


def _per_token(matrix: t.Any) -> int:
    size = matrix.in_features * matrix.out_features if isinstance(matrix, torch.nn.Linear) else matrix.nx * matrix.nf
    return int(size * (6 if matrix.weight.requires_grad else 4))


def _is_matrix(module: torch.nn.Module) -> bool:
    return isinstance(module, (torch.nn.Linear, Conv1D))


def _only_matrices(model: torch.nn.Module) -> bool:
    """Whether all weights but vectors are matrices that are applied to each token, or embeddings."""
    known = {
        id(parameter)
        for module in model.modules()
        if _is_matrix(module) or isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    return all(id(p) in known or len(getattr(p, "ds_shape", p.shape)) < 2 for p in model.parameters())
