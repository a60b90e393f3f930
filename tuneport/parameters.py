"""Parameters that several stages share: each stage that mixes a group in gets the same value in a pipeline."""

from tuneport.step import Params, param


class EvaluationBatchParams(Params):
    """Evaluation batches."""

    per_device_eval_batch_size: int = param("Rows per device and forward pass in evaluation.", default=1, ge=1)


class SeedParams(Params):
    """Randomness."""

    seed: int = param(
        "Seed of everything random in training, a new head's weights included.", default=42, ge=0, lt=2**32
    )
