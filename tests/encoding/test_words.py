"""Words become the tokens that the tokenizers library makes of them as pre-tokenised text, each with its label."""

import random
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tuneport.encoding.fast_tokenizer import FastTokenizer
from tuneport.encoding.token_ids import library_ids
from tuneport.encoding.words import WordEncoder
from tuneport.labels import IGNORED

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = (
    *(
        "the",
        "thing",
        "is",
        "unbelievable",
        "1,000",
        "don't",
        "naïve",
        "Éire",
        "日本語",
        "👍🏽",
        "x" * 30,
        "a b",
        "[SEP]",
    ),
    *("", " ", "\u200b", "\x00", "\ufeff", "_", "A-B", "…", "İstanbul"),
)
ROUND = ("[CLS] $A [SEP]", [("[CLS]", 2), ("[SEP]", 3)])


def trained(kind: str) -> Tokenizer:
    made = {"word_piece": models.WordPiece(unk_token="[UNK]"), "bpe": models.BPE(), "unigram": models.Unigram()}
    tokenizer = Tokenizer(made[kind.partition(" ")[0]])
    shared: dict[str, Any] = {"vocab_size": 300, "special_tokens": SPECIAL, "show_progress": False}
    if kind == "word_piece":
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(**shared)
    elif kind.startswith("bpe"):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="prefix" in kind)
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **shared)
    else:
        scheme = "first" if "first" in kind else "always"
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        trainer = trainers.UnigramTrainer(unk_token="[UNK]", **shared)
    tokenizer.train_from_iterator([" ".join(WORDS), "the thing that is a thing"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=ROUND[0], special_tokens=ROUND[1])
    return tokenizer


def by_library(tokenizer: Tokenizer, words: list[str], first: list[int], others: list[int]) -> tuple[Any, Any, bool]:
    encoding = tokenizer.encode(words, is_pretokenized=True)
    labels, previous = [], None
    for word in encoding.word_ids:
        labels.append(IGNORED if word is None else others[word] if word == previous else first[word])
        previous = word
    return encoding.ids, labels, bool(encoding.overflowing)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["word_piece", "bpe", "bpe prefix", "unigram", "unigram first"])
def test_words_are_encoded_as_the_library_encodes_pre_tokenised_text(kind: str, side: str) -> None:
    tokenizer = trained(kind)
    tokenizer.enable_truncation(16, direction=side)
    rng = random.Random(0)
    rows = [rng.choices(WORDS, k=rng.choice([1, 2, 5, 9, 20])) for _ in range(300)]
    first = [rng.randrange(5) for row in rows for _ in row]
    others = [-101 - label if rng.random() < 0.5 else IGNORED for label in first]
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    ways = [library_ids(whole)] + ([FastTokenizer(tokenizer)] if kind.startswith("bpe") else [])
    for to_ids in ways:
        found = WordEncoder(tokenizer, to_ids)(rows, first, others)
        ids, labels = found.input_ids.column().to_pylist(), found.labels.column().to_pylist()
        start = 0
        for i, row in enumerate(rows):
            own = slice(start, start + len(row))
            assert by_library(tokenizer, row, first[own], others[own]) == (ids[i], labels[i], found.truncated[i])
            start += len(row)
    assert 0.15 < np.mean(found.truncated) < 0.8
