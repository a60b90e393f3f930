"""How much memory a training step takes: the real code is run with tensors that have shapes but no contents.

torch's FakeTensorMode gives such tensors. They cost nothing, so a step of any model, on any batch, takes seconds on a
CPU. `LiveStorages` counts what the tensors would take.
"""

from __future__ import annotations

import typing as t
import weakref
from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tuneport.training.batch_counts import with_contents
from tuneport.training.padding_free import choose
from tuneport.training.rank_memory import StepMemory

if t.TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from tuneport.training.trainer import BestModelTrainer

STEPS = 2  # from the second on, the optimizer's states are there while the gradients are computed


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that are alive, as operations make them and nothing holds them any more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, tuple[int, tuple[int, ...]]] = {}  # by the storage's address: bytes, a shape
        self.total = self.peak = 0
        self.at_peak: list[tuple[int, tuple[int, ...]]] = []

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, unless it is counted."""
        storage = tensor.untyped_storage()
        address = id(storage)  # one object for as long as there is the storage
        if address in self.live:
            return
        self.live[address] = (storage.nbytes(), tuple(tensor.shape))
        self.total += storage.nbytes()
        weakref.finalize(storage, self._remove, address)
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, list(self.live.values())

    def _remove(self, address: int) -> None:
        self.total -= self.live.pop(address)[0]

    def __torch_dispatch__(self, func: t.Any, types: t.Any, args: t.Any = (), kwargs: t.Any = None) -> t.Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self.add(leaf)
        return found


def without_placement(arguments: TrainingArguments) -> TrainingArguments:
    """The arguments of a Trainer that leaves its model where it is: on the meta device."""
    kind = type(arguments)
    arguments.__class__ = type(kind.__name__, (kind,), {"place_model_on_device": False})
    return arguments


def measure(trainer: BestModelTrainer, rows: Sequence[dict[str, t.Any]]) -> StepMemory:
    """The memory of training steps on a batch of encoded rows; ``trainer`` was made by `train.assemble`."""
    return of_batch(trainer, with_contents(t.cast(t.Any, trainer.data_collator), trainer.has_targets)(list(rows)))


def of_batch(trainer: Trainer, batch: dict[str, t.Any]) -> StepMemory:
    """The memory of training steps on a batch.

    The trainer's model is on the meta device, and gets weights without contents here.
    """
    model: t.Any = trainer.model
    counter = LiveStorages()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _materialise(model, mode)
        if trainer.args.activation_checkpointing:
            model.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)
        model.train()
        called = trainer.accelerator.prepare_model(model, device_placement=False)  # which computes under autocast
        optimizer: t.Any = trainer.create_optimizer()
        for tensor in (*model.parameters(), *model.buffers()):
            counter.add(tensor)
        weights, parameters = counter.total, list(model.parameters())
        known = {tuple(parameter.shape) for parameter in parameters}
        items = torch.tensor(1)
        gradients = 0
        with counter:
            for _ in range(STEPS):
                trainer.training_step(called, dict(batch), num_items_in_batch=items)
                gradients = sum(_bytes(p.grad) for p in parameters if p.grad is not None)
                optimizer.step()
                optimizer.zero_grad()
        states = sum(
            _bytes(value)
            for state in getattr(optimizer, "optimizer", optimizer).state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )
    vocabulary = model.config.get_text_config().vocab_size
    return StepMemory(
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        weights=weights,
        gradients=gradients,
        optimizer=states,
        peak=counter.peak,
        logits=sum(size for size, shape in counter.at_peak if shape[-1:] == (vocabulary,) and shape not in known),
        quantizable=_quantizable(model),
        largest_layer=_largest_layer(model),
    )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _materialise(model: t.Any, mode: FakeTensorMode) -> None:
    """Give each weight and buffer a fake tensor, of those that are one and the same the same one."""
    made: dict[int, torch.Tensor] = {}
    kept = []  # so that no address is given twice
    for module in model.modules():
        own = {"recurse": False, "remove_duplicate": False}
        for name, tensor in [*module.named_parameters(**own), *module.named_buffers(**own)]:
            if id(tensor) not in made:
                fake = torch.empty_like(tensor, device="cpu") if tensor.is_meta else mode.from_tensor(tensor)
                is_weight = isinstance(tensor, torch.nn.Parameter)
                made[id(tensor)] = torch.nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
                kept.append(tensor)
            setattr(module, name, made[id(tensor)])


def _quantizable(model: t.Any) -> int:
    head = model.get_output_embeddings()
    linear = (module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head)
    return sum(module.weight.numel() for module in linear if not module.weight.requires_grad)


def _largest_layer(model: t.Any) -> int:
    """Bytes of the largest of a model's layers and embeddings."""
    inner = choose.plain(model)
    stacks = [module for module in inner.modules() if isinstance(module, torch.nn.ModuleList)]
    units = [layer for stack in stacks for layer in stack]
    units += [module for module in inner.modules() if isinstance(module, torch.nn.Embedding)]
    return max((sum(_bytes(p) for p in unit.parameters()) for unit in units), default=0)
