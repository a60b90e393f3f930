"""Where the rows stand in a JSON file that holds neither an array nor an object a line."""

from __future__ import annotations

import typing as t
from collections.abc import Collection
from dataclasses import dataclass

from tuneport.data.bounded import JsonFile
from tuneport.limits import MAX_NAMES


@dataclass(frozen=True, kw_only=True)
class Member:
    """What a member of the file's first object is: objects, lists, values (of a list), object or value."""

    kind: t.Literal["objects", "lists", "values", "object", "value"]
    columns: tuple[str, ...] = ()  # of the first of the objects, or of the object


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The first object of a file."""

    members: dict[str, Member]
    single: bool  # nothing follows it

    def field(self, wanted: Collection[str]) -> str | None:
        """The member that holds the rows: one whose first row has the columns ``wanted``, or else the only one."""
        found = [name for name, member in self.members.items() if member.kind == "objects"]
        fitting = [name for name in found if set(wanted) <= set(self.members[name].columns)]
        if not fitting and set(wanted) <= set(self.members):
            return None
        return next(iter(fitting or (found if len(found) == 1 else [])), None)

    def may_be_row(self, wanted: Collection[str]) -> bool:
        """Whether what looks like columns may be a single row, of lists of words."""
        return all(name in self.members and self.members[name].kind == "values" for name in wanted)

    def by_column(self, wanted: Collection[str]) -> str | None:
        """What pandas calls the layout, by column or in another way, that holds no row in one place."""
        if not self.single or not wanted:
            return None
        if set(wanted) <= set(self.members):
            kinds = {self.members[name].kind for name in wanted}
            return {("object",): "columns", ("values",): "list", ("lists",): "list", ("lists", "values"): "list"}.get(
                tuple(sorted(kinds))
            )
        if self.members.get("data") == Member(kind="lists") and "columns" in self.members:
            return "split"
        rows = [member for member in self.members.values() if member.kind == "object"]
        return "index" if rows and set(wanted) <= set(rows[0].columns) else None


def layout(f: JsonFile) -> Layout:
    """Read the first object of a file of JSON; of a member's names, as of its members, so many as `MAX_NAMES` are kept.

    Raises `ijson.JSONError` where it is none.
    """
    import ijson

    events = ijson.parse(f, multiple_values=True)
    if next(events, None) != ("", "start_map", None):
        raise ijson.JSONError("no object")
    found: dict[str, _Member] = {}
    name = ""
    for prefix, event, value in events:
        f.taken = 0
        if prefix == "" and event == "end_map":
            break
        if prefix == "" and event == "map_key":
            name = value
        elif prefix in (name, f"{name}.item") and (name in found or len(found) < MAX_NAMES):
            found.setdefault(name, _Member(event)).add(event, value, of_item=prefix != name)
    members = {
        name: Member(kind=t.cast("t.Any", member.kind), columns=tuple(member.columns)) for name, member in found.items()
    }
    return Layout(members=members, single=next(events, None) is None)


class _Member:
    """A member as far as it has been read: its own names, or those of the first value of its list."""

    def __init__(self, event: str) -> None:
        self.kind = {"start_map": "object", "start_array": "values"}.get(event, "value")
        self.columns: list[str] = []
        self.closed = False

    def add(self, event: str, value: t.Any, *, of_item: bool) -> None:
        if of_item and (self.closed or self.kind == "object"):
            return
        if event == "map_key":
            self.columns += [value] if len(self.columns) < MAX_NAMES else []
        elif of_item:
            if self.kind == "values":
                self.kind = {"start_map": "objects", "start_array": "lists"}.get(event, "values")
            self.closed = event in ("end_map", "end_array") or self.kind == "values"
