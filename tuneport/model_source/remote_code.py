"""Code that comes with a model: its configs name it no more, so that nothing loads it by a mistake."""

from __future__ import annotations

import typing as t
from pathlib import Path

from tuneport.json_yaml import read_json, to_json

CONFIGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "processor_config.json", "preprocessor_config.json",
)  # fmt: skip
CODE = "auto_map"  # by which a config names classes in Python files that come with it


def forget_code(folder: Path) -> list[str]:
    """Take the names of code that comes with a model out of its configs; returns the files that had some."""
    changed = []
    for path in map(folder.joinpath, CONFIGS):
        if not path.is_file():
            continue
        config = read_json(path)
        if (plain := _without_code(config)) != config:
            path.write_text(to_json(plain, indent=2) + "\n", "utf-8")
            changed.append(path.name)
    return changed


def _without_code(value: t.Any) -> t.Any:
    if isinstance(value, dict):
        return {name: _without_code(part) for name, part in value.items() if name != CODE}
    return [_without_code(part) for part in value] if isinstance(value, list) else value
