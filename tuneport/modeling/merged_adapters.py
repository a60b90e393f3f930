"""LoRA adapters on disk: a folder with adapter weights, config and tokenizer, whose base model lies elsewhere."""

from __future__ import annotations

import logging
import shutil
import tempfile
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneport.artifacts import INCOMPLETE, MANIFEST, Model, digest
from tuneport.errors import UserError
from tuneport.json_yaml import read_json, to_json
from tuneport.links import link_tree
from tuneport.modeling import pretrained, weight_types
from tuneport.modeling.streamed_merge import Outline, can_be_streamed
from tuneport.modeling.weight_files import MAX_SHARD, stored, write
from tuneport.serving.adapter_sum import LoraAdapter
from tuneport.serving.model_loader import ModelLoader

if t.TYPE_CHECKING:
    import torch

log = logging.getLogger("tuneport.model")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
CHECKPOINTS, LOGS = "checkpoints", "logs"
# By peft's task_type, the class of an adapter that comes without its model's config; most without a type are decoders'.
LANGUAGE_MODELS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    None: "AutoModelForCausalLM",
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter: as finetune writes it, with its model's config, or as peft does, without."""
    return (folder / ADAPTER_CONFIG).is_file()


def check_base(adapter: Path, base: Path) -> None:
    """Raise `UserError` where ``base`` is known to be another model than the one that the adapter was trained on."""
    wanted = _trained_on(adapter)
    if wanted is not None and (base / MANIFEST).is_file() and digest(Model(base)) != wanted:
        raise UserError(
            f"{base}: is not the base model that the adapter in {adapter} was trained on. Pass the model_import output "
            "that finetune read."
        )


def _trained_on(adapter: Path) -> str | None:
    """Digest of the base model, from the manifest of the folder or, of a checkpoint, of the folder it belongs to."""
    home = adapter.parent.parent if adapter.parent.name == CHECKPOINTS else adapter
    try:
        found = read_json(home / MANIFEST)["inputs"].get("model_selector_output")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return t.cast("str | None", found)


def load_merged(adapter: Path, base: Path, **loading: t.Any) -> t.Any:
    """Load the base model in the class that was trained, with the adapter's weights added to its own.

    ``loading`` is what from_pretrained takes besides; in 32 bits unless it says otherwise. Each sum is made in 32 bits
    and then brought into the model's type. Raises `UserError` where ``base`` is known to be another model, or the
    adapter does not fit it.
    """
    model, _ = _base_model(adapter, base, **{"dtype": "float32", **loading})
    with _fitting(adapter, base) as lora:
        return lora.added_to(model)


def merged_type(adapter: Path, base: Path) -> torch.dtype:
    """The type that finetune writes an adapter's merged model in, by the adapter's manifest."""
    try:
        wanted = read_json(adapter / MANIFEST)["parameters"].get("output_dtype", weight_types.AUTO)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        wanted = weight_types.AUTO
    return weight_types.for_output(wanted, base)


def _base_model(adapter: Path, base: Path, **loading: t.Any) -> tuple[t.Any, ModelLoader]:
    """The base model in the class that was trained; what it lacks and the adapter brings is random yet."""
    import transformers
    from peft import PeftConfig

    check_base(adapter, base)
    settings = PeftConfig.from_pretrained(str(adapter))
    config = transformers.AutoConfig.from_pretrained(adapter if (adapter / "config.json").is_file() else base)
    loader = ModelLoader(_architecture(adapter, settings, config))
    # What the base model lacks or has in another size, the head, is in the adapter.
    model = pretrained.load_by(loader, base, new_head=True, config=config, **loading)
    with _fitting(adapter, base) as lora:
        loader.check_brought(lora)
    return model, loader


@contextmanager
def _fitting(adapter: Path, base: Path) -> Iterator[LoraAdapter]:
    """The adapter; while entered, what it says of a model that it does not fit becomes a `UserError`."""
    try:
        yield LoraAdapter(str(adapter))
    except ValueError as e:
        raise _unfit(adapter, base, str(e)) from None


def _names(adapter: Path) -> list[str]:
    """Of an adapter's weights."""
    from safetensors import safe_open

    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as weights:
        return [*weights.keys()]


def _architecture(adapter: Path, settings: t.Any, config: t.Any) -> str:
    """The class that an adapter was trained in: as its own config says, or of a language model by its task's type."""
    if (adapter / "config.json").is_file():
        return str(config.architectures[0])
    kind = getattr(settings.task_type, "value", settings.task_type)
    if kind in LANGUAGE_MODELS:
        return LANGUAGE_MODELS[kind]
    raise UserError(
        f"{adapter}: this LoRA adapter (task_type {kind}) comes without config.json, so its labels are not known. "
        "Put the config.json of the model that it was trained in beside it."
    )


def _unfit(adapter: Path, base: Path, reason: str) -> UserError:
    return UserError(
        f"{adapter}: this LoRA adapter does not fit the base model {base}: {reason}. "
        "Name the model that it was trained on."
    )


def write_merged(adapter: Path, base: Path, destination: Path, output_dtype: str = weight_types.AUTO) -> None:
    """Write a plain model folder: the adapter's files with merged weights in its weights' place.

    An adapter without a tokenizer gets the base model's. Raises `UserError` as `load_merged` does.
    """
    left_out = {CHECKPOINTS, LOGS, LoraAdapter.BASE, *ADAPTER_FILES, MANIFEST, INCOMPLETE}
    write_merged_weights(adapter, base, destination, output_dtype)
    written = {file.name for file in destination.iterdir()}
    if not (adapter / "tokenizer.json").is_file():
        weights = shutil.ignore_patterns("*.safetensors*", MANIFEST, *written)
        shutil.copytree(base, destination, ignore=weights, dirs_exist_ok=True)
    shutil.copytree(adapter, destination, ignore=lambda _, names: (left_out | written) & {*names}, dirs_exist_ok=True)


def write_merged_weights(adapter: Path, base: Path, destination: Path, output_dtype: str = weight_types.AUTO) -> None:
    """Write merged weights and their config in the type asked for, one weight after the other.

    An adapter whose weights do not go by layers is merged in memory. Raises `UserError` as `load_merged` does.
    """
    from peft import PeftConfig

    dtype = weight_types.for_output(output_dtype, base)
    if not _is_quantized(base) and can_be_streamed(PeftConfig.from_pretrained(str(adapter)), _names(adapter)):
        model, loader = _base_model(adapter, base, device_map="meta", dtype="float32")
        outline = Outline(model, loader.conversions, base, dtype)
        outline.hollow()
        with _fitting(adapter, base) as lora:
            adapted = lora.beside(model)
        weights = outline.merged(adapted)
        if weights is not None:
            write(destination, weights)
            _write_config(model, destination, dtype)
            return
        del model, outline, adapted
    log.info("%s: is merged in memory, as its weights are not of single layers", adapter)
    merged = load_merged(adapter, base)
    weight_types.cast(merged, dtype)
    merged.save_pretrained(destination, max_shard_size=MAX_SHARD)


def _is_quantized(base: Path) -> bool:
    return "quantization_config" in read_json(base / "config.json")


def _write_in_type(folder: Path, destination: Path, dtype: torch.dtype) -> None:
    """Write a plain model folder again, with its weights in another type."""
    left_out = shutil.ignore_patterns("*.safetensors*", CHECKPOINTS, LOGS, MANIFEST, INCOMPLETE)
    shutil.copytree(folder, destination, ignore=left_out, dirs_exist_ok=True)
    write(destination, dict(stored(folder, dtype)))
    config = read_json(folder / "config.json") | {"dtype": str(dtype).removeprefix("torch.")}
    (destination / "config.json").write_text(to_json(config, indent=2) + "\n", "utf-8")


def _write_config(model: t.Any, folder: Path, dtype: torch.dtype) -> None:
    """As save_pretrained writes beside weights."""
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def keep_together(base: Path, adapter: Path, output_dtype: str = weight_types.AUTO) -> bool:
    """Put a base model's files, linked where they can be, into the folder of an adapter, which `ModelLoader` then loads
    with the adapter added.

    False, and nothing done, where the sum is to be written in another type than the base model has.
    """
    if _is_quantized(base) or not weight_types.stays(output_dtype, base):
        return False
    link_tree(base, adapter / LoraAdapter.BASE, leave_out=[MANIFEST, INCOMPLETE])
    return True


@contextmanager
def merged(folder: Path, base: Path | None, scratch: Path, output_dtype: str = weight_types.AUTO) -> Iterator[Path]:
    """A model folder in the type asked for: the given one, or one that is made in ``scratch`` and removed after.

    A plain one is made of an adapter, whose type is its base model's by default, unless both are kept together in that
    type; and of a model in another type. Raises `UserError` for an adapter without its base model.
    """
    if not is_adapter(folder):
        if weight_types.stays(output_dtype, folder):
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix=".casting-", dir=scratch) as made:
            _write_in_type(folder, Path(made), weight_types.for_output(output_dtype, folder))
            yield Path(made)
        return
    together = LoraAdapter(str(folder))
    if together.has_base():
        base = Path(together.base)
        if weight_types.stays(output_dtype, base):
            yield folder
            return
    if base is None:
        raise UserError(
            f"{folder}: holds a LoRA adapter; expected its base model, too. Pass the model that it was trained on as "
            "model_selector_output."
        )
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=scratch) as made:
        write_merged(folder, base, Path(made), output_dtype)
        yield Path(made)
