"""What a launcher does in every state that a job, its pods and the API server can be in, against a fake of the API."""

import dataclasses as dc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tuneport.errors import UserError
from tuneport.launchers import cluster, pytorchjob, trainjob
from tuneport.launchers.job import Job
from tuneport.stage import Terminated

JOB = Job(name="finetune-r1", run_id="r1", image="i", command=("python3", "-m", "steps"), nodes=2, processes=1)
QUICK = cluster.Patience(pending=60, watch=1, deletion=3, retries=6, backoff=0.01, log_retry=0.1)


def run(job: Job = JOB, kind: Any = pytorchjob, patience: cluster.Patience = QUICK, owner: Any = None) -> list[str]:
    """Follow a job to its end; returns the lines of its log."""
    lines: list[str] = []
    cluster.run(cluster.Cluster(patience=patience), kind, job, owner, lines.append)
    return lines


def succeed(fake: Any, job: dict[str, Any], lines: int = 5, pause: float = 0.05) -> None:
    fake.set_condition(job, "Created")
    master, worker = fake.add_pod(job, "master-0"), fake.add_pod(job, "worker-0")
    fake.set_condition(job, "Running")
    for i in range(lines):
        fake.say(master, f"step {i}")
        time.sleep(pause)
    fake.say(worker, "not rank 0")
    fake.end_pod(master, 0, "Completed")
    fake.end_pod(worker, 0, "Completed")
    fake.set_condition(job, "Succeeded" if job["kind"] == "PyTorchJob" else "Complete")


def fail(fake: Any, job: dict[str, Any]) -> None:
    master, worker = fake.add_pod(job, "master-0"), fake.add_pod(job, "worker-0")
    fake.set_condition(job, "Running")
    fake.say(worker, *(f"before {i}" for i in range(50)), "error: the disk is full")
    fake.end_pod(worker, 2)
    fake.say(master, "peer closed the connection")
    fake.end_pod(master, 143)
    name = worker["metadata"]["name"]
    event = {
        "metadata": {"name": "e"},
        "type": "Warning",
        "reason": "BackOff",
        "message": "restarting container",
    }
    fake.events.append({**event, "involvedObject": {"name": name}})
    fake.set_condition(job, "Failed", "PyTorchJob finetune-r1 is failed because 1 Worker replica(s) failed.")


def test_a_job_is_created_and_followed_to_its_success(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(succeed)
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u"}
    assert run(owner=owner) == [f"step {i}" for i in range(5)]
    (created,) = fake.bodies
    assert created["metadata"]["ownerReferences"] == [owner]
    assert [method for method, _ in fake.requests].count("DELETE") == 0


def test_a_trainjob_is_followed_alike(fake_kubernetes: Any) -> None:
    fake_kubernetes(lambda fake, job: succeed(fake, job, lines=2))
    assert run(kind=trainjob)[0] == "step 0"


def test_the_pod_that_failed_first_says_why(fake_kubernetes: Any) -> None:
    fake_kubernetes(fail)
    with pytest.raises(UserError) as e:
        run()
    message = str(e.value)
    assert "pytorchjobs finetune-r1 failed: PyTorchJob finetune-r1 is failed because 1 Worker" in message
    assert "pod finetune-r1-worker-0: exit code 2 (Error). Its last lines:" in message
    assert "  error: the disk is full" in message and "before 49" in message and "before 10\n" not in message
    assert "event: BackOff: restarting container" in message


def test_a_job_of_the_same_run_is_adopted_and_none_is_made_beside_it(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: None)
    fake.create(pytorchjob.render(JOB))
    threading.Timer(0.3, succeed, (fake, fake.jobs[JOB.name])).start()
    assert run() == [f"step {i}" for i in range(5)]
    assert len(fake.bodies) == 1 and len(fake.jobs) == 1  # one attempt to create it, answered by 409


def test_a_job_that_failed_before_is_replaced(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: None)
    old = fake.create(pytorchjob.render(JOB))
    fake.set_condition(old, "Failed")
    fake.operator = succeed
    assert len(run()) == 5
    assert fake.jobs[JOB.name]["metadata"]["uid"] != old["metadata"]["uid"]


def test_another_runs_job_of_the_same_name_is_refused_and_left_alone(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: None)
    fake.create(pytorchjob.render(dc.replace(JOB, run_id="other")))
    with pytest.raises(UserError, match="exists already, and is of another run"):
        run()
    fake.jobs.clear()
    fake.create(pytorchjob.render(dc.replace(JOB, image="another")))
    with pytest.raises(UserError, match="exists already for this run, with other settings"):
        run()
    assert "DELETE" not in [method for method, _ in fake.requests]


def test_a_job_that_does_not_go_is_said_so(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: None)
    fake.keep_deleted = True
    fake.set_condition(fake.create(pytorchjob.render(JOB)), "Failed")
    with pytest.raises(UserError, match="is being deleted, for 3 s now"):
        run()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_storm_of_transient_errors_is_weathered(fake_kubernetes: Any, status: int) -> None:
    fake = fake_kubernetes(succeed)
    fake.faults += [("POST", "pytorchjobs", status)] * 3 + [("GET", ".", status)] * 5
    assert len(run()) == 5
    assert not fake.faults and len(fake.jobs) == 1


def test_an_api_server_that_stays_away_leaves_the_job_to_the_next_attempt(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: fake.faults.extend([("GET", ".", 503)] * 200))
    with pytest.raises(UserError, match=r"503.*The API server does not recover"):
        run()
    assert JOB.name in fake.jobs
    fake.faults.clear()
    threading.Timer(0.2, succeed, (fake, fake.jobs[JOB.name])).start()
    assert len(run()) == 5


def test_a_watch_that_is_too_old_starts_anew(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: succeed(fake, job, pause=0.8))
    fake.faults.append(("GET", "watch=", 410))
    fake.expired_watches = 1
    assert len(run()) == 5
    assert not fake.faults and fake.expired_watches == 0


def test_a_log_stream_that_breaks_off_is_taken_up_without_a_gap_or_a_repetition(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: succeed(fake, job, lines=20, pause=0.1))
    fake.cuts += [3, 7, 8]
    assert run() == [f"step {i}" for i in range(20)]
    assert not fake.cuts


def test_a_pod_that_pends_for_ever_ends_in_a_clear_time_out_and_no_job(fake_kubernetes: Any) -> None:
    def pend(fake: Any, job: dict[str, Any]) -> None:
        pod = fake.add_pod(job, "master-0", phase="Pending")
        message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
        pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": message}]
        fake.set_condition(job, "Created")

    fake = fake_kubernetes(pend)
    with pytest.raises(UserError) as e:
        run(patience=dc.replace(QUICK, pending=2))
    assert "no pod of it ran for 2 s" in str(e.value) and "Insufficient nvidia.com/gpu" in str(e.value)
    assert fake.jobs == {}


def test_time_in_a_queue_is_no_time_out(fake_kubernetes: Any) -> None:
    def queue(fake: Any, job: dict[str, Any]) -> None:
        job["spec"]["runPolicy"]["suspend"] = True
        fake.set_condition(job, "Suspended")
        time.sleep(3)
        del job["spec"]["runPolicy"]["suspend"]
        job["status"]["conditions"].clear()
        succeed(fake, job)

    fake_kubernetes(queue)
    assert len(run(dc.replace(JOB, queue="gpus"), patience=dc.replace(QUICK, pending=2))) == 5


def test_a_job_that_someone_deletes_is_said_to_be_gone(fake_kubernetes: Any) -> None:
    fake_kubernetes(lambda fake, job: (time.sleep(0.5), fake.delete(job["metadata"]["name"])))
    with pytest.raises(UserError, match="was deleted by someone else"):
        run()


@pytest.mark.parametrize(("status", "hint"), [(403, "docs/kubeflow.md"), (404, "install Kubeflow's operator")])
def test_what_no_retry_mends_is_said_at_once(fake_kubernetes: Any, status: int, hint: str) -> None:
    fake = fake_kubernetes(succeed)
    fake.faults.append(("POST", "pytorchjobs", status))
    with pytest.raises(UserError, match=hint):
        run()


@pytest.mark.parametrize("kind", [pytorchjob, trainjob], ids=["pytorchjob", "trainjob"])
def test_a_signal_deletes_the_job(fake_kubernetes: Any, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: fake.set_condition(job, "Running"))
    read = cluster._read
    calls = iter(range(3))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise Terminated  # what the handler of a signal raises, wherever the launcher is
        return read(*arguments)

    monkeypatch.setattr(cluster, "_read", interrupted)
    with pytest.raises(Terminated):
        run(kind=kind)
    assert fake.jobs == {}


def test_the_owner_is_that_of_the_launchers_own_pod(fake_kubernetes: Callable[..., Any]) -> None:
    fake = fake_kubernetes(succeed)
    pod = fake.add_pod({"metadata": {"name": "w"}}, "impl-1")
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u-1"}
    pod["metadata"]["ownerReferences"] = [{**workflow, "controller": True}]
    found = cluster.Cluster(patience=QUICK)
    assert found.owner("w-impl-1") == workflow
    assert found.owner("none") is None and found.owner(None) is None


def test_an_api_server_that_is_not_there_is_said_so(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(succeed)
    fake.close()
    with pytest.raises(UserError, match="the Kubernetes API cannot be reached"):
        run(patience=dc.replace(QUICK, retries=1))
