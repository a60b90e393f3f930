"""Merge an adapter into a model that is not in memory: one weight after the other, from the base model's files."""

from __future__ import annotations

import dataclasses as dc
import typing as t
from collections import defaultdict
from pathlib import Path

from tuneport.modeling.weight_files import Weight, stored
from tuneport.serving.adapter_sum import LoraAdapter

if t.TYPE_CHECKING:
    import torch


def can_be_streamed(settings: t.Any, names: t.Iterable[str]) -> bool:
    """Whether an adapter is LoRA of whole layers, beside which no other weight of theirs changes.

    ``settings`` are its config, ``names`` those of its weights.
    """
    others = ("trainable_token_indices", "target_parameters", "layer_replication", "lora_bias")
    lora = getattr(settings.peft_type, "value", settings.peft_type) == "LORA"
    whole = [f".{module}." for module in settings.modules_to_save or []]
    known = all(".lora_" in name or any(module in name for module in whole) for name in names)
    return lora and known and settings.bias == "none" and not any(getattr(settings, name, None) for name in others)


class Outline:
    """A model on torch's meta device, as it is before an adapter is put into it: its weights' names, here and in files.

    ``conversions`` are what transformers loads the files of ``base`` with.
    """

    def __init__(self, model: t.Any, conversions: t.Sequence[t.Any], base: Path, dtype: torch.dtype) -> None:
        from transformers.modeling_utils import remove_tied_weights_from_state_dict

        self.model, self.dtype, self.state = model, dtype, model.state_dict()
        self.saved = [*remove_tied_weights_from_state_dict(dict(self.state), model)]
        same = defaultdict[int, list[str]](list)
        for name in self.state:
            same[id(model.get_parameter_or_buffer(name))].append(name)
        self.tied = {name: names for names in same.values() if len(names) > 1 for name in names}
        self.in_files: dict[str, Weight] = {}  # by their name in the model
        self.parts: dict[str, Weight] = {}  # by their name in the files: several weights there make one here
        self.splits = False  # whether one weight there makes several here
        self._read(conversions, base)

    def _read(self, conversions: t.Sequence[t.Any], base: Path) -> None:
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
        self.splits = any(len(entry.target_patterns) > 1 for entry in converters)
        for name, weight in sorted(stored(base, self.dtype), key=lambda item: dot_natural_key(item[0])):
            here, converter = rename_source_key(name, renamings, converters, self.model.base_model_prefix, self.state)
            if here not in self.state and name in self.state:
                here, converter = name, None
            if here in self.state and converter is not None:
                self.parts[name] = weight
            elif here in self.state:
                for alike in self.tied.get(here, [here]):
                    self.in_files.setdefault(alike, weight)

    def _in_a_file(self, name: str) -> str | None:
        """What transformers calls a weight when it saves the model; None where it makes several or none of it."""
        from transformers.core_model_loading import revert_weight_conversion

        found = [*revert_weight_conversion(self.model, {name: self.state[name]})]
        return str(found[0]) if len(found) == 1 else None

    def hollow(self) -> None:
        """Let the model's weights be zeros on the CPU that take no memory, of the same sizes.

        An adapter can be put beside those: beside weights on the meta device, its own would go there.
        """
        import torch

        made: dict[int, torch.nn.Parameter] = {}
        for module in self.model.modules():
            for name, weight in [*module.named_parameters(recurse=False)]:
                if id(weight) not in made:
                    zeros = torch.zeros(1).expand(weight.shape)
                    made[id(weight)] = torch.nn.Parameter(zeros, requires_grad=False)
                setattr(module, name, made[id(weight)])

    def merged(self, adapted: t.Any) -> dict[str, Weight] | None:
        """The weights to write once ``adapted`` has put an adapter into the model, by their names in files.

        None where one cannot be made of a single weight of the files and its own adapter.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

        modules = dict(self.model.named_modules())
        layers = {name: m for name, m in modules.items() if isinstance(m, BaseTunerLayer)}
        whole = {name: m for name, m in modules.items() if isinstance(m, AuxiliaryTrainingWrapper)}
        known = all(map(LoraAdapter.has_own_sum, layers.values()))
        if not known or not all(isinstance(m, ModulesToSaveWrapper) for m in whole.values()) or self.splits:
            return None
        found = dict(self.parts)
        for name in self.saved:
            weight = self.in_files.get(name)
            module, _, own = name.rpartition(".")
            wrapper = next((n for n in whole if name.startswith(f"{n}.")), None)
            in_sum = wrapper is None and module in layers and own == "weight"
            if weight is None and wrapper is None:
                if in_sum or not self.parts:
                    return None
                continue  # it is one of those that are made of parts
            if name in self.tied and (in_sum or wrapper is not None):  # it would no longer be tied, or twice adapted
                return None
            there = self._in_a_file(name)
            if wrapper is not None:
                trained = whole[wrapper].modules_to_save[adapted.active_adapter].state_dict()
                weight = self._given(trained[name.removeprefix(f"{wrapper}.")])
            elif in_sum and weight is not None:
                weight = dc.replace(weight, make=_Sum(layers[module], weight))
            if there is None or weight is None:
                return None
            found[there] = weight
        return found

    def _given(self, weight: torch.Tensor) -> Weight:
        kind = self.dtype if weight.is_floating_point() else weight.dtype
        return Weight(shape=tuple(weight.shape), dtype=kind, make=lambda: weight)


@dc.dataclass(frozen=True, eq=False)
class _Sum:
    """Makes the weight of a layer whose adapter is in memory and whose own weight is not."""

    layer: t.Any
    stored: Weight

    def __call__(self) -> torch.Tensor:
        import torch

        inner = self.layer.get_base_layer()
        zeros = inner.weight
        read = self.stored.make().to(torch.float32, copy=True)
        inner.weight = torch.nn.Parameter(read, requires_grad=False)
        LoraAdapter.add_layer(self.layer, torch.float32)
        made, inner.weight = inner.weight.data, zeros
        return t.cast("torch.Tensor", made)
