"""Machines without a shared volume: what the document says of them, and what is refused before there is a job."""

import copy
import errno
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import CountingProxy, bucket, client, reached
from tests.targets.kfp.test_compile import compiled
from tests.targets.kfp.test_executor import ROOT, artifacts, executor_input, run
from tuneport import digests, stored_artifacts
from tuneport.address import Address
from tuneport.artifacts import File, Model, absent, leave_absent, write_manifest
from tuneport.errors import UserError
from tuneport.step import Step, consumes, param, produces
from tuneport.targets.kfp import by_address

STORE = {
    "multi_node": {"artifacts": "store"},
    "environment": {"AWS_ENDPOINT_URL": "http://minio-service.kubeflow:9000"},
    "secrets": [
        {
            "name": "mlpipeline-minio-artifact",
            "environment": {"AWS_ACCESS_KEY_ID": "accesskey", "AWS_SECRET_ACCESS_KEY": "secretkey"},
        }
    ],
}
CONFIGURATION = "s3://configurations/zero.json"
HANDED = {"model_selector_output": "model-import", "preprocess_output": "preprocess"}


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return compiled(copy.deepcopy(STORE), num_nodes_finetune=2, apply_deepspeed=True, deepspeed=CONFIGURATION)


def test_the_stage_takes_addresses_so_that_kubeflow_fetches_nothing_for_the_pod_that_launches(
    spec: dict[str, Any],
) -> None:
    task = spec["root"]["dag"]["tasks"]["finetune"]
    assert "artifacts" not in task["inputs"]
    for name, producer in HANDED.items():
        key = f"{name}_location"
        handed = task["inputs"]["parameters"][key]["taskOutputParameter"]
        assert handed == {"outputParameterKey": key, "producerTask": producer}
        assert (
            spec["components"][f"comp-{producer}"]["outputDefinitions"]["parameters"][key]["parameterType"] == "STRING"
        )
    assert task["inputs"]["parameters"]["deepspeed_location"]["componentInputParameter"] == "deepspeed"
    assert not [name for name in spec["root"]["dag"]["tasks"] if "deepspeed" in name]  # nothing imports it
    read = spec["root"]["dag"]["tasks"]["model-export"]["inputs"]["artifacts"].values()  # as ever
    assert "finetune" in [handed.get("taskOutputArtifact", {}).get("producerTask") for handed in read]


def test_no_volume_is_mounted_no_secret_is_shown_and_the_machines_disks_have_no_bound_but_their_own(
    spec: dict[str, Any],
) -> None:
    words = spec["deploymentSpec"]["executors"]["exec-finetune"]["container"]["args"]
    known = json.loads(words[words.index("--kfp_job") + 1])
    assert "shared" not in known and "volumes" not in known["job"] and known["job"]["tmp_size"] == "unlimited"
    assert known["job"]["secrets"] == STORE["secrets"]
    assert known["job"]["environment"]["AWS_ENDPOINT_URL"] == "http://minio-service.kubeflow:9000"
    launcher = spec["kubernetes"]["exec-finetune"]
    assert "pvcMount" not in launcher
    assert launcher["secretAsEnv"][0]["secretName"] == "mlpipeline-minio-artifact"
    of_stage = compiled({**STORE, "stages": {"finetune": {"tmp_size": "400Gi"}}}, num_nodes_finetune=2)
    words = of_stage["deploymentSpec"]["executors"]["exec-finetune"]["container"]["args"]
    assert json.loads(words[words.index("--kfp_job") + 1])["job"]["tmp_size"] == "400Gi"


def test_without_several_machines_the_document_is_the_one_that_it_was() -> None:
    assert compiled({"multi_node": {"artifacts": "store"}}) == compiled({})


def test_with_artifacts_of_stages_of_one_machine_by_the_store_only_what_leaves_files_there_takes_an_address() -> None:
    spec = compiled({**STORE, "multi_node": {}, "artifacts": "store"}, registered_model_name="m")
    tasks, executors = spec["root"]["dag"]["tasks"], spec["deploymentSpec"]["executors"]
    by_store = {n for n, e in executors.items() if "--kfp_artifacts" in e.get("container", {}).get("args", ())}
    assert by_store == {"exec-model-import", "exec-finetune", "exec-model-export", "exec-model-evaluation"}
    addresses = {
        (name, key): handed["taskOutputParameter"]["outputParameterKey"]
        for name, task in tasks.items()
        for key, handed in task.get("inputs", {}).get("parameters", {}).items()
        if "taskOutputParameter" in handed
    }
    assert addresses == {
        ("model-export", "pytorch_model_folder_location"): "tuned_model_location",
        ("model-evaluation", "pytorch_model_folder_location"): "pytorch_model_folder_location",
        ("model-evaluation", "model_selector_output_location"): "model_selector_output_location",
    }
    assert {*tasks["finetune"]["inputs"]["artifacts"]} == {"model_selector_output", "preprocess_output"}
    assert tasks["model-export"]["inputs"]["artifacts"].keys() == {"preprocess_output"}
    assert "emptyDirMounts" not in spec["kubernetes"]["exec-model-export"]  # /tmp takes what is fetched


@pytest.mark.parametrize(("where", "by_kubeflow"), [("s3://models/base", False), ("oci://registry.example/base", True)])
def test_a_base_model_of_a_store_is_read_there_by_its_import_and_kubeflow_fetches_it_not(
    where: str, by_kubeflow: bool
) -> None:
    settings = {**copy.deepcopy(STORE), "multi_node": {}, "artifacts": "store"}
    tasks = compiled(settings, pytorch_model_path=where)["root"]["dag"]["tasks"]
    assert ("artifacts" in tasks["model-import"]["inputs"]) == by_kubeflow
    handed = tasks["model-import"]["inputs"]["parameters"]
    assert ("pytorch_model_path_location" in handed) == (not by_kubeflow)


def test_several_machines_take_the_store_with_the_others_unless_they_share_a_volume() -> None:
    by_store = compiled({**STORE, "multi_node": {}, "artifacts": "store"}, num_nodes_finetune=2)
    assert by_store["root"]["dag"]["tasks"]["finetune"]["inputs"].keys() == {"parameters"}
    volume = {"shared_volume": {"claim": "training", "path": "/mnt/training"}}
    shared = compiled({**STORE, **volume, "multi_node": {}, "artifacts": "store"}, num_nodes_finetune=2)
    assert "artifacts" in shared["root"]["dag"]["tasks"]["finetune"]["inputs"]
    export = shared["root"]["dag"]["tasks"]["model-export"]["inputs"]["parameters"]
    assert "taskOutputParameter" in export["pytorch_model_folder_location"]


def test_a_shared_volume_beside_the_store_is_refused_and_a_missing_one_names_the_store() -> None:
    volume = {"shared_volume": {"claim": "training", "path": "/mnt/training"}}
    with pytest.raises(UserError, match=r"shared_volume: has no effect with multi_node\.artifacts=store"):
        compiled({**STORE, **volume}, num_nodes_finetune=2)
    with pytest.raises(UserError, match=r"needs platform\.kfp\.shared_volume.* or artifacts=store"):
        compiled({}, num_nodes_finetune=2)


@pytest.mark.parametrize(
    ("uri", "environment", "found"),
    [
        ("s3://bucket/a/b", {}, "s3://bucket/a/b"),
        ("gs://bucket/a", {}, "gs://bucket/a"),
        ("minio://mlpipeline/v2/x", {"AWS_ENDPOINT_URL": "http://minio:9000"}, "s3://mlpipeline/v2/x"),
        ("minio://mlpipeline/v2/x", {"AWS_ENDPOINT_URL_S3": "http://minio:9000"}, "s3://mlpipeline/v2/x"),
    ],
)
def test_an_artifact_of_kubeflow_is_an_address_that_libraries_open(
    uri: str, environment: dict[str, str], found: str
) -> None:
    assert by_address.address("tuned_model", uri, environment).text == found


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (
            "minio://mlpipeline/v2/x",
            "tuned_model=minio://mlpipeline/v2/x: .* Set platform.kfp.environment.AWS_ENDPOINT_URL",
        ),
        ("/runs/1/x", r"tuned_model=/runs/1/x: is in no object store .* expected a pipeline root with s3, gs or minio"),
        ("oci://registry/x", "is in no object store"),
    ],
)
def test_a_pipeline_root_that_machines_cannot_read_is_refused(uri: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        by_address.address("tuned_model", uri, {})


def test_the_refusal_comes_before_there_is_a_job(tmp_path: Path) -> None:
    task = executor_input(tmp_path, ("pytorch_model_folder",), {f"{name}_location": "s3://b/x" for name in HANDED})
    task["outputs"]["artifacts"] = artifacts(pytorch_model_folder="minio://mlpipeline/v2/x")
    job = {"kind": "pytorchjob", "pending_seconds": 1, "job": {"image": "x", "nodes": 2, "processes": 1}}
    flags = ("--task_name", "text_classification", "--kfp_job", json.dumps(job), "--kfp_run_id", "r")
    command = [sys.executable, "-P", "-m", "steps", "finetune", *flags, "--kfp_executor_input", json.dumps(task)]
    left = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    done = subprocess.run(
        command, env={**left, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert "pytorch_model_folder=minio://mlpipeline/v2/x: is in a store of the cluster's own" in done.stderr


def test_a_stage_says_the_address_of_what_it_wrote(tiny_model: Path, tmp_path: Path) -> None:
    task = executor_input(tmp_path / "out", ("model_selector_output",), {}, pytorch_model_path=tiny_model)
    file = tmp_path / "parameters" / "location"
    task["outputs"]["parameters"] = {"model_selector_output_location": {"outputFile": str(file)}}
    done = run("model_import", task)
    assert done.returncode == 0, done.stderr
    assert file.read_text() == str(tmp_path / "out" / "model_selector_output")


class Doubling(Step):
    """Write a model that is the model it reads, twice."""

    keeps_on_failure = ("checkpoints",)
    resume_with = {"again": "true"}  # noqa: RUF012

    model: Model = consumes("A model.")
    configuration: File | None = consumes("A file without a manifest.")
    doubled: Model = produces("The model, twice.")
    copied: Model = produces("The same again.", optional=True)
    again: bool = param("Whether to go on.", default=False)

    def resumes(self) -> bool:
        return self.again

    def run(self) -> None: ...


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingProxy]:
    """A machine with a scratch folder of its own, and its way to a store with a model and a file."""

    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 8192)
    write_manifest(Model(model), "model_import", "1", {}, {})
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    for variable in (digests.VARIABLE, stored_artifacts.CHECKPOINTS, stored_artifacts.LEFT):
        monkeypatch.setenv(variable, "")
    with bucket("runs") as url:
        way = CountingProxy(url)
        with reached(way.url, monkeypatch):
            client(url).put_object(Bucket="runs", Key="zero.json", Body=b"{}")
            stored_artifacts.send(Model(model), Address("s3://runs/model"))
            way.up = way.down = 0
            yield way
            way.stop()


def test_a_machine_reads_once_before_its_ranks_start_and_sends_what_they_wrote_once(machine: CountingProxy) -> None:
    outputs = {"doubled": "s3://runs/out/doubled", "copied": "s3://runs/out/copied"}
    given = {"model": "s3://runs/model", "configuration": "s3://runs/zero.json", **outputs}
    seen: list[dict[str, Any]] = []

    def ranks(values: Mapping[str, Any]) -> int:
        seen.append({**values, "store": os.environ[stored_artifacts.CHECKPOINTS], "down": machine.down})
        weights = (values["model"] / "model.safetensors").read_bytes()
        for name in outputs if len(seen) > 1 else ():
            values[name].mkdir(parents=True)
            (values[name] / "model.safetensors").write_bytes(weights * 2)
            write_manifest(Model(values[name]), "double", "1", {}, {})
        return 0 if len(seen) > 1 else 1

    assert by_address.run(Doubling, given, ranks) == 1
    assert machine.up < 100_000  # a machine whose ranks failed, or wrote nothing, sends nothing
    assert by_address.run(Doubling, given, ranks) == 0
    size = 256 * 8192
    assert size < seen[0]["down"] < 1.1 * size and machine.down < 1.2 * size  # the second time it was there
    assert 2 * size < machine.up < 2.2 * size  # what both outputs hold, once
    assert seen[0]["again"] == "true" and seen[0]["configuration"].read_text() == "{}"
    assert seen[0]["store"] == "s3://runs/out/doubled/checkpoints"
    by_address.check({name: (Model, Address(place)) for name, place in outputs.items()})
    found = digests.KnownDigests()
    found.read(Path(os.environ[digests.VARIABLE]))
    assert len(found.files) >= 1  # so that no rank reads the weights again for their digest


class Passing(Step):
    """Write a model that holds what the model it reads holds, unread."""

    may_leave = {"model": ("*.safetensors",)}  # noqa: RUF012

    model: Model = consumes("A model.")
    limit: int = param("What it reads the weights for.", default=0)
    passed: Model = produces("The model, elsewhere.")

    def needs(self, name: str) -> bool:
        return self.limit > 0 or self.context.tracking_uri is not None

    def run(self) -> None: ...


@pytest.mark.parametrize(("limit", "server", "read"), [("0", "", False), ("1", "", True), ("0", "sqlite:///x", True)])
def test_a_stage_leaves_weights_in_the_store_unless_it_says_that_it_reads_them(
    limit: str, server: str, read: bool, machine: CountingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    place = Address("s3://runs/out/passed")

    def work(values: Mapping[str, Any]) -> int:
        assert (values["model"] / "model.safetensors").is_file() == read
        values["passed"].mkdir(parents=True)
        if read:
            (values["passed"] / "model.safetensors").write_bytes((values["model"] / "model.safetensors").read_bytes())
        leave_absent(values["passed"], absent(values["model"]))
        write_manifest(Model(values["passed"]), "pass", "1", {}, {})
        return 0

    assert by_address.run(Passing, {"model": "s3://runs/model", "limit": limit, "passed": place.text}, work) == 0
    size = 256 * 8192
    assert machine.up < 100_000 and (machine.down > size) == read
    by_address.check({"passed": (Model, place)})
    assert stored_artifacts.StoredFolder(place).sizes()["model.safetensors"] == size


def test_a_machine_of_an_elastic_job_stays_until_the_result_of_another_one_is_sent(
    machine: CountingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PET_NNODES", "1:2")  # as the operator sets it
    monkeypatch.setattr(by_address, "LOOK_SECONDS", 0.1)
    place = Address("s3://runs/out")
    others = threading.Timer(1.0, stored_artifacts.send, (Model(tmp_path / "model"), place))
    others.start()
    assert by_address.run(Doubling, {"model": "s3://runs/model", "doubled": place.text}, lambda values: 0) == 0
    by_address.check({"doubled": (Model, place)})
    others.join()


def test_where_a_volume_is_the_scratch_folder_another_run_reads_its_own_inputs(
    machine: CountingProxy, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"of another run")
    write_manifest(Model(other), "model_import", "1", {}, {})
    stored_artifacts.send(Model(other), Address("s3://runs/2/model"))
    seen: list[bytes] = []

    def ranks(values: Mapping[str, Any]) -> int:
        seen.append((values["model"] / "model.safetensors").read_bytes()[:14])
        return 0

    for run_of in ("s3://runs", "s3://runs/2"):
        by_address.run(Doubling, {"model": f"{run_of}/model", "doubled": f"{run_of}/out"}, ranks)
    assert seen == [bytes(range(14)), b"of another run"]


def test_a_file_of_a_web_server_that_says_no_size_is_fetched_and_its_query_is_in_no_path(tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Nothing is said."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = Address(f"http://127.0.0.1:{server.server_port}/zero.json?sig=a/secret")
        found = stored_artifacts.fetch_file(address, tmp_path, patience=1)
        server.shutdown()
    assert found == tmp_path / "zero.json" and found.read_text() == "{}"


def test_a_machine_without_room_for_what_it_reads_says_so(
    machine: CountingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(digests.HashedFile, "write", full)  # a disk that is full cannot be had here
    given = {"model": "s3://runs/model", "doubled": "s3://runs/out"}
    with pytest.raises(
        UserError, match=r"tuneport-doubling-\w+: the disk is full .* platform\.kfp\.stages\.doubling\.tmp_size"
    ):
        by_address.run(Doubling, given, lambda values: 0)


def test_a_machine_whose_values_are_all_paths_runs_its_stage_as_it_is(tmp_path: Path) -> None:
    given = {"model": tmp_path / "model", "doubled": tmp_path / "out"}
    assert by_address.run(Doubling, given, lambda values: 0 if values is given else 1) == 0
