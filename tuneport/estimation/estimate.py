"""Estimate a run from its configuration: a few of its rows are prepared, and a step of its training is simulated."""

from __future__ import annotations

import dataclasses as dc
import logging
import tempfile
import typing as t
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from tuneport import tasks
from tuneport.data import readers
from tuneport.data.prepare import prepare
from tuneport.data.prepared import Prepared
from tuneport.data.row_progress import quiet
from tuneport.errors import UserError
from tuneport.estimation.hardware import GIB, Gpu, gpu, of_memory
from tuneport.graph import Pipeline, Ref
from tuneport.json_yaml import to_json
from tuneport.model_source.settings_only import WIDTHS, copy_settings, type_of
from tuneport.runner import bind
from tuneport.training import rank_memory
from tuneport.training.checkpoint.disk_space import ALL, DiskSpace
from tuneport.training.conflicts import evaluations
from tuneport.training.parameters import TrainingParams
from tuneport.training.rank_memory import RankMemory, StepMemory
from tuneport.training.simulate import Batch, simulate
from tuneport.training.simulate import Run as SimulatedRun

SAMPLE_ROWS = 200
# Of each GPU, for the context, the libraries' kernels and workspaces, and what an allocator cannot use: an allowance.
SET_ASIDE = GIB


@dc.dataclass(frozen=True, kw_only=True)
class StageBytes:
    """What a stage moves where its inputs and outputs lie in a store, as on Kubeflow, and keeps on its disk."""

    down: int
    up: int

    @property
    def disk(self) -> int:
        return self.down + self.up


@dc.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes, but for what is named otherwise."""

    task: str
    weights: int  # their number
    base: int  # of the base model's files
    processes: int
    gpu: str | None
    available: int | None  # of each GPU, for the training
    rows: int  # of a batch
    tokens: int  # of a row
    gradient_checkpointing: bool
    training: RankMemory
    largest_rows: int | None
    largest_tokens: int | None
    evaluation: int  # the weights, in their own type
    checkpoint: int
    checkpoints: int | None  # how many are kept; None where the number of rows decides
    checkpoint_contents: str
    disk: int  # of all checkpoints that are kept, and the tuned model; of one checkpoint where rows decide
    stages: Mapping[str, StageBytes]
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether the training fits; None where the GPU is not known."""
        return None if self.available is None else self.training.total <= self.available

    def as_json(self) -> dict[str, t.Any]:
        """The estimate with what follows from it."""
        training = dc.asdict(self.training) | {"total": self.training.total}
        stages = {name: dc.asdict(stage) | {"disk": stage.disk} for name, stage in self.stages.items()}
        return dc.asdict(self) | {"training": training, "stages": stages, "fits": self.fits}


def estimate(
    pipeline: Pipeline, values: Mapping[str, t.Any], gpu_name: str | None = None, gpu_memory: str | None = None
) -> Estimate:
    """What a run with these values takes.

    Raises `UserError` where the values do not go together, or the model's settings or the rows cannot be read here.
    """
    if gpu_name and gpu_memory:
        raise UserError("got both --gpu and --gpu_memory; expected one of them.")
    device = gpu(gpu_name) if gpu_name else of_memory(gpu_memory) if gpu_memory else None
    # It is not the split of the rows that is asked for.
    with tempfile.TemporaryDirectory(prefix="tuneport-estimate-") as scratch, quiet(logging.WARNING):
        steps: Mapping[str, t.Any] = bind.instantiate(pipeline, values, Path(scratch, "run"))
        if missing := [name for name in ("preprocess", "finetune") if name not in steps]:
            raise UserError(f"{pipeline.name}: has no stage {', '.join(missing)}, so there is nothing to estimate.")
        steps["model_import"].check()
        bind.check({name: step for name, step in steps.items() if name != "model_import"})  # its weights may lack
        base = Path(scratch, "base")
        by_type = copy_settings(steps["model_import"], base)
        prepared = _sample(steps["preprocess"], base, Path(scratch, "prepared"))
        run = _Run(pipeline=pipeline, values=values, steps=steps, base=base, prepared=prepared)
        return _estimate(run, by_type, device)


def _sample(step: t.Any, base: Path, output: Path) -> Prepared:
    """The first rows, prepared as all of them would be."""
    wanted = step.wanted_columns()
    rows = output.parent / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as f:
        given = step.sources()["train"]
        for source in given:
            for row in islice(source.rows(wanted), -(-SAMPLE_ROWS // len(given))):
                f.write(to_json(dict(row.values)) + "\n")
    step.min_rows, step.max_dropped_fraction = 1, 1.0
    output.mkdir()
    sources = {"train": [readers.find(rows, "train_file_path")]}
    prepare(tasks.load(step.task_name), step, sources=sources, wanted=wanted, model=base, output=output)
    return Prepared(output)


@dc.dataclass(frozen=True, kw_only=True)
class _Run:
    pipeline: Pipeline
    values: Mapping[str, t.Any]
    steps: Mapping[str, t.Any]
    base: Path  # settings and tokenizer
    prepared: Prepared  # the first rows


def _estimate(run: _Run, by_type: Mapping[str, int], device: Gpu | None) -> Estimate:
    options = run.steps["finetune"]
    processes = options.number_of_gpu_to_use_finetuning * options.num_nodes_finetune
    room = None if device is None else device.memory - SET_ASIDE
    rows, tokens = options.per_device_train_batch_size, _tokens(run.prepared, run.steps)
    half = max(tokens // 2, 1)
    batches = [Batch(rows=n, tokens=width) for n, width in ((rows, tokens), (2 * rows, tokens), (rows, half))]

    training_run = SimulatedRun(
        task_name=options.task_name,
        base=run.base,
        prepared=run.prepared.path,
        options=options,
        metric_for_best_model=options.metric_for_best_model,
    )

    def simulated(checkpointing: str) -> tuple[StepMemory, list[RankMemory]]:
        options.gradient_checkpointing = checkpointing
        found = simulate(training_run, batches)
        return found[0], [rank_memory.per_rank(step, options, processes) for step in found]

    asked = options.gradient_checkpointing
    chosen = "false" if asked == "auto" else asked
    step, (training, wider, shorter) = simulated(chosen)
    if asked == "auto" and room is not None and training.total > room:
        chosen = "true"
        step, (training, wider, shorter) = simulated(chosen)
    weights = step.trained + step.frozen
    by_type = by_type or {type_of(run.base): weights}
    size = sum(WIDTHS.get(name, 4) * count for name, count in by_type.items())
    own = weights * size // sum(by_type.values())
    checkpoint = rank_memory.checkpoint(step, options)
    kept = _kept(options)
    each = checkpoint - rank_memory.states(step, options)
    tuned = each if options.apply_lora and not options.merge_lora_weights else own
    space = DiskSpace(
        weights=each,
        states=checkpoint - each,
        model=tuned,
        made=kept or 1,
        limit=ALL,
        contents=options.checkpoint_contents,
    )
    return Estimate(
        task=options.task_name,
        weights=weights,
        base=size,
        processes=processes,
        gpu=None if device is None else device.name,
        available=room,
        rows=rows,
        tokens=tokens,
        gradient_checkpointing=chosen == "true",
        training=training,
        largest_rows=_largest((rows, training), (2 * rows, wider), room),
        largest_tokens=_largest((half, shorter), (tokens, training), room),
        evaluation=own,
        checkpoint=space.checkpoint,
        checkpoints=kept,
        checkpoint_contents=space.contents,
        disk=space.total,
        stages=_stages(run.pipeline, run.values, base=size, whole=own, disk=space.total),
        notes=tuple(_notes(options, run.prepared, tokens)),
    )


def _tokens(prepared: Prepared, steps: Mapping[str, t.Any]) -> int:
    """Of the rows to simulate: as many as they may have, or without a limit those of the longest."""
    if steps["preprocess"].max_seq_length != -1 or steps["finetune"].packing:
        return prepared.info.max_seq_length
    return int(max(prepared.encoded("train")["length"].to_pylist()))


def _notes(options: t.Any, prepared: Prepared, tokens: int) -> Iterator[str]:
    if tokens != prepared.info.max_seq_length:
        yield f"max_seq_length is not set: rows are as long as the longest of the first {SAMPLE_ROWS}"
    if rank_memory.is_computed(options):
        yield f"the states of optim={options.optim} are computed from its description, as no CPU runs it"
    if options.fsdp:
        yield "with fsdp the first process loads the whole model into CPU memory; with deepspeed_stage=3 none does"
    if options.quantization != "none":
        yield f"weights in {options.quantization} are computed from their description, as no CPU runs them"


def _kept(options: TrainingParams) -> int | None:
    """How many checkpoints are kept; None where the number of rows decides."""
    made, limit = evaluations(options), options.save_total_limit
    return made if limit == -1 else limit if made is None else min(made, limit)


def _largest(small: tuple[int, RankMemory], large: tuple[int, RankMemory], room: int | None) -> int | None:
    """How many rows, or tokens, fit, by the line through two numbers of them; 0 where not one does."""
    if room is None:
        return None
    (few, less), (many, more) = small, large
    each = (more.total - less.total) / max(many - few, 1)
    return max(int(many + (room - more.total) / max(each, 1)), 0)


def _stages(
    pipeline: Pipeline, values: Mapping[str, t.Any], *, base: int, whole: int, disk: int
) -> dict[str, StageBytes]:
    """By stage, what it moves of models; rows, tokenizers and reports are small beside them."""
    sizes = {"model_selector_output": base, "pytorch_model_folder": disk, "tuned_model": whole}
    sizes |= {"mlflow_model_folder": whole}
    found = {}
    for node in pipeline.active(values):
        read = [ref.port for ref in node.values.values() if isinstance(ref, Ref) and ref.node is not None]
        written = [port.name for port in node.step.ports().values() if port.kind == "output"]
        fetched = base if node.name == "model_import" else 0
        found[node.name] = StageBytes(
            down=fetched + sum(sizes.get(name, 0) for name in read), up=sum(sizes.get(name, 0) for name in written)
        )
    return found


def lines(found: Estimate) -> Iterator[str]:
    """The estimate as lines to read."""
    each = f"{found.processes} × " if found.processes > 1 else ""
    yield (
        f"{found.task}: {found.weights / 1e6:,.1f} M weights, {_size(found.base)}; batches of {found.rows} × "
        f"{found.tokens} tokens, {each}{found.gpu or 'GPU not named'}, gradient_checkpointing="
        f"{str(found.gradient_checkpointing).lower()}"
    )
    memory = found.training
    yield "finetune, on each GPU:"
    for name in ("weights", "gradients", "optimizer", "gathered", "activations"):
        note = f"  (logits {_size(memory.logits)})" if name == "activations" and memory.logits else ""
        yield f"  {name:<12} {_size(getattr(memory, name)):>10}{note}"
    yield f"  {'total':<12} {_size(memory.total):>10}" + _verdict(found)
    if found.largest_rows == 0:
        yield "  not one such row fits"
    elif found.largest_rows is not None:
        yield (
            f"  largest batch about {found.largest_rows} rows of {found.tokens} tokens; longest rows about "
            f"{found.largest_tokens} tokens, {found.rows} at once"
        )
    yield f"  CPU memory of the first process, beside its libraries: {_size(memory.host)}"
    kept = "each evaluation" if found.checkpoints is None else f"{found.checkpoints} kept"
    all_of_them = "" if found.checkpoints is None else f", {_size(found.disk)} with the model"
    yield (
        f"  a checkpoint takes {_size(found.checkpoint)}, {kept}{all_of_them} "
        f"(checkpoint_contents={found.checkpoint_contents})"
    )
    yield f"model_evaluation: {_size(found.evaluation)} for the weights of one model at a time, and its answers' cache"
    yield "moved, where artifacts lie in a store, and disk of the pod:"
    for name, stage in found.stages.items():
        yield f"  {name:<20} down {_size(stage.down):>10}  up {_size(stage.up):>10}  disk {_size(stage.disk):>10}"
    yield from (f"note: {note}" for note in found.notes)


def _verdict(found: Estimate) -> str:
    if found.available is None:
        return "  (name a GPU, --gpu H100-80GB or --gpu_memory 80g, to see whether it fits)"
    return f"  {'fits' if found.fits else 'does NOT fit'} in {_size(found.available)} of {found.gpu}"


def _size(count: int) -> str:
    return f"{count / GIB:,.2f} GiB"
