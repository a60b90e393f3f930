"""The plan of a small run of every stage, over what lies in a folder: model/, questions.jsonl and an MLflow store."""

from pathlib import Path

import pipelines
from tuneport.runner.request import Request
from tuneport.runner.run import Plan, compile_plan

VALUES = {
    "sentence1_key": "text",
    "label_key": "label",
    "max_steps": 8,
    "eval_steps": 4,
    "evaluation_strategy": "steps",
    "apply_lora": True,
    "registered_model_name": "questions",
}


def plan(folder: Path) -> Plan:
    paths = {"pytorch_model_path": folder / "model", "train_file_path": folder / "questions.jsonl"}
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/store/mlflow.db"}
    request = Request(output_dir=folder / "run", folder=folder, environment=environment)
    pipeline = pipelines.load("text_classification")
    return compile_plan(pipeline, pipeline.resolve({**VALUES, **paths}), request)
