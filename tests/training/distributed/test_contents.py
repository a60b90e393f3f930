"""Of a model that FSDP shards the first process alone reads the weights; each then has its shards of them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.training.two_processes import in_two
from tuneport.serving.model_loader import ModelLoader
from tuneport.training.distributed import contents, sharding
from tuneport.training.distributed.waiting import Peers

pytestmark = pytest.mark.slow

MB = 2**20
LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 51, "intermediate_size": 64}
DECODER = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=2, **LLAMA)
TIED = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=2, tie_word_embeddings=True, **LLAMA)
T5 = transformers.T5Config(vocab_size=51, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4)
BART = transformers.BartConfig(  # has a buffer that is saved
    vocab_size=51,
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
)
LARGE = transformers.LlamaConfig(hidden_size=1024, num_hidden_layers=8, **LLAMA | {"intermediate_size": 3584})
MODELS: dict[str, tuple[str, str, Any]] = {
    "a decoder": ("AutoModelForCausalLM", "AutoModelForCausalLM", DECODER),
    "tied": ("AutoModelForCausalLM", "AutoModelForCausalLM", TIED),
    "both of a tied pair in the files": ("AutoModelForCausalLM", "AutoModelForCausalLM", TIED),
    "a new head": ("AutoModel", "AutoModelForSequenceClassification", DECODER),
    "T5": ("AutoModelForSeq2SeqLM", "AutoModelForSeq2SeqLM", T5),
    "BART": ("AutoModelForSeq2SeqLM", "AutoModelForSeq2SeqLM", BART),
}


def loaded(architecture: str, folder: Path, **loading: Any) -> Any:
    torch.manual_seed(0)
    return ModelLoader(architecture)(str(folder), new_head=True, dtype="float32", **loading)


def sharded(architecture: str, folder: Path, rank: int) -> Any:
    store = torch.distributed.distributed_c10d._get_default_store()
    peers = Peers(rank, 2, torch.distributed.PrefixStore(str(folder), store))
    model = contents.loaded(partial(loaded, architecture, folder), peers)
    sharding.join_tables(model)
    weights = contents.whole(model) if rank == 0 else {}
    layers = sharding.units(model)
    for module in [*model.modules()]:
        if type(module).__name__ in layers:
            fully_shard(module)
    fully_shard(model)
    contents.fill(model, weights)
    return model


def _same(results: Any, rank: int, architecture: str, folder: Path) -> None:
    """That each has the weights, ties and buffers of a model that it loads by itself."""
    torch.use_deterministic_algorithms(True)
    model, alone = sharded(architecture, folder, rank), loaded(architecture, folder)
    sharding.join_tables(alone)
    assert contents.shared(model) == contents.shared(alone)
    expected = dict(alone.named_parameters())
    for name, weight in model.named_parameters():
        assert isinstance(weight, DTensor) and torch.equal(weight.full_tensor(), expected[name]), name
    buffers = dict(alone.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    results.put((rank, True))


def _peak(results: Any, rank: int, architecture: str, folder: Path) -> None:
    before = _resident()
    model = sharded(architecture, folder, rank)
    results.put((rank, _resident() - before, sum(weight.numel() for weight in model.parameters()) * 4))


def _resident() -> int:
    """The most memory that this process has held, in bytes."""
    return int(Path("/proc/self/status").read_text("utf-8").partition("VmHWM:")[2].split()[0]) * 1024


def _all_the_same(results: Any, rank: int, folder: Path) -> None:
    for number, (_, architecture, _) in enumerate(MODELS.values()):
        _same(results, rank, architecture, folder / str(number))


def write(folder: Path) -> None:
    """Each of `MODELS` to a folder of its number."""
    for number, (name, (written_by, _, config)) in enumerate(MODELS.items()):
        torch.manual_seed(1)
        model = getattr(transformers, written_by).from_config(config)
        model.save_pretrained(folder / str(number))
        if name.startswith("both"):
            separate = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            save_file(separate, folder / str(number) / "model.safetensors", {"format": "pt"})


def test_each_process_has_its_shards_of_what_the_first_has_read(tmp_path: Path) -> None:
    write(tmp_path)
    in_two(_all_the_same, tmp_path)


def test_the_other_process_never_holds_more_than_its_shards(tmp_path: Path) -> None:
    transformers.AutoModelForCausalLM.from_config(LARGE).save_pretrained(tmp_path)
    (_, first, size), (_, other, _) = in_two(_peak, "AutoModelForCausalLM", tmp_path)
    assert size > 400 * MB
    assert first > size  # it has read all
    assert other < size / 2 + 100 * MB, (first / MB, other / MB, size / MB)
