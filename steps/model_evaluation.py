"""Stage `model_evaluation`: score the tuned model beside its base and trivial baselines on the test split."""

import copy
import dataclasses as dc
import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from tuneport import tasks
from tuneport.artifacts import INCOMPLETE, Dataset, File, Model, Report, read_manifest
from tuneport.errors import UserError
from tuneport.evaluation.kept_answers import FOLDER as BASE_ANSWERS
from tuneport.json_yaml import to_json
from tuneport.parameters import (
    COMPUTE,
    INSTANCE_TYPE,
    EvaluationBatchParams,
    EvaluationLaunchParams,
    LoadingParams,
    SeedParams,
)
from tuneport.stage import parameters, read_json_object, save_json
from tuneport.step import Step, View, consumes, param, parse_values, produces, resource
from tuneport.tasks import TaskParams
from tuneport.tasks.task import Meta, Row, Split

if TYPE_CHECKING:
    from tuneport.data.prepared import Prepared
    from tuneport.evaluation.comparison import Comparison
    from tuneport.evaluation.kept_answers import KeptAnswers
    from tuneport.evaluation.prediction import Subject
    from tuneport.evaluation.ranks import Ranks
    from tuneport.metrics.scores import Evaluation
    from tuneport.serving.placement import Placement


class ModelEvaluation(Step, TaskParams, EvaluationLaunchParams, EvaluationBatchParams, LoadingParams, SeedParams):
    """Score the tuned model beside its base model and trivial baselines on the test split."""

    image = "trainer"
    addressable = True
    may_leave: ClassVar = {
        "model_selector_output": ("*.safetensors",),
        "pytorch_model_folder": ("checkpoints/*", "logs/*"),
    }
    prefers_own_name = ("pytorch_model_folder",)  # adapters are less to fetch than what they are merged into
    keeps_on_failure = (BASE_ANSWERS,)
    useful_to_others = (BASE_ANSWERS,)  # the base model answers alike, whatever was tuned from it

    model_selector_output: Model = consumes("Imported base model.")
    pytorch_model_folder: Model = consumes("Tuned model, with its checkpoints or without.")
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

    evaluate_base_model: bool = param(
        "Score the base model, too. false: the tuned model and the trivial baselines alone, in about half the time.",
        default=True,
    )

    def needs(self, name: str) -> bool:
        """The base model's weights, where it answers or adapters are added to it; of the tuned model the best alone."""
        from tuneport.modeling.merged_adapters import is_adapter

        if name == "pytorch_model_folder":
            return False
        asked = self._configured().get("evaluate_base_model", self.evaluate_base_model)
        return asked or is_adapter(self.pytorch_model_folder.path)

    def resumes(self) -> bool:
        return True  # from the base model's answers, where they are still what it would answer

    def processes(self) -> int | None:
        return self.number_of_gpu_to_use_evaluation if self.number_of_gpu_to_use_evaluation > 1 else None

    def check(self) -> None:
        if self.evaluation_config is None:  # which may hold other values; `check_files` reads it
            tasks.load(self.task_name).check_options(self)

    def check_files(self) -> None:
        configured = copy.copy(self)
        vars(configured).update(self._configured())
        tasks.load(self.task_name).check_options(configured, files=True)

    def origins(self) -> Mapping[str, str]:
        """The distributions that bring metrics."""
        from tuneport.metrics.own import origins

        return origins(vars(self).get("metrics") or "")  # a parameter of some tasks

    def lost_effect(self) -> str:
        from tuneport.tracking import lost_artifacts

        return lost_artifacts(self.pytorch_model_folder.path, self.context, "evaluation")

    def run(self) -> None:
        from tuneport.data.prepared import Prepared
        from tuneport.evaluation import row_scores

        for name, value in self._configured().items():
            setattr(self, name, value)
        tasks.load(self.task_name).check_options(self, files=True)
        prepared = Prepared(self.preprocess_output.path)
        self._check_inputs(prepared)
        test = Split(prepared.rows("test"), prepared.encoded("test"))
        answers = self._answers(prepared, test)
        if self.context.rank > 0:
            return
        tuned, base = answers["tuned model"], answers.get("base model")
        rows = test.rows
        comparison = self._compare(prepared, test, tuned, base)
        output = self.evaluation_result.path
        save_json(output / "metrics.json", {**comparison.as_json(), "verdict": dc.asdict(comparison.verdict)})
        short = None if base is None else [tasks.load(self.task_name).short(answer) for answer in base]
        save_json(output / row_scores.FILE, row_scores.row_scores(rows, comparison.tuned))
        _write_predictions(output / "predictions.jsonl", rows, tuned, short, comparison.tuned)
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
        ports, file = self.ports(), self.evaluation_config.path
        # What the stage asks of its machines is settled before it starts.
        known = [name for name in parameters(self) if name != "task_name" and ports[name].resource is None]
        given = read_json_object("evaluation_config", file, f"values of {', '.join(known)}")
        try:
            return parse_values({name: ports[name] for name in known}, given, self.name())
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

    def _answers(self, prepared: "Prepared", test: Split) -> dict[str, list[Row]]:
        """The answers of each model, by its name; of several processes the first one has them, of all."""
        from tuneport.evaluation.ranks import Ranks

        models = {"tuned model": self.pytorch_model_folder.path, "base model": self.model_selector_output.path}
        if not self.evaluate_base_model:
            del models["base model"]
        with Ranks.joined(self.context, self.evaluation_result.path) as all_ranks:
            kept = self._kept(prepared) if "base model" in models and all_ranks.rank == 0 else None
            found = kept.read() if kept else None
            earlier = {} if found is None else {"base model": found}
            if not all_ranks.all("base model is asked", not earlier):
                del models["base model"]
            placement, ranks = self._placement([self._whole(folder) for folder in models.values()], all_ranks)
            if ranks is None:
                return {}
            subjects = [self._subject(name, folder, placement) for name, folder in models.items()]
            answers = {subject.name: self._ask(subject, ranks, prepared.info.meta, test) for subject in subjects}
        if earlier:
            self.log.info("base model: %d answers of an earlier evaluation", len(test.rows))
        elif kept:
            kept.write(answers["base model"])
        return answers | earlier

    def _whole(self, folder: Path) -> Path:
        """The folder whose weights take the memory: of an adapter that of the base model."""
        from tuneport.modeling.merged_adapters import is_adapter

        return self.model_selector_output.path if is_adapter(folder) else folder

    def _subject(self, name: str, folder: Path, placement: "Placement") -> "Subject":
        """A model to be asked; each reads texts through the tuned model's tokenizer, which knows the length trained
        with."""
        from tuneport.evaluation.prediction import Subject

        return Subject(
            folder=folder,
            name=name,
            base=self.model_selector_output.path,
            tokenizer=self.pytorch_model_folder.path,
            placement=placement,
            seed=self.seed,
            ignore_mismatched_sizes=self.ignore_mismatched_sizes,
        )

    def _ask(self, subject: "Subject", ranks: "Ranks", meta: Meta, test: Split) -> list[Row]:
        """A model's answers; without any where another process has them."""
        from tuneport.evaluation.prediction import predict

        task = tasks.load(self.task_name)
        answers = predict(
            task,
            subject,
            meta,
            test,
            questions=task.questions(test.rows, self),
            settings=task.settings(meta, self),
            batch_size=self.per_device_eval_batch_size if self.per_device_eval_batch_size > 1 else None,
            ranks=ranks,
        )
        return answers or []

    def _kept(self, prepared: "Prepared") -> "KeptAnswers":
        """The base model's answers that an earlier evaluation into the same place left."""
        from tuneport.evaluation.kept_answers import KeptAnswers, provenance

        follows_from = provenance(self.model_selector_output, self.preprocess_output, self.pytorch_model_folder)
        return KeptAnswers(self.evaluation_result.path, {"parameters": parameters(self), **follows_from})

    def _placement(self, folders: Sequence[Path], ranks: "Ranks") -> "tuple[Placement, Ranks | None]":
        """Where each process has its model, and the processes that answer: all of them, or the first one alone where a
        model is not whole on one device."""
        from tuneport.evaluation.prediction import check_gpus, place

        if ranks.count > 1:
            check_gpus(ranks.count)
            own = place(folders, gpu=self.context.local_rank)
            if ranks.all("fits", own.one_device):
                self.log.info("%s, in each of %d processes", own.said(), ranks.count)
                return own, ranks
            self.log.info("a model does not fit into one GPU: the first process alone answers, with all GPUs")
        placement = place(folders)
        self.log.info("%s", placement.said())
        return placement, ranks.alone()

    def _compare(self, prepared: "Prepared", test: Split, tuned: list[Row], base: list[Row] | None) -> "Comparison":
        from tuneport.evaluation.comparison import Comparison, OfSource
        from tuneport.evaluation.prediction import has_head

        task, meta, rows = tasks.load(self.task_name), prepared.info.meta, test.rows
        trivial = task.baselines(prepared.stored("train"), test, meta, self)

        def scored(answers: list[Row], places: Sequence[int]) -> "Evaluation":
            with warnings.catch_warnings():  # few rows may be of one label
                warnings.filterwarnings("ignore", "A single label was found", UserWarning)
                return task.evaluate_with([rows[i] for i in places], [answers[i] for i in places], meta, self)

        return Comparison(
            tuned=task.evaluate_with(rows, tuned, meta, self),
            base=None if base is None else task.evaluate_with(rows, base, meta, self),
            by_source={
                source: OfSource(
                    rows=len(places),
                    tuned=scored(tuned, places),
                    base=None if base is None else scored(base, places),
                )
                for source, places in prepared.sources("test", rows).items()
            },
            base_has_head=has_head(self.model_selector_output.path, self.pytorch_model_folder.path),
            baselines={name: task.evaluate_with(rows, answers, meta, self) for name, answers in trivial.items()},
            seed=self.seed,
        )

    def _report(
        self,
        prepared: "Prepared",
        rows: Sequence[Row],
        tuned: list[Row],
        base: list[Row] | None,
        comparison: "Comparison",
    ) -> str:
        from tuneport.evaluation import report
        from tuneport.evaluation.shown_rows import shown_rows
        from tuneport.evaluation.slices import slices
        from tuneport.model_source.model_name import model_name

        task = tasks.load(self.task_name)
        probabilities, hits = task.confidences(rows, tuned, prepared.info.meta)
        imported = read_manifest(self.model_selector_output)["parameters"]
        base_model = model_name(self.model_selector_output.path, imported)
        inputs = ("model_selector_output", "preprocess_output", "pytorch_model_folder")
        return report.render(
            task_name=self.task_name,
            comparison=comparison,
            subject=f"{base_model}, tuned on {prepared.source('train')}",
            answers=shown_rows(task, rows, tuned, base, comparison.tuned),
            parts=slices(task, rows, comparison.tuned, comparison.base, self.seed),
            confidence=report.Confidence(probabilities=probabilities, hits=hits),
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
            run.log_model_metrics(_tracked_metrics(comparison))
            run.log_params(parameters(self))
            run.describe(comparison.verdict.headline)
            copy = Path(folder) / "evaluation"
            shutil.copytree(self.evaluation_result.path, copy, ignore=shutil.ignore_patterns(INCOMPLETE, BASE_ANSWERS))
            run.log_artifacts(copy, "evaluation")


def _tracked_metrics(comparison: "Comparison") -> dict[str, float]:
    """Test scores by the names that MLflow groups: ``test/mcc``, ``baseline/base_model/mcc``."""
    named = {"test": comparison.tuned} | ({} if comparison.base is None else {"baseline/base_model": comparison.base})
    named |= {f"baseline/{re.sub(r'[^0-9a-z]+', '_', n.lower())}": found for n, found in comparison.baselines.items()}
    return {
        f"{group}/{metric}": value
        for group, found in named.items()
        for metric, value in found.metrics.items()
        if value is not None
    }


def _write_predictions(
    path: Path, rows: Sequence[Row], tuned: list[Row], base: list[Row] | None, scored: "Evaluation"
) -> None:
    """One line a test row: its id and fields, the tuned model's whole answer, the gist of the base model's.

    ``parts`` are what the row adds to the headline metric's numerator and denominator.
    """
    with path.open("w", encoding="utf-8") as f:
        for i, (row, answer) in enumerate(zip(rows, tuned, strict=True)):
            right = {} if scored.row_correct is None else {"correct": scored.row_correct[i]}
            other = {} if base is None else {"base": base[i]}
            line = {**row, "tuned": answer, **right, **other, "parts": list(scored.row_parts[i])}
            f.write(to_json(line) + "\n")
