"""Merging an adapter weight by weight gives what peft's own merge gives in memory, bit for bit."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from tuneport import tasks
from tuneport.errors import UserError
from tuneport.evaluation.prediction import Subject
from tuneport.modeling import merged_adapters, pretrained, weight_types
from tuneport.modeling.merged_adapters import load_merged, write_merged
from tuneport.serving.placement import Machine, Placement

IDS: dict[str, Any] = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT: dict[str, Any] = {**IDS, **SIZE, "intermediate_size": 64, "max_position_embeddings": 64}


def _llama(**more: Any) -> Any:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**IDS, **SIZE, intermediate_size=64, **more))


def _mixtral() -> Any:
    return tf.MixtralForCausalLM(
        tf.MixtralConfig(**IDS, **SIZE, intermediate_size=64, num_key_value_heads=2, num_local_experts=4)
    )


BASES = {
    "llama": (_llama, "AutoModelForCausalLM"),
    "tied": (lambda: _llama(tie_word_embeddings=True), "AutoModelForCausalLM"),
    "gpt2": (lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=2)), "AutoModelForCausalLM"),
    "bert": (lambda: tf.BertModel(tf.BertConfig(**BERT)), "AutoModelForSequenceClassification"),
    "answers": (_llama, "AutoModelForQuestionAnswering"),
    "experts": (_mixtral, "AutoModelForCausalLM"),
}
LINEAR = {
    **{kind: ["q_proj", "v_proj", "o_proj"] for kind in ("llama", "tied", "answers", "experts")},
    "gpt2": ["c_attn", "c_proj"],
    "bert": ["query", "value"],
}
HEADS = {"bert": ["classifier", "bert.pooler"], "answers": ["qa_outputs"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "embedding": {"target_modules": ["embed_tokens"]},
    "embedding in full": {"target_modules": ["embed_tokens"]},
    "biases": {"bias": "all"},
    "tokens": {"trainable_token_indices": [5, 7]},
}
CASES = [
    *((kind, variant) for kind in BASES for variant in ("LoRA", "DoRA")),
    ("llama", "rsLoRA"),
    ("llama", "embedding"),
    ("llama", "embedding in full"),
    ("tied", "embedding"),
    ("gpt2", "biases"),
    ("llama", "tokens"),
]
IN_MEMORY = {("tied", "embedding"), ("llama", "embedding in full"), ("gpt2", "biases"), ("llama", "tokens")}


def adapter_of(kind: str, variant: str, folder: Path, dtype: torch.dtype) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Folders of an adapter and its base, and the state that peft's merge in 32 bits comes to."""
    torch.manual_seed(0)
    make, auto = BASES[kind]
    make().to(dtype).save_pretrained(folder / "base")
    loader = merged_adapters.ModelLoader(auto)
    model = loader(str(folder / "base"), new_head=True, dtype="float32")
    values = {"target_modules": LINEAR[kind], "modules_to_save": HEADS.get(kind), **VARIANTS[variant]}
    adapted: Any = peft.get_peft_model(model, peft.LoraConfig(r=4, fan_in_fan_out=kind == "gpt2", **values))
    for name, weight in adapted.named_parameters():
        if "lora_" in name or weight.requires_grad:
            torch.nn.init.normal_(weight, 1.0 if "magnitude" in name else 0.0, 0.1)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=variant == "embedding in full")
    inner = adapted.get_base_model()
    inner.config.architectures = [type(inner).__name__]
    inner.config.save_pretrained(folder / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(folder / "expected")
    return folder / "adapter", folder / "base", load_file(folder / "expected" / "model.safetensors")


@pytest.mark.parametrize("output", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_the_merge_is_that_of_peft_in_memory_bit_for_bit(
    kind: str, variant: str, output: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tuneport")
    adapter, base, expected = adapter_of(kind, variant, tmp_path, torch.bfloat16)
    (tmp_path / "out").mkdir()
    merged_adapters.write_merged_weights(adapter, base, tmp_path / "out", output)
    assert ("is merged in memory" in caplog.text) == ((kind, variant) in IN_MEMORY)
    found = load_file(tmp_path / "out" / "model.safetensors")
    dtype = getattr(torch, output)
    assert {n: w.shape for n, w in found.items()} == {n: w.shape for n, w in expected.items()}
    assert all(torch.equal(found[name], expected[name].to(dtype)) for name in expected)
    assert weight_types.of_files(tmp_path / "out") == dtype
    for file in ("config.json", "generation_config.json"):
        if (tmp_path / "expected" / file).is_file():
            as_peft, ours = (json.loads((tmp_path / out / file).read_text("utf-8")) for out in ("expected", "out"))
            assert ours == as_peft | ({"dtype": output} if file == "config.json" else {})
    in_memory = load_merged(adapter, base, dtype=dtype).state_dict()
    from_files = getattr(tf, BASES[kind][1]).from_pretrained(tmp_path / "out", dtype=dtype).state_dict()
    assert {weight.dtype for weight in in_memory.values()} == {dtype}
    assert all(torch.equal(from_files[name], in_memory[name]) for name in in_memory)


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_an_adapter_beside_its_base_model_is_loaded_as_the_merged_model_bit_for_bit(
    kind: str, variant: str, tmp_path: Path
) -> None:
    adapter, base, _ = adapter_of(kind, variant, tmp_path, torch.bfloat16)
    merged = tmp_path / "merged"
    merged.mkdir()
    merged_adapters.write_merged_weights(adapter, base, merged)
    assert merged_adapters.keep_together(base, adapter)
    loader = merged_adapters.ModelLoader(BASES[kind][1])
    for dtype in (torch.bfloat16, torch.float32, None):
        loading = {} if dtype is None else {"dtype": dtype}
        found, expected = (loader(str(f), **loading) for f in (adapter, merged))
        assert type(found) is type(expected) and found.dtype == expected.dtype
        ours, theirs = found.state_dict(), expected.state_dict()
        assert ours.keys() == theirs.keys() and loader.new == []
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert vars(found).get("generation_config") == vars(expected).get("generation_config")
    machine = Machine()
    assert machine.own_type(str(adapter)) == torch.bfloat16
    assert machine.weight_bytes(str(adapter), 2) == machine.weight_bytes(str(base), 2) > 0


def test_an_adapter_is_not_kept_beside_a_base_model_whose_type_its_sum_is_not_written_in(tmp_path: Path) -> None:
    adapter, base, _ = adapter_of("llama", "LoRA", tmp_path, torch.bfloat16)
    assert not merged_adapters.keep_together(base, adapter, "float32") and not (adapter / "base_model").exists()
    assert merged_adapters.keep_together(base, adapter, "bfloat16") and (adapter / "base_model").is_dir()


def test_an_adapter_that_does_not_fit_the_model_beside_it_is_refused(tmp_path: Path) -> None:
    adapter, base, _ = adapter_of("llama", "LoRA", tmp_path, torch.float32)
    assert merged_adapters.keep_together(base, adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file({n: w for n, w in weights.items() if n != name}, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"the LoRA adapter does not fit the model in .*base_model: 1 weights have no"):
        pretrained.load("AutoModelForCausalLM", adapter)


@pytest.mark.parametrize("output", ["auto", "float32"])
def test_an_adapter_is_asked_with_the_weights_and_tables_of_the_model_that_it_is_merged_into(
    output: str, tmp_path: Path
) -> None:
    adapter, base, _ = adapter_of("llama", "LoRA", tmp_path, torch.bfloat16)
    (adapter / "manifest.json").write_text(json.dumps({"parameters": {"output_dtype": output}}))
    (tmp_path / "merged").mkdir()
    write_merged(adapter, base, tmp_path / "merged", output)
    rest: dict[str, Any] = {"base": base, "tokenizer": base, "seed": 0, "ignore_mismatched_sizes": False}
    one, two = (
        Subject(folder=folder, name="x", placement=Placement(0, {}, 1 << 40), **rest).load(
            tasks.load("text_generation"), {"prompting": {"encoder_decoder": False, "stop": []}}
        )
        for folder in (adapter, tmp_path / "merged")
    )
    for ours, merged in ((dict(one.named_parameters()), dict(two.named_parameters())), (buffers(one), buffers(two))):
        assert ours.keys() == merged.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == merged[name].dtype and torch.equal(tensor, merged[name]), name
    in_16_bits = load_merged(adapter, base, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in buffers(in_16_bits).values()} == {torch.float32}  # where tokens stand


def buffers(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.named_buffers())


def test_the_merged_model_has_the_type_of_its_base_and_shards_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, base, expected = adapter_of("llama", "LoRA", tmp_path, torch.bfloat16)
    monkeypatch.setattr(merged_adapters, "MAX_SHARD", 8000)
    write = merged_adapters.write
    monkeypatch.setattr(merged_adapters, "write", lambda folder, weights: write(folder, weights, 8000))
    (tmp_path / "out").mkdir()
    write_merged(adapter, base, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and max(f.stat().st_size for f in files) < 10_000
    found = {name: weight for file in files for name, weight in load_file(file).items()}
    assert all(torch.equal(found[name], weight.bfloat16()) for name, weight in expected.items())
    assert found.keys() == expected.keys()
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.model.norm.weight, expected["model.norm.weight"].bfloat16())


def test_an_adapter_that_lacks_the_head_that_it_was_trained_with_is_refused(tmp_path: Path) -> None:
    adapter, base, _ = adapter_of("bert", "LoRA", tmp_path, torch.float32)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({n: w for n, w in weights.items() if "classifier" not in n}, adapter / "adapter_model.safetensors")
    (tmp_path / "out").mkdir()
    for merge in (lambda: write_merged(adapter, base, tmp_path / "out"), lambda: load_merged(adapter, base)):
        with pytest.raises(
            UserError, match=r"does not fit the base model .*: it lacks the weights base_model.model.classifier.weight"
        ):
            merge()
    assert not list((tmp_path / "out").iterdir())
