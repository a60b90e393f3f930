"""What is kept of an evaluation: as transformers joins it, in a time that grows with the batches alone."""

import time
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction
from transformers.trainer_pt_utils import EvalLoopContainer

from tuneport.training.predictions import joined, of_batches


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs (rows, width, 2) and (rows,), of 1 to 3 rows and several widths."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 4, (count, 2), generator=generator).tolist()
    return [(torch.randn(rows, 3 * width, 2, generator=generator), torch.arange(rows)) for rows, width in sizes]


def collected(made: list[Any], *, concatenated: bool) -> Any:
    container = EvalLoopContainer(concatenated, padding_index=-100)
    for batch in made:
        container.add(batch)
    return container.get_arrays()


def test_batches_are_joined_as_transformers_joins_them() -> None:
    expected = collected(batches(20), concatenated=True)
    found = joined(collected(batches(20), concatenated=False))
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


def test_metrics_see_whole_arrays() -> None:
    seen = []
    compute = of_batches(lambda prediction: seen.append(prediction) or {"rows": len(prediction.label_ids)})
    labels = [np.arange(2), np.arange(3)]
    assert compute(EvalPrediction([np.ones((2, 1)), np.ones((3, 4))], labels)) == {"rows": 5}
    assert seen[0].predictions.shape == (5, 4) and seen[0].predictions[0].tolist() == [1, -100, -100, -100]


def test_ten_times_the_batches_take_no_more_than_some_ten_times_as_long() -> None:
    """A quadratic way takes a hundred times as long."""

    def seconds(count: int) -> float:
        made = [batch[0] for batch in batches(count)]
        started = time.perf_counter()
        joined(collected(made, concatenated=False))
        return time.perf_counter() - started

    seconds(500)
    assert seconds(20_000) < 40 * min(seconds(2_000) for _ in range(3))
