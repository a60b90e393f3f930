"""The `tuneport` command; also `python -m pipelines`."""

import sys

import pipelines
from tuneport.cli import main


def run() -> None:
    """Entry point of the `tuneport` command."""
    sys.exit(main(sys.argv[1:], names=pipelines.names, load=pipelines.load))


if __name__ == "__main__":
    run()
