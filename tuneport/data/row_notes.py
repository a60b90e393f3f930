"""What has to be said of rows, counted, with the first rows of each kind; no numpy."""

from __future__ import annotations

from collections import Counter
from typing import Any

LISTED_ROWS = 20  # of the rows dropped for one reason, so many are named


class Notes:
    """What has to be said of rows that are kept: by note, how many they are and which come first."""

    def __init__(self) -> None:
        self.rows = Counter[str]()
        self.first: dict[str, list[str]] = {}

    def add(self, note: str, row: str) -> None:
        self.rows[note] += 1
        listed = self.first.setdefault(note, [])
        if len(listed) < LISTED_ROWS:
            listed.append(row)

    def report(self) -> dict[str, Any]:
        """Nothing where there are none."""
        notes = {note: {"rows": n, "first": self.first[note]} for note, n in self.rows.most_common()}
        return {"notes": notes} if notes else {}
