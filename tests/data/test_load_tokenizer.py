"""The longest sequence follows from the model's own files and the parameter."""

import json

import pytest

from tuneport.data.load_tokenizer import load_tokenizer, longest_input, read_json, resolve_length
from tuneport.errors import UserError


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "expected"),
    [
        ({"max_position_embeddings": 512}, {"model_max_length": 256}, 256),
        ({"max_position_embeddings": 512}, {"model_max_length": 1e30}, 512),
        (
            {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1},
            {"model_max_length": 10**30},
            512,
        ),
        ({"model_type": "gpt2", "n_positions": 1024}, {}, 1024),
        ({"model_type": "xlnet"}, {}, None),
    ],
)
def test_the_model_takes_the_least_of_its_limits(config, tokenizer_config, expected):
    assert longest_input(config, tokenizer_config) == expected


def test_the_parameter_shortens_but_never_lengthens():
    assert resolve_length(-1, 512) == 512
    assert resolve_length(128, 512) == 128
    assert resolve_length(128, None) == 128
    with pytest.raises(UserError, match="max_seq_length=513: the model takes at most 512 tokens"):
        resolve_length(513, 512)
    with pytest.raises(UserError, match="names no maximum; set max_seq_length"):
        resolve_length(-1, None)


def test_the_tokenizer_cuts_where_told_and_pads_nothing(tiny_model):
    tokenizer = load_tokenizer(tiny_model, {}, 6)
    long, short = tokenizer.encode_batch(["one two three four five six", "one"])
    assert len(long.ids) == 6
    assert long.overflowing
    assert len(short.ids) == 3
    left = load_tokenizer(tiny_model, {"truncation_side": "left"}, 6).encode("one two three four five six")
    assert left.tokens == ["[CLS]", "three", "four", "five", "six", "[SEP]"]


def test_a_length_that_special_tokens_fill_is_refused(tiny_model):
    with pytest.raises(UserError, match="max_seq_length=3: leaves no room for text beside 3 special tokens"):
        load_tokenizer(tiny_model, {}, 3)


def test_a_damaged_model_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.json: not found"):
        load_tokenizer(tmp_path, {}, 64)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"tokenizer.json: is damaged or of a newer format"):
        load_tokenizer(tmp_path, {}, 64)
    with pytest.raises(UserError, match=r"config.json: cannot be read"):
        read_json(tmp_path, "config.json")
    for content in ("{", json.dumps([1])):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config.json: is no"):
            read_json(tmp_path, "config.json")
