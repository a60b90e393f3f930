"""Stage `predict`: let an exported model answer the rows of a source, however many they are."""

import dataclasses as dc
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tuneport.address import EXTRAS
from tuneport.artifacts import CustomMLflowModel, File, Predictions, digest
from tuneport.data.column_map import column_map
from tuneport.data.readers import Source, find
from tuneport.errors import UserError
from tuneport.parameters import COMPUTE, INSTANCE_TYPE
from tuneport.stage import save_json
from tuneport.step import Step, consumes, param, produces, resource

if TYPE_CHECKING:
    from tuneport.evaluation.batch_prediction import SavedModel

FOLDER = "rows"  # of the output


class Predict(Step):
    """Answer the rows of a source with an exported model, in files of bounded size; goes on where it was stopped."""

    image = "trainer"
    keeps_on_failure = (FOLDER,)

    mlflow_model_folder: CustomMLflowModel = consumes(
        "MLflow model: the mlflow_model_folder of a run, or any other one whose signature names its columns."
    )
    predict_file_path: File = consumes(
        "Rows to answer: jsonl, json, csv, tsv or parquet; a file, a glob or a folder, or an address, as for training."
    )
    predictions: Predictions = produces("Each row with its answer, as JSON lines in files, and a summary.")
    compute_predict: str = resource("compute", COMPUTE.format("predict"), default="serverless")
    instance_type_predict: str = resource(
        "instance_type", INSTANCE_TYPE.format("predict"), default="Standard_nc24rs_v3"
    )
    number_of_gpu_to_use_prediction: int = param(
        "Processes of predict, each with a GPU of its own and a part of the rows; where there is no GPU, processes on "
        "the CPU.",
        default=1,
        ge=1,
        resource="processes",
    )
    columns: str | None = param(
        "Where the data has the columns that the model takes, as a JSON object of name and column: "
        '{"text": "body.plain"}; a dot leads into an object.',
        default=None,
        json=True,
    )
    prediction_key: str = param("Name of the answer beside a row's columns.", default="prediction")
    rows_per_file: int = param(
        "Rows of a file. What a process has not finished of a file when it is stopped is answered again.",
        default=1000,
        ge=1,
    )
    prediction_batch_size: int = param("Rows that the model answers at once.", default=32, ge=1)
    max_refused_fraction: float = param(
        "Largest share of rows that the model may refuse, whose answer is null; above it the stage fails.",
        default=0.05,
        ge=0,
        le=1,
    )

    def resumes(self) -> bool:
        return True

    def processes(self) -> int | None:
        return self.number_of_gpu_to_use_prediction if self.number_of_gpu_to_use_prediction > 1 else None

    def repeatable(self) -> bool:
        return self.predict_file_path.address.scheme not in EXTRAS

    def origins(self) -> Mapping[str, str]:
        """What stands for the bytes of rows that lie elsewhere."""
        if self.repeatable():
            return {}
        identity = self._source().identity
        return {"predict_file_path": identity} if identity else {}

    def check_files(self) -> None:
        needed, optional = self._model().columns()
        self._source(needed, optional).peek({name: name for name in needed})

    def run(self) -> None:
        """Answer what is missing, each process its own files. Raises `UserError` where the model refuses too much."""
        from tuneport.evaluation.batch_prediction import Parts, one_gpu, predict, refused
        from tuneport.evaluation.ranks import Ranks

        if self.context.world_size > 1:
            one_gpu(self.context.local_rank)
        output, key = self.predictions.path, self.prediction_key
        parts, model = Parts(folder=output / FOLDER, rows=self.rows_per_file), self._model()
        needed, optional = model.columns()
        source = self._source(needed, optional)

        def load() -> "SavedModel":
            model.load()
            return model

        with Ranks.joined(self.context, output) as ranks:
            if ranks.rank == 0 and (there := parts.begin(self._follows_from(source))):
                self.log.info("%d files of an earlier run in the same place are whole", there)
            ranks.all("begun", True)
            rows = self._rows(source, needed, optional)
            total = predict(load, rows, parts, ranks, key)
            ranks.all("done", True)
        if self.context.rank > 0:
            return
        files = parts.files()
        written, failed, reasons = refused(files, key)
        if written != total:
            raise RuntimeError(f"{output}: {written} rows are written of {total}")
        if failed > self.max_refused_fraction * total:
            raise UserError(
                f"the model refuses {failed:,} of {total:,} rows; expected at most a share of "
                f"max_refused_fraction={self.max_refused_fraction:g}. {'; '.join(reasons)}. Mend the rows, or raise "
                "max_refused_fraction: their answers are null then."
            )
        for reason in reasons:
            self.log.warning("%s", reason)
        save_json(output / "summary.json", {"rows": total, "refused": failed, "files": len(files)})
        self.log.info("%d rows answered, %d refused, in %d files", total - failed, failed, len(files))

    def _model(self) -> "SavedModel":
        from tuneport.evaluation.batch_prediction import SavedModel

        return SavedModel(self.mlflow_model_folder.path, self.prediction_batch_size)

    def _source(self, needed: list[str] | None = None, optional: list[str] | None = None) -> Source:
        found = find(self.predict_file_path.address, "predict_file_path")
        asked = {name: name for name in needed or ()}
        return dc.replace(found, map=column_map(self.columns, asked, optional or ())) if needed is not None else found

    def _rows(self, source: Source, needed: list[str], optional: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in source.rows({name: name for name in needed}, optional):
            yield row.row_id, dict(row.values)

    def _follows_from(self, source: Source) -> dict[str, Any]:
        return {
            "model": digest(self.mlflow_model_folder),
            "rows": source.identity or digest(self.predict_file_path),
            "columns": self.columns,
            "prediction_key": self.prediction_key,
            "rows_per_file": self.rows_per_file,
        }
