"""What is told of each text that is written."""

from pathlib import Path

import pytest

from tuneport.serving.generator import Generator


@pytest.mark.parametrize(("stop", "expected"), [(0, (1, True)), (1, (5, False))])
def test_what_an_encoder_decoder_wrote_is_counted_without_its_start(
    stop: int, expected: tuple[int, bool], tmp_path: Path
) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import T5Config, T5ForConditionalGeneration

    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    model = T5ForConditionalGeneration(T5Config(vocab_size=2, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with torch.no_grad():
        model.decoder.final_layer_norm.weight.zero_()  # each token is as likely as another, so the first is written
    generator = Generator(str(tmp_path), {"encoder_decoder": True, "stop": [stop], "decoder_start": stop}, model)
    found = generator.write([[1, 0, 1], [1]], None, {"max_new_tokens": 5})
    assert [counts for _, *counts in found] == [[*expected]] * 2
    assert generator([[1]], None, {"max_new_tokens": 5}) == [found[1][0]]
