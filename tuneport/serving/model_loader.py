"""A model's weights, read from a folder: the one place where they come in, for training, evaluation and serving."""

from __future__ import annotations

import typing as t

from tuneport.serving.adapter_sum import LoraAdapter
from tuneport.serving.placement import Machine


class ModelLoader:
    """Loads models of one of transformers' classes, and initialises no weight at random unless it may. Self-contained.

    A folder may also hold a LoRA adapter together with its base model: the sum of both is loaded, which needs peft.

    ``architecture`` names the class, as in AutoModelForCausalLM. After a call, ``new`` holds the names of the weights
    that were initialised at random, ``unused`` those of the folder's weights that the class has no place for,
    ``conversions`` what transformers made the folder's weights the class's own by.
    """

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.new: list[str] = []
        self.unused: list[str] = []
        self.conversions: list[t.Any] = []

    def __call__(
        self, folder: str, *, new_head: bool = False, ignore_mismatched_sizes: bool = False, **loading: t.Any
    ) -> t.Any:
        """Return the model; ``loading`` is what from_pretrained takes besides the folder: config, dtype, device_map, …

        ``new_head``: what the class has beside the trunk, the head, may be initialised at random, from torch's seed.
        ``ignore_mismatched_sizes``: so may what the folder has in another size.
        Raises ValueError where the folder lacks other weights or has them in another size.
        """
        import transformers

        adapter = LoraAdapter(folder)
        if adapter.has_base():
            return self._sum(adapter, **loading)
        auto_class = getattr(transformers, self.architecture)
        loading |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, found = auto_class.from_pretrained(folder, **loading)
        renamed = self._renamed_trunk(model, found)
        if renamed:
            model, found = auto_class.from_pretrained(folder, key_mapping=renamed, **loading)
        self.conversions = vars(model).get("_weight_conversions") or []
        if renamed:
            vars(model).pop("_weight_conversions", None)  # else it would be saved under the files' names
        missing = set(found["missing_keys"])
        mismatched = {name: (tuple(theirs), tuple(ours)) for name, theirs, ours in found["mismatched_keys"]}
        self.new = sorted(missing | set(mismatched))
        self.unused = sorted(found["unexpected_keys"])
        heads = self.heads(model) if new_head and self.new else []
        may_be_new = mismatched if ignore_mismatched_sizes else {}
        refused = [
            name for name in self.new if name not in may_be_new and not any(name.startswith(f"{h}.") for h in heads)
        ]
        if refused:
            raise ValueError(self._problem(model, refused, mismatched))
        return model

    def check_brought(self, adapter: LoraAdapter) -> None:
        """After a base model was loaded: raise ValueError for weights that are random and not the adapter's."""
        whole = adapter.trained_in_full()
        lacking = [name for name in self.new if not any(f".{module}." in f".{name}" for module in whole)]
        if lacking:
            raise ValueError(f"neither of them has {', '.join(lacking[:3])}")

    def _sum(self, adapter: LoraAdapter, *, dtype: t.Any = None, config: t.Any = None, **loading: t.Any) -> t.Any:
        """The base model with the adapter added: each sum is rounded to the type of the base model's files, as it would
        be in a file, and then brought into ``dtype``."""
        import torch
        import transformers

        try:
            import peft  # noqa: F401
        except ImportError:
            raise ImportError(f"{adapter.folder}: holds a LoRA adapter, which takes peft (pip install peft)") from None
        own = Machine().own_type(adapter.base)
        config = config or transformers.AutoConfig.from_pretrained(adapter.folder)
        verbosity = transformers.logging.get_verbosity()
        # It would warn of a head that is random until the adapter is added.
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            base = self(adapter.base, new_head=True, config=config, dtype=own, **loading)
            self.check_brought(adapter)
            model = adapter.added_to(base)
        except ValueError as e:
            raise ValueError(f"the LoRA adapter does not fit the model in {adapter.base}: {e}") from None
        finally:
            transformers.logging.set_verbosity(verbosity)
        self.new, self.unused, self.conversions = [], [], []
        kind = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
        for weight in model.parameters() if isinstance(kind, torch.dtype) else ():
            weight.data = weight.data.to(kind)
        return model

    def _renamed_trunk(self, model: t.Any, found: dict[str, t.Any]) -> dict[str, str]:
        """What the trunk is called in the files (a pattern) -> in this class, where all of it has another name there.

        Some classes of transformers call it otherwise than their siblings: LlamaForQuestionAnswering says transformer
        where LlamaForCausalLM says model, and from_pretrained would take all of it for missing.
        """
        import re

        ours = f"{model.base_model_prefix}."
        lacking = [name.removeprefix(ours) for name in found["missing_keys"] if name.startswith(ours)]
        unused = set(found["unexpected_keys"])
        prefixes = {name.partition(".")[0] + "." for name in unused}
        theirs = [prefix for prefix in prefixes if lacking and all(prefix + name in unused for name in lacking)]
        return {f"^{re.escape(theirs[0])}": ours} if len(theirs) == 1 and theirs[0] != ours else {}

    def lacking(self, folder: str, config: t.Any) -> list[str]:
        """The names of the weights that a folder lacks, or has in another size than ``config`` says. Reads none."""
        self(folder, new_head=True, config=config, device_map="meta")
        return self.new

    def heads(self, model: t.Any) -> list[str]:
        """The names of the modules that a model has beside its trunk.

        The pooler counts as one of them: models that were trained on masked words come without.
        """
        import torch
        import transformers

        if model.base_model is model:  # T5 and its like have no module that is the model without a head
            auto_class: t.Any = transformers.AutoModel
            with torch.device("meta"):
                trunk = {name for name, _ in auto_class.from_config(model.config).named_children()}
        else:
            trunk = {model.base_model_prefix}
        own = [name for name, _ in model.named_children() if name not in trunk]
        pooler = "pooler" if model.base_model is model else f"{model.base_model_prefix}.pooler"
        return [*own, pooler]

    def _problem(self, model: t.Any, refused: list[str], mismatched: dict[str, t.Any]) -> str:
        total = len(model.state_dict())
        shown = ", ".join(
            f"{name} (is {list(mismatched[name][0])}, expected {list(mismatched[name][1])})"
            if name in mismatched
            else name
            for name in refused[:3]
        )
        rest = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        kind = type(model).__name__
        return (
            f"{len(refused)} of the {total} weights of a {kind} are not in the model's files, and would be random: "
            f"{shown}{rest}. {self._reason(refused, mismatched)}"
        )

    def _reason(self, refused: list[str], mismatched: dict[str, t.Any]) -> str:
        """What the files hold instead, and what to do."""
        found = ", ".join(self.unused[:3])
        if any(".lora_" in name or name.startswith("base_model.model.") for name in self.unused):
            return f"The files hold LoRA's weights ({found}): import the adapter together with its base model."
        for wanted in refused:
            for name in self.unused:
                if name.endswith(f".{wanted}"):
                    prefix = name.removesuffix(wanted)
                    return f"The files have it as {name}: remove '{prefix}' from the names of the weights."
        if any(name in mismatched for name in refused):
            return (
                "Its config.json is of a model of another size: take that which belongs to the weights, or let them be "
                "random with ignore_mismatched_sizes=true."
            )
        if self.unused:
            return (
                f"The files hold {len(self.unused)} others instead ({found}): take the files of one and the same model."
            )
        return "The files are not whole: copy or download the model again."
