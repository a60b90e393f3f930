"""Tiny models that write text, made of the words of the rows they are to learn."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
AROUND = {
    "t5": "$A </s>",
    "bart": "<s> $A </s>",
    "mbart": "$A </s> en_XX",
    "mbart50": "en_XX $A </s>",
    "nllb": "eng_Latn $A </s>",
    "llama": "<s> $A",
    "gpt2": "$A",
}
CODES = {"mbart": ["en_XX", "de_DE"], "mbart50": ["en_XX", "de_DE"], "nllb": ["eng_Latn", "deu_Latn"]}
GERMAN = {
    "red": "rot",
    "blue": "blau",
    "green": "grün",
    "old": "alt",
    "big": "groß",
    "small": "klein",
    "cat": "Katze",
    "dog": "Hund",
    "horse": "Pferd",
    "sheep": "Schaf",
    "mouse": "Maus",
    "bear": "Bär",
    "sees": "sieht",
    "hears": "hört",
    "likes": "mag",
    "finds": "findet",
}
ENGLISH = list(GERMAN)
FILLERS = ["yesterday in town", "as they say", "near the river at night", "again", "we hear that", "so"]


def pair_rows(count: int = 150) -> list[dict[str, str]]:
    """Rows with a document and its summary, and with a sentence in two languages."""
    rng, rows = random.Random(1), []
    for i in range(count):
        words = [rng.choice(ENGLISH[:6]), rng.choice(ENGLISH[6:12]), rng.choice(ENGLISH[12:])]
        before, after = rng.sample(FILLERS, 2)
        rows.append(
            {
                "document": f"{before} the {' '.join(words)} us {after} {' '.join(str(i))}",
                "summary": " ".join(words[:2]),
                "en": f"{' '.join(words)} {' '.join(str(i))}",
                "de": " ".join(GERMAN[word] for word in words),
            }
        )
    return rows


def word_tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = [*SPECIAL, *CODES.get(kind, [])]
    words = {word for row in pair_rows() for text in row.values() for word in text.split()}
    words |= {"summarize:", "Summary:", "translate", "to", "English", "German:", "en:", "de:"}
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = [(token, vocabulary[token]) for token in special if token in AROUND[kind].split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=AROUND[kind], special_tokens=named)
    return tokenizer


def tiny(kind: str, vocabulary: int) -> Any:
    import transformers as tf

    ids: dict[str, Any] = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "vocab_size": vocabulary}
    if kind == "t5":
        size = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
        return tf.T5ForConditionalGeneration(tf.T5Config(**ids, **size, decoder_start_token_id=1, n_positions=64))
    if kind == "llama":
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, **size, max_position_embeddings=64))
    if kind == "gpt2":
        gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        return tf.GPT2LMHeadModel(tf.GPT2Config(**{**ids, "pad_token_id": None}, **gpt2))
    sides = ("encoder", "decoder")
    size = {"d_model": 32, "max_position_embeddings": 64, "dropout": 0.0, "init_std": 0.1}
    size |= {f"{side}_{name}": value for side in sides for name, value in (("layers", 2), ("attention_heads", 2))}
    size |= {f"{side}_ffn_dim": 64 for side in sides}
    if kind == "nllb":
        return tf.M2M100ForConditionalGeneration(tf.M2M100Config(**ids, **size, decoder_start_token_id=2))
    if kind == "bart":
        return tf.BartForConditionalGeneration(tf.BartConfig(**ids, **size, decoder_start_token_id=2))
    return tf.MBartForConditionalGeneration(tf.MBartConfig(**ids, **size))


@pytest.fixture(scope="session")
def rows() -> list[dict[str, str]]:
    return pair_rows()


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The imported folder of a tiny model that writes text, by kind, made once."""
    import steps
    from tuneport.artifacts import CustomModel, Model
    from tuneport.stage import execute

    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        from transformers import PreTrainedTokenizerFast, set_seed

        if kind not in made:
            folder, tokenizer = tmp_path_factory.mktemp(kind), word_tokenizer(kind)
            named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **named).save_pretrained(
                folder / "model"
            )
            set_seed(0)
            tiny(kind, tokenizer.get_vocab_size()).save_pretrained(folder / "model")
            imported = Model(folder / "model_selector_output")
            execute(
                steps.load("model_import")(
                    pytorch_model_path=CustomModel(folder / "model"), model_selector_output=imported
                )
            )
            made[kind] = imported.path
        return made[kind]

    return make
