"""What a launcher takes for the cause where several processes failed, and how it finds the other machines."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tuneport.errors import UserError
from tuneport.launchers import torchrun
from tuneport.launchers.torchrun import Ending


def ending(rank: int, code: int, message: str, time: float = 0.0) -> Ending:
    return Ending(rank=rank, code=code, message=message, time=time)


LOST = ending(0, 1, "failed: RuntimeError: Connection closed by peer", 1.0)


@pytest.mark.parametrize(
    ("endings", "code", "message"),
    [
        ([LOST, ending(1, -9, "was killed by SIGKILL", 2.0)], 137, "rank 1 was killed by SIGKILL"),
        ([LOST, ending(1, 2, "column x is missing", 2.0)], 2, "column x is missing"),
        ([ending(1, 2, "no", 2.0), ending(0, -15, "was killed by SIGTERM", 1.0)], 2, "no"),
        ([LOST, ending(1, 1, "failed: ValueError: 3", 0.5)], 1, "rank 1 failed: ValueError: 3"),
        ([ending(0, 1, "failed: OSError: x"), ending(1, 1, "failed: OSError: x")], 1, "failed: OSError: x"),
        ([ending(1, 143, "terminated"), ending(0, 75, "the state is saved")], 75, "the state is saved"),
        ([], 129, "stopped by SIGHUP"),
    ],
)
def test_the_likeliest_cause_is_named(endings: list[Ending], code: int, message: str) -> None:
    assert torchrun._verdict(endings, 129, "stopped by SIGHUP") == (code, message)


def test_a_rank_leaves_its_error_where_torchrun_and_the_launcher_read_it(tmp_path: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file = tmp_path / "0" / "error.json"
    file.parent.mkdir()
    environment = {"TORCHELASTIC_ERROR_FILE": str(file), "RANK": "3"}
    assert torchrun.report(environment, 2, "wrong\nfile") is False  # nobody of ours says it
    assert torchrun.report({**environment, torchrun.LAUNCHED: "1"}, 2, "wrong\nfile") is True
    (found,) = torchrun._reported(tmp_path)
    assert (found.rank, found.code, found.message) == (3, 2, "wrong\nfile")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    assert json.loads(json.dumps(failure.message))["message"] == "wrong\nfile"


@pytest.mark.parametrize("environment", [{}, {"TORCHELASTIC_ERROR_FILE": os.devnull}])
def test_a_process_that_is_no_rank_of_torchrun_says_its_error_itself(environment: dict[str, str]) -> None:
    assert torchrun.report(environment, 2, "wrong") is False


@pytest.mark.parametrize(
    ("nodes", "environment", "flags"),
    [
        (1, {}, ["--standalone"]),
        (2, {"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "a"}, ["--nnodes=2"]),
        (2, {"PET_RDZV_ENDPOINT": "a:1"}, ["--nnodes=2"]),
        (
            4,
            {
                "PET_NNODES": "4",
                "PET_NODE_RANK": "0",
                "PET_MASTER_ADDR": "a",
                "PET_MASTER_PORT": "1",
                "TUNEPORT_ELASTIC": "2:4",
                "TUNEPORT_ELASTIC_RESTARTS": "3",
            },
            [
                "--nnodes=2:4",
                "--rdzv-backend=c10d",
                "--rdzv-endpoint=a:1",
                "--rdzv-conf=is_host=True",
                "--max-restarts=3",
            ],
        ),
        (1, {"PET_NNODES": "2", "PET_NODE_RANK": "0", "MASTER_ADDR": "a"}, ["--master-addr=a"]),
        (2, {"PET_NNODES": "2", "PET_NODE_RANK": "0", "MASTER_ADDR": "a", "PET_MASTER_ADDR": "b"}, []),
    ],
)
def test_other_machines_are_found_by_torchruns_variables(
    nodes: int, environment: dict[str, str], flags: list[str]
) -> None:
    assert torchrun._rendezvous(nodes, environment) == flags


def test_machines_that_nobody_names_are_asked_for() -> None:
    with pytest.raises(UserError, match="num_nodes_finetune=2: nothing here names the other machines"):
        torchrun._rendezvous(2, {})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, True),  # Azure ML, and torchrun itself
        ({"RANK": "1", "WORLD_SIZE": "2", "PET_NNODES": "2"}, False),  # a PyTorchJob: RANK is the machine's
        ({}, False),
    ],
)
def test_ranks_that_a_platform_has_made_are_recognised(environment: dict[str, str], expected: bool) -> None:
    assert torchrun.is_rank(environment) is expected


@pytest.mark.slow
def test_a_file_ends_the_processes_where_no_signal_can(tmp_path: Path) -> None:
    work = "import os, sys; from tuneport.launchers import torchrun; torchrun.STOP_SECONDS = 0.1; "
    work += "sys.exit(torchrun.launch(['http.server', '0'], 1, 1, os.environ)[0])"
    file = tmp_path / "stop"
    environment = {**os.environ, torchrun.STOP_FILE: str(file), "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", work], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        own, until = psutil.Process(process.pid), time.monotonic() + 120
        while not any("http.server" in child.cmdline() for child in own.children(recursive=True)):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        file.touch()
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143, said


def test_machines_that_fetch_what_they_read_first_wait_for_one_another_for_hours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.distributed import run

    hours = str(torchrun.MEETING_SECONDS)
    for name, value in torchrun.patient().items():
        monkeypatch.setenv(name, value)
    config, _, _ = run.config_from_args(run.parse_args(["--nnodes=2", "--node-rank=0", "-m", "steps"]))  # type: ignore[no-untyped-call]
    assert config.rdzv_configs["timeout"] == hours  # of static rendezvous
    elastic = {torchrun.ELASTIC: "1:2", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "a", "PET_MASTER_PORT": "1"}
    flags = torchrun._rendezvous(2, {**elastic, **torchrun.patient()})
    assert f"--rdzv-conf=is_host=True,timeout={hours},join_timeout={hours},read_timeout={hours}" in flags
    assert "--rdzv-conf=is_host=True" in torchrun._rendezvous(2, elastic)
