"""Stream rows from a user's files: jsonl, json, csv, tsv or parquet; a file, a glob or a folder; also .gz and .zst."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import typing as t
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from tuneport.address import Address
from tuneport.data.bounded import Decompressed, JsonFile, Lines, LongNumber, RowTooLarge, too_large
from tuneport.data.column_map import ColumnMap, paths
from tuneport.data.json_layout import layout
from tuneport.data.locate import (
    FORMATS,
    DataFile,
    Format,
    known_formats,
    list_files,
    names_of,
    printable,
    split_suffixes,
)
from tuneport.data.quoting import Quoting, joins_rows, lines_are_rows
from tuneport.data.remote import Broken, broken, identity
from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.limits import DEFAULTS, MAX_NAMES, MEBIBYTE, MEMORY_OF_ROW, DataLimits, check_depth, memory_limit, size

Values = dict[str, t.Any]
BOM = b"\xef\xbb\xbf"
BUFFER = 1 << 20
PARQUET_BATCH = 1000  # rows that are read at once
PARQUET_BATCH_BYTES = 64 * MEBIBYTE  # or fewer, where that many bytes hold fewer
PEEKED_ROWS = 100  # a JSON row may lack a null column: the columns of a file are those of its first rows together
LONGEST_CELL = 2**31 - 1
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
UNDECODED = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of a byte that is no text


# How many rows from a place on, counted from 0, are not asked for. 0 or less: the row there is, and as many after it.
Unread: t.TypeAlias = Callable[[int], int]


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
    guessed: bool = False  # whether another delimiter is tried where the header lacks a column
    quoting: Quoting = "auto"
    encoding: str = "utf-8-sig"  # takes UTF-8 with and without a byte order mark
    header: bool = True  # without one, columns are Column1, Column2, …
    empty_as_text: bool = False  # else an empty cell is null


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file; ``name`` is what messages and row ids call it."""

    file: DataFile
    name: str
    format: Format
    compression: str | None = None
    dialect: Dialect | None = None
    limits: DataLimits = DEFAULTS
    path_in_json: str | None = None  # where the rows stand in a JSON file, as ijson writes it
    doubt: str = ""  # what to say where its first row turns out to be none

    def rows(self, used: Collection[str] = ()) -> Iterator[tuple[int, Values]]:
        """As `rows_apart`, every row."""
        return ((number, values) for number, values in self.rows_apart(used) if not isinstance(values, int))

    def rows_apart(
        self, used: Collection[str] = (), unread: Unread | None = None
    ) -> Iterator[tuple[int, Values | int]]:
        """Stream numbered rows; what cannot be read in columns that are not ``used`` (none: all are) does no harm.

        In place of rows that are ``unread`` there is how many of them follow each other; the first is always by itself.
        Raises `UserError` naming the file, and the row where there is one; also where a file that lies elsewhere
        changed since it was found.
        """
        number = 0
        try:
            for number, values in self._rows(used, unread or _none):
                yield number, values
        except Broken as e:
            raise broken(f"{self.name} row {number + 1}", e) from None
        self.file.check_unchanged()

    def _rows(self, used: Collection[str], unread: Unread) -> Iterator[tuple[int, Values | int]]:
        with _file_errors(self):
            if self.format == "parquet":
                yield from _parquet_rows(self, used, unread)
            elif self.dialect is not None:
                yield from _delimited_rows(self, self.dialect, used, unread)
            else:
                with _open(self) as f:
                    if self.path_in_json is not None:
                        yield from _json_item_rows(f, self, self.path_in_json)
                    elif self.format == "json" and _starts_with(f, b"["):
                        yield from _json_item_rows(f, self, "item")
                    else:
                        yield from _json_lines_rows(f, self, used, unread)

    def columns(self, wanted: Collection[str] = ()) -> list[str] | None:
        """The columns, from the header, the schema or the first rows; None where the file is empty.

        Of JSON, so many rows are read as it takes to find the ``wanted`` ones.
        """
        with _file_errors(self):
            if self.format == "parquet":
                return _parquet_columns(self)
            if self.dialect is not None:
                with _open(self) as f:
                    _, rows = _cells(f, self, self.dialect, "surrogateescape")
                    header, _ = _header(rows, self, self.dialect)
                return header
        found: dict[str, None] = {}
        for number, (_, values) in enumerate(self.rows(wanted)):
            if number >= PEEKED_ROWS and all(column in found for column in wanted):
                break
            found |= dict.fromkeys(values)
        return list(found) or None


class MissingColumns(UserError):
    """A file has ``columns``, but not those that are expected."""

    def __init__(self, message: str, columns: list[str]) -> None:
        super().__init__(message)
        self.columns = columns


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one input of the user stands for: shards of one format, read one after the other."""

    path: Address
    shards: tuple[Shard, ...]
    kept: frozenset[str] | None = None  # an MLTable may hide columns
    hidden: frozenset[str] = frozenset()
    map: ColumnMap = field(default_factory=ColumnMap)
    max_rows: int | None = None  # of which the first are read
    weight: float | None = None  # its part of a mixture; None: all rows are taken
    title: str = ""  # its name where it is one of several
    read_as: dict[str, int] = field(default_factory=dict, compare=False)  # what was found of files -> how many of them
    doubts: list[str] = field(default_factory=list, compare=False)  # the `Shard.doubt` of the file that is read

    @property
    def name(self) -> str:
        return self.title or (self.shards[0].name if len(self.shards) == 1 else printable(self.path.name))

    @property
    def identity(self) -> str | None:
        """What stands for the bytes of data that lies elsewhere; None for what lies on this machine."""
        found = [shard.file.remote for shard in self.shards if shard.file.remote is not None]
        return identity(found, self.path) if found else None

    @property
    def bytes_here(self) -> int:
        """How many bytes the files have that lie on this machine."""
        paths = [shard.file.address.path for shard in self.shards if shard.file.remote is None]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def peek(self, wanted: Mapping[str, str]) -> None:
        """Check, by a look at the first file that is not empty, that there is a row with the expected columns."""
        for shard in self.shards:
            found, _ = self._fitting(shard, wanted)
            if found is not None and next(found.rows(self.map.read(wanted.values())), None) is not None:
                return
        raise self._no_rows()

    def rows(self, wanted: Mapping[str, str], optional: Collection[str] = ()) -> Iterator[RawRow]:
        """As `rows_apart`, every row."""
        return (row for row in self.rows_apart(wanted, optional) if not isinstance(row, int))

    def rows_apart(
        self, wanted: Mapping[str, str], optional: Collection[str] = (), unread: Unread | None = None
    ) -> Iterator[RawRow | int]:
        """Stream every row; ``wanted`` maps the option that names a column to the column, and each file must have them.

        ``optional`` are columns that are used where there are any. Rows that are ``unread`` are not read where that is
        possible; a number says how many they are, as in `Shard.rows_apart`. What is found of how files are written is
        counted in ``read_as``. Raises `UserError` where a file cannot be read, lacks a column or holds a row that is
        none, or no file has rows.
        """
        number, place, used = 0, 0, frozenset(self.map.read(wanted.values()))
        extra = self.map.read(optional)
        self.read_as.clear()
        for shard in self.shards:
            try:
                found, read_as = self._fitting(shard, wanted)
            except Broken as e:
                raise broken(shard.name, e) from None
            self.doubts[:] = [found.doubt] if found is not None and found.doubt else []
            if read_as:
                self.read_as[read_as] = self.read_as.get(read_as, 0) + 1
            changes, name = self.kept is not None or self.hidden or self.map.places, shard.name
            from_here = unread and partial(_counted_from, unread, place)
            for number, values in (found or shard).rows_apart(used and used | extra, from_here):
                if isinstance(values, int):
                    place += values
                    yield values
                else:
                    place += 1
                    yield RawRow(name, number, self.map.apply(self._shown(values)) if changes else values)
        if number == 0:
            raise self._no_rows()

    def _fitting(self, shard: Shard, wanted: Mapping[str, str]) -> tuple[Shard | None, str]:
        """The shard as it is to be read, and what is worth saying of that; None for an empty one.

        Raises `UserError` where it lacks a column.
        """
        shard, read_as = _with_separator(shard, self._roots(wanted, shard))
        if shard.format in ("json", "jsonl") and shard.dialect is None:
            shard, read_as = _with_layout(shard, self._roots(wanted, shard))
        columns = shard.columns(self._roots(wanted, shard))
        if columns is None:
            return None, read_as
        shown = list(self._shown(dict.fromkeys(columns)))
        nested = {option: name for option, name in wanted.items() if self.map.is_nested(name, shown)}
        asked = {self._option(o, n): self.map.place(n) for o, n in wanted.items() if o not in nested}
        try:
            check_columns(asked, shown, shard.name, read_as)
        except UserError:
            if bad := next(filter(UNDECODED.search, columns), None):
                raise _not_text(shard, 0, _byte_of(bad), shard.dialect.encoding if shard.dialect else "utf-8") from None
            raise
        if nested:
            self._check_nested(shard, nested)
        return shard, read_as

    def _roots(self, wanted: Mapping[str, str], shard: Shard) -> list[str]:
        """The columns of a file that hold the expected ones."""
        if not self.map.places:
            return list(wanted.values())
        known = shard.columns() or []
        places = [self.map.place(name) for name in wanted.values()]
        return [place if place in known or "." not in place else place.partition(".")[0] for place in places]

    def _option(self, option: str, name: str) -> str:
        """What a message calls the option that names a column of the data."""
        return option if self.map.place(name) == name else f"columns.{name}"

    def _check_nested(self, shard: Shard, nested: Mapping[str, str]) -> None:
        """Raise `UserError` where none of the first rows has a column that lies inside of another one."""
        seen: dict[str, None] = {}
        rows = islice(shard.rows(self.map.read(nested.values())), PEEKED_ROWS)
        first = [self._shown(values) for _, values in rows]
        for values in first:
            seen |= dict.fromkeys(paths(values))
        lacking = {
            self._option(o, n): self.map.place(n)
            for o, n in nested.items()
            if first and all(self.map.apply(values)[n] is None for values in first)
        }
        check_columns(lacking, list(seen), shard.name)

    def _shown(self, values: Values) -> Values:
        if self.kept is None and not self.hidden:
            return values
        return {k: v for k, v in values.items() if k not in self.hidden and (self.kept is None or k in self.kept)}

    def _no_rows(self) -> UserError:
        return UserError(f"{self.name}: is empty; expected at least one row. Looked at: {printable(self.path)}")


def find(where: Path | Address, option: str, quoting: Quoting = "auto", limits: DataLimits = DEFAULTS) -> Source:
    """Find the files that an address stands for and the format they are in; ``option`` is the input that named it.

    Raises `UserError` where there are none, or of no known or of several formats.
    """
    path = Address.of(where)
    if path.is_local and path.path.is_dir() and (path.path / "MLTable").is_file():
        other = option.replace("_file_", "_mltable_")
        raise UserError(
            f"{option}={excerpt(path.text, 300)}: is an MLTable folder; expected a data file. Pass it as {other}."
        )
    files = list_files(path, option, limits)
    shards = tuple(_shard(file, name, quoting, limits) for file, name in zip(files, names_of(files), strict=True))
    formats = {shard.format: shard.name for shard in shards}
    if len(formats) > 1:
        listed = ", ".join(f"{format} ({name})" for format, name in sorted(formats.items()))
        raise UserError(
            f"{option}={excerpt(path.text, 300)}: holds files of several formats: {listed}; expected one. "
            "Name them with a glob, e.g. '*.jsonl'."
        )
    return Source(path=path, shards=shards)


def check_columns(wanted: Mapping[str, str], columns: list[str], file: str, read_as: str = "") -> None:
    """Raise `UserError` naming each expected column that is not among a file's; ``wanted`` is option -> column."""
    missing = {option: column for option, column in wanted.items() if column not in columns}
    if not missing:
        return
    listed = ", ".join(f"'{option}={column}'" for option, column in missing.items())
    known = columns[:MAX_NAMES]
    guess = next(filter(None, (did_you_mean(column, known) for column in missing.values())), "")
    how = f" ({read_as})" if read_as else ""
    nested = " Rows may not be nested: write one a question." if "paragraphs" in columns else ""
    raise MissingColumns(
        f"columns {listed} not found in {file}; it has{how}: {', '.join(columns)}.{guess}{nested}", columns
    )


def _shard(file: DataFile, name: str, quoting: Quoting, limits: DataLimits) -> Shard:
    suffix, compression = split_suffixes(file.address)
    format = next((f for f in FORMATS if f == suffix), None)
    if format is None or (format == "parquet" and compression):
        got = f"{suffix}.{compression}" if compression else suffix
        raise UserError(f"{file.address}: unknown file type '.{got}'; expected {known_formats()}.")
    delimiter = {"csv": ",", "tsv": "\t"}.get(format)
    dialect = None if delimiter is None else Dialect(delimiter=delimiter, guessed=True, quoting=quoting)
    return Shard(file=file, name=name, format=format, compression=compression, dialect=dialect, limits=limits)


def _with_separator(shard: Shard, wanted: Collection[str]) -> tuple[Shard, str]:
    """A delimited file with the separator by which its header has the columns, and that where it is not the usual one.

    Where no separator gives all of them, it is the one that gives most columns of a header that else is one column.
    """
    dialect, columns = shard.dialect, shard.columns() if shard.dialect else None
    if dialect is None or columns is None or not dialect.guessed or set(wanted) <= set(columns):
        return shard, ""
    others = [replace(shard, dialect=replace(dialect, delimiter=s)) for s in SEPARATORS if s != dialect.delimiter]
    by_others = []
    for other in others:
        try:
            by_others.append((other, other.columns() or []))
        except UserError:
            continue  # its header is none with this separator
    fitting = [other for other, found in by_others if set(wanted) <= set(found)]
    if not fitting and len(columns) == 1:
        fitting = [other for other, found in sorted(by_others, key=lambda o: -len(o[1])) if len(found) > 1]
    if not fitting:
        return shard, ""
    return fitting[0], f"separated by {SEPARATORS[t.cast(Dialect, fitting[0].dialect).delimiter]}"


def _with_layout(shard: Shard, wanted: Collection[str]) -> tuple[Shard, str]:
    """A JSON file with the place where its rows stand, and that where they are not one a line or in one array.

    Raises `UserError` where they stand in no one place: where the file is written by columns.
    """
    import ijson

    with _file_errors(shard), _open(shard) as f:
        if not _starts_with(f, b"{") or _has_object_lines(f, shard.limits.max_row_bytes):
            return shard, ""
    try:
        with _file_errors(shard), _open(shard) as f:
            found = layout(JsonFile(f, shard.limits.max_row_bytes))
    except LongNumber as e:
        raise UserError(
            f"{shard.name}: is not JSON that can be read ({e}). Write it as a text, or leave it out."
        ) from None
    except (ijson.JSONError, UnicodeDecodeError, ValueError, RowTooLarge):
        return shard, ""  # reading it as lines says what is wrong
    if orient := found.by_column(wanted):
        columns = (
            f"{shard.name}: holds columns, as pandas' orient='{orient}' writes them, under "
            f"{excerpt(list(found.members))}; expected one object a row. Write it with DataFrame.to_json(path, "
            "orient='records', lines=True)."
        )
        if not found.may_be_row(wanted):
            raise UserError(columns)
        shard = replace(shard, doubt=columns)
    if (field := found.field(wanted)) is not None:
        return replace(shard, path_in_json=f"{field}.item"), f"rows in {field!r}"
    if found.single:
        return shard if _one_line(shard) else replace(shard, path_in_json=""), ""
    return replace(shard, path_in_json=""), "objects of several lines"


def _has_object_lines(f: io.BufferedReader, most: int) -> bool:
    """Whether the first line is an object and others follow."""
    lines = (line for line in iter(lambda: f.readline(most), b"") if not line.isspace())
    try:
        whole = isinstance(_loads(next(lines, b"").decode("utf-8", "replace")), dict)
    except ValueError:
        return False
    return whole and next(lines, None) is not None


def _one_line(shard: Shard) -> bool:
    with _open(shard) as f:
        return sum(not line.isspace() for line in iter(lambda: f.readline(shard.limits.max_row_bytes), b"")) == 1


@contextmanager
def _file_errors(shard: Shard) -> Iterator[None]:
    """Say of a file that cannot be read which one it is."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(
            f"{shard.name}: is damaged or no gzip file ({e}). Write it again: {shard.file.address}"
        ) from None
    except Broken:
        raise
    except OSError as e:
        reason = e.strerror or str(e)
        raise UserError(
            f"{shard.name}: cannot be read ({reason}). Check the file and its permissions: {shard.file.address}"
        ) from None


@contextmanager
def _open(shard: Shard) -> Iterator[io.BufferedReader]:
    """The decompressed bytes of a file, after a byte order mark."""
    raw: t.Any = shard.file.open() if shard.compression is None else _decompressed(shard)
    with raw, io.BufferedReader(raw, BUFFER) as f:
        if f.peek(len(BOM)).startswith(BOM):
            f.read(len(BOM))
        yield f


def _decompressed(shard: Shard) -> Decompressed:
    stack = ExitStack()
    if shard.compression == "gz":
        file: t.Any = stack.enter_context(io.BufferedReader(shard.file.open(), BUFFER))
        stream: t.Any = stack.enter_context(gzip.GzipFile(fileobj=file))
    else:
        import pyarrow as pa

        file = stack.enter_context(shard.file.open_arrow())
        stream = stack.enter_context(pa.CompressedInputStream(file, "zstd"))
    return Decompressed(stack, file, stream, shard.name, shard.limits.max_compression_ratio)


def _starts_with(f: io.BufferedReader, sign: bytes) -> bool:
    return f.peek(BUFFER).lstrip()[:1] == sign


def _none(place: int) -> int:
    return 0


def _turn(unread: int) -> int:
    """How many rows follow that are not asked for; below 0, that are."""
    return unread if unread > 0 else unread - 1


def _counted_from(unread: Unread, first: int, place: int) -> int:
    return unread(first + place)


def _json_lines_rows(
    f: io.BufferedReader, shard: Shard, used: Collection[str], unread: Unread
) -> Iterator[tuple[int, Values | int]]:
    most, place, number = shard.limits.max_row_bytes, 0, 0
    turn, passed = 0, 0  # rows that are passed next or, below 0, read; rows that were passed and are not yet said
    for number, line in enumerate(iter(partial(f.readline, most + 1), b""), 1):
        if line.isspace():
            continue
        if len(line) > most:
            raise too_large(f"{shard.name} row {number}", most)
        if first := not turn:
            if passed:
                yield number - 1, passed
                passed = 0
            turn = _turn(unread(place))
        place += 1
        if turn > 0:
            turn -= 1
            if first:
                yield number, 1
            else:
                passed += 1
            continue
        turn += 1
        yield number, _json_line(line, shard, number, used)
    if passed:
        yield number, passed


def _json_line(line: bytes, shard: Shard, number: int, used: Collection[str]) -> Values:
    """The row in a line.

    Raises `UserError` for a line that is no JSON object.
    """
    try:
        values = _loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        values = _with_bad_bytes(line, used)
        if values is None:
            raise _not_text(shard, number, e.object[e.start], "utf-8") from None
    except ValueError as e:
        raise _no_row(line, shard, number, f"is not JSON ({e})") from None
    if not isinstance(values, dict):
        raise _no_row(line, shard, number, "is not a JSON object")
    return values


def _no_row(line: bytes, shard: Shard, number: int, found: str) -> UserError:
    wanted = (
        "one JSON object per line" if shard.format == "jsonl" else "an array of objects, or one JSON object per line"
    )
    return UserError(f"{shard.name} row {number}: {found}; expected {wanted}. Got: {excerpt(line, 80)}")


def _loads(text: str) -> t.Any:
    check_depth(text)
    try:
        return json.loads(text)
    except ValueError as e:
        if isinstance(e, json.JSONDecodeError):
            raise
        return json.loads(text, parse_int=float)  # a number of more digits than Python makes an integer of


def _with_bad_bytes(line: bytes, used: Collection[str]) -> Values | None:
    """A JSON object with bytes that are no text, None where they stand in a column that is used."""
    try:
        values = _loads(line.decode("utf-8", "surrogateescape"))
    except ValueError:
        return None
    if not used or not isinstance(values, dict):
        return None
    return None if any(UNDECODED.search(repr_of(values.get(column))) for column in used) else values


def repr_of(value: t.Any) -> str:
    """A JSON value with its characters as they are."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json_item_rows(f: io.BufferedReader, shard: Shard, place: str) -> Iterator[tuple[int, Values]]:
    import ijson

    number = 0
    try:
        bounded = JsonFile(f, shard.limits.max_row_bytes)
        for number, values in enumerate(ijson.items(bounded, place, use_float=True, multiple_values=place == ""), 1):
            bounded.taken = 0
            if not isinstance(values, dict):
                raise UserError(
                    f"{shard.name} row {number}: is not a JSON object; expected an array of objects. Got: "
                    f"{excerpt(values, 80)}"
                )
            yield number, values
    except UnicodeDecodeError as e:
        raise _not_text(shard, number + 1, e.object[e.start], "utf-8") from None
    except RowTooLarge:
        raise too_large(f"{shard.name} row {number + 1}", shard.limits.max_row_bytes) from None
    except (ijson.JSONError, ValueError) as e:
        message = " ".join(str(e).split())
        raise UserError(
            f"{shard.name} row {number + 1}: is not JSON ({message}); expected an array of objects."
        ) from None


def _cells(f: io.BufferedReader, shard: Shard, dialect: Dialect, errors: str) -> tuple[t.Any, Iterator[list[str]]]:
    """The csv module's reader, and its rows, one of which may take so many bytes as the limits say."""
    csv.field_size_limit(LONGEST_CELL)  # a process-wide setting of the csv module; its default refuses long documents
    text = io.TextIOWrapper(f, encoding=dialect.encoding, errors=errors, newline="")
    how: t.Any = csv.QUOTE_NONE if dialect.quoting == "none" else csv.QUOTE_MINIMAL
    lines = Lines(text, shard.name, shard.limits.max_row_bytes)
    reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True, quoting=how)

    def rows() -> Iterator[list[str]]:
        for cells in reader:
            lines.taken = 0
            yield cells

    return reader, rows()


def _delimited_rows(
    shard: Shard, dialect: Dialect, used: Collection[str], unread: Unread
) -> Iterator[tuple[int, Values | int]]:
    number = 0
    try:
        with _open(shard) as f:
            for number, values in _records(f, shard, dialect, "strict", unread):
                yield number, values
        return
    except UnicodeDecodeError as e:
        error = e
    try:
        with _open(shard) as f:
            for row, values in _records(f, shard, dialect, "surrogateescape", unread):
                for column in () if isinstance(values, int) else used or values:
                    if UNDECODED.search(cell := t.cast(Values, values).get(column) or ""):
                        raise _not_text(shard, row, _byte_of(cell), dialect.encoding)
                if row > number:
                    yield row, values
    except UnicodeDecodeError:  # a codec without surrogateescape: the row stays unknown
        raise _not_text(shard, None, error.object[error.start], dialect.encoding) from None


def _byte_of(text: str) -> int:
    """The first byte in a text that was none."""
    found = UNDECODED.search(text)
    return ord(found[0]) & 0xFF if found else 0


def _records(
    f: io.BufferedReader, shard: Shard, dialect: Dialect, errors: str, unread: Unread
) -> Iterator[tuple[int, Values | int]]:
    """Numbered rows, and the number of the line on which each begins in messages."""
    reader, rows = _cells(f, shard, dialect, errors)
    header, first = _header(rows, shard, dialect)
    if header is None:
        return
    number, end, doubted = 0, 0 if first else reader.line_num, dialect.quoting == "auto"
    width, as_text, turn = len(header), dialect.empty_as_text, 0
    try:
        for cells in chain([first] if first else [], rows):
            begin, end = end + 1, reader.line_num
            if not cells:
                continue
            number += 1
            turn = turn or _turn(unread(number - 1))
            if turn > 0:
                turn -= 1
                yield number, 1
                continue
            turn += 1
            if len(cells) != width:
                raise _wrong_cells(shard, dialect, f"row {number}: has {len(cells)} cells", header, (begin, end))
            if end > begin and doubted and lines_are_rows(cells, dialect.delimiter):
                doubted = False
                with _open(shard) as again:
                    if joins_rows(_cells(again, shard, dialect, "replace")[1], dialect.delimiter):
                        raise _joined(shard, number, begin, end)
            yield number, dict(zip(header, cells if as_text else [cell or None for cell in cells], strict=True))
    except csv.Error as e:
        raise UserError(
            f"{shard.name} row {number + 1}: is not valid {shard.format} ({e}); it begins on line {end + 1}. Close "
            'every quote, and write a quote inside a quoted cell twice: ""; or, if quotes are part of the text, set '
            "quoting=none."
        ) from None


def _wrong_cells(shard: Shard, dialect: Dialect, found: str, header: list[str], lines: tuple[int, int]) -> UserError:
    remedy = f"Quote a cell that holds {dialect.delimiter!r}."
    if lines[1] > lines[0]:
        remedy = f"It spans the lines {lines[0]} to {lines[1]}: close its quote or, if that is text, set quoting=none."
    elif dialect.quoting == "none":
        remedy = f"With quoting=none no cell may hold {dialect.delimiter!r}."
    return UserError(f"{shard.name} {found}; expected {len(header)}: {', '.join(header)}. {remedy}")


def _joined(shard: Shard, number: int, begin: int, end: int) -> UserError:
    return UserError(
        f"{shard.name} row {number}: a quote that opens on line {begin} joins the lines {begin} to {end}, each of "
        "which is a row by itself. If quotes are part of the text, set quoting=none; if one cell holds these lines, "
        "set quoting=double."
    )


def _header(rows: Iterator[list[str]], shard: Shard, dialect: Dialect) -> tuple[list[str] | None, list[str] | None]:
    """The columns, and the first row where reading them took it; None, None for an empty file."""
    try:
        first = next((cells for cells in rows if cells), None)
    except csv.Error as e:
        raise UserError(
            f"{shard.name}: the header is not valid {shard.format} ({e}). Close every quote or, if quotes are part of "
            "the text, set quoting=none."
        ) from None
    if first is None:
        return None, None
    if not dialect.header:
        return [f"Column{i}" for i in range(1, len(first) + 1)], first
    if twice := sorted(name for name, times in Counter(first).items() if times > 1):
        raise UserError(
            f"{shard.name}: the header names {', '.join(map(repr, twice))} twice; expected distinct columns."
        )
    return first, None


def _not_text(shard: Shard, number: int | None, byte: int, encoding: str) -> UserError:
    encoding = encoding.removesuffix("-sig")
    where = (
        f"{shard.name}: the header" if number == 0 else f"{shard.name} row {number}:" if number else f"{shard.name}:"
    )
    return UserError(
        f"{where} is not {encoding} text (byte 0x{byte:02x}); expected {encoding}. Save the file as UTF-8."
    )


def _parquet_columns(shard: Shard) -> list[str]:
    with _parquet(shard) as file:
        return list(file.schema_arrow.names)


def _parquet_rows(shard: Shard, used: Collection[str], unread: Unread) -> Iterator[tuple[int, Values | int]]:
    number = 0
    with _parquet(shard) as file:
        columns = [name for name in file.schema_arrow.names if name in used] if used else None
        listed = [field.name for field in file.schema_arrow if _lists_structs(field.type)]
        rows = _rows_at_once(file.metadata)
        batches = file.iter_batches(batch_size=rows, columns=columns, use_threads=False)
        while True:
            with _parquet_memory(shard, f"rows {number + 1:,} to {number + rows:,}"):
                batch = next(batches, None)
                if batch is None:
                    return
                found = batch.to_pylist() if unread(number) < len(batch) else []
            if not found:
                for rows in filter(None, (1, len(batch) - 1)):
                    number += rows
                    yield number, rows
            for number, values in enumerate(found, number + 1):  # noqa: B020
                yield number, {**values, **{n: _given(values[n]) for n in listed if n in values}}


def _rows_at_once(metadata: t.Any) -> int:
    """So many rows of a parquet file as take little memory, were each as large as those of its largest row group."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
    return int(min(PARQUET_BATCH, max(1, PARQUET_BATCH_BYTES // max(largest, 1))))


@contextmanager
def _parquet_memory(shard: Shard, what: str) -> Iterator[None]:
    """Parquet may write a value once and repeat it by its number: a small file stands for rows of any size."""
    most = MEMORY_OF_ROW * shard.limits.max_row_bytes
    try:
        with memory_limit(most):
            yield
    except MemoryError:
        raise UserError(
            f"{shard.name} {what}: take more than {size(most)} of memory, {MEMORY_OF_ROW} times what one row may have "
            "(max_row_bytes). If that is no mistake, set max_row_bytes to a larger number, or write the file with "
            "smaller pages."
        ) from None


def _lists_structs(kind: t.Any) -> bool:
    import pyarrow as pa

    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(listed and pa.types.is_struct(kind.value_type))


def _given(value: t.Any) -> t.Any:
    """A value without keys that hold null: all structs of a list have the keys of all, null where one lacks them."""
    if isinstance(value, dict):
        return {k: _given(v) for k, v in value.items() if v is not None}
    return [_given(v) for v in value] if isinstance(value, list) else value


@contextmanager
def _parquet(shard: Shard) -> Iterator[t.Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with shard.file.open_arrow(seeks=True) as f:
            with _parquet_memory(shard, "columns"):
                file = pq.ParquetFile(f, buffer_size=BUFFER, pre_buffer=False)
            with file:
                yield file
    except (pa.ArrowException, ValueError, OverflowError) as e:
        message = " ".join(str(e).split())
        raise UserError(
            f"{shard.name}: is damaged or no parquet file ({message}). Write it again: {shard.file.address}"
        ) from None
