"""Token classification: one tag a word: entities by IOB2 tags, or parts of speech and the like by plain tags."""

from __future__ import annotations

import json
import re
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tuneport.encoding.base_model import BaseModel
from tuneport.errors import UserError, excerpt
from tuneport.json_yaml import parse_json
from tuneport.labels import IGNORED, Spellings, may_be, normal, ordered_as
from tuneport.metrics import tagging
from tuneport.metrics.metric import choices, training_scores
from tuneport.modeling.batches import collator
from tuneport.modeling.heads import load_with_labels
from tuneport.modeling.onnx_model import ExportFormatsParams
from tuneport.parameters import LabelParams
from tuneport.serving.token_classifier import TokenClassifier
from tuneport.step import Params, param
from tuneport.tasks.task import Columns, Drop, Encoder, Mark, Meta, Refuse, Row, ShownAnswer, Split, Task, TaskData

if t.TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tuneport.encoding.fast_tokenizer import FastTokenizer
    from tuneport.encoding.token_ids import ToIds
    from tuneport.metrics.scores import Evaluation

CONTINUED = -101  # and downwards: the label 0, 1, … of a word's further sub-words; learnt, but not scored
WORD_SEPARATOR = "\x1f"


class TokenClassificationColumns(LabelParams):
    """Token classification columns."""

    token_key: str = param("Column that holds the list of words (in CSV and TSV: JSON in the cell).")
    tag_key: str = param("Column that holds the list of tags, one a word (in CSV and TSV: JSON in the cell).")
    label_all_tokens: bool = param(
        "Whether every sub-word of a word learns its tag, not the first one only.", default=False
    )


class TokenClassificationMetric(Params):
    """Best model."""

    metric_for_best_model: str = param(
        "Validation metric that decides which checkpoint is the best one: accuracy is of words; the others are of "
        "entities (seqeval) with IOB2 tags, else macro averages over tags.",
        default="loss",
        choices=choices(tagging.METRICS),
    )


class TokenClassificationEvaluation(Params):
    """Token classification evaluation."""

    trivial_baselines: bool = param(
        "Also score the most frequent tag, and the most frequent tag of each word, in the training split.", default=True
    )


class TokenClassification(Task):
    """Fields of a row: ``tokens``, a list of words, and ``tags``, as many tags."""

    name = "token_classification"
    reads_rows_apart = True
    params: t.ClassVar = {
        "preprocess": TokenClassificationColumns,
        "finetune": TokenClassificationMetric,
        "model_export": ExportFormatsParams,
        "model_evaluation": TokenClassificationEvaluation,
    }
    scored_by = tagging.METRICS
    architectures = ("AutoModelForTokenClassification",)
    predictor = TokenClassifier

    def columns(self, options: TokenClassificationColumns) -> dict[str, str]:
        return {"tokens": options.token_key, "tags": options.tag_key}

    def row_schema(self, options: TokenClassificationColumns) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([("tokens", pa.list_(pa.string())), ("tags", pa.list_(pa.string()))])

    def reader(self, options: TokenClassificationColumns) -> Callable[[Mapping[str, t.Any], str], Row]:
        first: dict[bool, tuple[str, str]] = {}  # by whether it is IOB: the first tag of that kind, and where it stands

        seen: set[str] = set()

        def check_scheme(tags: list[str], where: str) -> None:
            if seen.issuperset(tags):
                return
            for tag in map(normal, dict.fromkeys(tags)):
                if tag == "O":
                    continue
                first.setdefault(_is_iob(tag), (tag, where))
                if len(first) == 2:
                    (iob, iob_where), (plain, plain_where) = first[True], first[False]
                    raise UserError(
                        f"{where}: column '{options.tag_key}' mixes the IOB2 tag {excerpt(iob)} ({iob_where}) with "
                        f"{excerpt(plain)} ({plain_where}), which is none. Write every tag as O, B-TYPE or I-TYPE, or "
                        "none of them so."
                    )
            seen.update(tags)

        def read(raw: Mapping[str, t.Any], where: str) -> Row:
            tokens = _read_list(raw.get(options.token_key), where, options.token_key, "words")
            tags = _read_list(raw.get(options.tag_key), where, options.tag_key, "tags")
            if len(tokens) != len(tags):
                raise Refuse(
                    f"columns '{options.token_key}' and '{options.tag_key}' differ in length; expected one tag a word",
                    f"{len(tokens)} words, {len(tags)} tags",
                )
            if not tokens:
                raise Drop(f"no words in column '{options.token_key}'")
            if "" in tags:
                raise Drop(f"an empty tag in column '{options.tag_key}'")
            check_scheme(tags, where)
            return {"tokens": tokens, "tags": tags}

        return read

    def identity(self, row: Row) -> str:
        return WORD_SEPARATOR.join(row["tokens"])

    def labels(self, row: Row) -> list[str]:
        return sorted(set(row["tags"]))

    def spelt(self, row: Row, spellings: Spellings) -> Row:
        if not spellings.same.issuperset(row["tags"]):
            row["tags"] = list(map(spellings, row["tags"]))
        if "" in row["tags"]:
            raise Drop("a tag without a visible character")
        return row

    def describe(
        self,
        data: TaskData,
        base: BaseModel,
        options: TokenClassificationColumns,
    ) -> Meta:
        labels = sorted(data.labels["train"], key=lambda tag: (tag != "O", tag[2:] if _is_iob(tag) else tag, tag))
        if len(labels) < 2:
            raise UserError(
                f"column '{options.tag_key}' holds {len(labels)} tag(s) in the training rows ({', '.join(labels)}); "
                "expected at least two. A tagger needs words of several tags."
            )
        everywhere = {tag: split for split in data.labels for tag in data.labels[split] if tag != "O"}
        if len({_is_iob(tag) for tag in everywhere}) == 2:
            iob = next(tag for tag in everywhere if _is_iob(tag))
            plain = next(tag for tag in everywhere if not _is_iob(tag))
            raise UserError(
                f"column '{options.tag_key}': the {everywhere[iob]} rows hold the IOB2 tag {excerpt(iob)}, the "
                f"{everywhere[plain]} rows {excerpt(plain)}, which is none. Write every tag as O, B-TYPE or I-TYPE, or "
                "none."
            )
        for split in ("validation", "test"):
            if unseen := [tag for tag in data.labels[split] if tag not in data.labels["train"]]:
                raise UserError(
                    f"column '{options.tag_key}': the tag(s) {', '.join(map(repr, unseen))} are in the {split} rows "
                    f"but in no training row; training rows have: {', '.join(labels)}. "
                    f"Add training rows with that tag, or drop it.{may_be(unseen, labels)}"
                )
        labels = ordered_as(labels, base.config.get("label2id") or {})  # a head for them may be there
        return {"labels": labels, "iob": any(map(_is_iob, labels))}

    def encoded_schema(self, meta: Meta, options: TokenClassificationColumns) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])

    def encoder(self, tokenizer: Tokenizer, meta: Meta, options: TokenClassificationColumns) -> Encoder:
        from tuneport.encoding.token_ids import library_ids, uncut

        return self._encoder(tokenizer, library_ids(uncut(tokenizer)), meta, options)

    def fast_encoder(self, tokenizer: FastTokenizer, meta: Meta, options: TokenClassificationColumns) -> Encoder:
        return self._encoder(tokenizer.tokenizer, tokenizer, meta, options)

    def _encoder(self, tokenizer: Tokenizer, to_ids: ToIds, meta: Meta, options: TokenClassificationColumns) -> Encoder:
        from tuneport.encoding.words import WordEncoder

        encode = WordEncoder(tokenizer, to_ids)
        index = {tag: i for i, tag in enumerate(meta["labels"])}
        continued = {
            tag: CONTINUED - index[_continued(tag, index)] if options.label_all_tokens else IGNORED for tag in index
        }
        prefix = " " if '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["pre_tokenizer"]) else ""

        def encoded(rows: Sequence[Row]) -> Columns:
            tags = [tag for row in rows for tag in row["tags"]]
            found = encode(
                [[prefix + word for word in row["tokens"]] for row in rows],
                [index[tag] for tag in tags],
                [continued[tag] for tag in tags],
            )
            return found.columns()

        return encoded

    def load_model(self, folder: Path, meta: Meta, *, new_head: bool = True, **loading: t.Any) -> t.Any:
        model = load_with_labels(self.architectures[0], folder, meta["labels"], new_head=new_head, **loading)
        model.register_forward_pre_hook(_learn_continued, with_kwargs=True)
        return model

    def collator(self, model: t.Any, meta: Meta, pad_to: int | None) -> Callable[[list[Row]], dict[str, t.Any]]:
        return collator(model, pad_to, {"labels": IGNORED})

    def reduce(self, logits: t.Any, labels: t.Any, meta: Meta) -> t.Any:
        return logits.argmax(-1)

    def compute_metrics(self, meta: Meta) -> Callable[[t.Any], dict[str, float]]:
        tags = meta["labels"]

        def compute(prediction: t.Any) -> dict[str, float]:
            places = prediction.label_ids >= 0  # a word's first sub-word
            truth, predicted = (
                [[tags[i] for i in row[kept]] for row, kept in zip(ids, places, strict=True)]
                for ids in (prediction.label_ids, prediction.predictions)
            )
            rows = tagging.TaggedRows(truth=truth, predicted=predicted, labels=tags, iob=meta["iob"])
            return training_scores(tagging.METRICS, rows)

        return compute

    def serving_schema(self, fields: Iterable[str], meta: Meta) -> tuple[pa.Schema, pa.Schema]:
        import pyarrow as pa

        words = pa.dense_union([pa.field("words", pa.list_(pa.string())), pa.field("sentence", pa.string())])
        entity = [("text", pa.string()), ("label", pa.string()), ("start", pa.int64()), ("end", pa.int64())]
        entities = pa.list_(pa.struct([*entity, ("score", pa.float64())]))
        answers = [("tags", pa.list_(pa.string())), ("scores", pa.list_(pa.float64())), ("entities", entities)]
        return pa.schema([("tokens", words)]), pa.schema(answers)

    def evaluate(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, seed: int) -> Evaluation:
        return tagging.evaluate([row["tags"] for row in rows], answers, meta["labels"], meta["iob"], seed)

    def baselines(
        self, train: Split, test: Split, meta: Meta, options: TokenClassificationEvaluation
    ) -> dict[str, list[Row]]:
        if not options.trivial_baselines:
            return {}
        return tagging.baselines(train.rows, test.rows)

    def short(self, answer: Row) -> Row:
        return {"tags": answer["tags"]}

    def shown(self, row: Row, answer: Row, base: Row) -> ShownAnswer:
        """The sentence, and of its words those that are tagged wrong."""
        wrong = [i for i, (want, got) in enumerate(zip(row["tags"], answer["tags"], strict=True)) if want != got]

        def tagged(tags: list[str]) -> str:
            return ", ".join(f"{row['tokens'][i]}: {tags[i]}" for i in wrong)

        return ShownAnswer(
            texts=(" ".join(row["tokens"]),),
            truth=tagged(row["tags"]),
            predicted=tagged(answer["tags"]),
            score=", ".join(f"{answer['scores'][i]:.3f}" for i in wrong),
            base=tagged(base["tags"]),
            marks=_marked(row["tokens"], row["tags"], answer["tags"]),
        )


def _marked(words: Sequence[str], true: Sequence[str], predicted: Sequence[str]) -> tuple[Mark, ...]:
    """Each word with a tag other than O, in the words joined by spaces, and what of its two tags is right."""
    marks, at = list[Mark](), 0
    for word, want, got in zip(words, true, predicted, strict=True):
        if (want, got) != ("O", "O"):
            kind: t.Literal["right", "lacking", "added"] = (
                "right" if want == got else "lacking" if got == "O" else "added"
            )
            label = want if want == got else f"{want} → {got}"
            marks.append(Mark(text=0, start=at, end=at + len(word), kind=kind, label=label))
        at += len(word) + 1
    return tuple(marks)


def _is_iob(tag: str) -> bool:
    return re.fullmatch(r"[BI]-.+", tag, re.DOTALL) is not None


def _continued(tag: str, known: Mapping[str, int]) -> str:
    """The tag of a word's further sub-words: inside the entity that the word begins, where there is such a tag."""
    inside = f"I-{tag[2:]}"
    return inside if tag.startswith("B-") and inside in known else tag


def _learn_continued(model: t.Any, args: t.Any, inputs: dict[str, t.Any]) -> tuple[t.Any, dict[str, t.Any]]:
    """Before a forward pass: to the loss all sub-words have plain labels; the metrics tell the first ones."""
    labels = inputs.get("labels")
    if labels is None:
        return args, inputs
    return args, {**inputs, "labels": labels.where(labels > CONTINUED, CONTINUED - labels)}


def _read_list(value: t.Any, where: str, column: str, wanted: str) -> list[str]:
    if value is None:
        raise Drop(f"null in column '{column}'")
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            value = None
    if not isinstance(value, (list, tuple)):
        raise UserError(
            f"{where}: column '{column}' holds no list; expected a list of {wanted}, "
            'in CSV and TSV as JSON in the cell: ["a", "b"].'
        )
    for entry in value:
        if entry is None:
            raise Drop(f"null in the list in column '{column}'")
        if not isinstance(entry, (str, int, float)):
            raise UserError(f"{where}: column '{column}' holds the entry {excerpt(entry)}; expected {wanted} as text.")
    return [str(entry) for entry in value]
