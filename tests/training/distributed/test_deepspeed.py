"""DeepSpeed's configuration: ours, and a user's file that has to agree with the parameters."""

import json
from pathlib import Path
from typing import Any

import pytest

import steps
from tuneport.errors import UserError
from tuneport.training.distributed import deepspeed

BATCHES = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_grad_norm": 0.5}
HALF = {"bf16": False, "fp16": False}


def options(file: Path | None = None, **values: Any) -> Any:
    given = {"apply_deepspeed": True, "number_of_gpu_to_use_finetuning": 2, **BATCHES, **values}
    if file is not None:
        given["deepspeed"] = file
    folders = {"model_selector_output": "m", "preprocess_output": "d", "pytorch_model_folder": "o"}
    return steps.load("finetune", "text_classification")(**folders, **given)


def written(folder: Path, config: Any) -> Path:
    file = folder / "ds.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config), "utf-8")
    return file


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_our_configuration_says_what_the_parameters_say(stage: str) -> None:
    config = deepspeed.configuration(options(deepspeed_stage=stage), bf16=True, fp16=False, world_size=2)
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 3
    assert config["gradient_clipping"] == 0.5
    assert (config["bf16"], config["fp16"]) == ({"enabled": True}, {"enabled": False})
    assert config["zero_optimization"]["stage"] == int(stage) == deepspeed.stage(options(deepspeed_stage=stage))
    assert ("stage3_gather_16bit_weights_on_model_save" in config["zero_optimization"]) == (stage == "3")
    assert "optimizer" not in config and "scheduler" not in config  # the Trainer's own


def test_offload_keeps_what_is_spread_in_cpu_memory() -> None:
    for stage, kept in (("2", {"offload_optimizer"}), ("3", {"offload_optimizer", "offload_param"})):
        zero = deepspeed.configuration(options(deepspeed_stage=stage, deepspeed_offload=True), **HALF, world_size=2)
        assert {name for name in zero["zero_optimization"] if name.startswith("offload")} == kept
        plain = deepspeed.configuration(options(deepspeed_stage=stage), **HALF, world_size=2)
        assert not [name for name in plain["zero_optimization"] if name.startswith("offload")]


def test_auto_in_a_file_stands_for_the_parameters(tmp_path: Path) -> None:
    optimizer = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}
    schedule = {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}}
    config = {
        "train_batch_size": "auto",
        "optimizer": optimizer,
        "scheduler": schedule,
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"},
        "wall_clock_breakdown": True,
    }
    chosen = options(written(tmp_path, config), learning_rate=3e-4, weight_decay=0.1, warmup_steps=7)
    deepspeed.check(chosen)
    found = deepspeed.configuration(chosen, **HALF, world_size=2)
    assert found["train_batch_size"] == 24 and found["train_micro_batch_size_per_gpu"] == 4
    assert found["optimizer"]["params"] == {"lr": 3e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}
    assert found["scheduler"]["params"] == {"total_num_steps": "auto", "warmup_num_steps": 7}
    assert found["zero_optimization"] == {"stage": 3, "reduce_bucket_size": "auto"}
    assert found["wall_clock_breakdown"] is True and deepspeed.stage(chosen) == 3


def test_a_share_of_steps_is_filled_in_where_their_number_is_known(tmp_path: Path) -> None:
    config = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}}
    chosen = options(written(tmp_path, config), warmup_ratio=0.1)
    found = deepspeed.configuration(chosen, **HALF, world_size=2)
    assert found["scheduler"]["params"]["warmup_num_steps"] == "auto"


def test_all_contradictions_of_a_file_are_listed(tmp_path: Path) -> None:
    config = {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    }
    with pytest.raises(UserError) as e:
        deepspeed.check(options(written(tmp_path, config)))
    message = str(e.value)
    assert "train_batch_size is 32, per_device_train_batch_size × gradient_accumulation_steps × processes" in message
    assert "makes it 24" in message
    assert "train_micro_batch_size_per_gpu is 8, per_device_train_batch_size makes it 4" in message
    assert "gradient_clipping is 1.0, max_grad_norm makes it 0.5" in message
    assert "optimizer.params.lr is 0.001, learning_rate makes it 2e-05" in message
    assert "write 'auto' in the file" in message


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        ({"bf16": {"enabled": True}}, {}, "enables bf16, but precision=32. Set precision=bf16"),
        ({"fp16": {"enabled": True}}, {"precision": "bf16"}, "enables fp16, but precision=bf16"),
        ({"zero_optimization": {"stage": 2}}, {"deepspeed_stage": "3"}, "deepspeed_stage='3': .* has stage 2"),
        ({"zero_optimization": {"offload_ratio": "auto"}}, {}, "zero_optimization.offload_ratio: 'auto' is not known"),
        ("{", {}, "ds.json: is not valid JSON"),
        ("[1]", {}, "ds.json: holds no JSON object"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    config: Any, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        deepspeed.check(options(written(tmp_path, config), **values))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.json: cannot be read \(No such file or directory\)"):
        deepspeed.check(options(tmp_path / "none.json"))


def test_the_batches_that_fit_are_written_into_the_configuration() -> None:
    config = {"train_batch_size": 24, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3}
    deepspeed.set_batches(config, 2, 6, 2)
    assert config == {"train_batch_size": 24, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 6}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deepspeed_offload": True}, "deepspeed_offload=.*GPU"),
        ({"apply_deepspeed": False, "fsdp": "full_shard"}, "fsdp=.*GPU"),
    ],
)
def test_what_takes_a_gpu_is_refused_without_one(values: dict[str, Any], message: str) -> None:
    import torch

    from tuneport.training import conflicts
    from tuneport.training.machine import here

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message):
        conflicts.check(options(**values), here())
