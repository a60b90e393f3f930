"""Splits are seeded, stratified, disjoint and complete, and leave alone what was given."""

import numpy as np
import pytest

from tuneport.data.splits import SPLITS, assign_group_splits, assign_splits

TRAIN, VALIDATION, TEST = range(3)


def rows(*class_sizes: int) -> np.ndarray:
    """Class codes of shuffled rows."""
    codes = np.repeat(np.arange(len(class_sizes), dtype=np.int32), class_sizes)
    return np.random.default_rng(7).permutation(codes)


def assign(
    strata: np.ndarray,
    given: tuple[str, ...] = ("train",),
    seed: int = 0,
    source: np.ndarray | None = None,
    **ratios: float,
) -> np.ndarray:
    source = np.zeros(len(strata), np.uint8) if source is None else source
    return assign_splits(
        source,
        strata,
        given,
        validation_ratio=ratios.get("validation", 0.1),
        test_ratio=ratios.get("test", 0.1),
        seed=seed,
    )


SHAPES = [(100,), (50, 50), (997, 13, 2, 1), (3,) * 40, (1,) * 30 + (20,), (5, 5), tuple(range(1, 60))]


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.25, 0.05), (0.4, 0.5)])
def test_each_class_gives_its_share_to_within_one_row(sizes, validation, test):
    strata = rows(*sizes)
    split = assign(strata, validation=validation, test=test)
    for code, size in enumerate(sizes):
        taken = np.bincount(split[strata == code], minlength=3)
        assert taken[TRAIN] >= 1
        assert taken.sum() == size
        spare = size - 1
        assert abs(taken[VALIDATION] - size * validation) <= 1 + 1e-9 or taken[TRAIN] == 1
        assert (
            abs(taken[TEST] - size * test) <= 1 + 1e-9 or taken[TRAIN] == 1 or taken[VALIDATION] + taken[TEST] == spare
        )


@pytest.mark.parametrize("sizes", [(100,), (333, 334, 333), (4,) * 250, (997, 13, 7, 3)])
def test_the_whole_is_as_near_to_the_ratio_as_rows_allow(sizes):
    split = assign(rows(*sizes))
    n = sum(sizes)
    assert abs((split == VALIDATION).sum() - n * 0.1) <= 0.5
    assert abs((split == TEST).sum() - n * 0.1) <= 0.5


def test_a_class_of_one_row_goes_to_train():
    strata = rows(200, 1, 1, 1)
    for seed in range(20):
        split = assign(strata, seed=seed)
        assert (split[strata > 0] == TRAIN).all()


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    strata = rows(300, 200)
    assert (assign(strata, seed=3) == assign(strata, seed=3)).all()
    assert (assign(strata, seed=3) != assign(strata, seed=4)).any()


def test_rows_are_drawn_from_everywhere_and_not_from_one_end():
    split = assign(np.zeros(1000, np.int32))
    for part in (VALIDATION, TEST):
        drawn = np.flatnonzero(split == part)
        assert len(drawn) == 100
        assert 400 < drawn.mean() < 600
        assert drawn.min() < 100
        assert drawn.max() > 900


@pytest.mark.parametrize(
    ("given", "taken"),
    [(("train", "validation"), TEST), (("train", "test"), VALIDATION), (("train", "validation", "test"), None)],
)
def test_given_splits_stay_as_given_and_only_missing_ones_are_taken_from_train(given, taken):
    source = np.repeat(np.array([SPLITS.index(s) for s in given], np.uint8), [200] + [50] * (len(given) - 1))
    strata = np.tile(np.arange(2, dtype=np.int32), len(source) // 2)
    split = assign(strata, given, source=source)
    assert (split[source != TRAIN] == source[source != TRAIN]).all()
    moved = np.bincount(split[source == TRAIN], minlength=3)
    assert moved.sum() == 200
    expected = np.array([200, 0, 0])
    if taken is not None:
        expected[[TRAIN, taken]] = 180, 20
    assert (moved == expected).all()


def test_a_tiny_set_still_gives_a_row_to_each_split():
    split = assign(rows(3, 3), validation=0.01, test=0.01)
    assert sorted(np.bincount(split)) == [1, 1, 4]


# -- groups ------------------------------------------------------------------------------------------------------------


def assign_groups(strata: np.ndarray, groups: np.ndarray, seed: int = 0, given: tuple[str, ...] = ("train",)):
    return assign_group_splits(
        np.zeros(len(strata), np.uint8),
        strata,
        groups.astype(np.uint64),
        given,
        validation_ratio=0.1,
        test_ratio=0.2,
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(40))
def test_no_group_straddles_splits_and_every_class_keeps_training_rows(seed):
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(30, 600)), int(rng.integers(1, 6))
    groups = rng.zipf(1.5, n) % rng.integers(8, 200)
    strata = rng.integers(0, classes, n).astype(np.int32)
    if seed % 2:  # a group of one class
        strata = (groups % classes).astype(np.int32)
    split = assign_groups(strata, groups, seed)
    for group in np.unique(groups):
        assert len(np.unique(split[groups == group])) == 1
    assert set(strata[split == TRAIN]) == set(strata)
    assert (split == assign_groups(strata, groups, seed)).all()


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_a_few_rows_give_each_class_its_share(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 500, 2000)
    strata = rng.choice(3, 2000, p=[0.7, 0.25, 0.05]).astype(np.int32)
    split = assign_groups(strata, groups, seed)
    for code, ratio in ((VALIDATION, 0.1), (TEST, 0.2)):
        assert (split == code).mean() == pytest.approx(ratio, abs=0.01)
        for stratum in range(3):
            assert (split[strata == stratum] == code).mean() == pytest.approx(ratio, abs=0.05)


def test_three_large_groups_give_one_to_each_split():
    split = assign_groups(np.zeros(90, np.int32), np.repeat([1, 2, 3], 30))
    assert np.bincount(split).tolist() == [30, 30, 30]
