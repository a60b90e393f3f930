"""A token across the seam of two texts is found."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tuneport.encoding.seams import Seams
from tuneport.encoding.token_ids import library_ids


@pytest.fixture(scope="module")
def seams() -> Seams:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["user: so\n\nassistant: yes and no, and yes"] * 20, trainer)
    return Seams(library_ids(tokenizer))


@pytest.mark.parametrize(
    ("before", "after", "differs", "apart"),
    [
        ("assistant: ", "yes", True, True),
        ("assistant:", " yes", False, False),
        ("assistant", " yes", False, False),
        ("x" * 50 + " ye", "s and", True, True),
        ("<s>", "yes", False, False),
        ("", "yes", False, False),
    ],
)
def test_a_token_across_a_seam_is_found(before: str, after: str, differs: bool, apart: bool, seams: Seams) -> None:
    assert seams.differ([(before, after)], apart=False).tolist() == [differs]
    assert seams.differ([(before, after)], apart=True).tolist() == [apart]


def test_each_of_many_pairs_has_its_answer(seams: Seams) -> None:
    pairs = [("a: ", "yes"), ("a:", " yes"), ("a: ", "yes")]
    assert seams.differ(pairs, apart=False).tolist() == [True, False, True]
    assert seams.differ([], apart=True).tolist() == []
