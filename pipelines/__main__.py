"""The `tuneport` command; also `python -m pipelines`."""

import gc
import sys

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
    return main(sys.argv[1:], names=pipelines.names, load=pipelines.load, stages=steps.names, load_stage=steps.load)


if __name__ == "__main__":
    run()
