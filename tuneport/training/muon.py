"""optim=muon: torch's Muon for the matrices of linear layers, AdamW for all other weights, as one optimizer.

Source: https://kellerjordan.github.io/posts/muon; steps as long as AdamW's, so that its learning rates do:
arXiv 2502.16982.
"""

from __future__ import annotations

import typing as t

import torch
from transformers import TrainingArguments
from transformers.pytorch_utils import Conv1D

MATRICES = "matrices"  # what says of a group of weights that it is Muon's


class MuonBesideAdamW(torch.optim.Optimizer):
    """Takes groups of weights as any optimizer does; ``matrices`` are those of them, by `id`, that Muon moves."""

    def __init__(self, params: t.Any, *, matrices: set[int], lr: float, betas: tuple[float, float], eps: float) -> None:
        groups = [{**group, "params": list(group["params"])} for group in params]
        self.parts: dict[bool, torch.optim.Optimizer] = {}
        if own := _of(groups, lambda weight: id(weight) in matrices):
            self.parts[True] = torch.optim.Muon(own, lr=lr, adjust_lr_fn="match_rms_adamw")
        if others := _of(groups, lambda weight: id(weight) not in matrices):
            self.parts[False] = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=True)
        held = [group | {MATRICES: own} for own, part in self.parts.items() for group in part.param_groups]
        super().__init__(held, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: t.Any = None) -> None:  # type: ignore[override]
        """Let each of the two make its step, with the rates and states of now: a schedule or a resume changes them."""
        for own, part in self.parts.items():
            part.param_groups = [group for group in self.param_groups if group[MATRICES] is own]
            part.state = self.state
            part.step()


def _of(groups: t.Sequence[dict[str, t.Any]], chosen: t.Callable[[t.Any], bool]) -> list[dict[str, t.Any]]:
    """The groups with the chosen ones of their weights; without groups that have none."""
    parts = [{**group, "params": [weight for weight in group["params"] if chosen(weight)]} for group in groups]
    return [part for part in parts if part["params"]]


def optimizer(model: t.Any, arguments: TrainingArguments) -> tuple[t.Any, dict[str, t.Any]]:
    """The class, and what it takes besides weights, as transformers' Trainer asks for it."""
    output = model.get_output_embeddings()
    matrices = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not output
    }
    tied = model.get_input_embeddings()
    return MuonBesideAdamW, {
        "matrices": matrices - {id(getattr(tied, "weight", None))},
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
    }
