"""Every training parameter has its effect in every task, or the table of conflicts refuses it there."""

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_pt_utils import EvalLoopContainer

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.metrics.answers import ValidationAnswersParams
from tuneport.tracking import Run
from tuneport.training.conflicts import CONFLICTS
from tuneport.training.distributed import deepspeed
from tuneport.training.train import train

every_task = pytest.mark.parametrize("task", tasks.names())
GIVEN = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1}


class Watched(TrainerCallback):  # type: ignore[misc]
    """What training shows of itself beside what it writes."""

    def __init__(self) -> None:
        self.arguments: dict[str, Any] = {}
        self.attention = ""
        self.layers_computed = 0  # in steps of training
        self.evaluation_batches = 0
        self.moved_to_cpu = 0  # how many times what metrics need was, in an evaluation
        self.workers = 0
        self.deterministic = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.arguments = args.to_dict()
        self.attention = model.config._attn_implementation
        self.workers = kwargs["train_dataloader"].num_workers
        self.deterministic = torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        for layer in model.modules():
            if not [*layer.children()]:
                layer.register_forward_hook(self._computed)

    def _computed(self, layer: Any, args: Any, output: Any) -> None:
        self.layers_computed += layer.training

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluation_batches += 1


class Recorded(Run):
    """Keeps what is tracked."""

    def __init__(self) -> None:
        self.metrics: list[Mapping[str, float]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.metrics.append(metrics)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training came to; ``refused`` is the message of one that did not begin."""

    output: Path
    refused: str = ""
    watched: Watched = field(default_factory=Watched)
    tracked: list[Mapping[str, float]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    best_metric: float = 0.0

    def logged(self, *names: str) -> list[Any]:
        """By step, the entries of the log that have the names."""
        log = json.loads((self.output / "trainer_state.json").read_text("utf-8"))["log_history"]
        return [(e["step"], *(e[name] for name in names)) for e in log if all(name in e for name in names)]

    def digests(self, pattern: str) -> dict[str, str]:
        """Of the files that fit the pattern."""
        files = {str(file.relative_to(self.output)): file for file in self.output.glob(pattern)}
        return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


Shown = Callable[[Outcome], Any]


def weights(outcome: Outcome) -> Any:
    return outcome.digests("*.safetensors")


def losses(outcome: Outcome) -> Any:
    return outcome.logged("loss")


def gradients(outcome: Outcome) -> Any:
    return outcome.logged("grad_norm")


def rates(outcome: Outcome) -> Any:
    return outcome.logged("learning_rate")


def evaluations(outcome: Outcome) -> Any:
    return [step for step, _ in outcome.logged("eval_loss")]


def log_lines(outcome: Outcome) -> Any:
    return [step for step, _ in outcome.logged("loss")]


def checkpoints(outcome: Outcome) -> Any:
    return sorted(folder.name for folder in (outcome.output / "checkpoints").glob("checkpoint-*"))


def states(outcome: Outcome) -> Any:
    return sorted(outcome.digests("checkpoints/*/optimizer.pt"))


def padding(outcome: Outcome) -> Any:
    return [entry["train/padding_share"] for entry in outcome.tracked if "train/padding_share" in entry]


def watched(name: str) -> Shown:
    return lambda outcome: getattr(outcome.watched, name)


def said(words: str) -> Shown:
    return lambda outcome: [message for message in outcome.messages if words in message]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """``value``, beside what is set in both runs, shows in something else than ``plain`` does."""

    value: Any
    plain: Any = None  # None: the default
    beside: Mapping[str, Any] = field(default_factory=dict)
    shows: Shown


def trial(value: Any, shows: Shown = weights, plain: Any = None, **beside: Any) -> Trial:
    return Trial(value=value, plain=plain, beside=beside, shows=shows)


QUERIES = r".*\.(query|q|q_proj|c_attn)"  # by the name that a model has for its queries
LORA = {"apply_lora": True, "merge_lora_weights": False}
STOPS = {"apply_early_stopping": True, "num_train_epochs": 3, "learning_rate": 1e-4}
NO_STEP = {"num_train_epochs": 3, "learning_rate": 1e-12}  # no weight changes, so no metric does
EARLIER = "EARLIER"  # an earlier run with the same values but for its length

TRIALS: dict[str, Trial] = {
    # -- schedule and optimizer
    "num_train_epochs": trial(2, rates),
    "max_steps": trial(1, rates),
    "learning_rate": trial(2e-3, rates, 1e-3),
    "lr_scheduler_type": trial("inverse_sqrt", rates),
    "warmup_steps": trial(2, rates),
    "warmup_ratio": trial(0.5, rates),
    "optim": trial("adafactor"),
    "weight_decay": trial(0.5),
    "adam_beta1": trial(0.5),
    "adam_beta2": trial(0.9),
    "adam_epsilon": trial(1e-2),
    "max_grad_norm": trial(0.01, optim="adafactor"),
    "neftune_noise_alpha": trial(5.0, losses),
    "label_smoothing_factor": trial(0.2, losses),
    # -- batches and precision
    "per_device_train_batch_size": trial(4, log_lines, 8),
    "padding_free": trial(False, padding),
    "group_by_length": trial(True, padding, padding_free=False, per_device_train_batch_size=4),
    "packing": trial(True, losses, per_device_train_batch_size=1, learning_rate=1e-4),
    "gradient_accumulation_steps": trial(2, log_lines),
    "auto_find_batch_size": trial(True, said("auto_find_batch_size")),
    "precision": trial("bf16", losses),
    "gradient_checkpointing": trial("true", watched("layers_computed")),
    "weights_dtype": trial("bfloat16", losses, precision="bf16"),
    "attention": trial("eager", watched("attention")),
    "enable_full_determinism": trial(True, watched("deterministic")),
    "dataloader_num_workers": trial(1, watched("workers")),
    # -- adapters
    "apply_lora": trial(True),
    "lora_alpha": trial(16, **LORA),
    "lora_r": trial(4, **LORA),
    "lora_dropout": trial(0.5, **LORA),
    "lora_target_modules": trial(QUERIES, **LORA),
    "use_rslora": trial(True, **LORA),
    "use_dora": trial(True, **LORA),
    "merge_lora_weights": trial(False, apply_lora=True),
    "quantization": trial("4bit", **LORA),
    # -- outputs
    "output_dtype": trial("bfloat16"),
    # -- sharding
    "deepspeed_offload": trial(True, apply_deepspeed=True),
    "fsdp": trial("full_shard"),
    # -- evaluation, logging, checkpoints, resume
    "per_device_eval_batch_size": trial(2, watched("evaluation_batches"), 8),
    "eval_accumulation_steps": trial(1, watched("moved_to_cpu"), per_device_eval_batch_size=2),
    "evaluation_strategy": trial("steps", evaluations, eval_steps=1),
    "eval_steps": trial(2, evaluations, 1, evaluation_strategy="steps"),
    "evaluation_steps_interval": trial(0.5, evaluations),
    "logging_strategy": trial("epoch", log_lines),
    "logging_steps": trial(2, log_lines, 1),
    "report_to": trial("none", padding),
    "save_total_limit": trial(1, checkpoints, num_train_epochs=3, learning_rate=1e-12),
    "checkpoint_contents": trial("weights", states),
    "resume_from_checkpoint": trial(EARLIER, num_train_epochs=2),
    "apply_early_stopping": trial(True, log_lines, **NO_STEP),
    "early_stopping_patience": trial(2, log_lines, apply_early_stopping=True, **NO_STEP),
    "early_stopping_threshold": trial(50.0, log_lines, **STOPS),
    "seed": trial(43, losses),
    # -- the task's own, of which each has another choice
    "metric_for_best_model": trial("ANOTHER", lambda outcome: outcome.best_metric),
}
# Training in a group of processes: their own test below.
GROUPS = {"number_of_gpu_to_use_finetuning", "num_nodes_finetune", "ddp_timeout", "apply_deepspeed", "deepspeed_stage"}

OF_MODELS = {"ignore_mismatched_sizes"}  # only of use with models that others are not; a test of its own below
# Of tasks that write text; tests/metrics/test_answers.py and test_written_answers.py try what they do to scores.
OF_ANSWERS = set(ValidationAnswersParams.ports())
# These change how the work is done and not its result; how they do it is seen in tests/training.
SAME_RESULT = {
    "auto_find_batch_size",
    "gradient_checkpointing",
    "dataloader_num_workers",
    "number_of_gpu_to_use_finetuning",
    "num_nodes_finetune",
    "ddp_timeout",
    "apply_deepspeed",
    "deepspeed_stage",
    "deepspeed_offload",
    "fsdp",
    "attention",
    "padding_free",
    "quantization",
}
NEED_GPU = {"quantization", "deepspeed_offload", "fsdp"}


@every_task
def test_the_table_has_every_training_parameter(task: str) -> None:
    ports = steps.load("finetune", task).ports()
    found = {name for name, port in ports.items() if port.kind == "param"}
    assert {*TRIALS, *GROUPS, *OF_MODELS, "task_name"} == found - OF_ANSWERS
    assert not TRIALS.keys() & GROUPS


def test_parameters_that_change_no_result_are_tried_in_the_tests_of_training() -> None:
    text = "".join(file.read_text("utf-8") for file in (Path(__file__).parents[1] / "training").rglob("test_*.py"))
    assert not [name for name in SAME_RESULT if name not in text]


@pytest.fixture(scope="module")
def outcome_of(ready: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Return a function (task, values) -> outcome, made once, as many parameters are compared with the same run."""
    made: dict[str, Outcome] = {}

    def make(task: str, values: Mapping[str, Any]) -> Outcome:
        ports = steps.load("finetune", task).ports()
        given = {name: value for name, value in (GIVEN | values).items() if value != ports[name].default}
        key = json.dumps([task, given], sort_keys=True)
        if key not in made:
            made[key] = trained(ready(task), values, tmp_path_factory.mktemp(task))
        return made[key]

    return make


@contextmanager
def determinism_undone() -> Iterator[None]:
    """Afterwards, this process computes as before; a stage has a process of its own."""
    variables = ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC")
    with pytest.MonkeyPatch.context() as patch:
        for variable in (*variables, "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC"):
            patch.delenv(variable, raising=False)
        patch.setattr(torch.backends.cudnn, "deterministic", False)
        yield
        torch.use_deterministic_algorithms(False)


@contextmanager
def moves_counted(callback: Watched) -> Iterator[None]:
    """Count what transformers moves from the device, on top of doing it."""
    plain = EvalLoopContainer.to_cpu_and_numpy

    def counted(container: Any) -> None:
        callback.moved_to_cpu += 1
        plain(container)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvalLoopContainer, "to_cpu_and_numpy", counted)
        yield


def trained(ready: Any, values: Mapping[str, Any], folder: Path) -> Outcome:
    """Train in this process, as the stage does."""
    if values.get("resume_from_checkpoint") == EARLIER:
        earlier = {name: value for name, value in values.items() if name != "resume_from_checkpoint"}
        trained(ready, earlier | {"num_train_epochs": 1}, folder / "earlier")
        values = {**values, "resume_from_checkpoint": str(folder / "earlier" / "output")}
    output, callback, run, task = folder / "output", Watched(), Recorded(), tasks.load(ready.task)
    output.mkdir(parents=True)
    metric = values.get("metric_for_best_model", "loss")
    metric = [*task.metrics][-1] if metric == "ANOTHER" else metric
    stage = ready.stage(**{**GIVEN, **values, "metric_for_best_model": metric})
    with messages() as said, moves_counted(callback), determinism_undone():
        try:
            stage.check()
            result = train(
                task,
                ready.model,
                Prepared(ready.prepared),
                stage,
                metric_for_best_model=metric,
                output=output,
                run=run,
                callbacks=[callback],
            )
        except UserError as e:
            return Outcome(output=output, refused=str(e))
    return Outcome(output=output, watched=callback, tracked=run.metrics, messages=said, best_metric=result.best_metric)


@contextmanager
def messages() -> Iterator[list[str]]:
    """What the block says on the terminal."""
    found: list[str] = []
    handler, log = logging.Handler(), logging.getLogger("tuneport.finetune")
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    before = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield found
    log.removeHandler(handler)
    log.setLevel(before)


@pytest.mark.parametrize("name", TRIALS)
@every_task
def test_a_parameter_has_its_effect_or_is_refused(task: str, name: str, outcome_of: Callable[..., Outcome]) -> None:
    tried = TRIALS[name]
    plain = tried.beside if tried.plain is None else {**tried.beside, name: tried.plain}
    changed = outcome_of(task, {**tried.beside, name: tried.value})
    if changed.refused:
        assert name in NEED_GPU and not torch.cuda.is_available(), changed.refused
        assert refused_by_the_table(changed.refused), changed.refused
        return
    first = outcome_of(task, plain)
    assert not first.refused
    assert tried.shows(first) != tried.shows(changed)


def refused_by_the_table(message: str) -> bool:
    """Whether each line says what an entry of the table says."""
    return all(any(line.endswith(f"{entry.remedy}.") for entry in CONFLICTS) for line in message.splitlines())


@every_task
def test_training_repeats_itself_so_that_a_difference_shows_an_effect(
    task: str, ready: Callable[[str], Any], outcome_of: Callable[..., Outcome], tmp_path: Path
) -> None:
    first, second = outcome_of(task, {}), trained(ready(task), {}, tmp_path)
    assert weights(first) and losses(first) and padding(first)
    for shows in (weights, losses, gradients, rates, evaluations, log_lines, checkpoints, padding):
        assert shows(first) == shows(second)
    assert first.best_metric == second.best_metric
    assert [m for m in first.messages if "tokens/s" not in m] == [m for m in second.messages if "tokens/s" not in m]
    names = ("attention", "layers_computed", "evaluation_batches", "workers", "moved_to_cpu", "deterministic")
    assert [watched(name)(first) for name in names] == [watched(name)(second) for name in names]


@every_task
def test_parameters_of_groups_of_processes_reach_whoever_starts_them(task: str, ready: Callable[[str], Any]) -> None:
    alone = ready(task).stage()
    assert alone.processes() is None and deepspeed.stage(alone) == 0
    assert ready(task).stage(number_of_gpu_to_use_finetuning=2).processes() == 2
    assert ready(task).stage(num_nodes_finetune=2).is_distributed()
    sharded = ready(task).stage(apply_deepspeed=True)
    assert sharded.processes() == 1 and deepspeed.stage(sharded) == 2
    assert deepspeed.stage(ready(task).stage(apply_deepspeed=True, deepspeed_stage="3")) == 3


@every_task
def test_weights_of_another_size_are_refused_by_name_or_made_new(
    task: str, ready: Callable[[str], Any], tmp_path: Path
) -> None:
    """Of a trunk's weight, half of the rows is missing."""
    made = ready(task)
    model = Path(shutil.copytree(made.model, tmp_path / "model"))
    file = model / "model.safetensors"
    held = load_file(file)
    name = next(n for n, weight in held.items() if "layer" in n or ".h." in n or "block" in n if weight.dim() == 2)
    rows, columns = held[name].shape
    save_file(held | {name: held[name][: rows // 2].contiguous()}, file, {"format": "pt"})
    other = dataclasses.replace(made, model=model)
    refused = trained(other, {}, tmp_path / "refused").refused
    assert re.search(rf"{re.escape(name)} \(is \[{rows // 2}, {columns}\], expected \[{rows}, {columns}\]\)", refused)
    assert refused.endswith("or let them be random with ignore_mismatched_sizes=true.")
    assert not trained(other, {"ignore_mismatched_sizes": True}, tmp_path / "trained").refused


@pytest.mark.slow
@pytest.mark.parametrize(("task", "stage"), [*((task, "3") for task in tasks.names()), ("question_answering", "2")])
def test_two_processes_train_with_deepspeed(task: str, stage: str, ready: Callable[[str], Any], tmp_path: Path) -> None:
    made, values = (
        ready(task),
        {"number_of_gpu_to_use_finetuning": 2, "apply_deepspeed": True, "deepspeed_stage": stage},
    )
    command = [sys.executable, "-m", "steps", "finetune", "--task_name", task]
    command += ["--model_selector_output", str(made.model), "--preprocess_output", str(made.prepared)]
    command += ["--pytorch_model_folder", str(tmp_path / "output")]
    given = {**GIVEN, **values, "per_device_train_batch_size": 4}
    command += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = Outcome(output=tmp_path / "output")
    assert "gathers them for each token" not in done.stdout + done.stderr  # there is room for all weights
    assert log_lines(outcome) == [1, 2] and weights(outcome)
    assert len(outcome.digests("checkpoints/checkpoint-2/global_step2/*optim_states.pt")) == 2
