"""What a shell completes: pipelines, targets, and a pipeline's inputs as ``name=value``; click does the rest."""

from __future__ import annotations

import os
import typing as t
from collections.abc import Callable, Iterator

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from tuneport.errors import UserError
from tuneport.step import REQUIRED, Port, show

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline

VARIABLE = "_TUNEPORT_COMPLETE"  # click's own name for it
SHELLS = ("bash", "zsh", "fish")
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete_pipelines(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of pipelines."""
    names: tuple[str, ...] = getattr(ctx.find_root().command, "pipelines", ())
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of targets."""
    from tuneport import targets

    return [CompletionItem(name) for name in targets.names() if name.startswith(incomplete)]


def complete_inputs(load: Callable[[str | None], Pipeline]) -> Completer:
    """A completer of the inputs of the pipeline that is named before: ``name=``, and behind that the values."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            ports = load(ctx.params.get("pipeline")).params
        except UserError:
            return []
        name, equals, begun = incomplete.partition("=")
        if not equals:
            return [CompletionItem(f"{known}=", help=p.help) for known, p in ports.items() if known.startswith(name)]
        if name not in ports:
            return []
        if ports[name].kind == "input":
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(f"{name}={value}") for value in _values(ports[name]) if value.startswith(begun)]

    return complete


def _values(port: Port) -> Iterator[str]:
    """The values that a port takes, or else its default."""
    if port.choices:
        yield from map(str, port.choices)
    elif port.type is bool:
        yield from ("true", "false")
    elif port.default not in (REQUIRED, None):
        yield show(port.default).strip("'")


class InputsBash(BashComplete):
    """Bash, which takes ``name=value`` for three words and completes the last one alone."""

    source_template = BashComplete.source_template.replace(
        "    return 0\n", "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n    return 0\n"
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        words, place = split_arg_string(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
        words = words[: place + 1] + [""] * (place + 1 - len(words))
        joined: list[str] = []
        for word in words[1:]:
            follows = joined and (word == "=" or joined[-1].endswith("=")) and not joined[-1].startswith("-")
            joined[-1:] = [joined[-1] + word] if follows else [*joined[-1:], word]
        return joined[:-1], joined[-1]

    def format_completion(self, item: CompletionItem) -> str:
        name, equals, value = str(item.value).partition("=")
        return f"{item.type},{value if equals and value else name + equals}"


add_completion_class(InputsBash)
