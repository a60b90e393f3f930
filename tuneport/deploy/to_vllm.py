"""vLLM: the command that serves a language model, or its base model with the LoRA adapter beside it."""

from __future__ import annotations

import shlex

from pydantic import BaseModel, ConfigDict, Field

from tuneport.deploy.deployment import DECODERS, Deployment, Served
from tuneport.errors import UserError


class Settings(BaseModel):
    """How vLLM is started."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("", description="By which requests name the model. Empty: the run's.")
    host: str = Field("127.0.0.1", min_length=1, description="Address that it listens at.")
    port: int = Field(8000, ge=1, le=65535, description="Port that it listens at.")
    gpus: int = Field(1, ge=1, description="GPUs that the model is spread over.")
    max_model_len: int = Field(0, ge=0, description="Most tokens of a prompt and its answer. 0: the model's own.")


def render(model: Served, settings: Settings) -> Deployment:
    """The command, also as a script. Raises `UserError` for a model that vLLM does not serve."""
    if model.task not in DECODERS:
        raise UserError(
            f"--to vllm: serves decoders, not a {model.task} model; expected one of {', '.join(DECODERS)}. "
            "Take --to docker."
        )
    name = settings.name or model.name
    served = model.base if model.adapter and model.base else model.plain
    command = ["vllm", "serve", str(served), "--host", settings.host, "--port", str(settings.port)]
    command += ["--tensor-parallel-size", str(settings.gpus)] if settings.gpus > 1 else []
    command += ["--max-model-len", str(settings.max_model_len)] if settings.max_model_len else []
    if model.adapter:
        command += ["--served-model-name", f"{name}-base", "--enable-lora", "--max-lora-rank", str(model.max_lora_rank)]
        command += ["--lora-modules", f"{name}={model.adapter}"]
    else:
        command += ["--served-model-name", name]
    return Deployment(
        files={"serve.sh": f"#!/bin/sh\nexec {shlex.join(command)}\n"},
        commands=[command],
        hint=f"curl http://{settings.host}:{settings.port}/v1/models",
    )
