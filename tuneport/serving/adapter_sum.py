"""A LoRA adapter, added to the weights of its base model."""

from __future__ import annotations

import typing as t


class LoraAdapter:
    """The LoRA adapter in a folder, as peft writes it. Self-contained: exported with the predictors; needs peft.

    ``base`` is the folder in it where its base model lies, if the two are kept together.
    """

    BASE = "base_model"

    def __init__(self, folder: str) -> None:
        from pathlib import Path

        self.folder, self.base = folder, str(Path(folder, self.BASE))

    def has_base(self) -> bool:
        """Whether the folder holds an adapter and its base model."""
        from pathlib import Path

        return Path(self.folder, "adapter_config.json").is_file() and Path(self.base, "config.json").is_file()

    def trained_in_full(self) -> list[str]:
        """The names of the modules that it brings whole, such as a head."""
        return list(self._settings().modules_to_save or [])

    def beside(self, model: t.Any) -> t.Any:
        """The model with the adapter beside its weights, in 32 bits. Raises ValueError where it does not fit."""
        import torch
        from peft import PeftModel

        try:
            adapted = PeftModel(model, self._settings())
            for name, weight in adapted.named_parameters():
                if ".lora_" in name or ".modules_to_save." in name:
                    weight.data = weight.data.to(torch.float32)
            found = adapted.load_adapter(self.folder, adapted.active_adapter)
        except KeyError as e:  # of a module that is trained in full
            raise ValueError(f"it lacks the weights {e.args[0]}") from None
        except (ValueError, RuntimeError) as e:  # a layer that is not there; a weight of another size
            raise ValueError(str(e).strip().splitlines()[-1].strip()) from None
        if lacking := [*found.missing_keys, *found.unexpected_keys]:
            raise ValueError(f"{len(lacking)} weights have no counterpart, such as {lacking[0]}")
        return adapted

    def added_to(self, model: t.Any) -> t.Any:
        """The model with the adapter's weights added to its own: in 32 bits, then brought into the model's type.

        Raises ValueError where the adapter does not fit.
        """
        import warnings

        dtype = model.dtype
        adapted = self.beside(model)
        for layer in adapted.modules():
            if self.has_own_sum(layer):
                self.add_layer(layer, dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="All adapters are already merged")
            merged = adapted.merge_and_unload()
        for weight in merged.parameters():  # what was trained in full came in 32 bits; buffers are as the base model's
            weight.data = weight.data.to(dtype)
        return merged

    @staticmethod
    def has_own_sum(module: t.Any) -> bool:
        """Whether a module is a layer with an adapter whose sum needs that layer's own weight and nothing else."""
        from peft.tuners.lora import Embedding, Linear

        return isinstance(module, (Embedding, Linear)) and not any(module.lora_bias.values())

    @staticmethod
    def add_layer(layer: t.Any, dtype: t.Any) -> None:
        """Add a layer's adapter to its weight, in 32 bits, and bring the sum into a type."""
        import torch

        weight = layer.get_base_layer().weight
        with torch.no_grad():
            weight.data = weight.data.to(torch.float32)
            layer.merge()
            weight.data = weight.data.to(dtype)

    def _settings(self) -> t.Any:
        from peft import PeftConfig

        return PeftConfig.from_pretrained(self.folder)
