"""What a person calls a model, as far as its folder says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneport.model_source.folder import weights_by_type


def model_name(folder: Path, imported_with: Mapping[str, Any]) -> str:
    """Its name on the hub where it was imported from there, else its kind and size, as in bert-4.4M.

    ``imported_with``: the parameters that model_import had. A config's ``_name_or_path`` is not taken: in a tuned
    model it is the name of what that was tuned from.
    """
    if imported_with.get("huggingface_id"):
        return str(imported_with["huggingface_id"])
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return f"{config['model_type']}-{_short(sum(weights_by_type(folder).values()))}"


def _short(weights: int) -> str:
    """A count with two digits that count: 4.4M, 135M, 8.0B."""
    unit, size = next((u, s) for u, s in (("B", 1e9), ("M", 1e6), ("K", 1e3), ("", 1.0)) if weights >= s or s == 1.0)
    return f"{weights / size:.1f}{unit}" if weights < 10 * size and unit else f"{weights / size:.0f}{unit}"
