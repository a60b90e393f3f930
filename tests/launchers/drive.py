"""A launcher as a process of its own: `python -m tests.launchers.drive KIND JOB PATIENCE`, the last two as JSON."""

import importlib
import json
import sys

from tuneport.cli.environment import configure_logging
from tuneport.cli.exit_codes import guard
from tuneport.launchers import cluster
from tuneport.launchers.job import Job
from tuneport.launchers.kubernetes_api import Api, Patience
from tuneport.stage import Terminated, handled


def main(kind: str, described: str, patience: str) -> int:
    """Run a job to its end; its log goes to stdout."""
    fields = json.loads(described)
    job = Job(**{**fields, "command": tuple(fields["command"])})

    def stop(signum: int, frame: object) -> None:
        raise Terminated

    def work() -> int:
        api = Api(patience=Patience(**json.loads(patience)))
        reports = cluster.Reports(say=lambda line: print(line, flush=True))
        with handled(stop):
            cluster.run(api, importlib.import_module(f"tuneport.launchers.{kind}"), job, None, reports)
        return 0

    configure_logging()
    return guard(work)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
