"""Every command of ours in the documents is accepted by the real program; those that end here are run.

A pipeline's `run` and `submit` are validated with their values, files and rows; what is compiled, prepared, listed,
compared, estimated, shown or replayed is done, in a folder with the files and the finished run that the pages speak of.
"""

import io
import itertools
import re
import shutil
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import pytest

import pipelines
import steps
from pipelines.__main__ import command as tuneport
from tests.doc_commands import NOT_RUN, OUR_PROGRAMS, ROOT, Command, commands, of_text, program, reason
from tests.inspection.test_start import EXAMPLES
from tests.tasks.conftest import gpt2
from tests.whole_run import plan
from tuneport.cli import main as cli
from tuneport.cli.stage_command import stage_command
from tuneport.errors import UserError
from tuneport.runner import run_record
from tuneport.step import parse_values

ALL = commands()
OURS = [command for command in ALL if reason(command) is None]
ONCE = [*{" ".join(command.words): command for command in reversed(OURS)}.values()][::-1]  # what several pages print
IMAGE = f"registry.example/tuneport@sha256:{'0' * 64}"
COLUMNS = "sentence1_key: text\nlabel_key: label\n"
CONFIG = f"pytorch_model_path: models/minilm\ntrain_file_path: questions.jsonl\n{COLUMNS}"
ON_KUBEFLOW = f"""\
pytorch_model_path: s3://bucket/minilm
train_file_path: s3://bucket/questions.jsonl
{COLUMNS}
platform:
  kfp:
    images: {{base: "{IMAGE}", trainer: "{IMAGE}"}}
"""
ELLIPSES = {  # what stands for a path of the reader's
    "first_model=…": "first_model=runs/a/model_export/mlflow_model_folder",
    "second_model=…": "second_model=runs/b/model_export/mlflow_model_folder",
    "mlflow_model_folder=…": "mlflow_model_folder=runs/a/model_export/mlflow_model_folder",
    "TASK": "text_classification",
    "PIPELINE": "text_classification",
    "RUN": "runs/a",
    "…": None,
}


@pytest.fixture(scope="module")
def place(
    whole_run: Path,
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with all that the commands name."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(tiny_model, folder / "models" / "minilm")
    rows = write_jsonl(folder / "questions.jsonl", questions)
    for name in ("rows.jsonl", "test.jsonl"):
        shutil.copy(rows, folder / name)
    (folder / "my.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in questions))
    for name in ("run.yaml", "config.yaml"):
        (folder / name).write_text(CONFIG, "utf-8")
    gpt2(folder / "models" / "gpt2")
    decoder = {"pytorch_model_path": "models/gpt2", "train_file_path": "rows.jsonl"}
    (folder / "lora.yaml").write_text(
        "".join(f"{name}: {value}\n" for name, value in {**decoder, "text_key": "text", "apply_lora": "true"}.items())
    )
    runs = folder / "runs" / "text_classification"
    record = plan(whole_run.parent).record
    for kept in (
        *(runs / name for name in ("quiet-otter-1", "quiet-otter-3", "rate-1e-5", "rate-3e-5")),
        folder / "runs" / "a",
    ):
        shutil.copytree(whole_run, kept)
        run_record.ended(kept, run_record.begun(kept, record), "finished")
    (runs / "latest").symlink_to("quiet-otter-1")
    (folder / "runs" / "b").symlink_to("a")
    shutil.copy(runs / "latest" / "logs" / "finetune.inputs.json", folder)
    shutil.copytree(runs / "latest" / "preprocess" / "preprocess_output", folder / "rows")
    (folder / "downloaded").mkdir()
    shutil.copytree(runs / "latest" / "preprocess" / "preprocess_output", folder / "downloaded" / "rows")
    shutil.copytree(runs / "latest" / "model_import" / "model_selector_output", folder / "downloaded" / "model")
    for example, made in EXAMPLES.items():
        copy = folder / "examples" / example
        shutil.copytree(ROOT / "examples" / example, copy, ignore=shutil.ignore_patterns("data"))
        for config in copy.glob("*.yaml"):
            values = dict(re.findall(r"^(pytorch_model_path|train_file_path): (\S+)", config.read_text("utf-8"), re.M))
            shutil.copytree(tiny_model, copy / values["pytorch_model_path"], dirs_exist_ok=True)
            write_jsonl(copy / values["train_file_path"], made)
    return folder


def parsed(argv: list[str]) -> click.Context:
    """The context of the command that a line calls, as click parses it; nothing is run.

    Raises `UserError` or click's own error for a flag that the command does not have.
    """
    group = cli.commands(
        pipelines.names(), load=pipelines.load, load_stage=steps.load, stages=steps.names,
        estimate=lambda *asked: ([], {}), preview=lambda *asked: None, start=lambda *asked: ("", ""), argv=argv,
    )  # fmt: skip
    found: click.Command = group
    context = group.make_context("tuneport", list(argv))
    while isinstance(found, click.Group):
        name, below, rest = found.resolve_command(context, [*context._protected_args, *context.args])
        assert below is not None
        found, context = below, below.make_context(name, rest, parent=context)
    return context


def accepted(argv: list[str]) -> tuple[str, click.Context]:
    """The command that a line calls, where its flags and, of a stage, its values are accepted."""
    if argv[:1] == ["stage"] and len(argv) > 1 and "--help" not in argv:
        name = argv[1]
        named = dict(itertools.pairwise(argv)).get("--task_name")
        step = steps.load(name, named)
        context = stage_command(step, lambda given: 0).make_context(name, argv[2:])
        given = {name: value for name, value in context.params.items() if value is not None}
        parse_values(step.ports(), given, name)
        return "stage", context
    return argv[0], parsed(argv)


def words_of(command: Command) -> list[str]:
    """The arguments of `tuneport`."""
    words = [w for word in command.words if (w := ELLIPSES.get(word, word)) is not None]
    if ">" in words:
        words = words[: words.index(">")]
    return ["stage", *words[3:]] if words[:3] == ["python", "-m", "steps"] else words[1:]


def check(argv: list[str]) -> None:
    """Run a command, or what can be done of it here: see this module's first lines."""
    name, context = accepted(argv)
    given = context.params
    if name in ("run", "submit") and given["pipeline"] and not given["help"]:
        line = ["validate", given["pipeline"], *given["overrides"], "--target", given["target"]]
        argv = line + (["--config", str(given["config"])] if given["config"] else [])
    if name in ("run", "submit", "validate") and not given["pipeline"]:
        return  # flags alone, as the page speaks of them
    if name == "estimate" and given["pipeline"] != "text_generation":
        return  # a simulated step takes half a minute, and docs/memory.md has one
    if name == "replay":
        argv = [word for word in argv if word != "--run"]
    if name == "stage" and any(value.startswith("/") or value == "2" for value in argv):
        return  # of a container, or of one process of several
    if argv[:2] == ["runs", "rm"]:
        argv = [*argv, "--yes"]
    if name == "init" and "-o" in argv:
        Path(argv[argv.index("-o") + 1]).unlink(missing_ok=True)  # which another command has made
    assert tuneport(argv) == 0, argv


@pytest.mark.parametrize("command", OURS, ids=str)
def test_every_flag_and_name_in_a_command_of_ours_is_known(command: Command) -> None:
    name, context = accepted(words_of(command))
    if name in ("run", "submit", "validate", "compile", "preview", "estimate") and context.params["pipeline"]:
        known = pipelines.load(context.params["pipeline"]).params
        assert {override.partition("=")[0] for override in context.params["overrides"]} <= known.keys()


@pytest.mark.slow
@pytest.mark.parametrize("command", ONCE, ids=str)
def test_a_command_of_ours_does_what_the_page_says_it_does(
    command: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("BROWSER", "true")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("tuneport.export.hub_upload.check_access", lambda repo_id: None)  # asks the hub
    monkeypatch.setattr("sys.stdin", io.StringIO())
    words = words_of(command)
    Path("run.yaml").write_text(ON_KUBEFLOW if "kfp" in words else CONFIG, "utf-8")
    check(words)


def test_what_is_not_run_is_named_with_its_reason_and_each_reason_is_needed() -> None:
    assert {program(command.text) for command in ALL} - {*OUR_PROGRAMS} == NOT_RUN.keys()


def test_programs_and_extras_that_are_not_run_exist() -> None:
    texts = [command.text for command in ALL]
    for file in {word for text in texts if text.startswith("python examples") for word in text.split()[1:2]}:
        assert (ROOT / file).is_file(), file
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = {e for page in ROOT.glob("**/*.md") for e in re.findall(r"'tuneport\[([\w-]+)\]'", page.read_text("utf-8"))}
    assert named and named <= extras.keys()


@pytest.mark.parametrize(
    "planted",
    [
        "    tuneport run text_classification --confg run.yaml",
        "    tuneport run text_classification --config run.yaml learning_rat=5e-5",
        "    tuneport runs compare a b --htm x.html",
        "    tuneport stage finetune --task_name text_classification \\\n        --lerning_rate 1",
        "    stage tuneport-base:0.1.0 python -m steps preprocess --task_name text_classification --batch_size none",
        "```bash\nfor rate in 1 2; do\n  tuneport run text_classification lerning_rate=$rate\ndone\n```\n",
        "Or `tuneport verify runs/a --ful`, which reads all.",
        "    tuneport valdate text_classification",
    ],
)
def test_a_wrong_flag_name_or_value_in_a_page_is_noticed(planted: str) -> None:
    (found,) = of_text(planted)
    with pytest.raises((UserError, click.ClickException, AssertionError)):
        test_every_flag_and_name_in_a_command_of_ours_is_known(Command("planted.md", found))
