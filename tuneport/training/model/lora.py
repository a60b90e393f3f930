"""LoRA: put low-rank adapters into a loaded model, with the head that a task adds trained in full."""

from __future__ import annotations

import logging
import os
import re
import typing as t
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.pytorch_utils import Conv1D

from tuneport.artifacts import MANIFEST, Model, read_manifest
from tuneport.errors import UserError
from tuneport.modeling import pretrained
from tuneport.serving.model_loader import ModelLoader
from tuneport.training.parameters import AdapterParams

log = logging.getLogger("tuneport.finetune")
AUTO = "auto"


class AdaptedModel(PeftModel):
    """A model of which the adapters and the head are trained and saved, with the config that they load with."""

    def save_pretrained(self, save_directory: t.Any, **kwargs: t.Any) -> None:  # type: ignore[override]
        kwargs["save_embedding_layers"] = False  # never among what is trained; "auto" would ask the hub
        super().save_pretrained(str(save_directory), **kwargs)
        if kwargs.get("is_main_process", True):
            inner: t.Any = self.get_base_model()
            inner.config.architectures = [type(inner).__name__]
            inner.config.save_pretrained(save_directory)
            if inner.can_generate() and inner.generation_config is not None:
                inner.generation_config.save_pretrained(save_directory)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write none: it would be an empty form, and it names paths of this machine."""


def adapt(model: t.Any, base: Path, output: Path, options: AdapterParams, heads: list[str]) -> AdaptedModel:
    """Freeze a model that was loaded from ``base``, but for ``heads``, and add the adapters that ``options`` describe.

    ``output`` is where it will be saved. Raises `UserError` where no module is of the names that were asked for.
    """
    targets = target_modules(model, options.lora_target_modules, heads)
    name, revision = reference(base, output)
    config = LoraConfig(
        base_model_name_or_path=name,
        revision=revision,
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=targets,
        modules_to_save=heads or None,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),
    )
    zero3: t.Any = is_deepspeed_zero3_enabled
    spread = zero3()  # its weights are all of one type, and ZeRO holds float32 ones beside them
    adapted = AdaptedModel(model, config, autocast_adapter_dtype=not spread)
    for weight in adapted.parameters():
        if weight.requires_grad and not spread:  # the base model, of which it took its type, may be in 16 bits
            weight.data = weight.data.to(torch.float32)
    log.info(
        "LoRA of rank %d in %d modules (%s)%s",
        options.lora_r,
        len(targets),
        ", ".join(_collapsed(targets)),
        f"; in full: {', '.join(heads)}" if heads else "",
    )
    return adapted


def reference(base: Path, output: Path) -> tuple[str, str | None]:
    """Where an adapter says that its base model is: a hub's id and commit, or the way there from ``output``."""
    if (base / MANIFEST).is_file():
        manifest = read_manifest(Model(base))
        if hub_id := manifest["parameters"].get("huggingface_id"):
            return hub_id, manifest["inputs"].get("huggingface_id")
    return os.path.relpath(base, output), None


def head_modules(model: t.Any, base: Path) -> list[str]:
    """The modules that only this task has, or that ``base`` lacks: those whose weights no adapter can stand for.

    A language model's head is none of them.
    """
    loader = ModelLoader(type(model).__name__)
    heads, vocabulary = loader.heads(model), model.get_output_embeddings()
    own = [
        name
        for name, module in model.named_children()
        if name in heads and module is not vocabulary and next(module.parameters(), None) is not None
    ]
    lacking = pretrained.lacking(loader, base, model.config)
    modules = {name.rpartition(".")[0] for name in lacking}
    return own + sorted(name for name in modules if name.partition(".")[0] not in own)


def target_modules(model: t.Any, wanted: str, heads: list[str]) -> list[str]:
    """The full names of the linear layers to adapt.

    ``wanted`` is auto (all of them but heads) or names, parts of names from their end, or regular expressions, with
    commas between. Raises `UserError` where one of them fits none.
    """
    vocabulary = model.get_output_embeddings()
    inputs = model.get_input_embeddings()
    tied = vocabulary is not None and getattr(vocabulary, "weight", None) is getattr(inputs, "weight", None)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
        # An adapter on a matrix that is the embedding, too, could not be merged into one and not the other.
        and not (module is vocabulary and (tied or wanted == AUTO))
    ]
    if wanted == AUTO:
        return linear
    chosen: set[str] = set()
    for part in filter(None, (part.strip() for part in wanted.split(","))):
        fitting = {name for name in linear if name == part or name.endswith(f".{part}") or _fits(part, name)}
        if not fitting:
            raise UserError(
                f"lora_target_modules={wanted!r}: no linear layer is named or fits {part!r}; expected auto, or some "
                f"of: {', '.join(_collapsed(linear))} (* is any number)."
            )
        chosen |= fitting
    if not chosen:
        raise UserError(
            f"lora_target_modules={wanted!r}: names no module; expected auto, or names with commas between."
        )
    return [name for name in linear if name in chosen]


def _fits(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as e:
        raise UserError(f"lora_target_modules: {pattern!r} is not a regular expression ({e}).") from None


def _collapsed(names: list[str]) -> list[str]:
    """Names with * for the numbers of layers, each once."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))
