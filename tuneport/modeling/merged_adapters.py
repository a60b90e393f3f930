"""LoRA adapters on disk: a folder with adapter weights, config and tokenizer, whose base model lies elsewhere."""

from __future__ import annotations

import json
import shutil
import tempfile
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneport.artifacts import INCOMPLETE, MANIFEST, Model, digest
from tuneport.errors import UserError
from tuneport.modeling import pretrained
from tuneport.serving.model_loader import ModelLoader

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHECKPOINTS = "checkpoints"
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
        found = json.loads((home / MANIFEST).read_text("utf-8"))["inputs"].get("model_selector_output")
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return t.cast("str | None", found)


def load_merged(adapter: Path, base: Path) -> t.Any:
    """Load the base model in 32 bits, in the class that was trained, with the adapter's weights added to its own.

    Raises `UserError` where ``base`` is known to be another model, or the adapter does not fit it.
    """
    import transformers
    from peft import PeftConfig, PeftModel

    check_base(adapter, base)
    settings = PeftConfig.from_pretrained(str(adapter))
    config = transformers.AutoConfig.from_pretrained(adapter if (adapter / "config.json").is_file() else base)
    loader = ModelLoader(_architecture(adapter, settings, config))
    # What the base model lacks or has in another size, the head, is in the adapter.
    model = pretrained.load_by(loader, base, new_head=True, config=config, dtype="float32")
    in_full = settings.modules_to_save or []
    if random := [name for name in loader.new if not any(f".{module}." in f".{name}" for module in in_full)]:
        raise _unfit(adapter, base, f"neither of them has {', '.join(random[:3])}")
    try:
        adapted = PeftModel(model, settings)
        found = adapted.load_adapter(str(adapter), adapted.active_adapter)
    except (ValueError, RuntimeError) as e:  # a layer that is not there; a weight of another size
        raise _unfit(adapter, base, str(e).strip().splitlines()[-1].strip()) from None
    if lacking := [*found.missing_keys, *found.unexpected_keys]:
        raise _unfit(adapter, base, f"{len(lacking)} weights have no counterpart, such as {lacking[0]}")
    return adapted.merge_and_unload()


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


def write_merged(adapter: Path, base: Path, destination: Path) -> None:
    """Write a plain model folder: the adapter's files with merged weights in its weights' place.

    An adapter without a tokenizer gets the base model's. Raises `UserError` as `load_merged` does.
    """
    left_out = {CHECKPOINTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, INCOMPLETE}
    model = load_merged(adapter, base)
    if not (adapter / "tokenizer.json").is_file():
        weights = shutil.ignore_patterns("*.safetensors*", MANIFEST)
        shutil.copytree(base, destination, ignore=weights, dirs_exist_ok=True)
    shutil.copytree(adapter, destination, ignore=lambda _, names: left_out & {*names}, dirs_exist_ok=True)
    model.save_pretrained(destination)


@contextmanager
def merged(folder: Path, base: Path | None, scratch: Path) -> Iterator[Path]:
    """A plain model folder: the given one, or for an adapter one with merged weights, in ``scratch``, removed after.

    Raises `UserError` for an adapter without its base model.
    """
    if not is_adapter(folder):
        yield folder
        return
    if base is None:
        raise UserError(
            f"{folder}: holds a LoRA adapter; expected its base model, too. Pass the model that it was trained on as "
            "model_selector_output."
        )
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=scratch) as made:
        write_merged(folder, base, Path(made))
        yield Path(made)
