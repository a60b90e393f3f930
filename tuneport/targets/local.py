"""Run a pipeline here: each stage a subprocess."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping

from tuneport.graph import Pipeline
from tuneport.runner.request import Request
from tuneport.runner.run import Executor, Plan, compile_plan, run_plan, shell_lines
from tuneport.targets.target import Target


class Local(Target):
    """This machine: one subprocess after another."""

    honours = frozenset({"processes"})
    here = True

    def compile(self, pipeline: Pipeline, values: Mapping[str, t.Any], request: Request) -> Plan:
        return compile_plan(pipeline, values, request)

    def submit(self, document: Plan) -> int:
        return run_plan(document, Executor())

    def shell(self, document: Plan) -> list[str]:
        return shell_lines(document)
