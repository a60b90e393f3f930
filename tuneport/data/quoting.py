"""Whether quotes join lines of a CSV or TSV file that are rows of their own: it was written without quoting.

A cell of such a file that begins with ``"`` swallows the rows up to the next line with a ``"`` before a separator.
"""

from __future__ import annotations

import csv
import re
import typing as t
from collections.abc import Iterable
from contextlib import suppress

Quoting = t.Literal["auto", "double", "none"]
Cells = list[str]

LINE_END = re.compile("\r\n|\r|\n")
MOST_VALUES = 1000  # of a column that names classes
MOST_JOINED = 100  # joined rows that are looked at
RARE = 0.1  # a share of rows: where more of them span lines, that is how the file is written


def lines_are_rows(cells: Cells, delimiter: str) -> bool:
    """Whether each line of a row, read without quoting, has as many cells as the row."""
    return all(len(line) == len(cells) for line in _lines(cells, delimiter))


def joins_rows(rows: Iterable[Cells], delimiter: str) -> bool:
    """Whether the quotes of a whole file join what are rows of their own, from its rows as they are read with quoting.

    They do not where the file needs its quotes: where as many rows have cells with separators, or lines that are no
    rows. Otherwise tabs in the lines, the classes in them that other rows have, or how rare such rows are decides.
    """
    found = _Evidence(delimiter)
    with suppress(csv.Error):  # a later row says so
        for cells in rows:
            found.add(cells)
    return found.joins_rows()


class _Evidence:
    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter
        self.joined = self.needed = self.several = self.plain = self.noted = 0
        self.kept: list[list[Cells]] = []  # the lines of the joined rows
        self.values: dict[int, set[str]] = {}  # of each column, in rows and in lines that are whole

    def add(self, cells: Cells) -> None:
        if any("\n" in cell or "\r" in cell for cell in cells):
            self._add_joined(cells)
        elif any(self.delimiter in cell for cell in cells):
            self.needed += 1
        else:
            self.plain += 1
            self._note(cells)

    def _add_joined(self, cells: Cells) -> None:
        self.several += 1
        if not lines_are_rows(cells, self.delimiter):
            self.needed += 1
            return
        self.joined += 1
        if len(self.kept) < MOST_JOINED:
            self.kept.append(_lines(cells, self.delimiter))
            for line in self.kept[-1][1:-1]:
                self._note(line)

    def _note(self, cells: Cells) -> None:
        self.noted += 1
        for i, cell in enumerate(cells):
            found = self.values.setdefault(i, set())
            if len(found) <= MOST_VALUES:
                found.add(cell)

    def joins_rows(self) -> bool:
        if self.needed >= self.joined:
            return False
        if self.delimiter == "\t" and len(self.kept[0][0]) > 1:
            return True
        classes = {i: found for i, found in self.values.items() if len(found) <= min(MOST_VALUES, self.noted / 2)}
        if classes:
            likely = [all(any(c in classes.get(i, ()) for i, c in enumerate(x)) for x in lines) for lines in self.kept]
            return 2 * sum(likely) >= len(likely)
        return self.several < RARE * (self.plain + self.several)


def _lines(cells: Cells, delimiter: str) -> list[Cells]:
    """The cells of each line of a row, read without quoting."""
    return [line.split(delimiter) for line in LINE_END.split(delimiter.join(cells)) if line]
