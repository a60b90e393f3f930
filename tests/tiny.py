"""A two-layer BERT that takes milliseconds, and rows that it can learn."""

import itertools
import random
from pathlib import Path

WORDS = {
    "colour": ["red", "blue", "green", "yellow", "purple", "orange", "white", "black"],
    "animal": ["cat", "dog", "horse", "sheep", "goat", "rabbit", "mouse", "bear"],
    "number": ["one", "two", "three", "four", "five", "six", "seven", "eight"],
}
FRAMES = [
    "what is {}",
    "tell me about {} please",
    "is it {} or not",
    "i like {} very much",
    "{} again",
    "why {} and {}",
]


def questions() -> list[dict[str, str]]:
    """120 distinct rows of 3 labels; the label follows from the words."""
    rng = random.Random(0)
    rows: dict[str, str] = {}
    while len(rows) < 120:
        label = list(WORDS)[len(rows) % 3]
        frame = rng.choice(FRAMES)
        text = frame.format(*rng.sample(WORDS[label], frame.count("{}"))) + f" {rng.randrange(100)}"
        rows.setdefault(text, label)
    return [{"text": text, "label": label} for text, label in rows.items()]


def write_model(folder: Path) -> None:
    """A BERT of 2 layers × 32, without a head, and a WordPiece tokenizer that knows the words above."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({w for text in [*itertools.chain(*WORDS.values()), *FRAMES] for w in text.split() if w.isalpha()})
    pieces = [prefix + character for prefix in ("", "##") for character in "abcdefghijklmnopqrstuvwxyz0123456789"]
    # A fixed vocabulary: a trained one differs from process to process, and tests with it.
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*special, *pieces, *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
