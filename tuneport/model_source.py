"""Where a base model comes from: find it in what the user gave, check it, and copy it as one canonical folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tuneport.errors import UserError

log = logging.getLogger("tuneport.model_import")

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES, PICKLE_INDEX = "pytorch_model*.bin", "pytorch_model.bin.index.json"
TOKENIZER_SOURCES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken")
CANONICAL = (
    *("config.json", "generation_config.json", "*.safetensors", WEIGHTS_INDEX),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "*.model", "LICENSE*", "NOTICE*", "README.md"),
)
# Where MLflow's transformers flavours keep model, tokenizer and config, and our own models-from-code layout.
MLFLOW_FOLDERS = ("artifacts/*", "model", "components/tokenizer", "data/model", "data/tokenizer", "data/config", "data")


def model_folders(path: Path) -> list[Path]:
    """The folders that together hold a Hugging Face model: the path itself, or the parts of an MLflow model."""
    if not path.exists():
        raise UserError(f"{path}: no such folder; wanted a model folder with config.json, weights and tokenizer.")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; wanted the model's folder, with config.json, weights and tokenizer.")
    if (path / "config.json").is_file() or not (path / "MLmodel").is_file():
        return [path]
    return [path, *(folder for pattern in MLFLOW_FOLDERS for folder in sorted(path.glob(pattern)) if folder.is_dir())]


def check_mlflow_model(path: Path) -> None:
    """Raise `UserError` where a path is no MLflow model."""
    file = path / "MLmodel"
    if not file.is_file():
        raise UserError(
            f"{path}: has no MLmodel file, so it is no MLflow model. Pass a plain model as pytorch_model_path."
        )
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{file}: is not YAML ({e}). Save the model again.") from None
    if not isinstance(content, dict) or "flavors" not in content:
        raise UserError(f"{file}: names no flavors, so it is no MLflow model. Save the model again.")


def find(folders: list[Path], *patterns: str) -> Path | None:
    """The first file in the folders that matches a pattern."""
    return next((f for folder in folders for p in patterns for f in sorted(folder.glob(p)) if f.is_file()), None)


def read_config(folders: list[Path]) -> dict[str, Any]:
    """The model's config.

    Raises `UserError` where there is none or it does not name a model type.
    """
    where = folders[0]
    file = find(folders, "config.json")
    if file is None:
        if find(folders, "adapter_config.json"):
            raise UserError(
                f"{where}: holds a LoRA adapter without its base model. Merge it into the base model first."
            )
        raise UserError(f"{where}: has no config.json; wanted a Hugging Face model folder.")
    try:
        config = json.loads(file.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as e:
        raise UserError(f"{file}: is not JSON ({e}). Download the model again.") from None
    if not isinstance(config, dict) or not config.get("model_type"):
        raise UserError(f"{file}: names no model_type; wanted the config of a Hugging Face model.")
    return config


def check_contents(folders: list[Path]) -> None:
    """Raise `UserError` where config, weights or tokenizer are missing: what can be seen without reading weights."""
    read_config(folders)
    where = folders[0]
    if find(folders, WEIGHTS, WEIGHTS_INDEX, "pytorch_model.bin", PICKLE_INDEX) is None:
        raise UserError(
            f"{where}: has no weights; wanted {WEIGHTS} (or its shards with {WEIGHTS_INDEX}) or pytorch_model.bin."
        )
    if find(folders, *TOKENIZER_SOURCES) is None:
        raise UserError(f"{where}: has no tokenizer; wanted tokenizer.json or the files it is made from.")


def import_model(folders: list[Path], destination: Path) -> None:
    """Copy a model as a canonical folder: config, safetensors, tokenizer.json, licence.

    Pickled weights and tokenizers without a tokenizer.json are converted. Raises `UserError` for damaged files and for
    a pickle that holds anything but tensors; nothing in it is run.
    """
    check_contents(folders)
    _refuse_remote_code(folders)
    for source in _canonical_files(folders):
        shutil.copyfile(source, destination / source.name)
    if not any(destination.glob("*.safetensors")):
        from tuneport.training.conversion import convert_pickles

        convert_pickles(folders, destination)
    check_safetensors(destination, folders[0])
    if not (destination / "tokenizer.json").is_file():
        from tuneport.training.conversion import convert_tokenizer

        convert_tokenizer(destination)
    _check_tokenizer(destination, folders[0])


def _canonical_files(folders: list[Path]) -> Iterator[Path]:
    """Each canonical file once, the first folder that has it first; pickles' shards and trainer files stay behind."""
    seen: set[str] = set()
    for folder in folders:
        for source in sorted({f for pattern in CANONICAL for f in folder.glob(pattern) if f.is_file()}):
            if source.name not in seen:
                seen.add(source.name)
                yield source


def check_safetensors(folder: Path, named: Path) -> None:
    """Raise `UserError` where a shard is missing or damaged; ``named`` is the user's folder, for the message."""
    from safetensors import SafetensorError, safe_open

    index = folder / WEIGHTS_INDEX
    if index.is_file():
        try:
            wanted = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as e:
            raise UserError(f"{named / WEIGHTS_INDEX}: is damaged ({e}). Download the model again.") from None
        if missing := [name for name in wanted if not (folder / name).is_file()]:
            raise UserError(
                f"{named}: lacks the shard(s) {', '.join(missing)} that {WEIGHTS_INDEX} lists. Download them."
            )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                names = list(tensors.keys())
        except (SafetensorError, OSError) as e:
            raise UserError(f"{named / file.name}: is damaged ({e}). Download the file again.") from None
        if not names:
            raise UserError(f"{named / file.name}: holds no tensor. Download the file again.")


def _check_tokenizer(folder: Path, named: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as e:  # the Rust library raises bare Exception
        raise UserError(f"{named / 'tokenizer.json'}: is damaged ({e}). Download the file again.") from None


def _refuse_remote_code(folders: list[Path]) -> None:
    config = read_config(folders)
    if not config.get("auto_map"):
        return
    from transformers import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        raise UserError(
            f"{folders[0]}: a model of type '{config['model_type']}' runs code that comes with it, which is refused. "
            "Choose a model whose type transformers knows."
        )
    log.warning("%s: its own code is left aside; transformers knows the type %s", folders[0], config["model_type"])
