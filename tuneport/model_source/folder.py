"""Find a model in a folder, an MLflow model or a GGUF file, check it, and copy it as one canonical folder."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuneport.confined import check_links
from tuneport.errors import UserError
from tuneport.json_yaml import read_json, read_yaml
from tuneport.limits import MAX_HEADER_BYTES, MAX_MODEL_FILE_BYTES, size
from tuneport.links import take_or_copy
from tuneport.model_source.gguf import check_header, find_gguf
from tuneport.model_source.model_files import (
    TOKENIZER_FILES,
    TOKENIZER_SOURCES,
    WEIGHT_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
    find,
    indexed_files,
    read_config,
)
from tuneport.model_source.weight_names import HEADER_SIZE, strip_wrappers

log = logging.getLogger("tuneport.model_import")

SETTINGS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
DOCUMENTS = ("LICENSE*", "NOTICE*", "README.md")
CANONICAL = ("config.json", "generation_config.json", *TOKENIZER_FILES, *DOCUMENTS)
# Where MLflow's transformers flavours keep model, tokenizer and config, and our own models-from-code layout.
MLFLOW_FOLDERS = ("artifacts/*", "model", "components/tokenizer", "data/model", "data/tokenizer", "data/config", "data")


SPECIAL_IDS = tuple(
    f"{token}_token_id"
    for token in ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "decoder_start", "forced_bos", "forced_eos")
)
NO_ID = -1  # with which some configs say that there is no such token


def model_folders(path: Path) -> list[Path]:
    """The folders that together hold a Hugging Face model: the path itself, or the parts of an MLflow model.

    Raises `UserError` where there is no folder, or an MLflow model only refers to a hub model.
    """
    if not path.exists():
        id_ = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path))
        hub = f" If it is the id of a hub model, set huggingface_id={path} instead." if id_ else ""
        raise UserError(
            f"{path}: no such folder; expected a model folder with config.json, weights and tokenizer.{hub}"
        )
    if not path.is_dir():
        raise UserError(f"{path}: is a file; expected the model's folder, with config.json, weights and tokenizer.")
    if (path / "config.json").is_file() or not (path / "MLmodel").is_file():
        return [path]
    found = [folder for pattern in MLFLOW_FOLDERS for folder in sorted(path.glob(pattern)) if folder.is_dir()]
    return list(dict.fromkeys([path, *_named_in_mlmodel(path), *found]))


def _named_in_mlmodel(path: Path) -> list[Path]:
    """The folder in which an MLmodel file of the transformers flavour says that the weights are, if it is there."""
    flavor = check_mlflow_model(path)["flavors"].get("transformers")
    if not isinstance(flavor, dict):
        return []
    hub_id, binary = flavor.get("source_model_name"), flavor.get("model_binary")
    if isinstance(binary, str) and not Path(binary).is_absolute() and ".." not in Path(binary).parts:
        return [path / binary] if os.path.isdir(path / binary) else []  # noqa: PTH112 - False for what is no name at all
    if hub_id and not (path / "model").is_dir():
        raise UserError(
            f"{path}: holds no weights but a reference to the hub model '{hub_id}'. "
            f"Set huggingface_id={hub_id} instead."
        )
    return []


def check_mlflow_model(path: Path) -> dict[str, Any]:
    """What the MLmodel file of an MLflow model says.

    Raises `UserError` where a path is not an MLflow model.
    """
    file = path / "MLmodel"
    if not file.is_file():
        raise UserError(
            f"{path}: has no MLmodel file, so it is not an MLflow model. Pass a plain model as pytorch_model_path."
        )
    try:
        content = read_yaml(file)
    except ValueError as e:
        raise UserError(f"{file}: is not YAML ({e}). Save the model again.") from None
    if not isinstance(content, dict) or not isinstance(content.get("flavors"), dict):
        raise UserError(f"{file}: names no flavors, so it is not an MLflow model. Save the model again.")
    return content


def check_contents(folders: list[Path]) -> None:
    """Raise `UserError` where config, weights or tokenizer are missing, or the weights are quantised.

    That is what can be seen without reading weights.
    """
    where = folders[0]
    for file in _files_beside_weights(folders):
        if file.stat().st_size > MAX_MODEL_FILE_BYTES:
            raise UserError(f"{file}: has more than {size(MAX_MODEL_FILE_BYTES)}, which no such file of a model has.")
    _refuse_quantised(where, read_config(folders).get("quantization_config"))
    if find(folders, *WEIGHT_FILES) is None:
        raise UserError(
            f"{where}: has no weights; expected {WEIGHTS} (or its shards with {WEIGHTS_INDEX}) or pytorch_model.bin."
        )
    if find(folders, *TOKENIZER_SOURCES) is None:
        raise UserError(f"{where}: has no tokenizer; expected tokenizer.json or the files it is made from.")


def _refuse_quantised(where: Path, settings: Any) -> None:
    """Weights of few bits cannot be trained; those of bitsandbytes, where that is installed, can stay frozen."""
    if not isinstance(settings, dict):
        return
    method = str(settings.get("quant_method") or ("bitsandbytes" if settings.get("load_in_4bit") else "unknown"))
    if method == "bitsandbytes" and find_spec("bitsandbytes") is not None:
        return
    raise UserError(
        f"{where}: its weights are quantised ({method}), and such weights cannot be trained. Import the model that "
        "they were made from; with quantization=4bit its frozen weights are quantised while adapters are trained."
    )


def check_source(path: Path, gguf_file: str | None = None) -> None:
    """Raise `UserError` where a path holds no whole model, or a link leads out of it.

    That is what can be seen without reading weights.
    """
    check_links(path)
    if _gguf(path, gguf_file) is None:
        check_contents(model_folders(path))


def import_model(path: Path, destination: Path, gguf_file: str | None = None) -> None:
    """Make what a path holds a canonical folder: config, safetensors, tokenizer.json, licence.

    Pickled and quantised weights and tokenizers without a tokenizer.json are converted. Raises `UserError` for damaged
    files and for a pickle that holds anything but tensors; nothing in it is run.
    """
    check_links(path)
    gguf = _gguf(path, gguf_file)
    if gguf is not None:
        from tuneport.model_source.conversion import convert_gguf

        _copy(_documents(gguf.parent), destination)
        convert_gguf(gguf, destination)
    else:
        _import_folders(model_folders(path), destination)
    _complete_tokenizer(destination, path)
    tokenizer = _check_tokenizer(destination, path)
    if gguf is None:  # reading a GGUF file adds tokens that no text has
        _check_vocabulary(destination, path, tokenizer)


def import_settings(path: Path, destination: Path, gguf_file: str | None = None) -> None:
    """As `import_model` of a GGUF file, a Hugging Face or an MLflow folder, but without its weights, of which those in
    safetensors need not be there."""
    if gguf := _gguf(path, gguf_file):
        from tuneport.model_source.conversion import convert_gguf_settings

        check_links(path)
        _copy(_documents(gguf.parent), destination)
        convert_gguf_settings(gguf, destination)
        _complete_tokenizer(destination, path)
        return
    folders = model_folders(path)
    _refuse_remote_code(folders)
    _copy(_files_beside_weights(folders), destination)
    _check_settings(destination, folders[0])
    _leave_references(destination, folders[0])
    if not (destination / "tokenizer.json").is_file():
        from tuneport.model_source.conversion import convert_tokenizer

        convert_tokenizer(destination)
    _complete_tokenizer(destination, path)


def weights_by_type(path: Path, gguf_file: str | None = None) -> dict[str, int]:
    """How many weights a model has of each type once it is imported, by safetensors' names: those of its safetensors,
    or of a GGUF file, all of which become dense; empty without such files.

    Reads the files' headers alone.
    """
    from safetensors import safe_open

    if gguf := _gguf(path, gguf_file):
        return {"F32": check_header(gguf)}
    found: dict[str, int] = {}
    for file in _safetensors(model_folders(path)):
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                part = tensors.get_slice(name)
                found[part.get_dtype()] = found.get(part.get_dtype(), 0) + math.prod(part.get_shape())
    return found


def _gguf(path: Path, name: str | None) -> Path | None:
    """The GGUF file to import: one that was asked for, or the only weights there are."""
    asked_for = name is not None or path.suffix == ".gguf"
    has_weights = path.is_dir() and find([path], *WEIGHT_FILES) is not None
    return find_gguf(path, name) if path.exists() and (asked_for or (path.is_dir() and not has_weights)) else None


def _documents(folder: Path) -> list[Path]:
    return sorted(f for pattern in DOCUMENTS for f in folder.glob(pattern) if f.is_file())


def _import_folders(folders: list[Path], destination: Path) -> None:
    check_contents(folders)
    _refuse_remote_code(folders)
    _copy([*_files_beside_weights(folders), *_safetensors(folders)], destination)
    _check_settings(destination, folders[0])
    _leave_references(destination, folders[0])
    if not any(destination.glob("*.safetensors")):
        from tuneport.model_source.conversion import convert_pickles

        convert_pickles(folders, destination)
    check_safetensors(destination, folders[0])
    if prefix := strip_wrappers(destination, read_config(folders)["model_type"]):
        log.warning(
            "%s: every weight's name begins with '%s', which a wrapper left there: taken off", folders[0], prefix
        )
    if not (destination / "tokenizer.json").is_file():
        from tuneport.model_source.conversion import convert_tokenizer

        convert_tokenizer(destination)


def _copy(sources: Iterable[Path], destination: Path) -> None:
    """Weights need not be copied, as nothing here writes to them; the files beside them may be written again."""
    for source in sources:
        copy = take_or_copy if source.suffix == ".safetensors" else shutil.copyfile
        copy(source, destination / source.name)


def _files_beside_weights(folders: list[Path]) -> Iterator[Path]:
    """Each canonical file but weights once, the first folder that has it first; trainer files stay behind."""
    seen: set[str] = set()
    for folder in folders:
        for source in sorted({f for pattern in CANONICAL for f in folder.glob(pattern) if f.is_file()}):
            if source.name not in seen:
                seen.add(source.name)
                yield source


def _safetensors(folders: list[Path]) -> list[Path]:
    """The weights that transformers would load: one file, or an index and its shards, whatever lies beside them."""
    if single := find(folders, WEIGHTS):
        return [single]
    index = find(folders, WEIGHTS_INDEX)
    if index is None:
        return []
    named = indexed_files(index)
    if missing := [name for name in named if not (index.parent / name).is_file()]:
        raise UserError(
            f"{index.parent}: lacks the shard(s) {', '.join(missing)} that {index.name} lists. Download them."
        )
    return [index, *(index.parent / name for name in named)]


def check_safetensors(folder: Path, named: Path) -> None:
    """Raise `UserError` where a file of weights is damaged; ``named`` is the user's folder, for the message."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as f:
            header = int.from_bytes(f.read(HEADER_SIZE), "little")
        if header > MAX_HEADER_BYTES:
            raise UserError(
                f"{named / file.name}: is damaged (its header says that it has {header:,} bytes; expected at most "
                f"{size(MAX_HEADER_BYTES)}). Download the file again."
            )
        try:
            with safe_open(file, framework="numpy") as tensors:
                names = list(tensors.keys())
        except (SafetensorError, OSError) as e:
            raise UserError(f"{named / file.name}: is damaged ({e}). Download the file again.") from None
        if not names:
            raise UserError(f"{named / file.name}: holds no tensor. Download the file again.")


def _check_settings(folder: Path, named: Path) -> None:
    """Raise `UserError` where a file of settings holds no JSON object; ``named`` is the user's folder."""
    for name in SETTINGS:
        if not (folder / name).is_file():
            continue
        try:
            found = read_json(folder / name)
        except ValueError as e:
            raise UserError(f"{named / name}: is not JSON ({e}). Download the file again.") from None
        if not isinstance(found, dict):
            raise UserError(f"{named / name}: is not a JSON object. Download the file again.")


def _leave_references(folder: Path, named: Path) -> None:
    """Take out of the settings what names files that are not in the folder; ``named`` is the user's folder.

    Nothing here reads them, but whoever is given the model might.
    """
    for name in ("config.json", *SETTINGS):
        if not (folder / name).is_file():
            continue
        settings = read_json(folder / name)
        strange = sorted(key for key, value in settings.items() if _is_reference(key, value, folder))
        if strange:
            kept = {key: value for key, value in settings.items() if key not in strange}
            (folder / name).write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")
            log.info("%s: %s left out, as nothing here reads them", named / name, ", ".join(strange))


def _is_reference(key: str, value: Any, folder: Path) -> bool:
    names_file = key.endswith("_file") or key == "transformers_weights"
    return names_file and isinstance(value, str) and not (Path(value).name == value and (folder / value).is_file())


def _complete_tokenizer(folder: Path, named: Path) -> None:
    """Write the tokenizer's settings where there are none, as of tokenizers that were trained without transformers."""
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        settings.write_text("{}\n", "utf-8")
        log.info("%s: has no tokenizer_config.json, so the tokenizer has no settings beside tokenizer.json", named)


def _check_tokenizer(folder: Path, named: Path) -> Any:
    """The tokenizer of a folder; ``named`` is the user's, for the message."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as e:  # the Rust library raises bare Exception
        raise UserError(f"{named / 'tokenizer.json'}: is damaged ({e}). Download the file again.") from None


def _check_vocabulary(folder: Path, named: Path, tokenizer: Any) -> None:
    """Raise `UserError` where a token, or a special token that the settings name by its id, has no embedding."""
    known = read_config([folder]).get("vocab_size")
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if isinstance(known, int) and ids and (largest := max(ids, key=ids.__getitem__)) and ids[largest] >= known:
        raise UserError(
            f"{named}: its tokenizer has the token {largest!r} with the id {ids[largest]}, but the model has "
            f"embeddings for {known} tokens. Take the tokenizer that belongs to the model, or resize the embeddings to "
            f"{ids[largest] + 1} tokens (transformers: model.resize_token_embeddings) and save the model again."
        )
    if isinstance(known, int):
        _check_special_ids(folder, named, known)


def _check_special_ids(folder: Path, named: Path, known: int) -> None:
    for name in ("config.json", "generation_config.json"):
        settings = read_json(folder / name) if (folder / name).is_file() else {}
        for key in SPECIAL_IDS:
            found = settings.get(key)
            for i in found if isinstance(found, list) else [found]:
                if isinstance(i, int) and i != NO_ID and not 0 <= i < known:
                    raise UserError(
                        f"{named / name}: {key}={i}, but the model has embeddings for the ids 0 to {known - 1}. Set it "
                        "to the id of one of the tokenizer's tokens, or to null."
                    )


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
