"""Stage `model_export`: write the best model as an MLflow model that serves without tuneport."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tuneport import tasks
from tuneport.artifacts import Dataset, LoggedModel, MLflowModel, Model, read_manifest
from tuneport.metrics.answers import named
from tuneport.parameters import COMPUTE, INSTANCE_TYPE, OutputTypeParams
from tuneport.stage import parameters
from tuneport.step import Step, consumes, produces, resource
from tuneport.tasks import TaskParams

if TYPE_CHECKING:
    from tuneport.data.prepared import Prepared

ONNX_ROWS = 16  # for which the ONNX model is held against the model


class ModelExport(Step, TaskParams, OutputTypeParams):
    """Write the fine-tuned model as an MLflow model that loads and serves without tuneport."""

    image = "trainer"
    addressable = True
    may_leave: ClassVar = {"pytorch_model_folder": ("*.safetensors",)}

    pytorch_model_folder: Model = consumes("Fine-tuned model, with its checkpoints or without.")
    preprocess_output: Dataset = consumes("Prepared splits: column names and the rows of the input example.")
    model_selector_output: Model | None = consumes(
        "Imported base model; needed where the tuned one is a LoRA adapter that has no base model beside it."
    )
    mlflow_model_folder: MLflowModel = produces("MLflow model that needs no tuneport to be served.")
    logged_model_folder: LoggedModel = produces(
        "Where it was logged in MLflow, all that model_registration reads; the model itself where it did not reach the "
        "server.",
        optional=True,
    )
    compute_model_export: str = resource("compute", COMPUTE.format("model_export"), default="serverless")
    instance_type_model_export: str = resource(
        "instance_type", INSTANCE_TYPE.format("model_export"), default="Standard_d12_v2"
    )

    def check(self) -> None:
        from tuneport.modeling.onnx_model import check_formats

        check_formats(self._formats())

    def check_here(self) -> None:
        from tuneport.modeling.onnx_model import check_installed

        if self._formats():
            check_installed()

    def needs(self, name: str) -> bool:
        """Weights that are exported as they are, to no MLflow server, are copied where they stand."""
        from tuneport.modeling.merged_adapters import is_adapter
        from tuneport.modeling.weight_types import AUTO
        from tuneport.serving.adapter_sum import LoraAdapter

        model = self.pytorch_model_folder.path
        is_whole = not is_adapter(model) or LoraAdapter(str(model)).has_base()
        as_they_are = self.output_dtype == AUTO and is_whole
        return self.context.tracking_uri is not None or bool(self._formats()) or not as_they_are

    def lost_effect(self) -> str:
        from tuneport.tracking import lost_model

        return lost_model(self.mlflow_model_folder.path, self.context)

    def run(self) -> None:
        from tuneport.data.prepared import Prepared
        from tuneport.export import write_mlflow_model
        from tuneport.export.logged_model import write_logged_model
        from tuneport.licences import carry_notices
        from tuneport.modeling.merged_adapters import merged
        from tuneport.tracking import run_id_of, save_run, tracked

        started = time.monotonic()
        model, output = self.pytorch_model_folder.path, self.mlflow_model_folder.path
        prepared = Prepared(self.preprocess_output.path)
        prepared.check_task(self.task_name)
        task = tasks.load(self.task_name)
        base = self.model_selector_output.path if self.model_selector_output else None
        with merged(model, base, scratch=output, output_dtype=self.output_dtype) as plain:
            write_mlflow_model(
                task,
                plain,
                columns=prepared.info.columns,
                meta=prepared.info.meta,
                settings=task.settings(prepared.info.meta, self),
                example_rows=prepared.rows("test"),
                destination=output,
                reading=self._reading(),
            )
            if self._formats():
                self._write_onnx(plain, prepared)
        carry_notices(model, output)
        model_uri = None
        if run_id := run_id_of(model, self.context):
            with tracked(self.context, self.name(), run_id) as run:
                run.log_params(parameters(self))
                model_uri = run.log_model(output)
        save_run(output, run_id, self.context, model_uri)
        if self.logged_model_folder is not None:
            missed = run_id is not None and model_uri is None
            write_logged_model(output, self.logged_model_folder.path, whole=missed)
        self.log.info("MLflow model written in %.1f s", time.monotonic() - started)

    def _formats(self) -> list[str]:
        given: str = vars(self).get("export_formats") or ""  # a parameter of some tasks
        return named(given, "export_formats", "onnx")

    def _write_onnx(self, model: Path, prepared: "Prepared") -> None:
        from tuneport.licences import carry_notices
        from tuneport.modeling.onnx_model import FOLDER, write_onnx_model

        task, meta = tasks.load(self.task_name), prepared.info.meta
        rows = next(rows for split in ("test", "validation", "train") if (rows := prepared.rows(split)))
        loaded = task.load_model(model, meta, new_head=False, dtype="float32").eval()
        folder = self.mlflow_model_folder.path / FOLDER
        write_onnx_model(
            loaded,
            task.predictor(str(model), task.settings(meta, self), model=loaded),
            rows[:ONNX_ROWS],
            task=task.name,
            tokenizer=model,
            destination=folder,
        )
        carry_notices(model, folder)
        self.log.info("%s: its logits are those of the model, for %d rows", folder.name, len(rows[:ONNX_ROWS]))

    def _reading(self) -> dict[str, Any]:
        """What the user told preprocess of this task's columns."""
        given = read_manifest(self.preprocess_output)["parameters"]
        group = tasks.load(self.task_name).params.get("preprocess")
        return {name: given[name] for name in (group.ports() if group else ()) if name in given}
