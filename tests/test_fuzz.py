"""Mutated files of every kind that people bring are read or refused; `tests/fuzz.py` tries many more."""

import pytest

from tests.fuzz import READERS, fuzz


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused(name: str) -> None:
    found = fuzz(name, READERS[name]().quick, 0, shrink=False)
    assert found.outcomes["refused"] > 0
