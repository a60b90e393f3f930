"""What a model is called in MLflow, the report and its card."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tuneport.model_source.model_name import model_name


@pytest.mark.parametrize(("weights", "name"), [(950, "bert-950"), (4_400, "bert-4.4K"), (22_700, "bert-23K")])
def test_a_model_of_a_folder_is_called_by_kind_and_size(tmp_path: Path, weights: int, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "_name_or_path": "what/it-was-tuned-from"}')
    save_file({"w": np.zeros(weights, np.float16)}, tmp_path / "model.safetensors")
    assert model_name(tmp_path, {}) == name
    assert model_name(tmp_path, {"huggingface_id": "acme/model"}) == "acme/model"
