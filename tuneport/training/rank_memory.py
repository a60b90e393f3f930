"""What one of several processes holds of a training step, by how the model is spread over them; no torch."""

from __future__ import annotations

import dataclasses as dc

from tuneport.training.distributed import deepspeed
from tuneport.training.parameters import TrainingParams

HALF = ("16", "bf16", "fp16")
# Weights that ZeRO-3 keeps gathered after use, at most: its stage3_max_live_parameters.
LIVE_PARAMETERS = 1_000_000_000
# Bytes of state for each trained weight, of the optimizers that only a GPU can run; the rest are simulated.
EIGHT_BITS = 2 * (1 + 4 / 256)  # two states of one byte, and a scale of four for each block of 256
STATES: dict[str, float] = {
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "adamw_torch_8bit"), EIGHT_BITS),
    **dict.fromkeys(("ademamix_8bit",), 1.5 * EIGHT_BITS),
    **dict.fromkeys(("lion_8bit", "rmsprop_bnb_8bit"), EIGHT_BITS / 2),
    **dict.fromkeys(("lion_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit"), 4.0),
    "ademamix": 12.0,
    "adamw_torch_4bit": 1 + 8 / 128,
}
PAGED = {"paged_adamw_32bit": 8.0, "paged_adamw_8bit": EIGHT_BITS, "paged_lion_32bit": 4.0} | {
    "paged_lion_8bit": EIGHT_BITS / 2,
    "paged_ademamix_32bit": 12.0,
    "paged_ademamix_8bit": 1.5 * EIGHT_BITS,
}  # in CPU memory where the GPU's does not suffice
# Bytes of a frozen weight in so many bits, with the scales of its blocks: 4 bits with double quantization, 8 bits.
QUANTIZED = {"4bit": 0.5 + 0.127 / 8, "8bit": 1.0}


@dc.dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of one process that holds all of the model, and weights by their number."""

    trained: int  # weights that are trained
    frozen: int  # and those that are not
    weights: int  # of both, and buffers
    gradients: int
    optimizer: int
    peak: int  # of everything, while a step runs
    logits: int  # of them at the peak: what is as wide as the vocabulary and is no weight, gradient or state
    quantizable: int  # frozen weights of linear layers, but for the vocabulary's, which stay as they are
    largest_layer: int  # the weights of the largest layer, or of the embedding: what ZeRO-3 and FSDP gather at once

    @property
    def activations(self) -> int:
        """What the peak has beyond weights, gradients and states: activations, logits among them, and buffers."""
        return max(self.peak - self.weights - self.gradients - self.optimizer, 0)


@dc.dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one process."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int  # weights of other processes, and copies of gradients on their way
    activations: int
    logits: int  # of the activations
    host: int  # in CPU memory, of the first one: what is offloaded or loaded, and what checkpoints are written from

    @property
    def total(self) -> int:
        """On the device."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations


def per_rank(step: StepMemory, options: TrainingParams, processes: int) -> RankMemory:
    """What a process holds of a step that one process alone was measured with (`simulate.in_one_process`)."""
    states = _states(step, options)
    weights, gradients, gathered, host = step.weights, step.gradients, 0, 0
    optimizer = int(states * step.trained)
    stage, half = deepspeed.stage(options), options.precision in HALF
    if options.quantization != "none":
        width = step.weights / (step.trained + step.frozen)
        weights -= int(step.quantizable * (width - QUANTIZED[options.quantization]))
    if stage:
        width = 2 if half else 4
        weights, gradients = width * (step.trained + step.frozen), width * step.trained
        optimizer = int((states + (4 if half else 0)) * step.trained) // processes
        if stage >= 2:
            gradients //= processes
        if stage == 3:
            gathered = min(weights, width * LIVE_PARAMETERS)
            host += weights  # all of them on the first process, whole, while a checkpoint is written
            weights //= processes
        if options.deepspeed_offload:
            host, optimizer = host + optimizer + gradients, 0
            if stage == 3:
                host, weights = host + weights, 0
    elif options.fsdp:
        width = 2 if half else 4
        layer = step.largest_layer * width * (step.trained + step.frozen) // max(step.weights, 1)
        one_layer = options.fsdp == "full_shard"  # that is computed with, and the next on its way
        gathered = 2 * layer if one_layer else width * (step.trained + step.frozen)
        gathered += 2 * layer if step.trained else 0  # a layer's gradients before they are spread
        host += 4 * (step.trained + step.frozen)  # the first process reads them for all
        weights = 4 * (step.trained + step.frozen) // processes
        gradients, optimizer = 4 * step.trained // processes, optimizer // processes
    elif processes > 1:
        gathered = gradients  # the buckets in which they are summed
    if not (stage or options.fsdp):
        host += optimizer + 4 * step.trained  # a checkpoint is copied before it is written
    return RankMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        gathered=gathered,
        activations=step.activations,
        logits=min(step.logits, step.activations),
        host=host,
    )


def checkpoint(step: StepMemory, options: TrainingParams) -> int:
    """Bytes of a checkpoint: what is trained, and the optimizer's states; all processes' parts together."""
    copies = 2 if deepspeed.stage(options) and options.precision in HALF else 0  # ZeRO keeps weights in 32 bits besides
    return int((4 + copies + _states(step, options)) * step.trained)


def states(step: StepMemory, options: TrainingParams) -> int:
    """Bytes of the optimizer's states, of all processes together."""
    return int(_states(step, options) * step.trained)


def _states(step: StepMemory, options: TrainingParams) -> float:
    """Bytes of optimizer state for each trained weight."""
    known = known_states(options.optim)
    if known is not None:
        return known
    # Spread in 16 bits, the states are of float32 weights; the step was simulated with weights of 16 bits.
    wider = (
        2 if (options.apply_deepspeed or options.fsdp) and options.precision in HALF and not options.apply_lora else 1
    )
    return wider * step.optimizer / max(step.trained, 1)


def known_states(name: str) -> float | None:
    """Bytes of state for each trained weight, of an optimizer whose description says it; None of the others."""
    return STATES.get(name, PAGED.get(name))


def is_computed(options: TrainingParams) -> bool:
    """Whether an optimizer's states follow from its description, as no CPU runs it."""
    return options.optim in STATES or options.optim in PAGED


def simulated_optimizer(name: str) -> str:
    """The optimizer to simulate a step with: of those that a CPU does not run, one without states."""
    return "sgd" if name in STATES or name in PAGED else name
