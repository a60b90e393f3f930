"""Stage `model_registration`: make the exported model a version of a registered model."""

import dataclasses as dc

from tuneport.artifacts import MLflowModel, Registration, Report
from tuneport.errors import UserError, excerpt
from tuneport.json_yaml import read_json
from tuneport.parameters import COMPUTE, INSTANCE_TYPE
from tuneport.stage import save_json
from tuneport.step import Step, consumes, param, produces, resource


class ModelRegistration(Step):
    """Register the exported model in MLflow's model registry, tagged with its test scores."""

    cacheable = False
    only_if = "registered_model_name"
    registers = ("mlflow_model_folder", "registered_model_name")

    mlflow_model_folder: MLflowModel = consumes("Exported MLflow model.")
    evaluation_result: Report = consumes("Test scores, which become tags of the version.")
    registered_model_name: str | None = param("Name to register the model under; empty: no registration.", default=None)
    registration_details_folder: Registration = produces("Name, version and source of the registered model.")
    compute_model_registration: str = resource("compute", COMPUTE.format("model_registration"), default="serverless")
    instance_type_model_registration: str = resource(
        "instance_type", INSTANCE_TYPE.format("model_registration"), default="Standard_d12_v2"
    )

    def check(self) -> None:
        name = (self.registered_model_name or "").strip()
        if name in ("", ".", "..") or set(name) & set("/:"):
            raise UserError(
                f"registered_model_name={excerpt(self.registered_model_name)}: not valid; expected a name without '/' "
                "and ':'."
            )

    def run(self) -> None:
        from tuneport.export.registry import register

        name, model = self.registered_model_name or "", self.mlflow_model_folder.path
        found = register(self.context, name, model, tags=self._scores())
        save_json(self.registration_details_folder.path / "registration_details.json", dc.asdict(found))
        self.log.info("registered %s version %d from %s", found.name, found.version, found.source)

    def _scores(self) -> dict[str, str]:
        """The tuned model's main test scores, as tags."""
        path = self.evaluation_result.path / "metrics.json"
        try:
            metrics = read_json(path)
            scores = metrics["tuned"]["metrics"]
            return {f"test_{name}": f"{scores[name]:.6g}" for name in metrics["main"] if scores[name] is not None}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path}: holds no scores ({excerpt(e)}). Run model_evaluation again.") from None
