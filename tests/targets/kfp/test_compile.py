"""What the document says, beyond the golden files, and what is refused before there is one."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipelines
from tests.targets.kfp import documents
from tuneport.errors import UserError
from tuneport.runner.request import Request
from tuneport.targets import load

DIGEST = "@sha256:" + 64 * "0"
IMAGES = {"base": f"registry.example/base{DIGEST}", "trainer": f"registry.example/trainer{DIGEST}"}
VALUES = {
    "pytorch_model_path": "s3://models/base",
    "train_file_path": "s3://data/train.jsonl",
    "sentence1_key": "text",
    "label_key": "label",
}
Compile = Callable[..., dict[str, Any]]


def compiled(platform: dict[str, Any] | None = None, **values: object) -> dict[str, Any]:
    """The pipeline's half of the document for text_classification; the cluster's half under the key ``kubernetes``."""
    pipeline = pipelines.load("text_classification")
    section = {"kfp": {"images": IMAGES, **(platform or {})}}
    request = Request(output_dir=Path("/runs/1"), folder=Path("/home/me"), environment={}, platform=section)
    document = load("kfp").compile(pipeline, pipeline.resolve({**VALUES, **values}), request)
    spec, cluster = yaml.safe_load_all(document.text)
    return {**spec, "kubernetes": cluster["platforms"]["kubernetes"]["deploymentSpec"]["executors"]}


def test_stages_of_one_result_are_cached_and_training_and_what_reads_an_address_are_not() -> None:
    def cached(**values: object) -> set[str]:
        volume = {"volumes": [{"claim": "data", "path": "/mnt"}]}
        tasks = compiled(volume, registered_model_name="m", **values)["root"]["dag"]["tasks"]
        return {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}

    assert cached() == {"importer", "importer-2", "model-import", "model-export", "model-evaluation"}
    on_volume = {"importer", "model-import", "preprocess", "model-export", "model-evaluation"}
    assert cached(train_file_path="/mnt/train.jsonl") == on_volume


def test_benchmarks_are_part_of_the_graph_only_by_name_and_read_a_folder_as_it_is_imported() -> None:
    pipeline, platform = pipelines.load("chat_completion"), {"kfp": {"images": IMAGES}}
    request = Request(output_dir=Path("/runs/1"), folder=Path("/home/me"), environment={}, platform=platform)
    given = {"pytorch_model_path": "s3://models/base", "train_file_path": "s3://data/train.jsonl"}
    named = {"benchmark_tasks": "hellaswag", "benchmark_folder": "s3://data/benchmarks", "benchmark_rows": 100}

    def tasks(**values: object) -> dict[str, Any]:
        document = load("kfp").compile(pipeline, pipeline.resolve({**given, **values}), request)
        found: dict[str, Any] = next(yaml.safe_load_all(document.text))["root"]["dag"]["tasks"]
        return found

    assert "model-benchmark" not in tasks()
    task = tasks(**named)["model-benchmark"]
    assert task["inputs"]["artifacts"]["benchmark_folder"]["taskOutputArtifact"]["outputArtifactKey"] == "artifact"
    assert task["inputs"]["parameters"]["benchmark_rows"] == {"componentInputParameter": "benchmark_rows"}
    assert task["cachingOptions"].get("enableCache")
    assert not tasks(benchmark_tasks="hellaswag")["model-benchmark"]["cachingOptions"].get("enableCache")


@pytest.mark.parametrize(("revision", "cached"), [(None, False), ("main", False), (40 * "a", True)])
def test_a_hub_model_is_cached_only_at_a_commit(revision: str | None, cached: bool) -> None:
    spec = compiled(pytorch_model_path=None, huggingface_id="acme/m", huggingface_revision=revision)
    assert bool(spec["root"]["dag"]["tasks"]["model-import"]["cachingOptions"].get("enableCache")) is cached


def test_registration_is_part_of_the_graph_only_with_a_name() -> None:
    assert "model-registration" not in compiled()["root"]["dag"]["tasks"]
    spec = compiled(registered_model_name="questions")
    assert "model-registration" in spec["root"]["dag"]["tasks"]
    assert spec["root"]["inputDefinitions"]["parameters"]["registered_model_name"]["defaultValue"] == "questions"


# Of stages that do not run.
REGISTRATION = {"registered_model_name", "register_if", "move_champion", "hub_model_id", "hub_private_repo"}


def test_the_configured_values_become_the_parameters_defaults_with_help_and_bounds() -> None:
    parameters = compiled(learning_rate=3e-4)["root"]["inputDefinitions"]["parameters"]
    rate = parameters["learning_rate"]
    assert (rate["defaultValue"], rate["parameterType"]) == (3e-4, "NUMBER_DOUBLE")
    assert rate["description"].endswith("(a number > 0 and <= 1)")
    assert "one of loss, accuracy" in parameters["metric_for_best_model"]["description"]
    every = pipelines.load("text_classification").params
    settled = {name for name, port in every.items() if port.kind == "resource" or port.resource}
    absent = {name for name, port in every.items() if port.kind == "input"} - {"pytorch_model_path", "train_file_path"}
    assert set(parameters) == set(every) - settled - absent - REGISTRATION
    assert all(parameters[name]["description"] for name in parameters)


def test_data_comes_by_importer_from_a_volume_or_from_a_web_server() -> None:
    spec = compiled(
        {"volumes": [{"claim": "data", "path": "/mnt/data"}]},
        pytorch_model_path="/mnt/data/model",
        validation_file_path="https://data.example/v.csv",
    )
    tasks = spec["root"]["dag"]["tasks"]
    assert [name for name in tasks if name.startswith("importer")] == ["importer"]
    assert set(tasks["preprocess"]["inputs"]["artifacts"]) == {"model_selector_output", "train_file_path"}
    assert tasks["preprocess"]["inputs"]["parameters"]["validation_file_path_location"] == {
        "componentInputParameter": "validation_file_path"
    }
    assert "pytorch_model_path_location" in tasks["model-import"]["inputs"]["parameters"]
    assert spec["kubernetes"]["exec-model-import"]["pvcMount"][0]["mountPath"] == "/mnt/data"


def test_what_is_imported_is_imported_again_in_each_run_where_that_is_asked_for() -> None:
    def importers(**settings: Any) -> tuple[set[bool], set[bool]]:
        spec = compiled(settings)
        executors = [e["importer"] for e in spec["deploymentSpec"]["executors"].values() if "importer" in e]
        tasks = [task for name, task in spec["root"]["dag"]["tasks"].items() if name.startswith("importer")]
        cached = {bool(task["cachingOptions"].get("enableCache")) for task in tasks}
        return {bool(found.get("reimport")) for found in executors}, cached

    assert importers() == ({False}, {True})
    assert importers(reimport=True) == ({True}, {False})


def test_what_is_not_given_is_an_optional_input_of_its_component() -> None:
    artifacts = compiled()["components"]["comp-preprocess"]["inputDefinitions"]["artifacts"]
    optional = {name for name, artifact in artifacts.items() if artifact.get("isOptional")}
    assert optional == {
        f"{split}_{kind}_path" for split in ("train", "validation", "test") for kind in ("file", "mltable")
    }
    assert not artifacts["model_selector_output"].get("isOptional")


def test_a_stages_settings_go_before_those_for_all() -> None:
    found = compiled(
        {
            "memory_limit": "8Gi",
            "environment": {"A": "1"},
            "stages": {"finetune": {"memory_limit": "32Gi", "environment": {"B": "2"}, "image": f"other{DIGEST}"}},
        },
        number_of_gpu_to_use_finetuning=3,
    )
    executors = found["deploymentSpec"]["executors"]
    limits = {name: e["container"]["resources"] for name, e in executors.items() if "container" in e}
    assert limits["exec-finetune"]["resourceMemoryLimit"] == "32Gi"
    assert limits["exec-preprocess"]["resourceMemoryLimit"] == "8Gi"
    finetune = executors["exec-finetune"]["container"]
    assert finetune["image"] == f"other{DIGEST}"
    assert {e["name"]: e["value"] for e in finetune["env"]}.items() >= {"A": "1", "B": "2"}.items()
    assert finetune["args"][2:4] == ["--number_of_gpu_to_use_finetuning", "3"]
    assert "accelerator" not in limits["exec-finetune"]


def test_a_stage_gets_as_many_accelerators_as_processes() -> None:
    platform = {"stages": {"finetune": {"accelerator_type": "amd.com/gpu"}}}
    executors = compiled(platform, number_of_gpu_to_use_finetuning=3)["deploymentSpec"]["executors"]
    accelerator = executors["exec-finetune"]["container"]["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("amd.com/gpu", "3")


def test_shared_memory_is_a_volume_in_memory_of_the_size_asked_for() -> None:
    found = compiled({"stages": {"model_export": {"shm_size": "1Gi"}}}, shm_size_finetune="512m")["kubernetes"]
    mounts = {name: {m["volumeName"]: m for m in e.get("emptyDirMounts", ())} for name, e in found.items()}
    shm = {name: of_stage["shm"] for name, of_stage in mounts.items() if "shm" in of_stage}
    assert {name: mount["sizeLimit"] for name, mount in shm.items()} == {
        "exec-finetune": "512Mi",
        "exec-model-export": "1Gi",
    }
    assert all(m["medium"] == "Memory" and m["mountPath"] == "/dev/shm" for m in shm.values())


def tmp(**settings: Any) -> dict[str, str | None]:
    found = compiled(settings)["kubernetes"]
    mounts = {name: [m for m in e.get("emptyDirMounts", ()) if m["mountPath"] == "/tmp"] for name, e in found.items()}
    return {name.removeprefix("exec-"): of[0]["sizeLimit"] if of else None for name, of in mounts.items()}


def test_what_a_stage_keeps_in_tmp_is_bounded_but_for_one_that_fetches_a_model() -> None:
    sizes = tmp()
    assert sizes.pop("model-import") is None
    assert set(sizes.values()) == {"16Gi"} and len(sizes) >= 4
    sizes = tmp(stages={"model_import": {"tmp_size": "200Gi"}, "finetune": {"tmp_size": "1Gi"}})
    assert (sizes["model-import"], sizes["finetune"], sizes["preprocess"]) == ("200Gi", "1Gi", "16Gi")
    assert not any(tmp(volumes=[{"claim": "scratch", "path": "/tmp"}]).values()), "a volume of the user's own"


def test_compiling_twice_gives_the_same() -> None:
    assert compiled() == compiled()


REFUSED: list[tuple[dict[str, Any], dict[str, object], str]] = [
    ({"images": {"base": "registry.example/base:1", "trainer": IMAGES["trainer"]}}, {}, "images by digest"),
    ({"images": {"base": "Not An Image", "trainer": IMAGES["trainer"]}}, {}, "platform.kfp.images.base='Not An Image'"),
    ({"images": {"base": IMAGES["base"]}}, {}, "platform.kfp.images.trainer"),
    ({"images": {"base": f"x@sha256:{63 * '0'}", "trainer": IMAGES["trainer"]}}, {}, "platform.kfp.images.base="),
    ({"memory_limit": "16 GB"}, {}, "platform.kfp.memory_limit='16 GB'"),
    ({"cpu_limit": "four"}, {}, "platform.kfp.cpu_limit='four'"),
    ({"cpu_request": "-1"}, {}, "platform.kfp.cpu_request='-1'"),
    ({"memory_request": "8Gi", "memory_limit": "4Gi"}, {}, "memory_request (8Gi) up to memory_limit (4Gi)"),
    ({"cpu_request": "1500m", "cpu_limit": 1}, {}, "cpu_request (1500m) up to cpu_limit (1)"),
    ({"stages": {"finetune": {"memory_limit": "1XB"}}}, {}, "platform.kfp.stages.finetune.memory_limit='1XB'"),
    ({"stages": {"finetun": {}}}, {}, "platform.kfp.stages.finetun: unknown stage"),
    (
        {"stages": {"finetune": {"accelerator_type": "nvidia.com/gpu", "accelerator_count": 2}}},
        {},
        "is given by number_of",
    ),
    ({"stages": {"finetune": {"shm_size": "1Gi"}}}, {}, "shm_size of finetune is given by shm_size_finetune"),
    ({"accelerator_type": "gpu"}, {}, "platform.kfp.accelerator_type='gpu'"),
    ({"volumes": [{"claim": "My_Claim", "path": "/mnt"}]}, {}, "platform.kfp.volumes.0.claim='My_Claim'"),
    ({"volumes": [{"claim": "data", "path": "mnt"}]}, {}, "platform.kfp.volumes.0.path='mnt'"),
    (
        {"volumes": [{"claim": "a", "path": "/m"}, {"claim": "b", "path": "/m"}]},
        {},
        "each mount path once; got /m twice",
    ),
    ({"secrets": [{"name": "hub"}]}, {}, "platform.kfp.secrets.0"),
    ({"secrets": [{"name": "hub", "environment": {"1X": "k"}}]}, {}, "platform.kfp.secrets.0.environment"),
    ({"tolerations": [{"operator": "Equal"}]}, {}, "expected a key, or operator: Exists"),
    ({"tolerations": [{"key": "k", "effect": "NoWay"}]}, {}, "platform.kfp.tolerations.0.effect='NoWay'"),
    ({"node_selector": {"a b": "c"}}, {}, "platform.kfp.node_selector"),
    ({"namespace": "Team_A"}, {}, "platform.kfp.namespace='Team_A'"),
    ({"service_account": "-x"}, {}, "platform.kfp.service_account='-x'"),
    ({"retries": {"count": -1}}, {}, "platform.kfp.retries.count=-1"),
    ({"retries": {"backoff": "soon"}}, {}, "platform.kfp.retries.backoff='soon'"),
    ({"timeout": "1 day"}, {}, "platform.kfp.timeout='1 day'"),
    ({"security": {"run_as_user": -1}}, {}, "platform.kfp.security.run_as_user=-1"),
    ({"gpus": 2}, {}, "platform.kfp.gpus=2"),
    ({}, {"train_file_path": "/home/me/train.csv"}, "train_file_path=/home/me/train.csv: is a path that no stage"),
    ({"volumes": [{"claim": "d", "path": "/mnt"}]}, {"train_file_path": "/mnt/../x"}, "is a path that no stage"),
    ({}, {"train_file_path": "minoi://data/train.csv"}, "Did you mean 'minio'?"),
    ({}, {"pytorch_model_path": "s3://models/*"}, "Kubeflow imports no pattern"),
    ({}, {"train_file_path": "s3://data"}, "expected s3://bucket/key"),
    ({}, {"train_file_path": "oci://registry.example/data"}, "takes models from an image registry, but no data"),
    ({}, {"pytorch_model_path": "https://models.example/base"}, "no folder can be fetched by https"),
    ({}, {"shm_size_finetune": "5x"}, "shm_size_finetune='5x': not valid"),
    ({}, {"train_file_path": None}, "no training data"),
    ({}, {"huggingface_id": "acme/m"}, "expected exactly one of"),
    ({}, {"max_steps": 0}, "max_steps=0: trains nothing"),
    ({}, {"lora_r": 4}, "no effect without apply_lora=true"),
]


@pytest.mark.parametrize(("platform", "values", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_the_cluster_would_stumble_over_is_refused_at_once(
    platform: dict[str, Any], values: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as e:
        compiled(copy.deepcopy(platform), **values)
    assert message in str(e.value)


def test_what_only_azure_has_is_refused() -> None:
    from tuneport.targets import check_resources

    pipeline = pipelines.load("text_classification")
    with pytest.raises(UserError, match="compute_finetune='big': --target kfp has no way to honour it"):
        check_resources(pipeline, pipeline.resolve({**VALUES, "compute_finetune": "big"}), load("kfp"))


def test_images_without_a_digest_are_taken_where_the_settings_say_so() -> None:
    images = {"base": "localhost:5000/base", "trainer": "trainer:1"}
    executors = compiled({"images": images, "allow_image_tags": True})["deploymentSpec"]["executors"]
    assert executors["exec-preprocess"]["container"]["image"] == "localhost:5000/base"


def test_compiling_imports_no_torch_and_writes_one_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**VALUES, "platform": {"kfp": {"images": IMAGES}}}))
    script = (
        "import sys, pipelines.__main__ as m\n"
        "sys.argv[1:] = ['compile', 'text_classification', '--config', 'run.yaml', '--target', 'kfp', '-o', 'p.yaml']\n"
        "try:\n    m.run()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "assert not {'torch', 'transformers', 'mlflow', 'datasets'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote p.yaml\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.yaml", "run.yaml"]


def test_labels_of_all_stages_reach_the_pod_that_launches_a_job() -> None:
    _, platform = documents.parsed(documents.compiled("text_classification.pytorchjob"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-finetune"]["podMetadata"]["labels"] == {"team": "language"}


def test_what_becomes_of_a_job_whose_launcher_is_evicted_and_its_runtime_reach_the_launcher() -> None:
    shared = {"shared_volume": {"claim": "training", "path": "/mnt/training"}, "kubeflow_job": "trainjob"}
    own = {"when_evicted": "suspend", "runtime": "tuneport", "runtime_kind": "TrainingRuntime"}
    pipeline = pipelines.load("text_classification")

    def compiled(several: dict[str, object], **values: object) -> str:
        platform = {"kfp": {"images": IMAGES, **shared, "multi_node": several}}
        request = Request(output_dir=Path("/runs"), folder=Path("/home"), environment={}, platform=platform)
        given = {**VALUES, "num_nodes_finetune": 2, **values}
        text: str = load("kfp").compile(pipeline, pipeline.resolve(given), request).text
        return text

    spec = next(yaml.safe_load_all(compiled(own)))
    words = spec["deploymentSpec"]["executors"]["exec-finetune"]["container"]["args"]
    known = json.loads(words[words.index("--kfp_job") + 1])
    assert known["when_evicted"] == "suspend" and known["job"]["runtime_kind"] == "TrainingRuntime"
    with pytest.raises(UserError, match="when_evicted=suspend: not with queue"):
        compiled({**own, "queue": "gpus"})
    compiled({**own, "elastic_min_nodes": 1})
    with pytest.raises(UserError, match="elastic_min_nodes: not with fsdp=full_shard, whose checkpoints are in parts"):
        compiled({**own, "elastic_min_nodes": 1}, fsdp="full_shard")


def test_the_document_is_a_component_of_ones_own_pipeline(tmp_path: Path) -> None:
    from kfp import compiler, components, dsl

    pipeline = pipelines.load("text_classification")
    request = Request(
        output_dir=Path("/runs/1"), folder=Path("/home/me"), environment={}, platform={"kfp": {"images": IMAGES}}
    )
    document = load("kfp").compile(pipeline, pipeline.resolve(VALUES), request)
    (tmp_path / "pipeline.yaml").write_text(document.text)
    tune = components.load_component_from_file(str(tmp_path / "pipeline.yaml"))

    @dsl.pipeline(name="nightly")
    def nightly(learning_rate: float = 2e-5) -> None:
        tuned = tune(learning_rate=learning_rate)
        assert {"pytorch_model_folder", "mlflow_model_folder", "evaluation_result"} == tuned.outputs.keys()

    compiler.Compiler().compile(nightly, str(tmp_path / "nightly.yaml"))
    spec = next(yaml.safe_load_all((tmp_path / "nightly.yaml").read_text()))
    given = spec["root"]["dag"]["tasks"]["text-classification"]["inputs"]["parameters"]["learning_rate"]
    assert given == {"componentInputParameter": "learning_rate"}
