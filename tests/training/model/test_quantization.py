"""Quantization takes a GPU and bitsandbytes: without them it is refused before anything is loaded."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import steps
from tuneport.errors import UserError
from tuneport.stage import execute
from tuneport.training.model import quantization

VALUES = {"apply_lora": True, "merge_lora_weights": False, "max_steps": 1}


def finetune(model: Path, prepared: Path, output: Path, **values: Any) -> Any:
    return steps.load("finetune", "text_classification")(
        model_selector_output=model, preprocess_output=prepared, pytorch_model_folder=output, **VALUES | values
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(imported_model: Path, prepared_questions: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^quantization=4bit: needs an NVIDIA GPU, and torch sees none here"):
        execute(finetune(imported_model, prepared_questions, tmp_path / "out", quantization="4bit"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_without_bitsandbytes_it_says_how_to_install_it(tmp_path: Path) -> None:
    assert quantization.loading(finetune(tmp_path, tmp_path, tmp_path)) == {}
    with pytest.raises(UserError, match=r"bitsandbytes is not installed. Run: pip install 'tuneport\[quantization\]'"):
        quantization.loading(finetune(tmp_path, tmp_path, tmp_path, quantization="8bit"))


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_adapters_are_trained_beside_quantized_weights(
    bits: str, imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    execute(finetune(imported_model, prepared_questions, tmp_path / "out", quantization=bits, precision="16"))
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
