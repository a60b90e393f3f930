"""Several sources of one split: which rows of each make the shares that are asked for, and what is said of that."""

from __future__ import annotations

import dataclasses as dc
import logging
import typing as t
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations

from tuneport.data.locate import DataFile, names_of
from tuneport.data.readers import Source
from tuneport.data.source_count import SourceCount
from tuneport.errors import UserError

if t.TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger("tuneport.preprocess")

LISTED_LABELS = 10
Parts: t.TypeAlias = "npt.NDArray[np.uint16]"


def told_apart(sources: Sequence[Source], option: str) -> tuple[Source, ...]:
    """Sources of one split with names that differ, those of their files among them.

    Raises `UserError` where two of them hold the same file.
    """
    if len(sources) < 2:
        return tuple(sources)
    names = iter(_names([shard.file for source in sources for shard in source.shards]))
    titles = _names([DataFile(address=source.path) for source in sources])
    seen: dict[str, str] = {}
    found = []
    for source, title in zip(sources, titles, strict=True):
        for shard in source.shards:
            if (other := seen.setdefault(shard.file.address.text, title)) != title:
                raise UserError(
                    f"{option}: {shard.name} is in {other} and in {title}; expected each file in one source. "
                    "Raise the weight of its source instead."
                )
        shards = tuple(dc.replace(shard, name=next(names)) for shard in source.shards)
        found.append(dc.replace(source, shards=shards, title=title))
    return tuple(found)


def _names(files: list[DataFile]) -> list[str]:
    names = names_of(files)
    return names if len(set(names)) == len(names) else [str(file.address) for file in files]


def shared_out(most: int | None, weights: Sequence[float | None], option: str) -> list[int | None]:
    """How many rows of each source are read where ``most`` rows are in all: by their weights, else as many of each.

    Raises `UserError` where one of them would be left without a row.
    """
    if most is None or len(weights) < 2:
        return [most] * len(weights)
    shares = _shares([1.0 if weight is None else weight for weight in weights])
    found = _rounded(shares, most)
    if not all(n or not share for n, share in zip(found, shares, strict=True)):
        raise UserError(
            f"{option}={most}: leaves a source without a row, as the {len(weights)} sources share them by their "
            "weights. Raise it."
        )
    return list(found)


def largest(weights: Sequence[float], available: Sequence[int]) -> list[int]:
    """How many rows of each source make the largest mixture with these shares and no row twice; exact to one row."""
    shares = _shares(weights)
    total = min(int(n / share) for n, share in zip(available, shares, strict=True) if share)
    return _rounded(shares, total)


def _shares(weights: Sequence[float]) -> list[Fraction]:
    exact = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth
    return [weight / sum(exact) for weight in exact]


def _rounded(shares: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers that sum to ``total``, each within one of its share; the largest remainders are rounded up."""
    exact = [share * total for share in shares]
    found = [int(rows) for rows in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: found[i] - exact[i])
    for i in by_remainder[: total - sum(found)]:
        found[i] += 1
    return found


def leave_out(
    sources: Mapping[str, Sequence[SourceCount]], keep: npt.NDArray[np.bool_], parts: Parts, seed: int
) -> None:
    """Clear ``keep`` (rows,) of what is beyond the asked shares; rows are drawn by ``seed``, none of them twice.

    ``parts`` (rows,): the source of each row, by its place among all ``sources``. Raises `UserError` where a source of
    a weight has no row left.
    """
    import numpy as np

    first = 0
    for split, counts in sources.items():
        weights = [count.weight for count in counts if count.weight is not None]
        if len(counts) > 1 and len(weights) == len(counts):
            codes = range(first, first + len(counts))
            rows = [np.flatnonzero(keep & (parts == code)) for code in codes]
            _check_rows(split, counts, [len(found) for found in rows])
            rng = np.random.default_rng(seed)
            for count, found, n in zip(counts, rows, largest(weights, [len(found) for found in rows]), strict=True):
                keep[rng.permutation(found)[n:]] = False
                count.left_out = len(found) - n
            _say(split, counts)
        first += len(counts)


def _check_rows(split: str, counts: Sequence[SourceCount], left: Sequence[int]) -> None:
    for count, n in zip(counts, left, strict=True):
        if count.weight and not n:
            raise UserError(
                f"{count.file} ({split}): none of its {count.read} rows is left ({count.dropped.total()} cannot be "
                f"used, the others are duplicates), so no mixture has its weight of {count.weight:g}. Leave the source "
                "out, or give it weight 0."
            )


def _say(split: str, counts: Sequence[SourceCount]) -> None:
    for entry in report(counts):
        log.info(
            "%s: %s of its rows are taken from %s, %.2f%% of the mixture (asked: %.2f%%); %s are left out",
            split,
            f"{entry['kept']:,}",
            entry["file"],
            100 * entry["share_got"],
            100 * entry["share_asked"],
            f"{entry['left_out']:,}",
        )


def report(counts: Sequence[SourceCount]) -> list[dict[str, t.Any]]:
    """What the data report says of each source of a mixture: the share that was asked for and the one it has."""
    kept = sum(count.kept for count in counts)
    weights = [count.weight for count in counts if count.weight is not None]
    shares = _shares(weights) if len(weights) == len(counts) else [None] * len(counts)
    return [
        {
            "file": count.file,
            **({} if share is None else {"weight": count.weight, "share_asked": round(float(share), 6)}),
            "share_got": round(count.kept / kept, 6) if kept else 0.0,
            **({"first_rows_only": count.max_rows} if count.max_rows is not None else {}),
            "read": count.read,
            "kept": count.kept,
            "left_out": count.left_out,
            "duplicates_removed": count.duplicates,
            "near_duplicates_removed": count.near_duplicates,
            "dropped": count.dropped.total(),
        }
        for count, share in zip(counts, shares, strict=True)
    ]


def check_labels(split: str, labels: Mapping[str, Counter[str]]) -> None:
    """Raise `UserError` where two sources, each with several labels, have none in common; ``labels``: by source.

    Else log which labels only some of them have.
    """
    for (one, ours), (other, theirs) in combinations(labels.items(), 2):
        if len(ours) > 1 and len(theirs) > 1 and not ours.keys() & theirs.keys():
            raise UserError(
                f"{one} and {other} ({split}) have no label in common: {one} has {_listed(ours)}, {other} has "
                f"{_listed(theirs)}. Spell them alike, or map the column that holds the same labels (columns)."
            )
    for source, found in labels.items():
        if lacking := set().union(*labels.values()) - found.keys():
            log.warning("%s (%s): has no row with %s", source, split, _listed(lacking))


def _listed(labels: Iterable[str]) -> str:
    found = sorted(labels)
    rest = f" and {len(found) - LISTED_LABELS} more" if len(found) > LISTED_LABELS else ""
    return ", ".join(repr(label) for label in found[:LISTED_LABELS]) + rest
