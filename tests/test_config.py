"""Configuration files and overrides: what they say, what wins, and where a mistake is."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest

import pipelines
from tuneport.artifacts import CustomMLflowModel, Dataset, File
from tuneport.config import example, from_file, from_overrides, from_values, given, json_schema, platform
from tuneport.errors import UserError
from tuneport.graph import Pipeline, trace
from tuneport.step import Params, Step, consumes, param, produces


class Schedule(Params):
    """Schedule."""

    rate: float = param("Rate.", default=2e-5, gt=0)
    warmup: int | None = param("Warm-up.", default=None, ge=0, le=10)


class Learn(Step, Schedule):
    """Learn."""

    rows: File = consumes("Rows.")
    model: CustomMLflowModel | None = consumes("Model.")
    label: str = param("Column: 'y', say.\nOr another.")
    second: str | None = param("Second column.", default=None)
    quick: bool = param("Quick.", default=False)
    precision: Literal["32", "16", "bf16"] = param("Bits.", default="32")
    optim: Literal["", "sgd"] | None = param("Optimiser.", default=None)
    prefix: str = param("Prefix.", default="a: #'b\"\\ ")
    learnt: Dataset = produces("Result.")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    def learning() -> dict[str, Any]:
        """Learn something."""
        return {"learnt": Learn().learnt}

    return trace(learning)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_files_values_get_their_inputs_types(pipeline: Pipeline, tmp_path: Path) -> None:
    file = write(tmp_path, "# a comment\nlabel: y\nrate: 2e-3\nwarmup: 3\nquick: yes\nprecision: 16\n")
    assert from_file(pipeline, file) == {"label": "y", "rate": 2e-3, "warmup": 3, "quick": True, "precision": "16"}


@pytest.mark.parametrize("name", ["no", "on", "null_column", "2024-01-01", "007", "0x1F", "1e3", "ü 'x' \\", "~"])
def test_a_column_is_called_what_stands_there_whatever_yaml_would_make_of_it(
    pipeline: Pipeline, tmp_path: Path, name: str
) -> None:
    quoted = json.dumps(name, ensure_ascii=False) if name == "~" else name
    assert from_file(pipeline, write(tmp_path, f"label: {quoted}\n")) == {"label": name}


def test_the_same_text_means_the_same_in_a_file_and_on_the_command_line(pipeline: Pipeline, tmp_path: Path) -> None:
    texts = {"label": "no", "rate": "1e-3", "quick": "TRUE", "precision": "bf16", "warmup": "none", "rows": "/r.csv"}
    file = write(tmp_path, "".join(f"{name}: {text}\n" for name, text in texts.items()))
    assert from_file(pipeline, file) == from_overrides(pipeline, [f"{k}={v}" for k, v in texts.items()], Path("/"))


def test_an_empty_value_unsets_what_is_optional_and_is_passed_over_elsewhere(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    file = write(tmp_path, "second:\nwarmup: null\nmodel: ~\nrate:\nlabel:\nprefix: ''\n")
    assert from_file(pipeline, file) == {"second": None, "warmup": None, "model": None, "prefix": ""}


@pytest.mark.parametrize("text", ["", "\n# nothing but a comment\n", "---\n"])
def test_an_empty_file_gives_nothing(pipeline: Pipeline, tmp_path: Path, text: str) -> None:
    if text == "---\n":
        with pytest.raises(UserError, match="holds a scalar; expected a mapping"):
            from_file(pipeline, write(tmp_path, text))
    else:
        assert from_file(pipeline, write(tmp_path, text)) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label: a\nrate: 1\nlabel: b\n", "run.yaml line 3: 'label' is given twice, first on line 1."),
        ("\n- a\n- b\n", "run.yaml line 2: holds a sequence; expected a mapping, one 'name: value' a line."),
        ("just text\n", "run.yaml line 1: holds a scalar; expected a mapping"),
        ("label: a\nrate: [1]\n", "run.yaml line 2: holds a sequence; expected one 'name: value' a line."),
        ("label:\n  a: b\n", "run.yaml line 2: holds a mapping; expected one 'name: value' a line."),
        ("label: a\nrate: {\n", "run.yaml line 3: is not valid YAML ("),
        ("label: 'a\n", "run.yaml line 2: is not valid YAML ("),
        ("\tlabel: a\n", "run.yaml line 1: is not valid YAML ("),
        ("a: 1\n---\nb: 2\n", "run.yaml line 2: is not valid YAML (but found another document)"),
        ("\n\nlabl: a\n", "run.yaml line 3: unknown parameter 'labl' for learning. Did you mean 'label'?"),
        ("label: a\nrate: 0\n", "run.yaml line 2: rate='0': not valid; expected a number > 0 (default 2e-05)."),
        ('label: "a\\0b"\n', "run.yaml line 1: label='a\\x00b': not valid; it holds a NUL character."),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(pipeline: Pipeline, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        from_file(pipeline, write(tmp_path, text))


def test_every_mistake_in_file_and_overrides_is_told_at_once(pipeline: Pipeline, tmp_path: Path) -> None:
    file = write(tmp_path, "labl: a\nrate: 0\n")
    with pytest.raises(UserError) as e:
        given(pipeline, file, ["quick=maybe", "warmup", "precison=16"], tmp_path)
    lines = str(e.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:2]] == [f"{file} line 1", f"{file} line 2"]
    assert [line.split(":")[0] for line in lines[2:]] == [
        "'warmup'",
        "quick='maybe'",
        "unknown parameter 'precison' for learning. Did you mean 'precision'?",
    ]


@pytest.mark.parametrize("content", [b"label: \xff\n", b"label: a\x00b\n", b"[" * 3000])
def test_a_file_that_is_no_yaml_text_is_refused_by_name(pipeline: Pipeline, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.yaml.* is not valid YAML"):
        from_file(pipeline, file)


@pytest.mark.parametrize("value", ["!!bool maybe", "2001-99-99", "!!int x", "{? [1]: 2}", "{<<: [1]}", "[" * 5000])
def test_a_platform_section_that_is_no_yaml_is_refused_by_its_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"run\.yaml.* is not valid YAML \(") as e:
        platform(write(tmp_path, f"platform:\n  kfp: {value}\n"))
    assert "\n" not in str(e.value)


def test_a_file_that_cannot_be_read_is_refused_by_name(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        from_file(pipeline, tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        from_file(pipeline, tmp_path)


# -- overrides and precedence ------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(pipeline: Pipeline, tmp_path: Path) -> None:
    file = write(tmp_path, "label: y\nrows: r.csv\nrate: 0.5\nsecond: z\nprecision: 16\n")
    values = pipeline.resolve(given(pipeline, file, ["rate=0.25", "second="], tmp_path))
    assert (values["rate"], values["second"], values["precision"], values["quick"]) == (0.25, None, "16", False)


def test_an_overrides_value_is_all_after_the_first_equals_sign(pipeline: Pipeline) -> None:
    values = from_overrides(pipeline, ["label=a=b 'c' \\ ü\n", "prefix=", "second=", "rate=1", "rate=2"], Path("/"))
    assert values == {"label": "a=b 'c' \\ ü\n", "prefix": "", "second": None, "rate": 2.0}


def test_an_empty_override_of_a_number_is_not_valid(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="rate='': not valid; expected a number > 0"):
        from_overrides(pipeline, ["rate="], Path("/"))


def test_paths_count_from_the_file_or_the_current_folder(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    file = write(tmp_path / "conf", "rows: data/*.csv\nlabel: data/x\n")
    assert given(pipeline, file, [], tmp_path) == {
        "rows": File(tmp_path / "conf" / "data" / "*.csv"),
        "label": "data/x",
    }
    assert given(pipeline, file, ["rows=r.csv"], tmp_path)["rows"] == File(tmp_path / "r.csv")
    assert given(pipeline, file, ["rows=/x/r.csv"], tmp_path)["rows"] == File(Path("/x/r.csv"))
    assert given(pipeline, file, ["rows=~/r.csv"], tmp_path)["rows"] == File(Path.home() / "r.csv")
    assert given(pipeline, file, ["rows=~nobody-here/r"], tmp_path)["rows"] == File(tmp_path / "~nobody-here" / "r")


@pytest.mark.parametrize("uri", ["models:/classifier/3", "runs:/abc/model", "s3:/bucket/model"])
def test_a_uri_is_no_path(pipeline: Pipeline, tmp_path: Path, uri: str) -> None:
    assert from_overrides(pipeline, [f"model={uri}"], tmp_path) == {"model": CustomMLflowModel(Path(uri))}


# -- the platform section ----------------------------------------------------------------------------------------------


def test_the_platform_section_is_kept_apart_from_the_inputs(pipeline: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("label: y\nplatform:\n  cluster:\n    nodes: [a, b]\n    size: 2\n", "utf-8")
    assert from_file(pipeline, file) == {"label": "y"}
    assert platform(file) == {"cluster": {"nodes": ["a", "b"], "size": 2}}
    assert platform(None) == {}


def test_a_platform_section_that_is_no_mapping_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("label: y\nplatform: cluster\n", "utf-8")
    with pytest.raises(UserError, match=r"run.yaml line 2: platform holds a scalar; expected one mapping"):
        platform(file)


# -- what editors and newcomers get ------------------------------------------------------------------------------------


def test_the_schema_says_of_each_input_what_its_port_says(pipeline: Pipeline) -> None:
    settings = {"type": "object"}
    schema = json_schema(pipeline, {"cluster": settings})
    assert schema["additionalProperties"] is False
    assert schema["properties"].pop("platform")["properties"] == {"cluster": settings}
    assert schema["properties"] == {
        "rows": {"description": "Rows.", "type": "string"},
        "model": {"description": "Model.", "type": ["string", "null"], "default": None},
        "label": {"description": "Column: 'y', say.\nOr another.", "type": "string"},
        "second": {"description": "Second column.", "type": ["string", "null"], "default": None},
        "quick": {"description": "Quick.", "type": "boolean", "default": False},
        "precision": {"description": "Bits.", "enum": ["32", "16", "bf16", 32, 16], "default": "32"},
        "optim": {"description": "Optimiser.", "enum": ["", "sgd", None], "default": None},
        "prefix": {"description": "Prefix.", "type": "string", "default": "a: #'b\"\\ "},
        "rate": {"description": "Rate.", "type": "number", "exclusiveMinimum": 0, "default": 2e-5},
        "warmup": {
            "description": "Warm-up.",
            "type": ["integer", "null"],
            "minimum": 0,
            "maximum": 10,
            "default": None,
        },
    }
    json.dumps(schema, allow_nan=False)


def every_pipeline(pipeline: Pipeline) -> list[Pipeline]:
    return [pipeline, *map(pipelines.load, pipelines.names())]


def test_an_example_loads_as_it_is_and_asks_for_what_is_required(pipeline: Pipeline, tmp_path: Path) -> None:
    for each in every_pipeline(pipeline):
        file = write(tmp_path, example(each))
        assert given(each, file, [], tmp_path) == {}
        required = [name for name, port in each.params.items() if port.required]
        for name in required:
            assert f"\n{name}:\n" in example(each)
        if not required:  # chat_completion: every column has a default name
            each.resolve(given(each, file, [], tmp_path))
            continue
        with pytest.raises(UserError) as e:
            each.resolve(given(each, file, [], tmp_path))
        assert [line.partition(":")[0] for line in str(e.value).splitlines() if "is required" in line] == required


def test_an_example_with_every_line_switched_on_gives_the_defaults(pipeline: Pipeline, tmp_path: Path) -> None:
    for each in every_pipeline(pipeline):
        names = "|".join(each.params)
        text, count = re.subn(rf"^# ((?:{names}):(?: .*)?)$", r"\1", example(each), flags=re.MULTILINE)
        optional = {name: port.default for name, port in each.params.items() if not port.required}
        assert count == len(optional)
        assert {**optional, **given(each, write(tmp_path, text), [], tmp_path)} == optional


def test_an_example_shows_help_choices_and_bounds_under_the_headings_of_groups(pipeline: Pipeline) -> None:
    text = example(pipeline)
    assert "\n# Bits. (one of 32, 16, bf16)\n# precision: 32\n" in text
    assert "\n# Rate. (a number > 0)\n# rate: 2e-05\n" in text
    assert "\n# Column: 'y', say.\n# Or another. (text)\nlabel:\n" in text
    headings = ["Required", "Inputs", "Parameters", "Schedule"]
    assert re.findall(r"^# ---- (.*) ----$", text, re.MULTILINE) == headings


def test_data_may_be_a_list_of_sources_whose_paths_count_from_the_file(tmp_path: Path) -> None:
    pipeline = pipelines.load("text_classification")
    (tmp_path / "run.yaml").write_text(
        "train_file_path:\n- {path: a.jsonl, weight: 2}\n- {path: 's3://rows/b.jsonl', weight: 1}\n"
        "test_file_path: [x.csv, /y.csv]\nvalidation_file_path: {path: v.csv, columns: {text: body}}\n"
    )
    found = given(pipeline, tmp_path / "run.yaml", (), Path("/elsewhere"))
    sources = [{"path": f"{tmp_path}/a.jsonl", "weight": 2}, {"path": "s3://rows/b.jsonl", "weight": 1}]
    assert json.loads(found["train_file_path"].location) == sources
    assert [one.location for one in found["test_file_path"].each()] == [f"{tmp_path}/x.csv", "/y.csv"]
    assert json.loads(found["validation_file_path"].location) == [
        {"path": f"{tmp_path}/v.csv", "columns": {"text": "body"}}
    ]
    override = from_overrides(pipeline, ['train_file_path=["a.jsonl"]'], tmp_path)
    assert json.loads(override["train_file_path"].location) == [{"path": f"{tmp_path}/a.jsonl"}]
    value = from_values(pipeline, {"train_file_path": [Path("a.jsonl"), {"path": "b.jsonl"}]}, tmp_path)
    assert [one.location for one in value["train_file_path"].each()] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
    assert json_schema(pipeline, {})["properties"]["train_file_path"]["type"] == ["string", "array", "null"]
    (tmp_path / "run.yaml").write_text("train_file_path:\n- {path: a.jsonl, weight: -1}\n")
    with pytest.raises(UserError, match=r"line 1: train_file_path\[1\].weight=-1: not valid"):
        given(pipeline, tmp_path / "run.yaml", (), tmp_path)


def test_a_value_that_is_json_may_be_a_mapping_in_the_file(tmp_path: Path) -> None:
    pipeline = pipelines.load("text_classification")
    (tmp_path / "run.yaml").write_text("columns: {sentence1: data.text, label: 'no'}\nlabel_key: label\n")
    found = given(pipeline, tmp_path / "run.yaml", (), tmp_path)
    assert json.loads(found["columns"]) == {"sentence1": "data.text", "label": "no"}
    assert json_schema(pipeline, {})["properties"]["columns"]["type"] == ["string", "object", "array", "null"]
    (tmp_path / "run.yaml").write_text("label_key: {a: b}\n")
    with pytest.raises(UserError, match="line 1: holds a mapping; expected one 'name: value' a line"):
        given(pipeline, tmp_path / "run.yaml", (), tmp_path)
    (tmp_path / "run.yaml").write_text("columns: {a: 2020-01-01}\n")
    with pytest.raises(UserError, match="line 1: is not valid YAML"):
        given(pipeline, tmp_path / "run.yaml", (), tmp_path)
