"""The `tuneport` command; also `python -m pipelines`."""

import gc
import sys
import typing as t
from collections.abc import Sequence

from tuneport.cli.interrupts import ends_quietly

with ends_quietly():
    import pipelines
    import steps
    from tuneport.cli.environment import add_modules
    from tuneport.cli.exit_codes import guard
    from tuneport.cli.main import main


def run() -> None:
    """Entry point of the `tuneport` command."""
    gc.set_threshold(100_000, 50, 50)  # importing makes many objects and throws few away
    sys.exit(guard(_run))


def _run() -> int:
    add_modules("tuneport.tasks", "tuneport.targets", "steps", "pipelines")
    return command(sys.argv[1:])


def command(argv: Sequence[str]) -> int:
    """`tuneport ARGV`; returns the exit code."""
    return main(
        argv,
        names=pipelines.names,
        load=pipelines.load,
        stages=steps.names,
        load_stage=steps.load,
        estimate=_estimate,
        preview=_preview,
        start=_start,
    )


def _estimate(*asked: t.Any) -> tuple[list[str], dict[str, t.Any]]:
    from tuneport.estimation import estimate

    found = estimate.estimate(*asked)
    return [*estimate.lines(found)], found.as_json()


def _start(task: str | None, data: str | None, model: str | None, folder: t.Any) -> tuple[str, str]:
    from tuneport.inspection import start

    return start.write(task, data, model, folder, pipelines.load)


def _preview(pipeline: t.Any, values: t.Any, rows: int, html: t.Any) -> t.Any:
    from tuneport.inspection.look import preview
    from tuneport.inspection.show import render, save_html

    found = preview(pipeline, values, rows)
    if html is not None:
        save_html(found, html)
    return render(found)


if __name__ == "__main__":
    run()
