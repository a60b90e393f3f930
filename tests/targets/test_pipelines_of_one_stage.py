"""predict and evaluate, which train nothing, on every target."""

from pathlib import Path
from typing import Any

import pytest

import pipelines
from tuneport.runner.request import Request
from tuneport.targets import check_resources, load

DIGEST = "@sha256:" + 64 * "0"
IMAGES = {"images": {name: f"registry.example/{name}{DIGEST}" for name in ("base", "trainer")}}
AZURE = {"image_base": f"registry.example/base{DIGEST}", "image_trainer": f"registry.example/trainer{DIGEST}"}
ADDRESSES = {
    "kfp": ({"kfp": IMAGES}, "s3://bucket/model", "s3://bucket/rows.jsonl"),
    "azureml": ({"azureml": AZURE}, "azureml:model:3", "azureml:rows:1"),
}
INPUTS = {"predict": ("mlflow_model_folder", "predict_file_path"), "evaluate": ("first_model", "test_rows_path")}


@pytest.mark.parametrize("target", ADDRESSES)
@pytest.mark.parametrize("name", INPUTS)
def test_they_compile_with_their_inputs_and_outputs(name: str, target: str) -> None:
    platform, *addresses = ADDRESSES[target]
    pipeline, chosen = pipelines.load(name), load(target)
    values: dict[str, Any] = pipeline.resolve(dict(zip(INPUTS[name], addresses, strict=True)))
    check_resources(pipeline, values, chosen)
    request = Request(output_dir=Path("/o"), folder=Path("/"), environment={}, platform=platform)
    document = chosen.compile(pipeline, values, request)
    text = document.text if target == "kfp" else str(document.files)
    (node,), (output,) = pipeline.nodes, pipeline.outputs
    assert node.name in text and output in text and all(address in text for address in addresses)
    if target == "azureml":
        assert document.files["job.yaml"]["outputs"][output]["type"] == "uri_folder"
        assert document.files["job.yaml"]["inputs"][INPUTS[name][0]]["type"] == "mlflow_model"


def test_a_container_reads_the_model_and_the_rows_where_they_lie(tmp_path: Path) -> None:
    from tuneport.runner import bind

    pipeline = pipelines.load("predict")
    values = {"mlflow_model_folder": tmp_path / "model", "predict_file_path": tmp_path / "rows.jsonl"}
    steps = bind.instantiate(pipeline, pipeline.resolve(values), tmp_path / "run")
    assert {a.path for a in steps["predict"].inputs().values()} == {tmp_path / "model", tmp_path / "rows.jsonl"}
    assert steps["predict"].predictions.path.is_relative_to(tmp_path / "run")
    assert not steps["predict"].needs_network() and steps["predict"].image == "trainer"
