"""Noise on embeddings is uniform between ±alpha / sqrt(L·d) of each row's own length, with padding and without."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.training.model.neftune import Noise
from tuneport.training.padding_free import choose

ALPHA = 4.0


@pytest.mark.parametrize("padding_free", [True, False])
@pytest.mark.parametrize("name", tasks.names())
def test_each_row_gets_the_noise_of_its_own_length(name: str, padding_free: bool, ready: Callable[[str], Any]) -> None:
    task, prepared = tasks.load(name), Prepared(ready(name).prepared)
    model = task.load_model(ready(name).model, prepared.info.meta)
    reader = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    embeddings = reader.get_input_embeddings()

    def plain(module: Any, args: Any, output: torch.Tensor) -> None:
        seen.append((args[0], output.detach()))

    embeddings.register_forward_hook(plain)
    Noise(model, ALPHA)
    noisy: list[torch.Tensor] = []
    embeddings.register_forward_hook(lambda module, args, output: noisy.append(output.detach()))
    unpadded = choose.choose(model, ("sdpa", ""), wanted=padding_free, pad_to=None)
    rows = sorted(prepared.encoded("train").to_pylist(), key=lambda row: len(row["input_ids"]))
    rows = [rows[0], rows[-1]]
    collate = unpadded.collator(task.collator(model, prepared.info.meta, prepared.info.pad_to))
    model.train()(**collate(rows))

    found = {}
    for (ids, before), after in zip(seen, noisy, strict=True):
        noise = (after - before).abs()
        if model.config.is_encoder_decoder and not noise.any():
            continue  # the decoder's, by the same embeddings
        for one, of_row in zip(ids, noise, strict=True) if len(ids) > 1 else [(ids[0], noise[0])]:
            start = 0
            for i, row in enumerate(rows):
                own, taken = row["input_ids"], one[start : start + len(row["input_ids"])].tolist()
                if taken == own:
                    found[i] = of_row[start : start + len(own)]
                    start += len(own)
    size = before.shape[-1]
    for i, row in enumerate(rows):
        most = ALPHA / math.sqrt(len(row["input_ids"]) * size)
        assert found[i].max() <= most * 1.0001 and found[i].max() > 0.9 * most
        assert float(found[i].mean()) == pytest.approx(most / 2, rel=0.15)


@pytest.mark.parametrize("name", tasks.names())
def test_an_evaluation_has_no_noise(name: str, ready: Callable[[str], Any]) -> None:
    task, prepared = tasks.load(name), Prepared(ready(name).prepared)
    torch.manual_seed(0)
    model = task.load_model(ready(name).model, prepared.info.meta).eval()
    batch = task.collator(model, prepared.info.meta, None)(prepared.encoded("train").to_pylist()[:3])
    with torch.no_grad():
        before = model(**batch)["loss"]
        Noise(model, ALPHA)
        assert torch.equal(model(**batch)["loss"], before)
