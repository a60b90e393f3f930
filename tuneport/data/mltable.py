"""Read an MLTable folder: its YAML names files and how to read them; values of delimited files stay text."""

from __future__ import annotations

import dataclasses as dc
import typing as t
from collections.abc import Mapping
from pathlib import Path

from tuneport.data.readers import Dialect, Format, Shard, Source, find, list_files, names_of, split_suffixes
from tuneport.errors import UserError, did_you_mean

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


def find_mltable(path: Path, option: str) -> Source:
    """Resolve an MLTable folder (or its ``MLTable`` file) to the rows it stands for.

    Raises `UserError` where the YAML is none, points nowhere, or asks for a transformation that is not supported.
    """
    file = path / "MLTable" if path.is_dir() else path
    where = f"{option}={str(path)!r}"
    table = _load(file, where)
    name, options, others = _transformations(table.get("transformations"), where)
    paths = [p for entry in _entries(table, where) for p in _paths(entry, file.parent, where)]
    paths = list(dict.fromkeys(paths))
    if name is None:
        found = [find(p, option).shards[0] for p in paths]
        shards = tuple(dc.replace(s, name=n) for s, n in zip(found, names_of(paths), strict=True))
        if len(formats := {s.format for s in shards}) > 1:
            raise UserError(f"{where}: names files of several formats ({', '.join(sorted(formats))}); expected one.")
    else:
        shards = tuple(_shard(p, n, name, options, where) for p, n in zip(paths, names_of(paths), strict=True))
    return _hide_columns(Source(path=path, shards=shards), others, where)


def _load(file: Path, where: str) -> dict[str, t.Any]:
    import yaml

    try:
        table = yaml.safe_load(file.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{where}: has no MLTable file; expected a folder that holds one, or the file itself."
        ) from None
    except OSError as e:
        raise UserError(f"{where}: cannot be read ({e.strerror}). Check the path and its permissions.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{where}: the MLTable file is no YAML ({' '.join(str(e).split())}).") from None
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
                f"{where}: paths entry {entry!r} not understood; expected one of file, folder or pattern with a path."
            )
        found.append((kinds[0], entry[kinds[0]]))
    return found


def _paths(entry: tuple[str, str], root: Path, where: str) -> list[Path]:
    kind, value = entry
    path = value.removeprefix("file://")
    if "://" in path or path.startswith("azureml:"):
        raise UserError(
            f"{where}: points to {value!r}; expected a local path. Download the data and name it "
            "relative to the MLTable file."
        )
    full = root / path
    exists = {"file": full.is_file(), "folder": full.is_dir(), "pattern": True}[kind]
    try:
        if exists:
            return list_files(full, "paths")
    except UserError:
        pass
    raise UserError(f"{where}: the MLTable file points nowhere: {kind}: {value!r} matches nothing under {str(root)!r}.")


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
        raise UserError(f"{where}: {name}: options {options!r} not understood; expected a mapping.")
    for key in options:
        if key not in OPTIONS[name]:
            raise UserError(
                f"{where}: {name}: option '{key}' is not supported; supported are: {', '.join(OPTIONS[name])}."
                f"{did_you_mean(key, OPTIONS[name])}"
            )
    if options.get("invalid_lines", "error") != "error":
        raise UserError(
            f"{where}: {name}: invalid_lines={options['invalid_lines']!r} is not supported; expected 'error'."
        )


def _choice(known: Mapping[str, t.Any], options: Mapping[str, t.Any], key: str, default: str, where: str) -> t.Any:
    value = str(options.get(key, default))
    if value not in known:
        raise UserError(
            f"{where}: {key}={value!r} is not supported; expected one of {', '.join(known)}."
            f"{did_you_mean(value, known)}"
        )
    return known[value]


def _shard(path: Path, name: str, reader: str, options: Mapping[str, t.Any], where: str) -> Shard:
    encoding = _choice(ENCODINGS, options, "encoding", "utf8", where)
    dialect = None
    if reader == "read_delimited":
        delimiter = str(options.get("delimiter", ","))
        if len(delimiter) != 1:
            raise UserError(f"{where}: delimiter={delimiter!r} is not supported; expected one character.")
        dialect = Dialect(
            delimiter=delimiter,
            encoding=encoding,
            header=_choice(HEADERS, options, "header", "all_files_same_headers", where),
            empty_as_text=options.get("empty_as_string") is True,
        )
    elif encoding != "utf-8-sig":
        raise UserError(f"{where}: {reader}: encoding={options['encoding']!r} is not supported; expected 'utf8'.")
    return Shard(path=path, name=name, format=READERS[reader], compression=split_suffixes(path)[1], dialect=dialect)


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
