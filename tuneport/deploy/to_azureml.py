"""Azure ML: a managed online endpoint, and its deployment of the exported MLflow model."""

from __future__ import annotations

import os.path

from pydantic import BaseModel, ConfigDict, Field

from tuneport.deploy.deployment import Deployment, Served, document

SCHEMAS = "https://azuremlschemas.azureedge.net/latest"
NAME = r"^[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]$"


class Settings(BaseModel):
    """What Azure ML has to be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("", pattern=rf"^$|{NAME}", description="Of the endpoint, unique in its region. Empty: the run's.")
    deployment: str = Field("blue", pattern=NAME, description="Of the deployment.")
    model: str = Field(
        "", pattern=r"^$|^azureml:", description="A registered one, as azureml:NAME:1. Empty: it is uploaded."
    )
    instance_type: str = Field("Standard_DS3_v2", min_length=1, description="Machine.")
    instance_count: int = Field(1, ge=1, description="Machines.")
    auth_mode: str = Field("key", pattern="^(key|aml_token|aad_token)$", description="key, aml_token or aad_token.")


def render(model: Served, settings: Settings) -> Deployment:
    """Endpoint and deployment, which need no scoring script: the model is MLflow's."""
    name = settings.name or model.name
    endpoint = {
        "$schema": f"{SCHEMAS}/managedOnlineEndpoint.schema.json",
        "name": name,
        "auth_mode": settings.auth_mode,
    }
    deployment = {
        "$schema": f"{SCHEMAS}/managedOnlineDeployment.schema.json",
        "name": settings.deployment,
        "endpoint_name": name,
        "model": settings.model or {"path": os.path.abspath(model.folder), "type": "mlflow_model"},  # noqa: PTH100
        "instance_type": settings.instance_type,
        "instance_count": settings.instance_count,
    }
    az = ["az", "ml"]
    return Deployment(
        files={"endpoint.yaml": document(endpoint), "deployment.yaml": document(deployment)},
        commands=[
            [*az, "online-endpoint", "create", "--file", "endpoint.yaml"],
            [*az, "online-deployment", "create", "--file", "deployment.yaml", "--all-traffic"],
        ],
        hint=f"az ml online-endpoint show --name {name}",
    )
