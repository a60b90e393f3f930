"""Text classification: one sentence or a pair of them; one label, or several."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tuneport.encoding.base_model import BaseModel
from tuneport.encoding.prompts import around
from tuneport.errors import UserError, excerpt
from tuneport.json_yaml import parse_json
from tuneport.labels import Spellings, may_be, ordered_as
from tuneport.metrics import classification
from tuneport.metrics.metric import choices, training_scores
from tuneport.modeling.batches import collator
from tuneport.modeling.heads import load_with_labels
from tuneport.modeling.onnx_model import ExportFormatsParams
from tuneport.parameters import LabelParams
from tuneport.serving.text_classifier import TextClassifier
from tuneport.step import Params, param
from tuneport.tasks.task import Columns, Drop, Encoder, Meta, Row, ShownAnswer, Split, Task, TaskData

if t.TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tuneport.encoding.fast_tokenizer import FastTokenizer
    from tuneport.metrics.scores import Evaluation


class TextClassificationColumns(LabelParams):
    """Text classification columns."""

    sentence1_key: str = param("Column that holds the text, or the first text of a pair.")
    sentence2_key: str | None = param("Column that holds the second text of a pair.", default=None)
    label_key: str = param("Column that holds the label.")
    multi_label: bool = param("Whether a row has a list of labels (in CSV and TSV: JSON in the cell).", default=False)


class TextClassificationMetric(Params):
    """Best model."""

    metric_for_best_model: str = param(
        "Validation metric that decides which checkpoint is the best one.",
        default="loss",
        choices=choices(classification.METRICS),
    )


class TextClassificationEvaluation(Params):
    """Text classification evaluation."""

    trivial_baselines: bool = param(
        "Also score the majority class and a TF-IDF logistic regression fitted on the training split.", default=True
    )


class TextClassification(Task):
    """Fields of a row: ``sentence1``, ``sentence2`` (for pairs) and ``label``, a list of them with ``multi_label``."""

    name = "text_classification"
    reads_rows_apart = True
    params: t.ClassVar = {
        "preprocess": TextClassificationColumns,
        "finetune": TextClassificationMetric,
        "model_export": ExportFormatsParams,
        "model_evaluation": TextClassificationEvaluation,
    }
    scored_by = classification.METRICS
    architectures = ("AutoModelForSequenceClassification",)
    predictor = TextClassifier

    def columns(self, options: TextClassificationColumns) -> dict[str, str]:
        second = {"sentence2": options.sentence2_key} if options.sentence2_key is not None else {}
        return {"sentence1": options.sentence1_key, **second, "label": options.label_key}

    def row_schema(self, options: TextClassificationColumns) -> pa.Schema:
        import pyarrow as pa

        label = pa.list_(pa.string()) if options.multi_label else pa.string()
        return pa.schema([(field, label if field == "label" else pa.string()) for field in self.columns(options)])

    def reader(self, options: TextClassificationColumns) -> Callable[[Mapping[str, t.Any], str], Row]:
        columns = self.columns(options)
        texts = {field: column for field, column in columns.items() if field != "label"}
        first_kind: list[str] = []

        def check_kind(value: t.Any, where: str) -> str:
            kind = _kind(value, where, options.label_key)
            if not first_kind:
                first_kind.append(kind)
            if kind != first_kind[0]:
                raise UserError(
                    f"{where}: column '{options.label_key}' holds {kind} {excerpt(value)}, but earlier rows hold "
                    f"{first_kind[0]}; expected one type of label. Write all labels as text or all as numbers."
                )
            return str(value).lower() if kind == "true or false" else str(value)

        def read(raw: Mapping[str, t.Any], where: str) -> Row:
            row: Row = {}
            for field, column in texts.items():
                value = raw.get(column)
                if value is None:
                    raise Drop(f"null in column '{column}'")
                if not isinstance(value, str):
                    raise UserError(f"{where}: column '{column}' holds {excerpt(value)}; expected text.")
                if not value.strip():
                    raise Drop(f"empty text in column '{column}'")
                row[field] = value
            row["label"] = _read_label(raw.get(options.label_key), where, options, check_kind)
            return row

        return read

    def identity(self, row: Row) -> str:
        return "\0".join(row[field] for field in ("sentence1", "sentence2") if field in row)

    def labels(self, row: Row) -> list[str]:
        label = row["label"]
        return label if isinstance(label, list) else [label]

    def spelt(self, row: Row, spellings: Spellings) -> Row:
        label = row["label"]
        if isinstance(label, str) and label in spellings.same:
            return row
        row["label"] = sorted(set(map(spellings, label))) if isinstance(label, list) else spellings(label)
        if "" in self.labels(row):
            raise Drop("a label without a visible character")
        return row

    def describe(
        self,
        data: TaskData,
        base: BaseModel,
        options: TextClassificationColumns,
    ) -> Meta:
        labels = _order(data.labels["train"])
        if len(labels) < 2:
            raise UserError(
                f"column '{options.label_key}' holds {len(labels)} label(s) in the training rows "
                f"({', '.join(labels)}); expected at least two. A classifier needs rows of several classes."
            )
        for split in ("validation", "test"):
            if unseen := [label for label in _order(data.labels[split]) if label not in data.labels["train"]]:
                raise UserError(
                    f"column '{options.label_key}': the label(s) {', '.join(map(repr, unseen))} are in the {split} "
                    f"rows but in no training row; training rows have: {', '.join(labels)}. "
                    f"Add training rows of that label, or drop it.{may_be(unseen, labels)}"
                )
        labels = ordered_as(labels, base.config.get("label2id") or {})  # a head for them may be there
        return {"labels": labels, "multi_label": options.multi_label}

    def encoded_schema(self, meta: Meta, options: TextClassificationColumns) -> pa.Schema:
        import pyarrow as pa

        pair = [("token_type_ids", pa.list_(pa.int8()))] if options.sentence2_key is not None else []
        labels = pa.list_(pa.float32()) if meta["multi_label"] else pa.int64()
        return pa.schema([("input_ids", pa.list_(pa.int32())), *pair, ("labels", labels)])

    def encoder(self, tokenizer: Tokenizer, meta: Meta, options: TextClassificationColumns) -> Encoder:
        from tuneport.encoding.token_ids import TokenIds

        pair = options.sentence2_key is not None

        def encode(rows: Sequence[Row]) -> Columns:
            texts = [(row["sentence1"], row["sentence2"]) if pair else row["sentence1"] for row in rows]
            encodings = tokenizer.encode_batch_fast(texts)  # without offsets
            columns = {
                "input_ids": TokenIds.of([e.ids for e in encodings]).column(),
                "labels": self._label_ids(rows, meta),
                "truncated": [bool(e.overflowing) for e in encodings],
            }
            return columns | ({"token_type_ids": [e.type_ids for e in encodings]} if pair else {})

        return encode

    def fast_encoder(self, tokenizer: FastTokenizer, meta: Meta, options: TextClassificationColumns) -> Encoder:
        from tuneport.encoding.token_ids import surround

        if options.sentence2_key is not None:
            return self._fast_pair_encoder(tokenizer, meta)
        prefix, suffix = around(tokenizer.tokenizer)
        room = tokenizer.max_length - len(prefix) - len(suffix)

        def encode(rows: Sequence[Row]) -> Columns:
            ids = tokenizer([row["sentence1"] for row in rows])
            kept = ids.cut(room, start=tokenizer.cuts_start)
            return {
                "input_ids": surround(prefix, kept, suffix).column(),
                "labels": self._label_ids(rows, meta),
                "truncated": ids.lengths > room,
            }

        return encode

    def _fast_pair_encoder(self, tokenizer: FastTokenizer, meta: Meta) -> Encoder:
        from tuneport.encoding.pairs import PairEncoder

        pairs = PairEncoder(tokenizer.tokenizer, tokenizer)

        def encode(rows: Sequence[Row]) -> Columns:
            ids, types, cut = pairs([row["sentence1"] for row in rows], [row["sentence2"] for row in rows])
            columns = {"input_ids": ids.column(), "token_type_ids": types.column()}
            return columns | {"labels": self._label_ids(rows, meta), "truncated": cut}

        return encode

    def _label_ids(self, rows: Sequence[Row], meta: Meta) -> list[t.Any]:
        index = {label: i for i, label in enumerate(meta["labels"])}
        if not meta["multi_label"]:
            return [index[row["label"]] for row in rows]
        return [[float(label in row["label"]) for label in index] for row in rows]

    def load_model(self, folder: Path, meta: Meta, *, new_head: bool = True, **loading: t.Any) -> t.Any:
        kind = "multi_label_classification" if meta["multi_label"] else "single_label_classification"
        return load_with_labels(self.architectures[0], folder, meta["labels"], kind, new_head=new_head, **loading)

    def collator(self, model: t.Any, meta: Meta, pad_to: int | None) -> Callable[[list[Row]], dict[str, t.Any]]:
        return collator(model, pad_to, {}, per_row=["labels"])

    def reduce(self, logits: t.Any, labels: t.Any, meta: Meta) -> t.Any:
        return logits[0] if isinstance(logits, tuple) else logits  # encoder–decoders return the encoder's states, too

    def compute_metrics(self, meta: Meta) -> Callable[[t.Any], dict[str, float]]:
        def compute(prediction: t.Any) -> dict[str, float]:
            logits, truth = prediction.predictions, prediction.label_ids
            rows = classification.ClassifiedRows.of_logits(logits, truth, meta["labels"], meta["multi_label"])
            return training_scores(classification.METRICS, rows)

        return compute

    def serving_schema(self, fields: Iterable[str], meta: Meta) -> tuple[pa.Schema, pa.Schema]:
        import pyarrow as pa

        label, score = (pa.string(), pa.float64())
        if meta["multi_label"]:
            label, score = (pa.list_(label), pa.list_(score))
        inputs = pa.schema([(field, pa.string()) for field in fields if field != "label"])
        return inputs, pa.schema([("label", label), ("score", score), ("scores", pa.map_(pa.string(), pa.float64()))])

    def evaluate(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, seed: int) -> Evaluation:
        truth = [row["label"] for row in rows]
        return classification.evaluate(truth, answers, meta["labels"], meta["multi_label"], seed)

    def baselines(
        self, train: Split, test: Split, meta: Meta, options: TextClassificationEvaluation
    ) -> dict[str, list[Row]]:
        if not options.trivial_baselines:
            return {}
        fitted_on = classification.spread(train.rows)
        return classification.baselines(
            [self.identity(row).replace("\0", " \n ") for row in fitted_on],
            [row["label"] for row in fitted_on],
            [self.identity(row).replace("\0", " \n ") for row in test.rows],
            meta["labels"],
            meta["multi_label"],
            of_all=len(fitted_on) == len(train.rows),
        )

    def short(self, answer: Row) -> Row:
        return {"label": answer["label"], "score": answer["score"]}

    def shown(self, row: Row, answer: Row, base: Row) -> ShownAnswer:
        return ShownAnswer(
            texts=tuple(self.identity(row).split("\0")),
            truth=_joined(self.labels(row)),
            predicted=_joined(answer["label"]),
            score=_joined(answer["score"]),
            base=_joined(base["label"]),
        )

    def confidences(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta) -> tuple[list[float], list[bool]]:
        if not meta["multi_label"]:
            return [a["score"] for a in answers], [a["label"] == r["label"] for r, a in zip(rows, answers, strict=True)]
        pairs = [
            (score, label in row["label"])
            for row, answer in zip(rows, answers, strict=True)
            for label, score in answer["scores"].items()
        ]
        return [score for score, _ in pairs], [hit for _, hit in pairs]


def _joined(value: t.Any) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values) or "none"


def _kind(value: t.Any, where: str, column: str) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, str):
        return "text"
    raise UserError(
        f"{where}: column '{column}' holds {excerpt(value)}; expected a label: text, a whole number, true or false."
    )


def _read_label(
    value: t.Any, where: str, options: TextClassificationColumns, check: Callable[[t.Any, str], str]
) -> t.Any:
    column = options.label_key
    if value is None or value == "":
        raise Drop(f"null in column '{column}'")
    if not options.multi_label:
        if isinstance(value, (list, tuple)):
            raise UserError(
                f"{where}: column '{column}' holds a list {excerpt(value)}; expected one label. Set multi_label=true."
            )
        return check(value, where)
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            value = None
    if not isinstance(value, (list, tuple)):
        raise UserError(
            f'{where}: column \'{column}\' holds no list; expected a list of labels, as in ["a", "b"], '
            "as multi_label=true."
        )
    if None in value:
        raise Drop(f"null in the list in column '{column}'")
    return sorted({check(label, where) for label in value})


def _order(labels: Mapping[str, int]) -> list[str]:
    """Sorted as numbers where all are numbers, else as text."""
    numbers = all(label.lstrip("-").isdecimal() for label in labels)
    return sorted(labels, key=int if numbers else str)
