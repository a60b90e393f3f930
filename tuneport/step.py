"""What a step is: a keyword-only dataclass whose fields are its ports and whose `run` does the work.

One definition of a port (type, default, bounds, choices, help) is read by the command line, the local runner, the
configuration schema and every target.
"""

from __future__ import annotations

import dataclasses as dc
import inspect
import logging
import re
import types
import typing as t
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from tuneport.address import Address
from tuneport.artifacts import Artifact
from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.mixture import canonical, is_mixture
from tuneport.synonyms import meant

T = t.TypeVar("T")
Kind = t.Literal["input", "param", "output", "resource"]
Resource = t.Literal["compute", "instance_type", "shm_size", "processes", "nodes"]


class Required:
    """The default of a port that has none."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = Required()
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
WORDS: dict[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def consumes(help: str, *, mixable: bool = False) -> t.Any:
    """Declare an input artifact; annotate it ``X | None`` where it may be left out.

    ``mixable``: a list of several does as well; see `tuneport.mixture`.
    """
    return dc.field(default=REQUIRED, metadata={"kind": "input", "help": help, "mixable": mixable})


@dc.dataclass(frozen=True)
class View:
    """A file of an output that platforms show to people, as what; ``at``: the keys that lead to it in a JSON file."""

    kind: t.Literal["metrics", "confusion_matrix", "markdown", "html"]
    file: str
    at: tuple[str, ...] = ()


def produces(help: str, *, views: Mapping[str, View] | None = None, optional: bool = False) -> t.Any:
    """Declare an output artifact, and by name what of it is worth showing.

    ``optional``: a stage that is run alone may be given no place for it.
    """
    metadata = {"kind": "output", "help": help, "views": views or {}, "optional": optional}
    return dc.field(default=None, metadata=metadata)


@t.overload
def param(
    help: str,
    *,
    choices: Sequence[str] = ...,
    besides: Mapping[str, str] = ...,
    resource: Resource = ...,
    refused: Mapping[str, str] = ...,
    json: bool = ...,
    gt: float = ...,
    ge: float = ...,
    lt: float = ...,
    le: float = ...,
) -> t.Any: ...
@t.overload
def param(
    help: str,
    *,
    default: T,
    choices: Sequence[str] = ...,
    besides: Mapping[str, str] = ...,
    resource: Resource = ...,
    refused: Mapping[str, str] = ...,
    json: bool = ...,
    gt: float = ...,
    ge: float = ...,
    lt: float = ...,
    le: float = ...,
) -> T: ...
def param(
    help: str,
    *,
    default: t.Any = REQUIRED,
    choices: Sequence[str] = (),
    besides: Mapping[str, str] | None = None,
    resource: Resource | None = None,
    refused: Mapping[str, str] | None = None,
    json: bool = False,
    **bounds: float,
) -> t.Any:
    """Declare a parameter: ``str``, ``int``, ``float``, ``bool`` or a ``Literal``, ``| None`` where it may be unset.

    ``choices`` are those of a ``str`` whose values are listed elsewhere, so that no ``Literal`` can name them;
    ``besides``: what else it takes, as a regular expression and in words.
    ``resource``: what it asks of the machines that run the step, too; only targets that give it take another value
    than the default. ``refused``: values that one might expect among the choices, and why they are not. ``json``: the
    text is JSON, in whose place a configuration may have a mapping or a list.
    """
    metadata = {
        "kind": "param",
        "help": help,
        "choices": tuple(choices),
        "besides": besides or {},
        "bounds": bounds,
        "resource": resource,
        "refused": refused or {},
        "json": json,
    }
    return dc.field(default=default, metadata=metadata)


def resource(kind: Resource, help: str, *, default: T) -> T:
    """Declare what a step asks of the machine it runs on; the target reads it, the step itself never does."""
    return dc.field(default=default, metadata={"kind": "resource", "help": help, "resource": kind})


@dc.dataclass(frozen=True, kw_only=True)
class Port:
    """One input, parameter or output of a step."""

    name: str
    kind: Kind
    type: type
    help: str
    default: t.Any = REQUIRED
    choices: tuple[t.Any, ...] = ()
    besides: Mapping[str, str] = dc.field(default_factory=dict)  # what else it takes: a regular expression, in words
    bounds: Mapping[str, float] = dc.field(default_factory=dict)
    optional: bool = False
    group: str = ""
    resource: Resource | None = None  # what it asks of the machines that run the step
    refused: Mapping[str, str] = dc.field(default_factory=dict)  # why these values are not among the choices
    views: Mapping[str, View] = dc.field(default_factory=dict)  # of an output
    json: bool = False  # whether its text is JSON
    mixable: bool = False  # whether a list of several sources does as well, as a list or as JSON

    @property
    def is_artifact(self) -> bool:
        return self.kind in ("input", "output")

    @property
    def required(self) -> bool:
        return self.kind != "output" and self.default is REQUIRED

    @property
    def wanted(self) -> str:
        """The values this port takes, in words."""
        if self.is_artifact:
            return f"a path ({self.type.__name__})"
        if self.choices:
            others = [f"or {words}" for words in self.besides.values()]
            return "one of " + ", ".join([*(repr(c) if c == "" else str(c) for c in self.choices), *others])
        limits = " and ".join(f"{BOUNDS[k]} {v}" for k, v in self.bounds.items())
        return f"{WORDS[self.type]} {limits}".rstrip()

    def parse(self, value: t.Any) -> t.Any:
        """Return the value in this port's type; text is converted.

        Raises `UserError` where the type, a bound or a choice does not hold.
        """
        if value is None and self.optional:
            return None
        if self.is_artifact:
            return self._parse_artifact(value)
        if self.optional and self.type is not str and value in ("", "none", "None", "null"):
            return None
        if (
            self.type is str
            and isinstance(value, bool)
            and ("true" in self.choices or self.default in ("true", "false"))
        ):
            value = show(value)  # text that may also be something else
        if self.type is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and any(re.fullmatch(pattern, value) for pattern in self.besides):
            return value
        from pydantic import ValidationError

        try:
            return _adapter(self.type, self.choices, tuple(self.bounds.items())).validate_python(value)
        except ValidationError:
            raise self.refuse(value) from None

    def _parse_artifact(self, value: t.Any) -> Artifact:
        kind: type[Artifact] = self.type
        if isinstance(value, Artifact):
            value = value.location
        if self.mixable and is_mixture(value):
            return kind.mixed(canonical(self.name, value))
        if not isinstance(value, (str, Path)) or str(value) == "" or "\0" in str(value):
            raise self.refuse(value)
        return kind.at(Address.of(value))

    def refuse(self, value: t.Any) -> UserError:
        """The one message for a value that a port does not take."""
        default = "" if self.default in (REQUIRED, None) else f" (default {show(self.default)})"
        reason = self.refused.get(str(value), "not valid")
        guess = did_you_mean(str(value), map(str, self.choices)) if self.choices and reason == "not valid" else ""
        shown = show(value) if isinstance(value, bool) else excerpt(value)
        return UserError(f"{self.name}={shown}: {reason}; expected {self.wanted}{default}.{guess}")


def show(value: t.Any) -> str:
    """A parameter's value as a user writes it."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


@cache
def _adapter(type_: type, choices: tuple[t.Any, ...], bounds: tuple[tuple[str, float], ...]) -> t.Any:
    from pydantic import ConfigDict, Field, TypeAdapter

    hint: t.Any = t.Literal[choices] if choices else type_
    if bounds:
        hint = t.Annotated[hint, Field(**dict[str, t.Any](bounds))]
    if type_ is float:
        hint = t.Annotated[hint, Field(allow_inf_nan=False)]
    return TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=True) if type_ is str and not choices else None)


@dc.dataclass(frozen=True, kw_only=True)
class Least:
    """Bytes that a step takes at the least: of memory, on each device that holds the model, and of disk."""

    memory: int = 0
    disk: int = 0


@dc.dataclass(frozen=True, kw_only=True)
class Context:
    """What the surroundings tell a running step; read from the environment in one place and passed on."""

    tracking_uri: str | None = None
    experiment: str | None = None
    run_id: str | None = None
    rank: int = 0
    local_rank: int = 0  # among the processes of this machine
    world_size: int = 1
    is_rank: bool = False  # one of the processes that a launcher started, be it the only one
    digests: Path | None = None  # of files that this machine has read already; None: each is read
    left_in_store: bool = False  # whether inputs may lack files that were left in the store that they come from
    checkpoint_store: str | None = None  # where checkpoints outlive this machine, which shares no folder with others


# Set by `graph.trace`: called for each step that a pipeline function makes.
observer: ContextVar[Callable[[Step], None] | None] = ContextVar("observer", default=None)


# No port is a field specifier: to a type checker each has a default, as `trace` and optional ports need.
@t.dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(dc.field,))
class Params:
    """A group of parameters that steps mix in: each group stands beside the code that uses it."""

    def __init_subclass__(cls) -> None:
        dc.dataclass(kw_only=True, eq=False, repr=False)(cls)

    @classmethod
    def ports(cls) -> dict[str, Port]:
        """Every port by name, in the order of definition, steps' own first."""
        return _ports(t.cast(t.Any, cls))  # the dataclass hides from the type checker that a class hashes


class Step(Params):
    """One stage: its ports are its fields, its first doc line is its description.

    Constructing a step validates its values (`UserError`); `tuneport.stage.execute` runs it.
    """

    image: t.ClassVar[str] = "base"  # which image runs it: base (no torch) or trainer
    cacheable: t.ClassVar[bool] = True  # False: it has an effect beyond its outputs, so no target may skip it
    network: t.ClassVar[bool] = False  # may need more of the network than the tracking server, e.g. a model hub
    only_if: t.ClassVar[str | None] = None  # skipped in a pipeline unless this parameter has a value
    # What it registers, the output of this name of the stage behind its input of this name; the parameter of the name.
    registers: t.ClassVar[tuple[str, str] | None] = None
    keeps_on_failure: t.ClassVar[tuple[str, ...]] = ()  # what a failed run leaves in its output folders
    useful_to_others: t.ClassVar[tuple[str, ...]] = ()  # of those, what a run with other values may go on from, too
    resume_with: t.ClassVar[Mapping[str, t.Any]] = {}  # the values by which it goes on from that, where there is any
    # Where a platform lets stages read and write a store by themselves: whether this one gains by that, and by input
    # the patterns of the files that it may leave there (see `needs`).
    addressable: t.ClassVar[bool] = False
    may_leave: t.ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # The user's inputs whose files its outputs hold as they are: read there, these are copied within the store.
    copies: t.ClassVar[tuple[str, ...]] = ()
    # Of these inputs it is then given, of the stage that they come from, the output of their name, which holds more.
    prefers_own_name: t.ClassVar[tuple[str, ...]] = ()
    fixed: t.ClassVar[Mapping[str, t.Any]] = {}  # parameters that a specialised step class has settled

    given: frozenset[str] = dc.field(init=False)  # the ports that the caller set
    context: Context = dc.field(init=False)

    def __new__(cls, **given: t.Any) -> t.Self:
        self = super().__new__(cls)
        self.given = frozenset(given)
        self.context = Context()
        return self

    def __post_init__(self) -> None:
        if observe := observer.get():
            observe(self)
            return
        for port in self.ports().values():
            value = self.fixed.get(port.name, getattr(self, port.name))
            if port.kind == "output":
                if value is not None:
                    setattr(self, port.name, port.parse(value))
            elif value is REQUIRED:
                if port.optional:
                    setattr(self, port.name, None)
                else:
                    raise UserError(f"{port.name}: is required by {self.name()}; expected {port.wanted}.")
            else:
                setattr(self, port.name, port.parse(value))

    @classmethod
    def name(cls) -> str:
        """The step's name on every platform: snake_case of the class."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def description(cls) -> str:
        return (inspect.getdoc(cls) or "").partition("\n")[0]

    def needs(self, name: str) -> bool:
        """Whether it reads the files of an input that it may leave in a store; asked when all others are here."""
        return True

    def check(self) -> None:
        """Find, without running, what is wrong with the values together.

        Raises `UserError`. Called by `tuneport validate` and `compile`, before a pipeline's first stage and before
        `run`; artifacts of earlier steps may not exist yet.
        """

    def check_files(self) -> None:
        """The same for the user's files; called after `check` where they can be read, so by no target that only sends.

        Raises `UserError`.
        """

    def check_here(self) -> None:
        """Find what ``run`` needs with these values of where it runs, and lacks there: a package, a right to write.

        Called only there, before a pipeline's first stage or before `run`. Raises `UserError`.
        """

    def check_rows(self) -> Sequence[str]:
        """Look at the first rows of the user's data, after `check_files`; returns what is worth a look, in words.

        Called by `tuneport validate`. Raises `UserError` for what would make ``run`` fail.
        """
        return ()

    def least(self, model: int) -> Least:
        """What it takes at the least of its machine, where the base model's weights take ``model`` bytes."""
        return Least()

    def run(self) -> None:
        """Do the work: read the inputs, fill the output folders."""
        raise NotImplementedError

    def resumes(self) -> bool:
        """Whether ``run`` goes on from what an earlier run left: what `keeps_on_failure` names then stays in place."""
        return False

    def repeatable(self) -> bool:
        """Whether the same values always give the same result: then a platform's own cache may skip it.

        Such a cache knows only values and inputs, neither `origins` nor whether a result is still whole.
        """
        return self.cacheable

    def needs_all_machines(self) -> str:
        """Why it cannot go on with fewer machines than it began with, as `name=value`; empty where it can."""
        return ""

    def needs_network(self) -> bool:
        """Whether it may need more of the network with these values than the tracking server."""
        return self.network or any(not artifact.is_local for artifact in self.inputs().values())

    def inputs(self) -> Mapping[str, Artifact]:
        """The artifacts that it is given, by input."""
        ports = self.ports().values()
        return {p.name: v for p in ports if p.kind == "input" and isinstance(v := getattr(self, p.name), Artifact)}

    def processes(self) -> int | None:
        """How many processes of this machine run the step together, each of them all of it; None: this one does.

        All but the first leave the outputs to the first.
        """
        return None

    def origins(self) -> Mapping[str, str]:
        """The exact version of what it reads beyond its inputs, by the parameter that names it: a hub model's commit.

        Asked before a run, to see whether an earlier result still stands, and after it, for the manifest. Empty where
        that cannot be known; then an earlier result stands.
        """
        return {}

    def lost_effect(self) -> str:
        """Why an effect of an earlier run beyond its outputs, as an upload, does not stand any more, in words; empty
        where it does. Asked where its outputs stand: with a reason it runs again.
        """
        return ""

    @property
    def log(self) -> logging.Logger:
        return logging.getLogger(f"tuneport.{self.name()}")


@cache
def _ports(cls: type[Params]) -> dict[str, Port]:
    groups = {name: base for base in reversed(cls.__mro__) for name in inspect.get_annotations(base)}
    hints = t.get_type_hints(cls)
    found = [_port(f, hints[f.name], groups[f.name]) for f in dc.fields(cls) if f.metadata]  # type: ignore[arg-type]
    order = {base: i for i, base in enumerate(cls.__mro__)}  # steps' own ports first, then groups as they are mixed in
    steps = [p for p in found if not p.group]
    grouped = sorted((p for p in found if p.group), key=lambda p: order[groups[p.name]])
    return {p.name: p for p in steps + grouped}


def _port(f: dc.Field[t.Any], hint: t.Any, owner: type[Params]) -> Port:
    args: tuple[t.Any, ...] = t.get_args(hint)
    choices: tuple[t.Any, ...] = f.metadata.get("choices", ())
    optional: bool = f.metadata.get("optional", False)
    if t.get_origin(hint) in (t.Union, types.UnionType):
        hint = next(a for a in args if a is not type(None))
        optional = True
    if t.get_origin(hint) is t.Literal:
        choices = t.get_args(hint)
        hint = type(choices[0])
    default = None if optional and f.default is REQUIRED and f.metadata["kind"] == "input" else f.default
    group = "" if issubclass(owner, Step) else (inspect.getdoc(owner) or "").partition("\n")[0].rstrip(".")
    return Port(
        name=f.name,
        kind=f.metadata["kind"],
        type=hint,
        help=f.metadata["help"],
        default=default,
        choices=choices,
        besides=f.metadata.get("besides", {}),
        bounds=f.metadata.get("bounds", {}),
        optional=optional,
        group=group,
        resource=f.metadata.get("resource"),
        refused=f.metadata.get("refused", {}),
        views=f.metadata.get("views", {}),
        json=f.metadata.get("json", False),
        mixable=f.metadata.get("mixable", False),
    )


def parse_values(ports: Mapping[str, Port], values: Mapping[str, t.Any], where: str) -> dict[str, t.Any]:
    """Validate values by name, all at once.

    Raises one `UserError` that lists every unknown name and every value that is not valid.
    """
    problems, parsed = [], {}
    for name, value in values.items():
        if name not in ports:
            problems.append(f"unknown parameter '{name}' for {where}.{meant(name, ports)}")
            continue
        try:
            parsed[name] = ports[name].parse(value)
        except UserError as e:
            problems.append(str(e))
    if problems:
        raise UserError("\n".join(problems))
    return parsed
