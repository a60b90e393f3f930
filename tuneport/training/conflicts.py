"""Which values of finetune's parameters do not go together, why, and what to do; no torch.

`CONFLICTS` is the one list: `check` walks it, docs/conflicts.md is made from it, a test tries every entry's example.
"""

from __future__ import annotations

import dataclasses as dc
import math
import typing as t
from collections.abc import Callable, Mapping

from tuneport.artifacts import Artifact
from tuneport.errors import UserError
from tuneport.step import show
from tuneport.training import optimizers
from tuneport.training.distributed import deepspeed
from tuneport.training.parameters import AdapterParams, EarlyStoppingParams, TrainingParams

AT_ONCE, BEFORE_TRAINING = "at once", "before the first step"


@dc.dataclass(frozen=True, kw_only=True)
class Machine:
    """What the machine, and the base model, can do; known where training starts, not where a run is described."""

    gpus: int  # that torch sees here
    bf16: bool = True
    tf32: bool = True
    flash_attn: bool = False  # whether the package is installed
    packages: frozenset[str] = frozenset()  # the modules with optimizers of their own that are installed
    model_type: str = "bert"
    exclusive_classes: bool = True  # whether each thing to predict is one of several classes
    recomputes: bool = True  # whether the model supports gradient checkpointing
    attentions: frozenset[str] = frozenset({"eager", "sdpa", "flash_attention_2"})  # that the model has code for


CPU, GPU = Machine(gpus=0), Machine(gpus=1)


@dc.dataclass(frozen=True, kw_only=True)
class Conflict:
    """An entry: ``example`` is refused, and accepted once ``mended`` is changed."""

    names: tuple[str, ...]  # the parameters that it is about
    conflicts: Callable[[t.Any, Machine], bool]
    why: str
    remedy: str
    example: Mapping[str, t.Any]
    mended: Mapping[str, t.Any]
    on: Machine | None = None  # for what depends on the machine: one that it is refused on

    @property
    def when(self) -> str:
        """When it is refused: by `tuneport validate` and before a run's first stage, or by finetune on its machine."""
        return AT_ONCE if self.on is None else BEFORE_TRAINING

    def message(self, options: TrainingParams, machine: Machine) -> str:
        """What was given, why that does not go together, what to do."""
        ports = options.ports()
        given = [
            f"{name}={_shown(value)}"
            for name in self.names
            if (value := getattr(options, name)) not in (None, ports[name].default)
            or self.example.get(name) == ports[name].default  # a default that is part of the conflict
        ]
        return f"{', '.join(given)}: {self.why.format(**vars(machine))}. {self.remedy}."


def _shown(value: t.Any) -> str:
    """As a user writes it."""
    return str(value.path) if isinstance(value, Artifact) else show(value).strip("'")


def _changed(options: t.Any, *names: str) -> bool:
    """Whether one of the parameters has another value than its default."""
    return any(getattr(options, name) != options.ports()[name].default for name in names)


def _idle(switch: str, on: str, names: tuple[str, ...], example: Mapping[str, t.Any]) -> Conflict:
    """Parameters that would do nothing: another than their default is refused unless ``switch`` is ``on``."""

    def conflicts(options: t.Any, machine: Machine) -> bool:
        ports = options.ports()
        return _shown(getattr(options, switch)) != on and any(
            getattr(options, name) not in (None, ports[name].default) for name in names
        )

    return Conflict(
        names=names,
        conflicts=conflicts,
        why=f"no effect without {switch}={on}",
        remedy=f"Set {switch}={on}, or leave out what is named",
        example=example,
        mended={switch: on},
    )


def _in_package(module: str, package: str, names: tuple[str, ...]) -> Conflict:
    """The optimizers of a package that is not installed."""
    return Conflict(
        names=("optim",),
        conflicts=lambda o, m: o.optim in names and module not in m.packages,
        why=f"is in the package {package}, which is not installed",
        remedy=f"Install it (pip install {package}), or take optim=adamw_torch",
        example={"optim": names[0]},
        mended={"optim": "adamw_torch"},
        on=Machine(gpus=1),
    )


def evaluations(options: TrainingParams) -> int | None:
    """How many evaluations a training makes, or could at most, where the parameters alone say it."""
    if options.evaluation_steps_interval:
        epochs = options.num_train_epochs if options.max_steps == -1 else None
        return None if epochs is None else math.ceil(epochs / options.evaluation_steps_interval)
    if options.evaluation_strategy == "steps" and options.max_steps > 0:
        return -(-options.max_steps // options.eval_steps)
    if options.evaluation_strategy == "epoch" and options.max_steps == -1:
        return options.num_train_epochs
    return None


def _never_stops(options: TrainingParams, machine: Machine) -> bool:
    made = evaluations(options)
    return options.apply_early_stopping and made is not None and made <= options.early_stopping_patience


LORA = tuple(name for name in AdapterParams.ports() if name not in ("apply_lora", "quantization"))
STOPPING = tuple(name for name in EarlyStoppingParams.ports() if name != "apply_early_stopping")
EVALUATIONS = ("evaluation_strategy", "eval_steps", "evaluation_steps_interval", "num_train_epochs", "max_steps")
EVALUATIONS_OF_A_PLATEAU = 12  # torch's ReduceLROnPlateau: the first counts as an improvement, it bears with 10 more
NO_GPU = "needs an NVIDIA GPU, and torch sees none here"

CONFLICTS: tuple[Conflict, ...] = (
    # -- parameters that would do nothing -------------------------------------------------------------------------
    _idle("apply_lora", "true", LORA, {"lora_r": 16}),
    _idle("apply_early_stopping", "true", STOPPING, {"early_stopping_patience": 3, "num_train_epochs": 9}),
    _idle("apply_deepspeed", "true", ("deepspeed", "deepspeed_stage", "deepspeed_offload"), {"deepspeed_stage": "3"}),
    Conflict(
        names=("optim", "adam_beta1", "adam_beta2", "adam_epsilon"),
        conflicts=lambda o, _: (
            (_changed(o, "adam_beta1", "adam_beta2") and not optimizers.takes_betas(o.optim))
            or (_changed(o, "adam_epsilon") and not optimizers.takes_epsilon(o.optim))
        ),
        why="this optimizer has no such parameters",
        remedy="Take optim=adamw_torch, or leave out the adam_ parameters",
        example={"optim": "adafactor", "adam_beta1": 0.8},
        mended={"optim": "adamw_torch"},
    ),
    Conflict(
        names=("optim", "apply_deepspeed"),
        conflicts=lambda o, _: o.optim not in optimizers.WEIGHT_BY_WEIGHT and o.apply_deepspeed,
        why="ZeRO makes one long row of all weights, and this optimizer goes by their shapes, or might",
        remedy="Take optim=adamw_torch, or leave out apply_deepspeed",
        example={"optim": "adafactor", "apply_deepspeed": True},
        mended={"optim": "adamw_torch"},
    ),
    Conflict(
        names=("packing", "padding_free"),
        conflicts=lambda o, _: o.packing and not o.padding_free,
        why="packs are for batches without padding: with it, one long row would make all of its batch as wide",
        remedy="Set padding_free=true, or packing=false",
        example={"packing": True, "padding_free": False},
        mended={"padding_free": True},
    ),
    Conflict(
        names=("packing", "group_by_length"),
        conflicts=lambda o, _: o.packing and o.group_by_length,
        why="both say which rows make a batch",
        remedy="Choose one: without padding, similar lengths gain nothing",
        example={"packing": True, "group_by_length": True},
        mended={"group_by_length": False},
    ),
    Conflict(
        names=("lr_scheduler_type", "warmup_steps", "warmup_ratio"),
        conflicts=lambda o, _: (
            o.lr_scheduler_type in ("constant", "reduce_lr_on_plateau") and (o.warmup_steps > 0 or o.warmup_ratio > 0)
        ),
        why="this schedule has no warm-up",
        remedy="Take lr_scheduler_type=constant_with_warmup, or leave out warmup_steps and warmup_ratio",
        example={"lr_scheduler_type": "constant", "warmup_steps": 100},
        mended={"lr_scheduler_type": "constant_with_warmup"},
    ),
    Conflict(
        names=("lr_scheduler_type", *EVALUATIONS),
        conflicts=lambda o, _: (
            o.lr_scheduler_type == "reduce_lr_on_plateau" and (evaluations(o) or math.inf) <= EVALUATIONS_OF_A_PLATEAU
        ),
        why=f"the learning rate falls after {EVALUATIONS_OF_A_PLATEAU} evaluations at the earliest, so it never would",
        remedy="Evaluate more often (evaluation_strategy=steps with a lower eval_steps), train longer, or take another "
        "schedule",
        example={"lr_scheduler_type": "reduce_lr_on_plateau", "num_train_epochs": 3},
        mended={"num_train_epochs": 20},
    ),
    Conflict(
        names=("warmup_steps", "warmup_ratio"),
        conflicts=lambda o, _: o.warmup_steps > 0 and o.warmup_ratio > 0,
        why="both say how long the warm-up is",
        remedy="Choose one",
        example={"warmup_steps": 100, "warmup_ratio": 0.1},
        mended={"warmup_steps": 0},
    ),
    Conflict(
        names=(
            *("apply_early_stopping", "early_stopping_patience"),
            *EVALUATIONS,
        ),
        conflicts=_never_stops,
        why="there are too few evaluations to ever stop early: the first one always counts as an improvement",
        remedy="Evaluate more often (evaluation_strategy=steps with a lower eval_steps), train longer, or leave out "
        "apply_early_stopping",
        example={"apply_early_stopping": True, "num_train_epochs": 1},
        mended={"num_train_epochs": 3},
    ),
    Conflict(
        names=("evaluation_steps_interval", "eval_steps"),
        conflicts=lambda o, _: o.evaluation_steps_interval > 0 and o.eval_steps != o.ports()["eval_steps"].default,
        why="both say how far evaluations lie apart",
        remedy="Choose one",
        example={"evaluation_steps_interval": 0.5, "eval_steps": 100},
        mended={"evaluation_steps_interval": 0},
    ),
    # -- adapters ---------------------------------------------------------------------------------------------------
    Conflict(
        names=("quantization", "apply_lora"),
        conflicts=lambda o, _: o.quantization != "none" and not o.apply_lora,
        why="weights of 8 or 4 bits cannot be trained themselves, only adapters beside them",
        remedy="Set apply_lora=true, or quantization=none",
        example={"quantization": "4bit", "apply_lora": False},
        mended={"apply_lora": True, "merge_lora_weights": False},
    ),
    Conflict(
        names=("quantization", "merge_lora_weights"),
        conflicts=lambda o, _: o.quantization != "none" and o.apply_lora and o.merge_lora_weights,
        why="merging into weights of 8 or 4 bits would round the adapters away",
        remedy="Set merge_lora_weights=false: the base model's full weights, with them, are evaluated and exported",
        example={"quantization": "4bit", "apply_lora": True, "merge_lora_weights": True},
        mended={"merge_lora_weights": False},
    ),
    Conflict(
        names=("ignore_mismatched_sizes", "apply_lora"),
        conflicts=lambda o, _: o.ignore_mismatched_sizes and o.apply_lora,
        why="weights that are new at random would be neither trained nor kept with the adapters",
        remedy="Set apply_lora=false, or ignore_mismatched_sizes=false",
        example={"ignore_mismatched_sizes": True, "apply_lora": True},
        mended={"apply_lora": False},
    ),
    # -- weights in 16 bits -----------------------------------------------------------------------------------------
    Conflict(
        names=("weights_dtype", "optim", "learning_rate"),
        conflicts=lambda o, _: (
            _trains_bfloat16(o)
            and o.optim not in (*optimizers.ROUNDED_AT_RANDOM, *optimizers.SUMMED_UP)
            and o.learning_rate < optimizers.LEAST_RATE_IN_BFLOAT16
        ),
        why=f"a weight in bfloat16 has 8 bits, so an update below 1/512 of it is rounded away: with a learning rate "
        f"below {optimizers.LEAST_RATE_IN_BFLOAT16}, those of a weight of 0.1",
        remedy="Take optim=stable_adamw, which sums up what is rounded away (Kahan summation), or adamw_torch_8bit, "
        "which rounds at random (stochastic rounding); or leave weights_dtype=auto",
        example={"weights_dtype": "bfloat16", "precision": "bf16", "learning_rate": 2e-5},
        mended={"optim": "stable_adamw"},
    ),
    Conflict(
        names=("weights_dtype", "optim", "number_of_gpu_to_use_finetuning", "num_nodes_finetune"),
        conflicts=lambda o, _: (
            _trains_bfloat16(o)
            and o.optim in optimizers.ROUNDED_AT_RANDOM
            and o.number_of_gpu_to_use_finetuning * o.num_nodes_finetune > 1
        ),
        why="this optimizer rounds at random, each process by its own numbers, so their weights would drift apart",
        remedy="Take optim=stable_adamw, or one process",
        example={
            "weights_dtype": "bfloat16",
            "precision": "bf16",
            "optim": "adamw_torch_8bit",
            "number_of_gpu_to_use_finetuning": 2,
        },
        mended={"optim": "stable_adamw"},
    ),
    Conflict(
        names=("weights_dtype", "precision"),
        conflicts=lambda o, m: o.weights_dtype == "bfloat16" and o.precision not in ("bf16", "16"),
        why="what is held in bfloat16 is computed with in bfloat16",
        remedy="Take precision=bf16, or weights_dtype=auto",
        example={"weights_dtype": "bfloat16", "precision": "32", "optim": "stable_adamw"},
        mended={"precision": "bf16"},
    ),
    Conflict(
        names=("weights_dtype", "quantization"),
        conflicts=lambda o, _: o.weights_dtype != "auto" and o.quantization != "none",
        why="both say how frozen weights are held",
        remedy="Choose one",
        example={
            "weights_dtype": "bfloat16",
            "precision": "bf16",
            "quantization": "4bit",
            "apply_lora": True,
            "merge_lora_weights": False,
        },
        mended={"weights_dtype": "auto"},
    ),
    Conflict(
        names=("weights_dtype", "apply_deepspeed"),
        conflicts=lambda o, _: o.weights_dtype != "auto" and o.apply_deepspeed,
        why="ZeRO says itself how weights are held: with precision=bf16 in bfloat16, beside float32 ones that are "
        "spread over the processes",
        remedy="Leave weights_dtype=auto",
        example={
            "weights_dtype": "bfloat16",
            "precision": "bf16",
            "optim": "adamw_torch",
            "learning_rate": 1e-3,
            "apply_deepspeed": True,
        },
        mended={"weights_dtype": "auto"},
    ),
    Conflict(
        names=("weights_dtype", "fsdp"),
        conflicts=lambda o, _: o.weights_dtype == "bfloat16" and o.fsdp != "",
        why="FSDP under mixed precision holds its parts in float32",
        remedy="Leave weights_dtype=auto",
        example={"weights_dtype": "bfloat16", "precision": "bf16", "optim": "stable_adamw", "fsdp": "full_shard"},
        mended={"weights_dtype": "auto"},
    ),
    # -- sharding ---------------------------------------------------------------------------------------------------
    Conflict(
        names=("apply_deepspeed", "fsdp"),
        conflicts=lambda o, _: o.apply_deepspeed and o.fsdp != "",
        why="both shard the same weights",
        remedy="Choose one: leave out fsdp, or set apply_deepspeed=false",
        example={"apply_deepspeed": True, "fsdp": "full_shard"},
        mended={"fsdp": ""},
    ),
    Conflict(
        names=("checkpoint_contents", "apply_deepspeed", "fsdp"),
        conflicts=lambda o, _: o.checkpoint_contents != "resumable" and (o.apply_deepspeed or o.fsdp != ""),
        why="the files of a sharded checkpoint hold weights and optimizer states together",
        remedy="Take checkpoint_contents=resumable, and keep fewer checkpoints with save_total_limit",
        example={"checkpoint_contents": "weights", "fsdp": "full_shard"},
        mended={"checkpoint_contents": "resumable"},
    ),
    Conflict(
        names=("deepspeed_stage", "auto_find_batch_size"),
        conflicts=lambda o, _: _zero3(o) and o.auto_find_batch_size,
        why="with ZeRO-3 no process holds a whole model to try a batch size with",
        remedy="Take deepspeed_stage=2, or leave out auto_find_batch_size and set per_device_train_batch_size",
        example={"apply_deepspeed": True, "deepspeed_stage": "3", "auto_find_batch_size": True},
        mended={"deepspeed_stage": "2"},
    ),
    Conflict(
        names=("optim", "fsdp"),
        conflicts=lambda o, _: o.optim == optimizers.MUON and o.fsdp != "",
        why="Muon looks at whole matrices, and FSDP spreads each over the processes",
        remedy="Take optim=adamw_torch, or leave out fsdp",
        example={"optim": "muon", "fsdp": "full_shard"},
        mended={"fsdp": ""},
    ),
    Conflict(
        names=("fsdp", "auto_find_batch_size"),
        conflicts=lambda o, _: o.fsdp != "" and o.auto_find_batch_size,
        why="the weights are sharded only where training starts, so what fits cannot be tried before",
        remedy="Leave out auto_find_batch_size and set per_device_train_batch_size",
        example={"fsdp": "full_shard", "auto_find_batch_size": True},
        mended={"auto_find_batch_size": False},
    ),
    Conflict(
        names=("deepspeed_stage", "quantization"),
        conflicts=lambda o, _: _zero3(o) and o.quantization != "none",
        why="ZeRO-3 cannot shard weights of 8 or 4 bits",
        remedy="Take deepspeed_stage=2, or quantization=none",
        example={
            "apply_deepspeed": True,
            "deepspeed_stage": "3",
            "quantization": "4bit",
            "apply_lora": True,
            "merge_lora_weights": False,
        },
        mended={"deepspeed_stage": "2"},
    ),
    # `distributed/deepspeed.py` refuses a DeepSpeed file that contradicts the parameters: it reads the file.
    # -- what the machine or the model cannot do --------------------------------------------------------------------
    Conflict(
        names=("label_smoothing_factor",),
        conflicts=lambda o, m: o.label_smoothing_factor > 0 and not m.exclusive_classes,
        why="the labels are numbers, or with multi_label=true each is there or not by itself, so there are no other "
        "classes that weight could go to",
        remedy="Leave it 0",
        example={"label_smoothing_factor": 0.1},
        mended={"label_smoothing_factor": 0.0},
        on=Machine(gpus=0, exclusive_classes=False),
    ),
    Conflict(
        names=("precision",),
        conflicts=lambda o, m: o.precision in ("fp16", "tf32") and not m.gpus,
        why=NO_GPU,
        remedy="Take precision=bf16, or 32 for full precision",
        example={"precision": "fp16"},
        mended={"precision": "bf16"},
        on=CPU,
    ),
    Conflict(
        names=("precision",),
        conflicts=lambda o, m: o.precision == "tf32" and m.gpus > 0 and not m.tf32,
        why="needs a GPU of compute capability 8.0 or more (Ampere)",
        remedy="Take precision=16",
        example={"precision": "tf32"},
        mended={"precision": "16"},
        on=Machine(gpus=1, tf32=False, bf16=False),
    ),
    Conflict(
        names=("precision",),
        conflicts=lambda o, m: o.precision == "bf16" and not m.bf16,
        why="this GPU has no bfloat16",
        remedy="Take precision=16",
        example={"precision": "bf16"},
        mended={"precision": "16"},
        on=Machine(gpus=1, tf32=False, bf16=False),
    ),
    Conflict(
        names=("weights_dtype",),
        conflicts=lambda o, m: o.weights_dtype == "bfloat16" and not m.bf16,
        why="this GPU has no bfloat16",
        remedy="Leave it auto",
        example={"weights_dtype": "bfloat16", "precision": "16", "optim": "stable_adamw"},
        mended={"weights_dtype": "auto", "optim": "adamw_torch"},
        on=Machine(gpus=1, tf32=False, bf16=False, packages=frozenset({"optimi"})),
    ),
    Conflict(
        names=("quantization",),
        conflicts=lambda o, m: o.quantization != "none" and not m.gpus,
        why=NO_GPU,
        remedy="Set quantization=none",
        example={"quantization": "8bit", "apply_lora": True, "merge_lora_weights": False},
        mended={"quantization": "none"},
        on=CPU,
    ),
    *(_in_package(module, *of_it) for module, of_it in optimizers.PACKAGES.items()),
    Conflict(
        names=("number_of_gpu_to_use_finetuning",),
        conflicts=lambda o, m: 0 < m.gpus < o.number_of_gpu_to_use_finetuning,
        why="this machine has {gpus}, and processes cannot share one",
        remedy="Take as many processes as there are GPUs",
        example={"number_of_gpu_to_use_finetuning": 2},
        mended={"number_of_gpu_to_use_finetuning": 1},
        on=GPU,
    ),
    Conflict(
        names=("deepspeed_offload",),
        conflicts=lambda o, m: o.deepspeed_offload and not m.gpus,
        why="spares a GPU's memory, and torch sees no GPU here",
        remedy="Leave it out on a CPU",
        example={"apply_deepspeed": True, "deepspeed_offload": True},
        mended={"deepspeed_offload": False},
        on=CPU,
    ),
    Conflict(
        names=("fsdp",),
        conflicts=lambda o, m: o.fsdp != "" and not m.gpus,
        why="needs NVIDIA GPUs, and torch sees none here",
        remedy="Take apply_deepspeed=true, which also runs on CPUs",
        example={"fsdp": "full_shard"},
        mended={"fsdp": "", "apply_deepspeed": True},
        on=CPU,
    ),
    Conflict(
        names=("gradient_checkpointing",),
        conflicts=lambda o, m: o.gradient_checkpointing == "true" and not m.recomputes,
        why="a model of type '{model_type}' cannot recompute its activations",
        remedy="Leave it false and lower per_device_train_batch_size instead",
        example={"gradient_checkpointing": "true"},
        mended={"gradient_checkpointing": "auto"},
        on=Machine(gpus=0, recomputes=False),
    ),
    Conflict(
        names=("attention",),
        conflicts=lambda o, m: o.attention not in ("auto", *m.attentions),
        why="a model of type '{model_type}' has no such attention",
        remedy="Take attention=auto, or another one",
        example={"attention": "sdpa"},
        mended={"attention": "auto"},
        on=Machine(gpus=0, attentions=frozenset({"eager"})),
    ),
    Conflict(
        names=("attention",),
        conflicts=lambda o, m: o.attention == "flash_attention_2" and not (m.gpus and m.flash_attn),
        why="needs an NVIDIA GPU and the package flash-attn",
        remedy="Install it (pip install flash-attn --no-build-isolation), or take attention=sdpa",
        example={"attention": "flash_attention_2", "precision": "bf16"},
        mended={"attention": "sdpa"},
        on=Machine(gpus=1, flash_attn=False),
    ),
    Conflict(
        names=("attention", "precision"),
        conflicts=lambda o, _: o.attention == "flash_attention_2" and o.precision in ("32", "tf32"),
        why="its kernels compute in 16 bits",
        remedy="Take precision=16, or attention=sdpa",
        example={"attention": "flash_attention_2", "precision": "32"},
        mended={"precision": "16"},
    ),
)


def check(options: TrainingParams, machine: Machine | None = None) -> None:
    """Raise one `UserError` that says all that does not go together.

    With a machine, that is what depends on it; without, all else.
    """
    wanted = AT_ONCE if machine is None else BEFORE_TRAINING
    found = [
        conflict.message(options, machine or CPU)
        for conflict in CONFLICTS
        if conflict.when == wanted and conflict.conflicts(options, machine or CPU)
    ]
    if found:
        raise UserError("\n".join(found))


def _trains_bfloat16(options: t.Any) -> bool:
    return options.weights_dtype == "bfloat16" and not options.apply_lora


def _zero3(options: t.Any) -> bool:
    config = options.deepspeed
    if config is not None and not config.path.is_file():  # a run may be described where the file is not
        return False
    return deepspeed.stage(options) == 3
