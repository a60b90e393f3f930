"""Stage `model_comparison`: score exported models by the same test rows."""

import copy
import dataclasses as dc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport.address import EXTRAS
from tuneport.artifacts import CustomMLflowModel, File, Report
from tuneport.data.column_map import column_map
from tuneport.data.readers import Source, find
from tuneport.errors import UserError
from tuneport.json_yaml import json_line
from tuneport.metrics.answers import AnswerMetricsParams
from tuneport.parameters import COMPUTE, INSTANCE_TYPE, SeedParams
from tuneport.stage import save_json
from tuneport.step import Step, View, consumes, param, produces, resource

if TYPE_CHECKING:
    from tuneport.evaluation.saved_models import RowsToScore, SavedScoring
    from tuneport.tasks.task import Row

MODELS = ("first_model", "second_model", "third_model", "fourth_model")


class ModelComparison(Step, AnswerMetricsParams, SeedParams):
    """Score exported models of one task by the same test rows, side by side."""

    image = "trainer"

    first_model: CustomMLflowModel = consumes("MLflow model that others are held against: a run's mlflow_model_folder.")
    second_model: CustomMLflowModel | None = consumes("Another one of the same task.")
    third_model: CustomMLflowModel | None = consumes("Another one of the same task.")
    fourth_model: CustomMLflowModel | None = consumes("Another one of the same task.")
    test_rows_path: File = consumes(
        "Rows with true answers, in the columns of the first model's training data: jsonl, json, csv, tsv or parquet; "
        "a file, a glob or a folder, or an address."
    )
    comparison_result: Report = produces(
        "Metrics, predictions and an HTML page.", views={"report": View("html", "report.html")}
    )
    compute_model_comparison: str = resource("compute", COMPUTE.format("model_comparison"), default="serverless")
    instance_type_model_comparison: str = resource(
        "instance_type", INSTANCE_TYPE.format("model_comparison"), default="Standard_nc24rs_v3"
    )
    columns: str | None = param(
        "Where the data has the columns that the first model was trained with, as a JSON object of name and column; a "
        "dot leads into an object.",
        default=None,
        json=True,
    )

    def repeatable(self) -> bool:
        return self.test_rows_path.address.scheme not in EXTRAS

    def origins(self) -> Mapping[str, str]:
        """What stands for the bytes of rows that lie elsewhere, and the distributions that bring metrics."""
        from tuneport.metrics.own import origins

        brought = origins(self.metrics)
        if self.repeatable():
            return brought
        identity = find(self.test_rows_path.address, "test_rows_path").identity
        return brought | ({"test_rows_path": identity} if identity else {})

    def check_files(self) -> None:
        from tuneport.evaluation.saved_models import check_together

        models = self._models()
        check_together(models)
        self._options(models[0])
        source, wanted = self._source(models[0])
        source.peek(wanted)

    def run(self) -> None:
        from tuneport.evaluation.saved_models import SideBySide

        models = self._models()
        options, test = self._options(models[0]), self._rows(models[0])
        task, output = models[0].task, self.comparison_result.path
        questions = task.validation_questions(test.rows, options)
        answers: dict[str, list[Row]] = {}
        for model in models:
            given = model.answers(list(questions.values()))
            answers[model.name] = given
            self.log.info("%s: %d rows answered", model.name, len(given))
        scored = {
            model.name: task.evaluate_with(test.rows, answers[model.name], model.meta, options) for model in models
        }
        found = SideBySide(models=scored, seed=self.seed)
        places = {model.name: str(model.folder) for model in models}
        save_json(output / "metrics.json", {"task": task.name, **found.as_json(), "dropped": test.dropped})
        _write(output / "predictions.jsonl", test.rows, answers)
        (output / "report.html").write_text(found.page(task, places, test.dropped), "utf-8")
        for name, evaluation in scored.items():
            values = {metric.name: evaluation.metrics[metric.name] for metric in evaluation.main}
            self.log.info("%s: %s", name, ", ".join(f"{k} {v:.4f}" for k, v in values.items() if v is not None))
        for said in found.sentences():
            self.log.info("%s", said)

    def _models(self) -> "list[SavedScoring]":
        from tuneport.evaluation.saved_models import SavedScoring

        given = {name: getattr(self, name) for name in MODELS}
        return [SavedScoring(name, model.path) for name, model in given.items() if model is not None]

    def _options(self, model: "SavedScoring") -> "ModelComparison":
        """This step, with the task's own metrics where none are named. Raises `UserError` for what has no effect."""
        task, ports = model.task, AnswerMetricsParams.ports()
        if not any("metrics" in group.ports() for group in task.params.values()):
            for name, port in ports.items():
                if getattr(self, name) != port.default:
                    raise UserError(
                        f"{name}: has no effect on models of {task.name}, which write no text. Leave it out."
                    )
            return self
        found = copy.copy(self)
        found.metrics = self.metrics or task.default_metrics
        task.check_options(found, files=True)
        return found

    def _source(self, model: "SavedScoring") -> tuple[Source, dict[str, str]]:
        task, options = model.task, model.reading
        fields = task.columns(options)
        found = find(self.test_rows_path.address, "test_rows_path")
        asked = column_map(self.columns, fields, task.optional_columns(options))
        return dc.replace(found, map=asked), dict(fields)

    def _rows(self, model: "SavedScoring") -> "RowsToScore":
        from tuneport.evaluation.saved_models import RowsToScore

        found = RowsToScore(model)
        source, wanted = self._source(model)
        for raw in source.rows(wanted, model.task.optional_columns(model.reading)):
            found.add(raw.values, raw.where, raw.row_id)
        if not found.rows:
            reasons = "; ".join(f"{why} ({rows:,} rows)" for why, rows in found.dropped.items())
            raise UserError(f"test_rows_path: no row can be scored: {reasons}. Give rows with true answers.")
        if found.dropped:
            self.log.warning("%d rows are left out: %s", sum(found.dropped.values()), ", ".join(found.dropped))
        return found


def _write(path: Path, rows: "Sequence[Row]", answers: "Mapping[str, Sequence[Row]]") -> None:
    """One line a row, with the answer of each model."""
    with path.open("w", encoding="utf-8") as f:
        for i, row in enumerate(rows):
            line: dict[str, Any] = {**row, "answers": {name: given[i] for name, given in answers.items()}}
            f.write(json_line(line))
