"""What a label is: as transformers' losses take it, and when two spellings are one label."""

from __future__ import annotations

import re
import typing as t
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

IGNORED = -100  # in a label's place: there is none, and nothing is learnt there

EqualLabels = t.Literal["exact", "normal", "alike"]
# Characters that no one sees. Two of them join letters and emojis: those stay between characters beyond ASCII.
INVISIBLE = re.compile(
    "[\u00ad\u200b\u200e\u200f\u2060\ufeff]|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{0,40})?")


def normal(label: str) -> str:
    """A label as it is compared: composed (NFC), without invisible characters, its white space single and plain."""
    if label.isascii():
        return label if label.isalnum() else " ".join(label.split())
    return " ".join(INVISIBLE.sub("", unicodedata.normalize("NFC", label)).split())


def likeness(label: str) -> str:
    """What labels share that may be one: their letters in any case, or their value as a number."""
    return str(Fraction(label)) if NUMBER.fullmatch(label) else label.casefold()


class Spellings:
    """One spelling of each label, as ``equal`` says, and how many rows have another one."""

    def __init__(self, equal: EqualLabels) -> None:
        self.equal = equal
        self.known: dict[str, str] = {}  # spelling -> label
        self.same: set[str] = set()  # spellings that are labels themselves
        self.first: dict[str, str] = {}  # likeness -> label
        self.changed: Counter[str] = Counter()  # spelling -> how often

    def __call__(self, label: str) -> str:
        """The label that is meant by what a row holds; empty where it holds nothing to see."""
        found = self.known.get(label)
        if found is None:
            found = self.known[label] = self._label(label)
            if found == label:
                self.same.add(label)
        if found != label:
            self.changed[label] += 1
        return found

    def add(self, others: Iterable[tuple[str, str, int]]) -> None:
        """Take spellings, their labels and how many rows have another one than that, of rows that were read apart."""
        for spelling, label, changed in others:
            self.known[spelling] = label
            if spelling == label:
                self.same.add(label)
            if changed:
                self.changed[spelling] += changed

    def _label(self, spelling: str) -> str:
        if self.equal == "exact":
            return spelling
        label = normal(spelling)
        return self.first.setdefault(likeness(label), label) if self.equal == "alike" else label

    def merged(self) -> dict[str, dict[str, int]]:
        """By label, how often it is written otherwise, by spelling."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for spelling, n in self.changed.most_common():
            found[self.known[spelling]][spelling] = n
        return dict(found)


def ordered_as(labels: Sequence[str], ids: Mapping[str, t.Any]) -> list[str]:
    """The labels in the order of the ids by which a base model knows them, or in their own where it knows others."""
    for known in (dict(ids), {normal(label): i for label, i in ids.items()}):
        if set(known) == set(labels) and len(known) == len(ids):
            return sorted(labels, key=lambda label: int(known[label]))
    return list(labels)


def may_be(unseen: Iterable[str], known: Iterable[str]) -> str:
    """What to add to a message on labels that are unseen: which known one the first may be."""
    by_likeness = {likeness(label): label for label in known}
    pairs = ((label, by_likeness[likeness(label)]) for label in unseen if likeness(label) in by_likeness)
    return next((f" Is {a!r} the label {b!r}? equal_labels=alike makes them one." for a, b in pairs), "")


def alike(labels: Iterable[str]) -> list[list[str]]:
    """The labels that may be one, together: they differ in case only, or are equal as numbers."""
    found: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        found[likeness(label)].append(label)
    return [group for group in found.values() if len(group) > 1]
