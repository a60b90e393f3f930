"""What became of the rows of one source: read, left out and why, kept."""

from __future__ import annotations

import dataclasses as dc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tuneport.data.row_notes import LISTED_ROWS, Notes


@dataclass(kw_only=True)
class SourceCount:
    """What became of one source's rows."""

    file: str
    read_as: dict[str, int] = field(default_factory=dict)  # how files are written where that had to be found out
    max_rows: int | None = None  # so many of its rows are read, where it has more
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_where: dict[str, list[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    refused_where: dict[str, list[str]] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    duplicates: int = 0
    near_duplicates: int = 0
    weight: float | None = None  # its part of a mixture
    left_out: int = 0  # usable rows beyond its share of a mixture
    files: tuple[str, ...] = ()  # what row ids call them

    @property
    def usable(self) -> int:
        return self.read - self.dropped.total()

    @property
    def kept(self) -> int:
        return self.usable - self.duplicates - self.near_duplicates - self.left_out


def summed(counts: Sequence[SourceCount]) -> SourceCount:
    """What became of the rows of several sources together."""
    found = SourceCount(file=", ".join(count.file for count in counts))
    for count in counts:
        for how, files in count.read_as.items():
            found.read_as[how] = found.read_as.get(how, 0) + files
        for name in ("read", "duplicates", "near_duplicates", "left_out"):
            setattr(found, name, getattr(found, name) + getattr(count, name))
        found.dropped += count.dropped
        for reason, rows in count.dropped_where.items():
            found.dropped_where[reason] = [*found.dropped_where.get(reason, ()), *rows][:LISTED_ROWS]
        found.notes.rows += count.notes.rows
        for note, rows in count.notes.first.items():
            found.notes.first[note] = [*found.notes.first.get(note, ()), *rows][:LISTED_ROWS]
    cut = any(count.max_rows is not None for count in counts)
    return dc.replace(found, max_rows=found.read if cut else None)
