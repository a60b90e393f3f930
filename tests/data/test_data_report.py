"""Token lengths are summed up in bounded memory, with the same answers as the lengths themselves."""

import itertools

import numpy as np

from tuneport.data.data_report import TokenLengths


def test_the_summary_agrees_with_the_lengths():
    lengths = np.random.default_rng(0).integers(3, 90, 501).astype(np.int32)
    counted = TokenLengths(64)
    for part in np.array_split(lengths, 7):
        counted.add(part, 2)
    report = counted.report()
    tokens = report["tokens"]
    assert (tokens["min"], tokens["max"], tokens["total"]) == (lengths.min(), lengths.max(), lengths.sum())
    assert tokens["median"] == np.sort(lengths)[250]
    assert tokens["p95"] == np.quantile(lengths, 0.95, method="inverted_cdf")
    assert report["truncated"] == 14
    edges, rows = tokens["histogram"]["edges"], tokens["histogram"]["rows"]
    assert len(rows) == len(edges) - 1 <= 20
    assert rows == [int(((lengths >= a) & (lengths < b)).sum()) for a, b in itertools.pairwise(edges)]
    assert sum(rows) == 501


def test_one_length_and_none_at_all_can_be_summed_up():
    same = TokenLengths(8)
    same.add(np.full(5, 8, np.int32), 0)
    assert same.report()["tokens"]["histogram"] == {"edges": [8, 9], "rows": [5]}
    assert TokenLengths(8).report() == {"tokens": None, "truncated": 0}
