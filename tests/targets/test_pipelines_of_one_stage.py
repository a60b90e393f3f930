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


@pytest.mark.parametrize("name", INPUTS)
def test_azure_ml_s_own_loaders_take_component_and_job(name: str, tmp_path: Path) -> None:
    import azure.ai.ml as azure

    platform, *addresses = ADDRESSES["azureml"]
    pipeline, chosen = pipelines.load(name), load("azureml")
    request = Request(output_dir=Path("/o"), folder=Path("/"), environment={}, platform=platform)
    given = dict(zip(INPUTS[name], addresses, strict=True))
    chosen.write(chosen.compile(pipeline, pipeline.resolve(given), request), tmp_path / name)
    component = azure.load_component(tmp_path / name / "components" / f"{pipeline.nodes[0].name}.yaml")
    assert {*INPUTS[name]} <= component.inputs.keys() and component._validate().passed
    assert azure.load_job(tmp_path / name / "job.yaml").inputs.keys() == given.keys()


@pytest.mark.parametrize("name", INPUTS)
def test_a_container_reads_model_rows_and_own_metrics_where_they_lie(name: str, tmp_path: Path) -> None:
    files = {port: tmp_path / port for port in INPUTS[name]}
    files |= {"metrics_file": tmp_path / "own.py"} if name == "evaluate" else {}
    for file in files.values():
        file.touch()
    pipeline, chosen = pipelines.load(name), load("docker")
    request = Request(output_dir=tmp_path / "runs", folder=tmp_path, environment={}, platform={})
    document = chosen.compile(pipeline, pipeline.resolve({k: str(v) for k, v in files.items()}), request)
    (stage,) = document.plan.stages
    assert stage.argv[:5] == ("python", "-P", "-m", "steps", pipelines.load(name).nodes[0].name)
    (line,) = chosen.shell(document)
    assert all(str(file) in line for file in files.values()) and "tuneport-trainer" in line
    assert not stage.step.needs_network()
