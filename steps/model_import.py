"""Stage `model_import`: make any source of a base model one canonical, checked folder."""

from collections.abc import Mapping
from pathlib import Path

from tuneport.artifacts import INCOMPLETE, CustomMLflowModel, CustomModel, Model, Tokenizer
from tuneport.errors import UserError
from tuneport.links import link_tree
from tuneport.model_source import folder, hub, lora_adapter
from tuneport.model_source.remote_code import forget_code
from tuneport.modeling.merged_adapters import is_adapter
from tuneport.parameters import COMPUTE, INSTANCE_TYPE
from tuneport.step import Step, consumes, param, produces, resource

SOURCES = ("pytorch_model_path", "mlflow_model_path", "huggingface_id")


class ModelImport(Step):
    """Import a base model: config, safetensors and tokenizer in one checked folder."""

    image = "trainer"
    network = True
    addressable = True
    copies = ("pytorch_model_path", "mlflow_model_path", "base_model_path")

    pytorch_model_path: CustomModel | None = consumes(
        "Hugging Face model folder (config.json, weights, tokenizer), one of ours, or a GGUF file."
    )
    base_model_path: CustomModel | None = consumes(
        "Base model of the LoRA adapter in pytorch_model_path, where it is not where the adapter says."
    )
    mlflow_model_path: CustomMLflowModel | None = consumes("MLflow model folder of a transformers flavour, or of ours.")
    huggingface_id: str | None = param("Id of a model on a hub, as in organisation/name.", default=None)
    huggingface_revision: str | None = param(
        "Branch, tag or commit of the hub model. Unset: the newest version.", default=None
    )
    gguf_file: str | None = param("Name of the GGUF file to import, where there are several.", default=None)
    model_selector_output: Model = produces("The model as config, safetensors, tokenizer.json, licence.")
    tokenizer_folder: Tokenizer = produces("The same without its weights: all that preprocess reads.", optional=True)
    compute_model_import: str = resource("compute", COMPUTE.format("model_import"), default="serverless")
    instance_type_model_import: str = resource(
        "instance_type", INSTANCE_TYPE.format("model_import"), default="Standard_d12_v2"
    )

    def check(self) -> None:
        self._snapshot: Path | None = None
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            got = "both " + " and ".join(given) if len(given) == 2 else "all three" if given else "none of them"
            raise UserError(f"got {got}; expected exactly one of {', '.join(SOURCES)}. Set one of them.")
        if self.huggingface_id is not None:
            hub.check_id(self.huggingface_id, self.huggingface_revision)
        elif self.huggingface_revision is not None:
            raise UserError(
                f"huggingface_revision={self.huggingface_revision}: has no effect without huggingface_id. Leave it out."
            )

    def check_files(self) -> None:
        for name, model in self.inputs().items():
            if not model.address.is_local:
                raise UserError(
                    f"{name}={model.address}: is no path of this machine, and a model is not read from a store. Fetch "
                    "it, or name a hub model with huggingface_id."
                )
        if self.base_model_path is not None and (self.pytorch_model_path is None or self._adapter() is None):
            raise UserError(
                f"base_model_path={self.base_model_path.path}: has an effect only where pytorch_model_path holds "
                "a LoRA adapter. Leave it out."
            )
        if self.huggingface_id is not None:
            return
        if self.mlflow_model_path is not None:
            folder.check_mlflow_model(self.mlflow_model_path.path)
        if adapter := self._adapter():
            lora_adapter.check_adapter(adapter, self._base())
        else:
            folder.check_source(self._path(), self.gguf_file)

    def run(self) -> None:
        source = self._path()
        destination = self.model_selector_output.path
        if adapter := self._adapter():
            lora_adapter.import_adapter(adapter, self._base(), destination)
        else:
            folder.import_model(source, destination, self.gguf_file)
        if changed := forget_code(destination):
            self.log.warning("%s: auto_map, which names code of the model's own, is taken out", ", ".join(changed))
        if self.tokenizer_folder is not None:
            weights = [file.name for file in destination.glob("*.safetensors*")]
            link_tree(destination, self.tokenizer_folder.path, leave_out=[INCOMPLETE, *weights])
        size = sum(f.stat().st_size for f in destination.iterdir())
        self.log.info("imported %s: %.1f MB", self.huggingface_id or source, size / 1e6)

    def repeatable(self) -> bool:
        return self.huggingface_id is None or hub.is_commit(self.huggingface_revision)

    def origins(self) -> Mapping[str, str]:
        if self.huggingface_id is None:
            return {}
        commit = (
            self._snapshot.name if self._snapshot else hub.commit_of(self.huggingface_id, self.huggingface_revision)
        )
        return {"huggingface_id": commit} if commit else {}

    def _adapter(self) -> Path | None:
        """The folder of the adapter that is to be imported; of an MLflow model, one that its base model lies in."""
        if self.pytorch_model_path is not None:
            return self.pytorch_model_path.path if is_adapter(self.pytorch_model_path.path) else None
        return lora_adapter.in_mlflow_model(self.mlflow_model_path.path) if self.mlflow_model_path else None

    def _base(self) -> Path | None:
        return self.base_model_path.path if self.base_model_path is not None else None

    def _path(self) -> Path:
        """Where the model lies on this machine; a hub model is fetched to the hub's cache first."""
        if self.huggingface_id is not None:
            self._snapshot = hub.download(self.huggingface_id, self.huggingface_revision, self.gguf_file)
            self.log.info("%s is at commit %s", self.huggingface_id, self._snapshot.name)
            return self._snapshot
        (given,) = (m for m in (self.pytorch_model_path, self.mlflow_model_path) if m is not None)
        return given.path
