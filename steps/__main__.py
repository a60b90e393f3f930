"""Run one stage: `python -m steps STAGE --flag value`; the command of every image."""

import sys

import steps
from tuneport.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(sys.argv[1:], names=steps.names(), load=steps.load))
