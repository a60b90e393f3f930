"""What the docker target decides before anything runs: refusals, what a container sees, and where MLflow's store is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pipelines
from tuneport.artifacts import CustomModel, File, MLTable
from tuneport.errors import UserError
from tuneport.runner.request import Request
from tuneport.targets import load, settings
from tuneport.targets.docker import ContainerPlan
from tuneport.targets.docker.container import Mount, hub_cache, local_store, merged, read_only


def compiled(
    platform: dict[str, Any] | None = None, environment: dict[str, str] | None = None, **values: str
) -> ContainerPlan:
    pipeline = pipelines.load("text_classification")
    request = Request(
        output_dir=Path("/runs/1"),
        folder=Path("/home/me"),
        environment=environment or {},
        platform={"docker": platform or {}},
    )
    given = {"sentence1_key": "text", "label_key": "label", "train_file_path": "/data/t.jsonl", **values}
    given["pytorch_model_path"] = "/models/m"
    return load("docker").compile(pipeline, pipeline.resolve(given), request)


def test_the_plan_is_that_of_the_local_target_with_the_images_own_python() -> None:
    plan = compiled().plan
    assert [stage.name for stage in plan.stages] == [
        "model_import", "preprocess", "finetune", "model_export", "model_evaluation",
    ]  # fmt: skip
    assert all(stage.argv[:4] == ("python", "-P", "-m", "steps") for stage in plan.stages)
    assert not Path("/runs").exists()


def test_equal_requests_compile_to_equal_documents() -> None:
    assert compiled() == compiled()
    assert compiled({"memory": "1g"}) != compiled({"memory": "2g"})


def test_a_size_that_docker_does_not_read_is_refused() -> None:
    compiled(shm_size_finetune="512m")
    with pytest.raises(UserError, match=r"shm_size_finetune='5 GB': not valid; expected a size as Docker writes it"):
        compiled(shm_size_finetune="5 GB")


def test_an_mlflow_server_on_localhost_is_refused_unless_containers_share_the_network() -> None:
    environment = {"MLFLOW_TRACKING_URI": "http://localhost:5000"}
    with pytest.raises(UserError, match=r"in a container that is the container itself.*platform.docker.network"):
        compiled(environment=environment)
    compiled({"network": "host"}, environment)
    compiled(environment={"MLFLOW_TRACKING_URI": "http://localhosts.example:5000"})


def test_a_variable_to_pass_on_that_is_not_set_is_refused() -> None:
    compiled({"environment": ["AWS_REGION"]}, {"AWS_REGION": "x"})
    with pytest.raises(UserError, match=r"platform.docker.environment: AWS_REGION is not set here"):
        compiled({"environment": ["AWS_REGION"]})


def test_unknown_and_invalid_settings_are_refused_by_name() -> None:
    request = Request(
        output_dir=Path("/o"), folder=Path("/f"), environment={}, platform={"docker": {"memory": "lots", "gpu": 1}}
    )
    with pytest.raises(UserError) as e:
        settings(load("docker"), request)
    assert "platform.docker.memory='lots'" in str(e.value)
    assert "platform.docker.gpu=1" in str(e.value)


def mounts(artifact: File | MLTable | CustomModel) -> dict[str, str]:
    """What is mounted for an input: place in the container → place here."""
    return {str(m.target): str(m.source) for m in read_only(artifact)}


def test_a_file_a_folder_and_a_glob_are_shown_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text("{}")
    for given, shown in (("data/a.jsonl", "data/a.jsonl"), ("data", "data"), ("data/*.jsonl", "data")):
        assert mounts(File(tmp_path / given)) == {str(tmp_path / shown): str(tmp_path / shown)}


def test_what_links_lead_to_is_shown_where_they_point(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--o--n" / "blobs", tmp_path / "models--o--n" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "abc").write_text("x")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    (snapshot / "inside").symlink_to("model.safetensors")
    found = mounts(CustomModel(snapshot))
    assert found == {str(snapshot): str(snapshot), str(blobs / "abc"): str(blobs / "abc")}


def test_what_a_models_links_lead_to_elsewhere_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "chat_template_x.jinja").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=r"chat_template_x\.jinja: is a link to '/etc/passwd', outside of"):
        mounts(CustomModel(tmp_path / "model"))


def test_the_files_that_a_table_names_elsewhere_are_shown(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("{}")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "MLTable").write_text("paths:\n  - file: ../rows/a.jsonl\n")
    assert str(tmp_path / "rows" / "a.jsonl") in mounts(MLTable(tmp_path / "table"))


def test_outer_places_come_first_and_one_that_is_written_to_stays_writable() -> None:
    def mount(path: str, writable: bool = False) -> Mount:
        return Mount(source=Path(path), target=Path(path), writable=writable)

    found = merged([mount("/a/b/c"), mount("/a", True), mount("/a/b"), mount("/a")])
    assert [(str(m.target), m.writable) for m in found] == [("/a", True), ("/a/b", False), ("/a/b/c", False)]
    with pytest.raises(UserError, match="/: cannot be shown to a container"):
        merged([mount("/")])


def test_commas_and_quotes_in_a_path_survive_dockers_own_notation() -> None:
    path = Path('/a,b "c"')
    assert Mount(source=path, target=path).flag() == ('type=bind,"source=/a,b ""c""","target=/a,b ""c""",readonly')


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("sqlite:////home/me/mlflow.db", "/home/me"),
        ("sqlite:///mlflow.db", "/here"),
        ("sqlite:////a%20b/x.db?timeout=3", "/a b"),
        ("file:///data/mlruns", "/data/mlruns"),
        ("mlruns", "/here/mlruns"),
        ("http://x:5000", None),
        ("postgresql://u@h/db", None),
        ("databricks", None),
    ],
)
def test_mlflows_store_is_a_folder_or_a_server(uri: str, folder: str | None) -> None:
    assert local_store(uri, Path("/here")) == (Path(folder) if folder else None)


def test_the_hubs_cache_is_where_its_own_library_puts_it() -> None:
    assert hub_cache({"HF_HUB_CACHE": "/c"}) == Path("/c")
    assert hub_cache({"HF_HOME": "/h"}) == Path("/h/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    assert hub_cache({}) == Path("~/.cache/huggingface/hub").expanduser()


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`tuneport run … --target docker` on a model and rows that are there."""
    (folder / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n')
    return subprocess.run(
        [Path(sys.executable).with_name("tuneport"), "run", "text_classification", "--target", "docker",
         "sentence1_key=text", "label_key=label", "train_file_path=rows.jsonl", "pytorch_model_path=."],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_docker_that_does_not_answer_is_named_with_the_way_out(tmp_path: Path) -> None:
    if not shutil.which("docker"):
        pytest.skip("the docker command is not installed")
    result = run(tmp_path, DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert result.returncode == 2
    assert "error: Docker does not answer (" in result.stderr
    assert "Start Docker, or use --target local." in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_machine_without_docker_is_told_so(tmp_path: Path) -> None:
    result = run(tmp_path, PATH=str(tmp_path))
    assert result.returncode == 2
    assert (
        "error: the docker command is not there. Install Docker and start it, or use --target local." in result.stderr
    )
