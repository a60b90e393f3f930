"""Stage `model_benchmark`: score the tuned model beside its base on benchmarks, so that what it forgot is seen."""

import importlib.util
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from tuneport import tasks
from tuneport.artifacts import INCOMPLETE, Folder, Model, Report, read_manifest
from tuneport.errors import UserError
from tuneport.json_yaml import json_line
from tuneport.metrics.answers import named
from tuneport.parameters import COMPUTE, INSTANCE_TYPE, SeedParams
from tuneport.stage import parameters, save_json
from tuneport.step import Step, View, consumes, param, produces, resource
from tuneport.tasks import TaskParams

if TYPE_CHECKING:
    from tuneport.evaluation.benchmark_scores import BenchmarkScores
    from tuneport.evaluation.harness import Asking, Harness, Measured
    from tuneport.serving.placement import Placement

PLAIN_DECODER: dict[str, Any] = {"prompting": {"encoder_decoder": False, "stop": []}}  # lm_eval says where texts end


class ModelBenchmark(Step, TaskParams, SeedParams):
    """Score the tuned model and its base on tasks of lm-evaluation-harness: what tuning forgot."""

    image = "trainer"
    only_if = "benchmark_tasks"

    model_selector_output: Model = consumes("Imported base model.")
    pytorch_model_folder: Model = consumes("Tuned model, with its checkpoints or without.")
    benchmark_folder: Folder | None = consumes(
        "Folder with the data of benchmarks, from which alone it is read then: a data set of a hub in the folder of "
        "its name, as allenai/ai2_arc; also task files (YAML) of your own, and the data that they name."
    )
    benchmark_result: Report = produces(
        "Scores of both models, every answer, and an HTML page.",
        views={
            "benchmark_metrics": View("metrics", "metrics.json", ("tuned", "metrics")),
            "base_model_benchmark_metrics": View("metrics", "metrics.json", ("base", "metrics")),
            "benchmark_report": View("html", "report.html"),
        },
    )
    compute_model_benchmark: str = resource("compute", COMPUTE.format("model_benchmark"), default="serverless")
    instance_type_model_benchmark: str = resource(
        "instance_type", INSTANCE_TYPE.format("model_benchmark"), default="Standard_nc24rs_v3"
    )
    benchmark_tasks: str = param(
        "Benchmarks: tasks and groups of lm_eval, such as hellaswag,arc_easy,mmlu, and those that YAML files in "
        "benchmark_folder define, by name. Empty: none.",
        default="",
        json=True,
    )
    benchmark_rows: int = param("The first so many rows of each benchmark; -1: all.", default=-1, ge=-1)
    num_fewshot: int = param(
        "Solved examples before each question of a benchmark; -1: as many as it says itself. One that says 0 keeps to "
        "that.",
        default=-1,
        ge=-1,
    )
    benchmark_batch_size: int = param(
        "Questions that the model is asked at once; 0: as many as the memory of a GPU allows, on a CPU 8.",
        default=0,
        ge=0,
    )
    apply_chat_template: Literal["auto", "true", "false"] = param(
        "Ask by turns that the tuned model's chat template writes, both models alike. auto: for chat_completion.",
        default="auto",
    )

    def check(self) -> None:
        task = tasks.load(self.task_name)
        if task.benchmarked == "no":
            able = [name for name in tasks.names() if tasks.load(name).benchmarked != "no"]
            raise UserError(
                f"benchmark_tasks: benchmarks are of models that go on with a text, and those of {task.name} do not. "
                f"Leave it out; it is for {', '.join(able)}."
            )
        if not self._names():
            raise UserError(
                "benchmark_tasks: names no benchmark; expected names of lm_eval's tasks, such as hellaswag."
            )
        if self.benchmark_rows == 0:
            raise UserError("benchmark_rows=0: asks nothing; expected at least 1, or -1 for all rows.")

    def check_here(self) -> None:
        from tuneport.evaluation.harness import check_installed

        check_installed("benchmark_tasks")

    def check_files(self) -> None:
        """Find benchmarks and their data; where lm_eval is not installed, the machine that the stage runs on does so.

        Raises `UserError` for a benchmark that there is not, or whose data is not there.
        """
        folder = self.benchmark_folder
        if folder is not None and not folder.is_local:
            raise UserError(
                f"benchmark_folder={folder.address}: is no path of this machine, and benchmarks are not read from a "
                "store. Fetch the folder."
            )
        if folder is not None and not folder.path.is_dir():
            raise UserError(f"benchmark_folder={folder.path}: is not a folder; expected one with data of benchmarks.")
        if importlib.util.find_spec("torch") is not None and importlib.util.find_spec("lm_eval") is not None:
            _ = self._harness

    def repeatable(self) -> bool:
        return self.benchmark_folder is not None  # else the hub's data may be other the next time

    def needs_network(self) -> bool:
        return self.benchmark_folder is None or super().needs_network()

    def origins(self) -> Mapping[str, str]:
        """The version of lm_eval, which brings benchmarks."""
        from tuneport.evaluation.harness import version

        return {"benchmark_tasks": f"lm_eval {version()}"} if version() else {}

    def lost_effect(self) -> str:
        from tuneport.tracking import lost_artifacts

        return lost_artifacts(self.pytorch_model_folder.path, self.context, "benchmark")

    def run(self) -> None:
        from tuneport.evaluation.benchmark_scores import BenchmarkScores
        from tuneport.evaluation.prediction import release

        how, tokenizer = self._asking()
        found: dict[str, Mapping[str, Measured]] = {}
        with self._harness.loaded() as harness:
            placement = self._placement()
            for name, folder in self._models().items():
                found[name] = harness.measure(name, self._load(name, folder, placement), tokenizer, how)
                release()
        scores = BenchmarkScores(tuned=found["tuned model"], base=found["base model"], seed=self.seed)
        self._say_other_shots(found["tuned model"])
        output = self.benchmark_result.path
        save_json(output / "metrics.json", {"lm_eval": self.origins(), **scores.as_json()})
        with (output / "samples.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json_line(row) for row in scores.samples())
        (output / "report.html").write_text(scores.page(self._subject(), self._facts(how)), "utf-8")
        self._track(scores)
        for line in scores.lines():
            self.log.info("%s", line)

    def _names(self) -> list[str]:
        return named(self.benchmark_tasks, "benchmark_tasks", "hellaswag,arc_easy")

    @cached_property
    def _harness(self) -> "Harness":
        from tuneport.evaluation.harness import Harness

        return Harness(self._names(), self.benchmark_folder.path if self.benchmark_folder else None)

    def _models(self) -> dict[str, Path]:
        return {"tuned model": self.pytorch_model_folder.path, "base model": self.model_selector_output.path}

    def _asking(self) -> "tuple[Asking, Any]":
        """How both models are asked, and the tokenizer by which they are, the tuned model's."""
        from tuneport.evaluation.harness import Asking, tokenizer_of

        tokenizer = tokenizer_of(self.pytorch_model_folder.path)
        by_task = tasks.load(self.task_name).benchmarked == "chat"
        chat = by_task if self.apply_chat_template == "auto" else self.apply_chat_template == "true"
        if chat and not tokenizer.chat_template:
            raise UserError(
                f"apply_chat_template={self.apply_chat_template}: {self.pytorch_model_folder.path} has no chat "
                "template. Take apply_chat_template=false."
            )
        how = Asking(
            rows=None if self.benchmark_rows == -1 else self.benchmark_rows,
            shots=None if self.num_fewshot == -1 else self.num_fewshot,
            batch_size=self.benchmark_batch_size or None,
            chat=chat,
            seed=self.seed,
        )
        return how, tokenizer

    def _placement(self) -> "Placement":
        from tuneport.evaluation.prediction import place

        placement = place(list(self._models().values()))
        self.log.info("%s", placement.said())
        return placement

    def _load(self, name: str, folder: Path, placement: "Placement") -> Any:
        from tuneport.evaluation.prediction import Subject

        subject = Subject(
            folder=folder,
            name=name,
            base=self.model_selector_output.path,
            tokenizer=self.pytorch_model_folder.path,
            placement=placement,
            seed=self.seed,
            ignore_mismatched_sizes=False,
        )
        return subject.load(tasks.load(self.task_name), PLAIN_DECODER)

    def _say_other_shots(self, measured: "Mapping[str, Measured]") -> None:
        for name, one in measured.items():
            if self.num_fewshot > 0 and one.shots == 0 and not one.children:
                self.log.warning(
                    "%s: says num_fewshot: 0 itself, so num_fewshot=%d does not hold", name, self.num_fewshot
                )

    def _subject(self) -> str:
        from tuneport.model_source.model_name import model_name

        imported = read_manifest(self.model_selector_output)["parameters"]
        return f"{model_name(self.model_selector_output.path, imported)}, tuned, beside its base"

    def _facts(self, how: "Asking") -> list[str]:
        from tuneport.evaluation.harness import version

        asked = "by turns, which the tuned model's chat template writes" if how.chat else "by plain text"
        rows = "all rows" if how.rows is None else f"the first {how.rows:,} rows"
        where = "the hub" if self.benchmark_folder is None else "benchmark_folder alone"
        return [
            f"Both models were asked {asked}: {rows} of each benchmark.",
            f"lm_eval {version()}; data from {where}.",
        ]

    def _track(self, scores: "BenchmarkScores") -> None:
        """Add scores and report to the run that trained the model."""
        from tuneport.tracking import run_id_of, tracked

        if self.context.tracking_uri is None:
            return
        run_id = run_id_of(self.pytorch_model_folder.path, self.context)
        with tracked(self.context, self.name(), run_id) as run, TemporaryDirectory() as folder:
            run.log_model_metrics(scores.tracked())
            run.log_params(parameters(self))
            copy = Path(folder) / "benchmark"
            shutil.copytree(self.benchmark_result.path, copy, ignore=shutil.ignore_patterns(INCOMPLETE))
            run.log_artifacts(copy, "benchmark")
