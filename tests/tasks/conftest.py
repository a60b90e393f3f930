"""Tiny models that write text: byte by byte, or made of the words of the rows they are to learn."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import steps
from tuneport.artifacts import CustomModel, Model
from tuneport.stage import execute

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
        gpt2 |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
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


BYTE_SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(begin: bool) -> Any:
    """One token a byte, ids from 5 on, with the special tokens named; ``begin`` puts <s> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate([*BYTE_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(BYTE_SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama(folder: Path, **tokens: str) -> None:
    """Knows where texts begin and end, and has no token to pad with."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = byte_tokenizer(begin=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=256, bos_token="<s>", eos_token="</s>", **tokens
    ).save_pretrained(folder)
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=256, **size)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, None
    LlamaForCausalLM(config).save_pretrained(folder)


def gpt2(folder: Path, **tokens: str | None) -> None:
    """Has no token for the begin of a text, nor one to pad with."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer, tokens = byte_tokenizer(begin=False), {"eos_token": "</s>", **tokens}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **tokens).save_pretrained(folder)
    config = GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_positions=256, n_embd=48, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    GPT2LMHeadModel(config).save_pretrained(folder)


def t5(folder: Path) -> None:
    """An encoder–decoder."""
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(begin=False), model_max_length=256, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=261, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, **size)
    T5ForConditionalGeneration(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function (llama, gpt2 or t5, chat template) -> imported model folder."""

    def make(name: str, chat_template: str | None = None, **tokens: str | None) -> Path:
        from transformers import set_seed

        folder = tmp_path_factory.mktemp(name)
        set_seed(0)
        {"llama": llama, "gpt2": gpt2, "t5": t5}[name](folder / "model", **tokens)
        if chat_template is not None:
            (folder / "model" / "chat_template.jinja").write_text(chat_template)
        imported = Model(folder / "model_selector_output")
        execute(
            steps.load("model_import")(pytorch_model_path=CustomModel(folder / "model"), model_selector_output=imported)
        )
        return imported.path

    return make


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TASK_MODELS = {  # what the fixture `decoder` makes, where it is not the tiny BERT
    "summarization": ("t5",),
    "translation": ("llama",),
    "text_generation": ("gpt2",),
    "chat_completion": ("llama", CHATML),
}


@pytest.fixture(scope="session")
def task_model(imported_model: Path, decoder: Any) -> Callable[[str], Path]:
    """Return a function task -> imported folder of a tiny model for it, made once."""
    return cache(lambda task: decoder(*TASK_MODELS[task]) if task in TASK_MODELS else imported_model)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A task's tiny model and rows: 16 to train on, so two steps an epoch."""

    task: str
    model: Path
    prepared: Path

    def stage(self, **values: Any) -> Any:
        inputs = {"model_selector_output": self.model, "preprocess_output": self.prepared}
        return steps.load("finetune", self.task)(**inputs, **values)


@pytest.fixture(scope="session")
def ready(
    task_model: Callable[[str], Path],
    task_rows: list[dict[str, Any]],
    task_columns: dict[str, dict[str, Any]],
    write_jsonl: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Ready]:
    """By task."""

    @cache
    def make(task: str) -> Ready:
        folder = tmp_path_factory.mktemp(task)
        splits = {"train": task_rows[:16], "validation": task_rows[30:36], "test": task_rows[40:46]}
        files = {f"{n}_file_path": write_jsonl(folder / f"{n}.jsonl", rows) for n, rows in splits.items()}
        model, prepared = task_model(task), folder / "preprocess_output"
        preprocess = steps.load("preprocess", task)
        execute(preprocess(model_selector_output=model, preprocess_output=prepared, **task_columns[task], **files))
        return Ready(task=task, model=model, prepared=prepared)

    return make
