"""Extractive question answering: the span of a context that answers a question, or that there is none."""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tuneport.encoding.base_model import BaseModel
from tuneport.errors import UserError, excerpt
from tuneport.json_yaml import parse_json
from tuneport.metrics import spans
from tuneport.metrics.metric import choices, training_scores
from tuneport.modeling import pretrained
from tuneport.modeling.batches import collator
from tuneport.modeling.onnx_model import ExportFormatsParams
from tuneport.serving.question_answerer import QuestionAnswerer, QuestionWindows
from tuneport.step import Params, param
from tuneport.tasks.task import Columns, Drop, Encoder, Mark, Meta, Refuse, Row, ShownAnswer, Split, Task, TaskData

if t.TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tuneport.metrics.scores import Evaluation

ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"
PROBE = "ann met bob in paris"
SHOWN_AROUND = 200  # characters of the context that are shown on either side of an answer


class QuestionAnsweringColumns(Params):
    """Question answering columns."""

    question_key: str = param("Column that holds the question.")
    context_key: str = param("Column that holds the text in which the answer stands.")
    answers_key: str = param(
        "Column that holds the answers, of which training takes the first: an object of two lists, both empty where "
        "the context holds no answer (in CSV and TSV: JSON in the cell)."
    )
    answer_start_key: str = param(
        "Name, in the answers, of the list of the characters at which the answers start in the context.",
        default="answer_start",
    )
    answer_text_key: str = param("Name, in the answers, of the list of their texts.", default="text")
    doc_stride: int = param(
        "Overlap, in tokens, between neighbouring windows of a context that is longer than max_seq_length.",
        default=128,
        ge=0,
    )


class QuestionAnsweringMetric(Params):
    """Best model."""

    metric_for_best_model: str = param(
        "Validation metric that decides which checkpoint is the best one: f1 and exact are of whole answers, as "
        "SQuAD 2.0 counts them.",
        default="loss",
        choices=choices(spans.METRICS),
    )


class QuestionAnsweringAnswers(Params):
    """Answers to questions."""

    n_best_size: int = param(
        "Likeliest spans that are kept of each window, and of the row; scores are shares among them.", default=20, ge=1
    )
    max_answer_length_in_tokens: int = param("Longest answer in tokens.", default=30, ge=1)


class QuestionAnsweringExport(QuestionAnsweringAnswers, ExportFormatsParams):
    """Export of answers to questions."""


class QuestionAnsweringEvaluation(QuestionAnsweringAnswers):
    """Question answering evaluation."""

    trivial_baselines: bool = param(
        "Also score the first sentence of the context and, where training rows have no answer, no answer at all.",
        default=True,
    )


class QuestionAnswering(Task):
    """Fields of a row: ``question``, ``context``, and two lists, ``answer_texts`` and ``answer_starts``."""

    name = "question_answering"
    reads_rows_apart = True
    params: t.ClassVar = {
        "preprocess": QuestionAnsweringColumns,
        "finetune": QuestionAnsweringMetric,
        "model_export": QuestionAnsweringExport,
        "model_evaluation": QuestionAnsweringEvaluation,
    }
    scored_by = spans.METRICS
    architectures = ("AutoModelForQuestionAnswering",)
    predictor = QuestionAnswerer
    scores_labels = False
    label_names = ("start_positions", "end_positions")

    def columns(self, options: QuestionAnsweringColumns) -> dict[str, str]:
        return {"question": options.question_key, "context": options.context_key, "answers": options.answers_key}

    def row_schema(self, options: QuestionAnsweringColumns) -> pa.Schema:
        import pyarrow as pa

        answers = [("answer_texts", pa.list_(pa.string())), ("answer_starts", pa.list_(pa.int64()))]
        return pa.schema([("question", pa.string()), ("context", pa.string()), *answers])

    def reader(self, options: QuestionAnsweringColumns) -> Callable[[Mapping[str, t.Any], str], Row]:
        def read(raw: Mapping[str, t.Any], where: str) -> Row:
            question = _read_text(raw.get(options.question_key), where, options.question_key)
            context = _read_text(raw.get(options.context_key), where, options.context_key)
            texts, starts = _read_answers(raw.get(options.answers_key), where, options)
            for text, start in zip(texts, starts, strict=True):
                if start < 0 or not context.startswith(text, start):
                    raise Refuse(
                        f"an answer in column '{options.answers_key}' is not in the context; expected its "
                        f"'{options.answer_text_key}' at the character '{options.answer_start_key}' of column "
                        f"'{options.context_key}', counted from 0",
                        _misplaced(text, start, context),
                    )
            return {"question": question, "context": context, "answer_texts": texts, "answer_starts": starts}

        return read

    def identity(self, row: Row) -> str:
        return f"{row['question']}\0{row['context']}"

    def labels(self, row: Row) -> list[str]:
        return [ANSWERABLE if row["answer_texts"] else UNANSWERABLE]

    def describe(self, data: TaskData, base: BaseModel, options: QuestionAnsweringColumns) -> Meta:
        windows = QuestionWindows(base.tokenizer, base.max_seq_length, options.doc_stride)
        if windows.longest_question < windows.room // 4:
            raise UserError(
                f"doc_stride={options.doc_stride}: is too large for max_seq_length={base.max_seq_length}: it leaves "
                "the question under a quarter of the window; expected at most "
                f"{windows.room - windows.room // 4 - 1}. Set doc_stride={windows.room // 4}, or raise max_seq_length."
            )
        if not _has_offsets(windows):
            raise UserError(
                "the base model's tokenizer does not tell which characters its tokens stand for, so that answers "
                f"cannot be found in a context: of {PROBE!r} it finds no single words again. Choose another base model."
            )
        if ANSWERABLE not in data.labels["train"]:
            raise UserError(
                f"column '{options.answers_key}': no training row has an answer; expected some that do. "
                "Add rows with answers."
            )
        return {
            "max_seq_length": base.max_seq_length,
            "doc_stride": options.doc_stride,
            "unanswerable": UNANSWERABLE in data.labels["train"],
        }

    def encoded_schema(self, meta: Meta, options: QuestionAnsweringColumns) -> pa.Schema:
        import pyarrow as pa

        tokens = [("input_ids", pa.list_(pa.int32())), ("token_type_ids", pa.list_(pa.int8()))]
        return pa.schema([*tokens, ("start_positions", pa.int64()), ("end_positions", pa.int64())])

    def encoder(self, tokenizer: Tokenizer, meta: Meta, options: QuestionAnsweringColumns) -> Encoder:
        windows = QuestionWindows(tokenizer, meta["max_seq_length"], meta["doc_stride"])

        def encode(rows: Sequence[Row]) -> Columns:
            names = ("input_ids", "token_type_ids", "start_positions", "end_positions", "truncated", "lost", "row")
            columns: dict[str, list[t.Any]] = {name: [] for name in names}
            read = windows([row["question"] for row in rows], [row["context"] for row in rows])
            for i, (row, (cut, found)) in enumerate(zip(rows, read, strict=True)):
                places = [_tokens_of_answer(row, spans) for *_, spans in found]
                lost = bool(row["answer_texts"]) and not any(places)  # the answer fits in no window
                for (ids, types, first, _), place in zip(found, places, strict=True):
                    start, end = (first + place[0], first + place[1]) if place else (0, 0)
                    for name, value in zip(names, (ids, types, start, end, cut or lost, lost, i), strict=True):
                        columns[name].append(value)
            return columns

        return encode

    def load_model(self, folder: Path, meta: Meta, *, new_head: bool = True, **loading: t.Any) -> t.Any:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder)
        config.num_labels = 2  # start and end; a base model with another head may have more
        loading = {"dtype": "float32", **loading, "config": config, "new_head": new_head}
        model = pretrained.load(self.architectures[0], folder, **loading)
        model.register_forward_hook(leave_out_padding, with_kwargs=True)
        return model

    def collator(self, model: t.Any, meta: Meta, pad_to: int | None) -> Callable[[list[Row]], dict[str, t.Any]]:
        return collator(model, pad_to, {}, per_row=self.label_names)

    def reduce(self, logits: t.Any, labels: t.Any, meta: Meta) -> t.Any:
        return logits[0][:, :1]  # windows are not scored: `score` scores whole answers

    def compute_metrics(self, meta: Meta) -> Callable[[t.Any], dict[str, float]]:
        return lambda prediction: {}

    def needs_answers(self, metric_for_best_model: str) -> bool:
        return True

    def score(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, options: t.Any = None) -> dict[str, float]:
        truth, predicted = [row["answer_texts"] for row in rows], [answer["answer"] for answer in answers]
        return training_scores(spans.METRICS, spans.AnsweredRows.of(truth, predicted))

    def settings(self, meta: Meta, options: t.Any) -> Row:
        ports = QuestionAnsweringAnswers.ports().items()
        return {**meta, "params": {name: getattr(options, name, port.default) for name, port in ports}}

    def serving_schema(self, fields: Iterable[str], meta: Meta) -> tuple[pa.Schema, pa.Schema]:
        import pyarrow as pa

        answer = [("answer", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("score", pa.float64())]
        inputs = pa.schema([("question", pa.string()), ("context", pa.string())])
        return inputs, pa.schema([*answer, ("n_best", pa.list_(pa.struct(answer)))])

    def evaluate(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, seed: int) -> Evaluation:
        return spans.evaluate([row["answer_texts"] for row in rows], answers, seed)

    def baselines(
        self, train: Split, test: Split, meta: Meta, options: QuestionAnsweringEvaluation
    ) -> dict[str, list[Row]]:
        if not options.trivial_baselines:
            return {}
        return spans.baselines([row["context"] for row in test.rows], meta["unanswerable"])

    def short(self, answer: Row) -> Row:
        return {"answer": answer["answer"], "score": answer["score"]}

    def shown(self, row: Row, answer: Row, base: Row) -> ShownAnswer:
        """The question, and of the context what is around the true answer or else the predicted one."""
        place = row["answer_starts"][0] if row["answer_starts"] else max(0, answer["start"])
        start, end = max(0, place - SHOWN_AROUND), place + SHOWN_AROUND
        excerpt = f"{'…' * (start > 0)}{row['context'][start:end]}{'…' * (end < len(row['context']))}"
        return ShownAnswer(
            texts=(row["question"], excerpt),
            truth=" | ".join(dict.fromkeys(row["answer_texts"])) or "no answer",
            predicted=answer["answer"] or "no answer",
            score=f"{answer['score']:.3f}",
            base=base["answer"] or "no answer",
            marks=_marked(row, answer, offset=start - (start > 0), most=len(excerpt)),
        )


def _marked(row: Row, answer: Row, *, offset: int, most: int) -> tuple[Mark, ...]:
    """Where the true answer and the predicted one stand in an excerpt of the context, the second of the two texts.

    ``offset``: the context's character with which the excerpt begins; ``most``: the excerpt's length.
    """
    true = set()
    for start, text in zip(row["answer_starts"][:1], row["answer_texts"][:1], strict=True):
        true = set(range(start - offset, start - offset + len(text)))
    found = range(answer["start"] - offset, answer["end"] - offset) if answer["answer"] else range(0)
    kinds = dict.fromkeys(true, "lacking") | {i: "right" if i in true else "added" for i in found}
    marks: list[Mark] = []
    for i in sorted(i for i in kinds if 0 <= i < most):
        kind = t.cast(t.Literal["right", "lacking", "added"], kinds[i])
        if marks and marks[-1].end == i and marks[-1].kind == kind:
            marks[-1] = dataclasses.replace(marks[-1], end=i + 1)
        else:
            marks.append(Mark(text=1, start=i, end=i + 1, kind=kind))
    return tuple(marks)


def leave_out_padding(model: t.Any, args: t.Any, inputs: dict[str, t.Any], output: t.Any) -> t.Any:
    """After a forward pass: no answer begins or ends at padding, so that a loss is the same whatever the padding.

    transformers' models take all places of a batch for possible ones.
    """
    import torch

    if inputs.get("attention_mask") is None:
        return output
    padding, losses = inputs["attention_mask"] == 0, []
    for kind in ("start", "end"):
        logits = output[f"{kind}_logits"].float().masked_fill(padding, torch.finfo(torch.float32).min)
        output[f"{kind}_logits"] = logits
        if inputs.get(f"{kind}_positions") is not None:
            losses.append(torch.nn.functional.cross_entropy(logits, inputs[f"{kind}_positions"]))
    if losses:
        output["loss"] = sum(losses) / len(losses)
    return output


def _tokens_of_answer(row: Row, spans: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first and last token of a row's first answer in a window, None where that does not hold all of it."""
    if not row["answer_texts"] or not spans:
        return None
    text, start = row["answer_texts"][0], row["answer_starts"][0]
    start, end = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
    if spans[0][0] > start or spans[-1][1] < end:
        return None
    first = next(i for i, (_, to) in enumerate(spans) if to > start)
    last = next(i for i in reversed(range(len(spans))) if spans[i][0] < end)
    return (first, last) if first <= last else None


def _has_offsets(windows: QuestionWindows) -> bool:
    """Whether the words of the probe are found again by the offsets of their tokens."""
    offsets, end = windows.tokenizer.encode(PROBE, add_special_tokens=False).offsets, 0
    for word in PROBE.split():
        start = PROBE.index(word, end)
        end = start + len(word)
        spans = [span for span in offsets if span[0] < end and span[1] > start]
        if not spans or PROBE[spans[0][0] : spans[-1][1]].strip() != word:
            return False
    return True


def _read_text(value: t.Any, where: str, column: str) -> str:
    if value is None:
        raise Drop(f"null in column '{column}'")
    if not isinstance(value, str):
        raise UserError(f"{where}: column '{column}' holds {excerpt(value)}; expected text.")
    if not value.strip():
        raise Drop(f"empty text in column '{column}'")
    return value


def _read_answers(value: t.Any, where: str, options: QuestionAnsweringColumns) -> tuple[list[str], list[int]]:
    column, names = options.answers_key, (options.answer_text_key, options.answer_start_key)
    if value is None:
        raise Drop(f"null in column '{column}'")
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            value = None
    lists: list[t.Any] = [value.get(name) for name in names] if isinstance(value, Mapping) else []
    if not lists or not all(isinstance(found, (list, tuple)) for found in lists):
        held = f"an object of {', '.join(map(repr, value)) or 'nothing'}" if isinstance(value, Mapping) else "no object"
        raise UserError(
            f"{where}: column '{column}' holds {held}; expected an object of the lists '{names[0]}' and '{names[1]}', "
            f'in CSV and TSV as JSON in the cell: {{"{names[0]}": ["a"], "{names[1]}": [0]}}. Name them by '
            "answer_text_key and answer_start_key."
        )
    texts, starts = lists
    if len(texts) != len(starts):
        raise Refuse(
            f"the lists '{names[0]}' and '{names[1]}' in column '{column}' differ in length; expected one start a text",
            f"{len(texts)} texts, {len(starts)} starts",
        )
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise UserError(
                f"{where}: column '{column}' holds the answer {excerpt(text)} at {excerpt(start)}; expected text at a "
                "whole number."
            )
        if not text.strip():
            raise Drop(f"an empty answer in column '{column}'")
    return list(texts), list(starts)


def _misplaced(text: str, start: int, context: str) -> str:
    found = context.find(text)
    where = f"it is at {found}" if found >= 0 else "it is nowhere"
    return f"{text[:40]!r} at {start}: {where}"
