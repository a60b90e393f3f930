"""Read an MLTable folder: its YAML names files and how to read them; values of delimited files stay text."""

from __future__ import annotations

import dataclasses as dc
import glob
import itertools
import typing as t
from collections.abc import Iterable, Mapping
from pathlib import Path

from tuneport.address import EXTRAS, Address
from tuneport.confined import home, leads_outside
from tuneport.data.locate import DataFile, Format, list_files, names_of, split_suffixes
from tuneport.data.quoting import Quoting
from tuneport.data.readers import Dialect, Shard, Source, find
from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.json_yaml import parse_yaml, read_yaml
from tuneport.limits import DEFAULTS, MAX_YAML_BYTES, DataLimits

ENCODINGS = {
    "utf8": "utf-8-sig",
    "utf8bom": "utf-8-sig",
    "ascii": "ascii",
    "latin1": "latin-1",
    "iso88591": "latin-1",
    "windows1252": "cp1252",
    "utf16": "utf-16",
    "utf32": "utf-32",
}
HEADERS = {"all_files_same_headers": True, "all_files_different_headers": True, "no_header": False}
READERS: Mapping[str, Format] = {"read_delimited": "csv", "read_json_lines": "jsonl", "read_parquet": "parquet"}
# Options of the readers that do not change the rows of a classification or text task: types are never guessed here,
# quoted line breaks are always read, and a column more is not looked at.
WITHOUT_EFFECT = ("infer_column_types", "support_multi_line", "include_path_column", "path_column")
OPTIONS = {
    "read_delimited": ("delimiter", "encoding", "header", "empty_as_string", *WITHOUT_EFFECT),
    "read_json_lines": ("encoding", "invalid_lines", *WITHOUT_EFFECT),
    "read_parquet": WITHOUT_EFFECT,
}
PATH_KINDS = ("file", "folder", "pattern")


def find_mltable(
    where: Path | Address,
    option: str,
    quoting: Quoting = "auto",
    limits: DataLimits = DEFAULTS,
) -> Source:
    """Resolve an MLTable folder (or its ``MLTable`` file) to the rows it stands for.

    Raises `UserError` where the YAML is none, points nowhere, or asks for a transformation that is not supported.
    """
    address = Address.of(where)
    said = f"{option}={excerpt(address.text, 300)}"
    table, root = _load(address, said, limits)
    name, options, others = _transformations(table.get("transformations"), said)
    files = [file for entry in _entries(table, said) for file in _files(entry, root, said, limits)]
    files = list({file.address: file for file in files}.values())
    names = names_of(files)
    if name is None:
        found = [find(file.address, option, quoting, limits).shards[0] for file in files]
        shards = tuple(dc.replace(s, name=n) for s, n in zip(found, names, strict=True))
        if len(formats := {s.format for s in shards}) > 1:
            raise UserError(f"{said}: names files of several formats ({', '.join(sorted(formats))}); expected one.")
    else:
        shards = tuple(_shard(file, n, name, options, said) for file, n in zip(files, names, strict=True))
        shards = tuple(
            dc.replace(s, dialect=s.dialect and dc.replace(s.dialect, quoting=quoting), limits=limits) for s in shards
        )
    return _hide_columns(Source(path=address, shards=shards), others, said)


def _load(address: Address, where: str, limits: DataLimits) -> tuple[dict[str, t.Any], Address]:
    """What the MLTable file says, and the folder that it stands in."""
    if address.is_local:
        file = address.path / "MLTable" if address.path.is_dir() else address.path
        return _read(lambda: read_yaml(file), where), Address(str(file.parent))
    is_file = address.name == "MLTable"
    root = Address(address.text.rstrip("/").removesuffix("/MLTable")) if is_file else address
    (found,) = list_files(root.child("MLTable"), where.partition("=")[0], limits)[:1]
    with found.open() as f:
        text = f.read(MAX_YAML_BYTES + 1)
    if len(text) > MAX_YAML_BYTES:
        raise UserError(f"{where}: the MLTable file has more than {MAX_YAML_BYTES:,} bytes.")
    return _read(lambda: parse_yaml(text), where), root


def _read(read: t.Callable[[], t.Any], where: str) -> dict[str, t.Any]:
    try:
        table = read()
    except FileNotFoundError:
        raise UserError(
            f"{where}: has no MLTable file; expected a folder that holds one, or the file itself."
        ) from None
    except OSError as e:
        raise UserError(f"{where}: cannot be read ({e.strerror}). Check the path and its permissions.") from None
    except ValueError as e:
        raise UserError(f"{where}: the MLTable file is no YAML ({e}).") from None
    if not isinstance(table, dict):
        raise UserError(f"{where}: the MLTable file is no YAML mapping; expected 'paths:' and 'transformations:'.")
    return table


def _entries(table: Mapping[str, t.Any], where: str) -> list[tuple[str, str]]:
    entries = table.get("paths")
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"{where}: the MLTable file names no data; expected 'paths:' with a list, e.g. '- file: ./train.csv'."
        )
    found = []
    for entry in entries:
        kinds = [k for k in PATH_KINDS if isinstance(entry, dict) and isinstance(entry.get(k), str)]
        if len(kinds) != 1:
            raise UserError(
                f"{where}: paths entry {excerpt(entry)} not understood; expected one of file, folder or pattern "
                "with a path."
            )
        found.append((kinds[0], entry[kinds[0]]))
    return found


def _files(entry: tuple[str, str], root: Address, where: str, limits: DataLimits) -> list[DataFile]:
    kind, value = entry
    named = Address.of(value)
    if not named.is_local or not root.is_local:
        return _remote_files(value, root, where, limits)
    return [DataFile(address=Address(str(path))) for path in _paths(kind, named.text, root.path, where, limits)]


def _remote_files(value: str, root: Address, where: str, limits: DataLimits) -> list[DataFile]:
    """What an entry names where the table or its data lies elsewhere: only what stands under the table's folder."""
    named = Address.of(value)
    if named.is_local and (value.startswith(("/", "~", "file:")) or ".." in Path(value).parts):
        raise UserError(
            f"{where}: the MLTable file names {excerpt(value)}, which leads outside of its folder. Put the data into "
            "the folder."
        )
    if not named.is_local and named.scheme not in EXTRAS:
        raise UserError(
            f"{where}: points to {excerpt(value)}; expected a local path, or an address with {', '.join(EXTRAS)}. "
            "Download the data and name it relative to the MLTable file."
        )
    full = root.child(value.removeprefix("./")) if named.is_local else named
    inside = root.text.rstrip("/") + "/"
    if not limits.allow_outside and (not full.text.startswith(inside) or "/../" in full.text):
        raise UserError(
            f"{where}: the MLTable file names {excerpt(value)}, which lies outside of its folder. Set "
            "allow_outside=true if that is meant; else put the data into the folder."
        )
    return list_files(full, where.partition("=")[0], limits)


def _paths(kind: str, value: str, root: Path, where: str, limits: DataLimits) -> list[Path]:
    full, inside = root / value, home(root)

    def refuse_outside(paths: Iterable[Path]) -> None:
        if not limits.allow_outside and (outside := next((p for p in paths if leads_outside(p, inside)), None)):
            raise UserError(
                f"{where}: the MLTable file names {excerpt(value)}, which leads to "
                f"{excerpt(str(outside.resolve()), 300)}, outside of its folder. Set allow_outside=true if that is "
                "meant; else put the data into the folder."
            )

    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), Path(value).parts)
    try:
        exists = {"file": full.is_file(), "folder": full.is_dir(), "pattern": full.exists() or True}[kind]
    except OSError:  # a name that is too long
        exists = False
    if exists:
        refuse_outside([root.joinpath(*fixed)])  # before all of that is listed
    try:
        anywhere = dc.replace(limits, allow_outside=True)
        found = [f.address.path for f in list_files(Address(str(full)), "paths", anywhere)] if exists else []
    except UserError:
        found = []
    refuse_outside(found)
    if found:
        return found
    raise UserError(
        f"{where}: the MLTable file points nowhere: {kind}: {excerpt(value)} matches nothing under {str(root)!r}."
    )


def _transformations(entries: t.Any, where: str) -> tuple[str | None, dict[str, t.Any], list[tuple[str, t.Any]]]:
    """The reading transformation (None: by file name), its options, and the other transformations."""
    if entries is None:
        entries = []
    if not isinstance(entries, list):
        raise UserError(f"{where}: 'transformations:' is not a list; expected e.g. '- read_json_lines:'.")
    named: list[tuple[str, t.Any]] = [
        (e, {}) if isinstance(e, str) else next(iter(e.items()), ("", {})) if isinstance(e, dict) else (str(e), {})
        for e in entries
    ]
    readers = [(n, o or {}) for n, o in named if n in READERS]
    if len(readers) > 1:
        raise UserError(
            f"{where}: names {len(readers)} reading transformations ({', '.join(n for n, _ in readers)}); expected one."
        )
    name, options = readers[0] if readers else (None, {})
    if name is not None:
        _check_options(name, options, where)
    return name, options, [(n, o) for n, o in named if n not in READERS]


def _check_options(name: str, options: t.Any, where: str) -> None:
    if not isinstance(options, dict):
        raise UserError(f"{where}: {name}: options {excerpt(options)} not understood; expected a mapping.")
    for key in options:
        if key not in OPTIONS[name]:
            raise UserError(
                f"{where}: {name}: option '{key}' is not supported; supported are: {', '.join(OPTIONS[name])}."
                f"{did_you_mean(key, OPTIONS[name])}"
            )
    if options.get("invalid_lines", "error") != "error":
        raise UserError(
            f"{where}: {name}: invalid_lines={excerpt(options['invalid_lines'])} is not supported; expected 'error'."
        )


def _choice(known: Mapping[str, t.Any], options: Mapping[str, t.Any], key: str, default: str, where: str) -> t.Any:
    value = str(options.get(key, default))
    if value not in known:
        raise UserError(
            f"{where}: {key}={excerpt(value)} is not supported; expected one of {', '.join(known)}."
            f"{did_you_mean(value, known)}"
        )
    return known[value]


def _shard(file: DataFile, name: str, reader: str, options: Mapping[str, t.Any], where: str) -> Shard:
    encoding = _choice(ENCODINGS, options, "encoding", "utf8", where)
    dialect = None
    if reader == "read_delimited":
        delimiter = str(options.get("delimiter", ","))
        if len(delimiter) != 1:
            raise UserError(f"{where}: delimiter={excerpt(delimiter)} is not supported; expected one character.")
        dialect = Dialect(
            delimiter=delimiter,
            encoding=encoding,
            header=_choice(HEADERS, options, "header", "all_files_same_headers", where),
            empty_as_text=options.get("empty_as_string") is True,
        )
    elif encoding != "utf-8-sig":
        raise UserError(
            f"{where}: {reader}: encoding={excerpt(options['encoding'])} is not supported; expected 'utf8'."
        )
    compression = split_suffixes(file.address)[1]
    return Shard(file=file, name=name, format=READERS[reader], compression=compression, dialect=dialect)


def _hide_columns(source: Source, transformations: list[tuple[str, t.Any]], where: str) -> Source:
    """Apply what can follow the reading: a choice of columns; conversions to text, which delimited values are."""
    for name, options in transformations:
        if name == "keep_columns" and _is_names(options):
            kept = frozenset(_names(options))
            source = dc.replace(source, kept=kept if source.kept is None else source.kept & kept)
        elif name == "drop_columns" and _is_names(options):
            source = dc.replace(source, hidden=source.hidden | frozenset(_names(options)))
        elif name == "convert_column_types" and _keeps_text(options) and all(s.dialect for s in source.shards):
            continue
        else:
            known = (*READERS, "keep_columns", "drop_columns")
            raise UserError(
                f"{where}: transformation '{name}' is not supported; supported are: {', '.join(known)}. "
                f"Apply it to the data before.{did_you_mean(str(name), known)}"
            )
    return source


def _is_names(options: t.Any) -> bool:
    return isinstance(options, str) or (isinstance(options, list) and all(isinstance(o, str) for o in options))


def _names(options: t.Any) -> list[str]:
    return [options] if isinstance(options, str) else options


def _keeps_text(options: t.Any) -> bool:
    return isinstance(options, list) and all(isinstance(o, dict) and o.get("column_type") == "string" for o in options)
