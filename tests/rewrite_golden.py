"""Write every golden file again: `make golden`, or `python -m tests.rewrite_golden`; git then says what has changed."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.launchers import test_manifests as manifests
from tests.targets.azureml import documents as azureml
from tests.targets.kfp import documents as kfp


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Make these files all there is in a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    print(f"wrote {folder}: {len(texts)} files, {sum(text.count(chr(10)) for text in texts.values())} lines")


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        documents = [azureml.golden(task, Path(work, task)) for task in azureml.TASKS]
    write(azureml.GOLDEN, {name: text for found in documents for name, text in found.items()})
    write(kfp.GOLDEN, {f"{name}.yaml": kfp.golden(name) for name in kfp.GOLDEN_FILES})
    write(manifests.GOLDEN, manifests.golden())


if __name__ == "__main__":
    main()
