"""Stream rows from a user's files: jsonl, json, csv, tsv or parquet; a file, a glob or a folder; also .gz and .zst."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import typing as t
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from tuneport.errors import UserError, did_you_mean

Values = dict[str, t.Any]
Format = t.Literal["jsonl", "json", "csv", "tsv", "parquet"]
FORMATS: tuple[Format, ...] = t.get_args(Format)
COMPRESSIONS = ("gz", "zst")
BOM = b"\xef\xbb\xbf"
BUFFER = 1 << 20
PARQUET_BATCH = 1000
PEEKED_ROWS = 100  # a JSON row may lack a null column: the columns of a file are those of its first rows together
LONGEST_CELL = 2**31 - 1


class RawRow(t.NamedTuple):
    """A row as it stands in a file; ``number`` counts from 1, without the header (in JSON lines: the line)."""

    file: str
    number: int
    values: Values

    @property
    def where(self) -> str:
        return f"{self.file} row {self.number}"

    @property
    def row_id(self) -> str:
        return f"{self.file}:{self.number}"


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a delimited file is written."""

    delimiter: str
    encoding: str = "utf-8-sig"  # takes UTF-8 with and without a byte order mark
    header: bool = True  # without one, columns are Column1, Column2, …
    empty_as_text: bool = False  # else an empty cell is null


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file; ``name`` is what messages and row ids call it."""

    path: Path
    name: str
    format: Format
    compression: str | None = None
    dialect: Dialect | None = None

    def rows(self) -> Iterator[tuple[int, Values]]:
        """Stream numbered rows.

        Raises `UserError` naming the file, and the row where there is one.
        """
        with _file_errors(self):
            if self.format == "parquet":
                yield from _parquet_rows(self)
                return
            with _open(self) as f:
                if self.dialect is not None:
                    yield from _delimited_rows(f, self, self.dialect)
                elif self.format == "json" and _starts_array(f):
                    yield from _json_array_rows(f, self)
                else:
                    yield from _json_lines_rows(f, self)

    def columns(self) -> list[str] | None:
        """The columns, from the header, the schema or the first rows; None where the file is empty."""
        with _file_errors(self):
            if self.format == "parquet":
                return _parquet_columns(self)
            if self.dialect is not None:
                with _open(self) as f:
                    header, _ = _header(_csv_reader(f, self.dialect), self, self.dialect)
                return header
        return list(dict.fromkeys(k for _, values in islice(self.rows(), PEEKED_ROWS) for k in values)) or None


class MissingColumns(UserError):
    """A file has ``columns``, but not those that are expected."""

    def __init__(self, message: str, columns: list[str]) -> None:
        super().__init__(message)
        self.columns = columns


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one input of the user stands for: shards of one format, read one after the other."""

    path: Path
    shards: tuple[Shard, ...]
    kept: frozenset[str] | None = None  # an MLTable may hide columns
    hidden: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.shards[0].name if len(self.shards) == 1 else printable(self.path.name)

    def peek(self, wanted: Mapping[str, str]) -> None:
        """Check, by a look at the first file that is not empty, that there is a row with the expected columns."""
        for shard in self.shards:
            if self._check(shard, wanted) and next(shard.rows(), None) is not None:
                return
        raise self._no_rows()

    def rows(self, wanted: Mapping[str, str]) -> Iterator[RawRow]:
        """Stream every row; ``wanted`` maps the option that names a column to the column, and each file must have them.

        Raises `UserError` where a file cannot be read, lacks a column or holds a row that is none, or no file has rows.
        """
        number = 0
        for shard in self.shards:
            self._check(shard, wanted)
            for number, values in shard.rows():
                yield RawRow(shard.name, number, self._shown(values))
        if number == 0:
            raise self._no_rows()

    def _check(self, shard: Shard, wanted: Mapping[str, str]) -> bool:
        columns = shard.columns()
        if columns is None:
            return False
        check_columns(wanted, list(self._shown(dict.fromkeys(columns))), shard.name)
        return True

    def _shown(self, values: Values) -> Values:
        if self.kept is None and not self.hidden:
            return values
        return {k: v for k, v in values.items() if k not in self.hidden and (self.kept is None or k in self.kept)}

    def _no_rows(self) -> UserError:
        return UserError(f"{self.name}: is empty; expected at least one row. Looked at: {printable(self.path)}")


def find(path: Path, option: str) -> Source:
    """Find the files that a path stands for and the format they are in; ``option`` is the input that named the path.

    Raises `UserError` where there are none, or of no known or of several formats.
    """
    if path.is_dir() and (path / "MLTable").is_file():
        other = option.replace("_file_", "_mltable_")
        raise UserError(f"{option}={str(path)!r}: is an MLTable folder; expected a data file. Pass it as {other}.")
    paths = list_files(path, option)
    shards = tuple(_shard(p, name) for p, name in zip(paths, names_of(paths), strict=True))
    formats = {shard.format: shard.name for shard in shards}
    if len(formats) > 1:
        listed = ", ".join(f"{format} ({name})" for format, name in sorted(formats.items()))
        raise UserError(
            f"{option}={str(path)!r}: holds files of several formats: {listed}; expected one. "
            "Name them with a glob, e.g. '*.jsonl'."
        )
    return Source(path=path, shards=shards)


def list_files(path: Path, option: str) -> list[Path]:
    """The file itself, every visible file under a folder, or the matches of a glob, sorted.

    Raises `UserError` where there is none.
    """
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and _visible(p.relative_to(path)))
        else:
            found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if found:
            return found
        if path.is_dir():
            raise UserError(f"{option}={str(path)!r}: is a folder without files; expected data: {_known()}.")
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as e:
        raise UserError(
            f"{option}={str(path)!r}: cannot be read ({e.strerror}). Check the path and its permissions."
        ) from None
    wanted = "expected a file, a folder or a glob of data."
    if not path.parent.is_dir() and not glob.has_magic(str(path)):
        raise UserError(f"{option}={str(path)!r}: not found, there is no folder {str(path.parent)!r}; {wanted}")
    raise UserError(f"{option}={str(path)!r}: not found; {wanted}{did_you_mean(path.name, siblings)}")


def check_columns(wanted: Mapping[str, str], columns: list[str], file: str) -> None:
    """Raise `UserError` naming each expected column that is not among a file's; ``wanted`` is option -> column."""
    missing = {option: column for option, column in wanted.items() if column not in columns}
    if not missing:
        return
    listed = ", ".join(f"'{option}={column}'" for option, column in missing.items())
    guess = next(filter(None, (did_you_mean(column, columns) for column in missing.values())), "")
    raise MissingColumns(f"columns {listed} not found in {file}; it has: {', '.join(columns)}.{guess}", columns)


def names_of(paths: list[Path]) -> list[str]:
    """What messages and row ids call each file: its name, with as much of its folder as tells shards apart."""
    if len(paths) == 1:
        return [printable(paths[0].name)]
    root = os.path.commonpath([p.parent for p in paths])
    return [printable(p.relative_to(root).as_posix()) for p in paths]


def printable(name: str | Path) -> str:
    """A file name as valid text: bytes that are no UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def split_suffixes(path: Path) -> tuple[str, str | None]:
    """``train.csv.gz`` -> ``("csv", "gz")``."""
    parts = path.name.lower().split(".")[1:]
    compression = parts.pop() if parts and parts[-1] in COMPRESSIONS else None
    return (parts[-1] if parts else ""), compression


def dialect_of(format: Format) -> Dialect | None:
    """The usual way of writing a delimited format; None for the others."""
    return {"csv": Dialect(delimiter=","), "tsv": Dialect(delimiter="\t")}.get(format)


def _shard(path: Path, name: str) -> Shard:
    suffix, compression = split_suffixes(path)
    format = next((f for f in FORMATS if f == suffix), None)
    if format is None or (format == "parquet" and compression):
        got = f"{suffix}.{compression}" if compression else suffix
        raise UserError(f"{printable(path)}: unknown file type '.{got}'; expected {_known()}.")
    return Shard(path=path, name=name, format=format, compression=compression, dialect=dialect_of(format))


def _known() -> str:
    return f".{', .'.join(FORMATS)} (all but parquet also compressed: .gz, .zst)"


def _visible(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts)


@contextmanager
def _file_errors(shard: Shard) -> Iterator[None]:
    """Say of a file that cannot be read which one it is."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(
            f"{shard.name}: is damaged or no gzip file ({e}). Write it again: {printable(shard.path)}"
        ) from None
    except OSError as e:
        reason = e.strerror or str(e)
        raise UserError(
            f"{shard.name}: cannot be read ({reason}). Check the file and its permissions: {printable(shard.path)}"
        ) from None


@contextmanager
def _open(shard: Shard) -> Iterator[io.BufferedReader]:
    """The decompressed bytes of a file, after a byte order mark."""
    if shard.compression == "gz":
        raw: t.Any = gzip.open(shard.path, "rb")  # noqa: SIM115
    elif shard.compression == "zst":
        import pyarrow as pa

        raw = pa.CompressedInputStream(pa.OSFile(os.fsencode(shard.path)), "zstd")
    else:
        raw = shard.path.open("rb", buffering=0)
    with raw, io.BufferedReader(raw, BUFFER) as f:
        if f.peek(len(BOM)).startswith(BOM):
            f.read(len(BOM))
        yield f


def _starts_array(f: io.BufferedReader) -> bool:
    return f.peek(BUFFER).lstrip()[:1] == b"["


def _json_lines_rows(f: io.BufferedReader, shard: Shard) -> Iterator[tuple[int, Values]]:
    wanted = (
        "one JSON object per line" if shard.format == "jsonl" else "an array of objects, or one JSON object per line"
    )
    for number, line in enumerate(f, 1):
        if line.isspace():
            continue
        try:
            values = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as e:
            raise _not_text(shard, number, e, "utf-8") from None
        except (ValueError, RecursionError) as e:
            raise UserError(
                f"{shard.name} row {number}: is not JSON ({e}); expected {wanted}. Got: {_excerpt(line)}"
            ) from None
        if not isinstance(values, dict):
            raise UserError(
                f"{shard.name} row {number}: is not a JSON object; expected {wanted}. Got: {_excerpt(line)}"
            )
        yield number, values


def _json_array_rows(f: io.BufferedReader, shard: Shard) -> Iterator[tuple[int, Values]]:
    import ijson

    number = 0
    try:
        for number, values in enumerate(ijson.items(f, "item", use_float=True), 1):
            if not isinstance(values, dict):
                raise UserError(
                    f"{shard.name} row {number}: is not a JSON object; expected an array of objects. "
                    f"Got: {_excerpt(values)}"
                )
            yield number, values
    except UnicodeDecodeError as e:
        raise _not_text(shard, number + 1, e, "utf-8") from None
    except (ijson.JSONError, ValueError) as e:
        message = " ".join(str(e).split())
        raise UserError(
            f"{shard.name} row {number + 1}: is not JSON ({message}); expected an array of objects."
        ) from None


def _csv_reader(f: io.BufferedReader, dialect: Dialect, errors: str = "strict") -> t.Any:
    csv.field_size_limit(LONGEST_CELL)  # a process-wide setting of the csv module; its default refuses long documents
    text = io.TextIOWrapper(f, encoding=dialect.encoding, errors=errors, newline="")
    return csv.reader(text, delimiter=dialect.delimiter, strict=True)


def _delimited_rows(f: io.BufferedReader, shard: Shard, dialect: Dialect) -> Iterator[tuple[int, Values]]:
    reader = _csv_reader(f, dialect)
    header, first = _header(reader, shard, dialect)
    if header is None:
        return
    number = 0
    try:
        for cells in chain([first] if first else [], reader):
            if not cells:
                continue
            number += 1
            if len(cells) != len(header):
                raise UserError(
                    f"{shard.name} row {number}: has {len(cells)} cells; expected {len(header)}: {', '.join(header)}. "
                    f"Quote a cell that holds {dialect.delimiter!r}."
                )
            yield number, _cells(header, cells, dialect)
    except UnicodeDecodeError as e:
        raise _not_text(shard, _first_undecodable(shard, dialect), e, dialect.encoding) from None
    except csv.Error as e:
        raise UserError(
            f"{shard.name} row {number + 1}: is not valid {shard.format} ({e}). "
            'Close every quote, and write a quote inside a quoted cell twice: "".'
        ) from None


def _cells(header: list[str], cells: list[str], dialect: Dialect) -> Values:
    return dict(zip(header, cells if dialect.empty_as_text else [cell or None for cell in cells], strict=True))


def _header(reader: t.Any, shard: Shard, dialect: Dialect) -> tuple[list[str] | None, list[str] | None]:
    """The columns, and the first row where reading them took it; None, None for an empty file."""
    try:
        first = next((cells for cells in reader if cells), None)
    except UnicodeDecodeError as e:
        raise _not_text(shard, _first_undecodable(shard, dialect), e, dialect.encoding) from None
    except csv.Error as e:
        raise UserError(f"{shard.name}: the header is not valid {shard.format} ({e}). Close every quote.") from None
    if first is None:
        return None, None
    if not dialect.header:
        return [f"Column{i}" for i in range(1, len(first) + 1)], first
    if twice := sorted({name for name in first if first.count(name) > 1}):
        raise UserError(
            f"{shard.name}: the header names {', '.join(map(repr, twice))} twice; expected distinct columns."
        )
    return first, None


def _first_undecodable(shard: Shard, dialect: Dialect) -> int | None:
    """The number of the first row with bytes that are no text; 0 is the header. Reads the file again."""
    try:
        with _open(shard) as f:
            rows = (cells for cells in _csv_reader(f, dialect, errors="surrogateescape") if cells)
            for number, cells in enumerate(rows, 0 if dialect.header else 1):
                if any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
                    return number
    except (ValueError, csv.Error):
        pass  # a codec without surrogateescape: the row stays unknown
    return None


def _not_text(shard: Shard, number: int | None, error: UnicodeDecodeError, encoding: str) -> UserError:
    encoding = encoding.removesuffix("-sig")
    where = (
        f"{shard.name}: the header" if number == 0 else f"{shard.name} row {number}:" if number else f"{shard.name}:"
    )
    byte = error.object[error.start]
    return UserError(
        f"{where} is not {encoding} text (byte 0x{byte:02x}); expected {encoding}. Save the file as UTF-8."
    )


def _parquet_columns(shard: Shard) -> list[str]:
    with _parquet(shard) as file:
        return list(file.schema_arrow.names)


def _parquet_rows(shard: Shard) -> Iterator[tuple[int, Values]]:
    number = 0
    with _parquet(shard) as file:
        for batch in file.iter_batches(batch_size=PARQUET_BATCH):
            for number, values in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                yield number, values


@contextmanager
def _parquet(shard: Shard) -> Iterator[t.Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pa.OSFile(os.fsencode(shard.path)) as f, pq.ParquetFile(f, buffer_size=BUFFER, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, UnicodeDecodeError) as e:
        message = " ".join(str(e).split())
        raise UserError(
            f"{shard.name}: is damaged or no parquet file ({message}). Write it again: {printable(shard.path)}"
        ) from None


def _excerpt(value: t.Any) -> str:
    text = value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
