"""How much memory of a GPU a training step takes, by model and method: `python benchmarks/model_size.py`.

Each step is simulated: tuneport's as `tuneport estimate` does it, a plain transformers Trainer's with peft by the same
counting of storages. Rows of 4,096 tokens, one a batch, precision bf16. A goal is the most that a case may take, in
GiB; a case above it is a miss. What no CPU runs, states in 8 bits and weights in 4, is computed and said to be.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

TOKENS = 4096
LORA = {"apply_lora": True}
ON, OFF = {"gradient_checkpointing": "true"}, {"gradient_checkpointing": "false"}
ZERO3 = {"apply_deepspeed": True, "deepspeed_stage": "3", **ON}
CASES: tuple[tuple[str, str, int, dict[str, Any], float], ...] = (  # model, what, GPUs, parameters, goal in GiB
    ("8B", "LoRA", 1, LORA | ON, 17.5),
    ("8B", "LoRA, activations kept", 1, LORA | OFF, 42.0),
    ("8B", "QLoRA, 4 bits (computed)", 1, LORA | ON | {"quantization": "4bit", "merge_lora_weights": False}, 9.31),
    (
        "8B",
        "full, bfloat16 weights, 8-bit states (computed)",
        1,
        ON | {"weights_dtype": "bfloat16", "optim": "adamw_torch_8bit"},
        79.2,
    ),
    ("8B", "full, ZeRO-3", 8, ZERO3, 79.2),
    ("70B", "LoRA, ZeRO-3", 8, LORA | ZERO3, 79.2),
    ("70B", "full, ZeRO-3", 16, ZERO3, 79.2),
    ("70B", "full, FSDP", 16, ON | {"fsdp": "full_shard"}, 79.2),
)


def plain(size: str, lora: bool, checkpointing: bool) -> float:
    """GiB of a step of a plain Trainer, with peft's adapters as it makes them of a model in bfloat16."""
    import torch
    from random_models import SIZES
    from torch.utils.data import Dataset as Rows
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from tuneport.training import memory

    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**SIZES[size], dtype="bfloat16")).to(torch.bfloat16)
        if lora:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = memory.without_placement(
            TrainingArguments(
                output_dir=scratch,
                bf16=True,
                use_cpu=True,
                max_steps=1,
                report_to="none",
                activation_checkpointing=checkpointing,
                activation_checkpointing_kwargs={"use_reentrant": False},
            )
        )
        rows: Any = Rows()
        trainer: Any = Trainer(model=model, args=arguments, train_dataset=rows)
        ids = torch.ones(1, TOKENS, dtype=torch.long)
        return memory.of_batch(trainer, {"input_ids": ids, "labels": ids.clone()}).peak / 2**30


def main() -> int:
    """Print and record the table; returns 1 where a goal is missed."""
    from random_models import TASK, finetune, write_base, write_prepared, write_rows

    from tuneport.training.rank_memory import per_rank
    from tuneport.training.simulate import Batch, Run, simulate

    missed, results = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        bases: dict[str, tuple[Path, Path]] = {}
        for size, what, gpus, values, goal in CASES:
            if size not in bases:
                base = write_base(Path(scratch, size), size)
                data = write_rows(Path(scratch, "rows.jsonl"), 40, TOKENS + 10)
                bases[size] = (base, write_prepared(Path(scratch, f"{size}-rows"), base, data, TOKENS))
            base, prepared = bases[size]
            given = {"precision": "bf16", "number_of_gpu_to_use_finetuning": gpus, **values}
            options = finetune(base, prepared, Path(scratch, "out"), **given)
            run = Run(task_name=TASK, base=base, prepared=prepared, options=options, metric_for_best_model="loss")
            (step,) = simulate(run, [Batch(rows=1, tokens=TOKENS)])
            total = per_rank(step, options, gpus).total / 2**30
            missed |= total > goal
            results.append({"model": size, "what": what, "gpus": gpus, "gib": round(total, 2), "goal": goal, **values})
            print(f"{size:>4} {what:<48} {gpus:>2} × {total:6.1f} GiB, goal {goal:5.1f}", flush=True)
        for lora, checkpointing in ((True, True), (True, False)):
            total = plain("8B", lora, checkpointing)
            kept = "" if checkpointing else ", activations kept"
            results.append({"model": "8B", "what": f"plain Trainer, LoRA{kept}", "gpus": 1, "gib": round(total, 2)})
            print(f"  8B {f'plain Trainer and peft, LoRA{kept}':<48}  1 × {total:6.1f} GiB", flush=True)
    Path(__file__).parent.joinpath("results", "model_size.json").write_text(json.dumps(results, indent=1) + "\n")
    return missed


if __name__ == "__main__":
    sys.exit(main())
