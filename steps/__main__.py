"""Run one stage: `python -m steps STAGE --flag value`; the command of every image."""

import sys

import steps
from tuneport import tasks
from tuneport.cli import add_tasks, guard, run_stage

if __name__ == "__main__":
    if code := guard(lambda: add_tasks(tasks.add_folder)):
        sys.exit(code)
    sys.exit(run_stage(sys.argv[1:], names=steps.names(), load=steps.load))
