"""When two spellings are one label."""

import pytest

from tuneport.labels import Spellings, alike, normal, ordered_as

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.mark.parametrize(
    "label", ["pos", "B-PER", "two words", "caf\u00e9", FAMILY, "\u0645\u06cc\u200c\u062e", "C++", "-1"]
)
def test_a_label_without_anything_odd_stays_as_it_is(label):
    assert normal(label) == label


@pytest.mark.parametrize(
    "label",
    [" a b", "a  b", "a\tb\n", "a\u00a0b", "a\u2003b", "\u200ba b", "a\u200d b", "\ufeffa b", "a\u00ad b", "a b\u200e"],
)
def test_white_space_and_invisible_characters_make_no_other_label(label):
    assert normal(label) == "a b"


def test_labels_that_differ_in_case_or_are_equal_numbers_are_alike():
    labels = [
        "Pos",
        "pos",
        "1",
        "1.0",
        "01",
        "neg",
        "2",
        "10000000000000001",
        "10000000000000000",
        "caf\u00e9",
        "CAF\u00c9",
    ]
    assert alike(labels) == [["01", "1", "1.0"], ["CAF\u00c9", "caf\u00e9"], ["Pos", "pos"]]


def test_the_first_of_alike_labels_stands_for_all_of_them():
    spellings = Spellings("alike")
    assert [spellings(label) for label in ("Pos", "pos", "POS ", "1.0", "1")] == ["Pos", "Pos", "Pos", "1.0", "1.0"]
    assert spellings.merged() == {"Pos": {"pos": 1, "POS ": 1}, "1.0": {"1": 1}}


def test_a_base_models_order_is_kept_where_its_labels_are_the_same_to_the_eye():
    assert ordered_as(["a", "b"], {"b": 0, "a ": 1}) == ["b", "a"]
    assert ordered_as(["a", "b"], {"b": 0, "c": 1}) == ["a", "b"]
    assert ordered_as(["a", "b"], {"b": 0, "a": 1, "a ": 2}) == ["a", "b"]
