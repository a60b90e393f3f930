"""`tuneport replay`."""

from __future__ import annotations

import dataclasses as dc
import sys
from pathlib import Path

import click

from tuneport.cli.environment import shown
from tuneport.cli.pipeline_command import PipelineCommand, path_option, request_of, target_option
from tuneport.cli.stage_command import LoadStage


def command(load: LoadStage) -> click.Command:
    """Repeat one stage of a run."""

    def replay(
        run_stage: Path,
        overrides: tuple[str, ...],
        *,
        config: Path | None,
        target: str,
        run: bool,
        stage: str | None,
        output_dir: Path | None,
    ) -> int:
        from tuneport import replay, targets
        from tuneport.config import platform

        source = Path.cwd() / run_stage
        name, saved = replay.read(source, stage)
        pipeline = replay.pipeline(name, saved, overrides, load, Path.cwd())
        chosen = targets.load(target)
        run_folder = Path.cwd() if source.is_file() else source.parent
        folder = Path.cwd() / output_dir if output_dir else replay.fresh(run_folder / "replays" / name)
        request = request_of(pipeline, platform(config), ("replay", *sys.argv[2:]), folder)
        # a store of its own: a stage adds to the MLflow run that its inputs come from
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", **request.environment}
        document = chosen.compile(pipeline, {}, dc.replace(request, environment=environment))
        if run:
            return chosen.submit(document)
        click.echo(shown("\n".join(chosen.shell(document))))
        return 0

    parameters: list[click.Parameter] = [
        click.Argument(["run_stage"], type=click.Path(path_type=Path), metavar="RUN/STAGE"),
        click.Argument(["overrides"], nargs=-1, metavar="[NAME=VALUE]..."),
        path_option("--config", "FILE", "YAML file with the target's settings, under platform."),
        target_option("local"),
        click.Option(["--run"], is_flag=True, help="Run the command, do not only print it."),
        click.Option(["--stage"], metavar="STAGE", help="Whose executor input of Kubeflow Pipelines the file is."),
        path_option("--output_dir", "DIR", "Folder of what it writes.  [default: a new one in RUN/replays]"),
    ]
    help = (
        "Print or run the command that repeats one stage of a run with the same values. RUN/STAGE is a stage's folder, "
        "a saved STAGE.inputs.json, or an executor input of Kubeflow Pipelines; NAME=VALUE changes a value."
    )
    return PipelineCommand("replay", params=parameters, callback=replay, help=help)
