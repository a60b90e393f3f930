"""MLflow as the chart configures it, started for real: command, arguments and environment are those that Helm renders.

It stands in a network of its own, in which the names of the cluster lead to this machine, with PostgreSQL and an
emulator of S3 under the addresses that the values name. Pods run as the user, with the read-only root and without the
capabilities that their security contexts say.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
SERVICE = "tuneport-mlflow.team.svc"
NAMES = [SERVICE, f"{SERVICE}.cluster.local", "tuneport-mlflow", "mlflow.example", "evil.example"]
NAMES += ["s3.storage.example", "postgres.storage.example"]
SECRETS = {
    ("mlflow-database", "uri"): "postgresql://mlflow:p%40ss%2Fword@postgres.storage.example:5432/mlflow",
    ("mlflow-artifacts", "AWS_ACCESS_KEY_ID"): "key",
    ("mlflow-artifacts", "AWS_SECRET_ACCESS_KEY"): "secret",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make networks and change users"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("ip", "unshare", "nsenter", "setpriv"))), reason="iproute2 is missing"
    ),
]


ASK = """
import sys, urllib.error, urllib.request
url, host, *origin = sys.argv[1:]
headers = {"Host": host, "Content-Type": "application/json", **({"Origin": origin[0]} if origin else {})}
try:
    request = urllib.request.Request(url, b"{}" if origin else None, headers)
    print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).status)
except urllib.error.HTTPError as e:
    print(e.code)
except OSError:
    print(0)
"""


class Cluster:
    """A network in which the names of a cluster lead to this machine, and what runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "hosts").write_text("127.0.0.1 localhost " + " ".join(NAMES) + "\n")
        script = f"ip link set lo up && mount --bind {folder}/hosts /etc/hosts && echo up && exec sleep infinity"
        command = ["unshare", "--net", "--mount", "--propagation=private", "sh", "-c", script]
        self.holder = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != b"up\n":
            pytest.skip("no namespaces of networks and mounts here")

    def inside(self, *words: object) -> list[str]:
        """A command, as one that is run in there."""
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--mount", "--", *map(str, words)]

    def start(self, name: str, *words: object, env: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(self.inside(*words), stdout=log, stderr=log, env=env, start_new_session=True)
        self.processes.append(process)
        return process

    def run(self, *words: object, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(self.inside(*words), capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def python(self, script: str, *words: object) -> Any:
        """What a script prints as JSON."""
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"http://{SERVICE}:5000",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        return json.loads(self.run(sys.executable, "-c", script, *words, env=environment))

    def answer(self, path: str, host: str = SERVICE, url: str = f"http://{SERVICE}:5000", **post: str) -> int:
        """The status of an answer, of MLflow unless told otherwise; 0: there is none. With an origin: to a POST."""
        return int(self.run(sys.executable, "-c", ASK, url + path, host, *post.values()))

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.holder.kill()
        self.holder.wait()


def wait_for(condition: Callable[[], Any], process: "subprocess.Popen[bytes]", log: Callable[[], str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log()[-3000:]
        time.sleep(0.3)


def pod_command(spec: dict[str, Any], volumes: dict[str, Path]) -> tuple[list[str], dict[str, str]]:
    """What a pod's container runs, as its security context says, and its whole environment."""
    (container,) = spec["containers"]
    security, own = spec["securityContext"], container["securityContext"]
    assert own == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    mounts = []
    for mount in container["volumeMounts"]:
        (volume,) = (v for v in spec["volumes"] if v["name"] == mount["name"])
        # /tmp stays as it is, and writable: what is tested may lie under it.
        place = mount["mountPath"] if "emptyDir" in volume else volumes[volume["persistentVolumeClaim"]["claimName"]]
        mounts.append(f"mount --bind {place} {mount['mountPath']}")
    script = " && ".join([*mounts, "mount -o remount,bind,ro /", 'cd / && exec "$@"'])
    groups = f"--groups={security['fsGroup']}" if "fsGroup" in security else "--clear-groups"
    # One capability stays, to read the Python of this machine, which may lie in a folder of root's.
    reading = [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]
    user = [
        "setpriv",
        f"--reuid={security['runAsUser']}",
        f"--regid={security['runAsGroup']}",
        groups,
        "--no-new-privs",
    ]
    user += [*reading, "--bounding-set=-all,+dac_read_search", "--"]
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    for variable in container["env"]:
        if "value" in variable:
            environment[variable["name"]] = variable["value"]
        else:
            secret = variable["valueFrom"]["secretKeyRef"]
            environment[variable["name"]] = SECRETS[secret["name"], secret["key"]]
    words = [*container["command"], *container.get("args", [])]
    return ["unshare", "--mount", "sh", "-c", script, "sh", *user, *words], environment


class Server:
    """The chart's MLflow, up and answering, of some rendered objects."""

    def __init__(self, cluster: Cluster, objects: list[dict[str, Any]], volumes: dict[str, Path]) -> None:
        self.cluster, self.objects, self.volumes = cluster, objects, volumes
        (self.deployment,) = (o for o in objects if o["kind"] == "Deployment")
        self.start()

    def start(self) -> None:
        spec = self.deployment["spec"]["template"]["spec"]
        command, environment = pod_command(spec, self.volumes)
        self.process = self.cluster.start("mlflow", *command, env=environment)
        probe = spec["containers"][0]["startupProbe"]["httpGet"]
        assert spec["containers"][0]["ports"] == [{"name": probe["port"], "containerPort": 5000}]
        path = probe["path"]
        wait_for(lambda: self.cluster.answer(path) == 200, self.process, lambda: self.cluster.log("mlflow"))

    def stop(self) -> float:
        """Send SIGTERM; returns after how many seconds it had ended."""
        started = time.monotonic()
        self.process.terminate()
        self.process.wait(60)
        return time.monotonic() - started

    def helm_test(self) -> str:
        (pod,) = (o for o in self.objects if o["kind"] == "Pod" and o["metadata"]["name"] == "tuneport-test-mlflow")
        command, environment = pod_command(pod["spec"], self.volumes)
        return self.cluster.run(*command, env=environment)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.close()


@pytest.fixture
def mount_point() -> Iterator[Path]:
    """Where the volume of MLflow is mounted; the folder itself stays empty."""
    place = Path("/mlflow")
    there_already = place.exists()
    place.mkdir(exist_ok=True)
    yield place
    if not there_already:
        place.rmdir()


@pytest.fixture
def postgres(cluster: Cluster) -> Iterator[Callable[[str], str]]:
    """A PostgreSQL with the user and the empty database that the secret names; a function query -> its answer."""
    if POSTGRES is None:
        pytest.skip("PostgreSQL is missing: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="tuneport-postgres-"))
    (folder / "password").write_text("p@ss/word")
    subprocess.run(["chown", "-R", "postgres:", folder], check=True)
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
    options = ["--auth=scram-sha-256", "--username=mlflow", "--encoding=UTF8", "--no-locale", "--no-sync"]
    cluster.run(*user, POSTGRES / "initdb", f"--pgdata={folder}/data", f"--pwfile={folder}/password", *options)
    settings = ["-c", "fsync=off", "-c", f"unix_socket_directories={folder}"]
    server = cluster.start("postgres", *user, POSTGRES / "postgres", "-D", f"{folder}/data", *settings)
    ready = cluster.inside(POSTGRES / "pg_isready", "--host=127.0.0.1", "--quiet")
    wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, server, lambda: cluster.log("postgres"))
    environment = {**os.environ, "PGPASSWORD": "p@ss/word"}
    access = ["--host=postgres.storage.example", "--username=mlflow"]
    cluster.run(POSTGRES / "createdb", *access, "mlflow", env=environment)
    yield lambda query: cluster.run(
        POSTGRES / "psql", *access, "--dbname=mlflow", "-At", "-c", query, env=environment
    ).strip()
    server.send_signal(signal.SIGINT)  # fast: without waiting for clients
    server.wait(60)
    shutil.rmtree(folder)


@pytest.fixture
def bucket(cluster: Cluster) -> Callable[[], dict[str, int]]:
    """An emulator of S3 with the bucket that the values name; a function that lists its objects with their sizes."""
    environment = {**os.environ, "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"}  # the host's name is no bucket's
    command = [sys.executable, "-m", "moto.server", "--host=127.0.0.1", "--port=9000"]
    server = cluster.start("s3", *command, env=environment)
    script = """
import boto3, json, sys
client = boto3.client("s3", endpoint_url="http://s3.storage.example:9000", region_name="us-east-1",
                      aws_access_key_id="key", aws_secret_access_key="secret")
if sys.argv[1:]:
    client.create_bucket(Bucket="mlflow")
pages = client.get_paginator("list_objects_v2").paginate(Bucket="mlflow")
print(json.dumps({o["Key"]: o["Size"] for page in pages for o in page.get("Contents", [])}))
"""
    up = {"url": "http://s3.storage.example:9000", "host": "s3.storage.example"}
    wait_for(lambda: cluster.answer("/", **up), server, lambda: cluster.log("s3"))
    assert cluster.python(script, "create") == {}
    return lambda: cluster.python(script)


READ_BACK = """
import json, mlflow, sys, pathlib
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name(sys.argv[1])
(run,) = client.search_runs([experiment.experiment_id])
def paths(folder=None):
    for found in client.list_artifacts(run.info.run_id, folder):
        yield from paths(found.path) if found.is_dir else [found.path]
report = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/evaluation/report.html")
(version,) = client.search_model_versions("name='questions'")
model = mlflow.artifacts.download_artifacts(artifact_uri="models:/questions/1", dst_path=sys.argv[2])
print(json.dumps({
    "run": run.info.run_id, "experiment": experiment.experiment_id, "status": run.info.status,
    "params": run.data.params, "metrics": run.data.metrics, "artifact_uri": run.info.artifact_uri,
    "losses": len(client.get_metric_history(run.info.run_id, "train/loss")), "artifacts": sorted(paths()),
    "report": report,
    "version": version.version,
}))
"""


def test_a_pipeline_tracks_to_the_server_in_production_with_postgresql_and_s3(
    *,
    cluster: Cluster,
    postgres: Any,
    bucket: Any,
    render: Any,
    chart: Path,
    tmp_path: Path,
    tiny_model: Path,
    questions: Any,
    write_jsonl: Any,
) -> None:
    server = Server(cluster, render(chart / "values-production.yaml"), {})
    (service,) = (o for o in server.objects if o["kind"] == "Service")
    assert service["spec"]["ports"] == [{"name": "http", "port": 5000, "targetPort": "http"}]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        container = server.deployment["spec"]["template"]["spec"]["containers"][0]
        assert cluster.answer(container[name]["httpGet"]["path"], host="10.0.0.7:5000") == 200  # as a kubelet asks

    data = write_jsonl(tmp_path / "questions.jsonl", questions)
    words = {
        "pytorch_model_path": tiny_model,
        "train_file_path": data,
        "sentence1_key": "text",
        "label_key": "label",
        "max_steps": 6,
        "logging_steps": 2,
        "registered_model_name": "questions",
    }
    command = [BIN / "tuneport", "run", "text_classification", f"--output_dir={tmp_path}/run"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"http://{SERVICE}:5000"}
    cluster.run(*command, *(f"{name}={value}" for name, value in words.items()), env=environment)

    found = cluster.python(READ_BACK, "text_classification", tmp_path / "model")
    assert found["status"] == "FINISHED" and found["params"]["max_steps"] == "6" and found["losses"] == 3
    written = tmp_path / "run" / "model_evaluation" / "evaluation_result"
    metrics = json.loads((written / "metrics.json").read_text("utf-8"))["tuned"]["metrics"]
    assert found["metrics"]["test/accuracy"] == pytest.approx(metrics["accuracy"])
    assert found["report"] == (written / "report.html").read_text("utf-8")
    assert (found["version"], found["artifact_uri"].split(":")[0]) == ("1", "mlflow-artifacts")

    stored = bucket()
    prefix = f"artifacts/{found['experiment']}/{found['run']}/artifacts"
    assert {f"{prefix}/{path}" for path in found["artifacts"]} <= set(stored)
    assert stored[f"{prefix}/evaluation/report.html"] == (written / "report.html").stat().st_size
    assert any(key.endswith("/MLmodel") and "/models/m-" in key for key in stored)
    weights = [size for key, size in stored.items() if key.endswith(".safetensors")]
    (downloaded,) = (tmp_path / "model").rglob("*.safetensors")
    assert weights == [downloaded.stat().st_size]
    assert postgres(f"select count(*) from metrics where run_uuid = '{found['run']}' and key = 'train/loss'") == "3"
    assert postgres("select name, version from model_versions") == "questions|1"

    assert "parameters, metrics and artifacts are kept" in server.helm_test()
    search, create = "/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow/experiments/create"
    for host in ("tuneport-mlflow:5000", f"{SERVICE}.cluster.local:5000", "mlflow.example", "localhost:8080"):
        assert cluster.answer(search, host) == 200
    assert cluster.answer(search, "evil.example") == cluster.answer(search, f"{SERVICE}.evil.example:5000") == 403
    assert cluster.answer(create, "mlflow.example", origin="https://mlflow.example") == 400  # let in; {} has no name
    assert cluster.answer(create, "mlflow.example", origin="https://evil.example") == 403
    assert "p%40ss" not in " ".join(server.process.args) and "p%40ss" not in cluster.log("mlflow")


def test_a_pod_is_confined_here_as_its_security_context_says(cluster: Cluster, render: Any, chart: Path) -> None:
    (deployment,) = (o for o in render(chart / "values-production.yaml") if o["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    script = f"id -u; id -g; id -G; touch /tmp/.tuneport && rm /tmp/.tuneport; touch /new {BIN}/new; su -c true"
    confined = {**container, "command": ["sh", "-c"], "args": [f"exec 2>&1; {script}; true"]}
    command, environment = pod_command({**spec, "containers": [confined]}, {})
    said = cluster.run(*command, env=environment).splitlines()
    assert said[:3] == ["1000", "1000", "1000"] and len(said) == 6, said
    assert "Read-only file system" in said[3] and "touch" in said[4] and "su:" in said[5], said


COUNT_RUNS = """
import json, mlflow
print(json.dumps(len(mlflow.search_runs(experiment_names=["helm-test"], run_view_type=mlflow.entities.ViewType.ALL))))
"""


def test_a_server_without_a_database_keeps_everything_on_its_volume(
    *, cluster: Cluster, mount_point: Path, render: Any, chart: Path
) -> None:
    volume = Path(tempfile.mkdtemp(prefix="tuneport-volume-"))
    try:
        shutil.chown(volume, 0, 1000)  # as a volume is, whose group is that of the pod
        volume.chmod(0o2775)
        server = Server(cluster, render(chart / "values-kind.yaml"), {"tuneport-mlflow": volume})
        assert "parameters, metrics and artifacts are kept" in server.helm_test()
        assert cluster.python(COUNT_RUNS) == 1
        assert {path.name for path in volume.iterdir()} == {"mlflow.db", "artifacts"}
        assert [path.read_text("utf-8") for path in volume.rglob("artifact.txt")] == ["kept"]
        assert volume.joinpath("mlflow.db").stat().st_uid == 1000
        assert server.stop() < 25  # before a kubelet would end it
        server.start()
        assert cluster.python(COUNT_RUNS) == 1
        assert list(mount_point.iterdir()) == []
    finally:
        shutil.rmtree(volume)
