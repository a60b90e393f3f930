"""`tuneport examples`."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import tuneport
from tuneport.cli.commands import Commands
from tuneport.errors import UserError, did_you_mean

INSTALLED = Path(tuneport.__file__).parent / "_examples"  # where a wheel has them
CHECKOUT = Path(tuneport.__file__).parents[1] / "examples"
COMMANDS = re.compile(r"^    ((?:python|tuneport run) .*)$", re.MULTILINE)


def command() -> click.Command:
    """List the examples, or copy one; what is not there is refused."""

    help = "Examples on real data: list them, or copy one to start from."

    @click.group("examples", cls=Commands, invoke_without_command=True, help=help)
    @click.pass_context
    def examples(ctx: click.Context) -> None:
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())

    @examples.command("list", help="List the examples.")
    def list_() -> None:
        for name, folder in sorted(_examples().items()):
            title = _readme(folder).partition("\n")[0].partition(": ")[2]
            click.echo(f"{name:22}{title}")

    @examples.command("copy", help="Copy an example's configuration and scripts into a new FOLDER.  [default: NAME]")
    @click.argument("name")
    @click.argument("folder", required=False, type=click.Path(path_type=Path))
    def copy(name: str, folder: Path | None) -> None:
        known = _examples()
        if name not in known:
            raise UserError(
                f"unknown example '{name}'; there are: {', '.join(sorted(known))}.{did_you_mean(name, known)}"
            )
        place = folder or Path(name)
        _copy(known[name], place)
        fetch, run = (_located(line, name, place) for line in COMMANDS.findall(_readme(known[name]))[:2])
        click.echo(f"wrote {place}. Fetch its model and data, then run it:\n  {_typed(fetch)}\n  {_typed(run)}")

    return examples


def _examples() -> dict[str, Path]:
    """The folder of each example, by the name of its task."""
    root = INSTALLED if INSTALLED.is_dir() else CHECKOUT
    found = {script.parent.name: script.parent for script in root.glob("*/fetch.py")}
    if not found:
        raise UserError(
            f"{root}: holds no examples; expected those of a checkout or of an installed wheel. Images have none."
        )
    return found


def _readme(example: Path) -> str:
    return (example / "README.md").read_text("utf-8")


def _copy(example: Path, place: Path) -> None:
    """Write an example's files, and the modules that its scripts share with others, into a folder that is new or empty.

    Raises `UserError` where the folder holds something or cannot be written.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()):
            raise UserError(f"{place}: is not empty, and nothing in it is overwritten. Name another folder.")
        for path, text in _files(example, place):
            path.write_text(text, "utf-8")
    except FileExistsError:
        raise UserError(f"{place}: is a file. Name another folder.") from None
    except OSError as e:
        raise UserError(f"{place}: cannot be written ({e.strerror}). Name another folder.") from None


def _files(example: Path, place: Path) -> Iterator[tuple[Path, str]]:
    """Each file of the copy, with its text, in which paths and links are those of the new place."""
    own = [path for path in sorted(example.iterdir()) if path.suffix in (".md", ".py", ".yaml")]
    imported = re.findall(r"^from (\w+) import", "\n".join(path.read_text("utf-8") for path in own), re.MULTILINE)
    shared = [path for path in sorted(example.parent.glob("*.py")) if path.stem in imported]
    for path in [*own, *shared]:
        text = _located(path.read_text("utf-8"), example.name, place)
        for module in shared:
            text = text.replace(f"](../{module.name})", f"]({module.name})")
        yield place / path.name, text


def _located(text: str, name: str, place: Path) -> str:
    """A text in which the paths of an example are those of its copy."""
    return re.sub(rf"examples/{name}(?=/)", lambda _: shlex.quote(place.as_posix()), text)


def _typed(line: str) -> str:
    """A command as it can be typed here: with the full path of Python where another one, or none, is on the PATH."""
    program, _, rest = line.partition(" ")
    found = shutil.which(program)
    if found and Path(found).parent == Path(sys.executable).parent:
        return line
    return shlex.join([sys.executable, *(["-m", "pipelines"] if program == "tuneport" else [])]) + f" {rest}"
