"""Several processes, machines and shards train what one process trains; a process that dies takes all down at once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fork_server import run_stage
from tests.warm_python import COLD
from tuneport.errors import UserError
from tuneport.targets.docker.settings import Images

pytestmark = pytest.mark.slow

VALUES = {
    "learning_rate": "1e-3",
    "max_steps": "8",
    "logging_steps": "1",
    "evaluation_strategy": "steps",
    "eval_steps": "4",
    "per_device_train_batch_size": "8",
}
LORA = {"apply_lora": "true", "lora_r": "4", "learning_rate": "2e-3"}
TWO = {"number_of_gpu_to_use_finetuning": "2"}
ZERO = {stage: {**TWO, "apply_deepspeed": "true", "deepspeed_stage": stage} for stage in "123"}
CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(still: SimpleNamespace, output: Path, **values: str) -> list[str]:
    argv = [sys.executable, "-m", "steps", "finetune", "--task_name", "text_classification"]
    argv += ["--model_selector_output", str(still.model), "--preprocess_output", str(still.rows)]
    argv += ["--pytorch_model_folder", str(output)]
    for name, value in (VALUES | values).items():
        argv += [f"--{name}", value]
    return argv


def train(still: SimpleNamespace, output: Path, **values: str) -> subprocess.CompletedProcess[str]:
    """Run a training to its end; ``stdout`` is all it says."""
    argv = command(still, output, **values)
    if not {"number_of_gpu_to_use_finetuning", "num_nodes_finetune", "apply_deepspeed"} & values.keys():
        done = run_stage(*argv[3:])
        return subprocess.CompletedProcess(argv, done.returncode, done.stdout + done.stderr)
    return subprocess.run(
        argv,
        env=os.environ | CPU,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )


def trained(still: SimpleNamespace, output: Path, **values: str) -> Path:
    done = train(still, output, **values)
    assert done.returncode == 0, done.stdout
    return output


def trace(output: Path) -> list[tuple[int, str, float]]:
    log = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
    names = ("loss", "grad_norm", "eval_loss", "eval_accuracy")
    return [(entry["step"], name, entry[name]) for entry in log for name in names if name in entry]


def assert_same_training(output: Path, expected: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    found, wanted = trace(output), trace(expected)
    assert [entry[:2] for entry in found] == [entry[:2] for entry in wanted]
    assert [entry[2] for entry in found] == pytest.approx([entry[2] for entry in wanted], abs=1e-4)
    models = [AutoModelForSequenceClassification.from_pretrained(folder).eval() for folder in (output, expected)]
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in models]
    assert torch.allclose(*logits, atol=1e-4)


class Alone:
    """What one process comes to that accumulates two batches, with and without LoRA; made once each."""

    def __init__(self, still: SimpleNamespace, folder: Path) -> None:
        self.still = still
        self.folder = folder

    def __call__(self, lora: bool) -> Path:
        output = self.folder / str(lora)
        if not output.exists():
            trained(self.still, output, gradient_accumulation_steps="2", **(LORA if lora else {}))
        return output


@pytest.fixture(scope="module")
def alone(still: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(still, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("values", [TWO, *ZERO.values()], ids=["two processes", "ZeRO-1", "ZeRO-2", "ZeRO-3"])
def test_two_processes_train_what_one_does(values: dict[str, str], lora: bool, alone: Alone, tmp_path: Path) -> None:
    assert_same_training(trained(alone.still, tmp_path / "out", **values, **(LORA if lora else {})), alone(lora))


def test_a_model_that_no_checkpoint_holds_whole_is_put_together_from_its_shards(alone: Alone, tmp_path: Path) -> None:
    zero = {"stage": 3, "reduce_bucket_size": "auto", "stage3_gather_16bit_weights_on_model_save": False}
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": zero, "zero_allow_untested_optimizer": True}), "utf-8")
    output = trained(alone.still, tmp_path / "out", **TWO, apply_deepspeed="true", deepspeed=str(file))
    best = output / json.loads((output / "training.json").read_text("utf-8"))["best_checkpoint"]
    assert not list(best.glob("*.safetensors"))
    assert_same_training(output, alone(lora=False))


# -- two machines ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machines() -> Iterator[list[list[str]]]:
    """The words before a command that run it on one of two hosts: network namespaces with a cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"tuneport-{os.getpid()}-{host}" for host in "ab"]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        cable = [
            "ip",
            "link",
            "add",
            "tp0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "tp0",
            "netns",
            names[1],
        ]
        subprocess.run(cable, check=True)
        for i, name in enumerate(names):
            for words in (f"addr add 10.87.65.{i + 1}/24 dev tp0", "link set tp0 up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


RENDEZVOUS = {
    "static": {"PET_MASTER_ADDR": "10.87.65.1", "PET_MASTER_PORT": "29511"},
    "c10d": {"PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": "10.87.65.1:29512", "PET_RDZV_ID": "job"},
    "PyTorchJob": {"MASTER_ADDR": "10.87.65.1", "MASTER_PORT": "29513", "PET_NNODES": "2", "WORLD_SIZE": "2"},
}


def start_both(
    machines: list[list[str]], rendezvous: str, argv: list[str], folder: Path
) -> list[subprocess.Popen[bytes]]:
    started = []
    for node, prefix in enumerate(machines):
        environment: Any = os.environ | CPU | RENDEZVOUS[rendezvous] | {"GLOO_SOCKET_IFNAME": "tp0"}
        if rendezvous == "c10d":  # both have this machine's name, by which a host would know itself
            environment |= {"PET_RDZV_CONF": f"is_host={node == 0}", "PET_LOCAL_ADDR": f"10.87.65.{node + 1}"}
        else:
            environment |= {"PET_NODE_RANK": str(node)}
        if rendezvous == "PyTorchJob":
            environment |= {"RANK": str(node)}
        with (folder / f"node-{node}.log").open("wb") as log:
            started.append(subprocess.Popen([*prefix, *argv], env=environment, stdout=log, stderr=log))
    return started


@pytest.mark.parametrize(("rendezvous", "lora"), [("static", False), ("c10d", True), ("PyTorchJob", False)], ids=str)
def test_two_machines_train_what_one_process_does(
    rendezvous: str, lora: bool, machines: list[list[str]], alone: Alone, tmp_path: Path
) -> None:
    argv = command(alone.still, tmp_path / "out", num_nodes_finetune="2", **(LORA if lora else {}))
    both = start_both(machines, rendezvous, argv, tmp_path)
    codes = [process.wait(timeout=600) for process in both]
    assert codes == [0, 0], "".join((tmp_path / f"node-{i}.log").read_text() for i in (0, 1))
    assert_same_training(tmp_path / "out", alone(lora))


def test_a_machine_that_is_lost_ends_the_other_with_a_message(
    machines: list[list[str]], still: SimpleNamespace, tmp_path: Path
) -> None:
    argv = command(still, tmp_path / "out", num_nodes_finetune="2", max_steps="100000")
    first, second = start_both(machines, "static", argv, tmp_path)
    wait_for_steps(tmp_path / "node-0.log")
    lost = time.monotonic()
    for pid in children(second.pid):
        os.kill(pid, signal.SIGKILL)
    second.kill()
    assert first.wait(timeout=60) != 0
    assert time.monotonic() - lost < 60
    last = (tmp_path / "node-0.log").read_text().strip().splitlines()[-1]
    assert last.startswith("error: rank 0 "), last
    second.wait()


@pytest.mark.parametrize("kind", ["PyTorchJob", "TrainJob"])
def test_an_elastic_training_goes_on_without_a_machine_that_is_lost_for_good(
    kind: str, still: SimpleNamespace, tmp_path: Path
) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # As a PyTorchJob with an elasticPolicy sets them.
    elastic = {"PET_NNODES": "1:2", "PET_MAX_RESTARTS": "3", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ID": "job"}
    elastic |= {"PET_RDZV_ENDPOINT": f"127.0.0.1:{port}", "PET_LOCAL_ADDR": "127.0.0.1", "PET_NPROC_PER_NODE": "1"}
    if kind == "TrainJob":
        elastic = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
        elastic |= {"TUNEPORT_ELASTIC": "1:2", "TUNEPORT_ELASTIC_RESTARTS": "3", "PET_LOCAL_ADDR": "127.0.0.1"}
    values = {"num_nodes_finetune": "2", "resume_from_checkpoint": "true", "max_steps": "400", "eval_steps": "100"}
    argv = command(still, tmp_path / "out", **values, logging_steps="100")
    nodes = []
    for node in (0, 1):
        with (tmp_path / f"node-{node}.log").open("wb") as log:
            own = elastic | {"PET_RDZV_CONF": f"is_host={node == 0},last_call_timeout=5"}
            if kind == "TrainJob":
                own = elastic | {"PET_NODE_RANK": str(node)}
            nodes.append(subprocess.Popen(argv, env=os.environ | CPU | COLD | own, stdout=log, stderr=log))
    first, second = nodes
    try:
        until = time.monotonic() + 200
        while not list(tmp_path.glob(".out.partial/checkpoints/checkpoint-*/manifest.json")):
            assert time.monotonic() < until and first.poll() is None, (tmp_path / "node-0.log").read_text()
            time.sleep(0.1)
        lost = children(second.pid)
        second.kill()
        for pid in lost:
            os.kill(pid, signal.SIGKILL)
        assert first.wait(timeout=500) == 0, (tmp_path / "node-0.log").read_text()
    finally:
        for node in nodes:
            for pid in children(node.pid) if node.poll() is None else ():
                os.kill(pid, signal.SIGKILL)
            node.kill()
            node.wait()
    said = (tmp_path / "node-0.log").read_text()
    assert "resuming from checkpoint-" in said and "1 of 2 processes are there: each adds up 2 batches a step" in said
    training = json.loads((tmp_path / "out" / "training.json").read_text("utf-8"))
    assert training["steps"] == 400 and training["gradient_accumulation_steps"] == 2


def test_batches_that_cannot_be_shared_out_by_the_processes_that_are_left_are_said() -> None:
    from tuneport.training.train import accumulated_batches

    options: Any = SimpleNamespace(
        number_of_gpu_to_use_finetuning=1, num_nodes_finetune=3, gradient_accumulation_steps=1
    )
    assert accumulated_batches(options, 3) == 1 and accumulated_batches(options, 1) == 3
    with pytest.raises(UserError, match="2 processes are left of 3: the 3 batches of a step cannot be shared out"):
        accumulated_batches(options, 2)


def test_a_machine_that_finds_no_other_says_so(
    machines: list[list[str]], still: SimpleNamespace, tmp_path: Path
) -> None:
    alone = RENDEZVOUS["c10d"] | {"PET_RDZV_CONF": "is_host=false,read_timeout=3", "PET_LOCAL_ADDR": "10.87.65.2"}
    done = subprocess.run(
        [*machines[1], *command(still, tmp_path / "out", num_nodes_finetune="2")],
        env=os.environ | CPU | alone,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert "num_nodes_finetune=2: the machines did not find each other" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_other_machines_that_nobody_names_are_asked_for(still: SimpleNamespace, tmp_path: Path) -> None:
    done = train(still, tmp_path / "out", num_nodes_finetune="2")
    assert done.returncode == 2
    assert "num_nodes_finetune=2: nothing here names the other machines" in done.stdout
    assert not (tmp_path / "out").exists() and "Traceback" not in done.stdout


# -- two containers ----------------------------------------------------------------------------------------------------

FOUR = {"num_nodes_finetune": "2", "number_of_gpu_to_use_finetuning": "2", "per_device_train_batch_size": "4"}


class Machines:
    """Two containers of the trainer image on one network, which see the still model and a folder."""

    def __init__(self, network: Any, still: SimpleNamespace, folder: Path) -> None:
        self.network, self.still, self.folder = network, still, folder

    def start(self, **values: str) -> list[subprocess.Popen[bytes]]:
        """Both machines' `docker run`: four processes train into ``folder/out`` and log to ``node-N.log``."""
        stage = ["python", *command(self.still, self.folder / "out", **FOUR, **values)[1:]]
        volumes = [f"{self.still.model.parent}:ro", str(self.folder)]
        started = []
        for node in (0, 1):
            meet = {"PET_MASTER_ADDR": "node-0", "PET_MASTER_PORT": "29511", "PET_NODE_RANK": str(node)}
            argv = self.network.command(f"node-{node}", Images().trainer, *stage, environment=meet, volumes=volumes)
            with self.log(node).open("wb") as log:
                started.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        return started

    def log(self, node: int) -> Path:
        return self.folder / f"node-{node}.log"

    def train(self, **values: str) -> Path:
        codes = [process.wait(timeout=600) for process in self.start(**values)]
        assert codes == [0, 0], "".join(self.log(node).read_text() for node in (0, 1))
        return self.folder / "out"


@pytest.fixture
def both(container_network: Any, still: SimpleNamespace, tmp_path: Path) -> Machines:
    return Machines(container_network, still, tmp_path)


@pytest.mark.containers
@pytest.mark.parametrize("values", [{}, {"apply_deepspeed": "true", "deepspeed_stage": "2"}], ids=["DDP", "ZeRO-2"])
def test_two_containers_of_two_processes_train_what_one_process_does(
    values: dict[str, str], both: Machines, alone: Alone
) -> None:
    assert_same_training(both.train(**values), alone(lora=False))


@pytest.mark.containers
@pytest.mark.parametrize(("how", "code"), [("stop", 75), ("kill", 1)])
def test_a_container_that_is_stopped_ends_the_other_and_a_restart_goes_on(how: str, code: int, both: Machines) -> None:
    constant = {"lr_scheduler_type": "constant"}
    other, stopped = both.start(**constant, max_steps="100000")
    wait_for_steps(both.log(0), "[5/")
    at = time.monotonic()
    patient = ["--time=55"] if how == "stop" else []  # seconds until it would be killed
    assert both.network.docker(how, *patient, "node-1").returncode == 0
    assert other.wait(timeout=60) == code and time.monotonic() - at < 60
    assert stopped.wait(timeout=60) == {"stop": 75, "kill": 137}[how]
    last = both.log(0).read_text().strip().splitlines()[-1]
    assert last.startswith({"stop": "error: stopped by a signal; the state is saved in", "kill": "error: rank "}[how])
    step = int((both.folder / ".out.partial/checkpoints/LATEST").read_text().removeprefix("checkpoint-"))
    both.train(**constant, max_steps=str(step + 2), resume_from_checkpoint="true")
    assert f"resuming from checkpoint-{step}" in both.log(0).read_text()


# -- endings -----------------------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def environment(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def wait_for_steps(log: Path, step: str = "[3/") -> None:
    until = time.monotonic() + 300
    while step not in log.read_text():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


@pytest.fixture
def started(still: SimpleNamespace, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A training of two processes that has made its first steps, and its log."""
    log = tmp_path / "log"
    with log.open("wb") as sink:
        argv = command(still, tmp_path / "out", **TWO, max_steps="100000", eval_steps="50000")
        process = subprocess.Popen(argv, env=os.environ | CPU | COLD, stdout=sink, stderr=sink)
    wait_for_steps(log)
    yield process, log
    process.kill()


def test_a_process_that_is_killed_takes_all_down_and_is_named_last(
    started: tuple[subprocess.Popen[bytes], Path],
) -> None:
    process, log = started
    ranks = [pid for pid in children(process.pid) if b"RANK=1" in environment(pid)]
    os.kill(ranks[0], signal.SIGKILL)
    assert process.wait(timeout=60) == 137
    last = log.read_text().strip().splitlines()[-1]
    assert last == "error: rank 1 was killed by SIGKILL, most often because the memory did not suffice"


def test_a_signal_leaves_one_checkpoint_of_all_processes_and_a_resume_goes_on(
    started: tuple[subprocess.Popen[bytes], Path], still: SimpleNamespace, tmp_path: Path
) -> None:
    process, log = started
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    last = log.read_text().strip().splitlines()[-1]
    assert last.startswith("error: stopped by a signal; the state is saved in")
    checkpoints = tmp_path / ".out.partial" / "checkpoints"
    step = int((checkpoints / "LATEST").read_text().removeprefix("checkpoint-"))
    values = {"resume_from_checkpoint": "true", "max_steps": str(step + 2), "eval_steps": "50000"}
    done = train(still, tmp_path / "out", **TWO, **values)
    assert done.returncode == 0, done.stdout
    assert f"resuming from checkpoint-{step}" in done.stdout


def test_a_mistake_that_every_process_finds_is_said_once(still: SimpleNamespace, tmp_path: Path) -> None:
    done = train(still, tmp_path / "out", **TWO, precision="fp16")
    assert done.returncode == 2
    assert done.stdout.count("error: precision=fp16: needs an NVIDIA GPU") == 1
    assert "Traceback" not in done.stdout and not (tmp_path / "out").exists()


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "lora"), [("2", False), ("3", True)])
def test_a_resume_of_shards_goes_on_as_if_it_had_never_stopped(
    stage: str, lora: bool, still: SimpleNamespace, tmp_path: Path
) -> None:
    values = {**ZERO[stage], **(LORA if lora else {}), "lr_scheduler_type": "constant"}
    trained(still, tmp_path / "whole", **values)
    trained(still, tmp_path / "part", **values, max_steps="4")
    trained(still, tmp_path / "part", **values, resume_from_checkpoint="true")
    assert_same_training(tmp_path / "part", tmp_path / "whole")


def test_another_number_of_processes_is_refused_for_shards_and_taken_otherwise(
    still: SimpleNamespace, tmp_path: Path
) -> None:
    one = {"gradient_accumulation_steps": "2", "resume_from_checkpoint": "true"}
    trained(still, tmp_path / "sharded", **ZERO["2"], max_steps="4")
    sharded = one | {"apply_deepspeed": "true", "deepspeed_stage": "2"}
    refused = train(still, tmp_path / "sharded", **sharded)
    assert refused.returncode == 2
    assert "2 processes, each of which wrote a part of the optimizer's states (now 1)" in refused.stdout
    constant = {"lr_scheduler_type": "constant"}
    trained(still, tmp_path / "two", **TWO, **constant, max_steps="4")
    trained(still, tmp_path / "two", **one, **constant)
    trained(still, tmp_path / "one", gradient_accumulation_steps="2", **constant)
    assert_same_training(tmp_path / "two", tmp_path / "one")
