"""Run a pipeline here, each stage in a container of its own: same plan, outputs and cache as the local target."""

from __future__ import annotations

import dataclasses as dc
import re
import typing as t
from collections.abc import Mapping

from tuneport import targets
from tuneport.errors import UserError, excerpt
from tuneport.graph import Pipeline
from tuneport.runner.request import Request
from tuneport.runner.run import Plan, compile_plan, run_plan
from tuneport.targets.target import Target

if t.TYPE_CHECKING:
    from tuneport.targets.docker.settings import Settings

SIZE = re.compile(r"\d+[bkmg]?", re.IGNORECASE)  # as Docker writes sizes
LOOPBACK = re.compile(r"https?://(localhost|127\.\d+\.\d+\.\d+|\[::1\])([:/]|$)")


@dc.dataclass(frozen=True, kw_only=True)
class ContainerPlan:
    """The local target's plan, and in which containers its stages run."""

    plan: Plan
    settings: Settings


class Docker(Target):
    """Containers of this machine, one after another."""

    honours = frozenset({"processes", "shm_size"})

    def settings(self) -> type[Settings]:
        from tuneport.targets.docker.settings import Settings

        return Settings

    def compile(self, pipeline: Pipeline, values: Mapping[str, t.Any], request: Request) -> ContainerPlan:
        from tuneport.targets.docker.settings import shm_size

        chosen: Settings = targets.settings(self, request)
        plan = compile_plan(pipeline, values, request, python=("python", "-P"))
        for stage in plan.stages:
            if (size := shm_size(stage.step)) and not SIZE.fullmatch(size[1]):
                raise UserError(
                    f"{size[0]}={excerpt(size[1])}: not valid; expected a size as Docker writes it, such as 5g."
                )
        if LOOPBACK.match(plan.tracking_uri) and chosen.network != "host":
            raise UserError(
                f"MLFLOW_TRACKING_URI={plan.tracking_uri}: in a container that is the container itself. Name this "
                "machine by an address that others reach, or set platform.docker.network to host."
            )
        if missing := [name for name in chosen.environment if name not in request.environment]:
            raise UserError(f"platform.docker.environment: {missing[0]} is not set here. Set it, or leave it out.")
        return ContainerPlan(plan=plan, settings=chosen)

    def submit(self, document: ContainerPlan) -> int:
        """Run the stages; returns what `run_plan` does.

        Raises `UserError` where Docker does not answer, an image is missing or there is no GPU to pass on.
        """
        from tuneport.targets.docker.container import Containers, Engine

        engine = Engine(document.plan.environment)
        images = {stage.step.image: vars(document.settings.images)[stage.step.image] for stage in document.plan.stages}
        ids = {name: engine.inspect(image, name)["Id"] for name, image in images.items()}
        gpus = document.settings.gpus == "all" or (document.settings.gpus == "auto" and engine.sees_gpus())
        if document.settings.gpus == "all":
            engine.require_gpus()
        return run_plan(document.plan, Containers(engine, document.settings, ids, gpus=gpus))

    def shell(self, document: ContainerPlan) -> list[str]:
        from tuneport.targets.docker.container import shell_line

        return [shell_line(document.plan, stage, document.settings) for stage in document.plan.stages]
