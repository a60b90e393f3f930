"""Parameters of data preparation."""

from typing import Literal

from tuneport.step import Params, param


class DataParams(Params):
    """Data preprocessing."""

    batch_size: int = param("Number of rows to hand to the tokenizer at once.", default=1000, ge=1)
    max_seq_length: int = param(
        "Longest sequence in tokens, longer ones are cut; -1: the model's maximum.", default=-1, ge=-1
    )
    pad_to_max_length: bool = param(
        "Pad every sequence to max_seq_length, not to the longest of its batch.", default=False
    )
    min_rows: int = param("Fewest training rows to go on with.", default=10, ge=1)
    max_dropped_fraction: float = param(
        "Largest share of a source's rows that may be unusable; above it the step fails.", default=0.05, ge=0, le=1
    )
    deduplicate: Literal["none", "exact", "near"] = param(
        "Remove duplicates, rows with equal (exact) or nearly equal (near) inputs. A duplicate across splits is kept "
        "in the test rows, else in the validation rows, else in the training rows.",
        default="exact",
    )
    near_duplicate_threshold: float = param(
        "Jaccard similarity of character 5-grams from which two texts count as near duplicates; 1: the same 5-grams.",
        default=0.8,
        ge=0.5,
        le=1,
    )


class SplitParams(Params):
    """Splits."""

    validation_split_ratio: float = param(
        "Share of the training rows to validate on if no data is given.", default=0.1, gt=0, lt=1
    )
    test_split_ratio: float = param(
        "Share of the training rows to test on if no data is given.", default=0.1, gt=0, lt=1
    )
    split_seed: int = param("Seed of the shuffled, stratified split.", default=42, ge=0)
    group_key: str | None = param(
        "Column that names a row's group (author, document, conversation, …); a group's rows stay in one split.",
        default=None,
    )


class PrepareParams(DataParams, SplitParams):
    """All that preparing data needs to know besides the task's own parameters."""
