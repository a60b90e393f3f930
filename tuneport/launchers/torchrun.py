"""Several processes of one stage on this machine, alone or together with other machines: torchrun.

The other machines are named by torchrun's own variables, which a PyTorchJob sets and a user may: PET_NNODES,
PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT, or PET_RDZV_BACKEND=c10d and PET_RDZV_ENDPOINT.
"""

from __future__ import annotations

import dataclasses as dc
import json
import logging
import os
import signal
import tempfile
import threading
import time
import typing as t
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneport.errors import EXIT_PREEMPTED, UserError
from tuneport.launchers.parent_death import signalled_at_death_of_parent

log = logging.getLogger("tuneport.launch")

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # torchrun names in it the file that a failing rank leaves its error in
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGUSR1"
LAUNCHED = "TUNEPORT_LAUNCHED"  # set for ranks whose errors we say ourselves
STOP_FILE = "TUNEPORT_STOP_FILE"  # names a file: once it is there, all is to stop, as nobody can say so by a signal
# Where the operator knows no elastic jobs, the fewest and the most machines, as in 1:4, and how often they start again.
ELASTIC, ELASTIC_RESTARTS = "TUNEPORT_ELASTIC", "TUNEPORT_ELASTIC_RESTARTS"
STOP_SECONDS = 10.0  # between two looks for it
RENDEZVOUS = "PET_RDZV_CONF"  # torchrun's own
MEETING_SECONDS = 6 * 3600  # that a machine waits for the others where each first fetches what it reads
GRACE_SECONDS = 45  # from a signal, or another rank's death, to the kill; PET_SHUTDOWN_TIMEOUT overrides it


@dc.dataclass(frozen=True, kw_only=True)
class Ending:
    """How one rank failed."""

    rank: int
    code: int
    message: str
    time: float

    @property
    def is_cause(self) -> tuple[bool, bool, bool, float]:
        """Sorts the likeliest cause first: killed from outside, then the user's mistake, then the first to fail.

        SIGTERM is what torchrun sends the others.
        """
        return self.code == -signal.SIGTERM, self.code >= 0, self.code != 2, self.time


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether whoever started this process made it one of several: torchrun, Azure ML, a PyTorchJob by torchrun."""
    return all(environment.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def is_elastic(environment: Mapping[str, str]) -> bool:
    """Whether the operator has named a fewest and a most number of machines, as in 1:4."""
    return ":" in environment.get("PET_NNODES", "")


def die_with_launcher(environment: Mapping[str, str]) -> None:
    """Let the kernel kill this rank when its launcher is killed: left alone, it would go on writing."""
    if LAUNCHED in environment:
        signalled_at_death_of_parent(signal.SIGKILL)()


def report(environment: Mapping[str, str], code: int, message: str) -> bool:
    """Leave a rank's error for torchrun; returns whether its launcher is ours, which says it last."""
    if not (file := environment.get(ERROR_FILE)) or file == os.devnull:
        return False
    extra = {"timestamp": int(time.time()), "time": time.time(), "rank": int(environment.get("RANK", "0"))}
    content = {"message": {"message": message, "errorCode": code, "extraInfo": extra}}
    Path(file).write_text(json.dumps(content), encoding="utf-8")
    return LAUNCHED in environment


def launch(command: Sequence[str], processes: int, nodes: int, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run ``python -m COMMAND`` in ``processes`` ranks here; returns the exit code and the cause where it is not 0.

    Raises `UserError` where other machines are expected and none is named.
    """
    rendezvous = _rendezvous(nodes, environment)
    _stop_by_file(environment.get(STOP_FILE))
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ[LAUNCHED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    with tempfile.TemporaryDirectory(prefix="tuneport-ranks-") as logs:
        arguments: t.Any = [f"--nproc-per-node={processes}", f"--log-dir={logs}", *rendezvous]
        if not {"PET_MAX_RESTARTS", ELASTIC} & environment.keys():  # an elastic job, whose other machines go on
            arguments.append("--max-restarts=0")
        if "PET_SHUTDOWN_TIMEOUT" not in environment:
            arguments.append(f"--shutdown-timeout={GRACE_SECONDS}")
        arguments += [f"--signals-to-handle={SIGNALS}", "-m", *command]
        log.info("%d processes on this machine%s", processes, f", {nodes} machines" if nodes > 1 else "")
        torchrun: t.Any = run
        try:
            torchrun.run(torchrun.parse_args(arguments))
            return 0, ""
        except ChildFailedError as e:
            failed = [_killed(rank, failure) for rank, failure in e.failures.items() if failure.exitcode < 0]
            return _verdict([*failed, *_reported(Path(logs))], 1, "a process failed without a message")
        except (RendezvousError, DistError) as e:
            raise UserError(
                f"num_nodes_finetune={nodes}: the machines did not find each other ({str(e).splitlines()[0]}). See "
                "that the same command runs on each, and that all of them reach the address in PET_MASTER_ADDR or "
                "PET_RDZV_ENDPOINT."
            ) from None
        except SignalException as e:
            number = signal.Signals(e.sigval)
            return _verdict(_reported(Path(logs)), 128 + number, f"stopped by {number.name}")


def patient() -> dict[str, str]:
    """The variables by which machines wait longer for one another than torchrun's ten minutes."""
    # In turn: without a rendezvous backend, and with c10d for the machines and for the store of the first one.
    return {RENDEZVOUS: ",".join(f"{name}={MEETING_SECONDS}" for name in ("timeout", "join_timeout", "read_timeout"))}


def _stop_by_file(file: str | None) -> None:
    """Send this process SIGTERM once a file is there. Its folder is one that machines share."""
    if not file:
        return

    def look() -> None:
        while not Path(file).exists():
            time.sleep(STOP_SECONDS)
        log.warning("%s is there: stopping", file)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True, name="stop file").start()


def _rendezvous(nodes: int, environment: Mapping[str, str]) -> list[str]:
    """The flags by which the machines find each other; torchrun reads the rest from PET_* itself."""
    if nodes == 1 and not environment.get("PET_NNODES"):
        return ["--standalone"]
    if not (environment.get("PET_RDZV_ENDPOINT") or environment.get("PET_NODE_RANK")):
        raise UserError(
            f"num_nodes_finetune={nodes}: nothing here names the other machines. Start the same command on each with "
            "PET_NODE_RANK (0, 1, …), PET_MASTER_ADDR and PET_MASTER_PORT, or with PET_RDZV_BACKEND=c10d and "
            "PET_RDZV_ENDPOINT=host:port; or let a PyTorchJob or Azure ML start them."
        )
    if elastic := environment.get(ELASTIC):
        hosts = environment.get("PET_NODE_RANK") == "0"
        return [
            f"--nnodes={elastic}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={environment['PET_MASTER_ADDR']}:{environment['PET_MASTER_PORT']}",
            f"--rdzv-conf={','.join(filter(None, [f'is_host={hosts}', environment.get(RENDEZVOUS)]))}",
            f"--max-restarts={environment.get(ELASTIC_RESTARTS, '0')}",
        ]
    flags = [] if environment.get("PET_NNODES") else [f"--nnodes={nodes}"]
    for flag, name in (("--master-addr", "MASTER_ADDR"), ("--master-port", "MASTER_PORT")):
        if environment.get(name) and not environment.get(f"PET_{name}"):
            flags += [f"{flag}={environment[name]}"]
    return flags


def _killed(rank: int, failure: t.Any) -> Ending:
    name = signal.Signals(-failure.exitcode).name
    why = ", most often because the memory did not suffice" if name == "SIGKILL" else ""
    message = f"was killed by {name}{why}"
    return Ending(rank=rank, code=failure.exitcode, message=message, time=failure.timestamp)


def _reported(logs: Path) -> list[Ending]:
    found = [json.loads(file.read_text("utf-8"))["message"] for file in logs.rglob("error.json")]
    return [
        Ending(rank=e["extraInfo"]["rank"], code=e["errorCode"], message=e["message"], time=e["extraInfo"]["time"])
        for e in found
    ]


def _verdict(endings: list[Ending], code: int, message: str) -> tuple[int, str]:
    if not endings:
        return code, message
    if preempted := [e for e in endings if e.code == EXIT_PREEMPTED]:
        return EXIT_PREEMPTED, preempted[0].message
    cause = min(endings, key=lambda e: e.is_cause)
    alike = len({e.message for e in endings}) == 1 and len(endings) > 1
    said = cause.message if alike or cause.code == 2 else f"rank {cause.rank} {cause.message}"
    return cause.code if cause.code > 0 else 128 - cause.code, said
