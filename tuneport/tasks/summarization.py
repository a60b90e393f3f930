"""Summarization: a short text for each document, written by a decoder or an encoder–decoder."""

from __future__ import annotations

import typing as t
from collections.abc import Sequence

from tuneport.encoding.base_model import BaseModel
from tuneport.errors import UserError
from tuneport.metrics import answers, texts
from tuneport.metrics.metric import choices
from tuneport.parameters import GenerationParams
from tuneport.serving.summarizer import Summarizer
from tuneport.step import Params, param
from tuneport.tasks._text_pairs import T5_TYPES, TextPairTask, check_template, language_tokens, prompting
from tuneport.tasks.task import Meta, Row, Split, TaskData

if t.TYPE_CHECKING:
    from tuneport.metrics.scores import Evaluation


class SummarizationColumns(Params):
    """Summarization columns and prompts."""

    document_key: str = param("Column that holds the document.")
    summary_key: str = param("Column that holds the summary.")
    max_target_length: int = param(
        "Most tokens of a summary, special tokens included; the rest is cut.", default=128, ge=1
    )
    prompt_template: str | None = param(
        "What the model reads, with {text} where the document goes. Unset: 'summarize: {text}' for T5, '{text}' for "
        "other encoder–decoders, '{text}\\n\\nSummary:' for decoders.",
        default=None,
    )
    summarization_lang: str | None = param(
        "Language code of documents and summaries, for models that have such codes as tokens (mBART, NLLB), such as "
        "en_XX or eng_Latn. Unset: the code that the model's tokenizer puts by itself.",
        default=None,
    )


class SummarizationMetric(answers.ValidationAnswersParams):
    """Best model."""

    metric_for_best_model: str = param(
        "Validation metric that decides which checkpoint is the best one; for any but the loss, summaries of the "
        "validation rows are generated at each evaluation.",
        default="loss",
        choices=choices(answers.beside(texts.SUMMARY_METRICS)),
        besides=answers.OWN_CHOICE,
    )


class SummarizationEvaluation(answers.AnswerMetricsParams, GenerationParams):
    """Summarization evaluation."""

    trivial_baselines: bool = param(
        "Also score the first words of each document, as many as the median summary in training has.", default=True
    )


class Summarization(TextPairTask):
    """Fields of a row: ``document`` and ``summary``."""

    name = "summarization"
    params: t.ClassVar = {
        "preprocess": SummarizationColumns,
        "finetune": SummarizationMetric,
        "model_evaluation": SummarizationEvaluation,
        "model_export": GenerationParams,
    }
    own_metrics = texts.SUMMARY_METRICS
    scored_by = answers.beside(texts.SUMMARY_METRICS)
    predictor = Summarizer
    source, target, answer = "document", "summary", "summary"

    def columns(self, options: SummarizationColumns) -> dict[str, str]:
        check_template(options.prompt_template)
        if options.document_key == options.summary_key:
            raise UserError(
                f"document_key and summary_key are both '{options.document_key}'; expected two columns, the summary's "
                "being what the model learns to write."
            )
        return {"document": options.document_key, "summary": options.summary_key}

    def describe(self, data: TaskData, base: BaseModel, options: SummarizationColumns) -> Meta:
        known, code = language_tokens(base), options.summarization_lang
        if known is None and code is not None:
            raise UserError(
                f"summarization_lang='{code}': the base model has no language codes as tokens; leave it out."
            )
        tongue = None
        if known is not None:
            code = code or known.default
            if code is None:
                raise UserError(
                    "the base model writes in the language that a code names; set summarization_lang, to one of "
                    f"{', '.join(sorted(known.ids))}."
                )
            tongue = known.id(code, "summarization_lang")
        settings = prompting(
            base,
            template=options.prompt_template or _template(base),
            max_target_length=options.max_target_length,
            tongues=None if tongue is None else (tongue, tongue),
            known=known,
        )
        return {"prompting": settings}

    def evaluate(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, seed: int) -> Evaluation:
        return texts.evaluate_summaries([row["summary"] for row in rows], answers, seed)

    def row_score(self, row: Row, answer: Row) -> str:
        written = texts.WrittenRows(truth=[row["summary"]], predicted=[answer["summary"]])
        return f"{written.rouge['rougeL'][0]:.3f}"

    def baselines(
        self, train: Split, test: Split, meta: Meta, options: SummarizationEvaluation
    ) -> dict[str, list[Row]]:
        if not options.trivial_baselines:
            return {}
        import numpy as np

        lengths = np.fromiter((len(row["summary"].split()) for row in train.rows), dtype=np.int32)
        words = max(1, round(float(np.median(lengths))))
        return {f"first {words} words": [{"summary": " ".join(row["document"].split()[:words])} for row in test.rows]}


def _template(base: BaseModel) -> str:
    if base.config.get("model_type") in T5_TYPES:
        return "summarize: {text}"
    return "{text}" if base.config.get("is_encoder_decoder") else "{text}\n\nSummary:"
