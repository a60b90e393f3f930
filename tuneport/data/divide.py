"""Between the passes: remove duplicates, give every row its split, and say what may leak."""

from __future__ import annotations

import logging
import typing as t
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from tuneport.data.data_report import duplicates_report, groups_report, near_duplicates_report
from tuneport.data.duplicates import Duplicates, find_duplicates, repeated_rows
from tuneport.data.mixtures import Parts, leave_out
from tuneport.data.near_duplicates import NearDuplicates
from tuneport.data.options import PrepareParams
from tuneport.data.read_rows import Collected
from tuneport.data.source_count import SourceCount
from tuneport.data.splits import (
    REMOVED,
    SPLITS,
    Codes,
    assign_group_splits,
    assign_input_splits,
    assign_splits,
    joined_groups,
)
from tuneport.errors import UserError

log = logging.getLogger("tuneport.preprocess")

Leakage = dict[str, dict[str, t.Any]]


def divide(
    collected: Collected, options: PrepareParams, find_near_duplicates: Callable[[], NearDuplicates]
) -> tuple[Codes, Callable[[], Leakage]]:
    """Return the split of each row (or `REMOVED`) and a function that finds what the data report says of duplicates
    and groups, and warns of what may leak.

    Near duplicates are waited for here only where they are removed. Raises `UserError` where too few rows are left.
    """
    identities = np.frombuffer(collected.identities, np.uint64)
    classes = np.frombuffer(collected.classes, np.int32)
    sources, parts = collected.source_codes(), collected.parts()
    contents = np.frombuffer(collected.contents, np.uint64)
    same_inputs = find_duplicates(identities)
    duplicates, other_reference = repeated_rows(same_inputs, contents, sources)
    other_label = int((classes[duplicates.rows] != classes[duplicates.originals]).sum())
    others = {"with_another_reference": other_reference} if len(contents) else {"with_another_label": other_label}
    splits = np.full(len(sources), REMOVED, np.uint8)
    keep = np.ones(len(sources), bool)
    if options.deduplicate != "none":
        keep[duplicates.rows] = False
        _note_removed(collected, parts, duplicates, others)
    if options.deduplicate == "near":
        near_duplicates = _with_other_answers(find_near_duplicates(), same_inputs, keep)
        keep[near_duplicates.rows] = False
        _note_near_removed(collected, parts, near_duplicates, classes)
    leave_out(collected.sources, keep, parts, options.split_seed)
    for split in collected.sources:
        _check_left(split, int((sources[keep] == SPLITS.index(split)).sum()), collected.total(split))
    strata = _rarest_label(classes, collected.class_labels)
    if collected.mixture("train"):  # each split has the shares of the whole
        strata = strata * len(collected.counts) + parts
    ratios: dict[str, t.Any] = {
        "validation_ratio": options.validation_split_ratio,
        "test_ratio": options.test_split_ratio,
        "seed": options.split_seed,
    }
    groups = np.frombuffer(collected.groups, np.uint64)
    if len(contents):
        _check_inputs(identities[keep & (sources == 0)], collected)
    if options.group_key is not None:
        _check_groups(groups[keep & (sources == 0)], options.group_key, collected)
        together = joined_groups(groups[keep], identities[keep]) if len(contents) else groups[keep]
        splits[keep] = assign_group_splits(sources[keep], strata[keep], together, collected.sources, **ratios)
    elif len(contents):
        splits[keep] = assign_input_splits(sources[keep], strata[keep], identities[keep], collected.sources, **ratios)
    else:
        splits[keep] = assign_splits(sources[keep], strata[keep], collected.sources, **ratios)
    _check_sizes(splits, collected.total("train"), options)
    if options.deduplicate == "none":
        duplicates = duplicates.of(keep[duplicates.rows])

    def leakage() -> Leakage:
        removed = options.deduplicate == "near"
        found = near_duplicates if removed else find_near_duplicates()
        near = found if removed else found.of(keep[found.rows] & keep[found.originals])
        reports = {
            "duplicates": duplicates_report(
                options.deduplicate,
                duplicates,
                splits=splits,
                sources=sources,
                identities=identities,
                contents=contents,
                others=others,
            ),
            "near_duplicates": near_duplicates_report(
                near,
                splits=splits,
                sources=sources,
                threshold=options.near_duplicate_threshold,
                removed=removed,
            ),
        }
        if options.group_key is not None:
            reports["groups"] = groups_report(options.group_key, groups, splits)
        _warn(reports)
        return reports

    return splits, leakage


def _check_groups(groups: npt.NDArray[np.uint64], group_key: str, collected: Collected) -> None:
    missing = [split for split in SPLITS if split not in collected.sources]
    found = len(np.unique(groups))
    if missing and found <= len(missing):
        held = "all are of one group" if found == 1 else f"are of {found} groups"
        raise UserError(
            f"group_key='{group_key}': the {len(groups)} training rows of {collected.total('train').file} {held}; "
            f"expected at least {len(missing) + 1}, as a group stays in one split and {' and '.join(missing)} rows are "
            f"taken from them. Give {' and '.join(f'{split}_file_path' for split in missing)}, or group by another "
            "column."
        )


def _check_inputs(inputs: npt.NDArray[np.uint64], collected: Collected) -> None:
    missing = [split for split in SPLITS if split not in collected.sources]
    found = len(np.unique(inputs))
    if missing and found <= len(missing):
        raise UserError(
            f"{collected.total('train').file}: its {len(inputs)} training rows have {found} different inputs; "
            f"expected at least {len(missing) + 1}, as the answers to one input stay in one split and "
            f"{' and '.join(missing)} rows are taken from them. Add rows, or give "
            f"{' and '.join(f'{split}_file_path' for split in missing)}."
        )


def _with_other_answers(near: NearDuplicates, same_inputs: Duplicates, keep: npt.NDArray[np.bool_]) -> NearDuplicates:
    """Near duplicates with the kept rows that have their inputs: where one goes, the other answers to it go."""
    original = dict(zip(near.rows.tolist(), near.originals.tolist(), strict=True))
    chosen = np.isin(same_inputs.originals, near.rows) & keep[same_inputs.rows]
    more = same_inputs.of(chosen)
    if not len(more.rows):
        return near
    rows = np.concatenate([near.rows, more.rows])
    originals = np.concatenate([near.originals, [original[row] for row in more.originals.tolist()]])
    return NearDuplicates(rows=rows, originals=originals, checked=near.checked)


def _warn(leakage: Mapping[str, Mapping[str, t.Any]]) -> None:
    """Say what may leak from one split into another and was left, and where rows are answers to one input."""
    if several := leakage["duplicates"].get("several_references"):
        log.info(
            "%s rows are different answers to %s inputs: they are kept, those to one input in one split",
            f"{several['rows']:,}",
            f"{several['inputs']:,}",
        )
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
    collected: Collected, parts: Parts, near: NearDuplicates, classes: npt.NDArray[np.int32]
) -> None:
    removed = np.bincount(parts[near.rows], minlength=len(collected.counts))
    for count, n in zip(collected.counts, removed.tolist(), strict=True):
        count.near_duplicates = n
    if not len(near.rows):
        return
    if len(collected.contents):
        log.warning("%s near duplicates removed", f"{len(near.rows):,}")
        return
    other_label = int((classes[near.rows] != classes[near.originals]).sum())
    log.warning("%s near duplicates removed, of which %s with another label", f"{len(near.rows):,}", f"{other_label:,}")


def _note_removed(collected: Collected, parts: Parts, duplicates: Duplicates, others: Mapping[str, int]) -> None:
    removed = np.bincount(parts[duplicates.rows], minlength=len(collected.counts))
    for count, n in zip(collected.counts, removed.tolist(), strict=True):
        count.duplicates = n
    if not len(duplicates.rows):
        return
    of_which = f", of which {others.get('with_another_label', 0):,} with another label"
    if len(collected.contents):
        n = others["with_another_reference"]
        of_which = f", of which {n:,} with another answer, as their inputs are in another split" if n else ""
    log.warning("%s duplicates removed%s", f"{len(duplicates.rows):,}", of_which)


def _check_left(split: str, left: int, count: SourceCount) -> None:
    if left == 0:
        raise UserError(
            f"{count.file}: none of its {count.read} rows is left for {split}: {count.dropped.total()} cannot be used "
            f"and {count.duplicates + count.near_duplicates} are duplicates. Expected at least one."
        )


def _check_sizes(splits: Codes, train: SourceCount, options: PrepareParams) -> None:
    sizes = {split: int((splits == code).sum()) for code, split in enumerate(SPLITS)}
    if sizes["train"] < options.min_rows:
        beyond = f", {train.left_out} beyond the weights" if train.left_out else ""
        raise UserError(
            f"{train.file}: leaves {sizes['train']} training rows ({train.read} read, {train.dropped.total()} "
            f"unusable, {train.duplicates + train.near_duplicates} duplicates{beyond}, the rest went to other splits); "
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
