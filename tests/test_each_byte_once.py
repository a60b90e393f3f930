"""A run of every stage whose model is large enough to be worth it: large files are read once, and shared."""

import dataclasses as dc
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import transformers

import pipelines
from tests.whole_run import VALUES, plan
from tuneport import digests
from tuneport.digests import SMALL, known, recorded, sha256
from tuneport.runner import cache
from tuneport.runner.request import Request
from tuneport.runner.run import compile_plan
from tuneport.stage import execute


@pytest.fixture
def folder(
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
    mlflow_store: Callable[[Path], str],
    tmp_path: Path,
) -> Path:
    """What a run reads; the model has weights of a few MiB."""
    shutil.copytree(tiny_model, tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(tiny_model)
    config.vocab_size = 30_000
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    an_hour_ago = time.time() - 3600  # what was written just before it is read is read again
    os.utime(tmp_path / "model" / "model.safetensors", (an_hour_ago, an_hour_ago))
    write_jsonl(tmp_path / "questions.jsonl", questions)
    mlflow_store(tmp_path / "store")
    return tmp_path


@pytest.mark.slow
def test_each_large_file_is_read_for_its_digest_once_and_shared_between_stages(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[int] = Counter()

    def counted(path: Path) -> str:
        if path.stat().st_size >= SMALL:
            reads[path.stat().st_ino] += 1
        return sha256(path)

    monkeypatch.setattr(digests, "sha256", counted)
    monkeypatch.setitem(VALUES, "apply_lora", False)
    known.files.clear()
    of_users = cache.Digests()
    (folder / "run").mkdir()
    for stage in plan(folder).stages:
        with recorded(stage.step.context.digests):
            cache.record(stage.name, stage.parameters, stage.inputs, ["steps"], of_users, origins={})
        execute(stage.step)
        known.files.clear()  # as another process: it has the record alone
    run = folder / "run"
    name = "model.safetensors"
    imported = (run / "model_import/model_selector_output" / name).stat()
    assert imported.st_ino == (folder / "model" / name).stat().st_ino or imported.st_nlink == 1  # 1: a clone
    tuned = run / "finetune/pytorch_model_folder" / name
    logged = next((folder / "store").rglob(f"artifacts/model/{name}"))
    for other in (run / "finetune/tuned_model" / name, run / "model_export/mlflow_model_folder/artifacts/model" / name):
        assert other.samefile(tuned) and logged.samefile(tuned)
    assert tuned.stat().st_mode & 0o222 == 0 and (folder / "model" / name).stat().st_mode & 0o200
    assert reads and set(reads.values()) == {1}
    assert not list((run / "model_import/tokenizer_folder").glob("*.safetensors"))
    assert not (run / "finetune/tuned_model/checkpoints").exists()


@pytest.mark.slow
def test_adapters_that_are_not_merged_write_nothing_of_the_base_models_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pandas as pd

    monkeypatch.setitem(VALUES, "merge_lora_weights", False)
    (folder / "run").mkdir()
    for stage in plan(folder).stages:
        execute(stage.step)
    run, name = folder / "run", "model.safetensors"
    base = run / "model_import/model_selector_output" / name
    exported = run / "model_export/mlflow_model_folder"
    logged = next((folder / "store").rglob(f"base_model/{name}"))
    for other in (
        run / "finetune/tuned_model/base_model" / name,
        exported / "artifacts/model/base_model" / name,
        logged,
    ):
        assert other.samefile(base)
    inodes = {path.stat().st_ino: path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > SMALL}
    others = {path.name for path in inodes.values() if path.stat().st_size > base.stat().st_size / 2} - {name}
    assert not others and sum(path.name == name for path in inodes.values()) <= 2  # the user's own, and a clone of it
    answers = mlflow.pyfunc.load_model(str(exported)).predict(pd.DataFrame({"text": ["how tall is it"]}))
    assert len(answers) == 1


def test_verify_full_gives_stages_no_record_of_what_was_read(tmp_path: Path) -> None:
    pipeline = pipelines.load("text_classification")
    values = pipeline.resolve({**VALUES, "pytorch_model_path": tmp_path / "m", "train_file_path": tmp_path / "d.jsonl"})
    request = Request(output_dir=tmp_path / "run", folder=tmp_path, environment={})
    changed, full = (compile_plan(pipeline, values, dc.replace(request, verify=v)) for v in ("changed", "full"))
    for stage in changed.stages:
        assert stage.step.context.digests == Path(stage.environment[digests.VARIABLE]) == changed.digests
    assert full.digests is None
    assert all(s.step.context.digests is None and digests.VARIABLE not in s.environment for s in full.stages)


def test_another_word_than_changed_and_full_is_refused(
    tuneport: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert tuneport("run", "text_classification", "--verify", "never") == 2
    assert "'never' is not one of 'changed', 'full'" in "".join(capfd.readouterr())
