"""Scores of two models by the rows that lm_eval gives: paired where they are a mean over rows, of whatever type."""

from typing import Any

import numpy as np
import pytest

from tuneport.evaluation.benchmark_scores import BenchmarkScores
from tuneport.evaluation.harness import Measured


def measured(values: list[Any]) -> dict[str, Measured]:
    rows = [{"doc_id": i, "filter": "none", "acc": value} for i, value in enumerate(values)]
    return {
        "animals": Measured(
            scores={"acc,none": sum(map(float, values)) / len(values)},
            errors={},
            greater_is_better={"acc": True},
            rows=len(values),
            shots=0,
            version="1",
            samples=rows,
            children=(),
            cut=0,
        )
    }


@pytest.mark.parametrize("kind", [float, bool, np.float32, np.int64, np.bool_])
def test_a_mean_over_rows_is_compared_in_pairs_whatever_type_its_parts_are_of(kind: Any) -> None:
    tuned, base = ([kind(i < right) for i in range(40)] for right in (8, 32))
    found = BenchmarkScores(tuned=measured(tuned), base=measured(base), seed=1)
    assert found.as_json()["gains"]["animals/acc"]["value"] == pytest.approx(-0.6)
    assert [score.name for score in found.worse] == ["animals/acc"]
