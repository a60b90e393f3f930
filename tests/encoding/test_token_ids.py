"""Ids of many texts in one array are cut and joined as lists of each text would be."""

import random

import numpy as np

from tuneport.encoding.token_ids import TokenIds, concatenate, surround


def some_lists(rng: random.Random, count: int = 30) -> list[list[int]]:
    return [[rng.randrange(100) for _ in range(rng.choice((0, 0, 1, 2, 7, 20)))] for _ in range(count)]


def lists_of(ids: TokenIds) -> list[list[int]]:
    return [[int(i) for i in part] for part in np.split(ids.values, ids.starts[1:])]


def test_ids_become_a_column_of_the_same_lists() -> None:
    lists = some_lists(random.Random(0))
    column = TokenIds.of(lists).column()
    column.validate(full=True)
    assert column.to_pylist() == lists
    assert TokenIds.of([]).column().to_pylist() == []
    assert TokenIds.of([[], []]).column().to_pylist() == [[], []]


def test_cutting_keeps_the_first_ids_or_the_last() -> None:
    rng = random.Random(1)
    lists = some_lists(rng)
    most = [rng.randrange(-2, 12) for _ in lists]
    ids = TokenIds.of(lists)
    kept = [max(0, n) for n in most]
    assert lists_of(ids.cut(np.array(most))) == [row[:n] for row, n in zip(lists, kept, strict=True)]
    assert lists_of(ids.cut(np.array(most), start=True)) == [
        row[max(0, len(row) - n) :] for row, n in zip(lists, kept, strict=True)
    ]
    assert lists_of(ids.cut(5)) == [row[:5] for row in lists]
    assert ids.cut(100) is ids


def test_parts_are_joined_row_by_row() -> None:
    rng = random.Random(2)
    parts = [some_lists(rng) for _ in range(3)]
    wanted = [a + b + c for a, b, c in zip(*parts, strict=True)]
    assert lists_of(concatenate(*map(TokenIds.of, parts))) == wanted
    assert lists_of(surround([7, 8], TokenIds.of(parts[0]), [9])) == [[7, 8, *row, 9] for row in parts[0]]
    empty = TokenIds.of([[]] * 30)
    assert lists_of(concatenate(empty, TokenIds.of(parts[0]), empty)) == parts[0]
    assert lists_of(concatenate(empty, empty)) == [[]] * 30
