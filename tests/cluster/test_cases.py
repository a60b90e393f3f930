"""The list of what a launcher does on a cluster, on a real one: `tests/launchers/test_cases.py` runs it on the fake."""

from typing import Any

import pytest

from tests.launchers import cases

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("case", "kind"), [(c, k) for c in cases.CASES for k in c.kinds], ids=lambda v: getattr(v, "name", v)
)
def test_a_launcher_does_what_the_list_says(ground: Any, case: cases.Case, kind: str) -> None:
    cases.run(ground, case, kind)
