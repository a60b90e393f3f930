"""What a task is: its columns, encoding, model, metrics and predictor."""

from __future__ import annotations

import typing as t
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneport.encoding.base_model import BaseModel
from tuneport.labels import Spellings
from tuneport.metrics.metric import AnyMetric, directions
from tuneport.step import Params

if t.TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tuneport.encoding.fast_tokenizer import FastTokenizer
    from tuneport.metrics.scores import Evaluation


SCORING = "tuneport_scoring"  # in the metadata of an exported model: what scores it by other rows

Row = dict[str, t.Any]
Columns = dict[str, t.Any]  # name -> list, numpy array or Arrow array
Encoder = Callable[[Sequence[Row]], Columns]
Meta = dict[str, t.Any]  # what a task learns from the data and later stages need, e.g. {"labels": [...]}; JSON only


class Drop(Exception):
    """This row cannot be used; the message is the reason, counted and exported by preprocess."""


def check_text(*texts: str) -> None:
    """Raise `Drop` for half a surrogate pair: JSON can spell one, but no UTF-8 text and no tokenizer can hold it."""
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise Drop("text that is not valid Unicode") from None


class Refuse(Exception):
    """This row is wrong, and with it the data: preprocess names all such rows of the source, then refuses.

    ``problem`` is the same for all rows of one kind and says what was expected; ``found`` is what this row holds.
    """

    def __init__(self, problem: str, found: str = "") -> None:
        super().__init__(problem, found)
        self.problem, self.found = problem, found


@dataclass(frozen=True)
class Split:
    """The rows of a split and, in the same order unless a row has several encodings, their encoded columns."""

    rows: Sequence[Row]
    encoded: pa.Table

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The encoded columns batch by batch; of a stored split without more of it in memory."""
        return iter(self.encoded.to_batches())


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """The data as a task sees it before its rows are encoded."""

    labels: Mapping[str, Mapping[str, int]]  # by split: how many rows have each label
    training: Callable[
        [str], Iterator[pa.Array]
    ]  # a field of `row_schema` -> its values in the training rows, streamed


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A part of a shown text, characters ``start`` to ``end`` of the ``text``-th; marks of one text do not overlap."""

    text: int
    start: int
    end: int
    kind: t.Literal["right", "lacking", "added"]  # true and predicted, true alone, predicted alone
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """A row and what models answer to it, as a person reads them in the report."""

    texts: tuple[str, ...]
    truth: str
    predicted: str
    score: str  # of what is predicted
    base: str
    marks: tuple[Mark, ...] = ()


class Predictor(t.Protocol):
    """Answers rows with a model. A task's predictor is self-contained: it imports all it needs inside its methods,
    so that its source, and that of the classes it names, serve the model without tuneport: see `tuneport.serving`.
    ``settings`` are those of `Task.settings`; a call takes their ``params`` by name, too."""

    def __init__(
        self, folder: str, settings: t.Any = None, model: t.Any = None, batch_size: int | None = None
    ) -> None: ...

    def __call__(self, rows: Sequence[Row], batch_size: int | None = None) -> list[Row]:
        """Return one JSON-able answer per row, in the order of the rows; rows hold the task's field names.

        ``batch_size``: the most rows of a batch; None: that of the construction, and by default as many as memory
        allows.

        Raises ValueError for a row that cannot be answered.
        """


class Task(ABC):
    """All that the product knows of one task; ``options`` is the step, seen through the task's own parameters."""

    name: t.ClassVar[str]
    params: t.ClassVar[Mapping[str, type[Params]]]  # by stage name: the parameters this task adds to that stage
    scored_by: t.ClassVar[Sequence[AnyMetric]]  # the records of which its choices, tables and intervals are made
    architectures: t.ClassVar[tuple[str, ...]]  # names of the transformers auto classes that load its models
    predictor: t.ClassVar[type[Predictor]]
    label_names: t.ClassVar[Sequence[str]] = ("labels",)  # what of the collator's batches a model's loss is made from
    scores_labels: t.ClassVar[bool] = True  # whether `compute_metrics` reads the label ids, beside what `reduce` kept
    likelihood: t.ClassVar[bool] = False  # whether models are also scored by how likely the encoded labels are to them
    # How benchmarks ask its models, where they can: by plain text, or by turns that a chat template writes.
    benchmarked: t.ClassVar[t.Literal["no", "text", "chat"]] = "no"

    reads_rows_apart: t.ClassVar[bool] = False  # whether processes may share the rows of a source: see `reader`

    default_metrics: t.ClassVar[str] = ""  # as the parameter ``metrics``, where a model is known by its answers alone

    @property
    def metrics(self) -> dict[str, bool]:
        """Whether greater is better, by the name of each choice of metric_for_best_model."""
        return directions(self.scored_by)

    def judged_by(self, metric_for_best_model: str, options: t.Any) -> tuple[str, bool]:
        """What chooses the best checkpoint: its name among an evaluation's scores, and whether greater is better."""
        return metric_for_best_model, self.metrics[metric_for_best_model]

    def check_options(self, options: t.Any, *, files: bool = False) -> None:  # noqa: B027 - most tasks have none
        """Raise `UserError` for values of the task's own parameters of finetune or model_evaluation that are not valid.

        ``files``: look into the user's files, too.
        """

    # -- preprocess: imports no torch ---------------------------------------------------------------------------
    @abstractmethod
    def columns(self, options: t.Any) -> dict[str, str]:
        """The user's column for each field of the task, ``{"sentence1": "text", ...}``; all must be in the data.

        Raises `UserError` where the options do not say which.
        """

    def optional_columns(self, options: t.Any) -> Sequence[str]:
        """Columns that `reader` takes where the data has them; no others than these and `columns` are read."""
        return ()

    def hint(self, columns: Sequence[str], options: t.Any) -> str:
        """What to add, from a space on, to the message that not all of `columns` are among those of the data."""
        return ""

    @abstractmethod
    def row_schema(self, options: t.Any) -> pa.Schema:
        """Types of the fields that `reader` returns."""

    @abstractmethod
    def reader(self, options: t.Any) -> Callable[[Mapping[str, t.Any], str], Row]:
        """Return a function (raw row, where) -> fields for one source; ``where`` is e.g. ``train.csv row 17``.

        A field ``notes`` beside those of `row_schema` holds what has to be said of the row, as texts that are counted.
        The function raises `Drop` for a row to leave out, `Refuse` for one that a person has to mend, and `UserError`
        where no further row can be read either. With `reads_rows_apart`, several processes may each read a part of the
        rows, by a function that has seen the first ones of all.
        """

    @abstractmethod
    def identity(self, row: Row) -> str:
        """The part of a row that makes it a duplicate of another: all inputs, no labels."""

    def reference(self, row: Row) -> str | None:
        """What a row teaches to write; None where the task writes no text.

        Rows with equal inputs and different references are several answers to one prompt, not duplicates.
        """
        return None

    @abstractmethod
    def labels(self, row: Row) -> list[str]:
        """A row's labels, for histograms and stratified splits; empty where the task has none."""

    def spelt(self, row: Row, spellings: Spellings) -> Row:
        """The row with each label written as ``spellings`` say, for tasks whose labels are the user's words.

        Raises `Drop` where a label is empty then.
        """
        return row

    @abstractmethod
    def describe(self, data: TaskData, base: BaseModel, options: t.Any) -> Meta:
        """Learn the `Meta` from the data and from the base model.

        Raises `UserError` where the task cannot be learnt from this data, or with this model.
        """

    @abstractmethod
    def encoded_schema(self, meta: Meta, options: t.Any) -> pa.Schema:
        """Types of the columns that `encoder` returns."""

    @abstractmethod
    def encoder(self, tokenizer: Tokenizer, meta: Meta, options: t.Any) -> Encoder:
        """Return a function rows -> columns: those of `encoded_schema` plus ``truncated`` (bool per encoded row).

        Four more columns are optional: ``notes`` (what has to be said of the row, texts that are counted, logged and
        put into the data report), ``trainable`` (bool: whether the encoded row has a label to learn from, True
        where there is no such column; False refuses the data), ``lost`` (bool: whether the row's label is cut off, so
        that its encoded rows are left out and counted) and ``row`` (int: which of the rows the encoded one is made
        from, where that is not one each). The tokenizer comes with truncation enabled at the right length.
        """

    def fast_encoder(self, tokenizer: FastTokenizer, meta: Meta, options: t.Any) -> Encoder | None:
        """What `encoder` returns, by a tokenizer that finds nothing but token ids, fast; None: more is needed."""
        return None

    # -- finetune and evaluation: torch, imported inside ----------------------------------------------------------
    @abstractmethod
    def load_model(self, folder: Path, meta: Meta, *, new_head: bool = True, **loading: t.Any) -> t.Any:
        """Load the model with this task's head, by `tuneport.modeling.pretrained.load`.

        ``new_head``: a head that the folder lacks is initialised from torch's seed, as before a training; False refuses
        that. ``loading`` is what from_pretrained takes besides. Raises `UserError` where any other weight is lacking.
        """

    def chat_template(self, meta: Meta) -> str | None:
        """The template that the tuned model comes with; None: the base model's own, if it has one."""
        return None

    @abstractmethod
    def collator(self, model: t.Any, meta: Meta, pad_to: int | None) -> Callable[[list[Row]], dict[str, t.Any]]:
        """Return a function encoded rows -> batch of tensors, padded to the longest row or to ``pad_to`` tokens."""

    @abstractmethod
    def compute_metrics(self, meta: Meta) -> Callable[[t.Any], dict[str, float]]:
        """Return the function that transformers' Trainer calls with predictions and label ids."""

    def reduce(self, logits: t.Any, labels: t.Any, meta: Meta) -> t.Any:
        """What `compute_metrics` needs of a batch's logits: what is returned is kept for the whole split."""
        return logits

    def reduce_losses(self, losses: t.Any) -> t.Any:
        """The same of a model that gives the losses of its labels, as `token_losses`, in the logits' place."""
        return losses

    def needs_answers(self, metric_for_best_model: str) -> bool:
        """Whether the predictor answers the validation rows at each evaluation, to add `score` to the metrics."""
        return False

    def validation_questions(self, rows: Sequence[Row], options: t.Any) -> dict[int, Row]:
        """What the predictor is asked in an evaluation of a training, by the row's place; other rows are not scored."""
        return dict(enumerate(rows))

    def validation_settings(self, meta: Meta, options: t.Any) -> Row:
        """The predictor's settings in an evaluation of a training."""
        return self.settings(meta, None)

    def score(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, options: t.Any = None) -> dict[str, float]:
        """Metrics of the predictor's answers, by the names of their records; ``options`` are those of the training."""
        return {}

    def settings(self, meta: Meta, options: t.Any) -> Row:
        """What the predictor is made with besides the model: JSON-able, by ``options`` or, for None, their defaults.

        ``params`` are those settings that a request to the served model may change: name -> value. Raises `UserError`
        where the model cannot do what the options ask for.
        """
        return {}

    @abstractmethod
    def serving_schema(self, fields: Iterable[str], meta: Meta) -> tuple[pa.Schema, pa.Schema]:
        """Types of the fields that the predictor reads, of those the data has, and types of its answers.

        A field that a client may send in several types is a union of them, one of any type JSON; one that it may leave
        out has the metadata ``{"optional": "true"}``.
        """

    def questions(self, rows: Sequence[Row], options: t.Any) -> dict[int, Row]:
        """What the predictor is asked in the evaluation, by the row's place; the answers to other rows are empty."""
        return dict(enumerate(rows))

    @abstractmethod
    def evaluate(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, seed: int) -> Evaluation:
        """Score a predictor's answers against the rows they answer."""

    def evaluate_with(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, options: t.Any) -> Evaluation:
        """The same by the metrics that the ``options`` of the evaluation ask for."""
        return self.evaluate(rows, answers, meta, options.seed)

    @abstractmethod
    def short(self, answer: Row) -> Row:
        """The part of an answer that is kept of the base model, beside the tuned model's whole one."""

    @abstractmethod
    def shown(self, row: Row, answer: Row, base: Row) -> ShownAnswer | None:
        """A row, the tuned model's answer and the base model's, as the report shows them; None: not to be shown."""

    def confidences(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta) -> tuple[list[float], list[bool]]:
        """The probabilities that answers come with, and whether each is right; empty where answers have none."""
        return [], []

    def example(self, row: Row) -> Row:
        """A row as a client of the served model would send it."""
        return row

    def baselines(self, train: Split, test: Split, meta: Meta, options: t.Any) -> dict[str, list[Row]]:
        """Answers of trivial predictors fitted on the same split, by name; none where the task has no such thing.

        ``train`` may have more rows than memory holds: go through its ``rows`` and `Split.batches`, keep none of them.
        """
        return {}
