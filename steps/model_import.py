"""Stage `model_import`: make any source of a base model one canonical, checked folder."""

from tuneport import model_source
from tuneport.artifacts import CustomMLflowModel, CustomModel, Model
from tuneport.errors import UserError
from tuneport.step import Step, consumes, produces


class ModelImport(Step):
    """Import a base model: config, safetensors and tokenizer in one checked folder."""

    image = "trainer"
    network = True

    pytorch_model_path: CustomModel | None = consumes("Hugging Face model folder: config.json, weights, tokenizer.")
    mlflow_model_path: CustomMLflowModel | None = consumes("MLflow model folder of a transformers flavour, or of ours.")
    model_selector_output: Model = produces("The model as config, safetensors, tokenizer.json, licence.")

    def check(self) -> None:
        model_source.check_contents(model_source.model_folders(self._source().path))

    def run(self) -> None:
        source, destination = self._source().path, self.model_selector_output.path
        model_source.import_model(model_source.model_folders(source), destination)
        size = sum(f.stat().st_size for f in destination.iterdir())
        self.log.info("imported %s: %.1f MB", source, size / 1e6)

    def _source(self) -> CustomModel | CustomMLflowModel:
        given = [m for m in (self.pytorch_model_path, self.mlflow_model_path) if m is not None]
        if len(given) != 1:
            got = "both pytorch_model_path and mlflow_model_path" if given else "neither of them"
            raise UserError(f"got {got}; wanted exactly one of pytorch_model_path, mlflow_model_path. Set one of them.")
        if isinstance(given[0], CustomMLflowModel):
            model_source.check_mlflow_model(given[0].path)
        return given[0]
