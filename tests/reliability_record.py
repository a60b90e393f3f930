"""The figures of long runs of kill_whole_runs.py, kill_and_resume.py and fuzz.py, added up over all sittings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "benchmarks" / "results" / "reliability.json"


def add(section: str, figures: Mapping[str, Any]) -> None:
    """Add a sitting's numbers to those of a section; lists are joined."""
    recorded = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
    recorded[section] = total(recorded.get(section, {}), {"sittings": 1, **figures})
    FILE.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", "utf-8")


def total(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in new.items():
        if isinstance(value, Mapping):
            merged[name] = total(old.get(name, {}), value)
        else:
            merged[name] = old[name] + value if name in old else value
    return merged
