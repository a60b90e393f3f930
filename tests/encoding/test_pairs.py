"""Pairs of texts are cut as the tokenizers library cuts them."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tuneport.encoding.pairs import PairEncoder, longest_first
from tuneport.encoding.token_ids import library_ids


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("most", [12, 13])
def test_pairs_of_all_lengths_equal_those_of_the_library(most: int, direction: str, special: bool) -> None:
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", *(f"{i}" for i in range(40))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        around = [("<s>", 0), ("</s>", 1)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s>:0 $A:0 </s>:0 $B:1 </s>:1", special_tokens=around
        )
    whole = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.enable_truncation(most, direction=direction)
    firsts, seconds = zip(
        *(
            (" ".join(map(str, range(one))), " ".join(map(str, range(20, 20 + other))))
            for one in range(16)
            for other in range(16)
        ),
        strict=True,
    )
    wanted = tokenizer.encode_batch(list(zip(firsts, seconds, strict=True)))
    ids, types, cut = PairEncoder(tokenizer, library_ids(whole))(firsts, seconds)
    assert ids.column().to_pylist() == [encoding.ids for encoding in wanted]
    assert types.column().to_pylist() == [encoding.type_ids for encoding in wanted]
    assert cut.tolist() == [one + other > most - 3 * special for one in range(16) for other in range(16)]


def test_what_fits_stays() -> None:
    first, second = longest_first(np.array([3, 0, 9]), np.array([4, 7, 1]), 7)
    assert (first.tolist(), second.tolist()) == ([3, 0, 6], [4, 7, 1])
