"""Run one stage: `python -m steps STAGE --flag value`; the command of every image."""

import sys

import steps
from tuneport import tasks
from tuneport.cli import add_modules, guard, run_stage
from tuneport.stage import terminated_on_signal


def main() -> int:
    """Run the stage; returns the exit code."""
    with terminated_on_signal():  # the first process of a container stops for no signal that it does not handle
        add_modules("TUNEPORT_TASKS", "task", tasks.__path__)
        return run_stage(sys.argv[1:], names=steps.names(), load=steps.load)


if __name__ == "__main__":
    sys.exit(guard(main))
