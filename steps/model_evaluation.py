"""Stage `model_evaluation`: score the tuned model beside its base and trivial baselines on the test split."""

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tuneport import tasks
from tuneport.artifacts import INCOMPLETE, Dataset, File, Model, Report
from tuneport.errors import UserError
from tuneport.parameters import COMPUTE, INSTANCE_TYPE, EvaluationBatchParams, LoadingParams, SeedParams
from tuneport.stage import parameters, read_json_object, save_json
from tuneport.step import Step, View, consumes, parse_values, produces, resource
from tuneport.tasks import TaskParams
from tuneport.tasks.task import Row, Split

if TYPE_CHECKING:
    from tuneport.data.prepared import Prepared
    from tuneport.evaluation.comparison import Comparison


class ModelEvaluation(Step, TaskParams, EvaluationBatchParams, LoadingParams, SeedParams):
    """Score the tuned model beside its base model and trivial baselines on the test split."""

    image = "trainer"

    model_selector_output: Model = consumes("Imported base model.")
    pytorch_model_folder: Model = consumes("Tuned model.")
    preprocess_output: Dataset = consumes("Prepared splits; the test split is scored.")
    evaluation_config: File | None = consumes(
        "JSON file of parameters of this stage, by name, that hold in place of the values that it shares with other "
        'stages: {"num_beams": 4} generates by beam search here and not where the exported model answers.'
    )
    evaluation_result: Report = produces(
        "Metrics, predictions and the HTML report.",
        views={
            "test_metrics": View("metrics", "metrics.json", ("tuned", "metrics")),
            "base_model_test_metrics": View("metrics", "metrics.json", ("base", "metrics")),
            "confusion_matrix": View("confusion_matrix", "metrics.json"),
            "report": View("html", "report.html"),
        },
    )
    compute_model_evaluation: str = resource("compute", COMPUTE.format("model_evaluation"), default="serverless")
    instance_type_model_evaluation: str = resource(
        "instance_type", INSTANCE_TYPE.format("model_evaluation"), default="Standard_nc24rs_v3"
    )

    def check_files(self) -> None:
        self._configured()

    def run(self) -> None:
        from tuneport.data.prepared import Prepared

        for name, value in self._configured().items():
            setattr(self, name, value)
        prepared = Prepared(self.preprocess_output.path)
        self._check_inputs(prepared)
        test = Split(prepared.rows("test"), prepared.encoded("test"))
        tuned, base = (
            self._answers(folder.path, prepared, test, name)
            for folder, name in ((self.pytorch_model_folder, "tuned model"), (self.model_selector_output, "base model"))
        )
        rows = test.rows
        comparison = self._compare(prepared, test, tuned, base)
        output = self.evaluation_result.path
        save_json(output / "metrics.json", comparison.as_json())
        short = [tasks.load(self.task_name).short(answer) for answer in base]
        _write_predictions(output / "predictions.jsonl", rows, tuned, short, comparison.tuned.row_correct)
        (output / "report.html").write_text(self._report(prepared, rows, tuned, base, comparison), "utf-8")
        self._track(comparison)
        for line in (*comparison.lines(), comparison.verdict.headline):
            self.log.info("%s", line)

    def _configured(self) -> dict[str, Any]:
        """The parameters that `evaluation_config` gives.

        Raises `UserError` for a file that is not such an object, and lists each name and value that is not valid.
        """
        if self.evaluation_config is None:
            return {}
        file, known = self.evaluation_config.path, [name for name in parameters(self) if name != "task_name"]
        given = read_json_object("evaluation_config", file, f"values of {', '.join(known)}")
        try:
            return parse_values({name: self.ports()[name] for name in known}, given, self.name())
        except UserError as e:
            raise UserError(f"evaluation_config={file}: {e}") from None

    def _check_inputs(self, prepared: "Prepared") -> None:
        """Refuse inputs that do not belong together."""
        prepared.check_task(self.task_name)
        info, data, model = prepared.info, self.preprocess_output.path, self.pytorch_model_folder.path
        if not info.splits.get("test"):
            raise UserError(
                f"{data}: its test split has no rows; expected at least one. Run preprocess with test data."
            )
        labels = json.loads((model / "config.json").read_text("utf-8")).get("id2label")
        wanted = info.meta.get("labels")
        if wanted and list((labels or {}).values()) != wanted:
            raise UserError(
                f"{model}: was tuned for the labels {', '.join((labels or {}).values()) or 'none'}, but {data} has "
                f"{', '.join(wanted)}. Pass the model that was tuned on this prepared dataset."
            )

    def _answers(self, folder: Path, prepared: "Prepared", test: Split, name: str) -> list[Row]:
        """Both models read texts through the tuned model's tokenizer, which knows the length trained with."""
        from tuneport.evaluation.prediction import predict

        task, meta = tasks.load(self.task_name), prepared.info.meta
        return predict(
            task,
            folder,
            self.pytorch_model_folder.path,
            meta,
            test,
            base=self.model_selector_output.path,
            questions=task.questions(test.rows, self),
            settings=task.settings(meta, self),
            batch_size=self.per_device_eval_batch_size,
            seed=self.seed,
            ignore_mismatched_sizes=self.ignore_mismatched_sizes,
            name=name,
        )

    def _compare(self, prepared: "Prepared", test: Split, tuned: list[Row], base: list[Row]) -> "Comparison":
        from tuneport.evaluation.comparison import Comparison
        from tuneport.evaluation.prediction import has_head

        task, meta, rows = tasks.load(self.task_name), prepared.info.meta, test.rows
        train = Split(prepared.rows("train"), prepared.encoded("train"))
        trivial = task.baselines(train, test, meta, self)
        return Comparison(
            tuned=task.evaluate(rows, tuned, meta, self.seed),
            base=task.evaluate(rows, base, meta, self.seed),
            base_has_head=has_head(self.model_selector_output.path, self.pytorch_model_folder.path),
            baselines={name: task.evaluate(rows, answers, meta, self.seed) for name, answers in trivial.items()},
            seed=self.seed,
        )

    def _report(
        self,
        prepared: "Prepared",
        rows: Sequence[Row],
        tuned: list[Row],
        base: list[Row],
        comparison: "Comparison",
    ) -> str:
        from tuneport.evaluation import report

        inputs = ("model_selector_output", "preprocess_output", "pytorch_model_folder")
        return report.render(
            task_name=self.task_name,
            comparison=comparison,
            answers=report.shown_answers(tasks.load(self.task_name), rows, tuned, base, comparison.tuned),
            training=report.training(self.pytorch_model_folder.path),
            data=prepared.report(),
            max_seq_length=prepared.info.max_seq_length,
            lineage=[report.origin(name, getattr(self, name)) for name in inputs],
            parameters=parameters(self),
        )

    def _track(self, comparison: "Comparison") -> None:
        """Add scores and report to the run that trained the model."""
        from tuneport.tracking import run_id_of, tracked

        if self.context.tracking_uri is None:
            return
        run_id = run_id_of(self.pytorch_model_folder.path, self.context)
        with tracked(self.context, self.name(), run_id) as run, TemporaryDirectory() as folder:
            run.log_metrics(_tracked_metrics(comparison))
            copy = Path(folder) / "evaluation"
            shutil.copytree(self.evaluation_result.path, copy, ignore=shutil.ignore_patterns(INCOMPLETE))
            run.log_artifacts(copy, "evaluation")


def _tracked_metrics(comparison: "Comparison") -> dict[str, float]:
    """Test scores by names that MLflow takes: ``test_mcc``, ``base_test_mcc``, ``majority_class_test_mcc``."""
    named = {"": comparison.tuned, "base_": comparison.base}
    named |= {re.sub(r"\W+", "_", name.lower()) + "_": found for name, found in comparison.baselines.items()}
    return {
        f"{prefix}test_{metric}": value
        for prefix, found in named.items()
        for metric, value in found.metrics.items()
        if value is not None
    }


def _write_predictions(
    path: Path, rows: Sequence[Row], tuned: list[Row], base: list[Row], correct: Sequence[bool] | None
) -> None:
    """One line a test row: its id and fields, the tuned model's whole answer, the gist of the base model's."""
    with path.open("w", encoding="utf-8") as f:
        for i, (row, answer, other) in enumerate(zip(rows, tuned, base, strict=True)):
            right = {} if correct is None else {"correct": correct[i]}
            line = {**row, "tuned": answer, **right, "base": other}
            f.write(json.dumps(_finite(line), ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The value with null for each number that JSON cannot hold, such as a diverged model's scores."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
