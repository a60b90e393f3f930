"""Where the figures of a training go: to MLflow, to TensorBoard's files, to Weights & Biases; no torch at the top."""

from __future__ import annotations

import importlib.util
import logging
import os
import typing as t
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.modeling.merged_adapters import LOGS
from tuneport.secrets import masked_values
from tuneport.tracking import EXPERIMENT, Run, reason

log = logging.getLogger("tuneport.finetune")

MLFLOW, TENSORBOARD, WANDB, NONE = "mlflow", "tensorboard", "wandb", "none"
TRACKERS = (MLFLOW, TENSORBOARD, WANDB)
PACKAGES = (TENSORBOARD, WANDB)  # trackers that are a package of the same name


def chosen(report_to: str) -> tuple[str, ...]:
    """The trackers that `report_to` names.

    Raises `UserError` for a name that is not known, one named twice, and none beside others.
    """
    names = tuple(name.strip().lower() for name in report_to.split(","))
    if names == (NONE,):
        return ()
    if unknown := [name for name in names if name not in TRACKERS]:
        if NONE in unknown:
            raise UserError(f"report_to={excerpt(report_to)}: names none beside others. Leave out none, or the others.")
        raise UserError(
            f"report_to={excerpt(report_to)}: {excerpt(unknown[0])} is not a tracker that is known; expected "
            f"{', '.join(TRACKERS)}, with commas between, or none.{did_you_mean(unknown[0], (*TRACKERS, NONE))}"
        )
    if len(set(names)) < len(names):
        raise UserError(f"report_to={excerpt(report_to)}: names a tracker twice; expected each once.")
    return names


def check_packages(report_to: str) -> None:
    """Raise `UserError` where the package of a tracker is not installed."""
    missing = [name for name in chosen(report_to) if name in PACKAGES and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"report_to={report_to}: needs {' and '.join(missing)}, not installed here. Install "
            f"{'it' if len(missing) == 1 else 'them'} (pip install {' '.join(missing)}), or leave "
            f"{'it' if len(missing) == 1 else 'them'} out of report_to."
        )


@contextmanager
def opened(
    report_to: str, run: Run, folder: Path, *, name: str, parameters: Mapping[str, t.Any], rank: int = 0
) -> Iterator[Run]:
    """While entered, the run that hands each figure to all trackers, under the same names; beyond rank 0 to none.

    ``run``: the one on the MLflow server; ``folder``: where files are written, in `LOGS`; ``name``: what a run is
    called elsewhere. Raises `UserError` where Weights & Biases cannot be used.
    """
    names, parameters = chosen(report_to) if rank == 0 else (), masked_values(parameters)
    with ExitStack() as stack:
        runs: list[Run] = [run] if MLFLOW in names else []
        if TENSORBOARD in names:
            runs.append(stack.enter_context(_tensorboard(folder / LOGS / TENSORBOARD, parameters)))
        if WANDB in names:
            runs.append(stack.enter_context(_wandb(folder / LOGS, name, parameters)))
        yield Figures(runs)


class Figures(Run):
    """A run whose figures go to several."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for run in self.runs:
            run.log_metrics(metrics, step)


class TensorBoardRun(Run):
    """Files that TensorBoard reads.

    They begin at the first step that is logged: what an earlier process wrote from that step on, before a resume, is
    hidden.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, t.Any]) -> None:
        self.folder = folder
        self.parameters = parameters
        self.writer: t.Any = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=step)
            rows = "\n".join(f"| {key} | {value} |" for key, value in self.parameters.items())
            self.writer.add_text("parameters", f"| parameter | value |\n|---|---|\n{rows}", step)
        for key, value in metrics.items():
            self.writer.add_scalar(key, float(value), step)
        self.writer.flush()


@contextmanager
def _tensorboard(folder: Path, parameters: Mapping[str, t.Any]) -> Iterator[Run]:
    run = TensorBoardRun(folder, parameters)
    try:
        yield run
    finally:
        if run.writer is not None:
            run.writer.close()
            log.info("TensorBoard's files: %s", folder)


class WandbRun(Run):
    """A run of Weights & Biases; of a step that has been logged the figures are in one row.

    Where it fails, as its own process does without memory, the training goes on without it.
    """

    def __init__(self, run: t.Any) -> None:
        self.run = run
        self.place = run.url or Path(run.dir).parent
        self._failed = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._failed:
            with self._spared():
                self.run.log(dict(metrics), step=step)

    def close(self, exit_code: int) -> None:
        with self._spared():
            self.run.finish(exit_code=exit_code)
        log.info("Weights & Biases: %s", self.place)

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """While entered, an error is a warning, which is said once."""
        try:
            yield
        except Exception as e:  # whatever its process and the network do
            if not self._failed:
                log.warning("Weights & Biases: %s; figures from here on are missing there", reason(e))
            self._failed = True


@contextmanager
def _wandb(folder: Path, name: str, parameters: Mapping[str, t.Any]) -> Iterator[Run]:
    """A run as the WANDB_ variables say, without what wandb notes of the machine, the command and the console."""
    os.environ.setdefault("WANDB_PROJECT", EXPERIMENT)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports of its own errors to its makers
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(silent=True, console="off", x_disable_meta=True, x_disable_machine_info=True)
    try:
        run = wandb.init(dir=str(folder), name=name, config=dict(parameters), settings=quiet)
    except (wandb.Error, OSError) as e:
        raise UserError(
            f"report_to: Weights & Biases cannot be used ({reason(e)}). Set WANDB_API_KEY, or WANDB_MODE=offline to "
            "write files alone, or leave wandb out of report_to."
        ) from None
    figures, code = WandbRun(run), 1
    try:
        yield figures
        code = 0
    finally:
        figures.close(code)
        for link in list((folder / WANDB).rglob("*")):  # to files in the folder where this one was built
            if link.is_symlink():
                link.unlink()
