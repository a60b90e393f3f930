"""A configuration whose data lies in an object store: prepared here, planned for containers, compiled for clusters."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipelines
import steps
from tests.object_store import VARIABLES, bucket, client, reached
from tuneport.artifacts import Dataset
from tuneport.errors import UserError
from tuneport.graph import Node, Pipeline, Ref
from tuneport.runner.request import Request
from tuneport.stage import execute
from tuneport.targets import load

COLUMNS = {"sentence1_key": "text", "label_key": "label"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with bucket("rows") as url:
        yield url


@pytest.fixture
def environment(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    with reached(server, monkeypatch):
        yield dict(os.environ)


def body(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def digests(output: Path) -> dict[str, str]:
    files = json.loads((output / "manifest.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if "report" not in name}


def test_rows_of_a_store_become_the_same_dataset_as_those_of_files_and_the_manifest_says_their_version(
    *,
    server: str,
    environment: dict[str, str],
    imported_model: Path,
    questions: list[dict[str, str]],
    tmp_path: Path,
    write_jsonl: Callable[..., Path],
) -> None:
    (tmp_path / "here").mkdir()
    for name, rows in (("a.jsonl", questions[:70]), ("b.jsonl", questions[70:])):
        write_jsonl(tmp_path / "here" / name, rows)
        client(server).put_object(Bucket="rows", Key=f"there/{name}", Body=(tmp_path / "here" / name).read_bytes())
    made = {}
    for name, data in (("here", str(tmp_path / "here")), ("there", "s3://rows/there")):
        step = steps.load("preprocess", "text_classification")(
            model_selector_output=imported_model,
            train_file_path=data,
            preprocess_output=tmp_path / f"prepared-{name}",
            **COLUMNS,
        )
        execute(step)
        made[name] = tmp_path / f"prepared-{name}"
    assert digests(made["here"]) == digests(made["there"])
    manifest = (made["there"] / "manifest.json").read_text()
    assert json.loads(manifest)["inputs"]["train_file_path"].startswith("2 files, sha256:")
    assert VARIABLES["AWS_SECRET_ACCESS_KEY"] not in manifest


def prepares(model: Path, data: Any) -> Pipeline:
    """A pipeline of preprocess alone, on data that lies somewhere."""
    step = steps.load("preprocess", "text_classification")
    values = {
        "model_selector_output": step.ports()["model_selector_output"].parse(model),
        "train_file_path": step.ports()["train_file_path"].parse(data),
        "task_name": "text_classification",
        **COLUMNS,
    }
    outputs = {"preprocess_output": Ref("preprocess", "preprocess_output")}
    node = Node(name="preprocess", step=step, values=values)
    return Pipeline(name="prepare", doc="", nodes=(node,), params={}, outputs=outputs)


def test_a_stage_is_cached_while_its_address_holds_the_same_and_runs_again_when_it_does_not(
    *,
    server: str,
    environment: dict[str, str],
    imported_model: Path,
    questions: list[dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client(server).put_object(Bucket="rows", Key="moving.jsonl", Body=body(questions))
    pipeline = prepares(imported_model, "s3://rows/moving.jsonl")
    request = Request(output_dir=tmp_path / "run", folder=tmp_path, environment=environment)
    target = load("local")

    def ends() -> str:
        assert target.submit(target.compile(pipeline, {}, request)) == 0
        return capsys.readouterr().out

    assert "preprocess | cached" not in ends()
    assert "cached" in ends()
    client(server).put_object(Bucket="rows", Key="moving.jsonl", Body=body(questions[:-3]))
    assert "changed: version of train_file_path" in ends()
    report = json.loads((tmp_path / "run/preprocess/preprocess_output/data_report.json").read_text())
    assert report["sources"]["train"]["read"] == len(questions) - 3
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [p for p in kept if VARIABLES["AWS_SECRET_ACCESS_KEY"].encode() in p.read_bytes()]
    assert Dataset(tmp_path / "run/preprocess/preprocess_output").path.is_dir()


IMAGE = "registry.example/image@sha256:" + 64 * "0"
PLATFORM = {
    "kfp": {"images": {"base": IMAGE, "trainer": IMAGE}},
    "azureml": {"image_base": "registry.example/base:1", "image_trainer": "registry.example/trainer:1"},
}


def compiled(target: str, address: str, tmp_path: Path, environment: dict[str, str]) -> Any:
    pipeline = pipelines.load("text_classification")
    values = pipeline.resolve({"huggingface_id": "acme/model", "train_file_path": address, **COLUMNS})
    request = Request(output_dir=tmp_path / "run", folder=tmp_path, environment=environment, platform=PLATFORM)
    return load(target).compile(pipeline, values, request)


@pytest.mark.parametrize("address", ["s3://rows/shards", "s3://rows/*.jsonl.gz", "hf://datasets/acme/rows/train.csv"])
def test_the_same_address_compiles_for_every_target(address: str, tmp_path: Path, environment: dict[str, str]) -> None:
    plan = compiled("local", address, tmp_path, environment)
    argv = next(stage.argv for stage in plan.stages if stage.name == "preprocess")
    assert argv[argv.index("--train_file_path") + 1] == address
    assert address in compiled("kfp", address, tmp_path, environment).text
    files = compiled("azureml", address, tmp_path, environment).files
    assert files["job.yaml"]["inputs"]["train_file_path"] == address
    assert files["components/preprocess.yaml"]["inputs"]["train_file_path"]["type"] == "string"
    assert not files["components/preprocess.yaml"]["is_deterministic"]


def test_a_container_that_reads_a_store_gets_its_credentials_and_the_network_and_no_other_does(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    from tuneport.targets.docker.container import run_flags

    (tmp_path / "credentials").write_text("[default]\n")
    environment["AWS_SHARED_CREDENTIALS_FILE"] = str(tmp_path / "credentials")
    plan = compiled("docker", "s3://rows/train.jsonl", tmp_path, environment)
    stages = {stage.name: run_flags(plan.plan, stage, plan.settings, gpus=False) for stage in plan.plan.stages}
    flags = stages["preprocess"]
    assert flags[flags.index("--network") + 1] == "bridge"
    assert "AWS_ACCESS_KEY_ID" in flags
    assert f"AWS_SHARED_CREDENTIALS_FILE={tmp_path / 'credentials'}" in flags
    assert any(f"target={tmp_path / 'credentials'}" in flag for flag in flags)
    assert VARIABLES["AWS_SECRET_ACCESS_KEY"] not in " ".join(flags)
    assert not any("AWS" in flag for flag in stages["finetune"])


MIXED = '[{"path": "s3://rows/a.jsonl", "weight": 2}, {"path": "hf://datasets/acme/rows", "weight": 1}]'


def test_several_sources_compile_for_every_target(tmp_path: Path, environment: dict[str, str]) -> None:
    plan = compiled("local", MIXED, tmp_path, environment)
    argv = next(stage.argv for stage in plan.stages if stage.name == "preprocess")
    assert argv[argv.index("--train_file_path") + 1] == MIXED
    spec, _ = yaml.safe_load_all(compiled("kfp", MIXED, tmp_path, environment).text)
    assert spec["root"]["inputDefinitions"]["parameters"]["train_file_path"]["defaultValue"] == MIXED
    assert not any("train_file_path" in name for name in spec["root"]["dag"]["tasks"])  # nothing is imported
    executor = next(e for name, e in spec["deploymentSpec"]["executors"].items() if "preprocess" in name)
    assert "HF_HUB_OFFLINE" not in {entry["name"] for entry in executor["container"]["env"]}
    files = compiled("azureml", MIXED, tmp_path, environment).files
    assert files["job.yaml"]["inputs"]["train_file_path"] == MIXED
    assert files["components/preprocess.yaml"]["inputs"]["train_file_path"]["type"] == "string"


@pytest.mark.parametrize(
    ("target", "source", "said"),
    [
        ("kfp", "/data/rows.jsonl", "is a path that no stage on the cluster sees"),
        ("kfp", "minio://rows/a.jsonl", "of several sources each is read by the stage itself; expected an address"),
        ("azureml", "azureml:rows:1", "of several sources each is read by the stage itself; expected an address"),
        ("azureml", "/data/rows.jsonl", "Name one data asset, or upload the file."),
    ],
)
def test_a_source_that_a_platform_s_stage_cannot_read_is_refused(
    target: str, source: str, said: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    with pytest.raises(UserError) as e:
        compiled(target, json.dumps(["s3://rows/a.jsonl", source]), tmp_path, environment)
    assert f"train_file_path={source}: " in str(e.value) and said in str(e.value)


def test_a_container_sees_each_local_source_and_the_credentials_of_each_other(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    from tuneport.targets.docker.container import run_flags

    (tmp_path / "rows.jsonl").write_text("{}\n")
    sources = json.dumps([str(tmp_path / "rows.jsonl"), "s3://rows/a.jsonl"])
    plan = compiled("docker", sources, tmp_path, environment)
    stage = next(stage for stage in plan.plan.stages if stage.name == "preprocess")
    flags = run_flags(plan.plan, stage, plan.settings, gpus=False)
    assert any(f"target={tmp_path / 'rows.jsonl'}" in flag for flag in flags)
    assert "AWS_ACCESS_KEY_ID" in flags and flags[flags.index("--network") + 1] == "bridge"


def test_a_stage_of_several_sources_is_cached_until_one_of_them_changes(
    *,
    server: str,
    environment: dict[str, str],
    imported_model: Path,
    questions: list[dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client(server).put_object(Bucket="rows", Key="mixed.jsonl", Body=body(questions[:60]))
    (tmp_path / "here.jsonl").write_bytes(body(questions[60:]))
    target, request = load("local"), Request(output_dir=tmp_path / "run", folder=tmp_path, environment=environment)

    def ends(weight: int = 1) -> str:
        sources = [
            {"path": "s3://rows/mixed.jsonl", "weight": weight},
            {"path": str(tmp_path / "here.jsonl"), "weight": 1},
        ]
        pipeline = prepares(imported_model, sources)
        assert target.submit(target.compile(pipeline, {}, request)) == 0
        return capsys.readouterr().out

    assert "preprocess | cached" not in ends()
    assert "cached" in ends()
    (tmp_path / "here.jsonl").write_bytes(body(questions[60:-1]))
    assert "changed: input train_file_path" in ends()
    assert "changed: input train_file_path" in ends(weight=2)
    client(server).put_object(Bucket="rows", Key="mixed.jsonl", Body=body(questions[:50]))
    assert "changed: version of train_file_path[1]" in ends(weight=2)
