"""Set up transformers' Trainer for a prepared dataset, train, and keep the best model."""

from __future__ import annotations

import dataclasses as dc
import logging
import math
import shutil
import typing as t
from functools import partial
from pathlib import Path

import torch
import transformers
from datasets import Dataset as ArrowDataset
from datasets import concatenate_datasets
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.tasks.task import Task
from tuneport.tracking import Run
from tuneport.training import conflicts, optimizers
from tuneport.training.auto_batch_size import explained, fit_batch_size
from tuneport.training.callbacks import EarlyStopping, EvaluateLastStep, TrainingProgress
from tuneport.training.checkpoint import resume
from tuneport.training.checkpoint.checkpoint_folder import Checkpoint, CheckpointFolder
from tuneport.training.distributed import deepspeed, sharding
from tuneport.training.machine import here
from tuneport.training.model import label_smoothing, neftune, quantization
from tuneport.training.model.tokenizer_files import TokenizerFiles
from tuneport.training.packing import Packs
from tuneport.training.padding_free import attention, choose
from tuneport.training.padding_free.choose import PaddingFree
from tuneport.training.parameters import TrainingParams
from tuneport.training.precision import precision_of
from tuneport.training.preemption import preemptible
from tuneport.training.trainer import BestModelTrainer, make_paths_relative, rows_per_step

log = logging.getLogger("tuneport.finetune")


@dc.dataclass(frozen=True, kw_only=True)
class Result:
    """What a training run came to."""

    best_checkpoint: str
    metric_for_best_model: str
    best_metric: float
    best_step: int
    steps: int
    epochs: float
    runtime_seconds: float
    evaluation_seconds: float
    samples_per_second: float
    device: str
    precision: str
    per_device_train_batch_size: int  # as found, with auto_find_batch_size
    gradient_accumulation_steps: int


def train(
    task: Task,
    base: Path,
    prepared: Prepared,
    options: TrainingParams,
    *,
    metric_for_best_model: str,
    output: Path,
    run: Run,
    inputs: t.Mapping[str, str] | None = None,
    world_size: int = 1,
    callbacks: t.Sequence[TrainerCallback] = (),
) -> Result:
    """Fine-tune the model in ``base`` and fill ``output``: best model at the top, every checkpoint in ``checkpoints/``.

    ``inputs``: the digests by which a checkpoint knows the rows it was trained on.
    Raises `UserError` where the model does not fit the task or no evaluation gave a finite metric.
    """
    (transformers.enable_full_determinism if options.enable_full_determinism else transformers.set_seed)(options.seed)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    conflicts.check(options, here())
    arguments = training_arguments(options, output / "checkpoints", world_size)  # before the model: ZeRO-3 loads parts
    loading = {"ignore_mismatched_sizes": options.ignore_mismatched_sizes, **quantization.loading(options)}
    plain = task.load_model(base, prepared.info.meta, **loading)
    machine = here(plain)
    conflicts.check(options, machine)
    _regularise(plain, options)
    chosen = attention.choose(plain, options.attention, machine, precision_of(arguments))
    if options.quantization != "none":
        quantization.freeze(plain)
    model = _adapted(plain, base, output, options, arguments) if options.apply_lora else plain
    unpadded = choose.choose(
        model,
        chosen,
        wanted=options.padding_free,
        needed=options.packing,
        pad_to=prepared.info.pad_to,
        devices=arguments.n_gpu,
        sharded=bool(options.fsdp) or deepspeed.stage(options) == 3,
        label_smoothing=options.label_smoothing_factor,
    )
    tokenizer = TokenizerFiles(base, prepared.info.max_seq_length, task.chat_template(prepared.info.meta))
    _judge_by(arguments, task, metric_for_best_model)
    checkpoints = CheckpointFolder(
        path=output / "checkpoints",
        parameters={n: getattr(options, n) for n, p in options.ports().items() if p.kind == "param"},
        inputs=inputs or {},
        limit=arguments.save_total_limit,
    )
    checkpoint = _checkpoint(options, checkpoints, arguments)
    trainer = BestModelTrainer(
        model=model,
        args=arguments,
        train_dataset=_training_rows(prepared, options, model),
        eval_dataset=_rows(prepared, "validation"),
        data_collator=unpadded.collator(task.collator(plain, prepared.info.meta, prepared.info.pad_to)),
        compute_metrics=task.compute_metrics(prepared.info.meta),
        preprocess_logits_for_metrics=partial(_reduce, task, prepared.info.meta, unpadded),
        processing_class=t.cast(t.Any, tokenizer),
        checkpoints=checkpoints,
        padding_free=unpadded,
        callbacks=[EvaluateLastStep(), *_early_stopping(options), *callbacks],
    )
    if task.needs_answers(metric_for_best_model):
        trainer.scores_of_answers = _scores_of_answers(task, base, prepared, arguments, sharded=trainer.is_sharded)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingProgress(run, trainer))
    if options.fsdp or deepspeed.stage(options) == 3:  # no process has a whole model before training begins
        trainer.add_callback(choose.SettleAtStart(trainer, unpadded))
    else:
        unpadded.settle(trainer, trainer.model)
    if options.auto_find_batch_size:
        fit_batch_size(trainer)
        if options.apply_deepspeed:
            config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
            size, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
            deepspeed.set_batches(config, size, accumulation, world_size)
    if options.evaluation_steps_interval:
        _evaluate_within_epochs(trainer, options.evaluation_steps_interval)
    log.info("%s", _plan(prepared, model, arguments, options.packing))
    with preemptible(trainer), explained(arguments.per_device_train_batch_size):
        trainer.train_from(checkpoint)
    if trainer.state.best_model_checkpoint is None:
        raise UserError(
            f"metric_for_best_model={metric_for_best_model}: was not a finite number in any evaluation, so the "
            "training diverged. Lower learning_rate, add warmup_steps, or use precision=32."
        )
    if arguments.process_index == 0:
        if trainer.is_sharded:
            model = _unsharded_best(trainer, task, base, prepared, options)
        _save_best(trainer, model, output, options)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return _result(trainer)


def _regularise(model: t.Any, options: TrainingParams) -> None:
    """Smooth labels and add noise to embeddings, in training alone; before padding is left out."""
    label_smoothing.smooth(model, options.label_smoothing_factor)
    if options.neftune_noise_alpha:
        neftune.Noise(model, options.neftune_noise_alpha)


def _judge_by(arguments: TrainingArguments, task: Task, metric: str) -> None:
    """Let the metric, in its own direction, decide which checkpoint is the best, and when a rate has to fall."""
    arguments.metric_for_best_model = metric
    arguments.greater_is_better = task.metrics[metric]
    arguments.label_names = list(task.label_names)
    if arguments.lr_scheduler_type == "reduce_lr_on_plateau":
        arguments.lr_scheduler_kwargs = {"mode": "max" if arguments.greater_is_better else "min"}


def _rows(prepared: Prepared, split: str) -> ArrowDataset:
    return concatenate_datasets([ArrowDataset.from_file(str(file)) for file in prepared.encoded_files(split)])


def _training_rows(prepared: Prepared, options: TrainingParams, model: t.Any) -> t.Any:
    rows = _rows(prepared, "train")
    if not options.packing:
        return rows
    packs = Packs(rows, prepared.info.max_seq_length, targets=bool(model.config.is_encoder_decoder))
    log.info("packing: %d packs of at most %d tokens, of %d rows", len(packs), packs.max_seq_length, len(rows))
    return packs


def _reduce(task: Task, meta: t.Any, unpadded: PaddingFree, logits: t.Any, labels: t.Any) -> t.Any:
    """What metrics are computed from, of a batch."""
    return logits if unpadded.gives_losses else task.reduce(logits, labels, meta)


def _unsharded_best(
    trainer: BestModelTrainer, task: Task, base: Path, prepared: Prepared, options: TrainingParams
) -> t.Any:
    """The best model, loaded whole from its checkpoint: what was trained is spread over the processes."""
    best = Path(str(trainer.state.best_model_checkpoint))
    with sharding.set_aside(trainer.args):
        if not options.apply_lora:
            return task.load_model(best, prepared.info.meta, new_head=False)
        plain, output = task.load_model(base, prepared.info.meta), trainer.checkpoints.path.parent
        model = _adapted(plain, base, output, options, trainer.args)
        model.load_adapter(str(best), model.active_adapter, is_trainable=True)
        return model


def _save_best(trainer: BestModelTrainer, model: t.Any, output: Path, options: TrainingParams) -> None:
    trainer.model = model.merge_and_unload() if options.apply_lora and options.merge_lora_weights else model
    if trainer.is_sharded:
        with sharding.set_aside(trainer.args):
            trainer._save(str(output))
    else:
        trainer.save_model(str(output))
    trainer.state.save_to_json(str(output / "trainer_state.json"))
    make_paths_relative(output / "trainer_state.json")
    shutil.rmtree(output / "checkpoints" / "runs", ignore_errors=True)


def _adapted(model: t.Any, base: Path, output: Path, options: TrainingParams, arguments: TrainingArguments) -> t.Any:
    from tuneport.training.model.lora import adapt, head_modules  # peft takes seconds to import

    with sharding.set_aside(arguments):
        heads = head_modules(model, base)
    return adapt(model, base, output, options, heads)


def _checkpoint(
    options: TrainingParams, checkpoints: CheckpointFolder, arguments: TrainingArguments
) -> Checkpoint | None:
    """The checkpoint to go on from; the first process looks for it, all use it."""
    found: list[int | None] = [None]
    if arguments.process_index == 0:
        rows = rows_per_step(arguments)
        sharded = options.apply_deepspeed or options.fsdp
        processes = arguments.world_size if sharded else None
        checkpoint = resume.prepare(options.resume_from_checkpoint, checkpoints, options.ports(), rows, processes)
        found = [checkpoint.step if checkpoint else None]
    if arguments.world_size > 1:
        torch.distributed.broadcast_object_list(found)
    return None if found[0] is None else checkpoints.checkpoint(found[0])


def _scores_of_answers(
    task: Task, base: Path, prepared: Prepared, arguments: TrainingArguments, *, sharded: bool
) -> t.Callable[[t.Any], dict[str, float]]:
    """Return a function model -> metrics of its answers to the validation rows, by the predictor's defaults."""
    rows, meta = prepared.rows("validation"), prepared.info.meta
    settings = task.settings(meta, None)

    def scores(model: t.Any) -> dict[str, float]:
        training = model.training
        model = model.get_base_model() if hasattr(model, "get_base_model") else model  # with its adapters
        predictor = task.predictor(str(base), settings, model=model, batch_size=arguments.per_device_eval_batch_size)
        if arguments.world_size == 1 or sharded:  # a sharded model takes all processes for every row
            answers = predictor(rows)
        else:
            parts: list[t.Any] = [None] * arguments.world_size
            own = predictor(rows[arguments.process_index :: arguments.world_size])
            torch.distributed.all_gather_object(parts, own)
            answers = [parts[i % len(parts)][i // len(parts)] for i in range(len(rows))]
        model.train(training)
        return task.score(rows, answers, meta)

    return scores


def training_arguments(options: TrainingParams, folder: Path, world_size: int = 1) -> TrainingArguments:
    """Our parameters in transformers' words; evaluation, checkpoints and best model always go together."""
    if options.optim == "adamw_hf":
        log.info("optim=adamw_hf is gone from transformers and runs as %s", optimizers.FUSED)
    has_cuda = torch.cuda.is_available()
    has_bf16 = not has_cuda or torch.cuda.is_bf16_supported()
    bf16 = options.precision == "bf16" or (options.precision == "16" and has_bf16)
    fp16 = options.precision == "fp16" or (options.precision == "16" and not bf16)
    config = None
    if options.apply_deepspeed:
        config = sharding.start_deepspeed(options, bf16=bf16, fp16=fp16, world_size=world_size)
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.num_train_epochs,
        max_steps=options.max_steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.lr_scheduler_type or "linear",
        warmup_steps=options.warmup_steps or options.warmup_ratio,  # below 1 it is a share of all steps
        optim=optimizers.FUSED if options.optim in optimizers.DEFAULTS else options.optim,
        weight_decay=options.weight_decay,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        adam_epsilon=options.adam_epsilon,
        max_grad_norm=options.max_grad_norm,
        per_device_train_batch_size=options.per_device_train_batch_size,
        per_device_eval_batch_size=options.per_device_eval_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        eval_accumulation_steps=None if options.eval_accumulation_steps == -1 else options.eval_accumulation_steps,
        train_sampling_strategy="group_by_length" if options.group_by_length else "random",
        bf16=bf16,
        fp16=fp16,
        tf32=True if options.precision == "tf32" else None,
        activation_checkpointing=options.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        dataloader_num_workers=options.dataloader_num_workers,
        use_cpu=not torch.accelerator.is_available(),
        ddp_backend="gloo" if world_size > 1 and not torch.accelerator.is_available() else None,
        ddp_find_unused_parameters=False,
        deepspeed=config,
        fsdp=t.cast(t.Any, bool(options.fsdp)),
        fsdp_config=sharding.fsdp(options) if options.fsdp else None,
        seed=options.seed,
        full_determinism=options.enable_full_determinism,
        eval_strategy="steps" if options.evaluation_steps_interval else options.evaluation_strategy,
        eval_steps=options.eval_steps,
        save_strategy="steps" if options.evaluation_steps_interval else options.evaluation_strategy,
        save_steps=options.eval_steps,
        save_total_limit=None if options.save_total_limit == -1 else options.save_total_limit,
        load_best_model_at_end=True,
        logging_strategy=options.logging_strategy,
        logging_steps=options.logging_steps,
        remove_unused_columns=False,  # the collator picks
        dataloader_pin_memory=has_cuda,
        report_to="none",
        logging_nan_inf_filter=False,  # it waits for the GPU at every batch; `MonitoredTrainer` stops there instead
        disable_tqdm=True,
    )


def _evaluate_within_epochs(trainer: BestModelTrainer, fraction: float) -> None:
    """Evaluate, and write a checkpoint, each such fraction of an epoch, in whole steps."""
    arguments = trainer.args
    steps = math.ceil(len(t.cast(t.Any, trainer.train_dataset)) / rows_per_step(arguments))
    arguments.eval_steps = arguments.save_steps = max(1, math.ceil(round(fraction * steps, 6)))
    log.info("evaluation each %d of an epoch's %d steps", arguments.eval_steps, steps)


def _early_stopping(options: TrainingParams) -> list[TrainerCallback]:
    if not options.apply_early_stopping:
        return []
    return [EarlyStopping(options.early_stopping_patience, options.early_stopping_threshold)]


def _plan(prepared: Prepared, model: torch.nn.Module, arguments: TrainingArguments, packing: bool) -> str:
    rows, weights = prepared.info.splits, sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = f" ({trained / 1e6:.3g} M trained, {trained / weights:.2%})" if trained < weights else ""
    return (
        f"{rows['train']} training rows, {rows['validation']} validation rows, {weights / 1e6:.1f} M weights{share}, "
        f"batches of {rows_per_step(arguments)}{' packs' if packing else ''}, on {_devices(arguments)}, "
        f"precision {precision_of(arguments)}"
    )


def _devices(arguments: TrainingArguments) -> str:
    device = arguments.device
    return f"{arguments.world_size} × {device.type}" if arguments.world_size > 1 else str(device)


def _result(trainer: BestModelTrainer) -> Result:
    state, arguments = trainer.state, trainer.args
    last = state.log_history[-1]
    return Result(
        best_checkpoint=f"checkpoints/checkpoint-{state.best_global_step}",
        metric_for_best_model=str(arguments.metric_for_best_model),
        best_metric=float(state.best_metric or 0.0),
        best_step=int(state.best_global_step or 0),
        steps=state.global_step,
        epochs=float(state.epoch or 0.0),
        runtime_seconds=last["train_runtime"],
        evaluation_seconds=round(trainer.evaluation_seconds, 3),
        samples_per_second=last["train_samples_per_second"],
        device=str(arguments.device),
        precision=precision_of(arguments),
        per_device_train_batch_size=arguments.per_device_train_batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
    )
