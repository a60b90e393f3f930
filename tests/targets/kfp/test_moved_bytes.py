"""What the stages of a run take from the object store and send there, counted at its door, with Kubeflow's own part."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pipelines
from tests.object_store import bucket, client, reached
from tests.targets.kfp.stored_run import BUCKET, PREFIX, StoredRun, download, upload
from tuneport.artifacts import MLflowModel, Model, verify
from tuneport.runner.request import Request
from tuneport.targets import load

pytestmark = pytest.mark.slow

EVALUATIONS = 3
VALUES = {
    "pytorch_model_path": "s3://mlpipeline/users/base",
    "train_file_path": "s3://mlpipeline/users/questions.jsonl",
    "sentence1_key": "text",
    "label_key": "label",
    "max_steps": 2 * EVALUATIONS,
    "evaluation_strategy": "steps",
    "eval_steps": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
}
SMALL = 0.15  # of M: rows, tokenizers, reports and requests, of this small a model


class Moved:
    """A store with a base model in bfloat16 and rows, and runs over it."""

    def __init__(self, url: str, folder: Path, one: int) -> None:
        self.url, self.folder, self.one = url, folder, one

    def start(self, settings: dict[str, Any], **values: Any) -> StoredRun:
        digest = "@sha256:" + 64 * "0"
        images = {"images": {name: f"registry.example/{name}{digest}" for name in ("base", "trainer")}}
        pipeline = pipelines.load("text_classification")
        request = Request(
            output_dir=Path("/runs/1"), folder=self.folder, environment={}, platform={"kfp": {**images, **settings}}
        )
        text = load("kfp").compile(pipeline, pipeline.resolve({**VALUES, **values}), request).text
        return StoredRun(text, self.url, self.folder / "pods")

    def of(self, counts: dict[str, int]) -> dict[str, float]:
        """Counts in multiples of M."""
        return {name: round(count / self.one, 2) for name, count in counts.items()}

    def fetched(self, run: StoredRun, artifact: str, kind: type[Model | MLflowModel]) -> Path:
        """An artifact of the store on this disk, verified."""
        place = self.folder / "fetched" / artifact
        download(run.s3, f"s3://{BUCKET}/{PREFIX}/{artifact}", place)
        verify(kind(place))
        return place


@pytest.fixture
def moved(
    tmp_path: Path, tiny_model: Path, questions: list[dict[str, str]], write_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Moved]:
    import torch
    import transformers

    base = tmp_path / "base"
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(base)
    config = transformers.AutoConfig.from_pretrained(tiny_model, vocab_size=60_000)
    transformers.set_seed(1)
    transformers.AutoModel.from_config(config).to(torch.bfloat16).save_pretrained(base)
    rows = write_jsonl(tmp_path / "questions.jsonl", questions)
    with bucket(BUCKET) as url, reached(url, monkeypatch):
        upload(client(url), base, "s3://mlpipeline/users/base")
        upload(client(url), rows, "s3://mlpipeline/users/questions.jsonl")
        yield Moved(url, tmp_path, (base / "model.safetensors").stat().st_size)


def checkpoints(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*"))


def test_by_the_store_a_full_run_moves_each_model_where_it_is_read_and_each_that_is_made_once(moved: Moved) -> None:
    run = moved.start({"artifacts": "store"})
    run.run()
    down, up = moved.of(run.down), moved.of(run.up)
    trained = moved.fetched(run, "finetune/pytorch_model_folder", Model)
    made = checkpoints(trained) / moved.one
    assert made > 15  # three of 6 M, but for the head
    assert down["model-import"] == pytest.approx(1, abs=SMALL) and up["model-import"] < SMALL  # it is copied there
    assert down["finetune"] == pytest.approx(1, abs=SMALL) and up["finetune"] == pytest.approx(1 + made, abs=SMALL)
    assert down["model-export"] < SMALL and up["model-export"] < SMALL
    assert down["model-evaluation"] == pytest.approx(2, abs=SMALL) and up["model-evaluation"] < SMALL
    assert sum(down.values()) < 4 + 4 * SMALL and sum(up.values()) < 1 + made + 4 * SMALL
    exported = moved.fetched(run, "model-export/mlflow_model_folder", MLflowModel)
    weights = "model.safetensors"
    assert (exported / "artifacts/model" / weights).read_bytes() == (trained / weights).read_bytes()


def test_without_it_kubeflow_moves_whole_inputs_and_outputs(moved: Moved) -> None:
    run = moved.start({})
    run.run()
    down, up = moved.of(run.down), moved.of(run.up)
    made = checkpoints(moved.fetched(run, "finetune/pytorch_model_folder", Model)) / moved.one
    assert sum(down.values()) == pytest.approx(5, abs=4 * SMALL)
    assert sum(up.values()) == pytest.approx(4 + made, abs=4 * SMALL)


def test_a_training_whose_pod_is_killed_goes_on_from_the_store_and_registration_moves_no_model(
    moved: Moved, mlflow_store: Callable[[Path], str]
) -> None:
    uri = mlflow_store(moved.folder / "mlflow")
    lora = {"apply_lora": True, "merge_lora_weights": False, "registered_model_name": "questions"}
    run = moved.start({"artifacts": "store", "tracking_uri": uri}, **lora)
    run.run(until="finetune")
    seal = f"{PREFIX}/finetune/pytorch_model_folder/checkpoints/checkpoint-2/manifest.json"

    def sealed() -> bool:
        return bool(run.s3.list_objects_v2(Bucket=BUCKET, Prefix=seal).get("KeyCount"))

    assert run.start("finetune", killed_when=sealed) < 0
    run.run()
    assert "resuming from checkpoint-" in run.said["finetune"], run.said["finetune"]
    down, up = moved.of(run.down), moved.of(run.up)
    assert down["finetune"] == pytest.approx(1, abs=3 * SMALL)
    assert down["model-import"] == pytest.approx(1, abs=SMALL) and up["model-import"] < SMALL
    # The base model, and adapters, which give the model that is exported.
    assert down["model-evaluation"] == pytest.approx(1, abs=2 * SMALL) and up["model-evaluation"] < SMALL
    assert up["finetune"] == pytest.approx(1, abs=3 * SMALL)  # the merged model, and adapters
    # The MLflow server gets the model, so that export reads it; to the store it is copied there.
    assert down["model-export"] == pytest.approx(1, abs=SMALL) and up["model-export"] < SMALL
    assert down["model-registration"] + up["model-registration"] < SMALL
    assert sum(down.values()) < 4 + 8 * SMALL and sum(up.values()) < 1 + 8 * SMALL


def test_adapters_that_are_not_merged_move_four_times_the_base_model_in_all(moved: Moved) -> None:
    run = moved.start({"artifacts": "store"}, apply_lora=True, merge_lora_weights=False)
    run.run()
    down, up = moved.of(run.down), moved.of(run.up)
    assert sum(down.values()) == pytest.approx(3, abs=4 * SMALL)  # for import, finetune and evaluation
    assert sum(up.values()) == pytest.approx(1, abs=4 * SMALL)  # what is served
