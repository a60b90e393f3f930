"""The shell commands that the documents print: indented blocks, blocks of bash, and `tuneport …` within a line."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
]
OUR_PROGRAMS = ("tuneport", "python -m steps")
# By the words that a command begins with, why no test runs it. What is said of it besides is tested where it can be.
NOT_RUN = {
    "make": "installs, fetches or builds for minutes; that the target exists is tested in test_docs.py",
    "git clone": "the network",
    "pip install": "the network; that the extra exists is tested",
    ".venv/bin": "an environment that only `make setup` makes",
    "mlflow": "a server that does not end; tests/test_demo.py starts it and asks",
    "curl": "asks that server; tests/test_demo.py does, too",
    "helm": "a cluster",
    "kubectl": "a cluster",
    "kind": "a cluster",
    "docker": "images from the network",
    "az": "a workspace of Azure ML",
    "python examples": "fetches a model and rows; that the program is there is tested",
}
TEXT = re.compile(r"^```(\w*)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
VARIABLES = re.compile(r"^(?:[A-Z_]+=\S* )+")


@dataclass(frozen=True)
class Command:
    """One command as the page ``page`` prints it, without the prompt, the comment and what is put before it."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def commands() -> list[Command]:
    """Every command of every page, each once a page."""
    found = [
        Command(page.relative_to(ROOT).as_posix(), text)
        for page in PAGES
        for text in dict.fromkeys(of_text(page.read_text("utf-8")))
    ]
    return [command for command in found if command.text]


def of_text(text: str) -> Iterator[str]:
    """The commands of a page."""
    for language, block in TEXT.findall(text):
        if language in ("bash", "sh", "shell", "console"):
            yield from _of_block(block)
    prose = TEXT.sub("", text)
    yield from _of_block("\n".join(line for line in prose.split("\n") if line.startswith("    ")))
    inline = re.findall(r"`(tuneport [^`\n]+)`", re.sub(r"^    .*$", "", prose, flags=re.MULTILINE))
    yield from (command for command in inline if _is_whole(command))


def _of_block(block: str) -> Iterator[str]:
    rates = re.findall(r"^for (\w+) in (\S+)", block, re.MULTILINE)  # of a loop the first turn
    for line in re.sub(r"\\\n\s*", " ", block).split("\n"):
        command = VARIABLES.sub("", line.strip().removeprefix("$ "))
        for name, value in rates:
            command = command.replace(f"${name}", value)
        command = re.sub(r'^eval "\$\((.*)\)"', r"\1", command)
        command = re.sub(r"^stage .*?(python -m steps )", r"\1", command)  # the container is another command
        command = command.partition("  #")[0].strip()
        if program(command):
            yield command


def program(command: str) -> str | None:
    """What a line begins with, where that is a command."""
    folders = (".venv/bin", "python examples")
    return next(
        (
            n
            for n in (*OUR_PROGRAMS, *NOT_RUN)
            if command.startswith(f"{n}/" if n in folders else f"{n} ") or command == n
        ),
        None,
    )


def _is_whole(command: str) -> bool:
    """Whether it says what to work on, and is not a command's name, such as `tuneport run`, or a pattern."""
    return bool(re.search(r"[/=.]|--", command)) and not re.search(r"<\w+>|\bNAME\b|PATH…", command)


def reason(command: Command) -> str | None:
    """Why it is not run."""
    return NOT_RUN.get(program(command.text) or "")
