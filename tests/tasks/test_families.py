"""Every family of models goes from import to served answers, with its own kind of tokenizer, tokens and limits."""

import itertools
import json
import math
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import steps
from tuneport import tasks
from tuneport.artifacts import CustomModel, Model
from tuneport.data.prepared import Prepared
from tuneport.stage import execute

pytestmark = pytest.mark.slow

LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits + string.punctuation
POSITIONS = 160

# -- tokenizers --------------------------------------------------------------------------------------------------------


def bytes_of(special: list[str], single: str, pair: str, split: bool = False) -> Any:
    """Byte-level BPE without merges, one token a byte; ``split`` by a pattern of its own, as Qwen and Llama 3 do."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    pieces = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level]) if split else byte_level
    if split:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return finished(tokenizer, special, single, pair)


def pieces_of(special: list[str], single: str, pair: str, gemma: bool = False) -> Any:
    """SentencePiece's BPE with bytes for what it does not know, as Llama 2, Mistral, Phi-3 and Gemma have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {token: i for i, token in enumerate([*special, *bytes_, "▁", *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = spaces if gemma else normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    if gemma:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(back if gemma else [*back, decoders.Strip(" ", 1, 0)])
    return finished(tokenizer, special, single, pair)


def unigrams_of(special: list[str], single: str, pair: str) -> Any:
    """SentencePiece's unigram model, as T5, mBART, NLLB, Marian and DeBERTa-v3 have it; known words are one piece."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["what", "is", "tell", "me", "about", "red", "blue", "cat", "dog", "colour", "animal", "number", "which"]
    vocabulary = [*((token, 0.0) for token in special), ("▁", -3.0), *((letter, -6.0) for letter in LETTERS)]
    vocabulary += [(f"▁{word}", -2.0) for word in words]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=special.index("<unk>" if "<unk>" in special else "[UNK]")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return finished(tokenizer, special, single, pair)


def finished(tokenizer: Any, special: list[str], single: str, pair: str) -> Any:
    from tokenizers import processors

    tokenizer.add_special_tokens(special)
    named = [(token, i) for i, token in enumerate(special) if token in f"{single} {pair}".split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=named)
    return tokenizer


# -- families ----------------------------------------------------------------------------------------------------------

HIDDEN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GROUPED = {**HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SIDES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))
}
BART = {"d_model": 32, "max_position_embeddings": POSITIONS, "init_std": 0.1, **SIDES}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
LONG = {"max_position_embeddings": POSITIONS}

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A tokenizer and an architecture of transformers, as their checkpoints name them."""

    architecture: str
    config: dict[str, Any]
    tokenizer: Callable[[list[str], str, str], Any]
    special: list[str]
    single: str  # what stands around a text
    pair: str  # and around two
    tokenizer_config: dict[str, Any]
    chat_template: str | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)  # by task, what preprocess has to be told


CLS = {"special": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "single": "[CLS] $A [SEP]"}
CLS_TOKENS = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
BERT_PAIR = "[CLS] $A [SEP] $B:1 [SEP]:1"
S_AROUND = {"single": "<s> $A </s>", "pair": "<s> $A </s> </s> $B </s>"}
S_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
S_TOKENS |= {"unk_token": "<unk>"}
S_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
END = {"single": "$A </s>", "pair": "$A </s> $B </s>"}
NOTHING = {"single": "$A", "pair": "$A $B"}
END_OF_TEXT = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
LLAMA = {"single": "<s> $A", "pair": "<s> $A <s>:1 $B:1"}
LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
QWEN: dict[str, Any] = {
    "tokenizer": lambda *parts: bytes_of(*parts, split=True),
    "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    **NOTHING,
    "tokenizer_config": {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 131072,
    },
    "chat_template": CHATML,
}
GEMMAS: dict[str, Any] = {
    "tokenizer": lambda *parts: pieces_of(*parts, gemma=True),
    "special": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    "single": "<bos> $A",
    "pair": "<bos> $A <bos>:1 $B:1",
    "tokenizer_config": {
        "tokenizer_class": "GemmaTokenizer",
        **{f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
        "model_max_length": int(1e30),
    },
    "chat_template": GEMMA,
}
GEMMA_IDS = {"pad_token_id": 0, "eos_token_id": [1, 5], "bos_token_id": 2}
CODES = ["en_XX", "de_DE"]

FAMILIES = {
    "roberta": Family(
        architecture="Roberta",
        config={**HIDDEN, **S_IDS, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
        tokenizer=bytes_of,
        special=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        **S_AROUND,
        tokenizer_config={"tokenizer_class": "RobertaTokenizer", **S_TOKENS, "model_max_length": 512},
    ),
    "xlm-roberta": Family(
        architecture="XLMRoberta",
        config={**HIDDEN, **S_IDS, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
        tokenizer=unigrams_of,
        special=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        **S_AROUND,
        tokenizer_config={"tokenizer_class": "XLMRobertaTokenizer", **S_TOKENS, "model_max_length": 512},
    ),
    "deberta": Family(
        architecture="Deberta",
        config={**HIDDEN, **LONG, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
        tokenizer=bytes_of,
        **CLS,
        pair=BERT_PAIR,
        tokenizer_config={"tokenizer_class": "DebertaTokenizer", **CLS_TOKENS, "model_max_length": 512},
    ),
    "deberta-v2": Family(
        architecture="DebertaV2",
        config={
            **HIDDEN,
            **LONG,
            "relative_attention": True,
            "position_buckets": 16,
            "share_att_key": True,
            "type_vocab_size": 0,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
        },
        tokenizer=unigrams_of,
        **CLS,
        pair=BERT_PAIR,
        tokenizer_config={"tokenizer_class": "DebertaV2Tokenizer", **CLS_TOKENS, "model_max_length": int(1e30)},
    ),
    "distilbert": Family(
        architecture="DistilBert",
        config={"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, **LONG},
        tokenizer=unigrams_of,
        **CLS,
        pair=BERT_PAIR,
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **CLS_TOKENS, "model_max_length": 512},
    ),
    "modernbert": Family(
        architecture="ModernBert",
        config={
            **HIDDEN,
            **LONG,
            "num_hidden_layers": 3,
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        tokenizer=bytes_of,
        **CLS,
        pair="[CLS] $A [SEP] $B [SEP]",
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **CLS_TOKENS, "model_max_length": 8192},
    ),
    "gpt2": Family(
        architecture="GPT2",
        config={
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": POSITIONS,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        tokenizer=bytes_of,
        special=["<|endoftext|>"],
        **NOTHING,
        tokenizer_config={"tokenizer_class": "GPT2Tokenizer", **END_OF_TEXT, "model_max_length": 1024},
    ),
    "llama": Family(
        architecture="Llama",
        config={**GROUPED, **LONG, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False},
        tokenizer=pieces_of,
        special=["<unk>", "<s>", "</s>"],
        **LLAMA,
        tokenizer_config={"tokenizer_class": "LlamaTokenizer", **LLAMA_TOKENS, "model_max_length": int(1e30)},
        chat_template=INST,
    ),
    "mistral": Family(
        architecture="Mistral",
        config={**GROUPED, **LONG, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 16},
        tokenizer=pieces_of,
        special=["<unk>", "<s>", "</s>"],
        **LLAMA,
        tokenizer_config={"tokenizer_class": "LlamaTokenizer", **LLAMA_TOKENS, "model_max_length": int(1e30)},
        chat_template=INST,
    ),
    "qwen2": Family(
        architecture="Qwen2",
        config={**GROUPED, **LONG, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": True},
        **QWEN,
    ),
    "qwen3": Family(
        architecture="Qwen3",
        config={**GROUPED, **LONG, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": True},
        **QWEN,
    ),
    "gemma": Family(architecture="Gemma", config={**GROUPED, **LONG, **GEMMA_IDS}, **GEMMAS),
    "gemma2": Family(
        architecture="Gemma2",
        config={**GROUPED, **LONG, **GEMMA_IDS, "sliding_window": 16, "query_pre_attn_scalar": 8},
        **GEMMAS,
    ),
    "gemma3": Family(
        architecture="Gemma3Text",
        config={
            **GROUPED,
            **LONG,
            **GEMMA_IDS,
            "sliding_window": 16,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        **GEMMAS,
    ),
    "phi": Family(
        architecture="Phi",
        config={**HIDDEN, **LONG, "partial_rotary_factor": 0.5, "bos_token_id": 0, "eos_token_id": 0},
        tokenizer=bytes_of,
        special=["<|endoftext|>"],
        **NOTHING,
        tokenizer_config={"tokenizer_class": "CodeGenTokenizer", **END_OF_TEXT, "model_max_length": 2048},
    ),
    "phi3": Family(
        architecture="Phi3",
        config={
            **GROUPED,
            **LONG,
            "original_max_position_embeddings": POSITIONS,
            "bos_token_id": 1,
            "eos_token_id": 3,
            "pad_token_id": 3,
            "sliding_window": 16,
        },
        tokenizer=pieces_of,
        special=["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"],
        **NOTHING,
        tokenizer_config={
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<unk>",
            "model_max_length": 4096,
        },
        chat_template=PHI,
    ),
    "t5": Family(
        architecture="T5",
        config={**T5, "pad_token_id": 0, "eos_token_id": 1},
        tokenizer=unigrams_of,
        special=["<pad>", "</s>", "<unk>"],
        **END,
        tokenizer_config={
            "tokenizer_class": "T5Tokenizer",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "model_max_length": POSITIONS,
        },
    ),
    "bart": Family(
        architecture="Bart",
        config={**BART, **S_IDS, "decoder_start_token_id": 2, "forced_eos_token_id": 2},
        tokenizer=bytes_of,
        special=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        **S_AROUND,
        tokenizer_config={"tokenizer_class": "BartTokenizer", **S_TOKENS, "model_max_length": 1024},
    ),
    "mbart": Family(
        architecture="MBart",
        config={**BART, **S_IDS},
        tokenizer=unigrams_of,
        special=["<s>", "<pad>", "</s>", "<unk>", *CODES],
        single="$A </s> en_XX",
        pair="$A $B </s> en_XX",
        tokenizer_config={
            "tokenizer_class": "MBartTokenizer",
            **S_TOKENS,
            "src_lang": "en_XX",
            "model_max_length": 1024,
        },
        preprocess={"translation": {"source_lang_code": "en_XX", "target_lang_code": "de_DE"}},
    ),
    "mbart50": Family(
        architecture="MBart",
        config={**BART, **S_IDS, "decoder_start_token_id": 2},
        tokenizer=unigrams_of,
        special=["<s>", "<pad>", "</s>", "<unk>", *CODES],
        single="en_XX $A </s>",
        pair="en_XX $A $B </s>",
        tokenizer_config={
            "tokenizer_class": "MBart50Tokenizer",
            **S_TOKENS,
            "src_lang": "en_XX",
            "model_max_length": 1024,
        },
        preprocess={"translation": {"source_lang_code": "en_XX", "target_lang_code": "de_DE"}},
    ),
    "nllb": Family(
        architecture="M2M100",
        config={**BART, **S_IDS, "decoder_start_token_id": 2},
        tokenizer=unigrams_of,
        special=["<s>", "<pad>", "</s>", "<unk>", "eng_Latn", "deu_Latn"],
        single="eng_Latn $A </s>",
        pair="eng_Latn $A $B </s>",
        tokenizer_config={
            "tokenizer_class": "NllbTokenizer",
            **S_TOKENS,
            "src_lang": "eng_Latn",
            "model_max_length": 1024,
        },
        preprocess={"translation": {"source_lang_code": "eng_Latn", "target_lang_code": "deu_Latn"}},
    ),
    "m2m100": Family(
        architecture="M2M100",
        config={**BART, **S_IDS, "decoder_start_token_id": 2},
        tokenizer=unigrams_of,
        special=["<s>", "<pad>", "</s>", "<unk>", "__en__", "__de__"],
        single="__en__ $A </s>",
        pair="__en__ $A $B </s>",
        tokenizer_config={"tokenizer_class": "M2M100Tokenizer", **S_TOKENS, "model_max_length": 1024},
        preprocess={"translation": {"source_lang_code": "en", "target_lang_code": "de"}},
    ),
    "marian": Family(
        architecture="Marian",
        config={**BART, "pad_token_id": 2, "eos_token_id": 0, "decoder_start_token_id": 2, "forced_eos_token_id": 0},
        tokenizer=unigrams_of,
        special=["</s>", "<unk>", "<pad>"],
        **END,
        tokenizer_config={
            "tokenizer_class": "MarianTokenizer",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "model_max_length": 512,
        },
    ),
}

CLASSIFIED = ("text_classification", "token_classification", "question_answering")
ENCODERS = ("roberta", "xlm-roberta", "deberta", "deberta-v2", "distilbert", "modernbert")
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi", "phi3")
ENCODER_DECODERS = ("t5", "bart", "mbart", "mbart50", "nllb", "m2m100", "marian")
CHAINS = [
    *itertools.product(CLASSIFIED, ENCODERS),
    *itertools.product(("text_classification", "text_generation"), DECODERS),
    *(("token_classification", name) for name in DECODERS if name != "gemma3"),
    *(("question_answering", name) for name in ("gpt2", "llama", "mistral", "qwen2", "qwen3", "t5", "bart", "mbart")),
    *(("chat_completion", name) for name in DECODERS if FAMILIES[name].chat_template),
    *itertools.product(("translation", "summarization"), ENCODER_DECODERS),
    *(("summarization", name) for name in ("qwen3", "gemma2", "phi3")),
    *(("translation", name) for name in ("gpt2", "mistral")),
    *(("text_classification", name) for name in ("t5", "bart", "mbart")),
    ("token_classification", "t5"),
]


def head_of(family: Family, name: str) -> str:
    """The class that a family's checkpoints are of: a model without a head, or one that writes text."""
    if name in ENCODERS:
        return f"{family.architecture}Model"
    if name == "gpt2":
        return "GPT2LMHeadModel"
    if name == "gemma3":
        return "Gemma3ForCausalLM"
    if name == "marian":
        return "MarianMTModel"
    return f"{family.architecture}For{'CausalLM' if name in DECODERS else 'ConditionalGeneration'}"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The imported folder of a family's tiny model, of random weights."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        import transformers as tf

        if name in made:
            return made[name]
        family, folder = FAMILIES[name], tmp_path_factory.mktemp(name)
        tokenizer = family.tokenizer(family.special, family.single, family.pair)
        tf.set_seed(0)
        config = getattr(tf, f"{family.architecture}Config")(vocab_size=tokenizer.get_vocab_size() + 3, **family.config)
        getattr(tf, head_of(family, name))(config).save_pretrained(folder / "model")
        tokenizer.save(str(folder / "model" / "tokenizer.json"))
        (folder / "model" / "tokenizer_config.json").write_text(json.dumps(family.tokenizer_config))
        if family.chat_template:
            (folder / "model" / "chat_template.jinja").write_text(family.chat_template)
        values = {"pytorch_model_path": CustomModel(folder / "model"), "model_selector_output": Model(folder / "base")}
        execute(steps.load("model_import")(**values))
        made[name] = folder / "base"
        return made[name]

    return make


def encoded_alike(one: Path, other: Path) -> bool:
    from tokenizers import Tokenizer

    first, second = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (one, other))
    texts = ["tell me about  red cats, please?", " 7 Ünder\n\nlined_words", "blue"]
    first.no_truncation()
    second.no_truncation()
    return all(first.encode(text).ids == second.encode(text).ids for text in texts) and (
        first.encode("red", "cat").ids == second.encode("red", "cat").ids
    )


@pytest.mark.parametrize(("task_name", "name"), CHAINS)
def test_a_family_does_a_task_from_import_to_served_answers(
    task_name: str,
    name: str,
    *,
    imported: Callable[[str], Path],
    task_rows: list[dict[str, Any]],
    task_columns: dict[str, dict[str, Any]],
    write_jsonl: Any,
    tmp_path: Path,
) -> None:
    import mlflow

    base, task = imported(name), tasks.load(task_name)
    columns = {**task_columns[task_name], **FAMILIES[name].preprocess.get(task_name, {})}
    data, prepared = write_jsonl(tmp_path / "rows.jsonl", task_rows), tmp_path / "data"
    values = {"model_selector_output": base, "preprocess_output": prepared}
    execute(steps.load("preprocess", task_name)(**values, **columns, train_file_path=data))
    tuned = tmp_path / "tuned"
    training = {"max_steps": 6, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
    training |= {"learning_rate": 1e-2, "logging_steps": 1, "group_by_length": True}
    execute(steps.load("finetune", task_name)(**values, **training, pytorch_model_folder=tuned))
    log = json.loads((tuned / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert all(map(math.isfinite, losses)) and (losses[-1] < losses[0] or task_name in CLASSIFIED), losses
    assert encoded_alike(base, tuned)

    exported, report = tmp_path / "exported", tmp_path / "report"
    short = {"max_new_tokens": 6} if "max_new_tokens" in steps.load("model_export", task_name).ports() else {}
    shown = {"generated_samples": 3} if "generated_samples" in steps.load("model_evaluation", task_name).ports() else {}
    tuned_on = {"pytorch_model_folder": tuned, "preprocess_output": prepared}
    execute(steps.load("model_export", task_name)(**tuned_on, **short, mlflow_model_folder=exported))
    execute(
        steps.load("model_evaluation", task_name)(
            **tuned_on, **short, **shown, model_selector_output=base, evaluation_result=report
        )
    )
    found = json.loads((report / "metrics.json").read_text())
    assert all(
        value is None or math.isfinite(value) for who in ("tuned", "base") for value in found[who]["metrics"].values()
    )

    info = Prepared(prepared).info
    predict = task.predictor(str(tuned), task.settings(info.meta, SimpleNamespace(**short)))
    rows = [task.example(row) for row in Prepared(prepared).rows("test")[:5]]
    rows = [
        {k: v for k, v in row.items() if k in task.serving_schema(info.columns, info.meta)[0].names} for row in rows
    ]
    rows.append(longer(rows[0]))
    if task_name in ("text_classification", "token_classification"):
        rows.append({next(iter(rows[0])): ""})
    together = predict(rows, batch_size=4)
    alone = [predict([row], batch_size=1)[0] for row in rows]
    assert close(together, alone), (together, alone)

    model = mlflow.pyfunc.load_model(str(exported))
    asked = [{info.columns.get(field, field): value for field, value in row.items()} for row in rows]
    assert close(model.predict(asked).to_dict("records"), together)


def longer(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a text that no model takes whole."""
    field = next(f for f in ("messages", "context", "document", "source", "tokens", "text", "sentence1") if f in row)
    if field == "messages":
        return {**row, "messages": [{**turn, "content": turn["content"] * 40} for turn in row["messages"]]}
    return {**row, field: row[field] * 40 if field == "tokens" else (row[field] + " ") * 40}


def close(one: Any, other: Any) -> bool:
    """Whether answers are equal but for the last digits of numbers."""
    if isinstance(one, dict):
        return bool(one.keys() == other.keys() and all(close(one[key], other[key]) for key in one))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return bool(one == (pytest.approx(other, abs=1e-4) if isinstance(other, float) else other))
