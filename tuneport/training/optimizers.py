"""The optimizers that transformers offers: which there are, what each takes, which package it needs; no torch."""

from typing import Literal

Optimizer = Literal[
    "",
    "adamw_hf",
    "adamw_torch",
    "adamw_torch_fused",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "grokadamw",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "stable_adamw",
]
# By module: what to install, and the optimizers that are in it. All others are in torch and transformers.
PACKAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "bitsandbytes": (
        "bitsandbytes",
        (
            *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
            *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
            *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
            *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
        ),
    ),
    "torchao": ("torchao", ("adamw_torch_4bit", "adamw_torch_8bit")),
    "grokadamw": ("grokadamw", ("grokadamw",)),
    "schedulefree": ("schedulefree", ("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd")),
    "optimi": ("torch-optimi", ("stable_adamw",)),
}
NOT_OFFERED = {
    **dict.fromkeys(
        (
            *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
            *("galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "apollo_adamw", "apollo_adamw_layerwise"),
        ),
        "needs the names of the layers that it is for, which no parameter gives",
    ),
    **dict.fromkeys(
        ("lomo", "adalomo"), "changes weights within the backward pass, so no gradient is left to clip or to look at"
    ),
    "adamw_torch_xla": "is for TPUs, on which nothing trains here",
    "adamw_torch_npu_fused": "is for Ascend NPUs, on which nothing trains here",
    "adamw_anyprecision": "needs torchdistx, which has no release for today's torch",
}
DEFAULTS = ("", "adamw_hf")  # run as FUSED, the same AdamW in one kernel
FUSED = "adamw_torch_fused"
WEIGHT_BY_WEIGHT = (*DEFAULTS, FUSED, "adamw_torch", "sgd", "adagrad", "rmsprop")  # of any shape, so of parts of them


def takes_betas(name: str) -> bool:
    """Whether adam_beta1 and adam_beta2 mean something to an optimizer."""
    adam = ("adamw_", "ademamix", "lion_", "paged_", "stable_", "schedule_free_adamw", "schedule_free_radam")
    return name == "" or name.startswith(adam)


def takes_epsilon(name: str) -> bool:
    """Whether adam_epsilon does."""
    return takes_betas(name) and "lion" not in name
