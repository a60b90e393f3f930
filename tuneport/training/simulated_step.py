"""A training step on a batch of given size, with weights that have no contents: what it takes, as JSON.

Run by `tuneport.training.simulate`: python -m tuneport.training.simulated_step < request.json
"""

from __future__ import annotations

import dataclasses as dc
import json
import sys
import tempfile
import typing as t
from pathlib import Path

import transformers

from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.modeling import pretrained
from tuneport.training import memory
from tuneport.training.distributed.waiting import Peers
from tuneport.training.parameters import TrainingParams
from tuneport.training.rank_memory import StepMemory
from tuneport.training.simulate import Batch
from tuneport.training.train import assemble, training_arguments


def _here(request: dict[str, t.Any]) -> list[StepMemory]:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    options = TrainingParams(**request["values"])
    prepared, base = Prepared(Path(request["prepared"])), Path(request["base"])
    found = []
    for batch in (Batch(**entry) for entry in request["batches"]):
        with tempfile.TemporaryDirectory() as scratch, pretrained.weightless():
            arguments = memory.without_placement(training_arguments(options, Path(scratch)))
            trainer = assemble(
                tasks.load(request["task_name"]),
                base,
                prepared,
                options,
                arguments,
                metric_for_best_model=request["metric"],
                output=Path(scratch),
                inputs={},
                peers=Peers(),
            )
            found.append(memory.measure(trainer, rows_of(prepared, batch)))
    return found


def rows_of(prepared: Prepared, batch: Batch) -> list[dict[str, t.Any]]:
    """Encoded rows of so many tokens each: the first training row, whose tokens and labels are repeated or cut.

    Labels that are a sequence of their own get as many as the row with the most has.
    """
    encoded = prepared.encoded("train")
    row = encoded.slice(0, 1).to_pylist()[0]
    length = len(row["input_ids"])
    for name, value in row.items():
        if isinstance(value, list) and value:
            apart = name == "labels" and len(value) != length
            wanted = max(len(labels) for labels in encoded["labels"].to_pylist()) if apart else batch.tokens
            row[name] = (value * (wanted // len(value) + 1))[:wanted]
    row["length"] = batch.tokens
    return [row] * batch.rows


def main() -> int:
    """Read what to simulate from standard input; print what was found as JSON."""
    try:
        found = _here(json.load(sys.stdin))
    except UserError as e:
        sys.stderr.write(f"{e}\n")
        return 2
    sys.stdout.write(json.dumps([dc.asdict(memory) for memory in found]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
