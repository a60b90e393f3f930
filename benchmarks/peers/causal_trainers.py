"""Peers of the decoder case of `training_speed.py`, each run by the Python of an environment of its own.

`python causal_trainers.py PEER ROOT ADDRESS SETTINGS`: ROOT holds the model and `rows.jsonl` with `prompt` and
`response`, words whose number in the vocabulary is their token's; ADDRESS is where turns are told and answered
(`training_speed.Turns`); SETTINGS is JSON: steps of a turn, rows of a batch, longest row, whether in bfloat16.
"""

import contextlib
import json
import os
import sys
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from training_speed import LEARNING_RATE, PACKS, Turns, gate


def llama_factory(root: Path, turns: Turns, settings: dict[str, Any]) -> None:
    """LLaMA-Factory's neat_packing: rows packed, each kept from seeing others by a block-diagonal mask."""
    from llamafactory.train.tuner import run_exp

    columns = {"prompt": "prompt", "response": "response"}
    (root / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl", "columns": columns}}))
    values = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(root / "model"),
        "dataset_dir": str(root),
        "dataset": "rows",
        "template": "empty",
        "finetuning_type": "full",
        "cutoff_len": settings["longest"],
        "packing": True,
        "neat_packing": True,
        "per_device_train_batch_size": PACKS,
        "gradient_accumulation_steps": 1,
        "bf16": settings["bf16"],
        "output_dir": str(root / "llama-factory"),
    }
    run_exp({**values, **shared()}, callbacks=[gate(turns)])


def trl(root: Path, turns: Turns, settings: dict[str, Any], **values: Any) -> None:
    """TRL's SFTTrainer on rows that are tokenised already."""
    import transformers
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "model")

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        prompt, response = (tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in row)
        return {"input_ids": prompt + response, "completion_mask": [0] * len(prompt) + [1] * len(response)}

    rows = load_dataset("json", data_files=str(root / "rows.jsonl"), split="train")
    config = SFTConfig(
        output_dir=str(root / "trl"),
        bf16=settings["bf16"],
        gradient_checkpointing=False,
        shuffle_dataset=False,
        **{"max_length": settings["longest"], **shared(), "per_device_train_batch_size": settings["batch"], **values},
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "model", dtype="float32")
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows.map(encode, remove_columns=rows.column_names),
        processing_class=tokenizer,
        callbacks=[gate(turns)],
    )
    trainer.train()


def shared() -> dict[str, Any]:
    """What all set alike: no optional work beside the steps."""
    return {
        "learning_rate": LEARNING_RATE,
        "num_train_epochs": 100,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1000,
        "use_cpu": True,
        "seed": 0,
    }


PEERS: dict[str, Any] = {
    "llama-factory": (llama_factory, {}),
    "trl-padding-free": (trl, {"padding_free": True, "max_length": None}),
    "trl-packing": (trl, {"packing": True, "per_device_train_batch_size": PACKS}),
}


def main(who: str, root: str, address: str, given: str) -> None:
    """Train, turn by turn, until the other end is closed."""
    settings = json.loads(given)
    with Client(address, "AF_UNIX") as pipe:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        train, values = PEERS[who]
        with contextlib.suppress(EOFError, BrokenPipeError):
            train(Path(root), Turns(pipe, settings["steps"]), settings, **values)


if __name__ == "__main__":
    main(*sys.argv[1:])
