"""A run's values: a YAML file, `key=value` overrides, the JSON schema for editors and the commented example.

Precedence, the later one wins: a port's default < the configuration file < an override on the command line.
A plain value means the same in the file and on the command line: its text goes through `Port.parse`, so that
`label_key: no` is the column "no" and `learning_rate: 2e-5` a number. An empty value unsets an optional parameter;
an empty value of any other parameter in the file leaves it as if the line were not there.
Relative paths count from the folder of the file, and on the command line from the current folder.
"""

from __future__ import annotations

import json
import re
import typing as t
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from tuneport.address import Address, is_elsewhere
from tuneport.errors import READ_ELSEWHERE, UserError, excerpt
from tuneport.graph import Pipeline
from tuneport.json_yaml import check_aliases, yaml_errors
from tuneport.limits import MAX_YAML_BYTES, read_bytes
from tuneport.mixture import canonical, is_mixture
from tuneport.step import REQUIRED, Port, parse_values

if t.TYPE_CHECKING:
    from yaml.nodes import MappingNode, Node

PLATFORM = "platform"  # the one key of a file that is no input of a pipeline
JSON_TYPES: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
JSON_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def given(pipeline: Pipeline, file: Path | None, overrides: Sequence[str], folder: Path) -> dict[str, t.Any]:
    """The values that a user gave for a pipeline's inputs, validated; `Pipeline.resolve` adds the defaults.

    Raises one `UserError` that lists everything wrong in the file, with line numbers, and in the overrides.
    """
    problems: list[str] = []
    values: dict[str, t.Any] = {}
    try:
        values |= from_file(pipeline, file) if file else {}
    except UserError as e:
        problems.append(str(e))
    try:
        values |= from_overrides(pipeline, overrides, folder)
    except UserError as e:
        problems.append(str(e))
    if problems:
        raise UserError("\n".join(problems))
    return values


def from_file(pipeline: Pipeline, file: Path) -> dict[str, t.Any]:
    """Read a YAML file whose keys are the pipeline's inputs.

    Raises `UserError` with the line for what is no flat YAML mapping, a key given twice and every invalid value.
    """
    values: dict[str, t.Any] = {}
    problems: list[str] = []
    seen: dict[str, int] = {}
    structured = {name for name, port in pipeline.params.items() if port.json or port.mixable}
    for key, value, line in _entries(file, structured):
        try:
            if key in seen:
                raise UserError(f"'{key}' is given twice, first on line {seen[key]}. Keep one of the two.")
            seen[key] = line
            port = pipeline.params.get(key)
            if value is None and port is not None and not port.optional:
                continue
            values |= parse_values(pipeline.params, {key: _located(port, value, file.parent)}, pipeline.name)
        except UserError as e:
            problems.append(f"{file} line {line}: {e}")
    if problems:
        raise UserError("\n".join(problems))
    return values


def from_overrides(pipeline: Pipeline, overrides: Iterable[str], folder: Path) -> dict[str, t.Any]:
    """Read ``key=value`` texts; of two for one key the later one holds.

    Raises one `UserError` that lists every text without ``=``, unknown key and invalid value.
    """
    texts: dict[str, t.Any] = {}
    problems = []
    for text in overrides:
        key, equals, value = text.partition("=")
        port = pipeline.params.get(key)
        if not equals:
            problems.append(f"'{text}': not valid; expected key=value, for example {next(iter(pipeline.params))}=….")
        else:
            texts[key] = None if value == "" and port is not None and port.optional else _located(port, value, folder)
    try:
        values = parse_values(pipeline.params, texts, pipeline.name)
    except UserError as e:
        problems.append(str(e))
    if problems:
        raise UserError("\n".join(problems))
    return values


def from_values(pipeline: Pipeline, values: Mapping[str, t.Any], folder: Path) -> dict[str, t.Any]:
    """Read values of Python's own types; a mapping or a list stands for its JSON, a path counts from ``folder``.

    Raises one `UserError` that lists every unknown key and invalid value.
    """
    texts: dict[str, t.Any] = {}
    for name, value in values.items():
        port = pipeline.params.get(name)
        if port is not None and port.kind == "input" and isinstance(value, str | Path):
            texts[name] = _located(port, str(value), folder)
        elif port is not None and port.mixable and is_mixture(value):
            texts[name] = _located(port, json.dumps(value, default=str), folder)
        else:
            texts[name] = json.dumps(value) if isinstance(value, Mapping | list) else value
    return parse_values(pipeline.params, texts, pipeline.name)


def _located(port: Port | None, value: str | None, folder: Path) -> str | None:
    """A user's path as an absolute one; everything else as it is."""
    if value is None or port is None:
        return value
    if "\0" in value:
        raise UserError(f"{port.name}={excerpt(value)}: not valid; it holds a NUL character. Remove it.")
    if port.mixable and is_mixture(value):
        return canonical(port.name, value, lambda path: _absolute(path, folder))
    return _absolute(value, folder) if port.kind == "input" else value


def _absolute(value: str, folder: Path) -> str:
    if value == "" or is_elsewhere(value) or value.startswith("file:/"):
        return value
    try:
        path = Path(value).expanduser()
    except RuntimeError:  # `~name` where there is no such user
        path = Path(value)
    return str(folder.absolute() / path)


def _entries(file: Path, structured: Collection[str]) -> Iterable[tuple[str, str | None, int]]:
    """Key, text and line (from 1) of each entry of a flat YAML mapping; None is YAML's null.

    What is not flat of the ``structured`` keys stands for its JSON. The section `PLATFORM` is left out.
    """
    for key, value in _root(file).value:
        if key.value == PLATFORM and _shape(value) == "mapping":
            continue
        if key.value in structured and _shape(value) != "scalar":
            yield key.value, _as_json(value, f"{file} line {key.start_mark.line + 1}"), key.start_mark.line + 1
            continue
        for node in (key, value):
            if _shape(node) != "scalar":
                raise UserError(
                    f"{file} line {node.start_mark.line + 1}: holds a {_shape(node)}; expected one 'name: value' a "
                    "line. Write a list or mapping as JSON text in quotes."
                )
        null = value.tag == "tag:yaml.org,2002:null"
        yield key.value, None if null else value.value, key.start_mark.line + 1


def _as_json(node: Node, where: str) -> str:
    import yaml

    try:
        with yaml_errors():
            return json.dumps(yaml.SafeLoader("").construct_document(node))
    except (ValueError, TypeError) as e:  # a date has no JSON
        raise UserError(f"{where}: is not valid YAML ({e}).") from None


def platform(file: Path | None) -> dict[str, t.Any]:
    """The section ``platform`` of a YAML file: by target, how its platform is to be used. Empty where there is none.

    Raises `UserError` where it is not a mapping of mappings.
    """
    import yaml

    found = [node for key, node in _root(file).value if key.value == PLATFORM] if file else []
    if not found:
        return {}
    if len(found) > 1 or _shape(found[0]) != "mapping":
        raise UserError(
            f"{file} line {found[-1].start_mark.line + 1}: {PLATFORM} holds a {_shape(found[-1])}; expected one "
            "mapping, by target."
        )
    try:
        with yaml_errors():
            section: dict[str, t.Any] = yaml.SafeLoader("").construct_document(found[0])
    except ValueError as e:
        line = found[0].start_mark.line + 1
        raise UserError(f"{file} line {line}: {PLATFORM} is not valid YAML ({e}).") from None
    return section


def _shape(node: Node) -> str:
    return type(node).__name__.removesuffix("Node").lower()  # scalar, sequence, mapping


def _root(file: Path) -> MappingNode:
    import yaml

    if is_elsewhere(str(file)):
        raise UserError(f"--config={Address.of(file)}: is an address, and no file of this machine. {READ_ELSEWHERE}")
    try:
        root: Node | None = yaml.compose(read_bytes(file, MAX_YAML_BYTES), Loader=yaml.SafeLoader)
        check_aliases(root)
    except OSError as e:
        raise UserError(f"{file}: cannot be read ({e.strerror}). Name a YAML file with --config.") from None
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line}: is not valid YAML ({e.problem or e.context}).") from None
    except RecursionError:
        raise UserError(f"{file}: is not valid YAML (nested too deep).") from None
    except (yaml.YAMLError, UnicodeError) as e:
        raise UserError(f"{file}: is not valid YAML ({str(e).splitlines()[0]}); expected UTF-8 text.") from None
    except ValueError as e:
        raise UserError(f"{file}: is not a configuration ({e}); expected one 'name: value' a line.") from None
    if root is None:  # empty, or comments alone
        return yaml.MappingNode("tag:yaml.org,2002:map", [])
    if not isinstance(root, yaml.MappingNode):
        raise UserError(
            f"{file} line {root.start_mark.line + 1}: holds a {_shape(root)}; "
            "expected a mapping, one 'name: value' a line."
        )
    return root


def json_schema(pipeline: Pipeline, platforms: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The JSON schema of a pipeline's configuration file, for editors; ``platforms``: each target's settings' schema.

    Nothing is required of the file, because the command line may give the rest.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"tuneport run {pipeline.name}",
        "description": pipeline.doc,
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _property(port) for name, port in pipeline.params.items()}
        | {
            PLATFORM: {
                "description": "Settings of the platforms that a pipeline is sent to.",
                "type": "object",
                "additionalProperties": False,
                "properties": dict(platforms),
            }
        },
    }


def _property(port: Port) -> dict[str, t.Any]:
    null = [None] if port.optional else []
    schema: dict[str, t.Any] = {"description": port.help}
    if port.choices:
        numbers = [int(c) for c in port.choices if isinstance(c, str) and c.isdecimal()]  # `precision: 32` is fine, too
        listed = {"enum": [*port.choices, *numbers, *null]}
        others = [{"type": "string", "pattern": f"^(?:{pattern})$"} for pattern in port.besides]
        schema |= {"anyOf": [listed, *others]} if others else listed
    else:
        name = "string" if port.kind == "input" else JSON_TYPES[port.type]
        lists = ("object", "array") if port.json else ("array",) if port.mixable else ()
        types = [name, *lists, *(("null",) if port.optional else ())]
        schema["type"] = types if len(types) > 1 else name
    schema |= {JSON_BOUNDS[bound]: limit for bound, limit in port.bounds.items()}
    return schema if port.default is REQUIRED else schema | {"default": port.default}


def example(pipeline: Pipeline) -> str:
    """A commented YAML file with every input of a pipeline: required ones to fill in, the rest with its default."""
    groups: dict[str, list[Port]] = {}
    for port in pipeline.params.values():
        groups.setdefault("Required" if port.required else "Inputs" if port.kind == "input" else port.group, []).append(
            port
        )
    first = [name for name in ("Required", "Inputs") if name in groups]
    header = (
        f"# {pipeline.doc}\n"
        f"# Run it with: tuneport run {pipeline.name} --config THIS_FILE\n"
        "# Relative paths count from this file's folder. A line that stays a comment takes the default it shows.\n"
    )
    parts = [header]
    for name in [*first, *(name for name in groups if name not in first)]:
        parts.append(f"\n# ---- {name or 'Parameters'} ----\n")
        parts += [_example_entry(port) for port in groups[name]]
    return "".join(parts)


def _example_entry(port: Port) -> str:
    help = port.help if port.kind == "input" else f"{port.help} ({port.wanted})"
    comment = "".join(f"# {line}\n" for line in help.splitlines())
    return f"\n{comment}{port.name}:\n" if port.required else f"\n{comment}# {port.name}:{yaml_value(port.default)}\n"


def yaml_value(value: t.Any) -> str:
    """A value as it stands after the colon."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f" {value}" if re.fullmatch(r"[A-Za-z0-9_][\w./-]*", value) else f" {json.dumps(value)}"
    return f" {json.dumps(value)}"
