"""A base model without its weights: what reading its rows, or estimating its training, needs of it."""

from __future__ import annotations

import json
import typing as t
from collections.abc import Mapping
from pathlib import Path

from tuneport.errors import UserError
from tuneport.json_yaml import read_json
from tuneport.model_source import folder, hub

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}


def copy_settings(step: t.Any, base: Path) -> dict[str, int]:
    """Fill ``base`` with all but the weights of the model that an import step names; one of their type stands for them.

    Returns how many weights of each type it has. Raises `UserError` for a model that has to be imported first.
    """
    base.mkdir()
    on_hub = ("gguf_file",) if step.huggingface_id else ()  # which holds the settings within the weights
    given = next((n for n in (*on_hub, "base_model_path", "mlflow_model_path") if getattr(step, n)), "")
    if given:
        raise UserError(
            f"{given}: such a model has to be imported before it can be looked into. Run its stage alone, tuneport "
            "stage model_import …, and pass its output, or that of an earlier run, as pytorch_model_path."
        )
    if step.huggingface_id:
        found = hub.weights_by_type(step.huggingface_id, step.huggingface_revision)
        source = hub.download_settings(step.huggingface_id, step.huggingface_revision)
    else:
        source = step.pytorch_model_path.path
        found = folder.weights_by_type(source, step.gguf_file)
    folder.import_settings(source, base, step.gguf_file)
    _stand_in(base, found)
    return found


def _stand_in(base: Path, by_type: Mapping[str, int]) -> None:
    """A file with one weight, of the type that most have: who asks for the type of the model's weights reads it."""
    most = max(by_type, key=lambda name: by_type[name], default=type_of(base))
    width = WIDTHS.get(most, 4)
    header = json.dumps({"stands.for.the.weights": {"dtype": most, "shape": [1], "data_offsets": [0, width]}}).encode()
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(width))


def type_of(base: Path) -> str:
    """The type of a model's weights as its config.json says it, by safetensors' names."""
    config = read_json(base / "config.json")
    return {"bfloat16": "BF16", "float16": "F16"}.get(str(config.get("dtype", config.get("torch_dtype"))), "F32")
