"""What summarization and translation share: a text in, another one out."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence

from tuneport.encoding.base_model import BaseModel
from tuneport.encoding.languages import Languages, language_specials, languages
from tuneport.encoding.prompts import PLACEHOLDER, check_end, specials
from tuneport.errors import UserError, excerpt
from tuneport.metrics import answers, own, perplexity
from tuneport.metrics.metric import LOSS, AnyMetric, training_scores
from tuneport.tasks._generation import CompletionTask, evaluated_by
from tuneport.tasks.task import Drop, Encoder, Meta, Row, ShownAnswer

if t.TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tuneport.encoding.token_ids import ToIds
    from tuneport.metrics.scores import Evaluation

T5_TYPES = frozenset(["t5", "mt5", "umt5", "longt5"])


class TextPairTask(CompletionTask):
    """A row has two fields: ``source``, which the model reads, and ``target``, which it writes as ``answer``."""

    own_metrics: t.ClassVar[Sequence[AnyMetric]]  # those of the report where `metrics` asks for none
    source: t.ClassVar[str]
    reads_rows_apart = True
    target: t.ClassVar[str]
    answer: t.ClassVar[str]

    def row_schema(self, options: t.Any) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([(self.source, pa.string()), (self.target, pa.string())])

    def reader(self, options: t.Any) -> Callable[[Mapping[str, t.Any], str], Row]:
        columns = self.columns(options)

        def read(raw: Mapping[str, t.Any], where: str) -> Row:
            row: Row = {}
            for field, column in columns.items():
                value = raw.get(column)
                if value is None:
                    raise Drop(f"null in column '{column}'")
                if not isinstance(value, str):
                    raise UserError(f"{where}: column '{column}' holds {excerpt(value)}; expected text.")
                if not value.strip():
                    raise Drop(f"empty text in column '{column}'")
                row[field] = value
            return row

        return read

    def identity(self, row: Row) -> str:
        return t.cast(str, row[self.source])

    def reference(self, row: Row) -> str:
        return t.cast(str, row[self.target])

    def labels(self, row: Row) -> list[str]:
        return []

    def completion_encoder(self, tokenizer: Tokenizer, to_ids: ToIds, settings: Meta) -> Encoder:
        from tuneport.encoding.completions import CompletionEncoder

        encode = CompletionEncoder(
            tokenizer,
            to_ids,
            settings,
            max_seq_length=settings["max_seq_length"],
            max_target_tokens=settings["max_target_tokens"],
        )
        return lambda rows: encode([row[self.source] for row in rows], [row[self.target] for row in rows]).columns()

    def _answered(self, rows: Sequence[Row], given: Sequence[Row], meta: Meta, options: t.Any) -> answers.AnsweredRows:
        return answers.AnsweredRows(
            truth=[row[self.target] for row in rows],
            predicted=[answer[self.answer] for answer in given],
            raw=rows,
            total=len(rows),
            code=self.language(meta),
            likelihood=perplexity.likelihood_of(given),
            **answers.answer_parameters(options),
        )

    def language(self, meta: Meta) -> str:
        """The code of the language that is written, where it is known."""
        return ""

    def score(self, rows: Sequence[Row], given: Sequence[Row], meta: Meta, options: t.Any = None) -> dict[str, float]:
        written = self._answered(rows, given, meta, options)
        found = training_scores([m for m in self.scored_by if m.name != LOSS], written)
        return found | own.training_score(options, written)

    def evaluate_with(self, rows: Sequence[Row], given: Sequence[Row], meta: Meta, options: t.Any) -> Evaluation:
        if not options.metrics:
            return self.evaluate(rows, given, meta, options.seed)
        return evaluated_by(options, self.own_metrics, self._answered(rows, given, meta, options))

    def needs_answers(self, metric_for_best_model: str) -> bool:
        return metric_for_best_model != LOSS  # any other one is of what the model writes

    def settings(self, meta: Meta, options: t.Any) -> Row:
        found, limit = super().settings(meta, options), meta["prompting"]["max_positions"]
        most = limit if limit is None or meta["prompting"]["encoder_decoder"] else limit - 1
        if most is not None and found["params"]["max_new_tokens"] > most:
            raise UserError(
                f"max_new_tokens={found['params']['max_new_tokens']}: the model takes at most {limit} tokens; "
                f"expected <= {most}, or -1."
            )
        return found

    def serving_schema(self, fields: Iterable[str], meta: Meta) -> tuple[pa.Schema, pa.Schema]:
        import pyarrow as pa

        return pa.schema([(self.source, pa.string())]), pa.schema([(self.answer, pa.string())])

    def short(self, answer: Row) -> Row:
        return answer

    def shown(self, row: Row, answer: Row, base: Row) -> ShownAnswer:
        return ShownAnswer(
            texts=(row[self.source],),
            truth=row[self.target],
            predicted=answer[self.answer],
            score=self.row_score(row, answer),
            base=base[self.answer],
        )

    def row_score(self, row: Row, answer: Row) -> str:
        """How good one answer is, to be shown."""
        raise NotImplementedError


def check_template(template: str | None) -> None:
    """Raise `UserError` for a template without exactly one place for the text."""
    if template is not None and template.count(PLACEHOLDER) != 1:
        raise UserError(
            f"prompt_template={excerpt(template)}: holds {PLACEHOLDER} {template.count(PLACEHOLDER)} times; expected "
            f"it once, where the text of a row goes, as in 'summarize: {PLACEHOLDER}'."
        )


def prompting(
    base: BaseModel,
    *,
    template: str,
    max_target_length: int,
    tongues: tuple[int, int] | None = None,
    known: Languages | None = None,
) -> Meta:
    """The settings of prompts and generation; ``tongues`` are the language tokens of source and target, if any.

    Raises `UserError` where prompts and targets have no room in the model.
    """
    found = {"forced_bos": None, "decoder_start": None, "always_ends": False, **vars(specials(base))}
    if known is not None and tongues is not None:
        found |= language_specials(base, known, *tongues)
    check_end(found["target_suffix"])
    decoder = not found["encoder_decoder"]
    if decoder and max_target_length >= base.max_seq_length:
        raise UserError(
            f"max_target_length={max_target_length}: with a decoder, prompt and target share max_seq_length="
            f"{base.max_seq_length} tokens; expected < {base.max_seq_length}. Lower it, or raise max_seq_length."
        )
    positions = _positions(base, decoder)
    if positions is not None and max_target_length > positions:
        raise UserError(
            f"max_target_length={max_target_length}: the base model writes at most {positions} tokens; "
            f"expected <= {positions}."
        )
    most = base.max_seq_length - max_target_length if decoder else base.max_seq_length
    fixed = base.tokenizer.encode(template.replace(PLACEHOLDER, ""), add_special_tokens=False)
    taken = sum(len(part.ids) for part in (fixed, *fixed.overflowing))
    taken += len(found["prompt_prefix"]) + len(found["prompt_suffix"])
    if taken >= most:
        raise UserError(
            f"prompt_template={excerpt(template)}: takes {taken} of the {most} tokens of a prompt, which leaves "
            "none for the text. Shorten it, raise max_seq_length or lower max_target_length."
        )
    return {
        **found,
        "template": template,
        "cut": "end",
        "max_seq_length": base.max_seq_length,
        "max_prompt_tokens": most,
        "max_target_tokens": max_target_length,
        "max_positions": positions,
    }


def _positions(base: BaseModel, decoder: bool) -> int | None:
    """The most tokens that a model can write, or a decoder read and write; None where its positions are relative."""
    names = ("max_position_embeddings", "n_positions") if decoder else ("max_position_embeddings",)
    return next((int(base.config[name]) for name in names if base.config.get(name)), None)


def language_tokens(base: BaseModel) -> Languages | None:
    """As `languages`, but after `specials` has refused what writes no text."""
    specials(base)
    return languages(base)
