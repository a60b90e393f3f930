"""The configuration's section `platform: azureml:`; nothing of it is needed to compile."""

from __future__ import annotations

import re
import typing as t

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
REFERENCE = (
    r"([a-z0-9.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
ENVIRONMENT = (
    r"azureml:[\w.-]+(:[\w.-]+|@[\w.-]+)|azureml://registries/[\w.-]+/environments/[\w.-]+/(versions|labels)/[\w.-]+"
)


def _image(value: str) -> str:
    known = ENVIRONMENT if value.startswith("azureml:") else REFERENCE
    if not re.fullmatch(known, value, re.ASCII):
        raise ValueError("expected an image, as in registry/name:tag, or azureml:NAME:VERSION of an environment")
    return value


Image = t.Annotated[str, AfterValidator(_image)]
Variables = dict[t.Annotated[str, Field(pattern=VARIABLE)], str]


class StageSettings(BaseModel):
    """What one stage has of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeout: int | None = Field(None, gt=0, description="Seconds after which the stage is cancelled.")
    job_tier: t.Literal["spot", "basic", "standard", "premium"] | None = Field(
        None, description="Tier of serverless compute; spot is cheap and may be stopped at any time."
    )
    environment_variables: Variables = Field({}, description="Set for this stage, over those of all stages.")


class AzureMLSettings(BaseModel):
    """Where and how a pipeline runs on Azure ML."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subscription: str | None = Field(
        None, pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", description="Id of the subscription."
    )
    resource_group: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.()-]{0,89}[A-Za-z0-9_()-]$", description="Name of its group."
    )
    workspace: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{2,32}$", description="Name of the workspace."
    )
    experiment_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,254}$",
        description="Experiment of the job; by default the pipeline's name.",
    )
    image_base: Image | None = Field(
        None, description="Built base image, or azureml:NAME:VERSION of an environment; by default Azure ML builds it."
    )
    image_trainer: Image | None = Field(None, description="The same of the trainer image.")
    identity: t.Literal["aml_token", "managed", "user_identity"] | None = Field(
        None, description="As whom the stages read and write data; by default what Azure ML chooses."
    )
    environment_variables: Variables = Field({}, description="Set for every stage.")
    output_mode: t.Literal["rw_mount", "upload"] = Field(
        "rw_mount",
        description="rw_mount: outputs are written to storage as they arise, so that checkpoints outlive a machine; "
        "upload: they are written to the machine's disk and copied when the stage has ended.",
    )
    force_rerun: bool = Field(False, description="Run every stage, even where Azure ML knows its result already.")
    tags: dict[str, str] = Field({}, description="Tags of the job.")
    stages: dict[str, StageSettings] = Field({}, description="By stage: what it has of its own.")

    def image(self, name: str) -> str | None:
        """The built image of a name (base, trainer), if one is given."""
        found: str | None = {"base": self.image_base, "trainer": self.image_trainer}.get(name)
        return found
