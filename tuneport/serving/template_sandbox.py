"""Where chat templates run: a template is a program, and comes with a model that a stranger may have made."""

from __future__ import annotations

import typing as t


class TemplateLimit(ValueError):
    """A template takes more time or memory than it may: (problem, reason)."""


class TemplateSandbox:
    """Jinja's sandbox, in which a template also ends in time and writes texts of bounded size.

    Self-contained: exported with chat models. Signals take no part, so it works in any thread. Jinja's own limit is
    that of a ``range``, 100,000 numbers.
    """

    # For one rendering on the clock, then as many of processor time. A hundred turns take a few milliseconds.
    seconds = 1.0
    longest = 1 << 24  # characters of a text, values of a list
    bits = 1 << 16  # of a number
    # Filters whose numbers say how much they write.
    widths = frozenset(["batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap"])
    growing = frozenset(["format", "join", "list", "map", "pprint", "replace", "string", "sum", "urlize", "xmlattr"])
    sized = (str, list, tuple, bytes)

    def __init__(self) -> None:
        import threading
        import time

        class Started(threading.local):
            deadline = float("inf")  # on the clock
            own_deadline: float | None = None  # in processor time, asked for once the clock says that it may be late

        self.started, self.clock, self.own_time = Started(), time.monotonic, time.thread_time
        started, clock, late, sized, longest = self.started, self.clock, self.late, self.sized, self.longest

        def checked(value: t.Any) -> t.Any:
            """Return a value that is not too long, in time."""
            if clock() > started.deadline:
                late()
            if isinstance(value, sized) and len(value) > longest:
                raise self.too_long()
            return value

        self.checked = checked

    def environment(self, extensions: t.Sequence[t.Any]) -> t.Any:
        """Return an environment for templates as transformers has it."""
        from jinja2 import nodes
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from jinja2.visitor import NodeTransformer

        sandbox = self

        def checked(node: t.Any) -> t.Any:
            return nodes.Filter(node, "checked", [], [], None, None, lineno=1)

        class Checks(NodeTransformer):
            """Every loop, and every value that gets a name, goes through `checked`: what grows needs one of them."""

            def visit_For(self, node: t.Any) -> t.Any:  # noqa: N802
                self.generic_visit(node)
                node.iter = checked(node.iter)
                return node

            def visit_Assign(self, node: t.Any) -> t.Any:  # noqa: N802
                self.generic_visit(node)
                node.node = checked(node.node)
                return node

            def visit_AssignBlock(self, node: t.Any) -> t.Any:  # noqa: N802
                self.generic_visit(node)
                node.filter = checked(node.filter)
                return node

        class Environment(ImmutableSandboxedEnvironment):
            intercepted_binops = frozenset(["*", "**", "%"])

            def _generate(self, source: t.Any, *args: t.Any, **kwargs: t.Any) -> str:
                return super()._generate(Checks().visit(source), *args, **kwargs)

            def call_binop(self, context: t.Any, operator: str, left: t.Any, right: t.Any) -> t.Any:
                sandbox.check_operation(operator, left, right)
                return super().call_binop(context, operator, left, right)

            def wrap_str_format(self, value: t.Any) -> t.Any:
                if wrapped := super().wrap_str_format(value):
                    sandbox.check_operation("%", value.__self__, ())
                return wrapped

            def call(self, context: t.Any, called: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
                if isinstance(getattr(called, "__self__", None), str):
                    sandbox.check_widths([*args, *kwargs.values()])
                return sandbox.checked(super().call(context, called, *args, **kwargs))

        environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        del environment.globals["lipsum"]  # it writes as much as it is asked for
        environment.filters["checked"] = self.checked
        return environment

    def bound(self, environment: t.Any) -> None:
        """Hold the filters of an environment that write more than they are given to the limits, too."""
        from functools import wraps

        def bounded(name: str, filter: t.Any) -> t.Any:
            @wraps(filter)
            def apply(*args: t.Any, **kwargs: t.Any) -> t.Any:
                if name in self.widths:
                    self.check_widths([*args[1:], *kwargs.values()])
                elif name == "format":
                    self.check_operation("%", args[0], args[1:])
                return self.checked(filter(*args, **kwargs))

            return apply

        for name in self.widths | self.growing:
            environment.filters[name] = bounded(name, environment.filters[name])

    def render(self, template: t.Any, **values: t.Any) -> str:
        """Return what a template writes. Raises `TemplateLimit` where that is too long, or takes too long."""
        self.started.deadline, self.started.own_deadline = self.clock() + self.seconds, None
        pieces, length = [], 0
        try:
            for piece in template.generate(**values):
                pieces.append(piece)
                length += len(piece)
                if length > self.longest:
                    raise self.too_long()
        except MemoryError:
            raise TemplateLimit("a chat template that takes all memory", "expected a few kilobytes") from None
        return "".join(pieces)

    def late(self) -> None:
        """Raise `TemplateLimit` where the time on the clock was this rendering's own: the process may have waited."""
        now = self.own_time()
        if self.started.own_deadline is None:
            self.started.own_deadline = now + self.seconds
        elif now > self.started.own_deadline:
            raise TemplateLimit(
                f"a chat template that runs for more than {2 * self.seconds:g} seconds on one conversation",
                "does a loop in it end?",
            )

    def check_operation(self, operator: str, left: t.Any, right: t.Any) -> None:
        """Raise `TemplateLimit` where the result of ``*``, ``**`` or ``%`` would be too long."""
        import re

        if operator == "%":
            if isinstance(left, str):  # a width in a format
                given = right if isinstance(right, (tuple, list)) else [right]
                self.check_widths([*map(int, re.findall(r"\d{5,18}", left)), *(given if "*" in left else [])])
            return
        if isinstance(left, int) and isinstance(right, int):
            size = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * max(right, 0)
            if size > self.bits:
                raise TemplateLimit("a chat template that computes a number of too many digits", f"{size:,} bits")
        elif operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(text, "__len__") and len(text) * times > self.longest:
                    raise self.too_long()

    def check_widths(self, given: t.Sequence[t.Any]) -> None:
        """Raise `TemplateLimit` where a number says that something be written so wide."""
        if any(isinstance(value, int) and value > self.longest for value in given):
            raise self.too_long()

    def too_long(self) -> TemplateLimit:
        return TemplateLimit(
            "a chat template that writes too much", f"expected at most {self.longest:,} characters or values"
        )
