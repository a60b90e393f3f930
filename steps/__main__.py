"""Run one stage: `python -m steps STAGE --flag value`; the command of every image."""

import sys

from tuneport.cli.interrupts import ends_quietly

with ends_quietly():
    import steps
    from tuneport.cli.environment import add_modules
    from tuneport.cli.exit_codes import guard
    from tuneport.cli.stage_command import run_stage
    from tuneport.stage import terminated_on_signal


def main() -> int:
    """Run the stage; returns the exit code."""
    with terminated_on_signal():  # the first process of a container stops for no signal that it does not handle
        add_modules("tuneport.tasks", "tuneport.targets", "steps")
        return run_stage(sys.argv[1:], names=steps.names(), load=steps.load)


if __name__ == "__main__":
    sys.exit(guard(main))
