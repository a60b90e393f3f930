"""Parameters that several stages share: each stage that mixes a group in gets the same value in a pipeline."""

from tuneport.step import Params, param

COMPUTE = "Azure ML compute that runs this stage, by its name; serverless: a machine of instance_type_{0}."
INSTANCE_TYPE = "Azure ML instance type of this stage where compute_{0}=serverless."


class EvaluationBatchParams(Params):
    """Evaluation batches."""

    per_device_eval_batch_size: int = param("Rows per device and forward pass in evaluation.", default=1, ge=1)


class LoadingParams(Params):
    """Loading of the base model."""

    ignore_mismatched_sizes: bool = param(
        "Let weights be random that the base model's files have in another size than its config.json says; without "
        "it, only the task's head may be.",
        default=False,
    )


class SeedParams(Params):
    """Randomness."""

    seed: int = param(
        "Seed of everything random in training, a new head's weights included.", default=42, ge=0, lt=2**32
    )


class GenerationParams(Params):
    """Generation of answers."""

    max_new_tokens: int = param(
        "Most tokens of a generated text. -1: the longest target in training, where that has a limit, else 128.",
        default=-1,
        ge=-1,
    )
    num_beams: int = param("Beams of beam search; 1: none.", default=1, ge=1)
    temperature: float = param(
        "Temperature of sampling; 0: no sampling, the likeliest token each time.", default=0.0, ge=0
    )
    top_p: float = param(
        "Sampling: only from the likeliest tokens that have this probability together.", default=1.0, gt=0, le=1
    )
    top_k: int = param("Sampling: only from this many of the likeliest tokens; 0: from all.", default=0, ge=0)
    repetition_penalty: float = param(
        "Above 1, tokens that stand in the text already get less likely.", default=1.0, gt=0
    )
    no_repeat_ngram_size: int = param("Runs of this many tokens do not occur twice; 0: they may.", default=0, ge=0)
    length_penalty: float = param(
        "Beam search: above 0, longer texts are preferred, below 0 shorter ones.", default=1.0
    )
