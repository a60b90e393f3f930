"""Two machines that share no folder train one model: what they read and write lies in a real S3 server (moto's).

The pods are processes, each with a scratch folder of its own; what each of them and the launcher exchange with the
store is counted.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.launchers.fake_kubernetes import run_pods, start_process
from tests.launchers.test_launch import JOB, ROOT
from tests.object_store import CountingProxy, bucket, client, reached
from tests.warm_python import COLD
from tuneport.address import Address
from tuneport.artifacts import CustomModel, Dataset, Model, verify
from tuneport.stored_artifacts import fetch, send

BUCKET = "mlpipeline"
PIPELINE_ROOT = f"minio://{BUCKET}/v2/artifacts/run"
STEPS, EVERY = 16, 4
SETTLED = {"task_name": "text_classification", "num_nodes_finetune": "2"}
PARAMETERS = {
    "max_steps": STEPS,
    "evaluation_strategy": "steps",
    "eval_steps": EVERY,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "save_total_limit": -1,
}


class Ground:
    """A store, and two machines that reach it by a way of their own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.s3, self.folder = client(url), folder
        self.ways = {name: CountingProxy(url) for name in ("launcher", "master-0", "worker-0")}
        self.attempt = 0
        self.pods: dict[str, subprocess.Popen[bytes]] = {}

    def held(self) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def has(self, ending: str) -> bool:
        return any(key.endswith(ending) for key in self.held())

    def pod(self, name: str, container: dict[str, Any], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        own = next(way for way in self.ways if name.endswith(way))
        scratch = self.folder / f"attempt-{self.attempt}" / own
        scratch.mkdir(parents=True)
        there = {"TMPDIR": str(scratch), "AWS_ENDPOINT_URL": self.ways[own].url, "OMP_NUM_THREADS": "1"}
        self.pods[own] = start_process([sys.executable, *container["command"][1:]], os.environ | environment | there)
        return self.pods[own]

    def launch(self, out: str) -> "subprocess.Popen[str]":
        self.attempt += 1
        folder = self.folder / f"attempt-{self.attempt}" / "launcher"
        folder.mkdir(parents=True)

        def artifact(name: str, **more: str) -> dict[str, Any]:
            return {"artifacts": [{"name": name, "uri": f"{PIPELINE_ROOT}/{out}/{name}", **more}]}

        outputs = {name: artifact(name) for name in ("pytorch_model_folder", "tuned_model")}
        outputs["training_metrics"] = artifact("training_metrics", customPath=str(folder / "training_metrics"))
        inputs = {f"{n}_location": f"{PIPELINE_ROOT}/{n}" for n in ("model_selector_output", "preprocess_output")}
        task = {
            "inputs": {"parameterValues": {**PARAMETERS, **inputs}},
            "outputs": {"artifacts": outputs, "outputFile": str(folder / "executor_output.json")},
        }
        job = {**JOB, "job": {**JOB["job"], "processes": 1, "tmp_size": "unlimited"}}
        command = [
            sys.executable,
            "-P",
            "-m",
            "steps",
            "finetune",
            *(w for n, v in SETTLED.items() for w in (f"--{n}", v)),
        ]
        command += ["--kfp_executor_input", json.dumps(task), "--kfp_job", json.dumps(job), "--kfp_run_id", out]
        there = {"AWS_ENDPOINT_URL": self.ways["launcher"].url, "TMPDIR": str(folder)}
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT), "KFP_POD_NAME": "w-impl-0", **there, **COLD},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def fetched(self, out: str, name: str) -> Path:
        place = self.folder / "result" / out / name
        fetch(Model(place), Address(f"s3://{BUCKET}/v2/artifacts/run/{out}/{name}"))
        return place


@pytest.fixture
def ground(
    tmp_path: Path, tiny_model: Path, questions: list[dict[str, str]], write_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ground]:
    """A store with what finetune reads; the base model has weights of a few MiB."""

    import steps
    from tuneport.stage import execute

    base = tmp_path / "base"
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(base)
    config = transformers.AutoConfig.from_pretrained(tiny_model, vocab_size=30_000)
    transformers.set_seed(1)
    transformers.AutoModel.from_config(config).save_pretrained(base)
    model, prepared = tmp_path / "model_selector_output", tmp_path / "preprocess_output"
    execute(steps.load("model_import")(pytorch_model_path=CustomModel(base), model_selector_output=model))
    rows = {
        "sentence1_key": "text",
        "label_key": "label",
        "train_file_path": write_jsonl(tmp_path / "q.jsonl", questions),
    }
    preprocess = steps.load("preprocess", "text_classification")
    execute(preprocess(model_selector_output=model, preprocess_output=prepared, **rows))
    with bucket(BUCKET) as url, reached(url, monkeypatch):
        found = Ground(url, tmp_path)
        for artifact in (Model(model), Dataset(prepared)):
            send(artifact, Address(f"s3://{BUCKET}/v2/artifacts/run/{artifact.path.name}"))
        yield found
        for way in found.ways.values():
            way.stop()


@pytest.mark.slow
def test_two_machines_without_a_common_folder_train_and_go_on_after_one_was_killed(
    ground: Ground, fake_kubernetes: Any, tmp_path: Path
) -> None:
    fake_kubernetes(lambda fake, job: run_pods(fake, job, ground.pod, lambda _: "127.0.0.1"))
    one = (tmp_path / "model_selector_output" / "model.safetensors").stat().st_size

    launcher = ground.launch("whole")
    said, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, said
    assert "best loss" in said  # rank 0's log
    moved = {name: (way.down / one, way.up / one) for name, way in ground.ways.items()}
    whole = ground.fetched("whole", "pytorch_model_folder")
    verify(Model(whole))
    checkpoints = {
        p.name: sum(f.stat().st_size for f in p.rglob("*")) / one for p in (whole / "checkpoints").glob("c*")
    }
    assert sorted(checkpoints) == ["checkpoint-12", "checkpoint-16", "checkpoint-4", "checkpoint-8"]
    rngs = {path.name for path in (whole / "checkpoints" / "checkpoint-8").glob("rng*")}
    assert rngs == {"rng_state_0.pth", "rng_state_1.pth"}  # of both machines
    # Each machine reads the model once; each checkpoint is sent once, and the result is copied within the store.
    assert sum(moved["launcher"]) < 0.03
    assert 1 < moved["master-0"][0] < 1.2 and 1 < moved["worker-0"][0] < 1.2
    assert moved["master-0"][1] < sum(checkpoints.values()) + 0.2 and moved["worker-0"][1] < 0.1
    reported = json.loads((tmp_path / "attempt-1" / "launcher" / "executor_output.json").read_text())["artifacts"]
    assert reported["tuned_model"]["artifacts"][0]["uri"] == f"{PIPELINE_ROOT}/whole/tuned_model"
    assert reported["training_metrics"]["artifacts"][0]["metadata"]["steps"] == STEPS
    assert not Path(f"/minio/{BUCKET}/v2/artifacts/run/whole").exists()  # so Kubeflow has nothing to upload

    launcher = ground.launch("killed")
    wait_for(ground, launcher, 2 * EVERY)
    os.killpg(ground.pods["worker-0"].pid, signal.SIGKILL)
    said, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 2 and "has failed" in said, said
    assert not ground.has("killed/pytorch_model_folder/manifest.json")
    newest = max(int(key.split("/")[-2].removeprefix("checkpoint-")) for key in ground.held() if is_seal(key))
    damaged = next(
        key for key in ground.held() if f"killed/pytorch_model_folder/checkpoints/checkpoint-{newest}/opt" in key
    )
    ground.s3.put_object(Bucket=BUCKET, Key=damaged, Body=b"cut")

    launcher = ground.launch("killed")
    wait_for(ground, launcher, STEPS - EVERY)
    ground.ways["master-0"].stop()
    time.sleep(3)
    ground.ways["master-0"].start()
    said, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, said
    assert f"checkpoint-{newest} is skipped" in said and "optimizer.pt: has 3 bytes" in said, said
    assert f"resuming from checkpoint-{newest - EVERY}" in said, said
    weights = [f / "model.safetensors" for f in (whole, ground.fetched("killed", "pytorch_model_folder"))]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def wait_for(ground: Ground, launcher: "subprocess.Popen[str]", step: int) -> None:
    """Wait until a checkpoint of the training that is killed is whole in the store."""
    while not ground.has(f"killed/pytorch_model_folder/checkpoints/checkpoint-{step}/manifest.json"):
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.1)


def is_seal(key: str) -> bool:
    """Whether a key is that of a checkpoint's manifest, of the training that was killed."""
    return "killed/" in key and "/checkpoint-" in key and key.endswith("/manifest.json")
