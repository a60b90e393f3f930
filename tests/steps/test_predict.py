"""Stage predict: every row once, whatever stops it, and not more memory for more rows."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipelines
from steps.predict import Predict
from tuneport.errors import UserError
from tuneport.stage import execute

COPIES = """
import mlflow

class Copies(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        if (model_input["text"] == "refused").any():
            raise ValueError("one row: 'refused' is not for me")
        if (model_input["text"] == "at once?").all():
            return [len(model_input)] * len(model_input)
        if (model_input["text"] == "nothing").any():
            return None
        if (model_input["text"] == "lost").any():
            return list(range(len(model_input) - 1))
        return model_input.assign(said=model_input["text"].str.upper())[["said"]]

mlflow.models.set_model(Copies())
"""


@pytest.fixture(scope="session")
def copier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow model of nobody's, which answers in capital letters and needs no torch."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    folder = tmp_path_factory.mktemp("copier")
    (folder / "code.py").write_text(COPIES)
    signature = ModelSignature(Schema([ColSpec("string", "text")]), Schema([ColSpec("string", "said")]))
    mlflow.pyfunc.save_model(folder / "model", python_model=str(folder / "code.py"), signature=signature)
    return folder / "model"


def lines(output: Path) -> list[dict[str, Any]]:
    files = sorted((output / "rows").glob("part-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def predict(model: Path, data: Path, output: Path, **values: Any) -> list[dict[str, Any]]:
    execute(Predict(mlflow_model_folder=model, predict_file_path=data, predictions=output, **values))
    return lines(output)


def test_rows_come_out_in_order_with_the_answers_that_the_model_gives(
    tracked_run: SimpleNamespace, questions: list[dict[str, str]], write_jsonl: Any, tmp_path: Path
) -> None:
    import mlflow
    import pandas as pd

    rows = [{**row, "number": i, "more": {"a": [None, 1.5]}} for i, row in enumerate(questions)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = predict(tracked_run.exported, data, tmp_path / "out", rows_per_file=50, prediction_batch_size=7)
    assert [{k: v for k, v in line.items() if k != "prediction"} for line in found] == rows
    model = mlflow.pyfunc.load_model(str(tracked_run.exported))
    wanted = model.predict(pd.DataFrame([{"text": row["text"]} for row in rows])).to_dict("records")
    assert [line["prediction"]["label"] for line in found] == [row["label"] for row in wanted]
    assert [line["prediction"]["score"] for line in found] == pytest.approx([row["score"] for row in wanted], rel=1e-4)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == {"rows": 120, "refused": 0, "files": 3}


def test_columns_of_other_names_and_a_row_that_is_refused(copier: Path, write_jsonl: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"body": {"plain": text}} for text in ("a", "refused", "b")])
    given: dict[str, Any] = {"columns": '{"text": "body.plain"}', "prediction_key": "answer"}
    with pytest.raises(UserError, match=r"refuses 1 of 3 rows; .*max_refused_fraction=0.05. row 2: .*not for me"):
        predict(copier, data, tmp_path / "out", **given)
    found = predict(copier, data, tmp_path / "out", **given, max_refused_fraction=0.5)
    assert [line["answer"] for line in found] == [{"said": "A"}, None, {"said": "B"}]
    assert "not for me" in found[1]["answer_error"] and "answer_error" not in found[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", b'{"text":"a","note":"caf\xe9"}\n', ["A"]),
        ("r.jsonl", b'{"text":"a","note":"\\ud83d"}\n{"text":"b\\ud83d","note":""}\n', ["A", "B\ud83d"]),
        ("r.csv", b"text,note\na,caf\xe9\n", ["A"]),
    ],
)
def test_text_that_is_not_valid_unicode_is_handed_on(
    copier: Path, tmp_path: Path, name: str, content: bytes, said: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    found = predict(copier, tmp_path / name, tmp_path / "out")
    assert [line["prediction"]["said"] for line in found] == said
    assert found[0]["note"] in ("caf\udce9", "\ud83d")


@pytest.mark.parametrize("key", ['a"b', "réponse"])
def test_refused_rows_are_counted_whatever_the_name_of_the_answer(
    key: str, copier: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "refused"}])
    predict(copier, data, tmp_path / "out", prediction_key=key, max_refused_fraction=0.5)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["refused"] == 1


@pytest.mark.parametrize(("text", "given"), [("lost", "2 answers"), ("nothing", "None")])
def test_a_model_that_does_not_answer_each_row_is_told_to_the_user(
    text: str, given: str, copier: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": text}, {"text": "b"}])
    with pytest.raises(UserError, match=f"the model gives {given} to 3 rows; expected one answer a row"):
        predict(copier, data, tmp_path / "out")


def test_a_model_without_a_batch_size_gets_so_many_rows_at_once(copier: Path, write_jsonl: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": "at once?"}] * 5)
    found = predict(copier, data, tmp_path / "out", prediction_batch_size=2)
    assert [line["prediction"] for line in found] == [2, 2, 2, 2, 1]


@pytest.mark.parametrize(
    "case",
    [
        ([{"txt": "a"}], {}, "columns 'text=text' not found in rows.jsonl"),
        ([{"text": "a", "prediction": 1}], {}, "the rows have a column 'prediction' already"),
        ([{"text": "a"}], {"columns": '{"label": "b"}'}, "nobody reads 'label'"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(
    copier: Path, write_jsonl: Any, tmp_path: Path, case: tuple[Any, Any, str]
) -> None:
    rows, values, message = case
    with pytest.raises(UserError, match=message):
        predict(copier, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out", **values)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, write_jsonl: Any) -> None:
    (tmp_path / "model").mkdir()
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match="holds no MLflow model that can be read"):
        predict(tmp_path / "model", data, tmp_path / "out")


def command(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    flags = ["--mlflow_model_folder", str(model), "--predict_file_path", str(data), "--predictions", str(output)]
    return [sys.executable, "-m", "steps", "predict", *flags, *more]


def answered(folder: Path) -> int:
    return len([*folder.glob("*/rows/part-*.jsonl"), *folder.glob(".*/rows/part-*.jsonl")])


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_killed_at_random_points_it_loses_and_doubles_no_row(
    processes: str, copier: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    count, rng, kills = 6_000, random.Random(0), 0
    data = write_jsonl(tmp_path / "rows.jsonl", ({"text": f"row {i}"} for i in range(count)))
    argv = command(copier, data, tmp_path / "run" / "out", "--rows_per_file", "20")
    argv += ["--number_of_gpu_to_use_prediction", processes]
    (tmp_path / "run").mkdir()
    while kills < 4:
        before = answered(tmp_path / "run")
        process = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = before + rng.randrange(1, 60)
        while process.poll() is None and answered(tmp_path / "run") < wanted:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.02)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        assert answered(tmp_path / "run") >= before
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert kills >= 2 and "of an earlier run in the same place are whole" in done.stderr + done.stdout
    found = lines(tmp_path / "run" / "out")
    assert [line["prediction"]["said"] for line in found] == [f"ROW {i}" for i in range(count)]


def test_what_is_whole_is_not_answered_again_unless_something_changed(
    copier: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"row {i}"} for i in range(10)])
    execute(Predict(mlflow_model_folder=copier, predict_file_path=data, predictions=tmp_path / "out", rows_per_file=2))
    kept = tmp_path / ".out.partial"
    shutil.copytree(tmp_path / "out", kept)
    (kept / ".incomplete").touch()
    (kept / "rows" / "part-000003.jsonl").unlink()
    marked = (kept / "rows" / "part-000001.jsonl").read_text().replace("ROW", "KEPT")
    (kept / "rows" / "part-000001.jsonl").write_text(marked)
    shutil.rmtree(tmp_path / "out")
    found = predict(copier, data, tmp_path / "out", rows_per_file=2)
    said = [line["prediction"]["said"] for line in found]
    assert said == [f"{'KEPT' if i in (2, 3) else 'ROW'} {i}" for i in range(10)]
    assert "KEPT 2" not in str(predict(copier, data, tmp_path / "out", rows_per_file=5))


MEMORY = """
import resource, sys
from pathlib import Path
from steps.predict import Predict
from tuneport.stage import execute
model, few, many, output = map(Path, sys.argv[1:])
def peak(data, name):
    execute(Predict(mlflow_model_folder=model, predict_file_path=data, predictions=output / name))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak(few, "few"), peak(many, "many"))
"""


@pytest.mark.slow
def test_more_rows_take_no_more_memory(copier: Path, write_jsonl: Any, tmp_path: Path) -> None:
    few, many = (
        write_jsonl(tmp_path / f"{n}.jsonl", ({"text": f"row {i} " + "x" * 200} for i in range(n)))
        for n in (5_000, 150_000)
    )
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(copier), str(few), str(many), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = map(int, done.stdout.split())
    assert second - first < 20_000, f"kB: {first} for 5,000 rows, {second} for 150,000"


def test_predict_is_a_pipeline_of_its_own_for_every_model(tuneport: Callable[..., int], capsys: Any) -> None:
    assert "predict" in pipelines.names()
    traced = pipelines.load("predict")
    assert [node.name for node in traced.nodes] == ["predict"]
    assert {"mlflow_model_folder", "predict_file_path"} <= {p.name for p in traced.params.values() if p.required}
    assert tuneport("--help") == 0
    assert "predict" in capsys.readouterr().out
