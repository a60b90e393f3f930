"""`tuneport schema`."""

from __future__ import annotations

import json
import typing as t
from collections.abc import Callable

import click

from tuneport.cli.completion import complete_pipelines

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline


def command(load: Callable[[str | None], Pipeline]) -> click.Command:
    """Print the JSON schema of a configuration."""

    @click.command("schema", help="Print the JSON schema of a configuration file, for editors.")
    @click.argument("pipeline", required=False, shell_complete=complete_pipelines)
    def schema(pipeline: str | None) -> None:
        click.echo(json.dumps(schema_of(load(pipeline)), indent=1, ensure_ascii=False))

    return schema


def schema_of(pipeline: Pipeline) -> dict[str, t.Any]:
    """The JSON schema of a pipeline's configuration, platforms included."""
    from tuneport import targets
    from tuneport.config import json_schema

    models = {name: targets.load(name).settings() for name in targets.names()}
    platforms = {name: model.model_json_schema() for name, model in models.items() if model}
    return json_schema(pipeline, platforms)
