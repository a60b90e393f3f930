"""Parameters that several stages share: each stage that mixes a group in gets the same value in a pipeline."""

from typing import Literal

from tuneport.labels import EqualLabels
from tuneport.step import Params, param

COMPUTE = "Azure ML compute that runs this stage, by its name; serverless: a machine of instance_type_{0}."
INSTANCE_TYPE = "Azure ML instance type of this stage where compute_{0}=serverless."


class EvaluationBatchParams(Params):
    """Evaluation batches."""

    per_device_eval_batch_size: int = param(
        "Rows per device and forward pass in the evaluations of a training. In model_evaluation batches are made by "
        "their tokens, as many as memory allows: there it is the most rows of one, and 1 sets no bound.",
        default=1,
        ge=1,
    )


class EvaluationLaunchParams(Params):
    """Processes of the evaluation."""

    number_of_gpu_to_use_evaluation: int = param(
        "Processes of model_evaluation, each with a GPU of its own and a part of the test rows; where there is no GPU, "
        "processes on the CPU. A model that does not fit into one GPU is spread over so many instead.",
        default=1,
        ge=1,
        resource="processes",
    )


class LoadingParams(Params):
    """Loading of the base model."""

    ignore_mismatched_sizes: bool = param(
        "Let weights be random that the base model's files have in another size than its config.json says; without "
        "it, only the task's head may be.",
        default=False,
    )


class OutputTypeParams(Params):
    """Type of what is written."""

    output_dtype: Literal["auto", "float32", "bfloat16", "float16"] = param(
        "Number type of the weights of the tuned model, with its adapters merged, and of the exported model. auto: the "
        "base model's own, as its files have it. Checkpoints, and adapters that are not merged, keep the type that "
        "they are trained in.",
        default="auto",
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


class LabelParams(Params):
    """Labels."""

    equal_labels: EqualLabels = param(
        "Which spellings are one label: exact, equal ones only; normal, also those that differ in white space, "
        "invisible characters or Unicode composition; alike, also those that differ in case or are equal numbers, as 1 "
        "and 1.0.",
        default="normal",
    )
