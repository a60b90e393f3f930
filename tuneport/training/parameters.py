"""The training parameters, in groups; each default is written here once and always passed on explicitly."""

from typing import Literal

from tuneport.artifacts import File
from tuneport.parameters import EvaluationBatchParams, LoadingParams, OutputTypeParams, SeedParams
from tuneport.step import Params, consumes, param
from tuneport.training import optimizers

UNSET = "which no parameter gives"


class ScheduleParams(Params):
    """Schedule."""

    num_train_epochs: int = param("Number of epochs to train.", default=1, ge=1)
    max_steps: int = param(
        "Number of optimizer steps to train; overrides num_train_epochs. -1: as many as the epochs take.",
        default=-1,
        ge=-1,
    )
    learning_rate: float = param("Peak learning rate.", default=2e-5, gt=0, le=1)
    lr_scheduler_type: Literal[
        "",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "reduce_lr_on_plateau",
    ] = param(
        "Learning rate schedule, one of transformers' that need no settings of their own. Empty: linear. "
        "cosine_with_restarts has a single cycle, as cosine has. reduce_lr_on_plateau divides the rate by 10 after "
        "more than 10 evaluations in which metric_for_best_model got no better.",
        default="linear",
        refused={
            **dict.fromkeys(("cosine_with_min_lr", "cosine_warmup_with_min_lr"), f"needs a lowest rate, {UNSET}"),
            "warmup_stable_decay": f"needs the number of steps of its decay, {UNSET}",
            "greedy": f"needs bounds of the rate, {UNSET}; its own, from 0.001 on, are above those of fine-tuning",
        },
    )
    warmup_steps: int = param("Optimizer steps of linear warm-up from 0 to learning_rate.", default=0, ge=0)
    warmup_ratio: float = param(
        "The warm-up as a share of all optimizer steps, in place of warmup_steps, rounded up to whole steps.",
        default=0.0,
        ge=0,
        lt=1,
    )


class OptimizerParams(Params):
    """Optimizer."""

    optim: optimizers.Optimizer = param(
        "Optimizer, by transformers' name, or muon: Muon for the matrices of linear layers, beside AdamW. adamw_hf, a "
        "former name of AdamW, and empty run as adamw_torch_fused.",
        default="adamw_hf",
        refused=optimizers.NOT_OFFERED,
    )
    weight_decay: float = param("Weight decay for all weights but biases and normalisation layers.", default=0.0, ge=0)
    adam_beta1: float = param("Decay of AdamW's mean of the gradient.", default=0.9, ge=0, lt=1)
    adam_beta2: float = param("Decay of AdamW's mean of the squared gradient.", default=0.999, ge=0, lt=1)
    adam_epsilon: float = param("Term that keeps AdamW's denominator from zero.", default=1e-8, gt=0)
    max_grad_norm: float = param("Gradients are clipped to this norm; 0: no clipping.", default=1.0, ge=0)
    label_smoothing_factor: float = param(
        "Share of each label's weight in the training loss that goes to all classes alike; a class is a label, a tag, "
        "a token of the vocabulary or, for the start and end of an answer, a token of its row. The validation loss is "
        "without it.",
        default=0.0,
        ge=0,
        lt=1,
    )
    neftune_noise_alpha: float = param(
        "Strength of the noise on the embeddings of the tokens that the model reads, in training alone (NEFTune, arXiv "
        "2310.05914, which tries 5, 10 and 15). 0: none.",
        default=0.0,
        ge=0,
    )


class BatchParams(Params):
    """Batches and precision."""

    per_device_train_batch_size: int = param(
        "Rows per device and forward pass in training; with packing, packs of rows.", default=1, ge=1
    )
    padding_free: bool = param(
        "Skip padding tokens, and compute logits only where there are labels: the same loss and gradients, in less "
        "time and memory. A model whose attention needs padded rows, such as an encoder–decoder, computes a batch in "
        "length buckets. Not with pad_to_max_length. The log says which way was taken.",
        default=True,
    )
    group_by_length: bool = param(
        "Put rows of similar length in a batch: less padding, so faster where lengths differ and batches are padded.",
        default=False,
    )
    packing: bool = param(
        "Make batches by tokens: rows are packed, best-fit decreasing, into packs of at most max_seq_length tokens, "
        "targets included; per_device_train_batch_size then counts packs. Rows do not see each other, and every label "
        "weighs the same. A step learns from more rows, so an epoch has fewer steps.",
        default=False,
    )
    gradient_accumulation_steps: int = param("Forward passes per optimizer step.", default=1, ge=1)
    auto_find_batch_size: bool = param(
        "Lower per_device_train_batch_size until its longest rows fit into memory, and raise "
        "gradient_accumulation_steps so that as many rows as before make an optimizer step.",
        default=False,
    )
    precision: Literal["32", "16", "bf16", "fp16", "tf32"] = param(
        "32, or mixed precision: bf16 is bfloat16, fp16 float16; 16 is bf16 where the device has it, else fp16. tf32 "
        "is 32 with matrix products in TensorFloat-32. fp16 and tf32 need an NVIDIA GPU.",
        default="32",
    )
    gradient_checkpointing: Literal["auto", "true", "false"] = param(
        "Compute activations a second time in the backward pass instead of keeping them: less memory, slower. auto: "
        "where a simulated step on the longest rows does not fit into memory without.",
        default="auto",
    )
    weights_dtype: Literal["auto", "float32", "bfloat16"] = param(
        "Number type that weights are held in while they are trained. auto: float32; frozen ones, beside LoRA's "
        "adapters, keep the base model's own type where precision is 16, bf16 or fp16. bfloat16: weights and gradients "
        "in half the memory, or with apply_lora the frozen weights alone; takes an optimizer that does not round small "
        "updates away, such as stable_adamw.",
        default="auto",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = param(
        "How attention is computed: sdpa by torch's own kernels, eager by plain matrix products, flash_attention_2 by "
        "the package flash-attn, in 16 bits on an NVIDIA GPU. auto: the fastest that the machine and the model have.",
        default="auto",
    )
    enable_full_determinism: bool = param(
        "Compute with deterministic kernels alone, so that the same seed gives the same weights on a GPU, too: slower, "
        "and training stops at an operation that has no such kernel.",
        default=False,
    )
    dataloader_num_workers: int = param(
        "Processes per device that put training batches together; 0: the training process itself.", default=0, ge=0
    )


class CheckpointParams(Params):
    """Evaluation, logging and checkpoints."""

    evaluation_strategy: Literal["epoch", "steps"] = param(
        "When to evaluate and write a checkpoint: each epoch, or every eval_steps.", default="epoch"
    )
    eval_steps: int = param("Optimizer steps between evaluations where evaluation_strategy=steps.", default=500, ge=1)
    evaluation_steps_interval: float = param(
        "Fraction of an epoch between evaluations, instead of what evaluation_strategy and eval_steps say. 0: as they "
        "say.",
        default=0.0,
        ge=0,
        le=1,
    )
    eval_accumulation_steps: int = param(
        "Batches of an evaluation after which what metrics need of them is moved from the device to CPU memory: less "
        "memory on a GPU. -1: once, after the last.",
        default=-1,
        ge=-1,
    )
    logging_strategy: Literal["epoch", "steps"] = param(
        "When to log the training loss: each epoch, or every logging_steps.", default="steps"
    )
    logging_steps: int = param("Optimizer steps between log lines where logging_strategy=steps.", default=10, ge=1)
    save_total_limit: int = param(
        "Most checkpoints to keep; older ones are deleted, never the best or the last. -1: all.", default=-1, ge=-1
    )
    checkpoint_contents: Literal["resumable", "newest_resumable", "weights"] = param(
        "What a checkpoint holds beside weights, config and tokenizer. resumable: optimizer, scheduler and random "
        "number states, with which a training goes on as if it had never stopped. newest_resumable: only the newest "
        "one does, older ones lose them. weights: none does, but for one that is written as a signal stops the "
        "training.",
        default="resumable",
    )


class TrackingParams(Params):
    """Trackers."""

    report_to: str = param(
        "Where the figures of training go, with commas between: mlflow, to the run on the MLflow server; tensorboard, "
        "to files in logs/ of pytorch_model_folder; wandb, to Weights & Biases by its own WANDB_ variables, with "
        "WANDB_MODE=offline to files in logs/. none: nowhere. Parameters, scores and models go to MLflow in any case.",
        default="mlflow",
    )


class ResumeParams(Params):
    """Resume."""

    resume_from_checkpoint: str = param(
        "Go on from a checkpoint. true: the last whole one in the output folder, of a run that was stopped or has "
        "finished; the start where there is none. A path: that checkpoint, or the last whole one of that earlier run.",
        default="false",
    )


class EarlyStoppingParams(Params):
    """Early stopping."""

    apply_early_stopping: bool = param("Stop when metric_for_best_model gets no better.", default=False)
    early_stopping_patience: int = param("Evaluations without improvement after which training stops.", default=1, ge=1)
    early_stopping_threshold: float = param(
        "Least change of metric_for_best_model that counts as an improvement for early stopping.", default=0.0, ge=0
    )


class LaunchParams(Params):
    """Machines and processes."""

    number_of_gpu_to_use_finetuning: int = param(
        "Training processes on each machine, each with a GPU of its own; where there is no GPU, processes on the CPU.",
        default=1,
        ge=1,
        resource="processes",
    )
    num_nodes_finetune: int = param("Machines that train together.", default=1, ge=1, resource="nodes")
    ddp_timeout: int = param(
        "Seconds that a process waits for the others in one collective operation, such as adding up gradients, before "
        "the training fails. Nobody waits in one for a disk, a digest or a save: those may take as long as they do.",
        default=1800,
        ge=1,
    )


class ShardingParams(Params):
    """Sharding."""

    apply_deepspeed: bool = param(
        "Train with DeepSpeed: its ZeRO spreads optimizer states, gradients and weights over the processes.",
        default=False,
    )
    deepspeed: File | None = consumes(
        "DeepSpeed configuration (JSON) to use in place of ours; 'auto' stands for what the parameters say."
    )
    deepspeed_stage: Literal["1", "2", "3"] = param(
        "ZeRO stage: 1 spreads optimizer states, 2 gradients as well, 3 weights as well, for a model that does not fit "
        "into one GPU.",
        default="2",
    )
    deepspeed_offload: bool = param(
        "Keep what ZeRO spreads in CPU memory: less memory on the GPU, slower.", default=False
    )
    fsdp: Literal["", "full_shard", "shard_grad_op"] = param(
        "Train with torch's FSDP: full_shard spreads weights, gradients and optimizer states over the processes, "
        "shard_grad_op only the last two. Empty: without.",
        default="",
    )


class AdapterParams(Params):
    """Adapters."""

    apply_lora: bool = param(
        "Train low-rank adapters (LoRA) beside the frozen weights of linear layers, and only the task's head in full.",
        default=False,
    )
    lora_alpha: int = param(
        "LoRA's scale: adapters are multiplied by lora_alpha / lora_r; with use_rslora by lora_alpha / sqrt(lora_r).",
        default=128,
        ge=1,
    )
    lora_r: int = param("LoRA's rank.", default=8, ge=1)
    lora_dropout: float = param("Dropout of what goes into the adapters.", default=0.0, ge=0, lt=1)
    lora_target_modules: str = param(
        "Linear layers that get adapters: auto (all of them but the head), or names, ends of names or regular "
        "expressions with commas between, as in q_proj,v_proj.",
        default="auto",
    )
    use_rslora: bool = param(
        "Scale by lora_alpha / sqrt(lora_r): rank-stabilised LoRA (arXiv 2312.03732).", default=False
    )
    use_dora: bool = param(
        "Train the weights' magnitudes apart from their directions: DoRA (arXiv 2402.09353).", default=False
    )
    merge_lora_weights: bool = param(
        "Write the model with the adapters merged into its weights; false: the adapters, with a reference to the base "
        "model.",
        default=True,
    )
    quantization: Literal["none", "4bit", "8bit"] = param(
        "Keep the frozen weights beside LoRA's adapters in 4 bits (NF4) or 8 bits, by bitsandbytes: less memory. Needs "
        "an NVIDIA GPU.",
        default="none",
    )


class TrainingParams(
    ScheduleParams,
    OptimizerParams,
    BatchParams,
    LaunchParams,
    ShardingParams,
    AdapterParams,
    EvaluationBatchParams,
    CheckpointParams,
    TrackingParams,
    ResumeParams,
    EarlyStoppingParams,
    LoadingParams,
    OutputTypeParams,
    SeedParams,
):
    """Training."""

    def is_distributed(self) -> bool:
        """Whether training takes a group of processes, be it a group of one."""
        processes = self.number_of_gpu_to_use_finetuning * self.num_nodes_finetune
        return processes > 1 or self.apply_deepspeed or self.fsdp != ""
