"""Make a small encoder-decoder that knows nothing yet: `python examples/translation/make_model.py [FOLDER]`.

A T5 of 3 + 3 layers with seeded random weights and a vocabulary of the fetched paragraphs, as a Hugging Face folder.
Run `fetch.py` first. Needs what tuneport needs to train.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 8000
SEED = 42
SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1 and 2, as in every T5
LONGEST = 128  # tokens


def main() -> None:
    """Fill FOLDER/t5 with a model whose vocabulary is made of FOLDER/paragraphs.jsonl."""
    parser = argparse.ArgumentParser(description=main.__doc__, usage="python %(prog)s [FOLDER]")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(__file__).parent / "data")
    folder: Path = parser.parse_args().folder
    paragraphs = folder / "paragraphs.jsonl"
    if not paragraphs.is_file():
        sys.exit(f"error: {paragraphs}: not found; make it with python {Path(__file__).with_name('fetch.py')}")
    with paragraphs.open(encoding="utf-8") as f:
        texts = [row[language] for row in map(json.loads, f) for language in ("en", "fr")]

    from transformers import PreTrainedTokenizerFast

    pad, end, unknown = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary(texts),
        pad_token=pad,
        eos_token=end,
        unk_token=unknown,
        model_max_length=LONGEST,
        model_input_names=["input_ids", "attention_mask"],  # a T5 has no token types
    )
    model = t5(len(tokenizer))
    model.save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{folder / 't5'}: encoder-decoder, {millions:.1f} million random parameters, {len(tokenizer)} tokens")


def vocabulary(texts: list[str]) -> Any:
    """A byte-pair vocabulary that keeps case and accents, and ends each text with `</s>`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[2]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", SPECIAL.index("</s>"))]
    )
    return tokenizer


def t5(tokens: int) -> Any:
    """A T5 of 4.6 million parameters, untrained."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(SEED)
    config = T5Config(
        vocab_size=tokens,
        d_model=192,
        d_kv=48,
        d_ff=768,
        num_layers=3,
        num_heads=4,
        pad_token_id=SPECIAL.index("<pad>"),
        eos_token_id=SPECIAL.index("</s>"),
        decoder_start_token_id=SPECIAL.index("<pad>"),
    )
    return T5ForConditionalGeneration(config)


if __name__ == "__main__":
    main()
