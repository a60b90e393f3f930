"""Stage `model_registration`: make the exported model a version of a registered model."""

import dataclasses as dc
from collections.abc import Mapping
from typing import Any

from tuneport.artifacts import LoggedModel, Registration, Report
from tuneport.errors import UserError, excerpt
from tuneport.export.gate import EXAMPLE, Gate
from tuneport.json_yaml import read_json
from tuneport.parameters import COMPUTE, INSTANCE_TYPE
from tuneport.stage import save_json
from tuneport.step import Step, consumes, param, produces, resource


class ModelRegistration(Step):
    """Register the exported model in MLflow's model registry, tagged with its test scores and the verdict."""

    cacheable = False
    only_if = "registered_model_name"
    registers = ("mlflow_model_folder", "registered_model_name")

    mlflow_model_folder: LoggedModel = consumes(
        "Exported MLflow model, or its logged_model_folder, which says where it was logged."
    )
    evaluation_result: Report = consumes("Test scores, which become tags of the version.")
    registered_model_name: str | None = param("Name to register the model under; empty: no registration.", default=None)
    register_if: str | None = param(
        f"Register only where this holds, as in '{EXAMPLE}'. Names are the tuned model's test scores, those of the "
        "base model with base_ before them, better_than_base and worse_than_base, which are true where the difference "
        "is clear. Unset: whatever the scores.",
        default=None,
    )
    move_champion: bool = param(
        "Give the version the alias champion where there is none, or where it is clearly better than the present "
        "champion on the same test rows.",
        default=False,
    )
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
        self._gate()

    def run(self) -> None:
        from tuneport.export.registry import register

        metrics = self._metrics()
        gate, values = self._gate(), _values(metrics)
        details = self.registration_details_folder.path / "registration_details.json"
        name = self.registered_model_name or ""
        if gate and not gate(values):
            reason = f"register_if={self.register_if} does not hold: {gate.said(values)}"
            save_json(details, {"name": name, "version": None, "refused": reason})
            self.log.warning("%s is not registered: %s", name, reason)
            return
        found = register(
            self.context,
            name,
            self.mlflow_model_folder.path,
            tags=self._tags(metrics),
            row_scores=self._row_scores(),
            move_champion=self.move_champion,
        )
        said = {key: value for key, value in dc.asdict(found).items() if value is not None}
        save_json(details, said)
        self.log.info("registered %s version %d from %s", found.name, found.version, found.source)
        if found.champion is not None:
            self.log.info("%s: %s", "champion now" if found.champion else "not the champion", found.champion_reason)

    def _gate(self) -> Gate | None:
        return Gate(self.register_if, "register_if") if self.register_if else None

    def _metrics(self) -> dict[str, Any]:
        """What the evaluation wrote to metrics.json."""
        path = self.evaluation_result.path / "metrics.json"
        try:
            found: dict[str, Any] = read_json(path)
            _ = [found["tuned"]["metrics"][name] for name in found["main"]]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path}: holds no scores ({excerpt(e)}). Run model_evaluation again.") from None
        return found

    def _tags(self, metrics: Mapping[str, Any]) -> dict[str, str]:
        """The tuned model's main test scores, and the verdict."""
        scores = metrics["tuned"]["metrics"]
        tags = {f"test_{name}": f"{scores[name]:.6g}" for name in metrics["main"] if scores[name] is not None}
        if "level" in metrics:
            tags |= {"verdict": metrics["level"]}
        return tags

    def _row_scores(self) -> dict[str, Any] | None:
        path = self.evaluation_result.path / "row_scores.json"
        return read_json(path) if path.is_file() else None


def _values(metrics: Mapping[str, Any]) -> dict[str, float | bool | None]:
    """What `register_if` may name."""
    base = {f"base_{name}": value for name, value in metrics.get("base", {}).get("metrics", {}).items()}
    gains = {key: metrics.get(key) for key in ("better_than_base", "worse_than_base")}
    return {**metrics["tuned"]["metrics"], **base, **gains}
