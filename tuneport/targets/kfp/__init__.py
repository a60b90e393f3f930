"""Kubeflow Pipelines: a pipeline as the document that its backend, its UI and `kfp.local` read."""

from __future__ import annotations

import dataclasses as dc
import gc
import os
import typing as t
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tuneport import targets
from tuneport.graph import Pipeline
from tuneport.runner import bind
from tuneport.runner.request import Request
from tuneport.step import Step
from tuneport.targets.target import Target

if t.TYPE_CHECKING:
    from pydantic import BaseModel

    from tuneport.targets.kfp.settings import Settings


REMEDY = (
    "Put it into a Secret that platform.kfp.secrets names (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for "
    "MLflow), and data into an object store or on a volume."
)


@dc.dataclass(frozen=True, kw_only=True)
class Document:
    """A compiled pipeline: its YAML, and what is needed to send it."""

    pipeline: str
    text: str
    settings: Settings
    request: Request


class Kfp(Target):
    """A cluster with Kubeflow Pipelines."""

    honours = frozenset({"processes", "shm_size", "nodes"})
    remote = True

    def settings(self) -> type[BaseModel]:
        from tuneport.targets.kfp.settings import Settings

        return Settings

    def compile(self, pipeline: Pipeline, values: Mapping[str, t.Any], request: Request) -> Document:
        found = targets.settings(self, request)
        targets.refuse_secrets(self, values, request, REMEDY)
        steps = bind.instantiate(pipeline, values, request.output_dir)
        bind.check(steps, files=False)
        with _no_garbage_collection():
            from tuneport.targets.kfp.compile import compile_pipeline

            text = compile_pipeline(pipeline, values, steps, found)
        return Document(pipeline=pipeline.name, text=text, settings=found, request=request)

    def write(self, document: Document, output: Path) -> None:
        from tuneport.artifacts import write_atomically
        from tuneport.errors import UserError

        if output.suffix not in (".yaml", ".yml"):
            raise UserError(f"{output}: not valid; expected the name of a YAML file, as in pipeline.yaml.")
        try:
            write_atomically(output, document.text)
        except OSError as e:
            raise UserError(f"{output}: cannot be written ({e.strerror}). Name another file.") from None

    def submit(self, document: Document) -> int:
        from tuneport.targets.kfp.send import submit

        request = document.request
        return submit(document.pipeline, document.text, document.settings, request.environment, request.submission)

    def run_stage(
        self,
        step: type[Step],
        flags: Mapping[str, str],
        given: Mapping[str, t.Any],
        work: Callable[[Mapping[str, t.Any]], int],
    ) -> int:
        from tuneport.targets.kfp import by_address, executor

        flags_of_ours = (
            executor.FLAG, executor.JOB_FLAG, executor.RUN_FLAG, executor.VALUES_FLAG, executor.ARTIFACTS_FLAG
        )  # fmt: skip
        known = {flag.removeprefix("--"): flag for flag in flags_of_ours}
        if unknown := {name: value for name, value in flags.items() if name not in known}:
            return super().run_stage(step, unknown, given, work)
        values = {known[name]: value for name, value in flags.items()}
        if (text := values.get(executor.VALUES_FLAG)) is not None:
            return by_address.run(step, {**executor.values(text), **given}, work)
        environment = None
        if (job := values.get(executor.JOB_FLAG)) is not None:
            from tuneport.targets.kfp import multi_node

            described = multi_node.described(job)
            environment = os.environ if multi_node.uses_store(described) else None
            work = partial(multi_node.run, step, described, values.get(executor.RUN_FLAG, ""))
        elif values.get(executor.ARTIFACTS_FLAG) == executor.BY_STORE:
            environment, stage_work = os.environ, work

            def work(values: Mapping[str, t.Any]) -> int:
                return by_address.run(step, values, stage_work)

        return executor.run(step, values.get(executor.FLAG, ""), given, work, environment)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Importing kfp makes many objects and no garbage; looking for some takes as long as compiling."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
