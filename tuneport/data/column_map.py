"""Where the data has the columns that a task asks for: under other names, or inside of objects (``data.text``)."""

from __future__ import annotations

import typing as t
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.json_yaml import parse_json

Values = Mapping[str, t.Any]


@dataclass(frozen=True)
class ColumnMap:
    """``places``: where the data has a column, by the name that is asked for; any other has its own name."""

    places: Mapping[str, str] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """A column's name in the data, or the path that leads to it."""
        return self.places.get(name, name)

    def read(self, names: Iterable[str]) -> set[str]:
        """The columns of the data in which these columns lie."""
        return {column for name in names for column in (self.place(name), _root(self.place(name)))}

    def has(self, name: str, columns: Collection[str]) -> bool:
        """Whether data with these columns may have a column."""
        place = self.place(name)
        return place in columns or _root(place) in columns

    def is_nested(self, name: str, columns: Collection[str]) -> bool:
        """Whether a column lies inside of another one of the data's."""
        return self.place(name) not in columns and _root(self.place(name)) in columns

    def apply(self, values: dict[str, t.Any]) -> dict[str, t.Any]:
        """A row with the columns that are asked for."""
        return {**values, **{name: at(values, place) for name, place in self.places.items()}} if self.places else values


def column_map(
    text: str | None,
    columns: Mapping[str, str],
    optional: Collection[str],
    own: Mapping[str, str] | None = None,
    option: str = "columns",
) -> ColumnMap:
    """What a user's JSON object says; ``columns`` are those asked for by field, ``optional`` those taken if there.

    ``own`` is what one source says of itself, which wins; ``option`` names where.

    A column whose name holds a dot is sought inside of objects where the data has none of that name. Raises
    `UserError` for what is no such object, and for a name that nobody asks for.
    """
    names = [*columns.values(), *optional]
    places = {name: name for name in names if "." in name}
    for name, place in (*_parse(text).items(), *(own or {}).items()):
        asked = name if name in names else columns.get(name)
        if asked is None:
            known = list(dict.fromkeys([*names, *columns]))
            got = excerpt(dict(own) if own and name in own else text)
            raise UserError(
                f"{option}={got}: nobody reads {name!r}; expected the name of a column that is asked for: "
                f"{', '.join(known)}.{did_you_mean(name, known)}"
            )
        places[asked] = place
    return ColumnMap(places)


def _parse(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    try:
        found = parse_json(text)
    except ValueError as e:
        raise UserError(
            f'columns={excerpt(text)}: is not JSON ({e}); expected an object, as in {{"prompt": "question"}}.'
        ) from None
    if not isinstance(found, dict) or not all(isinstance(place, str) and place for place in found.values()):
        raise UserError(
            f'columns={excerpt(text)}: not valid; expected an object of names, as in {{"prompt": "question"}}.'
        )
    return found


def at(values: Values, place: str) -> t.Any:
    """The value that a path leads to; None where it leads nowhere. An object may stand in a cell as JSON."""
    if place in values:
        return values[place]
    found: t.Any = values
    for part in place.split("."):
        if isinstance(found, str):
            try:
                found = parse_json(found)
            except ValueError:
                return None
        if isinstance(found, list) and part.isdecimal():
            found = found[int(part)] if int(part) < len(found) else None
        else:
            found = found.get(part) if isinstance(found, Mapping) else None
    return found


def paths(values: Values, depth: int = 3) -> list[str]:
    """The columns of a row and what lies inside of them, as paths."""
    found: list[str] = []
    for name, value in values.items():
        found.append(name)
        if isinstance(value, Mapping) and depth > 1:
            found += [f"{name}.{path}" for path in paths(value, depth - 1)]
    return found


def _root(place: str) -> str:
    return place.partition(".")[0]
