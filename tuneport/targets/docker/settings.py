"""The docker target's part of a configuration, ``platform: {docker: …}``."""

from __future__ import annotations

import typing as t

from pydantic import BaseModel, ConfigDict, Field

import tuneport
from tuneport.step import Step


class Images(BaseModel):
    """Which image runs the stages that need no torch, and which the others; `make images` builds the default ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: t.Annotated[str, Field(min_length=1, description="For stages without torch.")] = (
        f"tuneport-base:{tuneport.__version__}"
    )
    trainer: t.Annotated[str, Field(min_length=1, description="For stages with torch.")] = (
        f"tuneport-trainer:{tuneport.__version__}"
    )


class Settings(BaseModel):
    """How stages run in containers of this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Images = Field(Images(), description="Images by name, as Docker knows them.")
    gpus: t.Literal["auto", "all", "none"] = Field(
        "auto", description="Whether stages with torch get the GPUs; auto: where Docker can pass them on."
    )
    memory: str | None = Field(
        None, pattern=r"^\d+[bkmg]$", description="Most memory of a stage, /dev/shm included, as in 16g. Unset: all."
    )
    tmp_size: str = Field(
        "8g", pattern=r"^\d+[bkmg]$", description="Most that a stage may keep in /tmp, which is in memory."
    )
    network: str = Field(
        "bridge", min_length=1, description="Docker network of the stages that need one, such as bridge or host."
    )
    environment: tuple[str, ...] = Field((), description="Names of further variables that stages get from here.")


def shm_size(step: Step) -> tuple[str, str] | None:
    """The name and value of the resource by which a step asks for its size of /dev/shm."""
    found = [p.name for p in step.ports().values() if p.resource == "shm_size"]
    return (found[0], str(getattr(step, found[0]))) if found else None
