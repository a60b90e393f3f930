"""Translation: a text for each text in another language, written by a decoder or an encoder–decoder."""

from __future__ import annotations

import typing as t
from collections.abc import Sequence

from tuneport.encoding.base_model import BaseModel
from tuneport.errors import UserError
from tuneport.metrics import answers, texts
from tuneport.metrics.metric import choices
from tuneport.parameters import GenerationParams
from tuneport.serving.translator import Translator
from tuneport.step import Params, param
from tuneport.tasks._text_pairs import T5_TYPES, TextPairTask, check_template, language_tokens, prompting
from tuneport.tasks.task import Meta, Row, Split, TaskData

if t.TYPE_CHECKING:
    from tuneport.metrics.scores import Evaluation

T5_NAMES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}  # those that T5 was trained to translate


class TranslationColumns(Params):
    """Translation columns and prompts."""

    source_lang: str = param(
        "Column that holds the text to translate; its name is the language code, too, unless source_lang_code is set."
    )
    target_lang: str = param(
        "Column that holds the translation; its name is the language code, too, unless target_lang_code is set."
    )
    source_lang_code: str | None = param(
        "Code of the language translated from, as the model knows it: en for T5, en_XX for mBART, eng_Latn for NLLB.",
        default=None,
    )
    target_lang_code: str | None = param("Code of the language translated to, as the model knows it.", default=None)
    max_target_length: int = param(
        "Most tokens of a translation, special tokens included; the rest is cut.", default=128, ge=1
    )
    prompt_template: str | None = param(
        "What the model reads, with {text} where the source goes. Unset: 'translate SOURCE to TARGET: {text}' for T5, "
        "'{text}' for other encoder–decoders, 'SOURCE: {text}\\nTARGET:' for decoders.",
        default=None,
    )


class TranslationMetric(answers.ValidationAnswersParams):
    """Best model."""

    metric_for_best_model: str = param(
        "Validation metric that decides which checkpoint is the best one; for any but the loss, translations of the "
        "validation rows are generated at each evaluation.",
        default="loss",
        choices=choices(answers.beside(texts.TRANSLATION_METRICS)),
        besides=answers.OWN_CHOICE,
    )


class TranslationEvaluation(answers.AnswerMetricsParams, GenerationParams):
    """Translation evaluation."""

    trivial_baselines: bool = param("Also score the source text as its own translation.", default=True)


class Translation(TextPairTask):
    """Fields of a row: ``source`` and ``target``."""

    name = "translation"
    params: t.ClassVar = {
        "preprocess": TranslationColumns,
        "finetune": TranslationMetric,
        "model_evaluation": TranslationEvaluation,
        "model_export": GenerationParams,
    }
    own_metrics = texts.TRANSLATION_METRICS
    scored_by = answers.beside(texts.TRANSLATION_METRICS)
    predictor = Translator
    source, target, answer = "source", "target", "translation"

    def columns(self, options: TranslationColumns) -> dict[str, str]:
        check_template(options.prompt_template)
        if options.source_lang == options.target_lang:
            raise UserError(
                f"source_lang and target_lang are both the column '{options.source_lang}'; expected two columns, the "
                "text and its translation."
            )
        source, target = _codes(options)
        if source == target:
            raise UserError(
                f"source and target are both of the language '{source}'; expected two languages. "
                "Set source_lang_code and target_lang_code."
            )
        return {"source": options.source_lang, "target": options.target_lang}

    def describe(self, data: TaskData, base: BaseModel, options: TranslationColumns) -> Meta:
        known, (source, target) = language_tokens(base), _codes(options)
        tongues = None
        if known is not None:
            options_of_codes = [
                name if getattr(options, f"{name}_code") is None else f"{name}_code"
                for name in ("source_lang", "target_lang")
            ]
            tongues = known.id(source, options_of_codes[0]), known.id(target, options_of_codes[1])
        template = options.prompt_template or _template(base, source, target)
        check_template(template)
        settings = prompting(
            base, template=template, max_target_length=options.max_target_length, tongues=tongues, known=known
        )
        return {"prompting": settings, "target_code": target}

    def evaluate(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, seed: int) -> Evaluation:
        return texts.evaluate_translations([row["target"] for row in rows], answers, meta["target_code"], seed)

    def language(self, meta: Meta) -> str:
        return t.cast(str, meta["target_code"])

    def row_score(self, row: Row, answer: Row) -> str:
        written = texts.WrittenRows(truth=[row["target"]], predicted=[answer["translation"]])
        return f"{written.chrf_of_rows[0]:.1f}"

    def baselines(self, train: Split, test: Split, meta: Meta, options: TranslationEvaluation) -> dict[str, list[Row]]:
        if not options.trivial_baselines:
            return {}
        return {"copy of the source": [{"translation": row["source"]} for row in test.rows]}


def _codes(options: TranslationColumns) -> tuple[str, str]:
    return options.source_lang_code or options.source_lang, options.target_lang_code or options.target_lang


def _template(base: BaseModel, source: str, target: str) -> str:
    if base.config.get("model_type") in T5_TYPES:
        return f"translate {T5_NAMES.get(source, source)} to {T5_NAMES.get(target, target)}: {{text}}"
    return "{text}" if base.config.get("is_encoder_decoder") else f"{source}: {{text}}\n{target}:"
