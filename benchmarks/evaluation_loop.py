"""An evaluation in training beside its forward passes alone: `python benchmarks/evaluation_loop.py [--results FILE]`.

Trains a step of a small model, evaluates many short validation rows as finetune does, and times the calls of the model
in it. By CPU seconds of one thread, so that what else the machine does is in both alike; scikit-learn, which metrics
import once, is imported before. The goal is for 100,000 rows; 8,000 in batches of one, the default, stand beside them.
"""

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import sklearn.metrics  # noqa: F401
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, TrainerCallback

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.stage import execute
from tuneport.tracking import Run
from tuneport.training.train import train

GOAL = 1.1
WORDS = 8  # a row
NUMBERS = [str(i) for i in range(500)]


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows to evaluate, in batches of a size."""

    rows: int
    batch: int
    goal: float | None


CASES = [Case(8_000, 1, None), Case(100_000, 32, GOAL)]


class Timed(TrainerCallback):
    """CPU seconds of the evaluation, and of the forward passes in it."""

    def __init__(self) -> None:
        self.forward = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        def begin(model: Any, given: Any) -> None:
            self.began = time.process_time()

        def end(model: Any, given: Any, output: Any) -> None:
            self.forward += time.process_time() - self.began

        kwargs["model"].register_forward_pre_hook(begin)
        kwargs["model"].register_forward_hook(end)
        self.started = time.process_time()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluation = time.process_time() - self.started


def prepared(folder: Path, validation_rows: int) -> dict[str, Path]:
    """A model of 4 layers × 256, and rows of `WORDS` numbers, as model_import and preprocess hand them on."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *NUMBERS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder / "model")
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({**special, "model_max_length": 64}))
    for name, rows, first in (("train", 64, 0), ("validation", validation_rows, 64)):
        lines = (
            {"text": " ".join(NUMBERS[(i * 7**k + i // 500 * k) % 500] for k in range(WORDS)), "label": str(i % 3)}
            for i in range(first, first + rows)
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = {"model": folder / "imported", "rows": folder / "prepared"}
    execute(steps.load("model_import")(pytorch_model_path=folder / "model", model_selector_output=made["model"]))
    files = {f"{name}_file_path": folder / f"{name}.jsonl" for name in ("train", "validation")}
    columns = {"sentence1_key": "text", "label_key": "label", "test_file_path": folder / "train.jsonl"}
    stage = steps.load("preprocess", "text_classification")
    execute(
        stage(
            model_selector_output=made["model"],
            preprocess_output=made["rows"],
            deduplicate="none",
            **files,
            **columns,
        )
    )
    return made


def measure(case: Case) -> dict[str, Any]:
    """One evaluation, and its forward passes alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made, timed = prepared(folder, case.rows), Timed()
        output = folder / "output"
        output.mkdir()
        values = {"max_steps": 1, "per_device_train_batch_size": 8, "per_device_eval_batch_size": case.batch}
        stage = steps.load("finetune", "text_classification")(
            model_selector_output=made["model"],
            preprocess_output=made["rows"],
            pytorch_model_folder=output,
            evaluation_strategy="steps",
            **values,
        )
        train(
            tasks.load("text_classification"),
            made["model"],
            Prepared(made["rows"]),
            stage,
            metric_for_best_model="loss",
            output=output,
            run=Run(),
            callbacks=[timed],
        )
    ratio = timed.evaluation / timed.forward
    verdict = "" if case.goal is None else "met" if ratio <= case.goal else "missed"
    print(
        f"{case.rows:,} rows, batches of {case.batch}: evaluation {timed.evaluation:.1f} s of CPU, forward passes "
        f"{timed.forward:.1f} s, {ratio:.3f} ×" + (f", goal ≤ {case.goal}: {verdict}" if verdict else "")
    )
    found = {"rows": case.rows, "batch": case.batch, "evaluation_cpu_seconds": round(timed.evaluation, 2)}
    return {**found, "forward_cpu_seconds": round(timed.forward, 2), "ratio": round(ratio, 3), "verdict": verdict}


def main() -> None:
    """Print the ratio of each case; exit 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, help="file to write the measurements to, as JSON")
    parser.add_argument("--batch", type=int, help="only the case with batches of this size")
    options = parser.parse_args()
    results = [measure(case) for case in CASES if options.batch in (None, case.batch)]
    if options.results:
        versions = {name: version(name) for name in ("torch", "transformers")}
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}
        options.results.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n", "utf-8")
    sys.exit(any(result["verdict"] == "missed" for result in results))


if __name__ == "__main__":
    main()
