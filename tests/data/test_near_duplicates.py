"""Near duplicates are found, and only they: what is proposed by MinHash is decided by the exact Jaccard index."""

import random

import numpy as np
import pytest

from tuneport.data.near_duplicates import (
    SAMPLE_ROWS,
    NearDuplicateIndex,
    rows_per_band,
    sample_rows,
    shingles,
    similarity,
)

NONE = np.array([], np.int64)
WORDS = [
    a + b + c for a in ("ka", "lo", "mi", "ru", "te") for b in ("b", "d", "n", "s") for c in ("ar", "en", "is", "os")
]


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=14)) for _ in range(count)]


def find(tmp_path, rows, *, threshold=0.8, remove=True, skip=NONE):
    index = NearDuplicateIndex(tmp_path / "scratch", threshold)
    for number, row in enumerate(rows):
        index.add(number, row)
    found = index.find(skip, remove=remove)
    index.close()
    assert list(tmp_path.iterdir()) == []
    return found


def jaccard(a: str, b: str) -> float:
    one, other = ({s[i : i + 5] for i in range(len(s) - 4)} for s in (a, b))
    return len(one & other) / len(one | other)


def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path):
    rows = texts(2000)
    duplicates = [row.capitalize().replace(" ", "  ", 2) + "!" for row in rows[:100]]
    found = find(tmp_path, [*rows, *duplicates])
    assert found.rows.tolist() == list(range(2000, 2100))
    assert found.originals.tolist() == list(range(100))
    assert found.checked == 2100


def test_the_similarity_is_that_of_the_sets_of_shingles():
    rng = random.Random(1)
    for row in texts(50):
        words = row.split()
        words[rng.randrange(14)] = "changed"
        other = " ".join(words)
        assert similarity(*shingles([row, other])) == pytest.approx(jaccard(row, other))


def test_shingles_of_rows_do_not_depend_on_the_rows_beside_them():
    rows = ["", "a", "\0", "abcd", "abcde\0x\0", "日本\0Is that so?", *texts(20), "\0".join(texts(20)), "İ  I\n"]
    for row, found in zip(rows, shingles(rows), strict=True):
        (alone,) = shingles([row])
        assert found.tolist() == alone.tolist()
        assert (np.diff(found.astype(np.int64)) > 0).all() and len(found) >= 1


def test_a_row_of_two_texts_is_a_near_copy_only_if_both_are(tmp_path):
    long = texts(1)[0]
    same, other = f"{long * 5}\0who wrote it", f"{long * 5}\0when was that"
    assert len(find(tmp_path, [same, other]).rows) == 0
    assert find(tmp_path, [same, f"{long * 5}\0Who  wrote it"]).rows.tolist() == [1]


def test_short_and_empty_texts_are_compared_whole(tmp_path):
    assert find(tmp_path, ["ab", "ac", "AB", "", "日本", "日本"]).rows.tolist() == [2, 5]


def test_no_two_rows_that_stay_are_near_duplicates_in_a_chain_of_them(tmp_path):
    words = texts(5)[0].split() * 3
    chain = [" ".join([*words[:i], "other", *words[i + 1 :]]) for i in range(20)]
    found = find(tmp_path, chain)
    left = [row for i, row in enumerate(chain) if i not in set(found.rows.tolist())]
    assert 1 <= len(left) < len(chain)
    assert all(jaccard(a, b) < 0.8 for i, a in enumerate(left) for b in left[:i])
    assert not set(found.originals.tolist()) & set(found.rows.tolist())


def test_pairs_at_the_threshold_are_proposed(tmp_path):
    for threshold in (0.5, 0.8, 0.9, 1.0):
        length = rows_per_band(threshold)
        assert (1 - threshold**length) ** (128 // length) <= 0.01


def test_all_pairs_are_reported_where_nothing_is_removed_and_skipped_rows_are_left_out(tmp_path):
    row = texts(1)[0]
    rows = [row, row + " a", row + " b"]
    found = find(tmp_path, rows, remove=False)
    assert list(zip(found.rows.tolist(), found.originals.tolist(), strict=True)) == [(1, 0), (2, 0), (2, 1)]
    assert find(tmp_path, rows, remove=False, skip=np.array([1])).rows.tolist() == [2]


def test_a_pair_just_at_the_threshold_is_found_nearly_always(tmp_path):
    rng = np.random.default_rng(0)
    index = NearDuplicateIndex(tmp_path / "scratch", 0.8)
    pairs = 2000
    sets = []
    for _ in range(pairs):
        hashes = rng.choice(2**28, 50, replace=False).astype(np.uint32)  # 40 shared, 5 more each: a Jaccard index of .8
        sets += [np.sort(hashes[:45]), np.sort(np.concatenate([hashes[:40], hashes[45:]]))]
    bands = index._bands(np.concatenate(sets), [len(s) for s in sets])
    index.close()
    assert (bands[::2] == bands[1::2]).any(axis=1).mean() >= 0.99
    assert (bands[:-2:2] == bands[3::2]).any(axis=1).mean() < 0.001


def test_a_sample_is_bounded_and_drawn_from_everywhere():
    found = sample_rows(10 * SAMPLE_ROWS, 42)
    assert len(found) == SAMPLE_ROWS and (np.diff(found) > 0).all()
    assert np.histogram(found, 10, (0, 10 * SAMPLE_ROWS))[0].min() > 0.9 * SAMPLE_ROWS / 10
    assert found.tolist() == sample_rows(10 * SAMPLE_ROWS, 42).tolist() != sample_rows(10 * SAMPLE_ROWS, 43).tolist()
    assert sample_rows(3, 42).tolist() == [0, 1, 2]
