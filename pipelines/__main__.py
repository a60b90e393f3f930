"""The `tuneport` command; also `python -m pipelines`."""

import sys

import pipelines
import steps
from tuneport import tasks
from tuneport.cli import add_tasks, guard, main


def run() -> None:
    """Entry point of the `tuneport` command."""
    if code := guard(lambda: add_tasks(tasks.add_folder)):
        sys.exit(code)
    sys.exit(main(sys.argv[1:], names=pipelines.names, load=pipelines.load, load_stage=steps.load))


if __name__ == "__main__":
    run()
