"""What of a stage's output the KFP UI shows: metrics, a confusion matrix, Markdown, HTML."""

from __future__ import annotations

import json
import math
import shutil
import typing as t
from collections.abc import Iterator
from pathlib import Path

from tuneport.json_yaml import to_json
from tuneport.step import View


def render(view: View, folder: Path, place: Path) -> dict[str, t.Any]:
    """Write a view of an output's folder to its place; returns the metadata of KFP's artifact."""
    source = folder / view.file
    if view.kind == "html":
        shutil.copyfile(source, place)
        return {}
    found: t.Any = json.loads(source.read_text("utf-8"))
    for key in view.at:
        found = found[key]
    if view.kind == "markdown":
        place.write_text("\n".join(markdown(found)) + "\n", "utf-8")
        return {}
    metadata = numbers(found) if view.kind == "metrics" else confusion(found)
    place.write_text(to_json(metadata), "utf-8")  # KFP keeps them as metadata; a file is expected all the same
    return metadata


def numbers(found: t.Any) -> dict[str, t.Any]:
    """The numbers of a flat JSON object; the UI cannot show one that is not finite."""
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def confusion(found: t.Any) -> dict[str, t.Any]:
    """KFP's own form of a confusion matrix; empty where the task has none."""
    matrix, labels = found.get("confusion_matrix"), found.get("labels")
    if not matrix or not labels or len(labels) != len(matrix):
        return {}
    return {
        "confusionMatrix": {
            "annotationSpecs": [{"displayName": str(label)} for label in labels],
            "rows": [{"row": row} for row in matrix],
        }
    }


def markdown(found: t.Any, depth: int = 1) -> Iterator[str]:
    """A JSON object as Markdown: a table of its plain values, then a section for each that holds more."""
    entries = list(found.items() if isinstance(found, dict) else enumerate(found, start=1))
    plain = [(name, value) for name, value in entries if not isinstance(value, (dict, list))]
    if plain:
        yield from ("| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in plain), "")
    for name, value in entries:
        if isinstance(value, (dict, list)) and value:
            yield f"{'#' * min(depth, 6)} {str(name).replace('_', ' ')}"
            yield ""
            if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
                yield from (", ".join(map(_cell, value)), "")
            else:
                yield from markdown(value, depth + 1)


def _cell(value: t.Any) -> str:
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
