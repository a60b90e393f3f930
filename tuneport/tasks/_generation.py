"""What the tasks share whose models write text: language models, scored by the likelihood of the rows' own texts."""

from __future__ import annotations

import math
import random
import typing as t
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from tuneport.errors import UserError
from tuneport.labels import IGNORED
from tuneport.metrics import answers, perplexity
from tuneport.metrics.metric import AnyMetric, training_scores
from tuneport.modeling import pretrained
from tuneport.modeling.batches import collator
from tuneport.modeling.likelihood import shifted, token_losses
from tuneport.parameters import GenerationParams
from tuneport.tasks.task import Encoder, Meta, Row, Task

if t.TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tuneport.encoding.fast_tokenizer import FastTokenizer
    from tuneport.encoding.token_ids import ToIds
    from tuneport.metrics.scores import Evaluation

DEFAULT_NEW_TOKENS = 128


def drawn(rows: int, most: int, seed: int) -> list[int]:
    """The places of at most so many of the rows, in their order, drawn by the seed; -1: of all."""
    if most in range(rows):
        return sorted(random.Random(seed).sample(range(rows), most))
    return list(range(rows))


def evaluated_by(options: t.Any, table: Sequence[AnyMetric], rows: answers.AnsweredRows, **more: t.Any) -> Evaluation:
    """Score written answers by the metrics that the evaluation's ``options`` name, beside the task's own ``table``."""
    from tuneport.metrics import own
    from tuneport.metrics.scores import evaluated

    names: list[str] = []
    brought: list[AnyMetric] = []
    for entry in own.load(options.metrics, options.metrics_file and options.metrics_file.path):
        records = [] if isinstance(entry, str) else own.scored(entry, rows)
        brought += records
        names += [entry] if isinstance(entry, str) else [metric.name for metric in records]
    found = evaluated(
        answers.chosen(names, table, brought),
        rows,
        options.seed,
        row_correct=None,
        row_losses=[0.0] * rows.total,
        **more,
    )
    sign = -1 if found.headline.greater_is_better else 1
    losses = [sign * above / below if below else 0.0 for above, below in found.row_parts]
    return replace(found, row_losses=losses)


def check_metrics(options: t.Any, table: Sequence[AnyMetric], *, files: bool) -> None:
    """Raise `UserError` for metrics that there are not; own functions are looked for with ``files``."""
    from tuneport.metrics import own

    schema, text = getattr(options, "answer_schema", None), getattr(options, "metrics", "")
    answers.check_schema(schema)
    if schema is None and "json_schema" in (*answers.named(text), getattr(options, "metric_for_best_model", "")):
        raise UserError(
            "answer_schema: is not set, and json_schema holds answers against it. Set it, or leave json_schema out."
        )
    if files and text:
        own.load(text, options.metrics_file and options.metrics_file.path)
    elif any(":" in name for name in answers.named(text)) and options.metrics_file is None:
        own.load(text, None)
    answers.chosen([name for name in answers.named(text) if ":" not in name and name not in own.brought()], table)


class GenerationTask(Task):
    """``meta["prompting"]`` holds the settings of `PromptEncoder`, `CompletionEncoder` and `Generator`, without params.

    A task adds its fields, its template and what its answers are scored by.
    """

    architectures: t.ClassVar[tuple[str, ...]] = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    scores_labels = False
    likelihood = True

    def check_options(self, options: t.Any, *, files: bool = False) -> None:
        from tuneport.metrics import own

        check_metrics(options, self.scored_by, files=files)
        own.check_choice(options, self.metrics, files=files)

    def judged_by(self, metric_for_best_model: str, options: t.Any) -> tuple[str, bool]:
        from tuneport.metrics import own

        if own.is_function(metric_for_best_model):
            return own.chosen_function(options)
        return super().judged_by(metric_for_best_model, options)

    def encoded_schema(self, meta: Meta, options: t.Any) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])

    def load_model(self, folder: Path, meta: Meta, *, new_head: bool = True, **loading: t.Any) -> t.Any:
        # Its head is the base model's own, never new.
        architecture = self.architectures[-1 if meta["prompting"]["encoder_decoder"] else 0]
        model = pretrained.load(architecture, folder, **{"dtype": "float32", **loading})
        if stop := meta["prompting"]["stop"]:  # whoever generates with the tuned model's own settings stops there, too
            model.generation_config.eos_token_id = stop if len(stop) > 1 else stop[0]
        return model

    def collator(self, model: t.Any, meta: Meta, pad_to: int | None) -> Callable[[list[Row]], dict[str, t.Any]]:
        apart = ["labels"] if meta["prompting"]["encoder_decoder"] else []
        return collator(model, pad_to, {"labels": IGNORED}, per_target=apart)

    def reduce(self, logits: t.Any, labels: t.Any, meta: Meta) -> t.Any:
        pair = (logits, labels) if meta["prompting"]["encoder_decoder"] else shifted(logits, labels)
        return self.reduce_losses(token_losses(*pair))

    def reduce_losses(self, losses: t.Any) -> t.Any:
        return perplexity.summed(losses)

    def compute_metrics(self, meta: Meta) -> Callable[[t.Any], dict[str, float]]:
        def compute(prediction: t.Any) -> dict[str, float]:
            rows = perplexity.LikelihoodRows(likelihood=prediction.predictions)
            found = training_scores(perplexity.METRICS, rows)
            return {"token_loss": found.pop("loss", math.nan), **found}  # the trainer takes it for the loss

        return compute

    def asked(self, row: Row) -> Row:
        """What the predictor reads of a row with its answer."""
        return row

    def validation_questions(self, rows: Sequence[Row], options: t.Any) -> dict[int, Row]:
        most = getattr(options, "answered_validation_rows", -1)
        return {i: self.asked(rows[i]) for i in drawn(len(rows), most, options.seed)}

    def validation_settings(self, meta: Meta, options: t.Any) -> Row:
        return self.settings(meta, SimpleNamespace(max_new_tokens=getattr(options, "validation_max_new_tokens", -1)))

    def settings(self, meta: Meta, options: t.Any) -> Row:
        params = {name: getattr(options, name, port.default) for name, port in GenerationParams.ports().items()}
        if params["max_new_tokens"] == -1:
            params["max_new_tokens"] = meta["prompting"]["max_target_tokens"] or DEFAULT_NEW_TOKENS
        return {**meta["prompting"], "params": params}


class CompletionTask(GenerationTask):
    """A task whose rows are prompts and completions; it adds how they are encoded, whatever finds their token ids."""

    def encoder(self, tokenizer: Tokenizer, meta: Meta, options: t.Any) -> Encoder:
        from tuneport.encoding.token_ids import library_ids

        return self.completion_encoder(tokenizer, library_ids(tokenizer), meta["prompting"])

    def fast_encoder(self, tokenizer: FastTokenizer, meta: Meta, options: t.Any) -> Encoder:
        return self.completion_encoder(tokenizer.tokenizer, tokenizer, meta["prompting"])

    @abstractmethod
    def completion_encoder(self, tokenizer: Tokenizer, to_ids: ToIds, settings: Meta) -> Encoder:
        """As `encoder`; ``to_ids`` gives the ids that ``tokenizer`` gives, ``settings`` are `CompletionEncoder`'s."""
