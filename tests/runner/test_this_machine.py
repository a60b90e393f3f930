"""`tuneport validate` says what this machine lacks for a run, without torch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pipelines
from tuneport.runner import bind, this_machine
from tuneport.runner.this_machine import Machine

COLUMNS = {"train_file_path": "rows.jsonl", "sentence1_key": "text", "label_key": "label"}


def worth_a_look(model: Path, here: Machine, **values: Any) -> list[str]:
    pipeline = pipelines.load("text_classification")
    resolved = pipeline.resolve({"pytorch_model_path": model, **COLUMNS, **values})
    return this_machine.worth_a_look(bind.instantiate(pipeline, resolved, Path("run")), Path("run"), here)


def test_too_little_memory_is_said_with_what_takes_less(tiny_model: Path) -> None:
    size = sum(file.stat().st_size for file in tiny_model.glob("*.safetensors"))
    (said,) = worth_a_look(tiny_model, Machine(cpus=2, memory=3 * size))
    assert said.startswith("finetune takes at least about ") and "apply_lora=true or a smaller model" in said
    assert worth_a_look(tiny_model, Machine(cpus=2, memory=3 * size), apply_lora=True) == []
    assert worth_a_look(tiny_model, Machine(cpus=2, memory=5 * size)) == []
    gpus = (("a GPU", 2 * size), ("another GPU", 2 * size))
    assert "another GPU" in worth_a_look(tiny_model, Machine(cpus=2, memory=9 * size, gpus=gpus[1:]))[0]
    shared = {"number_of_gpu_to_use_finetuning": 2, "fsdp": "full_shard"}
    assert worth_a_look(tiny_model, Machine(cpus=2, memory=9 * size, gpus=gpus), **shared) == []


def test_more_processes_than_gpus_are_said(tiny_model: Path) -> None:
    one = Machine(cpus=2, memory=1 << 40, gpus=(("a GPU", 1 << 40),))
    assert worth_a_look(tiny_model, one, number_of_gpu_to_use_finetuning=2) == [
        "number_of_gpu_to_use_finetuning=2: this machine has 1 NVIDIA GPUs."
    ]


def test_this_machine_is_seen_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tuneport.runner.this_machine import machine, seen\n"
        "found = machine(); assert found.cpus > 0 and found.memory > 1 << 20\n"
        f"print(seen(Path({str(tmp_path)!r}, 'runs', 'x'))); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"free in {tmp_path}\n" in done.stdout
