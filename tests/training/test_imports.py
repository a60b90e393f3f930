"""A training imports what it uses: DeepSpeed, and MLflow with it, take seconds and are in few runs."""

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import runpy, sys
try:
    runpy.run_module("steps", run_name="__main__", alter_sys=True)
finally:
    print("imported:", *sorted(name for name in ("deepspeed", "mlflow", "torch") if name in sys.modules))
"""


def test_a_plain_training_imports_neither_deepspeed_nor_mlflow(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    argv = [sys.executable, "-c", RUN, "finetune", "--task_name", "text_classification", "--max_steps", "1"]
    argv += ["--model_selector_output", str(imported_model), "--preprocess_output", str(prepared_questions)]
    argv += ["--pytorch_model_folder", str(tmp_path / "out")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "imported: torch"
