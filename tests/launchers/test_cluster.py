"""What a launcher does in every state that a job, its pods and the API server can be in, against a fake of the API."""

import dataclasses as dc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.launchers.fake_kubernetes import kubeconfig
from tuneport.errors import UserError
from tuneport.launchers import cluster, pytorchjob, trainjob
from tuneport.launchers.job import Job
from tuneport.launchers.kubernetes_api import Api, Patience
from tuneport.launchers.pod_logs import nanoseconds
from tuneport.stage import Terminated

JOB = Job(name="finetune-r1", run_id="r1", image="i", command=("python3", "-m", "steps"), nodes=2, processes=1)
QUICK = Patience(
    pending=60, explain=1, watch=30, poll=0.5, deletion=3, outage=5, refusal=3, farewell=2, backoff=0.01, log_retry=0.1
)


def run(
    job: Job = JOB, kind: Any = pytorchjob, patience: Patience = QUICK, owner: Any = None, **more: Any
) -> list[str]:
    """Follow a job to its end; returns the lines of its log."""
    lines: list[str] = []
    cluster.run(Api(patience=patience), kind, job, owner, cluster.Reports(say=lines.append, **more))
    return lines


def succeed(fake: Any, job: dict[str, Any], lines: int = 5, pause: float = 0.05) -> None:
    fake.set_condition(job, "Created")
    names = ("master-0", "worker-0") if job["kind"] == "PyTorchJob" else ("node-0-0", "node-0-1")
    master, worker = (fake.add_pod(job, name) for name in names)
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
    fake.warn(worker, "BackOff", "restarting container")
    fake.warn({"metadata": {**worker["metadata"], "uid": "another"}}, "Other", "of Endpoints of that name", "Endpoints")
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
    assert run(kind=trainjob) == ["step 0", "step 1"]


def test_the_pod_that_failed_first_says_why(fake_kubernetes: Any) -> None:
    fake_kubernetes(fail)
    with pytest.raises(UserError) as e:
        run()
    message = str(e.value)
    assert "pytorchjobs finetune-r1 failed: PyTorchJob finetune-r1 is failed because 1 Worker" in message
    assert "pod finetune-r1-worker-0: exit code 2 (Error). Its last lines:" in message
    assert "  error: the disk is full" in message and "before 49" in message and "before 10\n" not in message
    assert "event of Pod finetune-r1-worker-0: BackOff: restarting container" in message and "Endpoints" not in message
    assert "pod finetune-r1-master-0: exit code 143 (Error)" in message


def test_a_job_of_the_same_run_is_adopted_and_none_is_made_beside_it(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: None)
    fake.create(pytorchjob.render(JOB))
    threading.Timer(0.3, succeed, (fake, fake.jobs[JOB.name])).start()
    assert run() == [f"step {i}" for i in range(5)]
    assert fake.bodies == [] and len(fake.jobs) == 1


def test_a_job_that_another_launcher_makes_at_the_same_time_is_adopted(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(succeed)
    fake.faults.append(("POST", "pytorchjobs", 409))
    threading.Timer(0.1, lambda: fake.create(pytorchjob.render(JOB))).start()
    assert run() == [f"step {i}" for i in range(5)]
    assert len(fake.jobs) == 1


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


@pytest.mark.parametrize("how", ["in the stream", "at once"])
def test_a_watch_that_is_too_old_begins_again_from_a_list_and_then_lasts(fake_kubernetes: Any, how: str) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        if how == "at once":
            fake.faults.append(("GET", "watch=", 410))
        fake.compact()
        succeed(fake, job, pause=0.5)

    fake = fake_kubernetes(work)
    assert len(run()) == 5
    assert not fake.faults
    watches = [path for method, path in fake.requests if "watch=" in path]
    assert 3 <= len(watches) <= 6, watches  # of the job and its pods, twice each at most, and one that was refused


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
        fake.touch_pod(pod)
        fake.set_condition(job, "Created")

    fake = fake_kubernetes(pend)
    with pytest.raises(UserError) as e:
        run(patience=dc.replace(QUICK, pending=2))
    assert "did not start within 2 s (0 of 2 pods ran)" in str(e.value)
    assert "Insufficient nvidia.com/gpu" in str(e.value) and "Ask for less" in str(e.value)
    assert fake.jobs == {}


def test_time_in_a_queue_is_no_time_out(fake_kubernetes: Any) -> None:
    def queue(fake: Any, job: dict[str, Any]) -> None:
        job["spec"]["runPolicy"]["suspend"] = True
        fake.set_condition(job, "Suspended")
        time.sleep(3)
        del job["spec"]["runPolicy"]["suspend"]
        job["status"]["conditions"].clear()
        fake.touch(job)
        succeed(fake, job)

    fake_kubernetes(queue)
    assert len(run(dc.replace(JOB, queue="gpus"), patience=dc.replace(QUICK, pending=2))) == 5


def test_a_job_that_someone_deletes_is_said_to_be_gone(fake_kubernetes: Any) -> None:
    fake_kubernetes(lambda fake, job: (time.sleep(0.5), fake.delete(job["metadata"]["name"])))
    with pytest.raises(UserError, match="was deleted by someone else"):
        run()


@pytest.mark.parametrize(("status", "hint"), [(403, "403 Forbidden"), (404, "install Kubeflow's operator")])
def test_what_no_retry_mends_is_said_at_once(fake_kubernetes: Any, status: int, hint: str) -> None:
    fake = fake_kubernetes(succeed)
    fake.faults.append(("POST", "pytorchjobs", status))
    with pytest.raises(UserError, match=hint):
        run()


@pytest.mark.parametrize("kind", [pytorchjob, trainjob], ids=["pytorchjob", "trainjob"])
def test_a_signal_deletes_the_job(fake_kubernetes: Any, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: fake.set_condition(job, "Running"))
    interrupt(monkeypatch)
    with pytest.raises(Terminated):
        run(kind=kind)
    assert fake.jobs == {}


def interrupt(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object] = dict) -> None:
    """Have the third look at what happened end as the handler of a signal ends whatever the launcher is at."""
    wait = cluster._Follower._wait
    calls = iter(range(1000))

    def interrupted(follower: Any, *arguments: Any) -> None:
        if next(calls) == 2:
            before()
            raise Terminated
        wait(follower, *arguments)

    monkeypatch.setattr(cluster._Follower, "_wait", interrupted)


@pytest.mark.parametrize("kind", [pytorchjob, trainjob], ids=["pytorchjob", "trainjob"])
def test_a_launcher_that_is_evicted_suspends_its_job_and_the_next_resumes_it(
    fake_kubernetes: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: Any, tmp_path: Any
) -> None:
    fake = fake_kubernetes(lambda fake, job: fake.set_condition(job, "Created"))
    own = fake.add_pod({"metadata": {"name": "w"}}, "impl-1")
    api, reports = Api(patience=QUICK), cluster.Reports(say=print)

    def evict() -> None:
        own["status"]["conditions"] = [
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        ]

    interrupt(monkeypatch, evict)
    with pytest.raises(Terminated):
        cluster.run(api, kind, JOB, None, reports, suspend_for="w-impl-1")
    job = fake.jobs[JOB.name]
    assert kind.state(job).phase == "suspended" and "is suspended, and resumed by the next attempt" in caplog.text
    monkeypatch.undo()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    threading.Timer(1, succeed, (fake, job)).start()
    assert len(run(kind=kind)) == 5
    assert kind.state(job).phase == "succeeded" and "tuneport/evicted" not in job["metadata"]["annotations"]


def test_a_launcher_that_is_ended_by_its_user_deletes_its_job_though_it_would_suspend_it_when_evicted(
    fake_kubernetes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_kubernetes(lambda fake, job: fake.set_condition(job, "Created"))
    fake.add_pod({"metadata": {"name": "w"}}, "impl-1")
    interrupt(monkeypatch)
    with pytest.raises(Terminated):
        cluster.run(Api(patience=QUICK), pytorchjob, JOB, None, cluster.Reports(say=print), suspend_for="w-impl-1")
    assert fake.jobs == {}


def test_the_owner_is_that_of_the_launchers_own_pod(fake_kubernetes: Callable[..., Any]) -> None:
    fake = fake_kubernetes(succeed)
    pod = fake.add_pod({"metadata": {"name": "w"}}, "impl-1")
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u-1"}
    pod["metadata"]["ownerReferences"] = [{**workflow, "controller": True}]
    found = Api(patience=QUICK)
    assert found.owner("w-impl-1") == workflow
    assert found.owner("none") is None and found.owner(None) is None


def test_an_api_server_that_is_not_there_is_said_so(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(succeed)
    fake.close()
    with pytest.raises(UserError, match="the Kubernetes API cannot be reached"):
        run(patience=dc.replace(QUICK, outage=0.1))


# -- why a job failed --------------------------------------------------------------------------------------------------


def test_what_a_pod_said_is_known_though_the_operator_deletes_all_pods_the_moment_one_fails(
    fake_kubernetes: Any,
) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        master, worker = fake.add_pod(job, "master-0"), fake.add_pod(job, "worker-0")
        fake.set_condition(job, "Running")
        fake.say(master, "peer closed the connection")
        fake.say(worker, *(f"before {i}" for i in range(50)), "rank 1 was killed by SIGKILL")
        time.sleep(0.5)
        fake.end_pod(worker, 137, "OOMKilled")
        fake.delete_pods(job)
        fake.set_condition(job, "Failed", "Job finetune-r1 has reached the specified backoff limit")

    fake = fake_kubernetes(work)
    with pytest.raises(UserError) as e:
        run()
    message = str(e.value)
    assert "pod finetune-r1-worker-0: exit code 137 (OOMKilled). Its last lines:" in message
    assert "  rank 1 was killed by SIGKILL" in message and "before 49" in message and "memory_limit" in message
    assert fake.pods == {}


def test_a_pod_that_is_gone_before_its_log_is_read_says_its_end_by_its_status_and_the_shared_place(
    fake_kubernetes: Any,
) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        worker = fake.add_pod(job, "worker-0", phase="Pending")
        fake.end_pod(worker, 2, message="error: column x is missing")
        fake.delete_pods(job)
        fake.set_condition(job, "Failed")

    fake_kubernetes(work)
    with pytest.raises(UserError) as e:
        run(left=lambda: {"finetune-r1-master-0": "the disk is full"})
    assert "exit code 2 (Error). Its last lines:\n  error: column x is missing" in str(e.value)
    assert "finetune-r1-master-0 said at its end: the disk is full" in str(e.value)


def test_a_pod_that_was_evicted_says_by_whom(fake_kubernetes: Any) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        worker = fake.add_pod(job, "worker-0")
        fake.set_condition(job, "Running")
        worker["status"] |= {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}
        fake.touch_pod(worker)
        fake.set_condition(job, "Failed")

    fake_kubernetes(work)
    with pytest.raises(UserError, match="pod finetune-r1-worker-0: Evicted: The node was low on memory"):
        run()


def test_a_job_that_may_not_restart_has_no_limit_by_which_its_pods_are_deleted() -> None:
    assert "backoffLimit" not in pytorchjob.render(JOB)["spec"]["runPolicy"]
    assert pytorchjob.render(dc.replace(JOB, restarts=2))["spec"]["runPolicy"]["backoffLimit"] == 2


def test_an_elastic_job_is_done_when_the_machines_that_are_left_are(fake_kubernetes: Any) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        first, second = (fake.add_pod(job, name) for name in ("node-0-0", "node-0-1"))
        job["status"] = {"jobsStatus": [{"name": "node", "ready": 1}]}
        fake.touch(job)
        fake.say(first, "step 1")
        time.sleep(0.5)
        fake.delete_pod(second)
        fake.add_pod(job, "node-0-2", phase="Pending")  # for which there is no room any more
        fake.end_pod(first, 0, "Completed")

    fake = fake_kubernetes(work)
    assert run(dc.replace(JOB, elastic_min_nodes=1), kind=trainjob) == ["step 1"]
    assert fake.jobs == {}


# -- what the operator cannot create -----------------------------------------------------------------------------------

PRIORITY = 'Error creating: pods "finetune-r1-master-0" is forbidden: no PriorityClass with name nosuch was found'
SECURITY = (
    'Error creating: pods "finetune-r1-worker-0" is forbidden: violates PodSecurity "restricted:latest": '
    'allowPrivilegeEscalation != false (container "init-pytorch" must set it)'
)
QUOTA = 'Error creating: pods "finetune-r1-worker-0" is forbidden: exceeded quota: small, requested: cpu=2, used: cpu=0'


@pytest.mark.parametrize(
    ("message", "hint"), [(PRIORITY, "priority_class"), (SECURITY, "baseline"), (QUOTA, "quota raised")]
)
def test_what_hinders_an_operator_is_said_from_the_events_of_the_job(
    fake_kubernetes: Any, caplog: pytest.LogCaptureFixture, message: str, hint: str
) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        fake.set_condition(job, "Created")
        fake.add_pod(job, "master-0")
        fake.warn(job, "FailedCreatePod", message)

    fake = fake_kubernetes(work)
    with pytest.raises(UserError) as e, caplog.at_level("INFO", "tuneport.launch"):
        run(patience=dc.replace(QUICK, pending=3))
    assert "(1 of 2 pods ran)" in str(e.value) and hint in str(e.value)
    assert f"event of PyTorchJob finetune-r1: FailedCreatePod: {message}" in str(e.value)
    assert f"is waiting: event of PyTorchJob finetune-r1: FailedCreatePod: {message}" in caplog.text  # long before
    assert fake.jobs == {}


def test_what_hinders_a_trainjob_is_said_from_what_is_made_of_it(fake_kubernetes: Any) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        root, name = "/apis/{}/namespaces/team/{}/{}", job["metadata"]["name"]
        made = {"kind": "Job", "metadata": {"name": f"{name}-node-0", "uid": "of the job"}}
        fake.others[root.format("batch/v1", "jobs", f"{name}-node-0")] = made
        fake.warn(made, "FailedCreate", QUOTA)
        condition = {"type": "Unschedulable", "status": "True", "reason": "NotEnough", "message": "1/2 tasks in gang"}
        group = {"kind": "PodGroup", "metadata": {"name": name, "uid": "g"}, "status": {"conditions": [condition]}}
        fake.others[root.format("scheduling.volcano.sh/v1beta1", "podgroups", name)] = group

    fake_kubernetes(work)
    with pytest.raises(UserError) as e:
        run(kind=trainjob, patience=dc.replace(QUICK, pending=1))
    assert "event of Job finetune-r1-node-0: FailedCreate: Error creating" in str(e.value)
    assert "PodGroup finetune-r1: NotEnough: 1/2 tasks in gang" in str(e.value)


@pytest.mark.parametrize("kind", [pytorchjob, trainjob], ids=["pytorchjob", "trainjob"])
def test_why_a_queue_does_not_admit_a_job_is_said_while_it_waits(
    fake_kubernetes: Any, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    def queue(fake: Any, job: dict[str, Any]) -> None:
        place = job["spec"].setdefault("runPolicy", {}) if kind is pytorchjob else job["spec"]
        place["suspend"] = True
        message = "couldn't assign flavors to pod set worker: insufficient quota for cpu in flavor default"
        conditions = [{"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": message}]
        labels = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
        workload = {"metadata": {"name": "w", "uid": "w-1", "labels": labels}, "status": {"conditions": conditions}}
        fake.workloads.append(workload)
        fake.set_condition(job, "Suspended")
        time.sleep(2)
        place["suspend"] = False
        job["status"]["conditions"].clear()
        succeed(fake, job)

    fake_kubernetes(queue)
    with caplog.at_level("INFO", "tuneport.launch"):
        assert len(run(dc.replace(JOB, queue="gpus"), kind=kind)) == 5
    assert "is suspended: Workload w: Pending: couldn't assign flavors to pod set worker" in caplog.text


# -- versions of the operator ------------------------------------------------------------------------------------------


def test_a_trainer_that_would_drop_fields_silently_is_refused_by_its_version(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(succeed)
    fake.unknown = {"runtimePatches", "activeDeadlineSeconds"}  # as of 2.0 and 2.1
    with pytest.raises(UserError, match=r"Kubeflow Trainer is older than 2\.2.*or use kubeflow_job: pytorchjob"):
        run(dc.replace(JOB, volumes=[{"claim": "c", "path": "/c"}], deadline_seconds=60), kind=trainjob)
    assert fake.jobs == {}


def test_every_object_is_sent_for_strict_validation(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(succeed)
    run()
    sent = [path for method, path in fake.requests if method in ("POST", "PATCH")]
    assert sent and all("fieldValidation=Strict" in path for path in sent)


# -- rights, tokens and an API server that goes and comes --------------------------------------------------------------


def test_an_api_server_that_restarts_and_knows_no_rules_yet_is_waited_for(fake_kubernetes: Any) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        fake.set_condition(job, "Running")
        time.sleep(0.5)
        fake.stop()
        time.sleep(0.5)
        fake.start(forgetful=1)
        succeed(fake, job, pause=0.3)

    fake = fake_kubernetes(work)
    assert len(run()) == 5
    assert len(fake.bodies) == 1


def test_a_right_that_is_taken_away_for_good_is_said_after_a_while_and_the_job_left(fake_kubernetes: Any) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        fake.set_condition(job, "Running")
        fake.denied = {(verb, "pytorchjobs") for verb in ("list", "watch")}
        fake.compact()

    fake = fake_kubernetes(work)
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r'cannot list pytorchjobs: 403 Forbidden: .* cannot list resource "pytorchjobs"'
    ):
        run(patience=dc.replace(QUICK, watch=1))
    assert time.monotonic() - began > QUICK.refusal
    assert JOB.name in fake.jobs


@pytest.mark.parametrize("right", [("list", "pytorchjobs"), ("list", "pods"), ("create", "pytorchjobs")])
def test_a_right_that_is_missing_from_the_start_is_said_at_once_and_leaves_no_job(
    fake_kubernetes: Any, right: tuple[str, str]
) -> None:
    fake = fake_kubernetes(succeed)
    fake.denied = {right}
    with pytest.raises(UserError, match=rf"403 Forbidden: {right[1]}\S* is forbidden: User .*docs/kubeflow\.md"):
        run()
    assert fake.jobs == {}


def test_a_log_that_may_not_be_read_is_said_and_the_job_goes_on(
    fake_kubernetes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fake_kubernetes(lambda fake, job: (fake.denied.add(("get", "pods/log")), succeed(fake, job)))
    assert run() == []
    said = [r.message for r in caplog.records if "its log is not shown here" in r.message]
    assert len(said) == 1 and 'cannot get resource "pods/log"' in said[0]


def test_changes_that_may_not_be_watched_are_looked_for(fake_kubernetes: Any, caplog: pytest.LogCaptureFixture) -> None:
    fake = fake_kubernetes(lambda fake, job: succeed(fake, job, pause=0.3))
    fake.denied = {("watch", "pytorchjobs"), ("watch", "pods")}
    assert len(run()) == 5
    assert "cannot watch pytorchjobs: 403" in caplog.text


def test_a_token_that_was_renewed_is_read_again(fake_kubernetes: Any, tmp_path: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: None)

    def renew(token: str) -> None:
        fake.token = token
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig(fake)))

    renew("first")
    fake.operator = lambda fake, job: (renew("second"), fake.compact(), succeed(fake, job))
    assert len(run()) == 5
    assert {"Bearer first", "Bearer second"} <= set(fake.authorizations)


def test_a_token_that_is_not_accepted_is_not_called_a_right_that_is_missing(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(succeed)
    fake.token = "another"
    with pytest.raises(UserError, match=r"401 Unauthorized: Unauthorized\. Its token is not accepted") as e:
        run()
    assert "the right to" not in str(e.value)


def test_a_refusal_is_said_in_the_apis_words_and_not_as_json(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(succeed)
    with pytest.raises(UserError, match=r"must have at most 128 items\. Mend what it names") as e:
        run(dc.replace(JOB, command=("x",) * 129), kind=trainjob)
    assert "{" not in str(e.value) and fake.jobs == {}


def test_an_owner_that_cannot_be_asked_for_ends_in_one_message(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(succeed)
    fake.close()
    with pytest.raises(UserError, match="the Kubernetes API cannot be reached"):
        Api(patience=dc.replace(QUICK, outage=0.1)).owner("w-impl-1")


def test_a_signal_while_the_api_is_away_ends_in_time_and_says_what_becomes_of_the_job(
    fake_kubernetes: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = fake_kubernetes(lambda fake, job: fake.set_condition(job, "Running"))
    interrupt(monkeypatch, fake.stop)
    began = time.monotonic()
    told: list[str] = []
    with pytest.raises(Terminated):
        run(patience=dc.replace(QUICK, outage=1000), abandon=lambda: told.append("by the shared volume"))
    assert told == ["by the shared volume"]
    assert time.monotonic() - began < 15
    assert "kubectl -n team delete pytorchjobs.kubeflow.org finetune-r1" in caplog.text and JOB.name in fake.jobs
    fake.start()
    fake.set_condition(fake.jobs[JOB.name], "Succeeded")
    monkeypatch.undo()


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pytorchjob, trainjob], ids=["pytorchjob", "trainjob"])
def test_a_job_that_runs_for_too_long_is_ended_though_no_operator_does(fake_kubernetes: Any, kind: Any) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        for name in ("master-0", "worker-0"):
            fake.add_pod(job, name)
        fake.set_condition(job, "Running")

    fake = fake_kubernetes(work)
    with pytest.raises(UserError, match="ran for longer than timeout=2s, so it was deleted"):
        run(dc.replace(JOB, deadline_seconds=2), kind=kind)
    assert fake.jobs == {}


def test_time_before_a_launcher_came_counts_and_time_in_a_queue_does_not(fake_kubernetes: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: None)
    job = fake.create(pytorchjob.render(dc.replace(JOB, deadline_seconds=60)))
    fake.set_condition(job, "Running")
    job["status"]["startTime"] = "2026-01-01T00:00:00Z"
    fake.touch(job)
    with pytest.raises(UserError, match="ran for longer than timeout=60s"):
        run(dc.replace(JOB, deadline_seconds=60))

    def queue(fake: Any, job: dict[str, Any]) -> None:
        fake.set_condition(job, "Suspended")
        time.sleep(3)
        job["status"] = {}
        succeed(fake, job)

    fake.operator = queue
    assert len(run(dc.replace(JOB, deadline_seconds=2))) == 5


@pytest.mark.parametrize("kind", [pytorchjob, trainjob], ids=["pytorchjob", "trainjob"])
def test_a_quiet_job_of_an_hour_costs_two_requests_a_minute_at_most(fake_kubernetes: Any, kind: Any) -> None:
    speed = 600  # an hour in 6 seconds

    def work(fake: Any, job: dict[str, Any]) -> None:
        pods = [fake.add_pod(job, name) for name in ("master-0", "worker-0")]
        fake.set_condition(job, "Running")
        time.sleep(3600 / speed)
        for pod in pods:
            fake.end_pod(pod, 0)
        fake.set_condition(job, "Succeeded" if kind is pytorchjob else "Complete")

    fake = fake_kubernetes(work)
    fake.speed = speed
    own = Patience()
    hour = {
        f.name: getattr(own, f.name) / speed for f in dc.fields(own) if f.name not in ("watch", "outage", "backoff")
    }
    run(kind=kind, patience=Patience(**hour))
    assert 20 < len(fake.requests) <= 120, len(fake.requests)


# -- logs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["+00:00", "+08:00", "-03:30"])
def test_no_line_is_lost_or_said_twice_wherever_the_node_is(fake_kubernetes: Any, zone: str) -> None:
    fake = fake_kubernetes(lambda fake, job: succeed(fake, job, lines=200, pause=0.005))
    fake.zone = zone
    fake.cuts += [3, 50, 120, 121]
    assert run() == [f"step {i}" for i in range(200)]
    assert not fake.cuts


def test_lines_of_one_and_the_same_time_are_all_said(fake_kubernetes: Any) -> None:
    def work(fake: Any, job: dict[str, Any]) -> None:
        master = fake.add_pod(job, "master-0")
        at = time.time_ns()
        fake.logs[master["metadata"]["name"]] += [(at, f"step {i}") for i in range(10)]
        fake.set_condition(job, "Running")
        time.sleep(1)
        fake.end_pod(master, 0)
        fake.set_condition(job, "Succeeded")

    fake = fake_kubernetes(work)
    fake.cuts += [4, 7]
    assert run() == [f"step {i}" for i in range(10)]


def test_a_launcher_that_comes_after_another_goes_on_with_the_log_where_that_one_stopped(
    fake_kubernetes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    seen = tmp_path / "seen.json"
    fake = fake_kubernetes(lambda fake, job: None)
    job = fake.create(pytorchjob.render(JOB))
    master = fake.add_pod(job, "master-0")
    fake.set_condition(job, "Running")
    fake.say(master, *(f"step {i}" for i in range(5)))
    interrupt(monkeypatch, lambda: (time.sleep(0.5), fake.denied.add(("delete", "pytorchjobs"))))
    first: list[str] = []
    with pytest.raises(Terminated):
        cluster.run(Api(patience=QUICK), pytorchjob, JOB, None, cluster.Reports(say=first.append, seen=seen))
    monkeypatch.undo()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    assert first == [f"step {i}" for i in range(5)]
    fake.say(master, *(f"step {i}" for i in range(5, 9)))
    threading.Timer(1, lambda: (fake.end_pod(master, 0), fake.set_condition(job, "Succeeded"))).start()
    assert run(seen=seen) == [f"step {i}" for i in range(5, 9)]


def test_a_time_stamp_is_read_whole() -> None:
    assert nanoseconds("2026-11-29T18:00:00.000000007+08:00") == nanoseconds("2026-11-29T10:00:00Z") + 7
    assert nanoseconds("2026-11-29T10:00:00.5Z") - nanoseconds("2026-11-29T10:00:00.499999999Z") == 1
    with pytest.raises(ValueError, match="is not a time stamp"):
        nanoseconds("yesterday")
