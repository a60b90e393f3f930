"""Training where the memory is short: a batch size that fits is found, and the effective batch stays what it was."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertModel, set_seed

import steps
from steps.model_import import ModelImport
from tests.fork_server import ForkServer
from tuneport.artifacts import CustomModel, Model
from tuneport.stage import execute
from tuneport.training.auto_batch_size import candidates

ROWS = 64
FINETUNE = """
import os, resource, sys
import sklearn.metrics
import torch
import steps, tuneport.training.train as training
from tuneport.cli.stage_command import run_stage
room, *arguments = sys.argv[1:]
if os.environ.get("RANK", "1") != "1":
    room = 100_000  # of two processes, the other one has enough

class Limited(training.BestModelTrainer):
    def __init__(self, *arguments, **values):
        super().__init__(*arguments, **values)
        used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(room) * 2**20, resource.RLIM_INFINITY))

    def save_model(self, *arguments, **values):
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        super().save_model(*arguments, **values)

torch.backends.mkldnn.enabled = False  # it does not say that what it lacks is memory
training.BestModelTrainer = Limited
sys.exit(run_stage(arguments, names=steps.names(), load=steps.load))
"""


@pytest.fixture(scope="module")
def inputs(tiny_model: Path, questions: Any, write_jsonl: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model wide enough for its activations to count (more than 10 MB a row), and rows for it."""
    folder = tmp_path_factory.mktemp("wide")
    source = folder / "source"
    source.mkdir()
    for file in tiny_model.glob("*token*"):
        (source / file.name).write_bytes(file.read_bytes())
    set_seed(0)
    words = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    config = BertConfig(
        vocab_size=words,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=192,
    )
    BertModel(config).save_pretrained(source)
    tokenizer = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 192}))
    model, prepared = folder / "model", folder / "prepared"
    execute(ModelImport(pytorch_model_path=CustomModel(source), model_selector_output=Model(model)))
    rows = [{**row, "text": f"{row['text']} {i}"} for i, row in enumerate(questions)]
    execute(
        steps.load("preprocess", "text_classification")(
            model_selector_output=model,
            train_file_path=write_jsonl(folder / "rows.jsonl", rows),
            sentence1_key="text",
            label_key="label",
            pad_to_max_length=True,
            max_seq_length=192,
            preprocess_output=prepared,
        )
    )
    return ["--model_selector_output", str(model), "--preprocess_output", str(prepared)]


ENVIRONMENT = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


def arguments(inputs: list[str], output: Path, room: int, **values: Any) -> list[str]:
    settings = {"per_device_train_batch_size": ROWS, "max_steps": 1, **values}
    flags = itertools.chain.from_iterable((f"--{name}", str(value)) for name, value in settings.items())
    stage = [str(room), "finetune", "--task_name", "text_classification"]
    return [*stage, *inputs, "--pytorch_model_folder", str(output), *flags]


@pytest.fixture(scope="module")
def finetune(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Train in a process that may take ``room`` MiB more than it has once the model is loaded."""
    server = ForkServer(ENVIRONMENT, tmp_path_factory.mktemp("programs"))

    def run(output: Path, room: int, **values: Any) -> subprocess.CompletedProcess[str]:
        return server.run(FINETUNE, *arguments(inputs, output, room, **values), input="", cwd=output.parent)

    yield run
    server.close()


def result(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "training.json").read_text())
    return found


@pytest.mark.slow
def test_what_does_not_fit_is_explained_and_leaves_nothing(finetune: Any, tmp_path: Path) -> None:
    run = finetune(tmp_path / "out", room=1_400)
    assert run.returncode == 2, run.stderr
    last = run.stderr.splitlines()[-1]
    assert "per_device_train_batch_size=64: the memory does not suffice" in last
    assert "auto_find_batch_size=true" in last
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_batch_size_is_found_that_fits_and_keeps_the_effective_batch(finetune: Any, tmp_path: Path) -> None:
    run = finetune(tmp_path / "out", room=1_400, auto_find_batch_size=True)
    assert run.returncode == 0, run.stderr
    found = result(tmp_path / "out")
    assert found["per_device_train_batch_size"] in (32, 16, 8, 4)
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == ROWS
    assert "batches of 64 do not fit into memory" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [{}, {"apply_deepspeed": True, "deepspeed_stage": 2}], ids=["DDP", "ZeRO-2"])
def test_all_processes_take_the_batch_size_that_fits_each(
    sharded: dict[str, Any], inputs: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "finetune.py"
    script.write_text(FINETUNE, "utf-8")
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    values = {"auto_find_batch_size": True, "number_of_gpu_to_use_finetuning": 2, **sharded}
    ranks += arguments(inputs, tmp_path / "out", room=1_400, **values)
    run = subprocess.run(ranks, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert run.returncode == 0, run.stderr
    found = result(tmp_path / "out")
    assert found["per_device_train_batch_size"] in (32, 16, 8, 4)
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == ROWS


def test_where_no_row_fits_the_user_is_told(finetune: Any, tmp_path: Path) -> None:
    run = finetune(tmp_path / "out", room=30, auto_find_batch_size=True)
    assert run.returncode == 2, run.stderr
    assert "does not suffice for a single row" in run.stderr.splitlines()[-1]


@pytest.mark.slow
def test_where_all_fits_nothing_changes(finetune: Any, tmp_path: Path) -> None:
    runs = []
    for wanted in (False, True):
        output = tmp_path / str(wanted)
        few = {"per_device_train_batch_size": 8, "max_steps": 2}
        assert finetune(output, room=20_000, auto_find_batch_size=wanted, **few).returncode == 0
        runs.append((output / "model.safetensors").read_bytes())
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_recomputed_activations_take_less_memory(finetune: Any, tmp_path: Path) -> None:
    run = finetune(tmp_path / "out", room=1_400, gradient_checkpointing="true")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("wanted", "effective", "sizes"),
    [(8, 8, [8, 4, 2, 1]), (6, 12, [6, 3, 1]), (5, 10, [5, 2, 1]), (1, 4, [1]), (7, 7, [7, 1])],
)
def test_candidates_divide_the_effective_batch(wanted: int, effective: int, sizes: list[int]) -> None:
    assert candidates(wanted, effective) == sizes
