"""Weights come in whole, or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tuneport.serving.model_loader import ModelLoader

SIZES = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).save_pretrained(folder)
    return folder


def changed(folder: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A copy of a model whose weights are what ``change`` makes of them."""
    shutil.copytree(folder, target)
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return target


def test_a_whole_model_is_loaded_and_nothing_of_it_is_new(llama: Path) -> None:
    loader = ModelLoader("AutoModelForCausalLM")
    model = loader(str(llama))
    assert loader.new == loader.unused == []
    expected = load_file(llama / "model.safetensors")
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, expected["model.layers.1.mlp.up_proj.weight"])


def test_tied_weights_are_not_lacking(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loader = ModelLoader("AutoModelForCausalLM")
    loader(str(tmp_path))
    assert loader.new == []


def test_names_with_a_prefix_are_refused_and_the_prefix_is_named(llama: Path, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "m", lambda w: {f"wrapper.{name}": value for name, value in w.items()})
    with pytest.raises(ValueError, match=r"21 of the 21 weights of a LlamaForCausalLM .*remove 'wrapper\.'"):
        ModelLoader("AutoModelForCausalLM")(str(folder))


def test_a_lacking_layer_is_refused_by_name(llama: Path, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "m", lambda w: {n: v for n, v in w.items() if ".layers.1." not in n})
    with pytest.raises(ValueError, match=r"9 of the 21 .*model\.layers\.1\.\S+.* and 6 more\. The files are not whole"):
        ModelLoader("AutoModelForCausalLM")(str(folder))


def test_weights_of_another_size_are_refused_with_both_sizes(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = changed(llama, tmp_path / "m", lambda w: {**w, name: torch.zeros(20, 8)})
    with pytest.raises(ValueError, match=rf"{name} \(is \[20, 8\], expected \[16, 8\]\).*another size"):
        ModelLoader("AutoModelForCausalLM")(str(folder))


def test_lora_weights_alone_are_refused_as_such(llama: Path, tmp_path: Path) -> None:
    def to_lora(weights: dict[str, Any]) -> dict[str, Any]:
        return {f"base_model.model.{name}".replace(".weight", ".lora_A.weight"): v for name, v in weights.items()}

    with pytest.raises(ValueError, match="The files hold LoRA's weights"):
        ModelLoader("AutoModelForCausalLM")(str(changed(llama, tmp_path / "m", to_lora)))


def test_another_architectures_weights_are_refused(llama: Path, bert: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(llama)
    with pytest.raises(ValueError, match=r"The files hold \d+ others instead \(bert\."):
        ModelLoader("LlamaForCausalLM")(str(bert), config=config, new_head=True)


def test_only_a_head_may_be_new_and_only_where_it_is_allowed(bert: Path, tmp_path: Path) -> None:
    loader = ModelLoader("AutoModelForSequenceClassification")
    with pytest.raises(ValueError, match="weights of a BertForSequenceClassification"):
        loader(str(bert))
    loader(str(bert), new_head=True)
    assert loader.new == ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    assert loader.unused and all(name.startswith("cls.") for name in loader.unused)
    folder = changed(bert, tmp_path / "m", lambda w: {n: v for n, v in w.items() if ".layer.1." not in n})
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.1\."):
        loader(str(folder), new_head=True)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral"])
def test_a_trunk_that_a_class_calls_otherwise_is_found_in_the_files(kind: str, tmp_path: Path) -> None:
    """Transformers' classes that answer questions call it transformer, those that write call it model."""
    config = getattr(transformers, f"{kind}Config")(**SIZES, num_key_value_heads=2)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    loader = ModelLoader("AutoModelForQuestionAnswering")
    model = loader(str(tmp_path), new_head=True)
    assert loader.new == ["qa_outputs.bias", "qa_outputs.weight"]
    trunk = model.base_model.state_dict()
    assert len(trunk) > 15 and all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in trunk.items())
    model.save_pretrained(tmp_path / "tuned")  # a best checkpoint and a resume are read by the model's own names
    again = load_file(tmp_path / "tuned" / "model.safetensors")
    assert set(again) == set(model.state_dict())
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_an_encoder_alone_is_no_encoder_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"decoder\."):
        ModelLoader("AutoModelForSeq2SeqLM")(str(tmp_path))
    loader = ModelLoader("T5ForQuestionAnswering")
    assert loader.heads(transformers.T5ForQuestionAnswering(config)) == ["qa_outputs", "pooler"]
