"""Regression as a task of a user's own, in one file: a number from a text. `test_added_regression.py` adds it."""

from __future__ import annotations

import math
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tuneport.encoding.base_model import BaseModel
from tuneport.errors import UserError
from tuneport.metrics.metric import Headline, Metric, choices, mean, parts_of_mean, sums_of_mean, training_scores
from tuneport.metrics.scores import Evaluation, evaluated
from tuneport.modeling.batches import collator
from tuneport.modeling.heads import load_with_labels
from tuneport.serving.text_classifier import TextClassifier
from tuneport.step import Params, param
from tuneport.tasks.task import Columns, Drop, Encoder, Meta, Row, ShownAnswer, Split, Task, TaskData


@dataclass(frozen=True)
class Numbers:
    """What is true and what is answered, (rows,) each."""

    truth: np.ndarray
    answers: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, places: np.ndarray) -> Numbers:
        return Numbers(self.truth[places], self.answers[places])


def errors(rows: Numbers) -> np.ndarray:
    """(rows,): how far off each answer is."""
    return np.abs(rows.truth - rows.answers)


METRICS = (
    Metric(
        name="mae",
        title="Mean absolute error",
        compute=mean(errors),
        greater_is_better=False,
        chooses_checkpoint=True,
        main=1,
        headline=Headline(parts=parts_of_mean(errors), claim=("is off by", "by")),
        sums=sums_of_mean(errors),
    ),
)


class RegressionColumns(Params):
    """Regression columns."""

    text_key: str = param("Column that holds the text.")
    number_key: str = param("Column that holds the number.")


class RegressionMetric(Params):
    """Best model."""

    metric_for_best_model: str = param("Which checkpoint is the best one.", default="loss", choices=choices(METRICS))


class Regressor:
    """Answers rows with a number. The model learnt numbers of mean 0 and deviation 1; the settings hold theirs."""

    def __init__(self, folder: str, settings: t.Any = None, model: t.Any = None, batch_size: int = 32) -> None:
        self.reader = TextClassifier(folder, settings, model, batch_size)
        self.settings, self.batch_size = settings, batch_size

    def __call__(self, rows: t.Sequence[dict[str, t.Any]], batch_size: int | None = None) -> list[dict[str, t.Any]]:
        import torch

        found: list[float] = []
        size = batch_size or self.batch_size
        for start in range(0, len(rows), size):
            batch = self.reader._batch(self.reader._encode([[row["text"]] for row in rows[start : start + size]]))
            with torch.inference_mode():
                found += self.reader.model(**batch).logits[:, 0].float().tolist()
        return [{"number": value * self.settings["deviation"] + self.settings["mean"]} for value in found]


class Regression(Task):
    """Fields of a row: ``text`` and ``number``."""

    name = "regression"
    params: t.ClassVar = {"preprocess": RegressionColumns, "finetune": RegressionMetric}
    scored_by = METRICS
    architectures = ("AutoModelForSequenceClassification",)
    predictor = Regressor

    def columns(self, options: RegressionColumns) -> dict[str, str]:
        return {"text": options.text_key, "number": options.number_key}

    def row_schema(self, options: RegressionColumns) -> pa.Schema:
        return pa.schema([("text", pa.string()), ("number", pa.float64())])

    def reader(self, options: RegressionColumns) -> Callable[[Mapping[str, t.Any], str], Row]:
        def read(raw: Mapping[str, t.Any], where: str) -> Row:
            try:
                number = float(raw[options.number_key])
            except (TypeError, ValueError):
                raise Drop(f"no number in column '{options.number_key}'") from None
            return {"text": str(raw[options.text_key]), "number": number}

        return read

    def identity(self, row: Row) -> str:
        return str(row["text"])

    def labels(self, row: Row) -> list[str]:
        return []

    def describe(self, data: TaskData, base: BaseModel, options: RegressionColumns) -> Meta:
        values = np.concatenate([batch.to_numpy() for batch in data.training("number")])
        if not values.std():
            raise UserError(
                f"column '{options.number_key}' holds {values[0]:g} in every training row; expected several."
            )
        return {"mean": float(values.mean()), "deviation": float(values.std())}

    def encoded_schema(self, meta: Meta, options: RegressionColumns) -> pa.Schema:
        return pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.float32())])

    def encoder(self, tokenizer: t.Any, meta: Meta, options: RegressionColumns) -> Encoder:
        def encode(rows: Sequence[Row]) -> Columns:
            encodings = tokenizer.encode_batch_fast([row["text"] for row in rows])
            return {
                "input_ids": [encoding.ids for encoding in encodings],
                "labels": [(row["number"] - meta["mean"]) / meta["deviation"] for row in rows],
                "truncated": [bool(encoding.overflowing) for encoding in encodings],
            }

        return encode

    def load_model(self, folder: Path, meta: Meta, *, new_head: bool = True, **loading: t.Any) -> t.Any:
        return load_with_labels(self.architectures[0], folder, ["number"], "regression", new_head=new_head, **loading)

    def collator(self, model: t.Any, meta: Meta, pad_to: int | None) -> Callable[[list[Row]], dict[str, t.Any]]:
        return collator(model, pad_to, {}, per_row=["labels"])

    def compute_metrics(self, meta: Meta) -> Callable[[t.Any], dict[str, float]]:
        def compute(prediction: t.Any) -> dict[str, float]:
            found = Numbers(prediction.label_ids, prediction.predictions[:, 0])
            return {name: value * meta["deviation"] for name, value in training_scores(METRICS, found).items()}

        return compute

    def settings(self, meta: Meta, options: t.Any) -> Row:
        return dict(meta)

    def serving_schema(self, fields: Iterable[str], meta: Meta) -> tuple[pa.Schema, pa.Schema]:
        return pa.schema([("text", pa.string())]), pa.schema([("number", pa.float64())])

    def evaluate(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, seed: int) -> Evaluation:
        truth, found = (np.array([row["number"] for row in side]) for side in (rows, answers))
        losses = errors(Numbers(truth, found)).tolist()
        return evaluated(METRICS, Numbers(truth, found), seed, row_losses=losses, row_correct=None)

    def baselines(self, train: Split, test: Split, meta: Meta, options: t.Any) -> dict[str, list[Row]]:
        return {"mean": [{"number": meta["mean"]}] * len(test.rows)}

    def short(self, answer: Row) -> Row:
        return answer

    def shown(self, row: Row, answer: Row, base: Row) -> ShownAnswer:
        truth, predicted, other = (f"{found['number']:.4g}" for found in (row, answer, base))
        score = f"{math.fabs(row['number'] - answer['number']):.3g}"
        return ShownAnswer(texts=(row["text"],), truth=truth, predicted=predicted, score=score, base=other)
