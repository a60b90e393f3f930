"""KServe: an InferenceService, with the Hugging Face runtime for models that write text, else with MLflow's."""

from __future__ import annotations

import typing as t

from pydantic import BaseModel, ConfigDict, Field

from tuneport.deploy.deployment import PLAIN, WRITERS, Deployment, Served, document
from tuneport.errors import UserError
from tuneport.serving.adapter_sum import LoraAdapter

MOUNT = "/mnt/models"
NAME = r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"


class Settings(BaseModel):
    """What the cluster has to be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    storage_uri: str = Field(
        min_length=1,
        pattern=r"^(s3|gs|pvc|https?|hf|abfss?|wasbs|oci|file)://",
        description="Where the cluster finds the exported model (mlflow_model_folder), as s3://… or pvc://CLAIM/….",
    )
    base_uri: str = Field(
        "",
        description="Where it finds the base model, for a LoRA adapter that was not merged. Empty: in storage_uri, "
        "where the exported model holds both.",
    )
    adapter_uri: str = Field("", description="Where it finds that adapter (pytorch_model_folder). Empty: as base_uri.")
    name: str = Field("", pattern=rf"^$|{NAME}", description="Of the service. Empty: made of the run's folder.")
    namespace: str = Field("default", pattern=NAME, description="Namespace.")
    runtime: t.Literal["auto", "mlflow", "huggingface"] = Field(
        "auto", description="auto: huggingface (vLLM) for models that write text, else mlflow."
    )
    image: str = Field("", description="Image of the mlflow runtime that has the packages of requirements.txt.")
    min_replicas: int = Field(1, ge=0, description="Fewest pods.")
    max_replicas: int = Field(1, ge=1, description="Most pods.")
    gpus: int = Field(0, ge=0, description="GPUs of a pod.")
    cpu: str = Field("2", pattern=r"^\d+m?$", description="CPUs of a pod.")
    memory: str = Field("8Gi", pattern=r"^\d+(\.\d+)?[KMGT]i?$", description="Memory of a pod.")
    service_account: str = Field("", description="Service account that may read storage_uri.")


def render(model: Served, settings: Settings) -> Deployment:
    """The InferenceService.

    Raises `UserError` where the runtime does not serve the model, and for an adapter whose place is not named.
    """
    writes = model.task in WRITERS
    runtime = settings.runtime if settings.runtime != "auto" else "huggingface" if writes else "mlflow"
    if runtime == "huggingface" and not writes:
        raise UserError(
            f"runtime=huggingface: answers in other words than the exported {model.task} model; expected "
            "runtime=mlflow."
        )
    if settings.max_replicas < settings.min_replicas:
        raise UserError(f"max_replicas={settings.max_replicas}: expected >= min_replicas={settings.min_replicas}.")
    name = settings.name or model.name
    amount: dict[str, t.Any] = {"cpu": settings.cpu, "memory": settings.memory}
    amount |= {"nvidia.com/gpu": str(settings.gpus)} if settings.gpus else {}
    predictor: dict[str, t.Any] = {"minReplicas": settings.min_replicas, "maxReplicas": settings.max_replicas}
    predictor |= {"serviceAccountName": settings.service_account} if settings.service_account else {}
    served = _language_model(model, settings, name) if runtime == "huggingface" else _mlflow(settings)
    predictor |= served.pop("predictor", {})
    predictor["model"] = {**served, "resources": {"requests": amount, "limits": amount}}
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": {"app.kubernetes.io/managed-by": "tuneport"},
        },
        "spec": {"predictor": predictor},
    }
    return Deployment(
        files={"inferenceservice.yaml": document(manifest)},
        commands=[["kubectl", "apply", "-f", "inferenceservice.yaml"]],
        hint=f"kubectl get inferenceservice {name} -n {settings.namespace}",
    )


def _mlflow(settings: Settings) -> dict[str, t.Any]:
    image = {"image": settings.image} if settings.image else {}
    return {
        "modelFormat": {"name": "mlflow"},
        "protocolVersion": "v2",
        "storageUri": settings.storage_uri,
        **image,
    }


def _language_model(model: Served, settings: Settings, name: str) -> dict[str, t.Any]:
    arguments = [f"--model_name={name}"]
    if settings.image:
        raise UserError("image: is that of the mlflow runtime, which this model does not get. Leave it out.")
    if model.is_encoder_decoder:
        arguments.append("--task=text2text_generation")
    if model.adapter is None:
        if settings.base_uri or settings.adapter_uri:
            raise UserError("base_uri and adapter_uri: the run has no adapter that was not merged. Leave them out.")
        place = f"{settings.storage_uri.rstrip('/')}/{PLAIN}"
        return {"modelFormat": {"name": "huggingface"}, "args": arguments, "storageUri": place}
    exported = f"{settings.storage_uri.rstrip('/')}/{PLAIN}" if model.holds_adapter else ""
    base = settings.base_uri or (exported and f"{exported}/{LoraAdapter.BASE}")
    adapter = settings.adapter_uri or exported
    if not (base and adapter):
        raise UserError(
            "base_uri and adapter_uri: are required for a LoRA adapter that was not merged; expected where the cluster "
            "finds the base model (model_selector_output) and the adapter (pytorch_model_folder)."
        )
    arguments = [f"--model_name={name}-base", f"--model_dir={MOUNT}/base", "--enable-lora"]
    arguments += [f"--max-lora-rank={model.max_lora_rank}", f"--lora-modules={name}={MOUNT}/adapter"]
    uris = [
        {"uri": base, "mountPath": f"{MOUNT}/base"},
        {"uri": adapter, "mountPath": f"{MOUNT}/adapter"},
    ]
    return {"modelFormat": {"name": "huggingface"}, "args": arguments, "predictor": {"storageUris": uris}}
