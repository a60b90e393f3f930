"""What a stage says, line by line: how far it is, what it measures, and what it warns of."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

COUNT = re.compile(r"\[(\d+)/(\d+)\]")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")  # colours, cursor moves
PREFIX = re.compile(r"\d\d:\d\d:\d\d (?P<logger>[\w.]+) +(?:\[rank \d+\] )?(?P<level>warning: |error: )?")
LOSS = re.compile(r"\bloss (\S+?)(?:,|$)")
RATE = re.compile(r"([\d,.]+ tokens/s)")
LEFT = re.compile(r"(\d+(?::\d\d)+) left")
METRIC = re.compile(r"validation: .*?(?:^|, |: )(?!loss )(\w+ [-\d.]+)")
MOST_WARNINGS = 20


@dataclass
class StageState:
    """What a running stage has said so far, in the parts that a person looks for."""

    done: int = 0
    total: int = 0
    text: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    counted_since: tuple[float, int] | None = None  # when the count was first seen, and what it was

    def take(self, line: str) -> str | None:
        """Read a line; returns the warning that it is."""
        line = CONTROL.sub("", line)
        if (warning := warning_of(line)) is not None:
            return warning
        text = PREFIX.sub("", line, count=1) if PREFIX.match(line) else line
        if counts := COUNT.findall(text):
            self._count(*map(int, counts[-1]))
        self.text = COUNT.sub("", text).strip()
        patterns = {"loss": LOSS, "metric": METRIC, "rate": RATE, "left": LEFT}
        validation = "validation:" in text
        for name, pattern in patterns.items():
            if (found := pattern.search(text)) and not (validation and name == "loss"):
                self.facts[name] = found[1]
        return None

    def _count(self, done: int, total: int) -> None:
        if self.counted_since is None or total != self.total or done < self.done:
            self.counted_since = (time.monotonic(), done)
        self.done, self.total = done, total

    def details(self) -> str:
        """Loss, metric, rate and time left, or else what was said last."""
        left = self.facts.get("left") or self._left()
        said = [f"loss {self.facts['loss']}"] if "loss" in self.facts else [self.text]
        said += [self.facts[name] for name in ("metric", "rate") if name in self.facts]
        return "  ".join([*filter(None, said), *([f"{left} left"] if left else [])])

    def _left(self) -> str:
        """By the rate so far, where the stage itself does not say."""
        if self.counted_since is None or self.done <= self.counted_since[1]:
            return ""
        since, first = self.counted_since
        seconds = int((time.monotonic() - since) / (self.done - first) * (self.total - self.done))
        return f"{seconds // 60}:{seconds % 60:02}"


def warning_of(line: str) -> str | None:
    """The warning of ours that a line is, without its prefix."""
    found = PREFIX.match(line)
    if found is None or found["level"] != "warning: " or not found["logger"].startswith("tuneport"):
        return None
    return line[found.end() :].strip()


def warnings_in(log: Path) -> list[str]:
    """The warnings of ours in a stage's log, each once, and no more than `MOST_WARNINGS`."""
    try:
        with log.open(encoding="utf-8", errors="replace") as f:
            found = dict.fromkeys(excerpt_of(w) for line in f if (w := warning_of(line.rstrip("\r\n"))))
    except OSError:
        return []
    kept = list(found)[:MOST_WARNINGS]
    left = len(found) - len(kept)
    return kept + ([f"{left} more are in {log}"] if left else [])


def excerpt_of(warning: str, longest: int = 500) -> str:
    """A warning as lists show it."""
    return warning if len(warning) <= longest else f"{warning[:longest]}…"
