"""Set up transformers' Trainer for a prepared dataset, train, and keep the best model."""

from __future__ import annotations

import dataclasses as dc
import logging
import math
import shutil
import tempfile
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import transformers
from datasets import Dataset as ArrowDataset
from datasets import concatenate_datasets
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from tuneport.address import Address
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.modeling import weight_types
from tuneport.modeling.merged_adapters import is_adapter, keep_together, write_merged, write_merged_weights
from tuneport.tasks.task import Task
from tuneport.tracking import Run
from tuneport.training import conflicts, muon, optimizers, recompute, trackers
from tuneport.training.auto_batch_size import explained, fit_batch_size
from tuneport.training.callbacks import EarlyStopping, EvaluateLastStep, TrainingProgress
from tuneport.training.checkpoint import disk_space, fsdp_shards, plain_model, resume
from tuneport.training.checkpoint.checkpoint_folder import Checkpoint, CheckpointFolder
from tuneport.training.checkpoint.checkpoint_store import CheckpointStore
from tuneport.training.distributed import contents, deepspeed, sharding, waiting, whole
from tuneport.training.distributed.waiting import Peers
from tuneport.training.machine import free_memory, here
from tuneport.training.model import label_smoothing, neftune, quantization
from tuneport.training.model.tokenizer_files import TokenizerFiles
from tuneport.training.packing import Packs
from tuneport.training.padding_free import attention, choose
from tuneport.training.padding_free.choose import PaddingFree
from tuneport.training.parameters import TrainingParams
from tuneport.training.precision import precision_of
from tuneport.training.preemption import preemptible
from tuneport.training.simulate import Run as SimulatedRun
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
    plain: Path | None = None,
    run: Run,
    run_name: str | None = None,
    inputs: t.Mapping[str, str] | None = None,
    world_size: int = 1,
    checkpoint_store: str | None = None,
    callbacks: t.Sequence[TrainerCallback] = (),
) -> Result:
    """Fine-tune the model in ``base`` and fill ``output``: best model at the top, every checkpoint in ``checkpoints/``.

    ``plain``: where adapters that stay by themselves in ``output`` get their base model beside them, or are merged into
    it. ``run_name``: what trackers other than the server of ``run`` call it. ``inputs``: the digests by which a
    checkpoint knows the rows it was trained on. ``checkpoint_store``: an address where checkpoints stand as well, of
    machines that share no folder.
    Raises `UserError` where the model does not fit the task or no evaluation gave a finite metric.
    """
    (transformers.enable_full_determinism if options.enable_full_determinism else transformers.set_seed)(options.seed)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    conflicts.check(options, here())
    sharding.import_no_deepspeed()
    peers = waiting.join(world_size, sharding.timeout(options), sharding.backend(options))
    arguments = training_arguments(options, output / "checkpoints", world_size)  # before the model: ZeRO-3 loads parts
    arguments.gradient_accumulation_steps = accumulated_batches(options, world_size)
    trainer = assemble(
        task,
        base,
        prepared,
        options,
        arguments,
        metric_for_best_model=metric_for_best_model,
        output=output,
        inputs=inputs or {},
        peers=peers,
        store=CheckpointStore(Address(checkpoint_store)) if checkpoint_store else None,
        callbacks=callbacks,
    )
    model, unpadded = t.cast(t.Any, trainer.model), t.cast(PaddingFree, trainer.padding_free)
    checkpoint = _checkpoint(options, trainer.checkpoints, arguments, peers, in_shards=trainer.is_in_shards)
    progress = TrainingProgress(run, trainer)
    trainer.add_callback(progress)
    if _is_spread(options):  # no process has a whole model before training begins
        trainer.add_callback(choose.SettleAtStart(trainer, unpadded))
    else:
        unpadded.settle(trainer, trainer.model)
    simulated = SimulatedRun(
        task_name=task.name,
        base=base,
        prepared=prepared.path,
        options=options,
        metric_for_best_model=metric_for_best_model,
    )
    recompute.where_needed(trainer, simulated)
    if options.auto_find_batch_size:
        fit_batch_size(trainer, simulated)
        if options.apply_deepspeed:
            config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
            size, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
            deepspeed.set_batches(config, size, accumulation, world_size)
    if options.evaluation_steps_interval:
        _evaluate_within_epochs(trainer, options.evaluation_steps_interval)
    space = _disk_space(trainer, base, options)
    log.info("%s; %s", _plan(prepared, model, arguments, options.packing), space.said())
    if arguments.process_index == 0:
        least = options.early_stopping_patience + 1 if options.apply_early_stopping else space.made
        sure = dc.replace(space, made=min(space.made, least))
        disk_space.check(output, sure, there=len(trainer.checkpoints.all()))
    figures = trackers.opened(
        options.report_to,
        run,
        output,
        name=run_name or base.name,
        parameters={name: getattr(options, name) for name, port in options.ports().items() if port.kind == "param"},
        rank=arguments.process_index,
    )
    with trainer.checkpoints_written():
        with figures as progress.run, preemptible(trainer), explained(arguments.per_device_train_batch_size):
            trainer.train_from(checkpoint)
        if trainer.state.best_model_checkpoint is None:
            raise UserError(
                f"metric_for_best_model={metric_for_best_model}: was not a finite number in any evaluation, so the "
                "training diverged. Lower learning_rate, add warmup_steps, or use precision=32."
            )
        if torch.distributed.is_initialized():
            peers.meet("no collective operation is left")
            torch.distributed.destroy_process_group()
        if arguments.process_index == 0:  # while its checkpoint's other files are written
            _save_best(trainer, base, output, plain, options)
    peers.meet("the best model is saved")
    peers.leave()
    return _result(trainer)


def assemble(
    task: Task,
    base: Path,
    prepared: Prepared,
    options: TrainingParams,
    arguments: TrainingArguments,
    *,
    metric_for_best_model: str,
    output: Path,
    inputs: t.Mapping[str, str],
    peers: Peers,
    store: CheckpointStore | None = None,
    callbacks: t.Sequence[TrainerCallback] = (),
) -> BestModelTrainer:
    """The Trainer of a training: the model in ``base`` as it is trained, the rows, and where checkpoints stand.

    Its model is not yet held against a padded one; see `train` for the rest of the arguments.
    """
    loading = {
        "dtype": _weights_dtype(base, options, arguments),
        "ignore_mismatched_sizes": options.ignore_mismatched_sizes,
        **quantization.loading(options),
    }
    load = partial(task.load_model, base, prepared.info.meta, **loading)
    read_once = bool(options.fsdp) and contents.can_be_absent(base, options)
    plain = contents.loaded(load, peers) if read_once else load()
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
        sharded=_is_spread(options),
        label_smoothing=options.label_smoothing_factor,
    )
    if options.fsdp:
        sharding.join_tables(plain)
        arguments.fsdp_plugin_args["transformer_cls_names_to_wrap"] = ",".join(sharding.units(plain))
        kind = peers.share("how checkpoints hold the model", sharding.state_dict_type(model))
        arguments.fsdp_plugin_args["state_dict_type"] = kind
    tokenizer = TokenizerFiles(base, prepared.info.max_seq_length, task.chat_template(prepared.info.meta))
    _judge_by(arguments, task, metric_for_best_model, options)
    checkpoints = CheckpointFolder(
        path=output / "checkpoints",
        parameters={n: getattr(options, n) for n, p in options.ports().items() if p.kind == "param"},
        inputs=inputs,
        limit=arguments.save_total_limit,
        states_of_all=options.checkpoint_contents == "resumable",
        store=store,
    )
    trainer = BestModelTrainer(
        model=model,
        args=arguments,
        train_dataset=_training_rows(prepared, options, model),
        eval_dataset=_rows(prepared, "validation"),
        data_collator=unpadded.collator(task.collator(plain, prepared.info.meta, prepared.info.pad_to)),
        compute_metrics=task.compute_metrics(prepared.info.meta),
        reduce=partial(_reduce, task, prepared.info.meta, unpadded),
        keeps_labels=task.scores_labels,
        processing_class=t.cast(t.Any, tokenizer),
        checkpoints=checkpoints,
        peers=peers,
        read_once=read_once,
        saves_states=options.checkpoint_contents != "weights",
        padding_free=unpadded,
        optimizer_cls_and_kwargs=muon.optimizer(model, arguments) if options.optim == optimizers.MUON else None,
        callbacks=[EvaluateLastStep(), *_early_stopping(options), *callbacks],
    )
    if task.needs_answers(metric_for_best_model):
        trainer.scores_of_answers = _scores_of_answers(task, base, prepared, options, trainer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _weights_dtype(base: Path, options: TrainingParams, arguments: TrainingArguments) -> torch.dtype:
    """The type that the base model is loaded in. FSDP and quantization take it in float32 and hold it as they do."""
    frozen = options.apply_lora and not options.fsdp and options.quantization == "none"
    half = precision_of(arguments) in ("bf16", "fp16")
    dtype = weight_types.for_training(base, options.weights_dtype, frozen=frozen, computes_in_16_bits=half)
    own = str(weight_types.of_files(base)).removeprefix("torch.")
    if frozen and not half and options.weights_dtype == weight_types.AUTO and own != "float32":
        log.info(
            "precision=%s: frozen weights are held in float32, twice the base model's %s, which precision=bf16 keeps",
            options.precision,
            own,
        )
    return dtype


def _is_spread(options: TrainingParams) -> bool:
    """Whether each process holds a part of the weights."""
    return bool(options.fsdp) or deepspeed.stage(options) == 3


def _regularise(model: t.Any, options: TrainingParams) -> None:
    """Smooth labels and add noise to embeddings, in training alone; before padding is left out."""
    label_smoothing.smooth(model, options.label_smoothing_factor)
    if options.neftune_noise_alpha:
        neftune.Noise(model, options.neftune_noise_alpha)


def _judge_by(arguments: TrainingArguments, task: Task, metric: str, options: TrainingParams) -> None:
    """Let the metric, in its own direction, decide which checkpoint is the best, and when a rate has to fall."""
    arguments.metric_for_best_model, arguments.greater_is_better = task.judged_by(metric, options)
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
    return task.reduce_losses(logits) if unpadded.gives_losses else task.reduce(logits, labels, meta)


def _save_best(
    trainer: BestModelTrainer, base: Path, output: Path, plain: Path | None, options: TrainingParams
) -> None:
    """Write the best model from its checkpoint's files, weight by weight, in the type that was asked for.

    Adapters that stay by themselves get their base model in ``plain``.
    """
    if _merges(options):
        with tempfile.TemporaryDirectory(prefix=".adapter-", dir=output) as adapter, sharding.set_aside(trainer.args):
            with trainer.best_checkpoint() as best:
                plain_model.write(best, Path(adapter))
            write_merged_weights(Path(adapter), base, output, options.output_dtype)
        t.cast(t.Any, trainer.processing_class).save_pretrained(str(output))
    else:
        dtype = None if options.apply_lora else weight_types.for_output(options.output_dtype, base)
        with trainer.best_checkpoint() as best:
            plain_model.write(best, output, dtype)
    trainer.state.save_to_json(str(output / "trainer_state.json"))
    make_paths_relative(output / "trainer_state.json")
    shutil.rmtree(output / "checkpoints" / "runs", ignore_errors=True)
    if plain is not None and is_adapter(output):
        with sharding.set_aside(trainer.args):
            if not keep_together(base, plain, options.output_dtype):
                write_merged(output, base, plain, options.output_dtype)


def _merges(options: TrainingParams) -> bool:
    return options.apply_lora and options.merge_lora_weights


def _adapted(model: t.Any, base: Path, output: Path, options: TrainingParams, arguments: TrainingArguments) -> t.Any:
    from tuneport.training.model.lora import adapt, head_modules  # peft takes seconds to import

    with sharding.set_aside(arguments):
        heads = head_modules(model, base)
    return adapt(model, base, output, options, heads)


def _checkpoint(
    options: TrainingParams,
    checkpoints: CheckpointFolder,
    arguments: TrainingArguments,
    peers: Peers,
    *,
    in_shards: bool,
) -> Checkpoint | None:
    """The checkpoint to go on from; the first process looks for it, all use it.

    Where machines share no folder, one process of each brings it to its disk, and the others wait.
    """
    step: int | None = None
    if arguments.process_index == 0:
        rows = rows_per_step(arguments)
        sharded = options.apply_deepspeed or options.fsdp
        processes = arguments.world_size if sharded else None
        fresh = resume.wanted(options.resume_from_checkpoint) == resume.NO
        if checkpoints.store is not None:
            checkpoints.store.clear() if fresh else checkpoints.take()
        checkpoint = resume.prepare(options.resume_from_checkpoint, checkpoints, options.ports(), rows, processes)
        if checkpoint is not None and in_shards:
            fsdp_shards.check(checkpoint.path)
        if checkpoints.store is not None and checkpoint is not None:
            checkpoints.store.mirror(checkpoints.all(), {})
        step = checkpoint.step if checkpoint else None
    step = peers.share("the checkpoint to resume from", step)
    if step is not None and checkpoints.store is not None:
        if arguments.local_process_index == 0:
            checkpoints.fetch(step)
        peers.meet("the checkpoint is on each machine's disk")
    return None if step is None else checkpoints.checkpoint(step)


def _scores_of_answers(
    task: Task, base: Path, prepared: Prepared, options: TrainingParams, trainer: BestModelTrainer
) -> t.Callable[[t.Any], dict[str, float]]:
    """Return a function model -> metrics of its answers to the validation rows, by the predictor's defaults."""
    every, meta, arguments = prepared.rows("validation"), prepared.info.meta, trainer.args
    questions = task.validation_questions(every, options)
    rows, asked = [every[i] for i in questions], list(questions.values())
    settings = task.validation_settings(meta, options)

    def answers_of(model: t.Any, questions: t.Any) -> t.Any:
        inner = choose.plain(model)  # with its adapters
        predictor = task.predictor(str(base), settings, model=inner, batch_size=arguments.per_device_eval_batch_size)
        with _in_16_bits(inner, arguments):
            return predictor(questions)

    def scores(model: t.Any) -> dict[str, float]:
        training = model.training
        with _each_alone(model, trainer, options) as alone:
            answers = answers_of(model, asked[arguments.process_index :: arguments.world_size] if alone else asked)
        if alone:
            parts: list[t.Any] = [None] * arguments.world_size
            torch.distributed.all_gather_object(parts, answers)
            answers = [parts[i % len(parts)][i // len(parts)] for i in range(len(rows))]
        model.train(training)
        return _of_first(trainer.peers, lambda: task.score(rows, answers, meta, options))

    return scores


@contextmanager
def _each_alone(model: t.Any, trainer: BestModelTrainer, options: TrainingParams) -> Iterator[bool]:
    """While entered, whether each of several processes can answer rows by itself, for which a sharded model's weights
    are gathered once; else each row takes all processes.
    """
    if trainer.args.world_size == 1 or not _is_spread(options):
        yield trainer.args.world_size > 1
        return
    free = free_memory(options.number_of_gpu_to_use_finetuning)
    if not all(trainer.peers.gather("room for all weights", whole.fits(model, free))):
        log.warning(
            "%s: not every process has room for all weights, so each evaluation gathers them for each token of all "
            "validation rows; fewer validation rows or metric_for_best_model=loss make it shorter",
            trainer.args.metric_for_best_model,
        )
        yield False
    else:
        engine = None if options.fsdp else trainer.deepspeed
        with whole.whole(model, engine, resharded=options.fsdp == "full_shard"):
            yield True


def _of_first(peers: Peers, scores: t.Callable[[], dict[str, float]]) -> dict[str, float]:
    """The scores that the first process finds, in all of them: a function of the user's may give others each time, and
    may take longer than a collective operation waits. Raises its `UserError` in all of them, too.
    """
    found: dict[str, t.Any] = {}
    if peers.rank == 0:
        try:
            found["scores"] = {name: float(value) for name, value in scores().items()}
        except UserError as e:
            found["error"] = str(e)
    found = peers.share("scores of the answers", found)
    if "error" in found:
        raise UserError(found["error"])
    return t.cast(dict[str, float], found["scores"])


def _in_16_bits(model: t.Any, arguments: TrainingArguments) -> t.ContextManager[t.Any]:
    """Where some of a model's weights are in 16 bits and some are not: entered, it computes in 16 bits, as trained."""
    types = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    half = torch.bfloat16 if arguments.bf16 else torch.float16
    return torch.autocast(arguments.device.type, dtype=half, enabled=len(types) > 1 and half in types)


def accumulated_batches(options: TrainingParams, world_size: int) -> int:
    """Batches that each process adds up for a step: more of them where machines are missing, for as many rows a step.

    An elastic training goes on like that. Raises `UserError` where the rows cannot be shared out equally.
    """
    planned = options.number_of_gpu_to_use_finetuning * options.num_nodes_finetune
    batches = options.gradient_accumulation_steps * planned
    if world_size >= planned:
        return options.gradient_accumulation_steps
    if batches % world_size:
        raise UserError(
            f"{world_size} processes are left of {planned}: the {batches} batches of a step cannot be shared out "
            f"equally. Expected gradient_accumulation_steps by which they can, as in {world_size}."
        )
    log.warning(
        "%d of %d processes are there: each adds up %d batches a step", world_size, planned, batches // world_size
    )
    return batches // world_size


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
        optim=optimizers.FUSED if options.optim in (*optimizers.DEFAULTS, optimizers.MUON) else options.optim,
        optim_args="bf16_stochastic_round=true" if options.optim in optimizers.ROUNDED_AT_RANDOM else None,
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
        activation_checkpointing=options.gradient_checkpointing == "true",  # auto: see `recompute`
        activation_checkpointing_kwargs={"use_reentrant": False},
        dataloader_num_workers=options.dataloader_num_workers,
        use_cpu=not torch.accelerator.is_available(),
        ddp_backend="gloo" if world_size > 1 and not torch.accelerator.is_available() else None,
        ddp_find_unused_parameters=False,
        ddp_timeout=options.ddp_timeout,
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
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]  # ZeRO-3: of the whole
    rows, weights, trained = prepared.info.splits, sum(n for n, _ in sizes), sum(n for n, grad in sizes if grad)
    share = f" ({trained / 1e6:.3g} M trained, {trained / weights:.2%})" if trained < weights else ""
    return (
        f"{rows['train']} training rows, {rows['validation']} validation rows, {weights / 1e6:.1f} M weights{share}, "
        f"batches of {rows_per_step(arguments)}{' packs' if packing else ''}, on {_devices(arguments)}, "
        f"precision {precision_of(arguments)}"
    )


def _disk_space(trainer: BestModelTrainer, base: Path, options: TrainingParams) -> disk_space.DiskSpace:
    """What checkpoints and model take, if the training goes on to its last step."""
    trained = [w for w in t.cast(t.Any, trainer.model).parameters() if w.requires_grad]
    numbers = [getattr(weight, "ds_numel", weight.numel()) for weight in trained]  # ZeRO-3: of the whole
    sizes = sum(number * weight.element_size() for number, weight in zip(numbers, trained, strict=True))
    alone = options.apply_lora and not options.merge_lora_weights
    return disk_space.of_training(
        options,
        trained=sum(numbers),
        width=sizes // max(sum(numbers), 1),
        model=0 if alone else sum(file.stat().st_size for file in base.glob("*.safetensors")),
        made=_evaluations(trainer),
    )


def _evaluations(trainer: BestModelTrainer) -> int:
    """How many evaluations there are, each with a checkpoint, if none stops the training early."""
    arguments = trainer.args
    epoch = max(len(t.cast(t.Any, trainer.train_dataset)) // rows_per_step(arguments), 1)
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * epoch)
    return math.ceil(steps / (epoch if arguments.eval_strategy == "epoch" else arguments.eval_steps or epoch))


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
