"""The tuned model goes to a fake of the hub as one commit with its card, or a message says what is missing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import load_file

import pipelines
import steps
from steps.model_upload import ModelUpload
from tests.fake_hub import WritableHub
from tuneport import targets
from tuneport.artifacts import Dataset, Model, write_manifest
from tuneport.errors import UserError
from tuneport.runner.request import Request
from tuneport.stage import execute

TOKEN = "hf_aSecretOfTests"


@pytest.fixture(scope="module")
def tuned(imported_model: Path, prepared_questions: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What finetune hands on: ``plain``, a model; with adapters, ``whole`` with checkpoints, ``beside`` its base."""
    folder = tmp_path_factory.mktemp("tuned")
    made = SimpleNamespace(**{name: folder / name for name in ("whole", "beside", "plain")})
    for merge in (True, False):
        execute(
            steps.load("finetune", "text_classification")(
                model_selector_output=Model(imported_model),
                preprocess_output=Dataset(prepared_questions),
                max_steps=1,
                per_device_train_batch_size=8,
                apply_lora=True,
                merge_lora_weights=merge,
                pytorch_model_folder=Model(folder / "merged" if merge else made.whole),
                tuned_model=Model(made.plain if merge else made.beside),
            )
        )
    return made


@pytest.fixture
def hub() -> Iterator[WritableHub]:
    hub = WritableHub()
    hub.account(TOKEN, "ada", organisations=("acme",))
    yield hub
    hub.server.shutdown()


@pytest.fixture
def upload(hub: WritableHub, tuned: SimpleNamespace, tmp_path: Path) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """Return a function that runs the stage as a process of its own: its exit code, what it said and what it wrote."""

    def run(folder: Path | None = None, *, environment: dict[str, str] | None = None, **values: str) -> Any:
        given = {"pytorch_model_folder": str(folder or tuned.plain), "hub_upload_folder": str(tmp_path / "out")}
        given |= {"hub_model_id": "acme/questions", **values}
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
        settings |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"} | (environment or {})
        flags = [word for name, value in given.items() for word in (f"--{name}", value)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        command = [sys.executable, "-m", "steps", "model_upload", *flags]
        settings = {name: value for name, value in (kept | settings).items() if value}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        wrote = tmp_path / "out" / "hub_upload.json"
        assert TOKEN not in done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr, json.loads(wrote.read_text()) if wrote.is_file() else {}

    return run


Upload = Callable[..., tuple[int, str, dict[str, Any]]]


def test_the_model_and_its_card_are_one_commit_and_nothing_of_this_program_is(
    upload: Upload, hub: WritableHub, tuned: SimpleNamespace
) -> None:
    code, said, wrote = upload()
    assert code == 0, said
    held = hub.content("acme/questions")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= held.keys()
    left_out = ("checkpoints", "logs", "trainer_state.json", "training.json", "tracking.json", "manifest.json")
    assert not [name for name in held if name.startswith((*left_out, "adapter_"))]
    for name in held.keys() - {".gitattributes"}:
        assert held[name] == (tuned.plain / name).read_bytes()
    assert b"library_name: transformers" in held["README.md"], "the card of the merged model"
    assert len(hub.log) == 1 and hub.repositories["acme/questions"]["private"]
    assert wrote["repo_id"] == "acme/questions" and wrote["url"] == f"{hub.url}/acme/questions" and wrote["is_new"]
    assert wrote["commit"] == hub.repositories["acme/questions"]["commits"][-1][0] and wrote["commit"] in said


def test_the_same_bytes_twice_are_one_commit(upload: Upload, hub: WritableHub) -> None:
    first, second = upload(), upload()
    assert (first[0], second[0]) == (0, 0), second[1]
    assert len(hub.log) == 1 and second[2]["commit"] == first[2]["commit"] and not second[2]["is_new"]
    assert "has all" in second[1]


def seal(folder: Path) -> Path:
    """As the stage that wrote it would."""
    write_manifest(Model(folder), "finetune", "0", {}, {})
    return folder


def test_weights_of_an_earlier_model_do_not_stay_beside_those_of_a_later_one(
    upload: Upload, hub: WritableHub, tuned: SimpleNamespace, tmp_path: Path
) -> None:
    """A sharded model's loader would take model.safetensors, were it still there."""
    upload()
    sharded = Path(shutil.copytree(tuned.plain, tmp_path / "sharded"))
    (sharded / "manifest.json").unlink()
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00001.safetensors")
    names = load_file(sharded / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    code, said, wrote = upload(seal(sharded))
    assert code == 0, said
    assert wrote["deleted"] == ["model.safetensors"] and "1 files of another model were deleted" in said
    assert sorted(n for n in hub.content("acme/questions") if "safetensors" in n) == [
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    ]


def test_a_model_in_a_folder_of_the_repository_stays(upload: Upload, hub: WritableHub) -> None:
    upload()
    commits = hub.repositories["acme/questions"]["commits"]
    commits.append(("a" * 40, {**commits[-1][1], "earlier/model.safetensors": b"of another"}))
    code, said, wrote = upload()
    assert code == 0 and wrote["deleted"] == [], said
    assert hub.content("acme/questions")["earlier/model.safetensors"] == b"of another"


@pytest.mark.parametrize("folder", ["whole", "beside"])
def test_adapters_are_uploaded_as_adapters_without_their_checkpoints_or_their_base_model(
    folder: str, upload: Upload, hub: WritableHub, tuned: SimpleNamespace
) -> None:
    code, said, _ = upload(vars(tuned)[folder], hub_model_id="ada/adapters", hub_private_repo="false")
    assert code == 0, said
    held = hub.content("ada/adapters")
    assert "adapter_model.safetensors" in held and not [name for name in held if "checkpoint" in name]
    assert not [name for name in held if "base_model" in name] and "model.safetensors" not in held
    assert b"library_name: peft" in held["README.md"] and not hub.repositories["ada/adapters"]["private"]


def test_a_name_without_an_owner_is_of_the_account_and_what_is_public_stays_so_with_a_warning(
    upload: Upload, hub: WritableHub
) -> None:
    assert upload(hub_model_id="mine", hub_private_repo="false")[0] == 0
    code, said, wrote = upload(hub_model_id="mine")
    assert code == 0 and wrote["repo_id"] == "ada/mine"
    assert "hub_private_repo=true: ada/mine is public already, and stays so" in said


@pytest.mark.parametrize(
    ("token", "repo_id", "says"),
    [
        ("", "acme/questions", "there is no token to write to"),
        ("hf_unknown", "acme/questions", "It does not know the token: set HF_TOKEN"),
        ("hf_reads", "bob/questions", "the token 'tuning' of bob may only read"),
        (TOKEN, "others/questions", "the token is of ada, who is not a member of others. Expected one of ada, acme"),
    ],
)
def test_a_token_that_may_not_write_is_refused_before_anything_is_sent(
    token: str, repo_id: str, says: str, *, upload: Upload, hub: WritableHub, tmp_path: Path
) -> None:
    hub.account("hf_reads", "bob", role="read")
    code, said, _ = upload(environment={"HF_TOKEN": token}, hub_model_id=repo_id)
    assert code == 2 and says in said, said
    assert not hub.repositories and not (tmp_path / "out").exists()
    assert not [path for path in hub.paths if "create" in path or "commit" in path]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (403, "answered 403 (You are not allowed to.). The token may not write there"),
        (429, "Wait until it takes requests again"),
    ],
)
def test_what_the_hub_refuses_in_the_end_is_explained(
    status: int, says: str, upload: Upload, hub: WritableHub, tmp_path: Path
) -> None:
    hub.refuses = status
    code, said, _ = upload()
    assert code == 2 and says in said, said
    assert not (tmp_path / "out").exists()


def test_weights_that_the_hub_s_store_does_not_take_are_explained(
    upload: Upload, hub: WritableHub, tmp_path: Path
) -> None:
    hub.stores = False
    code, said, _ = upload()
    assert code == 2 and "hub_model_id=acme/questions: the files could not be sent (" in said, said
    assert "403" in said and "Run this stage again later" in said and not hub.log and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("environment", "says"),
    [({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_a_hub_out_of_reach_is_explained(environment: dict[str, str], says: str, upload: Upload) -> None:
    code, said, _ = upload(environment=environment)
    assert code == 2 and says in said, said


def test_the_token_of_a_cached_login_is_taken(upload: Upload, hub: WritableHub, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)
    code, said, _ = upload(environment={"HF_TOKEN": ""})
    assert code == 0 and hub.repositories, said


@pytest.mark.parametrize(
    ("repo_id", "says"),
    [
        ("datasets/acme/rows", "is a repository of datasets; expected NAME, or ORGANISATION/NAME"),
        ("https://huggingface.co/acme/x", "is an address"),
        ("acme/tiny bert", "not valid; expected NAME"),
        ("a/b/c", "not valid"),
    ],
)
def test_an_id_that_cannot_be_one_is_refused_before_anything_runs(repo_id: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        ModelUpload(pytorch_model_folder=Path("m"), hub_model_id=repo_id).check()
    assert says in str(refused.value)


def test_a_run_is_refused_at_once_where_it_would_fail_at_its_end(
    *,
    tuneport: Callable[..., int],
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    rows = write_jsonl(tmp_path / "rows.jsonl", questions)
    values = (f"pytorch_model_path={tiny_model}", f"train_file_path={rows}", "sentence1_key=text", "label_key=label")
    assert tuneport("validate", "text_classification", *values, "hub_model_id=acme/questions") == 2
    assert "there is no token to write to" in capsys.readouterr().err
    assert tuneport("validate", "text_classification", *values, "hub_private_repo=false") == 2
    assert "hub_model_id" in capsys.readouterr().err


@pytest.mark.parametrize("repo_id", [None, "acme/questions"])
def test_azure_ml_runs_the_stage_where_a_name_is_given_with_the_tuned_model(repo_id: str | None) -> None:
    pipeline = pipelines.load("text_classification")
    given = {"huggingface_id": "acme/base", "train_file_path": "azureml:rows:3", "sentence1_key": "text"}
    values = pipeline.resolve({**given, "label_key": "label", "hub_model_id": repo_id})
    request = Request(output_dir=Path("/nowhere"), folder=Path("/"), environment={}, platform={})
    document = targets.load("azureml").compile(pipeline, values, request)
    jobs = document.files["pipeline.yaml"]["jobs"]
    assert ("model_upload" in jobs) == (repo_id is not None)
    if repo_id is not None:
        handed = jobs["model_upload"]["inputs"]["pytorch_model_folder"]
        assert handed == "${{parent.jobs.finetune.outputs.tuned_model}}"
