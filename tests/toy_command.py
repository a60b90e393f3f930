"""The tuneport command over the pipeline of tiny stages in tests/targets/toy, in a folder of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


class Toy:
    """A copy of the package `toy` in a folder, and the tuneport command over it, run in that folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "lib" / "toy"
        shutil.copytree(
            Path(__file__).parent / "targets" / "toy", self.package, ignore=shutil.ignore_patterns("__pycache__")
        )
        self.notes = folder / "notes.txt"
        self.text = folder / "text.txt"
        self.text.write_text("hello", "utf-8")
        self.output = folder / "runs" / "toy"

    def environment(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(self.package.parent), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, "TOY_NOTES": str(self.notes), **more}

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
        return self("run", "toy", "text=text.txt", *arguments, *self._place(arguments))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command as a process of its own."""
        return subprocess.Popen(
            self.command("run", "toy", "text=text.txt", *arguments, *self._place(arguments)),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def _place(arguments: tuple[str, ...]) -> list[str]:
        """The folder of the run where no argument names another place."""
        return [] if {"--output_dir", "--name"} & {*arguments} else ["--output_dir", "runs/toy"]

    def states(self, result: subprocess.CompletedProcess[str]) -> dict[str, str]:
        """What each stage came to: done, cached, reused, failed."""
        ends = [line.split(" | ", 1) for line in result.stdout.splitlines() if " | " in line]
        words = ("done", "cached", "reused", "failed", "stopped")
        return {stage: text.split()[0] for stage, text in ends if text.startswith(words)}
