"""A pipeline of three tiny stages, written to a folder as a package of its own and run for real.

`shout` upper-cases a text, `count` repeats it line by line, `publish` runs only if it is given a name.
"""

import os
import subprocess
import sys
from pathlib import Path

FILES = {
    "__init__.py": '''
"""Stages by name."""
import importlib

from tuneport.errors import UserError


def load(name, task_name=None):
    classes = {"shout": "Shout", "count": "Count", "publish": "Publish"}
    if name not in classes:
        raise UserError(f"unknown stage {name}")
    return getattr(importlib.import_module(f"toy.{name}"), classes[name])
''',
    "__main__.py": '''
"""`python -m toy STAGE`."""
import sys

import toy
from tuneport.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(sys.argv[1:], names=["shout", "count", "publish"], load=toy.load))
''',
    "shout.py": '''
"""Upper case."""
from typing import Literal

from tuneport.artifacts import Dataset, File
from tuneport.errors import UserError
from tuneport.step import Step, consumes, param, produces


class Shout(Step):
    """Upper-case a text."""

    text: File = consumes("Text.")
    suffix: str | None = param("Added at the end.", default=None)
    mark: Literal["!", "?"] = param("Punctuation.", default="!")
    trailing: str = param("Not used by the result.", default="")
    shouted: Dataset = produces("The text in upper case.")

    def check(self):
        if not self.text.path.is_file():
            raise UserError(f"text={self.text.path}: there is no such file.")

    def run(self):
        self.log.info("reading %s", self.text.path)
        text = self.text.path.read_text("utf-8").upper()
        (self.shouted.path / "text.txt").write_text(text + (self.suffix or "") + self.mark, "utf-8")
''',
    "count.py": '''
"""Repeat."""
import os
import sys
import time
from pathlib import Path

from tuneport.artifacts import Dataset, Report
from tuneport.errors import UserError
from tuneport.step import Step, consumes, param, produces


class Count(Step):
    """Repeat a text."""

    shouted: Dataset = consumes("Text.")
    times: int = param("How often.", default=2, ge=1, le=1000)
    pause: float = param("Seconds to sleep.", default=0.0, ge=0)
    fail: str = param("How to fail.", default="")
    deaf: bool = param("Whether to ignore a request to stop.", default=False)
    counted: Report = produces("The repeated text.")

    def run(self):
        text = (self.shouted.path / "text.txt").read_text("utf-8")
        if self.fail == "user":
            raise UserError("fail='user': not valid; wanted peace.\\nTry again.")
        if self.fail == "bug":
            raise RuntimeError("a defect")
        if self.fail == "exit":
            sys.exit(7)
        if self.fail == "killed":
            os.kill(os.getpid(), 9)
        with (self.counted.path / "text.txt").open("w") as f:
            for i in range(self.times):
                f.write(f"{i} {text}\\n")
                self.log.info("[%d/%d] written, offline=%s", i + 1, self.times, os.environ.get("HF_HUB_OFFLINE"))
        try:
            time.sleep(self.pause)
        except KeyboardInterrupt:
            with Path(os.environ["TOY_NOTES"]).open("a") as f:
                f.write("asked to stop\\n")
            if self.deaf:
                time.sleep(60)
            raise
''',
    "publish.py": '''
"""Publish."""
from tuneport.artifacts import Registration, Report
from tuneport.step import Step, consumes, param, produces


class Publish(Step):
    """Publish a text."""

    cacheable = False
    network = True
    only_if = "name_to_publish"

    counted: Report = consumes("Text.")
    name_to_publish: str | None = param("Name.", default=None)
    published: Registration = produces("Where it stands.")

    def run(self):
        (self.published.path / "name.txt").write_text(self.name_to_publish)
''',
    "tuneport_toy.py": '''
"""`python -m toy.tuneport_toy run toy …`: the tuneport command over this pipeline."""
import sys

from toy.count import Count
from toy.publish import Publish
from toy.shout import Shout
from tuneport.cli import main
from tuneport.errors import UserError
from tuneport.graph import trace


def toy():
    """Shout and count."""
    shout = Shout()
    count = Count(shouted=shout.shouted)
    Publish(counted=count.counted)
    return {"counted": count.counted}


def load(name):
    if name != "toy":
        raise UserError(f"unknown pipeline '{name}'; there are: toy.")
    return trace(toy, name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], names=lambda: ["toy"], load=load))
''',
}


class Toy:
    """The package in a folder, and the command over it, run in that folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "lib" / "toy"
        self.package.mkdir(parents=True)
        for name, text in FILES.items():
            (self.package / name).write_text(text.lstrip(), "utf-8")
        self.notes = folder / "notes.txt"
        self.text = folder / "text.txt"
        self.text.write_text("hello", "utf-8")
        self.output = folder / "runs" / "toy"

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.package.parent), "TOY_NOTES": str(self.notes), **more}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "toy.tuneport_toy", *arguments]

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self("run", "toy", "text=text.txt", *arguments)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command as a process of its own."""
        return subprocess.Popen(
            self.command("run", "toy", "text=text.txt", *arguments),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def states(self, result: subprocess.CompletedProcess[str]) -> dict[str, str]:
        """What each stage came to: done, cached, reused, failed."""
        ends = [line.split(" | ", 1) for line in result.stdout.splitlines() if " | " in line]
        words = ("done", "cached", "reused", "failed", "stopped")
        return {stage: text.split()[0] for stage, text in ends if text.startswith(words)}
