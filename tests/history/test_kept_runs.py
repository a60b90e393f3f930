"""Runs are kept under names, an interrupted one goes on, what is done is shared, and nothing is overwritten unasked."""

import fcntl
import functools
import json
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.toy_command import Toy
from tuneport.history import kept_runs, run_names
from tuneport.runner import run as run_module
from tuneport.runner import run_record


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "desk")


def kept(toy: Toy) -> list[kept_runs.KeptRun]:
    return list(kept_runs.listed(toy.folder / "runs"))


def run(toy: Toy, *arguments: str):  # type: ignore[no-untyped-def]
    return toy("run", "toy", "text=text.txt", *arguments)


def test_each_run_has_a_folder_of_its_own_and_latest_names_the_newest(toy: Toy) -> None:
    assert run(toy).returncode == 0
    (first,) = kept(toy)
    assert run_names.NAME.fullmatch(first.name) and first.name.endswith("-1")
    assert run(toy, "times=3").returncode == 0
    second, _ = kept(toy)
    assert second.name.endswith("-2")
    latest = toy.folder / "runs" / "toy" / "latest"
    assert latest.resolve() == second.folder
    assert (first.folder / "count/counted/text.txt").read_text() != (latest / "count/counted/text.txt").read_text()
    assert first.record.status == second.record.status == "finished"
    assert second.record.values == {"text": str(toy.text), "times": 3}


def test_what_another_run_has_done_is_linked_and_stays_when_that_one_is_removed(toy: Toy) -> None:
    toy.text.write_text("x" * 2_000_000)
    run(toy, "--name", "first")
    done = run(toy, "--name", "second", "times=3")
    assert toy.states(done) == {"shout": "cached", "count": "done"}
    assert "shout | cached (from first)" in done.stdout
    texts = [toy.folder / "runs" / "toy" / name / "shout" / "shouted" / "text.txt" for name in ("first", "second")]
    assert texts[0].stat().st_ino == texts[1].stat().st_ino
    assert toy("runs", "rm", "first", "--yes").returncode == 0
    assert not texts[0].exists() and texts[1].read_text().startswith("XX")
    assert toy("verify", "runs/toy/second").returncode == 0
    assert toy.states(run(toy, "--name", "second", "--force", "times=3")) == {"shout": "cached", "count": "cached"}
    assert (toy.folder / "runs" / "toy" / "second" / "logs" / "shout.log").is_file()


def test_a_finished_run_is_not_overwritten_unless_that_is_asked_for(toy: Toy) -> None:
    run(toy, "--name", "mine")
    before = (toy.folder / "runs/toy/mine/count/counted/text.txt").read_text()
    refused = run(toy, "--name", "mine", "times=3")
    assert refused.returncode == 2
    assert "runs/toy/mine: a run with other values, which has finished, is there, and it is not" in refused.stderr
    assert (toy.folder / "runs/toy/mine/count/counted/text.txt").read_text() == before
    assert run(toy, "--name", "mine", "times=3", "--force").returncode == 0
    assert (toy.folder / "runs/toy/mine/count/counted/text.txt").read_text() != before
    assert "none is named" in run(toy, "--force").stderr
    for name in ("latest", "../x", ""):
        assert "--name" in run(toy, "--name", name).stderr
    assert "leave out --name" in run(toy, "--name", "a", "--output_dir", "b").stderr


def test_the_same_command_goes_on_with_a_run_that_was_killed_and_another_gets_its_own(toy: Toy) -> None:
    first = toy.start("pause=60", "--name", "killed")
    folder = toy.folder / "runs" / "toy" / "killed"
    until(lambda: (folder / "logs" / "count.log").is_file() and "[2/2]" in (folder / "logs" / "count.log").read_text())
    busy = run(toy, "pause=60")
    assert busy.returncode == 2 and f"{folder}: a run with the same values is at work there" in busy.stderr
    first.kill()
    first.communicate(timeout=20)
    until(lambda: not run_record.is_locked(folder))
    assert [found.record.status for found in kept(toy)] == ["stopped"]
    assert run(toy, "pause=0.5").returncode == 0, "another configuration, another run"
    second = toy.start("pause=60", "--name", "killed")
    until(lambda: run_record.is_locked(folder))
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=20)
    assert len(kept(toy)) == 2
    record = run_record.read(folder)
    assert record is not None and record.status == "stopped"


def until(condition: object) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_failed_run_goes_on_in_its_folder_when_its_cause_is_mended(toy: Toy) -> None:
    source = toy.package / "count.py"
    text = source.read_text()
    source.write_text(text.replace("        if self.deaf:\n", "        raise RuntimeError\n", 1))
    assert run(toy).returncode == 1
    source.write_text(text)
    assert run(toy).returncode == 0
    (only,) = kept(toy)
    assert only.record.status == "finished"
    assert toy.states(run(toy)) == {"shout": "cached", "count": "cached"}
    assert len(kept(toy)) == 2, "a finished run is left as it is"


def test_from_a_stage_takes_what_is_before_it_from_the_newest_run(toy: Toy) -> None:
    run(toy, "--name", "first")
    toy.text.write_text("not read again")
    done = run(toy, "--name", "second", "times=3", "--from", "count")
    assert toy.states(done) == {"shout": "reused", "count": "done"}
    assert "shout | reused (from first)" in done.stdout
    assert (toy.folder / "runs/toy/second/count/counted/text.txt").read_text().startswith("0 HELLO!")


def test_a_run_starts_while_somebody_looks_whether_one_is_at_work(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open("rb") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        threading.Timer(0.06, lambda: fcntl.flock(looked_at, fcntl.LOCK_UN)).start()
        with run_module._locked(tmp_path):
            assert run_record.is_locked(tmp_path)


def test_runs_are_listed_shown_and_removed_and_latest_follows(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.__main__ import command

    def said(*arguments: str) -> str:
        code = command(("runs", "--root", str(toy.folder / "runs"), *arguments))
        found = capsys.readouterr()
        return found.out if code == 0 else found.err

    run(toy, "--name", "one")
    run(toy, "--name", "two", "times=3")
    assert [found["name"] for found in json.loads(said("list", "--json"))] == ["two", "one"]
    assert "toy/one" in said("list", "toy") and "no runs in" in said("list", "other")
    shown = said("show", "latest")
    assert "toy/two: finished" in shown and "times  3" in shown
    compared = json.loads(said("compare", "one", "toy/two", "--json"))
    assert compared["parameters"] == {"times": [2, 3]}
    (digests,) = compared["data"].values()
    assert digests[0] == digests[1]
    assert "has no report; the run has finished" in said("open", "one")
    assert "no such run" in said("show", "tow") and "Did you mean 'two'?" in said("show", "tow")
    assert "--yes: is required" in said("rm", "two")
    assert "deleted" in said("rm", "latest", "--yes")
    assert (toy.folder / "runs" / "toy" / "latest").resolve().name == "one"


def test_a_resume_with_other_values_says_that_it_starts_at_the_beginning(tmp_path: Path) -> None:
    import pipelines

    pipeline = pipelines.load("text_classification")
    given = {"huggingface_id": "a/b", "train_file_path": "rows.jsonl", "sentence1_key": "text", "label_key": "label"}
    values = pipeline.resolve(given)
    resuming = pipeline.resolve({**given, "resume_from_checkpoint": "true"})
    other = pipeline.resolve({**given, "num_train_epochs": 7, "resume_from_checkpoint": "true"})
    assert run_record.configuration(pipeline, values) == run_record.configuration(pipeline, resuming)
    said: list[str] = []
    folder_of = functools.partial(run_names.folder_of, pipeline, runs=tmp_path, say=said.append)
    assert folder_of(resuming).parent == tmp_path and not said, "there is no run at all"
    (tmp_path / "one").mkdir()
    run_record.begun(tmp_path / "one", run_record.record_of(pipeline, values))
    assert folder_of(resuming) == tmp_path / "one" and not said
    assert folder_of(other) not in (tmp_path / "one", tmp_path)
    assert "so this one starts at the beginning" in said[0] and "--name one --force" in said[0]


def test_a_run_that_is_sent_elsewhere_has_no_place_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.__main__ import command

    monkeypatch.chdir(tmp_path)
    given = ["run", "text_classification", "sentence1_key=text", "label_key=label", "train_file_path=s3://a/b.jsonl"]
    assert command([*given, "huggingface_id=a/b", "--target", "kfp", "--name", "mine"]) == 2
    assert "error: --name: is of runs on this machine, and --target kfp sends them." in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
