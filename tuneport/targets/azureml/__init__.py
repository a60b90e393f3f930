"""Azure ML: compile to YAML that `az ml job create -f DIR/job.yaml` takes, needing nothing of Azure's; submit."""

from __future__ import annotations

import os
import shutil
import typing as t
from collections.abc import Mapping
from pathlib import Path

import tuneport
from tuneport.errors import UserError
from tuneport.graph import Pipeline
from tuneport.runner.bind import instantiate
from tuneport.runner.request import Request
from tuneport.targets import refuse_secrets
from tuneport.targets import settings as read_settings
from tuneport.targets.azureml.checks import check
from tuneport.targets.azureml.documents import CONTEXT, DOCKERFILES, Document, Folded, Spec, files
from tuneport.targets.azureml.settings import AzureMLSettings
from tuneport.targets.target import Target

HEADER = "# Written by tuneport; send it with: az ml job create -f job.yaml\n"
REMEDY = (
    "Name a datastore (azureml://datastores/…) or a data asset, whose credential the workspace keeps; let stages read "
    "other secrets as platform.azureml.identity, out of a Key Vault."
)
# What the images are built of, beside their Dockerfiles.
SOURCES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "images", "tuneport", "steps", "pipelines")


class AzureML(Target):
    """Azure Machine Learning: a pipeline job of one command component per stage."""

    honours = frozenset({"compute", "instance_type", "shm_size", "processes", "nodes"})
    remote = True

    def settings(self) -> type[AzureMLSettings]:
        return AzureMLSettings

    def compile(self, pipeline: Pipeline, values: Mapping[str, t.Any], request: Request) -> Document:
        settings: AzureMLSettings = read_settings(self, request)
        refuse_secrets(self, values, request, REMEDY)
        steps = instantiate(pipeline, values, request.output_dir)
        check(pipeline, values, steps, settings)
        built = [step for step in steps.values() if step.registers is None and settings.image(step.image) is None]
        return Document(
            pipeline=pipeline.name,
            files=files(pipeline, values, steps, settings),
            source=Path(tuneport.__file__).parent.parent if built else None,
            settings=settings,
            submission=request.submission,
        )

    def write(self, document: Document, output: Path) -> None:
        """Write the folder beside its place and move it there, so that it is whole or as it was before."""
        write(document, output)

    def submit(self, document: Document) -> int:
        from tuneport.targets.azureml.client import submit

        return submit(document, write)

    def tracking_uri(self, uri: str) -> str:
        """MLflow needs a plugin for Azure ML's scheme; what it stands for is a plain MLflow server over HTTPS."""
        return "https" + uri.removeprefix("azureml").partition("?")[0]


def write(document: Document, output: Path) -> None:
    """Write a document's files to a folder, with what its images are built of.

    Raises `UserError` where something else stands there, or it cannot be written.
    """
    _refuse_foreign(output)
    if document.source is not None:
        _check_source(document.source)
    partial, old = output.with_name(f".{output.name}.partial"), output.with_name(f".{output.name}.old")
    try:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        for name, spec in document.files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(HEADER * (name == "job.yaml") + _yaml(spec, (output / name).parent), "utf-8")
        if document.source is not None:
            _copy_source(document.source, partial / CONTEXT)
        if output.exists():
            output.rename(old)
        partial.rename(output)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as e:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{output}: cannot be written ({e.strerror}). Name another folder with -o.") from None


def _refuse_foreign(output: Path) -> None:
    """Refuse to replace what this program did not write."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    job = output / "job.yaml"
    if not job.is_file() or not job.read_text("utf-8", "replace").startswith(HEADER):
        raise UserError(f"{output}: exists and was not written by tuneport compile. Name a new folder with -o.")


def _check_source(source: Path) -> None:
    missing = [name for name in DOCKERFILES.values() if not (source / name).is_file()]
    if missing:
        raise UserError(
            f"no Dockerfiles to build the images from ({source / missing[0]} is missing): this tuneport was installed "
            "without its source. Name built images in the configuration, platform: azureml: image_base and "
            "image_trainer, or run tuneport from its source folder."
        )


def _copy_source(source: Path, context: Path) -> None:
    """Copy what the images are built of; they are to end as root, as which Azure ML sets up a job's container."""
    context.mkdir()
    for name in SOURCES:
        if (source / name).is_dir():
            shutil.copytree(source / name, context / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy2(source / name, context / name)
    for name in DOCKERFILES.values():
        text = (source / name).read_text("utf-8")
        (context / name).write_text(
            f"{text.rstrip()}\n# Azure ML sets up a job's container as this user.\nUSER root\n", "utf-8"
        )


def _yaml(spec: Spec, folder: Path) -> str:
    """YAML with long texts folded, and local paths relative to the folder that it stands in."""
    import yaml

    class Dumper(yaml.CSafeDumper):
        def ignore_aliases(self, data: t.Any) -> bool:
            return True

    def path(dumper: Dumper, value: Path) -> yaml.Node:
        at = value.parent.resolve() / value.name
        return dumper.represent_str(os.path.relpath(at, folder.resolve()))

    def folded(dumper: Dumper, value: Folded) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", str(value), style=">")

    Dumper.add_multi_representer(Path, path)
    Dumper.add_representer(Folded, folded)
    return yaml.dump(spec, Dumper=Dumper, sort_keys=False, width=110, allow_unicode=True)
