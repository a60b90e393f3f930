"""`tuneport.run` and its like: what the commands do, called from Python."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines
import tuneport
from pipelines import api
from tests.whole_run import VALUES
from tuneport.errors import UserError

COLUMNS = {"sentence1_key": "text", "label_key": "label"}


@pytest.fixture
def given(
    tmp_path: Path,
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """Values of a run in an empty folder."""
    write_jsonl(tmp_path / "rows.jsonl", questions)
    monkeypatch.chdir(tmp_path)
    return {"pytorch_model_path": tiny_model, "train_file_path": "rows.jsonl", **COLUMNS}


def test_importing_the_package_takes_no_time_and_no_name_of_a_call_is_a_module() -> None:
    script = "import time; t = time.perf_counter(); import tuneport; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, check=True) for _ in range(2)]
    taken = min(float(done.stdout) for done in runs)
    assert taken < 0.05
    calls = ("run", "compile", "validate", "preview", "load", "Run")
    assert all(getattr(tuneport, name) is getattr(api, name) for name in calls)
    folder = Path(tuneport.__file__).parent
    assert not [name for name in calls if (folder / name).exists() or (folder / f"{name}.py").exists()]


def test_no_input_of_a_pipeline_has_the_name_of_a_keyword_of_the_calls() -> None:
    keywords = {"pipeline", "config", "target", "output", "output_dir", "start_from", "wait", "rows", "name", "force"}
    assert not [name for task in pipelines.names() for name in pipelines.load(task).params if name in keywords]


def test_validate_takes_keywords_a_mapping_or_a_file_and_returns_what_is_worth_a_look(given: dict[str, Any]) -> None:
    assert tuneport.validate("text_classification", **given) == []
    assert tuneport.validate("text_classification", given, max_train_rows=20) == []
    Path("run.yaml").write_text(json.dumps({k: str(v) for k, v in given.items()}))
    assert tuneport.validate("text_classification", "run.yaml", num_train_epochs=2) == []
    with pytest.raises(UserError, match=r"(?s)num_train_epochs='x'.*unknown parameter 'lerning_rate'|lerning_rate.*x"):
        tuneport.validate("text_classification", given, num_train_epochs="x", lerning_rate=1)
    with pytest.raises(UserError, match="Did you mean 'label'"):
        tuneport.validate("text_classification", given, label_key="lable")


def test_a_mapping_stands_for_json_and_a_platform_section_is_a_platform_section(given: dict[str, Any]) -> None:
    assert tuneport.validate("text_classification", given, columns={"sentence1": "text"}) == []
    image = "registry.example/image@sha256:" + 64 * "0"
    config = {"huggingface_id": "a/b", "train_file_path": "s3://rows/train.jsonl", **COLUMNS}
    config["platform"] = {"kfp": {"images": {"base": image, "trainer": image}}}
    path = tuneport.compile("text_classification", config, target="kfp", output="pipeline.yaml")
    assert path.is_absolute() and "s3://rows/train.jsonl" in path.read_text()
    with pytest.raises(UserError, match="platform"):
        tuneport.compile("text_classification", {**config, "platform": {"kfp": 3}}, target="kfp", output="x.yaml")


def test_a_preview_shows_itself_in_a_notebook(given: dict[str, Any]) -> None:
    page = tuneport.preview("text_classification", given, rows=2)
    assert len(page.preview.rows) == 2
    assert "rows looked at" in page._repr_html_()
    page.save_html(Path("page.html"))
    assert Path("page.html").read_text().endswith("</html>\n")


def test_a_mistake_in_a_run_is_raised_with_the_runs_own_message(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lokal"):
        tuneport.run("text_classification", given, target="lokal")
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' * 30)
    with pytest.raises(UserError, match=r"columns .* not found in rows\.jsonl"):
        tuneport.run("text_classification", given)
    with pytest.raises(UserError, match="no such run"):
        tuneport.load("nowhere")


def test_a_run_that_is_not_waited_for_is_running_and_can_be_stopped(given: dict[str, Any]) -> None:
    run = tuneport.run("text_classification", given, wait=False)
    assert run.status == "running"
    for _ in range(600):
        if (run.output_dir / ".lock").exists():
            break
        time.sleep(0.1)
    assert tuneport.load(run.output_dir).status in ("running", "failed")
    run.stop()
    assert run.status == "failed"
    with pytest.raises(UserError, match=r"has no evaluation_result"):
        _ = run.metrics


def test_a_finished_run_is_loaded_with_its_outputs_metrics_and_answers(whole_run: Path) -> None:
    run = tuneport.load(whole_run)
    assert {"pytorch_model_folder", "mlflow_model_folder", "evaluation_result"} <= set(run.outputs)
    assert run.report.is_file()
    assert "accuracy" in json.dumps(run.metrics)
    answers = run.predict([{"text": "is it red or not"}, {"text": "tell me about goat"}])
    assert len(answers) == 2 and all(answer["label"] for answer in answers)


@pytest.mark.slow
def test_a_whole_run_from_python(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    values = {k: v for k, v in VALUES.items() if k not in COLUMNS and k != "registered_model_name"}
    run = tuneport.run("text_classification", given, **values)
    assert run.status == tuneport.load("latest").status == "finished"
    assert tuneport.load("latest").output_dir == run.output_dir
    assert "finetune" in capsys.readouterr().out
    assert run.predict([{"text": "is it red or not"}])[0]["label"]
