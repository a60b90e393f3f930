"""The optimizers that transformers offers, and Muon: what there is, what each takes and which package; no torch."""

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
    "muon",
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
    "torch.optim._muon": ("'torch>=2.9'", ("muon",)),
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
MUON = "muon"  # transformers knows it not: `tuneport.training.muon`
DEFAULTS = ("", "adamw_hf")  # run as FUSED, the same AdamW in one kernel
FUSED = "adamw_torch_fused"
# What keeps updates of weights in bfloat16 that are too small for its 8 bits: by rounding up or down at random, in
# proportion, and by summing up what was rounded away (Kahan).
ROUNDED_AT_RANDOM = ("adamw_torch_4bit", "adamw_torch_8bit")
SUMMED_UP = ("stable_adamw",)
# Below it, AdamW's updates, which are about as large, are less than half a step of a weight of 0.1 in bfloat16.
LEAST_RATE_IN_BFLOAT16 = 2e-4
WEIGHT_BY_WEIGHT = (*DEFAULTS, FUSED, "adamw_torch", "sgd", "adagrad", "rmsprop")  # of any shape, so of parts of them
ADAMW = (*DEFAULTS, FUSED, "adamw_torch")  # with two states in the type of their weight


def takes_betas(name: str) -> bool:
    """Whether adam_beta1 and adam_beta2 mean something to an optimizer."""
    adam = (MUON, "adamw_", "ademamix", "lion_", "paged_", "stable_", "schedule_free_adamw", "schedule_free_radam")
    return name == "" or name.startswith(adam)


def takes_epsilon(name: str) -> bool:
    """Whether adam_epsilon does."""
    return takes_betas(name) and "lion" not in name
