"""Between the passes: remove duplicates, give every row its split, and say what may leak."""

from __future__ import annotations

import logging
import typing as t
from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tuneport.data.data_report import duplicates_report, groups_report, near_duplicates_report
from tuneport.data.duplicates import Duplicates, find_duplicates
from tuneport.data.near_duplicates import NearDuplicateIndex, NearDuplicates
from tuneport.data.options import PrepareParams
from tuneport.data.read_rows import Collected, SourceCount
from tuneport.data.splits import REMOVED, SPLITS, Codes, assign_group_splits, assign_splits
from tuneport.errors import UserError

log = logging.getLogger("tuneport.preprocess")


def divide(
    collected: Collected, options: PrepareParams, near: NearDuplicateIndex
) -> tuple[Codes, dict[str, dict[str, t.Any]]]:
    """Return the split of each row (or `REMOVED`) and what the data report says of duplicates and groups.

    Raises `UserError` where too few rows are left.
    """
    identities = np.frombuffer(collected.identities, np.uint64)
    classes = np.frombuffer(collected.classes, np.int32)
    sources = collected.source_codes()
    duplicates = find_duplicates(identities)
    other_label = int((classes[duplicates.rows] != classes[duplicates.originals]).sum())
    splits = np.full(len(sources), REMOVED, np.uint8)
    keep = np.ones(len(sources), bool)
    if options.deduplicate != "none":
        keep[duplicates.rows] = False
        _note_removed(collected, sources, duplicates, other_label)
    near_duplicates = near.find(duplicates.rows, remove=options.deduplicate == "near")
    if options.deduplicate == "near":
        keep[near_duplicates.rows] = False
        _note_near_removed(collected, sources, near_duplicates, classes)
    for split, count in collected.sources.items():
        _check_left(split, int((sources[keep] == SPLITS.index(split)).sum()), count)
    strata = _rarest_label(classes, collected.class_labels)
    ratios: dict[str, t.Any] = {
        "validation_ratio": options.validation_split_ratio,
        "test_ratio": options.test_split_ratio,
        "seed": options.split_seed,
    }
    groups = np.frombuffer(collected.groups, np.uint64)
    if options.group_key is None:
        splits[keep] = assign_splits(sources[keep], strata[keep], collected.sources, **ratios)
    else:
        _check_groups(groups[keep & (sources == 0)], options.group_key, collected)
        splits[keep] = assign_group_splits(sources[keep], strata[keep], groups[keep], collected.sources, **ratios)
    _check_sizes(splits, collected.sources["train"], options)
    leakage = {
        "duplicates": duplicates_report(
            options.deduplicate,
            duplicates,
            splits=splits,
            sources=sources,
            identities=identities,
            other_label=other_label,
        ),
        "near_duplicates": near_duplicates_report(
            near_duplicates,
            splits=splits,
            sources=sources,
            threshold=near.threshold,
            removed=options.deduplicate == "near",
        ),
    }
    if options.group_key is not None:
        leakage["groups"] = groups_report(options.group_key, groups, splits)
    _warn(leakage)
    return splits, leakage


def _check_groups(groups: npt.NDArray[np.uint64], group_key: str, collected: Collected) -> None:
    missing = [split for split in SPLITS if split not in collected.sources]
    found = len(np.unique(groups))
    if missing and found <= len(missing):
        held = "all are of one group" if found == 1 else f"are of {found} groups"
        raise UserError(
            f"group_key='{group_key}': the {len(groups)} training rows of {collected.sources['train'].file} {held}; "
            f"expected at least {len(missing) + 1}, as a group stays in one split and {' and '.join(missing)} rows are "
            f"taken from them. Give {' and '.join(f'{split}_file_path' for split in missing)}, or group by another "
            "column."
        )


def _warn(leakage: Mapping[str, Mapping[str, t.Any]]) -> None:
    """Say what may leak from one split into another and was left."""
    near = leakage["near_duplicates"]
    if found := [f"{n:,} {where}" for where, n in near.get("across", {}).items() if n]:
        log.warning(
            "near duplicates across splits, %s (looked for in %s of %s rows): deduplicate=near removes them",
            ", ".join(found),
            f"{near['checked_rows']:,}",
            f"{near['rows']:,}",
        )
    for where, shared in leakage.get("groups", {}).get("across", {}).items():
        if shared["groups"]:
            log.warning(
                "%s groups are in both %s, as given, with %s rows",
                f"{shared['groups']:,}",
                where,
                f"{shared['rows']:,}",
            )


def _note_near_removed(
    collected: Collected, sources: Codes, near: NearDuplicates, classes: npt.NDArray[np.int32]
) -> None:
    removed = np.bincount(sources[near.rows], minlength=len(SPLITS))
    for split, count in collected.sources.items():
        count.near_duplicates = int(removed[SPLITS.index(split)])
    if len(near.rows):
        other_label = int((classes[near.rows] != classes[near.originals]).sum())
        log.warning(
            "%s near duplicates removed, of which %s with another label", f"{len(near.rows):,}", f"{other_label:,}"
        )


def _note_removed(collected: Collected, sources: Codes, duplicates: Duplicates, other_label: int) -> None:
    removed = np.bincount(sources[duplicates.rows], minlength=len(SPLITS))
    for split, count in collected.sources.items():
        count.duplicates = int(removed[SPLITS.index(split)])
    if len(duplicates.rows):
        log.warning(
            "%s duplicates removed, of which %s with another label", f"{len(duplicates.rows):,}", f"{other_label:,}"
        )


def _check_left(split: str, left: int, count: SourceCount) -> None:
    if left == 0:
        raise UserError(
            f"{count.file}: none of its {count.read} rows is left for {split}: {count.dropped.total()} cannot be used "
            f"and {count.duplicates + count.near_duplicates} are duplicates. Expected at least one."
        )


def _check_sizes(splits: Codes, train: SourceCount, options: PrepareParams) -> None:
    sizes = {split: int((splits == code).sum()) for code, split in enumerate(SPLITS)}
    if sizes["train"] < options.min_rows:
        raise UserError(
            f"{train.file}: leaves {sizes['train']} training rows ({train.read} read, {train.dropped.total()} "
            f"unusable, {train.duplicates + train.near_duplicates} duplicates, the rest went to other splits); "
            f"expected at least min_rows={options.min_rows}. Add rows or lower min_rows."
        )
    for split, size in sizes.items():
        if size == 0:
            raise UserError(
                f"{train.file}: no {'row' if options.group_key is None else 'group'} can be spared for {split}, as "
                f"every label needs one training {'row' if options.group_key is None else 'group'}. "
                f"Add rows, or give {split}_file_path."
            )


def _rarest_label(classes: npt.NDArray[np.int32], class_labels: list[tuple[str, ...]]) -> npt.NDArray[np.int32]:
    """The stratum of each row, (rows,): its label or, of several, the rarest, so that rare labels reach every split."""
    rows = np.bincount(classes, minlength=len(class_labels)).tolist()
    total: Counter[str] = Counter()
    for labels, n in zip(class_labels, rows, strict=True):
        total.update(dict.fromkeys(labels, n))
    code = {label: i for i, label in enumerate(sorted(total))}
    rarest = [code[min(labels, key=lambda label: (total[label], label))] if labels else -1 for labels in class_labels]
    return np.array(rarest, np.int32)[classes]


def label_histograms(collected: Collected, splits: Codes) -> dict[str, dict[str, int]]:
    """Rows by label, for each split."""
    classes = np.frombuffer(collected.classes, np.int32)
    histograms: dict[str, dict[str, int]] = {}
    for code, split in enumerate(SPLITS):
        found: Counter[str] = Counter()
        rows = np.bincount(classes[splits == code], minlength=len(collected.class_labels)).tolist()
        for labels, n in zip(collected.class_labels, rows, strict=True):
            if n:
                found.update(dict.fromkeys(labels, n))
        histograms[split] = dict(sorted(found.items()))
    return histograms
