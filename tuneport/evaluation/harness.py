"""Benchmarks of lm-evaluation-harness: tasks by their names, and a model's scores on them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import random
import sys
import tempfile
import time
import typing as t
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.serving.token_batches import TokenBatches

log = logging.getLogger("tuneport.model_benchmark")
FILE_FORMATS = (
    "arrow",
    "csv",
    "json",
    "pandas",
    "parquet",
    "text",
    "xml",
)  # of datasets: no data set, but how files are
BOOTSTRAP_RESAMPLES = 1000  # of the standard error of a metric that is not a mean
CPU_BATCH = 8
Sample = Mapping[str, t.Any]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a model is asked; ``rows``: the first so many of each task, None: all; ``shots``: None: the task's own."""

    rows: int | None
    shots: int | None
    batch_size: int | None  # None: as many as memory allows on a GPU
    chat: bool  # by turns that the chat template writes
    seed: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's scores on one task or group, by lm_eval's own key of a metric, as ``acc,none``."""

    scores: Mapping[str, float | None]
    errors: Mapping[str, float | None]  # standard errors
    greater_is_better: Mapping[str, bool | None]
    rows: int | None
    shots: int | None
    version: str
    samples: Sequence[Sample]  # of a group: of none
    children: Sequence[str]  # of a group
    cut: int  # rows whose prompt is longer than the model takes


def check_installed(name: str) -> None:
    """Raise `UserError` where lm_eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            f"{name}: lm_eval, which runs benchmarks, is not installed. Run: pip install 'tuneport[benchmark]'"
        )


def version() -> str:
    """The version of lm_eval, which brings tasks; empty where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("lm_eval")
    return ""


def tokenizer_of(folder: Path) -> t.Any:
    """The tokenizer of a model's folder, with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


class Harness:
    """The tasks of lm_eval, and those in a user's folder, from which the data of all of them is read then."""

    def __init__(self, names: Sequence[str], folder: Path | None) -> None:
        """Find tasks and groups of these names. Raises `UserError` for one that there is not, that is in itself, or
        whose data is not in the folder."""
        from lm_eval.tasks import TaskManager

        self.names, self.folder = list(names), folder and folder.resolve()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        include = None if self.folder is None else str(self.folder)
        self.manager = TaskManager(include_path=include, include_defaults=False)
        if not all(map(self._is_own, self.names)):  # reading those of lm_eval takes some seconds
            self.manager = TaskManager(include_path=include)
        for name in self.names:
            if self.manager.task_index.get(name) is None:
                there = self.manager.all_tasks
                own = f", and no YAML file in benchmark_folder={self.folder} defines it" if self.folder else ""
                raise UserError(
                    f"benchmark_tasks: '{name}' is not a task of lm_eval {version()}{own}; `lm_eval ls tasks` lists "
                    f"them.{did_you_mean(name, there)}"
                )
            self._check_data(name)

    def _is_own(self, name: str, groups: tuple[str, ...] = ()) -> bool:
        """Whether the folder defines a task, or a group and all that is in it; ``groups``: those around it.

        Raises `UserError` for a group that is in itself.
        """
        entry = self.manager.task_index.get(name)
        if entry is None or self.folder is None:
            return False
        if name in groups:
            raise UserError(
                f"benchmark_folder={self.folder}: the group '{name}' is in itself ({' > '.join((*groups, name))}). "
                "Mend its file."
            )
        is_here = entry.yaml_path is None or entry.yaml_path.resolve().is_relative_to(self.folder)
        return is_here and all(self._is_own(member, (*groups, name)) for member in _members(entry))

    def _check_data(self, name: str) -> None:
        """Raise `UserError` where the data of a task is known not to be in the folder."""
        if self.folder is None:
            return
        for task, config in self._configurations(name, set()):
            path, files = config.get("dataset_path"), (config.get("dataset_kwargs") or {}).get("data_files")
            if not isinstance(path, str) or config.get("custom_dataset") is not None or "class" in config:
                continue
            if path not in FILE_FORMATS:
                if not (self.folder / path).is_dir():
                    raise UserError(self._lacks(task, path))
                continue
            for file in _files(files):
                if "://" not in file and not any(self.folder.glob(file) if not Path(file).is_absolute() else [file]):
                    raise UserError(
                        f"benchmark_folder={self.folder}: has no {file}, which the benchmark '{task}' reads. Put the "
                        "file there: paths in data_files are read from that folder."
                    )

    def _lacks(self, task: str, data: str) -> str:
        return (
            f"benchmark_folder={self.folder}: has no folder {data}, the data set that the benchmark '{task}' reads. "
            f"Put it there: hf download {data} --repo-type dataset --local-dir {self.folder}/{data}. Or leave "
            "benchmark_folder out, and data sets are fetched from the hub."
        )

    def _configurations(self, name: str, seen: set[str]) -> Iterator[tuple[str, Mapping[str, t.Any]]]:
        """The tasks that a name stands for, with what their files say."""
        entry = self.manager.task_index.get(name)
        if entry is None or name in seen:
            return
        seen.add(name)
        if entry.kind.name not in ("GROUP", "TAG"):
            yield name, entry.cfg or {}
        for member in _members(entry):
            yield from self._configurations(member, seen)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[Harness]:
        """Read the data of all tasks; with a folder from that alone, and while entered no hub is asked for anything.

        Raises `UserError` for a task that cannot be read, and for one that would run code which the model writes.
        """
        with _offline(self.folder):
            self._load()
            yield self

    def _load(self) -> None:
        self.tasks: dict[str, t.Any] = {}
        # datasets takes a folder of the name of a data set for that, and reads files from where the process stands
        with contextlib.chdir(self.folder or "."), _quiet():
            for name in self.names:
                try:
                    self.tasks[name] = self.manager.load([name])
                except Exception as e:  # whatever a task's file or the data does
                    raise UserError(self._unreadable(name, e)) from e
        for name, found in self.tasks.items():
            for task in found["tasks"].values():
                if getattr(task, "UNSAFE_CODE", False):
                    raise UserError(
                        f"benchmark_tasks: '{name}' runs code that the model writes, and nothing here confines it. "
                        "Leave it out."
                    )
                if getattr(task, "MULTIMODAL", False):
                    raise UserError(
                        f"benchmark_tasks: '{name}' shows pictures, and the model reads text. Leave it out."
                    )

    def _unreadable(self, name: str, error: Exception) -> str:
        reason = excerpt(" ".join(f"{type(error).__name__}: {error}".split()), 400)
        if self.folder is None:
            what = "Is the hub reached from here? Else put the data into a folder, and name it as benchmark_folder."
        else:
            what = (
                f"Data sets are read from benchmark_folder={self.folder} alone: put what is lacking there, or mend the "
                "task's file."
            )
        return f"benchmark_tasks: '{name}' cannot be read: {reason}. {what}"

    def measure(self, said: str, model: t.Any, tokenizer: t.Any, how: Asking) -> dict[str, Measured]:
        """A model's scores on every task and group, by its name; ``said`` is what the model is called.

        Raises `UserError` where the memory does not suffice, the chat template refuses the turns, and where a task of
        the folder fails.
        """
        lm = _asked_by_lm_eval(model, tokenizer, how)
        found: dict[str, Measured] = {}
        for name, tasks in self.tasks.items():
            started = time.monotonic()
            try:
                measured = _measured(lm, tasks, how)
            except Exception as e:
                raise self._failure(said, name, e, how) from e
            found |= measured
            rows = sum(one.rows or 0 for one in measured.values() if not one.children)
            log.info("%s: %s, %d rows in %.1f s", said, name, rows, time.monotonic() - started)
        return found

    def _failure(self, said: str, name: str, error: Exception, how: Asking) -> Exception:
        """What to raise where a task failed: of the user's mistakes a `UserError`, else the error itself."""
        from jinja2 import TemplateError

        if how.chat and isinstance(error, TemplateError):
            return UserError(
                f"apply_chat_template: the tuned model's chat template refuses the turns of '{name}' "
                f"({excerpt(str(error))}). Take apply_chat_template=false."
            )
        if TokenBatches.is_out_of_memory(error):
            reason = (str(error).splitlines() or ["out of memory"])[0]
            return UserError(
                f"{said}, '{name}': the memory does not suffice ({reason}). Lower benchmark_batch_size, or run the "
                "stage where there is more memory."
            )
        if self.folder is not None and self._is_own(name):
            reason = excerpt(" ".join(f"{type(error).__name__}: {error}".split()), 400)
            return UserError(
                f"benchmark_tasks: '{name}' failed: {reason}. Mend its file in benchmark_folder={self.folder}."
            )
        return error


def _members(entry: t.Any) -> list[str]:
    """The tasks and groups in a group, or those with a tag; a task has none."""
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name != "GROUP":
        return []
    listed = (entry.cfg or {}).get("task") or ()
    names = [one if isinstance(one, str) else one.get("group") or one.get("task") for one in listed]
    return [name for name in names if isinstance(name, str)]


def _measured(lm: t.Any, tasks: Mapping[str, t.Any], how: Asking) -> dict[str, Measured]:
    import lm_eval

    for task in tasks["tasks"].values():
        if how.shots is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=how.shots)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=how.seed)
    random.seed(how.seed)
    with _quiet():
        result = lm_eval.evaluate(
            lm=lm,
            task_dict=dict(tasks),
            limit=how.rows,
            bootstrap_iters=BOOTSTRAP_RESAMPLES,
            log_samples=True,
            apply_chat_template=how.chat,
            fewshot_as_multiturn=how.chat,
        )
    return {
        name: Measured(
            scores={key: _number(value) for key, value in scores.items() if _is_score(key)},
            errors={key.replace("_stderr,", ","): _number(value) for key, value in scores.items() if "_stderr," in key},
            greater_is_better=result["higher_is_better"].get(name, {}),
            rows=(result["n-samples"].get(name) or {}).get("effective"),
            shots=result["n-shot"].get(name),
            version=str(result["versions"].get(name, "")),
            samples=result["samples"].get(name, ()),
            children=result.get("group_subtasks", {}).get(name, ()),
            cut=_cut(lm, result["samples"].get(name, ())),
        )
        for name, scores in {**result["results"], **result.get("groups", {})}.items()
    }


def _cut(lm: t.Any, samples: Sequence[Sample]) -> int:
    """How many rows have a prompt that the model takes only the end of."""
    return len({sample["doc_id"] for sample in samples if any(_is_cut(lm, *pair) for pair in _prompts(sample))})


def _prompts(sample: Sample) -> Iterator[tuple[str, int | None]]:
    """What a row asks, and of a text to be written the most tokens, where the task says so, of any other -1."""
    for arguments in sample["arguments"]:
        if len(arguments) < 2 or not isinstance(arguments[0], str):
            continue  # a text of any length, whose likelihood is that of its parts
        prompt, other = arguments[0], arguments[1]
        if isinstance(other, Mapping):
            yield prompt, other.get("max_gen_toks")
        else:
            yield prompt + other, -1


def _is_cut(lm: t.Any, text: str, written: int | None) -> bool:
    room = int(lm.max_length) - (int(lm.max_gen_toks) if written is None else int(written))
    return len(text.encode()) > room and len(lm.tok_encode(text)) > room  # a token is a byte or more


def _asked_by_lm_eval(model: t.Any, tokenizer: t.Any, how: Asking) -> t.Any:
    from lm_eval.models.huggingface import HFLM

    batch = how.batch_size or ("auto" if model.device.type != "cpu" else CPU_BATCH)
    with _quiet():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)


def _is_score(key: str) -> bool:
    return "," in key and "_stderr," not in key


def _number(value: t.Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):  # "N/A", and what is no number
        return None


def _files(given: t.Any) -> list[str]:
    """The paths in data_files: one, several, or those of each split."""
    if isinstance(given, str):
        return [given]
    values = given.values() if isinstance(given, Mapping) else given or ()
    return [file for value in values for file in _files(value)]


@contextlib.contextmanager
def _offline(folder: Path | None) -> Iterator[None]:
    """While entered, no hub is asked for anything, where data lies in a folder."""
    if folder is None:
        yield
        return
    import datasets
    import huggingface_hub

    kept = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    cache, bytecode = datasets.config.HF_DATASETS_CACHE, sys.dont_write_bytecode
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as scratch:
        try:
            datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
            datasets.config.HF_DATASETS_CACHE, sys.dont_write_bytecode = Path(scratch), True
            yield
        finally:
            datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = kept
            datasets.config.HF_DATASETS_CACHE, sys.dont_write_bytecode = cache, bytecode


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of lm_eval, where nobody watches."""
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
        yield
