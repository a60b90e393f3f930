"""Text generation: a decoder learns to go on like the rows' texts, or from a prompt to its completion."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence

from tuneport.encoding.base_model import BaseModel
from tuneport.encoding.prompts import PLACEHOLDER, check_end, joined, vocabulary_size
from tuneport.serving.text_generator import TextGenerator
from tuneport.step import Params, param
from tuneport.tasks._generation import CompletionTask
from tuneport.tasks._language_modeling import LanguageModelingTask
from tuneport.tasks.task import Columns, Drop, Encoder, Meta, Refuse, Row, TaskData, check_text

if t.TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tuneport.encoding.token_ids import ToIds

FOUND_LENGTH = 60  # characters of a wrong value that a message shows


class TextGenerationColumns(Params):
    """Text generation columns."""

    text_key: str = param("Column that holds the text, or the prompt where ground_truth_key is given.")
    ground_truth_key: str | None = param(
        "Column that holds what follows the prompt; the loss is on it alone. Unset: on all of the text.", default=None
    )


class TextGeneration(CompletionTask, LanguageModelingTask):
    """Fields of a row: ``text`` and, with ``ground_truth_key``, ``ground_truth``, which follows it."""

    name = "text_generation"
    reads_rows_apart = True
    params: t.ClassVar = {"preprocess": TextGenerationColumns, **LanguageModelingTask.params}
    predictor = TextGenerator

    def columns(self, options: TextGenerationColumns) -> dict[str, str]:
        truth = {"ground_truth": options.ground_truth_key} if options.ground_truth_key is not None else {}
        return {"text": options.text_key, **truth}

    def row_schema(self, options: TextGenerationColumns) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([(field, pa.string()) for field in self.columns(options)])

    def reader(self, options: TextGenerationColumns) -> Callable[[Mapping[str, t.Any], str], Row]:
        columns = self.columns(options)

        def read(raw: Mapping[str, t.Any], where: str) -> Row:
            return {
                field: _text(raw.get(column), column, learnt=field == "ground_truth")
                for field, column in columns.items()
            }

        return read

    def identity(self, row: Row) -> str:
        return t.cast(str, row["text"])

    def reference(self, row: Row) -> str | None:
        return row.get("ground_truth")

    def describe(self, data: TaskData, base: BaseModel, options: TextGenerationColumns) -> Meta:
        found = self.decoding(base)
        check_end(found["target_suffix"])
        return {
            "vocabulary": vocabulary_size(base),
            "prompting": {**found, "template": PLACEHOLDER, "cut": "start"},
        }

    def completion_encoder(self, tokenizer: Tokenizer, to_ids: ToIds, settings: Meta) -> Encoder:
        from tuneport.encoding.completions import CompletionEncoder

        room = settings["max_seq_length"] - len(settings["prompt_prefix"])
        to_rows = CompletionEncoder(
            tokenizer, to_ids, settings, max_seq_length=settings["max_seq_length"], max_target_tokens=max(1, room)
        )

        def encode(rows: Sequence[Row]) -> Columns:
            prompts = [row["text"] if "ground_truth" in row else "" for row in rows]
            learnt = [row["ground_truth"] if "ground_truth" in row else row["text"] for row in rows]
            return to_rows(prompts, learnt).columns()

        return encode

    def serving_schema(self, fields: Iterable[str], meta: Meta) -> tuple[pa.Schema, pa.Schema]:
        import pyarrow as pa

        return pa.schema([("text", pa.string())]), pa.schema([("text", pa.string())])

    def asked(self, row: Row) -> Row:
        return {"text": self.texts(row)[0]}

    def texts(self, row: Row) -> tuple[str, str]:
        """A text without ground truth is asked by its first half, up to a white space where there is one."""
        text: str = row["text"]
        if "ground_truth" in row:
            return text, joined(text, row["ground_truth"])
        middle = len(text) // 2
        seam = text.rfind(" ", 1, middle + 1)
        seam = max(1, middle) if seam == -1 else seam
        return text[:seam], text[seam:]

    def written(self, answer: Row) -> str | None:
        return answer.get("text")


def _text(value: t.Any, column: str, *, learnt: bool) -> str:
    if value is None:
        raise Drop(f"null in column '{column}'")
    if not isinstance(value, str):
        raise Refuse(f"column '{column}' holds no text; expected text", repr(value)[:FOUND_LENGTH])
    if not value.strip():
        if learnt:
            raise Refuse(f"column '{column}' holds an empty completion; expected text, as nothing else is learnt")
        raise Drop(f"empty text in column '{column}'")
    check_text(value)
    return value
