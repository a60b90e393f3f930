"""Training without padding is the training with it, in losses, gradients, metrics and weights, also over processes."""

import json
import os
import random
import string
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import steps
from tests.fork_server import run_stage
from tuneport.artifacts import CustomModel, Model
from tuneport.stage import execute

VALUES = {
    "learning_rate": "1e-2",
    "max_steps": "6",
    "logging_steps": "1",
    "evaluation_strategy": "steps",
    "eval_steps": "3",
    "per_device_train_batch_size": "8",
    "per_device_eval_batch_size": "4",
}
TWO = {"number_of_gpu_to_use_finetuning": "2"}
SPREAD = {
    "two processes": TWO,
    "ZeRO-2": {**TWO, "apply_deepspeed": "true", "deepspeed_stage": "2"},
    "ZeRO-3": {**TWO, "apply_deepspeed": "true", "deepspeed_stage": "3"},
}
ONE = {"one process": {"gradient_accumulation_steps": "2"}}
ENCODER_DECODER = "a model of type 't5' is an encoder–decoder"
IN_BUCKETS = f"batches in length buckets: {ENCODER_DECODER}"
NO_PADDING = "no padding: each row by itself"


SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
T5_SIZE = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}


def made(kind: str, task: str, keys: tuple[str, str], folder: Path, write_jsonl: Any) -> SimpleNamespace:
    """A tiny model that writes and rows of prompts and completions of many lengths, as finetune takes them."""
    import transformers as tf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tf.set_seed(0)
    ids: dict[str, Any] = {"vocab_size": len(vocabulary), "pad_token_id": 0, "eos_token_id": 1}
    if kind == "t5":
        model: Any = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **T5_SIZE, decoder_start_token_id=0))
    else:
        grouped = {"num_key_value_heads": 2, "bos_token_id": None, "tie_word_embeddings": True}
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**ids, **SIZE, **grouped))
    model.save_pretrained(folder / "tiny")
    tokenizer.save(str(folder / "tiny" / "tokenizer.json"))
    named = {"pad_token": "<pad>", "eos_token": "</s>", "model_max_length": 128}
    (folder / "tiny" / "tokenizer_config.json").write_text(json.dumps(named))
    rng = random.Random(0)
    rows = []
    for number in range(120):  # of which 96 train: six steps
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.choice([1, 3, 9, 27])))
        rows.append({"text": f"{number} {word}", "answer": word[::-1]})
    found = SimpleNamespace(model=folder / "model", rows=folder / "rows", task=task)
    execute(
        steps.load("model_import")(
            pytorch_model_path=CustomModel(folder / "tiny"), model_selector_output=Model(found.model)
        )
    )
    execute(
        steps.load("preprocess", task)(
            model_selector_output=found.model,
            train_file_path=write_jsonl(folder / "rows.jsonl", rows),
            preprocess_output=found.rows,
            **dict(zip(keys, ("text", "answer"), strict=True)),
        )
    )
    return found


@pytest.fixture(scope="module")
def writes(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Any) -> SimpleNamespace:
    keys = ("text_key", "ground_truth_key")
    return made("llama", "text_generation", keys, tmp_path_factory.mktemp("writes"), write_jsonl)


@pytest.fixture(scope="module")
def summarizes(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Any) -> SimpleNamespace:
    keys = ("document_key", "summary_key")
    return made("t5", "summarization", keys, tmp_path_factory.mktemp("summarizes"), write_jsonl)


def trained(data: SimpleNamespace, output: Path, **values: str) -> tuple[Path, str]:
    """The output of a training in processes of its own, and what it said."""
    argv = ["finetune", "--task_name", data.task]
    argv += ["--model_selector_output", str(data.model), "--preprocess_output", str(data.rows)]
    argv += ["--pytorch_model_folder", str(output)]
    for name, value in (VALUES | values).items():
        argv += [f"--{name}", value]
    if TWO.items() <= values.items():
        command = [sys.executable, "-m", "steps", *argv]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    else:
        done = run_stage(*argv)
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout + done.stderr


def trace(output: Path) -> dict[tuple[int, str], float]:
    log = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
    timings = ("runtime", "per_second", "time", "epoch", "flos")
    return {
        (entry["step"], name): value
        for entry in log
        for name, value in entry.items()
        if isinstance(value, float) and not any(word in name for word in timings)
    }


def assert_same(output: Path, expected: Path) -> None:
    assert trace(output) == pytest.approx(trace(expected), rel=2e-4, abs=1e-4)
    assert any(name.startswith("eval_") for _, name in trace(output))
    found, wanted = (load_file(folder / "model.safetensors") for folder in (output, expected))
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], tensor, atol=2e-3) for name, tensor in wanted.items())


@pytest.fixture(scope="module")
def padded(writes: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output, said = trained(
        writes,
        tmp_path_factory.mktemp("padded") / "out",
        padding_free="false",
        gradient_accumulation_steps="2",
    )
    assert "padded batches: padding_free=false" in said
    return output


@pytest.mark.slow
def test_a_language_model_learns_the_same(writes: SimpleNamespace, padded: Path, tmp_path: Path) -> None:
    """Prompts without labels, an accumulated step, and validation metrics that are computed without stored logits."""
    output, said = trained(writes, tmp_path / "out", gradient_accumulation_steps="2")
    assert NO_PADDING in said and " 0% padding" in said
    assert {"eval_perplexity", "eval_token_accuracy"} <= {name for _, name in trace(output)}
    assert_same(output, padded)


@pytest.mark.slow
@pytest.mark.parametrize("values", SPREAD.values(), ids=SPREAD)
def test_a_language_model_learns_the_same_in_several_processes(
    values: dict[str, str], writes: SimpleNamespace, padded: Path, tmp_path: Path
) -> None:
    output, said = trained(writes, tmp_path / "out", **values)
    assert said.count(NO_PADDING) == 1
    assert_same(output, padded)


@pytest.mark.slow
def test_a_classifier_learns_the_same(still: SimpleNamespace, tmp_path: Path) -> None:
    with_padding, said = trained(still, tmp_path / "padded", padding_free="false")
    assert NO_PADDING not in said
    without, said = trained(still, tmp_path / "without")
    assert NO_PADDING in said
    assert_same(without, with_padding)


@pytest.fixture(scope="module")
def padded_pairs(summarizes: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("padded_pairs") / "out"
    output, said = trained(summarizes, folder, padding_free="false", gradient_accumulation_steps="2")
    assert IN_BUCKETS not in said
    return output


@pytest.mark.slow
@pytest.mark.parametrize("values", [*ONE, *SPREAD])
def test_an_encoder_decoder_learns_the_same_in_parts(
    values: str, summarizes: SimpleNamespace, padded_pairs: Path, tmp_path: Path
) -> None:
    output, said = trained(summarizes, tmp_path / "out", **(ONE | SPREAD)[values])
    spread = f"padded batches: {ENCODER_DECODER}, and its weights are spread over processes"
    assert said.count(spread if values == "ZeRO-3" else IN_BUCKETS) == 1
    assert {"eval_perplexity", "eval_token_accuracy"} <= {name for _, name in trace(output)}
    assert_same(output, padded_pairs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["writes", "summarizes"])
def test_packs_teach_what_their_rows_teach(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """All packs in one step are all rows in one step, and two processes share packs as they share rows."""
    data = request.getfixturevalue(kind)
    padded, _ = trained(
        data, tmp_path / "padded", padding_free="false", per_device_train_batch_size="96", learning_rate="1e-3"
    )
    packed, said = trained(
        data, tmp_path / "packed", packing="true", per_device_train_batch_size="500", learning_rate="1e-3"
    )
    assert "packing: " in said and "packs of at most 128 tokens, of 96 rows" in said
    assert_same(packed, padded)
    one, two = (
        trained(data, tmp_path / name, packing="true", max_steps="4", per_device_train_batch_size=size, **values)[0]
        for name, size, values in (("one", "6", {}), ("two", "3", TWO))
    )
    assert_same(two, one)
