"""One tracked run of a tiny model, from training to export, that the suites of the later stages share."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import steps
from tuneport.stage import execute
from tuneport.step import Context

TASK = "text_classification"


@pytest.fixture(scope="session")
def tracked_run(
    imported_model: Path,
    prepared_questions: Path,
    mlflow_store: Callable[[Path], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """`uri` of the tracking server, its `context`, and the folders `prepared`, `model`, `exported` and `logged`."""
    folder = tmp_path_factory.mktemp("tracked")
    uri = mlflow_store(folder)
    run = SimpleNamespace(
        uri=uri,
        context=Context(tracking_uri=uri),
        prepared=prepared_questions,
        model=folder / "pytorch_model_folder",
        exported=folder / "mlflow_model_folder",
        logged=folder / "logged_model_folder",
    )
    finetune = steps.load("finetune", TASK)(
        model_selector_output=imported_model,
        preprocess_output=prepared_questions,
        pytorch_model_folder=run.model,
        learning_rate=3e-3,
        max_steps=20,
        per_device_train_batch_size=8,
    )
    export = steps.load("model_export", TASK)(
        pytorch_model_folder=run.model,
        preprocess_output=prepared_questions,
        mlflow_model_folder=run.exported,
        logged_model_folder=run.logged,
    )
    for stage in (finetune, export):
        stage.context = run.context
        execute(stage)
    return run
