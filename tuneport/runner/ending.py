"""How a run ended: its outputs, scores, verdict and warnings, for people and as one JSON object."""

from __future__ import annotations

import dataclasses as dc
import json
import shlex
import shutil
import sys
import typing as t
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from tuneport.artifacts import Artifact, MLflowModel, Report
from tuneport.runner import score_table
from tuneport.runner.run_record import Status
from tuneport.runner.score_table import Scores
from tuneport.runner.stage_lines import warnings_in
from tuneport.secrets import MASK, masked, masked_values

if t.TYPE_CHECKING:
    from rich.table import Table

UI_PORT, SERVE_PORT = 5000, 5001
SCHEMA = "run.schema.json"
WIDTH = 120  # off a terminal


@dc.dataclass(frozen=True, kw_only=True)
class Output:
    """One output of a pipeline: where it lies, and what it is."""

    artifact: Artifact
    about: str


@dc.dataclass(frozen=True, kw_only=True)
class Ending:
    """All that is said at the end of a run."""

    pipeline: str
    folder: Path
    status: Status
    outputs: Mapping[str, Output]  # those that are whole
    scores: Scores | None = None
    warnings: Mapping[str, Sequence[str]] = dc.field(default_factory=dict)  # by stage
    error: str = ""
    commands: Mapping[str, str] = dc.field(default_factory=dict)  # by what they do
    seconds: float | None = None

    def as_json(self) -> dict[str, t.Any]:
        """What `--json` prints; `schema` describes it."""
        scores = self.scores
        return {
            "status": self.status,
            "pipeline": self.pipeline,
            "run": str(self.folder),
            "seconds": self.seconds,
            "outputs": {name: str(output.artifact.path) for name, output in self.outputs.items()},
            "metrics": {} if scores is None else {name: dict(values) for name, values in scores.values.items()},
            "verdict": scores.verdict if scores else None,
            "warnings": [{"stage": stage, "text": text} for stage, texts in self.warnings.items() for text in texts],
            "error": self.error or None,
        }


def failed(pipeline: str, folder: Path, message: str) -> Ending:
    """The ending of a run that did not begin."""
    return Ending(pipeline=pipeline, folder=folder, status="failed", outputs={}, error=message)


def as_json(ending: Ending, known: Sequence[str]) -> str:
    """An ending as `--json` prints it; ``known``: the secrets of the environment, which are masked."""
    return masked(json.dumps(masked_values(ending.as_json()), indent=1, ensure_ascii=False), known)


def schema() -> dict[str, t.Any]:
    """The JSON schema of what `tuneport run --json` prints."""
    found: dict[str, t.Any] = json.loads(resources.files("tuneport.runner").joinpath(SCHEMA).read_text("utf-8"))
    return found


def scores_of(outputs: Mapping[str, Artifact]) -> Scores | None:
    """The scores of the evaluation that is among a run's outputs."""
    reports = [artifact.path for artifact in outputs.values() if isinstance(artifact, Report)]
    return next((scores for path in reports if (scores := score_table.read(path))), None)


def warnings_of(stages: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """The warnings of a run's stages, those of earlier runs among them where their results were taken."""
    found = {stage: warnings_in(folder / "logs" / f"{stage}.log") for stage in stages}
    return {stage: texts for stage, texts in found.items() if texts}


def next_commands(outputs: Mapping[str, Artifact], tracking_uri: str, tracking_folder: Path | None) -> dict[str, str]:
    """What to type next, by what it does; ``tracking_folder``: where MLflow's store is named from, if not from here."""
    found = {}
    pages = [a.path / "report.html" for a in outputs.values() if isinstance(a, Report)]
    if page := next((path for path in pages if path.is_file()), None):
        found["Read the report"] = str(page)
    for artifact in outputs.values():
        found |= _logs(artifact.path / "logs")
        if isinstance(artifact, MLflowModel):
            where = ("-m", str(artifact.path), "-p", str(SERVE_PORT))
            found["Serve the model"] = _mlflow("models", "serve", "--env-manager", "local", *where)
            if (example := artifact.path / "serving_input_example.json").is_file():
                found["Ask it, from another terminal"] = _curl(example)
    return found | {"See the run in MLflow": _see_run(tracking_uri, tracking_folder)}


def _logs(folder: Path) -> dict[str, str]:
    """How to see what finetune's `report_to` wrote to files."""
    found = {}
    if (folder / "tensorboard").is_dir():
        found["See the training in TensorBoard"] = shlex.join(("tensorboard", "--logdir", str(folder / "tensorboard")))
    if runs := sorted(map(str, (folder / "wandb").glob("offline-run-*"))):  # one of each time that it went on
        found["Send the training to Weights & Biases"] = shlex.join(("wandb", "sync", *runs))
    return found


def _curl(example: Path) -> str:
    url = f"http://127.0.0.1:{SERVE_PORT}/invocations"
    return shlex.join(("curl", "-s", url, "-H", "Content-Type: application/json", "-d", f"@{example}"))


def _see_run(uri: str, folder: Path | None) -> str:
    if uri.startswith(("http://", "https://")):
        return masked(uri).replace(f"{MASK}@", "")  # the server asks for the rest
    port = str(UI_PORT)
    if masked(uri) != uri:  # a database, whose password the shell has in this variable
        return f'{_mlflow("ui", "--backend-store-uri")} "$MLFLOW_TRACKING_URI" --port {port}'
    there = f"cd {shlex.quote(str(folder))} && " if folder else ""
    return f"{there}{_mlflow('ui', '--backend-store-uri', uri, '--port', port)}"


def _mlflow(*arguments: str) -> str:
    """An `mlflow` command as the user can type it, with our programs' folder on PATH: serving starts one of them."""
    folder = Path(sys.executable).parent
    command = f"MLFLOW_DISABLE_TELEMETRY=true {shlex.join(('mlflow', *arguments))}"
    found = shutil.which("mlflow")
    ours = found is not None and Path(found).parent == folder
    return command if ours else f'PATH={shlex.quote(str(folder))}:"$PATH" {command}'


def print_ending(ending: Ending, known: Sequence[str], *, brief: bool = False) -> None:
    """Print a finished run for people: on a terminal as wide as that is, elsewhere in `WIDTH` characters.

    Commands and paths are never broken, so that they can be copied.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=WIDTH)
    try:
        for part in _brief(ending) if brief else _parts(ending, console.width):
            if not isinstance(part, Line):
                console.print(part)
                continue
            text = Text(masked(part.text, known), style=part.style)
            for line in text.wrap(console, console.width - part.indent) if part.wraps else [text]:
                console.print(" " * part.indent, line, sep="", soft_wrap=True)
    except BrokenPipeError:
        return


@dc.dataclass(frozen=True)
class Line:
    """A line of text; one that is to be copied does not wrap."""

    text: str
    style: str = ""
    wraps: bool = False
    indent: int = 0  # spaces


def _brief(ending: Ending) -> Iterator[Line]:
    if ending.scores and ending.scores.verdict:
        yield Line(f"{ending.scores.verdict}.", wraps=True)
    yield Line(str(ending.folder))


def _parts(ending: Ending, width: int) -> Iterator[Line | Table]:
    took = "" if ending.seconds is None else f" in {_time(ending.seconds)}"
    yield Line(f"\n{ending.pipeline} finished{took}: {ending.folder}")
    if scores := ending.scores:
        yield Line(f"\nScores on {scores.rows:,} test rows, with 95 % intervals:")
        yield score_table.table(scores, width)
        if scores.verdict:
            yield Line(f"\n{scores.verdict}. {' '.join(scores.sentences[:1])}", style="bold", wraps=True)
    if ending.warnings:
        yield Line("\nWarnings:", style="yellow")
        for stage, texts in ending.warnings.items():
            for text in texts:
                yield Line(f"{stage}: {text}", wraps=True, indent=2)
    yield Line("\nOutputs:")
    for name, output in ending.outputs.items():
        yield Line(f"{name}: {output.about}", wraps=True, indent=2)
        yield Line(str(output.artifact.path), indent=4)
    for what, command in ending.commands.items():
        yield Line(f"\n{what}:")
        yield Line(command, indent=2)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02}"
