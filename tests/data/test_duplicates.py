"""Duplicates are found by their inputs' hashes, the first one is the original."""

import numpy as np

from tuneport.data.duplicates import find_duplicates, identity_hash


def test_every_row_after_the_first_is_a_copy_of_the_first():
    duplicates = find_duplicates(np.array([9, 4, 9, 7, 4, 9], np.uint64))
    assert duplicates.rows.tolist() == [2, 4, 5]
    assert duplicates.originals.tolist() == [0, 1, 0]


def test_distinct_rows_have_no_duplicates():
    assert len(find_duplicates(np.arange(100, dtype=np.uint64)).rows) == 0
    assert len(find_duplicates(np.array([], np.uint64)).rows) == 0


def test_equal_identities_have_equal_hashes_of_64_bits():
    assert identity_hash("ä\0b") == identity_hash("ä\0b")
    assert identity_hash("a\0b") != identity_hash("ab\0")
    assert max(identity_hash(str(i)) for i in range(1000)).bit_length() in range(60, 65)
