"""The picture of the code in docs/architecture.md, held against the code."""

import re
from pathlib import Path

import pytest

grimp = pytest.importorskip("grimp")

ROOT = Path(__file__).parents[1]
PACKAGES = ("tuneport", "steps", "pipelines")
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """What each module imports of ours, at any place, for types as well."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in sorted(graph.modules)}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules of which each reaches each other; by the algorithm of Tarjan (1972)."""
    found: list[list[str]] = []
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in imports[module]:
            if other not in number:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == number[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in imports:
        if module not in number:
            visit(module)
    return found


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_imports_go_in_a_circle(imports: dict[str, set[str]]) -> None:
    assert len(imports) > 150
    assert circles(imports) == []


def test_every_file_and_folder_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`((?:tuneport|steps|pipelines|tests|docs|charts)/[\w/.]*)`", PAGE))
    assert len(named) > 40
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_room_and_every_module_at_the_top_is_on_the_page() -> None:
    rooms = {f"tuneport/{path.name}/" for path in (ROOT / "tuneport").iterdir() if (path / "__init__.py").is_file()}
    rooms |= {f"tuneport/{path.name}" for path in (ROOT / "tuneport").glob("[a-z]*.py")}
    assert [room for room in sorted(rooms) if f"`{room}`" not in PAGE] == []


def test_the_table_of_rooms_follows_the_layers(imports: dict[str, set[str]]) -> None:
    """A room imports from those above it in the table, or in its own line, never from those below."""
    table = PAGE[PAGE.index("| room |") : PAGE.index("### Inside training")]
    line_of = {
        room.removesuffix(".py").strip("/").replace("/", "."): number
        for number, line in enumerate(table.splitlines())
        for room in re.findall(r"`(tuneport/[\w/.]+)`", line.split("|")[1] if "|" in line else "")
    }

    def room(module: str) -> str | None:
        return ".".join(module.split(".")[:2]) if module.count(".") else None

    upward = [
        (module, other)
        for module, others in imports.items()
        for other in others
        if (a := line_of.get(str(room(module)))) is not None
        and (b := line_of.get(str(room(other)))) is not None
        and b > a
    ]
    assert upward == []


def test_no_two_modules_of_one_name_do_different_things(imports: dict[str, set[str]]) -> None:
    """Modules of one name are one thing said of several owners: of each target, of each task and its stage."""
    shared = {"settings", "parameters"}
    names: dict[str, list[str]] = {}
    for module in imports:
        if module.startswith("tuneport."):
            names.setdefault(module.rpartition(".")[2], []).append(module)
    assert {name: owners for name, owners in names.items() if len(owners) > 1 and name not in shared} == {}
