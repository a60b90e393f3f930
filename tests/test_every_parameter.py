"""Changing any one accepted parameter changes something observable: what is written, or what is computed.

What a run merely records of its parameters (manifests) does not count as an effect.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

import pipelines
import steps
from tuneport import tasks
from tuneport.errors import UserError
from tuneport.metrics.answers import AnswerMetricsParams, AnswerRowsParams, ValidationAnswersParams
from tuneport.parameters import GenerationParams
from tuneport.stage import execute
from tuneport.tasks.task import Split

# parameter: (what is set in both runs, value in the first, value in the second)
Table = dict[str, tuple[dict[str, Any], Any, Any]]
FIRST = "text_classification"  # the task that the shared parameters are tried on

HELD_OUT = Path(__file__).parent / "data" / "held_out.jsonl"

MODEL_IMPORT: Table = {
    "huggingface_id": ({}, "acme/one", "acme/other"),
    "huggingface_revision": ({"huggingface_id": "acme/one"}, None, "old"),
    "gguf_file": ({"huggingface_id": "acme/one"}, None, "one.gguf"),
}
PREPROCESS: Table = {
    "batch_size": ({}, 1000, 10),
    "max_seq_length": ({}, -1, 5),
    "pad_to_max_length": ({}, False, True),
    "min_rows": ({}, 10, 1000),
    "max_dropped_fraction": ({"label_key": "holes"}, 0.5, 0.05),
    "deduplicate": ({"sentence1_key": "repeated"}, "exact", "none"),
    "near_duplicate_threshold": ({"deduplicate": "near"}, 1.0, 0.7),
    "quoting": ({"train_file_path": Path(__file__).parent / "data" / "quotes.tsv"}, "auto", "none"),
    "columns": ({}, None, '{"text": "other"}'),
    "max_train_rows": ({}, -1, 50),
    "max_validation_rows": ({"validation_file_path": HELD_OUT}, -1, 2),
    "max_test_rows": ({"test_file_path": HELD_OUT}, -1, 2),
    "max_row_bytes": ({}, 1 << 20, 20),
    "max_compression_ratio": ({"train_file_path": Path(__file__).parent / "data" / "repetitive.jsonl.gz"}, 2000, 200),
    "allow_outside": ({"train_mltable_path": Path(__file__).parent / "data" / "table"}, True, False),
    "group_key": ({}, None, "group"),
    "validation_split_ratio": ({}, 0.1, 0.3),
    "test_split_ratio": ({}, 0.1, 0.3),
    "split_seed": ({}, 42, 43),
}
CONDITIONS: Table = {
    "registered_model_name": ({}, None, "questions"),
    "hub_model_id": ({}, None, "acme/questions"),
}
SHARED = {
    "model_import": MODEL_IMPORT,
    "preprocess": PREPROCESS,
    "model_evaluation": {"evaluate_base_model": ({}, True, False)},
    "model_registration": CONDITIONS,
    "model_upload": CONDITIONS,
}


@dataclass(frozen=True, kw_only=True)
class Own:
    """A task's rows, made of the questions, the parameters it requires, and by stage the tables of what it adds."""

    rows: Callable[[list[dict[str, str]]], list[dict[str, Any]]]
    required: dict[str, str]
    tables: dict[str, Table]
    model: str = "imported_model"  # the fixture that gives it


def classified(questions: list[dict[str, str]]) -> list[dict[str, Any]]:
    """With more columns to choose from, also for the shared parameters."""
    return [
        {
            **row,
            "other": " ".join(reversed(row["text"].split())),
            "second_label": ("odd", "even")[i // 2 % 2],
            "labels": [row["label"], ("odd", "even")[i // 2 % 2]],
            "spaced": row["label"] + " " * (i % 2),
            "holes": None if i % 10 == 0 else row["label"],
            "group": str(i // 4),
            "repeated": row["text"] if i > 5 else "the same",
        }
        for i, row in enumerate(questions)
    ]


def tagged(questions: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Each word tagged with the question's label or O; numbers are of several sub-words."""
    rows = []
    for row in questions:
        words = row["text"].split()
        tags = [f"B-{row['label']}" if i == len(words) - 1 else "O" for i in range(len(words))]
        rows.append({"words": words, "tags": tags, "backwards": words[::-1], "plain": [tag[0] for tag in tags]})
        rows[-1]["spaced"] = [f"{tag} " for tag in tags] if len(rows) % 2 else tags
    return rows


OWN = {
    "text_classification": Own(
        rows=classified,
        required={"sentence1_key": "text", "label_key": "label"},
        tables={
            "preprocess": {
                "sentence1_key": ({}, "text", "other"),
                "sentence2_key": ({}, None, "other"),
                "label_key": ({}, "label", "second_label"),
                "multi_label": ({"label_key": "labels"}, True, False),
                "equal_labels": ({"label_key": "spaced"}, "normal", "exact"),
            },
            "model_evaluation": {"trivial_baselines": ({}, True, False)},
        },
    ),
    "token_classification": Own(
        rows=tagged,
        required={"token_key": "words", "tag_key": "tags"},
        tables={
            "preprocess": {
                "token_key": ({}, "words", "backwards"),
                "tag_key": ({}, "tags", "plain"),
                "label_all_tokens": ({}, False, True),
                "equal_labels": ({"tag_key": "spaced"}, "normal", "exact"),
            },
            "model_evaluation": {"trivial_baselines": ({}, True, False)},
        },
    ),
}


# The other tasks' parameters are tried beside their models, in tests/tasks/test_TASK.py; what they share, once.
ELSEWHERE = ("question_answering", "summarization", "translation", "text_generation", "chat_completion")
# What finetune takes is tried in tests/tasks/test_training_parameters.py, in every task.
TRAINING = {name for name, port in steps.load("finetune", FIRST).ports().items() if port.kind == "param"}
# What only decides where the work is done, in tests/tasks/test_evaluation_on_devices.py.
PLACES = {"number_of_gpu_to_use_evaluation"}
# What scores written answers, in tests/metrics/test_answers.py and tests/tasks/test_written_answers.py.
ANSWERS = {p for g in (AnswerMetricsParams, AnswerRowsParams, ValidationAnswersParams) for p in g.ports()}
# How a model is registered, in tests/steps/test_model_registration.py, and uploaded, in test_model_upload.py.
REGISTRATION = {"register_if", "move_champion", "hub_private_repo"}
# What decides whether and how benchmarks are asked, in tests/steps/test_model_benchmark.py.
BENCHMARK = {name for name, port in steps.load("model_benchmark").ports().items() if port.kind == "param"}
ELSEWHERE_GROUPS = (TRAINING, REGISTRATION, PLACES, ANSWERS, BENCHMARK, GenerationParams.ports())
# What is written beside the MLflow model, in tests/tasks/test_onnx_export.py.
FORMATS = {"export_formats"}
SHARED_ELSEWHERE = {"trivial_baselines", *FORMATS}.union(*ELSEWHERE_GROUPS)


def cases(stage: str) -> list[Any]:
    """(task, parameter, row of its table) for the shared parameters of a stage and for those of each task."""
    tables = [(FIRST, SHARED[stage]), *((task, own.tables.get(stage, {})) for task, own in OWN.items())]
    return [pytest.param(task, name, row, id=f"{task}-{name}") for task, table in tables for name, row in table.items()]


def test_every_task_has_its_parameters_tried() -> None:
    assert {*OWN, *ELSEWHERE} == {*tasks.names()}


@pytest.mark.parametrize("task", ELSEWHERE)
def test_a_task_without_tables_here_names_its_own_parameters_in_its_tests(task: str) -> None:
    text = (Path(__file__).parent / "tasks" / f"test_{task}.py").read_text("utf-8")
    shared = {name for table in SHARED.values() for name in table} | SHARED_ELSEWHERE
    own = {name for name, port in pipelines.load(task).params.items() if port.kind == "param"} - shared
    assert own and not [name for name in own if name not in text]


@pytest.mark.parametrize("task", ELSEWHERE)
def test_trivial_baselines_are_left_out_where_they_are_not_wanted(task: str) -> None:
    text, written = {"document": "a b c d", "source": "a b"}, {"summary": "a b", "target": "c d"}
    row = {**text, **written, "question": "who?", "context": "Ann. Bob.", "answer_texts": [], "answer_starts": []}
    encoded = pa.table({"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 3]]})
    split = Split([row], encoded)
    meta = {"prompting": {"encoder_decoder": False}, "vocabulary": 9, "unanswerable": True}
    found = {
        wanted: tasks.load(task).baselines(split, split, meta, SimpleNamespace(trivial_baselines=wanted))
        for wanted in (True, False)
    }
    assert found[True] and not found[False]


@pytest.mark.parametrize("task", OWN)
def test_the_tables_cover_every_parameter_of_the_pipeline(task: str) -> None:
    own = OWN[task].tables
    tested = (TRAINING | PLACES | REGISTRATION | FORMATS) - {"task_name"} | {
        name for tables in (SHARED, own) for table in tables.values() for name in table
    }
    assert tested == {name for name, port in pipelines.load(task).params.items() if port.kind == "param"}
    assert own.keys() <= {"preprocess", "model_evaluation"}, "no test below runs this stage"
    for stage, table in own.items():
        assert not table.keys() - steps.load(stage, task).ports().keys()


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What the stages of one task start from; ``prepared`` and ``tuned`` are made when first asked for."""

    task: str
    model: Path
    data: Path
    folder: Path

    def run(self, stage: str, values: Mapping[str, Any], output: Path) -> Any:
        """Run a stage; what it wrote, or the message it refused with."""
        stage_class = steps.load(stage, self.task)
        (port,) = (p.name for p in stage_class.ports().values() if p.kind == "output" and not p.optional)
        try:
            execute(stage_class(**values, **{port: output}))
        except UserError as e:
            return str(e)
        return contents(output)

    def inputs(self, stage: str) -> dict[str, Any]:
        """What the stage reads, and the parameters that it requires."""
        if stage == "preprocess":
            return {"model_selector_output": self.model, "train_file_path": self.data, **OWN[self.task].required}
        found = {"model_selector_output": self.model, "preprocess_output": self.prepared}
        return found if stage == "finetune" else found | {"pytorch_model_folder": self.tuned}

    @cached_property
    def prepared(self) -> Path:
        written = self.run("preprocess", self.inputs("preprocess"), self.folder / "prepared")
        assert isinstance(written, dict), written
        return self.folder / "prepared"

    @cached_property
    def tuned(self) -> Path:
        written = self.run("finetune", self.inputs("finetune") | {"max_steps": 2}, self.folder / "tuned")
        assert isinstance(written, dict), written
        return self.folder / "tuned"


@pytest.fixture(scope="module")
def ready(
    request: pytest.FixtureRequest, questions: Any, write_jsonl: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Ready]:
    """By task."""

    @cache
    def make(task: str) -> Ready:
        folder = tmp_path_factory.mktemp(task)
        data = write_jsonl(folder / "rows.jsonl", OWN[task].rows(questions))
        return Ready(task=task, model=request.getfixturevalue(OWN[task].model), data=data, folder=folder)

    return make


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file but the manifest."""
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*")
        if f.is_file() and f.name != "manifest.json"
    }


@pytest.mark.parametrize("name", MODEL_IMPORT)
def test_a_model_import_parameter_has_an_effect(
    name: str, tiny_model: Path, ready: Callable[[str], Ready], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, revision, commit in (("one", "main", "1"), ("one", "old", "2"), ("other", "main", "3")):
        root = tmp_path / "hub" / f"models--acme--{model}"
        snapshot = Path(shutil.copytree(tiny_model, root / "snapshots" / (commit * 40)))
        (snapshot / "README.md").write_text(commit)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / revision).write_text(commit * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    shared, first, second = MODEL_IMPORT[name]
    runs = [
        ready(FIRST).run("model_import", shared | {name: value}, tmp_path / str(i))
        for i, value in enumerate((first, second))
    ]
    assert runs[0] != runs[1]


@pytest.mark.parametrize(("task", "name", "row"), cases("preprocess"))
def test_a_preprocess_parameter_has_an_effect(
    task: str, name: str, row: Any, ready: Callable[[str], Ready], tmp_path: Path
) -> None:
    shared, first, second = row
    inputs = ready(task).inputs("preprocess") | shared
    runs = [
        ready(task).run("preprocess", inputs | {name: value}, tmp_path / str(i))
        for i, value in enumerate((first, second, first))
    ]
    assert isinstance(runs[0], dict), runs[0]
    assert runs[0] == runs[2], "equal parameters must give equal output, or a difference shows nothing"
    assert runs[0] != runs[1]


@pytest.mark.parametrize(("task", "name", "row"), cases("model_evaluation"))
def test_a_model_evaluation_parameter_has_an_effect(
    task: str, name: str, row: Any, ready: Callable[[str], Ready], tmp_path: Path
) -> None:
    shared, first, second = row
    inputs = ready(task).inputs("model_evaluation") | shared
    runs = []
    for i, value in enumerate((first, second)):
        written = ready(task).run("model_evaluation", inputs | {name: value}, tmp_path / str(i))
        assert isinstance(written, dict), written
        runs.append(json.loads((tmp_path / str(i) / "metrics.json").read_text()))
    assert runs[0] != runs[1]


@pytest.mark.parametrize("task", OWN)
@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_decides_which_stages_run(task: str, name: str) -> None:
    shared, first, second = CONDITIONS[name]
    pipeline, required = pipelines.load(task), OWN[task].required | shared
    ran = [[n.name for n in pipeline.active(pipeline.resolve(required | {name: value}))] for value in (first, second)]
    assert ran[0] != ran[1]


# What Azure ML's own finetune pipeline component documents: name, default (None: no default, or none is documented).
AZURE_ML: dict[str, Any] = {
    **dict.fromkeys(("pytorch_model_path", "mlflow_model_path", "train_file_path", "validation_file_path")),
    **dict.fromkeys(
        ("test_file_path", "train_mltable_path", "validation_mltable_path", "test_mltable_path", "deepspeed")
    ),
    **dict.fromkeys(("compute_model_import", "compute_preprocess", "compute_finetune"), "serverless"),
    **dict.fromkeys(("instance_type_model_import", "instance_type_preprocess"), "Standard_d12_v2"),
    **dict.fromkeys(("instance_type_finetune", "instance_type_model_evaluation"), "Standard_nc24rs_v3"),
    "compute_model_evaluation": "serverless",
    "number_of_gpu_to_use_finetuning": 1,
    "num_nodes_finetune": 1,
    "batch_size": 1000,
    "max_seq_length": -1,
    "pad_to_max_length": False,
    "apply_lora": False,
    "lora_alpha": 128,
    "lora_r": 8,
    "lora_dropout": 0.0,
    "apply_deepspeed": False,
    "deepspeed_stage": "2",
    "num_train_epochs": 1,
    "max_steps": -1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "auto_find_batch_size": False,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "optim": "adamw_hf",
    "weight_decay": 0.0,
    "gradient_accumulation_steps": 1,
    "precision": "32",
    "seed": 42,
    "evaluation_strategy": "epoch",
    "eval_steps": 500,
    "logging_strategy": "steps",
    "logging_steps": 10,
    "save_total_limit": -1,
    "apply_early_stopping": False,
    "early_stopping_patience": 1,
    "max_grad_norm": 1.0,
    "resume_from_checkpoint": "false",
}


@pytest.mark.parametrize("task", tasks.names())
def test_every_input_of_azure_ml_s_component_is_taken_with_its_default(task: str) -> None:
    ports = pipelines.load(task).params
    assert {name: ports[name].default for name in AZURE_ML} == AZURE_ML
