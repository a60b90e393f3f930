"""Prompts and completions become ids that fit, with labels on the completion alone."""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tuneport.encoding.base_model import BaseModel
from tuneport.encoding.completions import CompletionEncoder
from tuneport.encoding.prompts import check_end, joined, specials
from tuneport.encoding.token_ids import library_ids
from tuneport.errors import UserError
from tuneport.labels import IGNORED
from tuneport.serving.prompt_encoder import PromptEncoder


def byte_tokenizer(prefix: str = "", suffix: str = "") -> Tokenizer:
    """One token a byte, ids from 3 on, between the special tokens named."""
    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if prefix or suffix:
        named = [(token, vocabulary[token]) for token in (prefix, suffix) if token]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(filter(None, [prefix, "$A", suffix])), special_tokens=named
        )
    return tokenizer


def base(tokenizer: Tokenizer, **config: Any) -> BaseModel:
    return BaseModel(
        config={"model_type": "llama", **config},
        tokenizer=tokenizer,
        tokenizer_config={"eos_token": "</s>"},
        generation_config={},
        chat_template=None,
        max_seq_length=64,
    )


class Encoded(NamedTuple):
    input_ids: list[int]
    labels: list[int]
    truncated: bool


def decoder_settings(template: str = "{text}", cut: str = "end", **changes: Any) -> dict[str, Any]:
    return {
        "template": template,
        "cut": cut,
        "prompt_prefix": [1],
        "prompt_suffix": [],
        "target_prefix": [],
        "target_suffix": [2],
        "encoder_decoder": False,
        **changes,
    }


def encoded(
    tokenizer: Tokenizer, settings: dict[str, Any], text: str, completion: str, *, most: int, most_target: int
) -> Encoded:
    encode = CompletionEncoder(
        tokenizer, library_ids(tokenizer), settings, max_seq_length=most, max_target_tokens=most_target
    )
    rows = encode([text], [completion])
    return Encoded(rows.input_ids.values.tolist(), rows.labels.values.tolist(), bool(rows.truncated[0]))


def test_a_decoder_learns_the_completion_and_its_end_only() -> None:
    tokenizer = byte_tokenizer()
    row = encoded(tokenizer, decoder_settings("{text} =>"), "ab", "cd", most=64, most_target=20)
    assert row.input_ids[0] == 1 and row.input_ids[-1] == 2 and not row.truncated
    assert tokenizer.decode(row.input_ids) == "ab => cd"
    learnt = [label for label in row.labels if label != IGNORED]
    assert tokenizer.decode(learnt) == " cd" and learnt[-1] == 2
    assert len(row.labels) == len(row.input_ids)


@pytest.mark.parametrize(("cut", "kept"), [("end", "abcdef"), ("start", "klmnop")])
def test_a_long_text_is_cut_and_neither_the_template_nor_the_completion(cut: str, kept: str) -> None:
    tokenizer = byte_tokenizer()
    row = encoded(tokenizer, decoder_settings("<{text}>", cut), "abcdefghijklmnop", "xy", most=13, most_target=8)
    assert row.truncated and len(row.input_ids) == 13
    assert tokenizer.decode(row.input_ids) == f"<{kept}> xy"


def test_characters_of_several_tokens_are_cut_until_the_prompt_fits() -> None:
    tokenizer = byte_tokenizer()
    ((ids, cut),) = PromptEncoder(tokenizer, decoder_settings("<{text}>"))(["ééééé"], [8])
    assert cut and len(ids) <= 8 and tokenizer.decode(ids).startswith("<é")


def test_a_completion_longer_than_its_limit_loses_its_end_token() -> None:
    row = encoded(byte_tokenizer(), decoder_settings(), "ab", "cdefgh", most=64, most_target=4)
    learnt = [label for label in row.labels if label != IGNORED]
    assert row.truncated and len(learnt) == 4 and 2 not in learnt


def test_an_encoder_decoder_reads_the_prompt_and_learns_the_target() -> None:
    tokenizer = byte_tokenizer(suffix="</s>")
    found = specials(base(tokenizer, is_encoder_decoder=True, decoder_start_token_id=0, model_type="t5"))
    settings = {"template": "say: {text}", "cut": "end", **vars(found)}
    row = encoded(tokenizer, settings, "ab", "cd", most=20, most_target=20)
    assert tokenizer.decode(row.input_ids) == "say: ab" and row.input_ids[-1] == 2
    assert tokenizer.decode(row.labels) == "cd" and row.labels[-1] == 2 and IGNORED not in row.labels


def test_special_tokens_are_read_off_the_tokenizer_and_the_configurations() -> None:
    found = specials(base(byte_tokenizer(prefix="<s>"), eos_token_id=[2, 7]))
    assert (found.prompt_prefix, found.prompt_suffix, found.target_suffix) == ([1], [], [2])
    assert found.stop == [2, 7]


def test_a_model_without_special_tokens_learns_no_end() -> None:
    tokenizer = byte_tokenizer()
    bare = BaseModel(
        config={"model_type": "gpt2"},
        tokenizer=tokenizer,
        tokenizer_config={},
        generation_config={},
        chat_template=None,
        max_seq_length=64,
    )
    found = specials(bare)
    assert (found.prompt_prefix, found.target_suffix, found.stop) == ([], [], [])


def test_an_end_is_of_the_tokenizer_or_a_token_that_it_has_added() -> None:
    tokenizer = byte_tokenizer()
    unnamed = replace(base(tokenizer, eos_token_id=[7, 2]), tokenizer_config={})
    assert (specials(unnamed).target_suffix, specials(unnamed).stop) == ([2], [7, 2])
    letter = replace(unnamed, config={"model_type": "llama", "eos_token_id": 7})
    assert specials(letter).target_suffix == []  # the id of a letter, by a default of the configuration
    with pytest.raises(UserError, match=r"names no token that ends a text.* as eos_token in .*tokenizer_config.json"):
        check_end(specials(letter).target_suffix)
    check_end([2])


def test_an_encoder_is_refused_and_those_that_write_are_named() -> None:
    with pytest.raises(UserError, match=r"of type 'roberta', an encoder, which writes no text; .*Llama.*T5"):
        specials(base(byte_tokenizer(), model_type="roberta"))


def test_an_encoder_decoder_without_a_start_token_is_refused() -> None:
    with pytest.raises(UserError, match="names no decoder_start_token_id"):
        specials(base(byte_tokenizer(), is_encoder_decoder=True, model_type="t5"))


@pytest.mark.parametrize(
    ("prompt", "completion", "wanted"), [("a", "b", " b"), ("a ", "b", "b"), ("a", "\nb", "\nb"), ("", "b", "b")]
)
def test_a_space_stands_at_the_seam_unless_white_space_does(prompt: str, completion: str, wanted: str) -> None:
    assert joined(prompt, completion) == wanted
