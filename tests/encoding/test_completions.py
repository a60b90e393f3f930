"""Rows encoded together are what each would be alone, written down row by row."""

import itertools
import random
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tuneport.encoding.completions import CompletionEncoder
from tuneport.encoding.prompts import joined
from tuneport.encoding.token_ids import library_ids
from tuneport.labels import IGNORED
from tuneport.serving.prompt_encoder import PromptEncoder

ALPHABET = "abc é日\n "


def byte_tokenizer() -> Tokenizer:
    """One token a byte, ids from 3 on."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 3)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def alone(
    tokenizer: Tokenizer, settings: dict[str, Any], text: str, completion: str, *, most: int, most_target: int
) -> tuple[list[int], list[int], bool]:
    """The rule, for one row."""
    prompts = PromptEncoder(tokenizer, settings)
    decoder = not settings["encoder_decoder"]
    ids = tokenizer.encode(joined(prompts.after or text, completion) if decoder else completion).ids
    prefix, suffix = settings["target_prefix"], settings["target_suffix"]
    room = most_target - len(prefix)
    cut = len(ids) + len(suffix) > room
    if not cut:
        target = [*prefix, *ids, *suffix]
    elif settings["always_ends"]:
        target = [*prefix, *ids[: max(0, room - len(suffix))], *suffix]
    else:
        target = [*prefix, *ids[:room]]
    ((prompt, prompt_cut),) = prompts(
        [text], [min(most - len(target) if decoder else most, settings["max_prompt_tokens"])]
    )
    if not decoder:
        return prompt, target, cut or prompt_cut
    whole = [*prompt, *target][:most]
    unlearnt = max(1, min(len(prompt), len(whole)))
    return whole, [IGNORED] * unlearnt + whole[unlearnt:], cut or prompt_cut


@pytest.mark.parametrize(
    ("encoder_decoder", "always_ends", "cut", "template"),
    list(itertools.product([False, True], [False, True], ["start", "end"], ["{text}", "<b>{text} =>"])),
)
def test_rows_together_are_what_each_is_alone(
    encoder_decoder: bool, always_ends: bool, cut: str, template: str
) -> None:
    rng, tokenizer = random.Random(template), byte_tokenizer()
    settings = {
        "template": template,
        "cut": cut,
        "encoder_decoder": encoder_decoder,
        "always_ends": always_ends,
        "prompt_prefix": [1],
        "prompt_suffix": [2] if encoder_decoder else [],
        "target_prefix": [0] if encoder_decoder else [],
        "target_suffix": [2],
        "max_prompt_tokens": 25,
    }
    texts, completions = (
        ["".join(rng.choices(ALPHABET, k=rng.choice((0, 1, 3, 8, 20, 40)))) for _ in range(80)] for _ in range(2)
    )
    encode = CompletionEncoder(tokenizer, library_ids(tokenizer), settings, max_seq_length=32, max_target_tokens=14)
    columns = encode(texts, completions).columns()
    wanted = [alone(tokenizer, settings, *row, most=32, most_target=14) for row in zip(texts, completions, strict=True)]
    assert columns["input_ids"].to_pylist() == [row[0] for row in wanted]
    assert columns["labels"].to_pylist() == [row[1] for row in wanted]
    assert columns["truncated"].tolist() == [row[2] for row in wanted]
    assert columns["trainable"].tolist() == [any(i != IGNORED for i in row[1]) for row in wanted]
    assert 0 < np.sum(columns["truncated"]) < 80
