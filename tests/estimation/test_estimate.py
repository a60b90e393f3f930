"""`tuneport estimate`: what is said of a run that is not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneport.errors import UserError
from tuneport.estimation import hardware

Tuneport = Callable[..., int]


@pytest.fixture
def estimate(
    tuneport: Tuneport,
    tiny_model: Path,
    questions: list[dict[str, str]],
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., dict[str, Any]]:
    """The estimate of a run of the tiny classifier, by parameters."""
    rows = request.getfixturevalue("write_jsonl")(request.getfixturevalue("tmp_path") / "rows.jsonl", questions)

    def run(*words: str, **values: Any) -> dict[str, Any]:
        given = {
            "pytorch_model_path": tiny_model,
            "train_file_path": rows,
            "sentence1_key": "text",
            "label_key": "label",
        }
        capfd.readouterr()
        code = tuneport(
            "estimate", "text_classification", *(f"{k}={v}" for k, v in (given | values).items()), *words, "--json"
        )
        out, err = capfd.readouterr()
        if code:
            raise UserError(err)
        found: dict[str, Any] = json.loads(out)
        return found

    return run


@pytest.mark.slow
def test_a_run_is_estimated_from_its_own_rows_and_model(estimate: Callable[..., dict[str, Any]]) -> None:
    found = estimate("--gpu_memory", "8g", max_seq_length=32, per_device_train_batch_size=4)
    training = found["training"]
    assert training["weights"] >= 4 * found["weights"] and training["gradients"] == 4 * found["weights"]
    assert training["optimizer"] == pytest.approx(8 * found["weights"], rel=0.01)
    assert training["total"] == sum(
        training[part] for part in ("weights", "gradients", "optimizer", "gathered", "activations")
    )
    assert found["fits"] and not found["gradient_checkpointing"] and found["rows"] == 4 and found["tokens"] == 32
    assert found["largest_rows"] > 4 and found["largest_tokens"] > 32
    assert found["stages"]["model_import"]["up"] == found["base"]
    assert found["stages"]["preprocess"]["up"] == found["stages"]["preprocess"]["down"] == 0
    assert found["stages"]["model_evaluation"]["disk"] == found["base"] + found["evaluation"]


@pytest.mark.slow
@pytest.mark.parametrize(("contents", "weights", "states"), [("newest_resumable", 3, 1), ("weights", 3, 0)])
def test_what_checkpoints_hold_decides_what_they_take(
    contents: str, weights: int, states: int, estimate: Callable[..., dict[str, Any]]
) -> None:
    found = estimate(max_seq_length=32, num_train_epochs=3, checkpoint_contents=contents)
    each = 4 * found["weights"]
    assert found["checkpoints"] == 3 and found["checkpoint_contents"] == contents
    assert found["disk"] == pytest.approx(weights * each + states * 2 * each + found["evaluation"], rel=0.01)
    stages = found["stages"]
    assert stages["finetune"]["up"] == found["disk"] + found["evaluation"]
    assert stages["model_export"]["down"] == found["evaluation"]


@pytest.mark.slow
def test_optimizers_that_need_a_gpu_and_sharding_are_estimated_on_any_machine(
    estimate: Callable[..., dict[str, Any]],
) -> None:
    alone = estimate(max_seq_length=32)
    assert alone["fits"] is None and alone["largest_rows"] is None
    spread = estimate(max_seq_length=32, apply_deepspeed="true", deepspeed_stage=2, number_of_gpu_to_use_finetuning=4)
    assert spread["processes"] == 4
    assert spread["training"]["optimizer"] == pytest.approx(alone["training"]["optimizer"] / 4, rel=0.01)
    assert spread["training"]["gradients"] == pytest.approx(alone["training"]["gradients"] / 4, rel=0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "H200-80GB"], "gpu=H200-80GB: not known; expected one of T4, "),
        (["--gpu_memory", "much"], "gpu_memory=much: not valid; expected GiB or MiB, as in 80g"),
        (["--gpu", "L4", "--gpu_memory", "24g"], "got both --gpu and --gpu_memory"),
    ],
)
def test_a_gpu_that_is_not_known_is_refused(
    estimate: Callable[..., dict[str, Any]], words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        estimate(*words)


def test_gpus_go_by_the_names_that_clouds_and_clusters_give_them() -> None:
    names = ("NVIDIA-A100-SXM4-80GB", "Standard_NC24ads_A100_v4", "A100-80GB", "a100-80gb")
    assert len({hardware.gpu(name) for name in names}) == 1
    assert hardware.of_memory("24GiB").memory == hardware.of_memory("24576m").memory == 24 * 2**30
