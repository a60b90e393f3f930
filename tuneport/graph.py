"""A pipeline is a plain function that wires steps; tracing it once gives the platform-free graph."""

from __future__ import annotations

import dataclasses as dc
import typing as t
from collections.abc import Callable, Mapping

from tuneport.errors import UserError, excerpt
from tuneport.step import Port, Step, observer, parse_values


@dc.dataclass(frozen=True)
class Ref:
    """A value known only when the pipeline runs: a step's output, or (``node`` is None) a pipeline input."""

    node: str | None
    port: str


@dc.dataclass(frozen=True, kw_only=True)
class Node:
    """One step of a pipeline: ``values`` maps each input and parameter to a literal or a `Ref`."""

    name: str
    step: type[Step]
    values: dict[str, t.Any]

    def upstream(self) -> list[str]:
        """Names of the nodes whose outputs this one reads."""
        return [v.node for v in self.values.values() if isinstance(v, Ref) and v.node is not None]

    def inputs(self) -> list[str]:
        """Names of the pipeline's inputs that it reads."""
        return [v.port for v in self.values.values() if isinstance(v, Ref) and v.node is None]


@dc.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A traced graph: nodes in topological order, its own inputs, and its named outputs."""

    name: str
    doc: str
    nodes: tuple[Node, ...]
    params: dict[str, Port]
    outputs: dict[str, Ref]

    def resolve(self, given: Mapping[str, t.Any]) -> dict[str, t.Any]:
        """Return every pipeline input's value: the given ones validated, defaults for the rest.

        Raises one `UserError` that lists unknown names, values that are not valid and required ones that are missing,
        or those that have no effect as their stage does not run.
        """
        problems, values = [], {}
        try:
            values = parse_values(self.params, given, self.name)
        except UserError as e:
            problems.append(str(e))
        missing = [p for p in self.params.values() if p.required and p.name not in given]
        problems += [f"{p.name}: is required by {self.name}; expected {p.wanted}: {p.help}" for p in missing]
        if problems:
            raise UserError("\n".join(problems))
        found = {name: values.get(name, port.default) for name, port in self.params.items()}
        if idle := self._idle(found):
            raise UserError("\n".join(idle))
        return found

    def _idle(self, values: Mapping[str, t.Any]) -> list[str]:
        """What is wrong with parameters that are set and are read by no stage that runs (see `Step.only_if`)."""
        active = self.active(values)
        read = {name for node in active for name in node.inputs()}
        switches = {name: node.step.only_if for node in self.nodes if node not in active for name in node.inputs()}
        return [
            f"{name}={excerpt(values[name])}: has no effect without {switches[name]}. Set that, or leave {name} out."
            for name, port in self.params.items()
            if name in switches.keys() - read - {switches.get(name)}
            and (port.kind, port.resource) == ("param", None)
            and values[name] not in (None, "", port.default)
        ]

    def bind(self, node: Node, values: Mapping[str, t.Any], output: Callable[[Ref], t.Any]) -> dict[str, t.Any]:
        """A node's inputs and parameters with every `Ref` replaced, unset ones left out."""
        bound = {
            name: v if not isinstance(v, Ref) else values[v.port] if v.node is None else output(v)
            for name, v in node.values.items()
        }
        return {name: v for name, v in bound.items() if v is not None}

    def active(self, values: Mapping[str, t.Any]) -> tuple[Node, ...]:
        """The nodes that run with these pipeline inputs (see `Step.only_if`)."""
        return tuple(
            n for n in self.nodes if n.step.only_if is None or self.bind(n, values, lambda r: r).get(n.step.only_if)
        )


def trace(function: Callable[[], Mapping[str, t.Any]], name: str | None = None) -> Pipeline:
    """Run a pipeline function once and return its graph.

    A step's input or parameter that the function leaves unset is promoted to an input of the pipeline under the same
    name; steps that share a name share the value. Raises `TypeError` where the wiring is wrong: it is the pipeline
    author's mistake, not the user's.
    """
    nodes: list[Node] = []
    params: dict[str, Port] = {}

    def observe(step: Step) -> None:
        node = _node(step, {n.name for n in nodes})
        types = {Ref(n.name, p.name): p.type for n in nodes for p in n.step.ports().values() if p.kind == "output"}
        for port in step.ports().values():
            if port.kind == "output":
                setattr(step, port.name, Ref(node.name, port.name))
            elif port.name not in node.values:
                _promote(params, port, node.name)
                node.values[port.name] = Ref(None, port.name)
            elif isinstance(node.values[port.name], Ref):
                _match(port, node, types)
            else:
                node.values[port.name] = port.parse(node.values[port.name])
        nodes.append(node)

    token = observer.set(observe)
    try:
        outputs = dict(function())
    finally:
        observer.reset(token)
    for output, ref in outputs.items():
        if not isinstance(ref, Ref):
            raise TypeError(f"output {output} of pipeline {function} is no step's output")
    doc = (function.__doc__ or "").partition("\n")[0]
    return Pipeline(name=name or function.__name__, doc=doc, nodes=tuple(nodes), params=params, outputs=outputs)


def _node(step: Step, taken: set[str]) -> Node:
    ports = step.ports()
    if unknown := set(step.given) - set(ports):
        raise TypeError(f"{step.name()} has no port {', '.join(sorted(unknown))}")
    name = step.name()
    if name in taken:
        raise TypeError(f"a pipeline holds {name} once; sub-class the step to use it again")
    values = {n: getattr(step, n) for n in step.given} | dict(step.fixed)
    return Node(name=name, step=type(step), values=values)


def _match(port: Port, node: Node, types: Mapping[Ref, type]) -> None:
    ref = node.values[port.name]
    if ref not in types:
        raise TypeError(f"{node.name}.{port.name} reads {ref.node}.{ref.port}, which no earlier step produces")
    if not issubclass(types[ref], port.type):
        raise TypeError(
            f"{node.name}.{port.name} takes a {port.type.__name__}, "
            f"but {ref.node}.{ref.port} is a {types[ref].__name__}"
        )


def _promote(params: dict[str, Port], port: Port, node: str) -> None:
    if port.kind == "input" and not getattr(port.type, "user_supplied", False):
        raise TypeError(f"{node}.{port.name} takes a {port.type.__name__}, and nothing is wired to it")
    other = params.setdefault(port.name, port)
    if dc.replace(other, help="", group="") != dc.replace(port, help="", group=""):
        raise TypeError(f"{node}.{port.name} and another step's {port.name} disagree on type, default or bounds")
