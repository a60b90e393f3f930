"""`python -m toy STAGE`."""

import sys

import toy
from tuneport.cli.stage_command import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(sys.argv[1:], names=["shout", "count", "publish"], load=toy.load))
