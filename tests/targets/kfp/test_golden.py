"""The document of every task, compared with what stands in tests/targets/golden/kfp and read by kfp's loader.

Of one task all of it in every variant, of the others what differs from that (`tests/golden.py`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.golden import FIRST, difference
from tests.targets.kfp.documents import (
    FILES,
    GOLDEN,
    GOLDEN_FILES,
    PLATFORM,
    VALUES,
    VARIANTS,
    compiled,
    golden,
    kept,
    parsed,
)
from tuneport import tasks


def test_every_task_has_its_golden_file() -> None:
    assert set(tasks.names()) == set(VALUES)
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(GOLDEN_FILES)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_the_compiled_pipeline_is_the_one_in_the_golden_file(name: str) -> None:
    expected = (GOLDEN / f"{name}.yaml").read_text("utf-8")
    assert golden(name) == expected, "if the change is meant: make golden"


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant])
@pytest.mark.parametrize("task", [task for task in VALUES if task != FIRST])
def test_a_variant_changes_of_every_task_what_it_changes_of_the_first(task: str, variant: str) -> None:
    def change(task: str) -> str:
        return json.dumps(difference(kept(task, **same), kept(task + variant, **same))).replace(task, "TASK")

    names = ("number_of_gpu_to_use_finetuning", "shm_size_finetune", "registered_model_name")
    same = {name: VALUES[FIRST][name] for name in names}
    assert change(task) == change(FIRST)


@pytest.mark.parametrize("file", FILES)
def test_a_document_is_written_with_sorted_keys_long_lines_folded_and_texts_as_they_are(file: str) -> None:
    written = yaml.dump_all(
        parsed(compiled(file)), Dumper=yaml.CSafeDumper, sort_keys=True, width=120, allow_unicode=True
    )
    assert compiled(file) == written


@pytest.mark.parametrize("file", FILES)
def test_kfps_loader_takes_every_document(file: str) -> None:
    from kfp import components

    loaded = components.load_component_from_text(compiled(file))
    spec, _ = parsed(compiled(file))
    assert set(loaded.component_spec.inputs) == set(spec["root"]["inputDefinitions"]["parameters"])
    assert set(loaded.component_spec.outputs) == {"pytorch_model_folder", "mlflow_model_folder", "evaluation_result"}
    executors = loaded.platform_spec.platforms["kubernetes"].deployment_spec.executors
    assert set(executors) == {name for name in spec["deploymentSpec"]["executors"] if "importer" not in name}


def test_a_task_in_a_folder_of_the_users_compiles_like_any_other(tmp_path: Path) -> None:
    source = Path(tasks.load("token_classification").__module__.replace(".", "/") + ".py")
    root = Path(__file__).parents[3]
    own = (root / source).read_text("utf-8").replace('name = "token_classification"', 'name = "eighth"')
    (tmp_path / "eighth.py").write_text(own.replace("token_key", "piece_key"), "utf-8")
    config = {**VALUES["token_classification"], "piece_key": "tokens", "platform": {"kfp": PLATFORM}}
    del config["token_key"]
    (tmp_path / "run.yaml").write_text(json.dumps(config), "utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipelines",
            "compile",
            "eighth",
            "--config",
            "run.yaml",
            "--target",
            "kfp",
            "-o",
            "p.yaml",
        ],
        env={**os.environ, "TUNEPORT_TASKS": str(tmp_path), "PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    spec = yaml.safe_load((tmp_path / "p.yaml").read_text("utf-8").split("\n---\n")[0])
    assert spec["pipelineInfo"]["name"] == "eighth"
    assert spec["root"]["inputDefinitions"]["parameters"]["piece_key"]["defaultValue"] == "tokens"
    assert spec["deploymentSpec"]["executors"]["exec-finetune"]["container"]["args"][:2] == ["--task_name", "eighth"]
