"""Llamas of known sizes without trained weights, and rows for them: what the benchmarks of memory and GPUs train."""

import json
import math
import random
from pathlib import Path
from typing import Any

import steps
from tuneport import tasks
from tuneport.data.prepare import prepare

TASK = "text_generation"
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"intermediate_size": 128, "vocab_size": 512, "tie_word_embeddings": True},
    "30M": {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2}
    | {"intermediate_size": 1024, "vocab_size": 32000, "tie_word_embeddings": True},
    "135M": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    | {"intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True},  # SmolLM2's
    "500M": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    | {"intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},  # Qwen 2.5's of 0.5 B
    "1B": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    | {"intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True, "head_dim": 64},  # Llama 3.2's
    "8B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    | {"intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False},  # Llama 3.1's
    "70B": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    | {"intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False},
}


def write_base(folder: Path, size: str, weights: bool = False) -> Path:
    """A model's folder with a tokenizer of bytes; with random weights in bfloat16, or a single number of that type."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    config = LlamaConfig(**SIZES[size], max_position_embeddings=8192, pad_token_id=0, eos_token_id=1, dtype="bfloat16")
    config.bos_token_id = None
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tokens = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=8192, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    if weights:
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    else:
        header = b'{"stands.for.the.weights":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    return folder


def write_rows(file: Path, rows: int, tokens: int, median: int | None = None) -> Path:
    """Rows of bytes: each of ``tokens``, or of log-normal lengths around ``median`` up to as many."""
    rng = random.Random(0)
    with file.open("w") as f:
        for _ in range(rows):
            length = tokens if median is None else min(tokens, max(8, int(rng.lognormvariate(math.log(median), 1.0))))
            f.write(json.dumps({"text": "".join(rng.choices("abcdefgh ", k=length))}) + "\n")
    return file


def write_prepared(folder: Path, base: Path, rows: Path, tokens: int) -> Path:
    """The rows as preprocess hands them on."""
    folder.mkdir()
    stage = steps.load("preprocess", TASK)(
        model_selector_output=base,
        train_file_path=rows,
        preprocess_output=folder,
        text_key="text",
        max_seq_length=tokens,
        deduplicate="none",
    )
    task = tasks.load(TASK)
    prepare(task, stage, sources=stage.sources(), wanted=stage.wanted_columns(), model=base, output=folder)
    return folder


def finetune(base: Path, prepared: Path, output: Path, **values: Any) -> Any:
    """The stage that would train it."""
    return steps.load("finetune", TASK)(
        model_selector_output=base, preprocess_output=prepared, pytorch_model_folder=output, **values
    )
