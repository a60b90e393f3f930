"""The `tuneport` command; also `python -m pipelines`."""

import sys

import pipelines
import steps
from tuneport.cli import main


def run() -> None:
    """Entry point of the `tuneport` command."""
    sys.exit(main(sys.argv[1:], names=pipelines.names, load=pipelines.load, load_step=steps.load))


if __name__ == "__main__":
    run()
