"""GGUF files: a tiny Llama, written here with the gguf package, becomes dense safetensors and a fast tokenizer."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from steps.model_import import ModelImport
from tuneport.errors import UserError
from tuneport.stage import execute

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
WIDTH, HEADS, WIDE = 32, 2, 64


def write_gguf(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """A Llama of one layer with random weights and a byte-level vocabulary; returns its tensors."""
    tokens = ["<|im_start|>", "<|im_end|>", *gguf_bytes(), "he", "ll"]
    rng = np.random.default_rng(seed)
    square, wide = (WIDTH, WIDTH), (WIDE, WIDTH)
    shapes = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    shapes |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1], "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
    tensors = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    values = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in tensors.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def gguf_bytes() -> list[str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def run(source: Path, output: Path, **values: str) -> Path:
    execute(ModelImport(pytorch_model_path=source, model_selector_output=output, **values))
    return output


def test_a_gguf_file_becomes_a_model_that_loads_and_generates(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    written = write_gguf(tmp_path / "tiny.gguf")
    out = run(tmp_path / "tiny.gguf", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    state = model.state_dict()
    same = {"model.embed_tokens.weight": "token_embd", "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up"}
    for ours, theirs in same.items():
        assert np.array_equal(state[ours].numpy(), written[f"{theirs}.weight"])
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.tokenize("hello") == ["he", "ll", "o"]
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|im_end|>", TEMPLATE)
    ids = tokenizer("hello", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3, min_new_tokens=3).shape[1] == ids.shape[1] + 3
    assert torch.isfinite(model(ids).logits).all()


def test_of_several_files_one_is_chosen_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for seed, name in enumerate(("small.gguf", "large.gguf")):
        write_gguf(folder / name, seed)
    with pytest.raises(UserError, match=r"large\.gguf, small\.gguf\. Choose one with gguf_file"):
        run(folder, tmp_path / "out")
    with pytest.raises(UserError, match=r"Did you mean 'small\.gguf'"):
        run(folder, tmp_path / "out", gguf_file="smal.gguf")
    first, second = (run(folder, tmp_path / n, gguf_file=f"{n}.gguf") for n in ("small", "large"))
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


def test_what_is_no_whole_gguf_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    whole = tmp_path / "tiny.gguf"
    write_gguf(whole)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"cut\.gguf: cannot be read as a model"):
        run(cut, tmp_path / "out")
    cut.write_bytes(b"text")
    with pytest.raises(UserError, match="is no GGUF file"):
        run(cut, tmp_path / "out")
    shard = Path(shutil.copy(whole, tmp_path / "tiny-00001-of-00002.gguf"))
    with pytest.raises(UserError, match="one part of a split"):
        run(shard, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_named_file_lies_in_the_models_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_gguf(tmp_path / "x.gguf")
    write_gguf(tmp_path / "model" / "y.gguf")
    for name in ("../x.gguf", str(tmp_path / "x.gguf")):
        with pytest.raises(UserError, match=r"lies outside of .*; expected the name of a file in it"):
            run(tmp_path / "model", tmp_path / "out", gguf_file=name)
