"""Compose an MLflow models-from-code model: the model folder, the code that serves it, signature, example, packages."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import sys
import tempfile
import typing as t
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from tuneport import serving
from tuneport.artifacts import ABSENT, INCOMPLETE, MANIFEST, absent, leave_absent
from tuneport.links import link_or_copy
from tuneport.serving.adapter_sum import LoraAdapter
from tuneport.serving.served import Served
from tuneport.tasks.task import SCORING, Meta, Row, Task
from tuneport.tracking import TRACKING_FILE, quieten

if t.TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema

EXAMPLE_ROWS = 3
BATCH_SIZE = 32  # rows that a served model answers at once, unless a request says otherwise
PACKAGES = ("mlflow", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "pandas", "numpy", "jinja2")
ADAPTER_PACKAGES = ("peft",)
WEIGHTS_IN = (".", LoraAdapter.BASE)  # in a model's folder: its own, and those that they are added to
NOT_SERVED = {
    "checkpoints",
    "logs",
    "trainer_state.json",
    "training.json",
    "training_args.bin",
    TRACKING_FILE,
    MANIFEST,
    INCOMPLETE,
    ABSENT,
}

CODE = '''\
"""Serves a fine-tuned {task} model. Self-contained; loaded by mlflow.pyfunc."""

from __future__ import annotations

import typing as t

import mlflow


{predictor}

{served}

class ServedModel(Served, mlflow.pyfunc.PythonModel):
    pass


mlflow.models.set_model(
    ServedModel(
        predictor={predictor_name},
        settings={settings!r},
        columns={columns!r},
        kinds={kinds!r},
        answers={answers!r},
    )
)
'''


def write_mlflow_model(
    task: Task,
    model_folder: Path,
    *,
    columns: Mapping[str, str],
    meta: Meta,
    settings: Row,
    example_rows: Sequence[Row],
    destination: Path,
    reading: Mapping[str, t.Any] | None = None,
) -> None:
    """Write the MLflow model of a fine-tuned model folder to ``destination``.

    ``columns`` maps the task's fields to the user's columns, ``settings`` are the predictor's, ``example_rows`` hold
    the task's fields, ``reading`` is what preprocess was told of the data, by which the model is scored on other data.
    Neither loads the model nor touches the network.
    """
    quieten()
    import mlflow

    inputs, answers = task.serving_schema(columns, meta)
    read = {field: columns.get(field, field) for field in inputs.names}
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=destination) as scratch:  # MLflow wants a folder of its own
        # It copies what it is given, so weights are put there afterwards.
        code, saved = Path(scratch, "served_model.py"), Path(scratch, "saved")
        code.write_text(_code(task, settings, read, inputs, answers), encoding="utf-8")
        mlflow.pyfunc.save_model(
            path=saved,
            python_model=str(code),
            artifacts={"model": str(_beside_weights(model_folder, Path(scratch, "model")))},
            signature=_signature(inputs, answers, read, settings.get("params", {})),
            input_example=_example([task.example(row) for row in example_rows[:EXAMPLE_ROWS]], read),
            pip_requirements=requirements(adapter=LoraAdapter(str(model_folder)).has_base()),
            metadata={"task": task.name, SCORING: scoring(meta, reading or {})},
        )
        left = {name: entry for name, entry in absent(model_folder).items() if _is_weights(name)}
        _complete(saved, model_folder, left)
        for path in saved.iterdir():
            path.replace(destination / path.name)


def scoring(meta: Meta, reading: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What `tuneport.evaluation.saved_models` needs to score a model by rows with true answers."""
    return {"meta": {name: value for name, value in meta.items() if name != "prompting"}, "reading": dict(reading)}


def requirements(*, adapter: bool = False) -> list[str]:
    """The packages a served model needs, pinned to what is installed here, without local parts such as ``+cpu``.

    ``adapter``: whether it is an adapter beside its base model.
    """
    pinned = []
    for package in (*PACKAGES, *(ADAPTER_PACKAGES if adapter else ())):
        try:
            pinned.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue  # a served model that needs it says so when it is loaded
    return pinned


def _code(task: Task, settings: Row, columns: Mapping[str, str], inputs: pa.Schema, answers: pa.Schema) -> str:
    return CODE.format(
        task=task.name.replace("_", " "),
        predictor="\n\n".join(map(inspect.getsource, exported_classes(task.predictor))),
        predictor_name=task.predictor.__name__,
        served=inspect.getsource(Served),
        settings=settings,
        columns=dict(columns),
        kinds={column: _type_name(inputs.field(field).type) for field, column in columns.items()},
        answers=answers.names,
    )


def exported_classes(predictor: type) -> list[type]:
    """The classes whose source serves a model: those that the predictor's source names, each before who needs it."""
    found: list[type] = []
    module = vars(sys.modules[predictor.__module__])
    names = {node.id for node in ast.walk(ast.parse(inspect.getsource(predictor))) if isinstance(node, ast.Name)}
    for name in sorted(names - {predictor.__name__}):
        other = module.get(name)
        if isinstance(other, type) and other.__module__.startswith((serving.__name__, predictor.__module__)):
            found += [needed for needed in exported_classes(other) if needed not in found]
    return [*found, predictor]


def _is_weights(name: str) -> bool:
    """Whether a file, by its path in the model's folder, holds weights to serve."""
    path = PurePosixPath(name)
    return path.suffix == ".safetensors" and str(path.parent) in WEIGHTS_IN


def _beside_weights(model_folder: Path, destination: Path) -> Path:
    """A folder of what serving needs, but for the weights."""

    def skip(folder: str, names: list[str]) -> set[str]:
        here = Path(folder).relative_to(model_folder)
        at_top = NOT_SERVED if here == Path() else set[str]()
        return {*at_top, *(name for name in names if _is_weights((here / name).as_posix()))}

    shutil.copytree(model_folder, destination, ignore=skip)
    return destination


def _complete(saved: Path, model_folder: Path, left: Mapping[str, Mapping[str, t.Any]]) -> None:
    """Put the weights into a saved model, and let its MLmodel file say so; ``left``: those that stay in a store.

    It also names where code and files came from, a folder about to vanish; now it names their places in the model.
    """
    from mlflow.models import Model

    model = Model.load(saved)
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    place = saved / flavor["artifacts"]["model"]["path"]
    weights = sorted(file for part in WEIGHTS_IN for file in (model_folder / part).glob("*.safetensors"))
    for file in weights:
        link_or_copy(str(file), str(place / file.relative_to(model_folder)))
    if left:
        leave_absent(saved, {(place / name).relative_to(saved).as_posix(): entry for name, entry in left.items()})
    if model.model_size_bytes:
        model.model_size_bytes += sum(file.stat().st_size for file in weights) + sum(e["size"] for e in left.values())
    model.save(saved / "MLmodel")


def _example(rows: Sequence[Row], columns: Mapping[str, str]) -> pd.DataFrame:
    import pandas as pd

    values = {column: [row.get(field) for row in rows] for field, column in columns.items()}
    return pd.DataFrame({column: found for column, found in values.items() if any(v is not None for v in found)})


def _signature(
    inputs: pa.Schema, answers: pa.Schema, columns: Mapping[str, str], params: Mapping[str, int | float]
) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    served = {"batch_size": BATCH_SIZE, **params}
    specs = [ParamSpec(name, "double" if isinstance(v, float) else "long", v) for name, v in served.items()]
    return ModelSignature(_schema(inputs, columns), _schema(answers, {}), ParamSchema(specs))


def _schema(fields: pa.Schema, columns: Mapping[str, str]) -> Schema:
    """An Arrow schema in MLflow's types; ``columns`` renames fields, of which two may be one column."""
    from mlflow.types import ColSpec, Schema

    named = {columns.get(field.name, field.name): field for field in fields}
    return Schema([ColSpec(_type(field.type), name, not is_optional(field)) for name, field in named.items()])


def is_optional(field: pa.Field) -> bool:
    """Whether a request may leave a field out."""
    return (field.metadata or {}).get(b"optional") == b"true"


def _type(kind: pa.DataType) -> t.Any:
    import pyarrow as pa
    from mlflow.types import DataType
    from mlflow.types.schema import AnyType, Array, Map, Object, Property

    if pa.types.is_union(kind) or kind == pa.json_():
        return AnyType()  # type: ignore[no-untyped-call]
    if pa.types.is_map(kind):
        return Map(_type(kind.item_type))
    if pa.types.is_list(kind):
        return Array(_type(kind.value_type))
    if pa.types.is_struct(kind):
        return Object([Property(field.name, _type(field.type)) for field in kind])
    plain = {
        pa.string(): DataType.string,
        pa.bool_(): DataType.boolean,
        pa.int32(): DataType.integer,
        pa.int64(): DataType.long,
        pa.float32(): DataType.float,
        pa.float64(): DataType.double,
    }
    return plain[kind]


def _type_name(kind: pa.DataType) -> str:
    return re.sub(r"[<\[( ].*", "", str(kind))
