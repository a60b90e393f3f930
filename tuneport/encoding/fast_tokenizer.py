"""Byte-level BPE tokenizers by fastokens, many times as fast as the tokenizers library, where the ids are the same."""

from __future__ import annotations

import json
import random
import typing as t
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tuneport.encoding.located import Locate, Spans, library_located, within
from tuneport.encoding.token_ids import Lengths, ToIds, TokenIds, concatenate, library_ids, uncut

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer

PROBES = (
    "",
    " ",
    "a",
    "Hello, world!",
    "don't I'LL we're they'd It's 'tis",
    "  two  spaces   three ",
    "\t\n \r\n\r\n x \n",
    "x" * 300,
    "ab" * 200,
    " " * 70,
    "\n" * 40,
    "1234567890 3.14 1,000,000 0x1F 12:30",
    "snake_case CamelCase --flag",
    "def f(x):\n    return x**2  # twice\n",
    '{"a": [1, 2.5, null], "b": "\\u00e9\\n"}',
    "https://a.b/c?d=e&f=%20#g",
    "é e\u0301 ﬁ Ⅷ ½ ² ß İ ı ǅ",
    "naïve café — “quoted” … ‘single’ don’t",
    "日本語のテキスト。中文，标点！한국어",
    "ภาษาไทย",
    "العربية ١٢٣ فارسی",
    "हिन्दी १२३",
    "עברית",
    "Ελληνικά Кириллица",
    "👩‍👩‍👧 👍🏽 🇫🇷 ☕️",
    "\u00a0\u2003\u3000\u200b\ufeff\u2028x",
    "\x00\x01\x07\x1f\x7f\x85",
    "a\u0300\u0301\u0302b",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "\U000e0041\U0010fffd",
    "<|x|> <s> </s> [INST] <|",
    "▁▁a ĠĊ Ġ",
)
RANDOM_PROBES = 200
RANGES = (
    (0x20, 0x7E),
    (0x20, 0x7E),
    (0, 0x2FF),
    (0x300, 0x1FFF),
    (0x2000, 0x2BFF),
    (0x3000, 0xD7FF),
    (0xE000, 0x1FFFF),
)
SPACE = "Ġ"  # as vocabularies of bytes write it
SHOWN = 40  # characters of a text that a message shows


class Unfit(Exception):
    """A tokenizer that is not encoded with the fast core; the message is the reason."""


class FastTokenizer:
    """Texts to token ids without special tokens around them, as `library_ids` gives them; nothing is cut.

    ``tokenizer`` is the library's, which cuts at ``max_length`` and, with ``cuts_start``, at the start. Raises `Unfit`
    for one that the core does not know or encodes otherwise.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        cutting: t.Any = tokenizer.truncation
        self.tokenizer = tokenizer
        self.max_length, self.cuts_start = int(cutting["max_length"]), cutting["direction"] == "left"
        self.core = _core(tokenizer.to_str())
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        for text in probes(special):
            found = self._by_core([text])
            wanted = tokenizer.encode(text, add_special_tokens=False).ids
            if found and found.cut(self.max_length, start=self.cuts_start).values.tolist() != wanted:
                raise Unfit(f"it encodes {text[:SHOWN]!r} otherwise than the tokenizers library")

    def __call__(self, texts: Sequence[str]) -> TokenIds:
        return self._by_core(texts) or self._by_library(texts)

    def located(self, texts: Sequence[str], spans: Sequence[Spans]) -> tuple[TokenIds, TokenIds]:
        """As `library_located`: where tokens stand follows from how many bytes each stands for."""
        ids = self._by_core(texts)
        if ids is None:
            return self._library_located(texts, spans)
        encoded = [text.encode() for text in texts]
        sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
        widths = self._bytes.widths[ids.values]
        whole = np.bincount(ids.rows, widths, len(texts)) == sizes
        whole &= [self._is_as_written(text) for text in texts]
        if not whole.all():  # something was changed before it became tokens
            others, theirs = self._library_located(_where(~whole, texts, ""), _where(~whole, spans, ()))
            ids, own = self.located(_where(whole, texts, ""), _where(whole, spans, ()))
            return concatenate(ids, others), concatenate(own, theirs)
        ends = widths.cumsum() - (sizes.cumsum() - sizes)[ids.rows]
        starts = ends - widths
        if self._trims:
            starts = np.minimum(starts + self._bytes.leading[ids.values], ends)
            ends = np.maximum(ends - self._bytes.trailing[ids.values], starts)
        return ids, within(ids, starts, ends, [_in_bytes(*pair) for pair in zip(texts, spans, strict=True)], sizes)

    def _is_as_written(self, text: str) -> bool:
        """Whether the tokens are of the text as it is, and where they stand does not depend on its first place."""
        normalizer: t.Any = self.tokenizer.normalizer
        return not (self._trims and text[:1] == " ") and (normalizer is None or normalizer.normalize_str(text) == text)

    @cached_property
    def _trims(self) -> bool:
        """Whether tokens are said to stand where they do without the space around them."""
        return '"trim_offsets": true' in json.dumps(json.loads(self.tokenizer.to_str())["post_processor"])

    @cached_property
    def _bytes(self) -> Bytes:
        return Bytes.of(self.tokenizer)

    @cached_property
    def _library_located(self) -> Locate:
        return library_located(self._whole)

    def _by_core(self, texts: Sequence[str]) -> TokenIds | None:
        """None where a text has a byte that the vocabulary lacks, which the tokenizers library leaves out."""
        try:
            values, ends = self.core.encode_batch_flat(list(texts))
        except ValueError:
            return None
        places = np.frombuffer(ends, np.int64)
        return TokenIds(np.frombuffer(values, np.int32), places[1:] - places[:-1])

    @cached_property
    def _by_library(self) -> ToIds:
        return library_ids(self._whole)

    @cached_property
    def _whole(self) -> Tokenizer:
        """The library's, which does not cut."""
        return uncut(self.tokenizer)


@dataclass(frozen=True)
class Bytes:
    """By token id, how many bytes of a text a token stands for, and how many spaces are its first and last ones."""

    widths: Lengths
    leading: Lengths
    trailing: Lengths

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Bytes:
        added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
        vocabulary = {i: token for token, i in tokenizer.get_vocab().items()} | added
        found = cls(*(np.zeros(max(vocabulary) + 1, np.int64) for _ in range(3)))
        for i, token in vocabulary.items():  # of a vocabulary of bytes, each character is one
            found.widths[i] = len(token.encode()) if i in added else len(token)
            found.leading[i] = len(token) - len(token.lstrip(SPACE))
            found.trailing[i] = len(token) - len(token.rstrip(SPACE))
        return found


def _where(wanted: npt.NDArray[np.bool_], values: Sequence[t.Any], other: t.Any) -> list[t.Any]:
    return [value if chosen else other for value, chosen in zip(values, wanted.tolist(), strict=True)]


def _in_bytes(text: str, spans: Spans) -> Spans:
    if text.isascii():
        return spans
    return [(len(text[:start].encode()), len(text[:end].encode())) for start, end in spans]


def _core(description: str) -> t.Any:
    try:
        from fastokens import Tokenizer
    except ImportError as e:
        raise Unfit(f"fastokens cannot be imported ({e})") from None
    try:
        try:
            core = Tokenizer.from_json_str(description)
        except ValueError:  # perhaps of the special tokens around a text, which are not asked for
            core = Tokenizer.from_json_str(json.dumps(json.loads(description) | {"post_processor": None}))
    except Exception as e:  # the library's errors have no common base
        raise Unfit(" ".join(str(e).split())) from None
    core.no_truncation()
    core.no_padding()
    return core


def is_byte_level_bpe(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer cuts texts into pieces of bytes."""
    return type(tokenizer.model).__name__ == "BPE" and "ByteLevel" in repr(tokenizer.pre_tokenizer)


def probes(added_tokens: t.Iterable[str]) -> Iterator[str]:
    """Texts that tell tokenizers apart: of many kinds, of random characters, and around each added token."""
    yield from PROBES
    rng = random.Random(0)
    for _ in range(RANDOM_PROBES):
        ranges = (rng.choices(RANGES, k=rng.randint(1, 6)) for _ in range(6))
        words = ("".join(chr(int(rng.uniform(low, high + 1))) for low, high in word) for word in ranges)
        yield rng.choice((" ", "  ", "\n", "")).join(words)
    for token in added_tokens:
        yield from (token, f"a{token}b", f" {token}  {token}\n{token[:-1]} {token.upper()} x")
