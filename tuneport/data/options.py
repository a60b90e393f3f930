"""Parameters of data preparation."""

from typing import Literal

from tuneport.limits import MAX_COMPRESSION_RATIO, MAX_ROW_BYTES, DataLimits
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
        "in the test rows, else in the validation rows, else in the training rows. Where text is written, different "
        "answers to equal inputs are no duplicates and stay together in one split.",
        default="exact",
    )
    columns: str | None = param(
        "Where the data has the columns that are asked for, as a JSON object of name and column: "
        '{"prompt": "question", "completion": "answer.text"}; a dot leads into an object, here and in each …_key.',
        default=None,
        json=True,
    )
    max_train_rows: int = param(
        "Read only so many rows of the training data, its first ones, for a trial run; -1: all.", default=-1, ge=-1
    )
    max_validation_rows: int = param(
        "Read only so many rows of the validation data, its first ones; -1: all.", default=-1, ge=-1
    )
    max_test_rows: int = param("Read only so many rows of the test data, its first ones; -1: all.", default=-1, ge=-1)
    quoting: Literal["auto", "double", "none"] = param(
        "What a quote is in CSV and TSV. double: it encloses a cell, which may hold separators, line breaks and, "
        "doubled, quotes. none: a character as any other. auto: as double, but lines that are joined and are rows by "
        "themselves are refused.",
        default="auto",
    )
    max_row_bytes: int = param(
        "Most bytes that one row of the data may have; a file with a larger one is refused.",
        default=MAX_ROW_BYTES,
        ge=1,
    )
    max_compression_ratio: int = param(
        "How many times its size a compressed file may decompress to, if that is more than 4 MiB.",
        default=MAX_COMPRESSION_RATIO,
        ge=1,
    )
    allow_outside: bool = param(
        "Read data that lies outside of the given folder, where an MLTable names it or links in the folder lead to it.",
        default=False,
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

    def limits(self) -> DataLimits:
        """What of the data is taken for a mistake."""
        return DataLimits(
            max_row_bytes=self.max_row_bytes,
            max_compression_ratio=self.max_compression_ratio,
            allow_outside=self.allow_outside,
        )
