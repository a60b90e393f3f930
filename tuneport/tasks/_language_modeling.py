"""What text_generation and chat_completion share: decoders, scored by how likely the test rows' texts are to them."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence

from tuneport.encoding.base_model import BaseModel
from tuneport.encoding.prompts import Specials, specials
from tuneport.errors import UserError
from tuneport.metrics import answers, own, perplexity
from tuneport.metrics.metric import choices, training_scores
from tuneport.parameters import GenerationParams
from tuneport.step import Params, param
from tuneport.tasks._generation import DEFAULT_NEW_TOKENS, GenerationTask, drawn, evaluated_by
from tuneport.tasks.task import Meta, Row, ShownAnswer, Split

if t.TYPE_CHECKING:
    from tuneport.metrics.scores import Evaluation


class LanguageModelingMetric(answers.ValidationAnswersParams):
    """Best model."""

    metric_for_best_model: str = param(
        "Validation metric that decides which checkpoint is the best one; for one of written answers, those to the "
        "validation rows are generated at each evaluation.",
        default="loss",
        choices=choices(answers.beside(perplexity.METRICS)),
        besides=answers.OWN_CHOICE,
    )


class LanguageModelingEvaluation(answers.AnswerMetricsParams, answers.AnswerRowsParams, GenerationParams):
    """Language model evaluation."""

    trivial_baselines: bool = param(
        "Also score the frequencies of tokens in the training rows, whatever stands before them.", default=True
    )
    generated_samples: int = param(
        "Test rows, evenly chosen, for which texts are generated and shown, unless metrics asks for "
        "those of more rows.",
        default=20,
        ge=0,
    )


class LanguageModelingTask(GenerationTask):
    """A task adds its fields, its encoding, its predictor, and which part of a row is asked and which is answered."""

    params: t.ClassVar[Mapping[str, type[Params]]] = {
        "finetune": LanguageModelingMetric,
        "model_evaluation": LanguageModelingEvaluation,
        "model_export": GenerationParams,
    }
    default_metrics = "exact_match,token_f1,rougeL,empty_answer,length_difference"
    scored_by = answers.beside(perplexity.METRICS)
    architectures: t.ClassVar[tuple[str, ...]] = ("AutoModelForCausalLM",)
    benchmarked: t.ClassVar[t.Literal["no", "text", "chat"]] = "text"

    def asked(self, row: Row) -> Row:
        """What the predictor reads of a test row."""
        raise NotImplementedError

    def texts(self, row: Row) -> tuple[str, str]:
        """What is asked in a test row, and what should follow, for a person to read."""
        raise NotImplementedError

    def written(self, answer: Row) -> str | None:
        """The text of an answer; None where none was generated."""
        raise NotImplementedError

    def true_calls(self, row: Row) -> answers.Calls:
        """The tool calls that should follow."""
        return []

    def labels(self, row: Row) -> list[str]:
        return []

    def decoder(self, base: BaseModel) -> Specials:
        """The special tokens of a decoder.

        Raises `UserError` for another kind of model.
        """
        found = specials(base)
        if found.encoder_decoder:
            raise UserError(
                f"the base model is of type '{base.config.get('model_type')}', an encoder–decoder; {self.name} wants a "
                "decoder, such as GPT-2, Llama, Qwen, Mistral, Gemma or Phi. Choose another base model, or fine-tune "
                "this one for summarization or translation."
            )
        return found

    def decoding(self, base: BaseModel) -> Row:
        """The part of ``meta["prompting"]`` that both tasks have."""
        max_positions = base.config.get("max_position_embeddings") or base.config.get("n_positions")
        return {
            **vars(self.decoder(base)),
            "max_positions": max_positions,
            "max_seq_length": base.max_seq_length,
            "max_target_tokens": min(DEFAULT_NEW_TOKENS, max(1, base.max_seq_length // 2)),
        }

    def settings(self, meta: Meta, options: t.Any) -> Row:
        found = super().settings(meta, options)
        wanted, max_positions = found["params"]["max_new_tokens"], found["max_positions"]
        if max_positions is not None and wanted >= max_positions:
            raise UserError(
                f"max_new_tokens={wanted}: leaves no room for a prompt, as the model takes {max_positions} tokens in "
                f"all; expected < {max_positions}."
            )
        return found

    def needs_answers(self, metric_for_best_model: str) -> bool:
        return answers.is_written(metric_for_best_model) or own.is_function(metric_for_best_model)

    def score(self, rows: Sequence[Row], given: Sequence[Row], meta: Meta, options: t.Any = None) -> dict[str, float]:
        written = self._answered(rows, given, range(len(rows)), options)
        found = training_scores([m for m in self.scored_by if answers.is_written(m.name)], written)
        return found | own.training_score(options, written)

    def _answered(
        self, rows: Sequence[Row], given: Sequence[Row], places: Sequence[int], options: t.Any
    ) -> answers.AnsweredRows:
        return answers.AnsweredRows(
            truth=[self.texts(rows[i])[1].strip() for i in places],
            predicted=[self.written(given[i]) or "" for i in places],
            calls=[self.true_calls(rows[i]) for i in places],
            raw=[rows[i] for i in places],
            places=places,
            total=len(rows),
            likelihood=perplexity.likelihood_of(given),
            **answers.answer_parameters(options),
        )

    def questions(self, rows: Sequence[Row], options: t.Any) -> dict[int, Row]:
        if options.metrics:
            return {i: self.asked(rows[i]) for i in drawn(len(rows), options.evaluation_rows, options.seed)}
        wanted = min(options.generated_samples, len(rows))
        picked = {round(i * (len(rows) - 1) / max(1, wanted - 1)) for i in range(wanted)}
        return {i: self.asked(rows[i]) for i in sorted(picked)}

    def evaluate(self, rows: Sequence[Row], answers: Sequence[Row], meta: Meta, seed: int) -> Evaluation:
        return perplexity.evaluate(answers, seed)

    def evaluate_with(self, rows: Sequence[Row], given: Sequence[Row], meta: Meta, options: t.Any) -> Evaluation:
        if not options.metrics:
            return self.evaluate(rows, given, meta, options.seed)
        places = [i for i, answer in enumerate(given) if self.written(answer) is not None]
        written = self._answered(rows, given, places, options)
        # Without likelihoods, exact_match is what predictors are compared by if only metrics of all rows are named.
        table = answers.chosen(["exact_match"], ()) if written.likelihood is None else perplexity.METRICS
        return evaluated_by(options, table, written)

    def baselines(
        self, train: Split, test: Split, meta: Meta, options: LanguageModelingEvaluation
    ) -> dict[str, list[Row]]:
        if not options.trivial_baselines:
            return {}
        return perplexity.baselines(train.batches(), test.encoded, meta["vocabulary"])

    def short(self, answer: Row) -> Row:
        return answer

    def shown(self, row: Row, answer: Row, base: Row) -> ShownAnswer | None:
        written = self.written(answer)
        if written is None:
            return None
        asked, truth = self.texts(row)
        return ShownAnswer(
            texts=(asked,),
            truth=truth,
            predicted=written,
            score=f"{answer['negative_log_likelihood'] / answer['tokens']:.3f}",
            base=self.written(base) or "",
        )
