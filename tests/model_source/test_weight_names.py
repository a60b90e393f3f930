"""Names of weights as wrappers leave them."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tuneport.model_source.weight_names import strip_wrappers, wrapper_of


@pytest.mark.parametrize(
    ("names", "model_type", "prefix"),
    [
        (["module.model.layers.0.w", "module.lm_head.weight"], "llama", "module."),
        (["_orig_mod.module.bert.x", "_orig_mod.module.cls.y"], "bert", "_orig_mod.module."),
        (["model.bert.embeddings.w", "model.classifier.bias"], "bert", "model."),
        (["model.model.layers.0.w", "model.model.norm.weight"], "llama", "model."),
        (["model.layers.0.w", "model.norm.weight"], "llama", ""),  # its trunk's own name, the head tied
        (["model.encoder.layers.0.w", "model.shared.weight"], "bart", ""),
        (["module.a", "b"], "bert", ""),
        ([], "bert", ""),
    ],
)
def test_a_prefix_is_a_wrappers_where_the_rest_is_a_whole_model(names: list[str], model_type: str, prefix: str) -> None:
    assert wrapper_of(names, model_type) == prefix


def test_shards_and_their_index_are_renamed_and_the_tensors_stay(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="3KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        save_file({f"module.{name}": tensor for name, tensor in load_file(shard).items()}, shard, {"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model.', '"module.model.').replace('"lm_head', '"module.lm_head'))
    assert strip_wrappers(tmp_path, "llama") == "module."
    again, found = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert sorted(tmp_path.glob("*.safetensors")) == shards and not list(tmp_path.glob(".*.partial"))
