"""What only a GPU shows, on one of 80 to 140 GB, in at most 8 minutes: `python benchmarks/gpu.py [--rehearse]`.

Llamas with random weights are trained for some seconds each, in bf16: all of one of 135 M and of 1 B weights, LoRA on
one of 8 B; on rows of log-normal lengths, and on rows that all have the most tokens; by tuneport without padding, by
tuneport with padding (`padded`), and by a plain transformers Trainer (`plain`). Printed and recorded, with the device's
name, are tokens a second without padding, MFU, the most memory that torch reserved, and what `tuneport estimate` says
of it. `--rehearse` runs all of it with tiny models on any machine, and records nothing.
"""

import argparse
import dataclasses as dc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECONDS = 8 * 60  # of all cases together; what does not begin in time is said to be left out
MEASURED = 10.0  # seconds of steps in a case, after two that are not counted
LORA = {"apply_lora": True}


@dc.dataclass(frozen=True, kw_only=True)
class Case:
    """A training to measure."""

    size: str
    values: dict[str, Any]
    rows: int  # of a batch
    tokens: int  # of the longest rows
    median: int | None  # of the rows' lengths; None: all have ``tokens``
    contestant: str

    @property
    def name(self) -> str:
        method = "LoRA" if self.values.get("apply_lora") else "full"
        return f"{self.size} {method}, {'full rows' if self.median is None else 'mixed rows'}, {self.contestant}"


def cases(rehearse: bool) -> list[Case]:
    """Most important first."""
    sizes = [("8B", LORA, 2, 4096), ("1B", {}, 4, 4096), ("135M", {}, 8, 2048)]
    if rehearse:
        sizes = [("tiny", LORA, 2, 64), ("tiny", {}, 2, 64)]
    return [
        Case(
            size=size,
            values=values,
            rows=rows,
            tokens=tokens,
            median=None if full else tokens // 4,
            contestant=contestant,
        )
        for contestant in ("tuneport", "plain", "padded")
        for full in (True, False)
        for size, values, rows, tokens in sizes
    ]


def train(case: Case, scratch: Path) -> None:
    """In a process of its own: measure a case and print it as JSON."""
    import torch
    from random_models import TASK, finetune, write_base, write_prepared, write_rows
    from transformers import Trainer

    from tuneport import tasks
    from tuneport.data.prepared import Prepared
    from tuneport.modeling import pretrained
    from tuneport.training.distributed.waiting import Peers
    from tuneport.training.memory import without_placement
    from tuneport.training.rank_memory import per_rank
    from tuneport.training.simulate import Batch, Run, simulate
    from tuneport.training.train import assemble, training_arguments

    on_gpu = torch.cuda.is_available()
    base = write_base(scratch / "base", case.size)
    data = write_rows(scratch / "rows.jsonl", 400, case.tokens, case.median)
    prepared = Prepared(write_prepared(scratch / "prepared", base, data, case.tokens))
    given = {"precision": "bf16", "padding_free": case.contestant == "tuneport", "gradient_checkpointing": "true"}
    options = finetune(
        base, prepared.path, scratch / "out", **given, per_device_train_batch_size=case.rows, **case.values
    )
    run = Run(task_name=TASK, base=base, prepared=prepared.path, options=options, metric_for_best_model="loss")
    estimate = None
    if case.contestant == "tuneport":
        (step,) = simulate(run, [Batch(rows=case.rows, tokens=case.tokens)])
        estimate = per_rank(step, options, 1).total
    with pretrained.weightless():
        arguments = without_placement(training_arguments(options, scratch / "out"))
        trainer: Any = assemble(
            tasks.load(TASK),
            base,
            prepared,
            options,
            arguments,
            metric_for_best_model="loss",
            output=scratch / "out",
            inputs={},
            peers=Peers(),
        )
    model = trainer.model
    random_weights(model, arguments.device)
    arguments.eval_strategy = arguments.save_strategy = "no"
    arguments.load_best_model_at_end, arguments.max_steps = False, 10_000
    if case.contestant == "plain":
        trainer = Trainer(
            model=model, args=arguments, train_dataset=trainer.train_dataset, data_collator=trainer.data_collator
        )

    watch = watcher(on_gpu)
    trainer.add_callback(watch)
    tokens = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: tokens.append([len(row["input_ids"]) for row in rows]) or collate(rows)
    trainer.train()
    seconds = watch.ended - watch.began
    taken = tokens[watch.first : watch.last]
    found: dict[str, Any] = {
        "case": case.name,
        "batch": [case.rows, case.tokens],
        "steps": watch.last - watch.first,
        "tokens_per_second": round(sum(map(sum, taken)) / seconds, 1),
        "estimate": estimate,
    }
    if on_gpu:
        free, total = torch.cuda.mem_get_info()
        found |= {"reserved": torch.cuda.max_memory_reserved(), "allocated": torch.cuda.max_memory_allocated()}
        found |= {"in_use": total - free, "device": torch.cuda.get_device_name()}
        found |= utilisation(model, taken, seconds)
    print(json.dumps(found))


def utilisation(model: Any, batches: list[list[int]], seconds: float) -> dict[str, float]:
    """MFU of batches of rows of such lengths, where the GPU's peak is known."""
    import torch

    from tuneport.training.batch_counts import Counts
    from tuneport.training.flops import cost, peak

    of_model, most = cost(model), peak(torch.cuda.get_device_name(), "bf16")
    if of_model is None or most is None:
        return {}
    counts = Counts(
        rows=sum(map(len, batches)),
        tokens=sum(map(sum, batches)),
        squared_lengths=sum(length**2 for batch in batches for length in batch),
    )
    return {"mfu": round(of_model.of(counts) / seconds / most, 4)}


def watcher(on_gpu: bool) -> Any:
    """A callback that stops after some seconds of steps, of which two are not counted."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        began = ended = 0.0
        first = last = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2 or (self.began and time.perf_counter() - self.began > MEASURED):
                if on_gpu:
                    torch.cuda.synchronize()
                if state.global_step == 2:
                    self.began, self.first = time.perf_counter(), 2
                else:
                    self.ended, self.last = time.perf_counter(), state.global_step
                    control.should_training_stop = True

    return Watch()


def random_weights(model: Any, device: Any) -> None:
    """Give a model on the meta device weights there, of the size that a new model has."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        own: dict[str, Any] = {"recurse": False, "remove_duplicate": False}
        for name, tensor in [*module.named_parameters(**own), *module.named_buffers(**own)]:
            if id(tensor) not in made:
                new = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
                if tensor.is_meta and tensor.dim() == 1:
                    new.data.fill_(1.0)  # of a norm
                elif tensor.is_meta:
                    new.data.normal_(std=0.02)
                is_weight = isinstance(tensor, torch.nn.Parameter)
                made[id(tensor)] = (torch.nn.Parameter(new, tensor.requires_grad) if is_weight else new, tensor)
            setattr(module, name, made[id(tensor)][0])
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    rotary = inner.base_model.rotary_emb  # whose buffers follow from the configuration
    inner.base_model.rotary_emb = type(rotary)(inner.config).to(device)


def main(rehearse: bool) -> int:
    """Run the cases, each in a process of its own."""
    import torch

    if not torch.cuda.is_available() and not rehearse:
        print("there is no GPU here: nothing to measure (--rehearse runs tiny models)")
        return 0
    started, results, failed = time.monotonic(), [], 0
    for case in cases(rehearse):
        if time.monotonic() - started > SECONDS - 45:
            print(f"{case.name}: left out, as {time.monotonic() - started:.0f} s have passed")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, __file__, "--train", json.dumps(dc.asdict(case)), scratch]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{case.name}: {done.stderr.strip()[-600:]}")
            failed = 1
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        results.append(found)
        print(json.dumps(found), flush=True)
        if not rehearse:
            Path(__file__).parent.joinpath("results", "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train:
        train(Case(**json.loads(asked.train[0])), Path(asked.train[1]))
    else:
        sys.exit(main(asked.rehearse))
