"""The notebook of the examples is executed, on tiny data in the place of the fetched."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "text_classification" / "python_api.ipynb"


def test_it_is_kept_without_outputs() -> None:
    import nbformat

    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    assert not [cell for cell in found.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]


@pytest.mark.slow
def test_every_cell_runs(
    tmp_path: Path,
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import nbformat
    from nbclient import NotebookClient

    shutil.copy(NOTEBOOK.parent / "config.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copytree(tiny_model, tmp_path / "data" / "model")
    write_jsonl(tmp_path / "data" / "questions.jsonl", questions)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    said = {n: str(cell.get("outputs")) for n, cell in enumerate(c for c in notebook.cells if c.cell_type == "code")}
    assert "rows looked at" in said[1]
    assert "finished" in said[3]
    assert "accuracy" in said[4]
    assert "label" in said[5]
    assert (tmp_path / "pipeline.yaml").is_file()
