"""What Python calls: run, compile, validate and preview a pipeline, load a finished run; `import tuneport` offers it.

Each call takes what the command of its name takes: a configuration, as a file or a mapping, and values as keywords,
which win. All raise `tuneport.UserError` for a mistake that the caller can mend.
"""

from __future__ import annotations

import dataclasses as dc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import typing as t
from collections.abc import Mapping, Sequence
from pathlib import Path

import pipelines
from tuneport import config as configuration
from tuneport import targets
from tuneport.artifacts import MANIFEST
from tuneport.cli.cmd_run import place_of
from tuneport.cli.pipeline_command import request_of
from tuneport.errors import UserError
from tuneport.graph import Pipeline
from tuneport.history import kept_runs
from tuneport.json_yaml import read_json
from tuneport.runner import run_record
from tuneport.step import REQUIRED

if t.TYPE_CHECKING:
    from tuneport.inspection.show import Page

Config = str | Path | Mapping[str, t.Any] | None
Status = t.Literal["running", "finished", "failed"]
POLL = 0.2  # seconds between two looks at a run


@dc.dataclass(kw_only=True, eq=False)
class Run:
    """A run and its folder; a run that this process started can be waited for.

    Usage:
        >>> found = load("latest")  # doctest: +SKIP
        >>> found.metrics["accuracy"]  # doctest: +SKIP
        0.93
    """

    output_dir: Path
    process: subprocess.Popen[bytes] | None = dc.field(default=None, repr=False)
    log: Path | None = dc.field(default=None, repr=False)  # all that the process says
    shown: int = dc.field(default=0, repr=False)  # bytes of the log that were shown

    @property
    def status(self) -> Status:
        """``running``, ``finished`` or ``failed``, which a stopped run is, too."""
        if self.process is not None:
            code = self.process.poll()
            return "running" if code is None else "failed" if code else "finished"
        record = run_record.read(self.output_dir)
        if record is None:
            return "running" if run_record.is_locked(self.output_dir) else "failed"
        return "failed" if record.status == "stopped" else record.status

    @property
    def outputs(self) -> dict[str, Path]:
        """The folders that are whole, by the output's name, such as ``pytorch_model_folder``."""
        found = sorted(self.output_dir.glob(f"*/*/{MANIFEST}"))
        return {path.parent.name: path.parent for path in found if not path.parent.name.startswith(".")}

    @property
    def metrics(self) -> dict[str, t.Any]:
        """What the evaluation wrote to ``metrics.json``. Raises `UserError` where there was none yet."""
        return t.cast("dict[str, t.Any]", read_json(self._output("evaluation_result") / "metrics.json"))

    @property
    def report(self) -> Path:
        """The evaluation's ``report.html``. Raises `UserError` where there was none yet."""
        return self._output("evaluation_result") / "report.html"

    def predict(self, rows: Sequence[Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
        """The tuned model's answer to each row, which has the columns of the training data; loads torch.

        Raises `UserError` where no model was exported yet, or the model refuses a row.
        """
        import mlflow
        import pandas as pd

        model = mlflow.pyfunc.load_model(str(self._output("mlflow_model_folder")))
        try:
            answers = model.predict(pd.DataFrame(list(rows)))
        except (ValueError, mlflow.MlflowException) as e:
            raise UserError(str(e)) from None
        found = answers.to_dict("records") if isinstance(answers, pd.DataFrame) else list(answers)
        return t.cast("list[dict[str, t.Any]]", found)

    def wait(self, *, show: bool = True) -> Run:
        """Wait for the end, and ``show`` what the run says as it says it; returns the run.

        Raises `UserError` with the run's own message where it failed. Ctrl-C stops the run as it does in a terminal.
        """
        try:
            while self.status == "running":
                self._say(show)
                time.sleep(POLL)
        except KeyboardInterrupt:
            self.stop()
            raise
        self._say(show)
        if self.process is not None and self.process.returncode:
            raise UserError(_last_words(self.log) or f"the run ended with exit code {self.process.returncode}.")
        if self.status == "failed":
            raise UserError(f"{self.output_dir}: the run did not come to its end; its logs say why.")
        return self

    def stop(self) -> None:
        """Stop a run that this process started, as Ctrl-C does: finished stages are kept."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()

    def _output(self, name: str) -> Path:
        if name not in self.outputs:
            there = ", ".join(self.outputs) or "nothing yet"
            raise UserError(
                f"{self.output_dir}: has no {name}; there is: {there}. Wait for the run, or look at its logs."
            )
        return self.outputs[name]

    def _say(self, show: bool) -> None:
        if not show or self.log is None:
            return
        from rich.console import Console

        with self.log.open("rb") as f:
            f.seek(self.shown)
            text = f.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.shown += len(whole)
        if whole:
            Console(highlight=False).print(whole.decode("utf-8", "replace"), end="", markup=False)


def run(
    pipeline: str,
    config: Config = None,
    *,
    target: str = "local",
    name: str | None = None,
    output_dir: str | Path | None = None,
    force: bool = False,
    start_from: str | None = None,
    wait: bool = True,
    **values: t.Any,
) -> Run:
    """Run a pipeline as `tuneport run` does, in a process of its own; finished and unchanged stages are not run again.

    The run is kept in runs/PIPELINE/NAME, under a name that is made up where none is given, or in ``output_dir``.
    ``wait=False`` returns at once. Raises `UserError` for values that are not valid, for the name of a finished run
    unless ``force`` gives that up, and where the run fails.
    """
    traced = pipelines.load(pipeline)
    resolved, platform = _given(traced, config, values)
    chosen = targets.load(target)
    targets.check_resources(traced, resolved, chosen)
    directory = None if output_dir is None else Path(output_dir)
    if chosen.remote and directory is None:
        directory = Path("runs", pipeline)  # nothing is written there
    folder = place_of(traced, resolved, name=name, output_dir=directory, force=force).folder
    request = request_of(traced, platform, (), folder, start_from)
    targets.settings(chosen, request)
    scratch = Path(tempfile.mkdtemp(prefix="tuneport-run-"))
    file = scratch / "run.json"  # JSON is YAML
    text = {**_texts(traced, resolved), **({"platform": platform} if platform else {})}
    file.write_text(json.dumps(text), "utf-8")
    file.chmod(0o600)  # an address may hold a secret
    argv = [sys.executable, "-P", "-m", "pipelines", "run", pipeline, "--config", str(file)]
    argv += ["--target", target]
    argv += ["--name", folder.name] if directory is None else ["--output_dir", str(folder)]
    argv += ["--force"] if force else []
    argv += ["--from", start_from] if start_from else []
    log = scratch / "log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*_roots(), os.environ.get("PYTHONPATH")]))}
    with log.open("wb") as f:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT, env=environment)
    started = Run(output_dir=folder, process=process, log=log)
    return started.wait() if wait else started


def compile(pipeline: str, config: Config = None, *, target: str, output: str | Path, **values: t.Any) -> Path:
    """Write a pipeline as a platform's own document, as `tuneport compile` does; returns its path.

    Raises `UserError` for values that are not valid or that the platform cannot honour.
    """
    traced = pipelines.load(pipeline)
    resolved, platform = _given(traced, config, values)
    chosen, path = targets.load(target), Path.cwd() / output
    targets.check_resources(traced, resolved, chosen)
    chosen.write(chosen.compile(traced, resolved, request_of(traced, platform, ())), path)
    return path


def validate(pipeline: str, config: Config = None, *, target: str = "local", **values: t.Any) -> list[str]:
    """Check values, files, columns and the first rows, as `tuneport validate` does; returns what is worth a look.

    Raises one `UserError` that lists all that is wrong.
    """
    traced = pipelines.load(pipeline)
    resolved, platform = _given(traced, config, values)
    chosen, request = targets.load(target), request_of(traced, platform, ())
    return targets.validate(traced, resolved, chosen, request)


def preview(pipeline: str, config: Config = None, *, rows: int = 3, **values: t.Any) -> Page:
    """The first rows as the model will see them, as `tuneport preview` shows them; a notebook shows it by itself.

    Raises `UserError` where the values do not go together, or rows or the model's settings cannot be read.
    """
    from tuneport.inspection import look
    from tuneport.inspection.show import Page

    traced = pipelines.load(pipeline)
    resolved, _ = _given(traced, config, values)
    return Page(look.preview(traced, resolved, rows))


def load(run: str | Path) -> Run:
    """A run by its name, such as ``quiet-otter-3`` or ``latest``, or by its folder.

    Raises `UserError` where no run is there.
    """
    folder = (Path.cwd() / run).resolve()
    if not (folder / "logs").is_dir() and not (folder / ".lock").is_file():
        folder = kept_runs.find(str(run), Path.cwd() / kept_runs.ROOT).folder
    return Run(output_dir=folder)


def _given(
    pipeline: Pipeline, config: Config, values: Mapping[str, t.Any]
) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """Every input's value, and the configuration's section on platforms."""
    here = Path.cwd()
    if isinstance(config, Mapping):
        section = config.get(configuration.PLATFORM) or {}
        both = {**{k: v for k, v in config.items() if k != configuration.PLATFORM}, **values}
        return pipeline.resolve(configuration.from_values(pipeline, both, here)), dict(section)
    file = None if config is None else here / config
    found = configuration.given(pipeline, file, (), here)
    return (
        pipeline.resolve({**found, **configuration.from_values(pipeline, values, here)}),
        configuration.platform(file),
    )


def _texts(pipeline: Pipeline, resolved: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The values that are not their defaults, as a configuration file has them."""
    return {
        name: getattr(value, "location", value)
        for name, value in resolved.items()
        if value != pipeline.params[name].default or pipeline.params[name].default is REQUIRED
    }


def _roots() -> list[str]:
    """Where the packages are, if they are not installed but were found in a folder."""
    return [str(Path(pipelines.__file__).absolute().parents[1])]


def _last_words(log: Path | None) -> str:
    """A run's own message at its end."""
    if log is None:
        return ""
    lines = log.read_text("utf-8", "replace").splitlines()
    begins = [i for i, line in enumerate(lines) if line.startswith(("error: ", "stage "))]
    return "\n".join(lines[begins[-1] :]).removeprefix("error: ") if begins else "\n".join(lines[-20:])
