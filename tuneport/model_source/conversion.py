"""Turn what a canonical model folder must not hold into what it holds: pickles and GGUF to safetensors, vocabularies
to tokenizer.json. Imported only where a conversion is needed."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tuneport.errors import UserError, excerpt
from tuneport.model_source.model_files import PICKLE_INDEX, find, indexed_files, read_config
from tuneport.modeling.weight_files import MAX_SHARD, NAMED, Weight, write


def convert_pickles(folders: list[Path], destination: Path) -> None:
    """Read pickled weights with ``weights_only`` and write them as safetensors, one weight after the other.

    Raises `UserError` for a pickle with anything but tensors in it (nothing is run) and for a damaged one.
    """
    import torch

    weights: dict[str, Weight] = {}
    for file in _pickled_files(folders):
        _check_archive(file)
        try:
            part = _unpickled(file)
        except pickle.UnpicklingError as e:
            found = re.search(r"GLOBAL (\S+)", str(e))
            what = found[1] if found else "a damaged or foreign pickle"
            raise UserError(
                f"{file}: holds more than tensors ({what}) and was refused; nothing in it was run. "
                "Get the model as safetensors, from a source you trust."
            ) from None
        except (RuntimeError, EOFError, OSError, ValueError) as e:
            raise UserError(f"{file}: is damaged ({str(e).splitlines()[0]}). Download the file again.") from None
        if not isinstance(part, dict) or not all(isinstance(v, torch.Tensor) for v in part.values()):
            raise UserError(f"{file}: holds no plain mapping of names to tensors. Get the model as safetensors.")
        for name, tensor in part.items():
            if str(tensor.dtype).removeprefix("torch.") not in NAMED:
                raise UserError(f"{file}: {excerpt(name)} holds numbers of the type {tensor.dtype}, as no model here.")
            if tensor.is_sparse or tensor.numel() * tensor.element_size() > max(
                tensor.untyped_storage().nbytes(), 1024
            ):
                raise UserError(
                    f"{file}: {excerpt(name)} stands for more numbers than the file holds. Get the model as "
                    "safetensors."
                )
            make = partial(_one, file, name) if zipfile.is_zipfile(file) else partial(_same, tensor)
            weights[name] = Weight(shape=tuple(tensor.shape), dtype=tensor.dtype, make=make)
    write(destination, weights)  # tied weights become copies, which loading ties again


def _unpickled(file: Path) -> Any:
    import torch

    # What is mapped is read from the disk where it is used. A torch before 1.6 wrote what cannot be mapped.
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _one(file: Path, name: str) -> Any:
    """One weight of a file, which is mapped again for each: what was read of it for others does not stay in memory."""
    return _unpickled(file)[name]


def _same(tensor: Any) -> Any:
    return tensor


def _check_archive(file: Path) -> None:
    """Raise `UserError` where a pickle's archive is compressed, which torch never does: it may stand for any size."""
    if not zipfile.is_zipfile(file):  # of a torch before 1.6
        return
    try:
        with zipfile.ZipFile(file) as archive:
            packed = next((e.filename for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED), None)
    except (zipfile.BadZipFile, OSError, ValueError) as e:
        raise UserError(f"{file}: is damaged ({e}). Download the file again.") from None
    if packed is not None:
        raise UserError(
            f"{file}: its part {excerpt(packed)} is compressed; expected weights as torch saves them. Get the model as "
            "safetensors."
        )


def _pickled_files(folders: list[Path]) -> list[Path]:
    index = find(folders, PICKLE_INDEX)
    if index is None:
        single = find(folders, "pytorch_model.bin")
        return [single] if single else []
    names = indexed_files(index)
    if missing := [n for n in names if not (index.parent / n).is_file()]:
        raise UserError(
            f"{index.parent}: lacks the shard(s) {', '.join(missing)} that {PICKLE_INDEX} lists. Download them."
        )
    return [index.parent / n for n in names]


def convert_tokenizer(folder: Path) -> None:
    """Write tokenizer.json from the vocabulary files in a model folder.

    Raises `UserError` where transformers cannot make one, as of Marian and the first M2M-100.
    """
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(folder)
    except Exception as e:  # every tokenizer fails in its own way
        raise _no_fast_tokenizer(folder, (str(e).strip() or type(e).__name__).splitlines()[0][:200]) from None
    if not (folder / "tokenizer.json").is_file():
        raise _no_fast_tokenizer(folder, "transformers has no fast one for it")


def _no_fast_tokenizer(folder: Path, reason: str) -> UserError:
    kind = read_config([folder])["model_type"]
    return UserError(
        f"the tokenizer of this {kind} model cannot be made a tokenizer.json ({reason}). "
        "Add its tokenizer.json to the folder (conversions of models to ONNX often come with one), or choose another "
        "base model: of those that translate, NLLB, mBART-50 and T5 have one."
    )


def convert_gguf(file: Path, destination: Path) -> None:
    """Write the model in a GGUF file as config, dense safetensors and tokenizer.json with its chat template.

    Raises `UserError` for a damaged file, an architecture that transformers does not read, and lacking weights.
    """
    import torch
    import transformers

    with _reading(file):
        folder, name = file.parent, file.name
        config = transformers.AutoConfig.from_pretrained(folder, gguf_file=name)
        loader = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        dense = transformers.GgufConfig(dequantize=True)
        loaded: Any = loader.from_pretrained(
            folder, gguf_file=name, dtype="float32", quantization_config=dense, output_loading_info=True
        )
        packed, loading = loaded
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    if missing := sorted(loading["missing_keys"]):
        raise UserError(f"{file}: lacks the weights {', '.join(missing[:5])}. Get the model as safetensors.")
    # What was read from a GGUF file counts as quantised and refuses to be saved: its weights are put into another.
    with torch.device("meta"):
        model = type(packed)(packed.config)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.tie_weights()
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(destination, max_shard_size=MAX_SHARD)
    tokenizer.save_pretrained(destination)


def convert_gguf_settings(file: Path, destination: Path) -> None:
    """As `convert_gguf`, but without the weights, which are not read.

    Raises `UserError` for a damaged file and an architecture that transformers does not read.
    """
    import transformers

    with _reading(file):
        folder, name = file.parent, file.name
        config = transformers.AutoConfig.from_pretrained(folder, gguf_file=name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    config.dtype = "float32"  # what the import makes of the weights
    config.save_pretrained(destination)
    transformers.GenerationConfig.from_model_config(config).save_pretrained(destination)
    tokenizer.save_pretrained(destination)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """While entered, transformers is quiet, and what it cannot read of a GGUF file becomes a `UserError`."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except ImportError as e:
        raise UserError(f"{file}: cannot be read, as a package is missing ({e}). Run: pip install gguf") from None
    except Exception as e:  # a damaged file fails wherever it is damaged
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(
            f"{file}: cannot be read as a model ({reason}). Download the file again, or get the model as safetensors."
        ) from None
