"""Find the base model of a LoRA adapter, and import both as one plain model."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tuneport.confined import check_links
from tuneport.errors import UserError
from tuneport.json_yaml import read_json
from tuneport.model_source import hub
from tuneport.model_source.folder import check_safetensors, check_source, import_model, model_folders
from tuneport.modeling.merged_adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CHECKPOINTS, check_base, write_merged
from tuneport.serving.adapter_sum import LoraAdapter


def check_adapter(adapter: Path, given: Path | None) -> None:
    """Raise `UserError` where an adapter has no weights, or its base model is not found or another one.

    ``given`` is where the user says that the base model is. A hub model is not fetched yet.
    """
    check_links(adapter)
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"{adapter}: holds a LoRA adapter without its weights; expected {ADAPTER_WEIGHTS}. Copy the folder again."
        )
    check_safetensors(adapter, adapter)
    _reference(adapter)
    base = given or _local_base(adapter)
    if base is not None:
        check_source(base)
        check_base(adapter, base)
    elif not _is_hub_id(_reference(adapter)[0]):
        raise UserError(
            f"{adapter}: holds a LoRA adapter, and its base model is not at '{_reference(adapter)[0]}' from there. "
            "Set base_model_path to that model's folder."
        )


def import_adapter(adapter: Path, given: Path | None, destination: Path) -> None:
    """Write the base model with the adapter merged into it as one canonical folder.

    Raises `UserError` as `check_adapter` and `hub.download` do.
    """
    check_links(adapter)
    base = given or _local_base(adapter) or hub.download(*_reference(adapter))
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=destination) as scratch:
        whole, merged = Path(scratch, "base"), Path(scratch, "merged")
        whole.mkdir()
        merged.mkdir()
        check_base(adapter, base)
        import_model(base, whole)
        try:
            write_merged(adapter, whole, merged)
        except UserError as e:
            raise UserError(str(e).replace(str(whole), str(base))) from None
        import_model(merged, destination)


def _reference(adapter: Path) -> tuple[str, str | None]:
    """What the adapter says of its base model: a path from its folder, or a hub's id, and a commit."""
    file = adapter / ADAPTER_CONFIG
    try:
        config = read_json(file)
        return str(config["base_model_name_or_path"]), config.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{file}: is damaged ({e}). Copy the adapter's folder again.") from None


def in_mlflow_model(model: Path) -> Path | None:
    """The folder in an MLflow model that holds an adapter and its base model."""
    found = (folder for folder in model_folders(model) if LoraAdapter(str(folder)).has_base())
    return next(found, None)


def _local_base(adapter: Path) -> Path | None:
    together = LoraAdapter(str(adapter))
    if together.has_base():
        return Path(together.base)
    home = adapter.parent.parent if adapter.parent.name == CHECKPOINTS else adapter
    found = home / _reference(adapter)[0]
    return found if found.is_dir() else None


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None
