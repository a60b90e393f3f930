"""export_formats=onnx: the ONNX model answers as the served one, for rows of any number and length."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

import pipelines
import steps
from tuneport import tasks
from tuneport.artifacts import MLflowModel, Model, verify, write_manifest
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.modeling.onnx_model import write_onnx_model
from tuneport.stage import execute

TASKS = ("text_classification", "token_classification", "question_answering")


class OnnxModel:
    """What a predictor takes for a model: an ONNX session that answers as transformers' models do."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoConfig

        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        self.names = [port.name for port in self.session.get_inputs()]
        self.config = AutoConfig.from_pretrained(folder)
        self.device = torch.device("cpu")
        self.shapes: list[tuple[int, ...]] = []

    def eval(self) -> "OnnxModel":
        return self

    def parameters(self) -> Any:
        return iter(())

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> None: ...

    def __call__(self, **batch: Any) -> SimpleNamespace:
        import torch

        assert set(batch) == set(self.names)
        self.shapes.append(tuple(batch["input_ids"].shape))
        found = self.session.run(None, {name: value.numpy() for name, value in batch.items()})
        outputs = [port.name for port in self.session.get_outputs()]
        return SimpleNamespace(**{name: torch.tensor(value) for name, value in zip(outputs, found, strict=True)})


@pytest.fixture(scope="module")
def exported(ready: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """By task: the tuned folder, a tiny model with a random head, and what model_export makes of it."""
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        import torch
        from transformers import AutoTokenizer

        if name not in made:
            given, task, folder = ready(name), tasks.load(name), tmp_path_factory.mktemp(name)
            prepared = Prepared(given.prepared)
            torch.manual_seed(0)
            model = task.load_model(given.model, prepared.info.meta)
            for weight in model.parameters():
                weight.data.mul_(4)
            model.save_pretrained(folder / "tuned")
            AutoTokenizer.from_pretrained(given.model, model_max_length=64).save_pretrained(folder / "tuned")
            write_manifest(Model(folder / "tuned"), "by hand", "0", {}, {})
            stage = steps.load("model_export", name)(
                pytorch_model_folder=folder / "tuned",
                preprocess_output=given.prepared,
                mlflow_model_folder=folder / "exported",
                export_formats="onnx",
            )
            execute(stage)
            settings = task.settings(prepared.info.meta, stage)
            made[name] = SimpleNamespace(
                folder=folder, prepared=prepared, settings=settings, onnx=folder / "exported/onnx"
            )
        return made[name]

    return make


def close(found: Any, expected: Any) -> bool:
    """Equal texts, and numbers within 1e-4."""
    if isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == pytest.approx(expected, abs=1e-4) if isinstance(expected, float) else found == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_onnx_model_answers_as_the_served_one_for_rows_of_any_number_and_length(
    name: str, exported: Callable[[str], Any]
) -> None:
    import mlflow

    run = exported(name)
    verify(MLflowModel(run.folder / "exported"))
    rows = [*run.prepared.rows("train"), *run.prepared.rows("validation")]
    longer = {"sentence1": "cat " * 50, "tokens": ["cat", "dog"] * 20, "context": "cat dog 7 " * 20}
    rows.append({**rows[0], **{key: value for key, value in longer.items() if key in rows[0]}})
    served = mlflow.pyfunc.load_model(str(run.folder / "exported")).unwrap_python_model().predictor
    network = OnnxModel(run.onnx)
    own = tasks.load(name).predictor(str(run.onnx), run.settings, model=network)
    for some in (rows[:1], rows[1:], rows):
        assert close(own(some), served(some, batch_size=3))
    assert len({shape[0] for shape in network.shapes}) > 1 and len({shape[1] for shape in network.shapes}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_folder_says_what_goes_in_and_what_comes_out_and_its_example_runs(
    name: str, exported: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported(name).onnx
    text = (folder / "README.md").read_text()
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for port in (*session.get_inputs(), *session.get_outputs()):
        assert f"| `{port.name}` |" in text
        assert port.shape[0] == "batch" and (len(port.shape) == 2 or port.shape[1] == "sequence")
    monkeypatch.chdir(folder)
    place: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], place)  # noqa: S102 - the example of the README
    assert place["found"][0].shape[0] == 1
    if name != "question_answering":
        assert place["found"][0].shape[-1] == len(json.loads((folder / "config.json").read_text())["id2label"])


def test_an_onnx_model_that_answers_otherwise_is_refused(
    ready: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter here writes a graph of all zeros."""
    import torch
    from onnx import TensorProto, helper, save

    task, given = tasks.load("text_classification"), ready("text_classification")
    prepared = Prepared(given.prepared)
    torch.manual_seed(0)
    model = task.load_model(given.model, prepared.info.meta).eval()
    model.classifier.bias.data.fill_(1.0)

    def wrong(model: Any, args: Any, file: str, *, kwargs: Any, **more: Any) -> Any:
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "sequence"])
        out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])
        zeros = helper.make_node(
            "Constant", [], ["logits"], value=helper.make_tensor("z", TensorProto.FLOAT, [1, 3], [0.0] * 3)
        )
        graph = helper.make_graph([zeros], "g", [ids, mask], [out])
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
        return SimpleNamespace(model=SimpleNamespace(opset_imports={"": 18}))

    monkeypatch.setattr(torch.onnx, "export", wrong)
    predictor = task.predictor(str(given.model), None, model=model)
    with pytest.raises(UserError, match="BertForSequenceClassification gives other logits than the model, by up to"):
        write_onnx_model(
            model,
            predictor,
            prepared.rows("test")[:1],
            task=task.name,
            tokenizer=given.model,
            destination=tmp_path / "o",
        )


@pytest.mark.slow
def test_a_model_that_cannot_be_exported_is_refused_with_the_reason(
    ready: Callable[[str], Any], tmp_path: Path
) -> None:
    """A layer that looks at the numbers to choose its way cannot be a graph."""
    import torch

    task, given = tasks.load("text_classification"), ready("text_classification")
    prepared = Prepared(given.prepared)
    model = task.load_model(given.model, prepared.info.meta).eval()

    class Choosing(torch.nn.Module):
        def forward(self, hidden: Any) -> Any:
            return hidden * 2 if hidden.sum().item() > 0 else hidden

    model.dropout = Choosing()
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    predictor = task.predictor(str(given.model), None, model=model)
    with pytest.raises(UserError, match=r"export_formats=onnx: a BertForSequenceClassification cannot be exported \("):
        write_onnx_model(
            model, predictor, prepared.rows("test"), task=task.name, tokenizer=given.model, destination=tmp_path / "o"
        )


def stage(**values: Any) -> Any:
    given = {"pytorch_model_folder": "/m", "preprocess_output": "/p", "mlflow_model_folder": "/o"}
    return steps.load("model_export", "text_classification")(**given, **values)


def test_another_format_is_refused_and_a_missing_package_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from importlib.util import find_spec

    with pytest.raises(UserError, match="export_formats='gguf': not valid; expected onnx"):
        stage(export_formats='["onnx", "gguf"]').check()
    stage(export_formats='["onnx"]').check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else find_spec(name))
    with pytest.raises(UserError, match=r"onnx: not installed. Run: pip install 'tuneport\[onnx\]'"):
        stage(export_formats="onnx").check_here()
    stage(export_formats="onnx").check_files()  # for a container, whose image has the package
    stage().check_here()


def test_tasks_that_write_text_have_no_such_parameter() -> None:
    assert [name for name in tasks.names() if "export_formats" in pipelines.load(name).params] == sorted(TASKS)
