"""Tiny language models with byte-level tokenizers, and the stages of a run on them."""

from pathlib import Path
from typing import Any

import pytest

import steps
from tuneport.artifacts import CustomModel, Model
from tuneport.stage import execute

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(begin: bool) -> Any:
    """One token a byte, ids from 5 on, with the special tokens named; ``begin`` puts <s> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(SPECIAL)
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


def gpt2(folder: Path, **tokens: str) -> None:
    """Has no token for the begin and the end of a text, nor one to pad with."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = byte_tokenizer(begin=False)
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

    def make(name: str, chat_template: str | None = None, **tokens: str) -> Path:
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
