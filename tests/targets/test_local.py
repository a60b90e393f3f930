"""The local target, run for real on a pipeline of three tiny stages."""

import importlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.toy_command import Toy
from tuneport.artifacts import Dataset, Report
from tuneport.errors import UserError
from tuneport.graph import Pipeline
from tuneport.runner.request import Request
from tuneport.runner.run import Plan, Stage, default_tracking_uri
from tuneport.targets import load, names


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "a folder")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A run that ended well; tests with it leave its outputs as they are."""
    toy = Toy(tmp_path_factory.mktemp("finished"))
    assert toy.run().returncode == 0
    return toy


def counted(toy: Toy) -> str:
    return (toy.output / "count" / "counted" / "text.txt").read_text()


# -- the document ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """The toy pipeline, traced in this process."""
    toy = Toy(tmp_path_factory.mktemp("imported"))
    sys.path.insert(0, str(toy.package.parent))
    yield importlib.import_module("toy.tuneport_toy").load("toy")
    sys.path.remove(str(toy.package.parent))


Compile = Callable[..., Plan]


@pytest.fixture
def plan(pipeline: Pipeline) -> Compile:
    def compiled(environment: dict[str, str] | None = None, **values: object) -> Plan:
        request = Request(output_dir=Path("/runs/1"), folder=Path("/home/me"), environment=environment or {})
        return load("local").compile(pipeline, pipeline.resolve({"text": "/data/t.txt", **values}), request)

    return compiled


def test_compiling_gives_the_stages_commands_and_touches_nothing(plan: Compile) -> None:
    suffix = 'it\'s \\ a "label"\n ünï'
    document = plan(suffix=suffix, deaf="True", pause=2)
    shout, count = document.stages
    assert shout.argv[:5] == (sys.executable, "-P", "-m", "toy", "shout")
    assert flags(shout) == {
        "--text": "/data/t.txt",
        "--suffix": suffix,
        "--mark": "!",
        "--trailing": "",
        "--shouted": "/runs/1/shout/shouted",
    }
    assert flags(count)["--shouted"] == "/runs/1/shout/shouted"
    assert flags(count)["--deaf"] == "true"
    assert flags(count)["--pause"] == "2.0"
    assert count.inputs == {"shouted": Dataset(Path("/runs/1/shout/shouted"))}
    assert count.log == Path("/runs/1/logs/count.log")
    assert document.outputs == {"counted": Report(Path("/runs/1/count/counted"))}
    assert not Path("/runs").exists()


def flags(stage: Stage) -> dict[str, str]:
    return dict(zip(stage.argv[5::2], stage.argv[6::2], strict=True))


def test_equal_requests_compile_to_equal_documents(plan: Compile) -> None:
    assert plan(pause=0.5) == plan(pause="0.5")
    assert plan(pause=0.5) != plan(pause=0.25)


def test_stages_get_mlflows_default_store_and_no_hub_but_where_a_stage_says_so(plan: Compile) -> None:
    shout, _, publish = plan(name_to_publish="x").stages
    assert shout.environment["MLFLOW_TRACKING_URI"] == "sqlite:////home/me/mlflow.db"
    assert shout.environment["MLFLOW_EXPERIMENT_NAME"] == "toy"
    assert shout.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert shout.environment["PYTHONUNBUFFERED"] == "1"
    assert shout.environment["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in publish.environment


def test_the_users_own_variables_win(plan: Compile) -> None:
    surroundings = {"MLFLOW_TRACKING_URI": "http://x", "MLFLOW_EXPERIMENT_NAME": "mine", "OMP_WAIT_POLICY": "ACTIVE"}
    document = plan(surroundings)
    assert not surroundings.keys() & document.stages[1].environment.keys()
    assert document.tracking_uri == "http://x"
    assert document.stages[1].step.context.tracking_uri == "http://x"


def test_a_folder_that_no_sqlite_uri_can_name_gets_a_relative_one() -> None:
    assert default_tracking_uri(Path("/a b/ü")) == "sqlite:////a b/ü/mlflow.db"
    assert default_tracking_uri(Path("/50%/a?b#c")) == "sqlite:///mlflow.db"


def test_the_targets_that_there_are_are_named_when_another_is_asked_for() -> None:
    assert "local" in names()
    with pytest.raises(UserError, match=r"unknown target 'locale'; there are: .*local.* Did you mean 'local'\?"):
        load("locale")


# -- a run -------------------------------------------------------------------------------------------------------------


def test_stages_run_in_order_and_their_outputs_are_named_at_the_end(toy: Toy) -> None:
    result = toy.run("suffix=, you ")
    assert result.returncode == 0, result.stderr
    assert list(toy.states(result).items()) == [("shout", "done"), ("count", "done")]
    assert counted(toy) == "0 HELLO, you !\n1 HELLO, you !\n"
    assert re.search(r"^count \| .*\[2/2\] written, offline=1$", result.stdout, re.MULTILINE)
    assert f"  counted: The repeated text.\n    {toy.output}/count/counted\n" in result.stdout
    assert (
        f"MLFLOW_DISABLE_TELEMETRY=true mlflow ui --backend-store-uri 'sqlite:///{toy.folder}/mlflow.db' --port 5000"
        in result.stdout
    )
    log = (toy.output / "logs" / "count.log").read_text()
    assert log.startswith("$ ")
    assert "[2/2] written" in log


def test_an_optional_stage_runs_when_it_is_given_its_value_and_is_never_taken_from_the_cache(toy: Toy) -> None:
    first, second = toy.run("name_to_publish=x"), toy.run("name_to_publish=x")
    assert toy.states(first) == {"shout": "done", "count": "done", "publish": "done"}
    assert toy.states(second) == {"shout": "cached", "count": "cached", "publish": "done"}


def test_a_mistake_in_any_stages_files_shows_before_the_first_stage_runs(toy: Toy) -> None:
    toy.text.unlink()
    result = toy.run()
    assert result.returncode == 2
    assert result.stderr == f"error: text={toy.text}: there is no such file.\n"
    assert not toy.output.exists()


def test_an_unwritable_place_for_the_outputs_is_the_users_mistake(toy: Toy) -> None:
    result = toy.run("--output_dir", "text.txt/x")
    assert result.returncode == 2
    assert "text.txt/x: cannot be written to (Not a directory). Name another folder with --output_dir." in result.stderr


def test_a_folder_here_that_is_called_like_a_library_is_not_imported(toy: Toy) -> None:
    (toy.folder / "pydantic.py").write_text("raise SystemExit('wrong module')")
    result = subprocess.run(
        [sys.executable, "-P", *toy.command("run", "toy", "text=text.txt")[1:]],
        cwd=toy.folder,
        env=toy.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_second_run_finds_everything_done(finished: Toy) -> None:
    assert finished.states(finished.run()) == {"shout": "cached", "count": "cached"}


def test_a_changed_parameter_reruns_its_stage_and_says_which_it_was(toy: Toy) -> None:
    toy.run()
    result = toy.run("times=3")
    assert toy.states(result) == {"shout": "cached", "count": "done"}
    assert "count | running (changed: parameter times)" in result.stdout
    assert counted(toy).count("HELLO") == 3


def test_a_changed_input_reruns_what_depends_on_it(toy: Toy) -> None:
    toy.run()
    toy.text.write_text("other")
    result = toy.run()
    assert toy.states(result) == {"shout": "done", "count": "done"}
    assert "shout | running (changed: input text)" in result.stdout
    assert counted(toy) == "0 OTHER!\n1 OTHER!\n"


def test_a_changed_line_of_code_reruns_the_stages(toy: Toy) -> None:
    toy.run()
    source = toy.package / "shout.py"
    source.write_text(source.read_text().replace('or ""', 'or " "'))
    result = toy.run()
    assert toy.states(result) == {"shout": "done", "count": "done"}
    assert "running (changed: code toy)" in result.stdout
    assert counted(toy) == "0 HELLO !\n1 HELLO !\n"


def test_a_file_that_was_altered_without_changing_its_size_reruns_the_stage(toy: Toy) -> None:
    toy.run()
    text = toy.output / "shout" / "shouted" / "text.txt"
    text.write_text("JELLO!")
    result = toy.run()
    assert toy.states(result) == {"shout": "done", "count": "cached"}
    assert text.read_text() == "HELLO!"


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest", "record"])
def test_a_damaged_result_is_made_again(toy: Toy, damage: str) -> None:
    toy.run()
    folder = toy.output / "count"
    if damage == "truncate":
        os.truncate(folder / "counted" / "text.txt", 3)
    elif damage == "remove":
        (folder / "counted" / "text.txt").unlink()
    elif damage == "manifest":
        (folder / "counted" / "manifest.json").write_text("{")
    else:
        (folder / "stage.json").write_text("[]")
    assert toy.states(toy.run()) == {"shout": "cached", "count": "failed" if damage == "manifest" else "done"}


def test_a_parameter_that_is_tried_and_fails_leaves_the_earlier_result_in_place(toy: Toy) -> None:
    toy.run()
    assert toy.run("fail=bug").returncode == 1
    assert toy.states(toy.run()) == {"shout": "cached", "count": "cached"}


# -- --from ------------------------------------------------------------------------------------------------------------


def test_from_a_stage_reuses_what_is_before_it_and_reruns_the_rest(toy: Toy) -> None:
    toy.run()
    toy.text.write_text("not read again")
    result = toy.run("--from", "count")
    assert toy.states(result) == {"shout": "reused", "count": "done"}
    assert counted(toy) == "0 HELLO!\n1 HELLO!\n"


def test_from_a_stage_refuses_where_an_earlier_output_is_absent_or_damaged(toy: Toy) -> None:
    result = toy.run("--from", "count")
    assert result.returncode == 2
    assert "--from needs what shout wrote earlier." in result.stderr
    assert f"{toy.output}/shout/shouted: no such folder" in result.stderr
    toy.run()
    os.truncate(toy.output / "shout" / "shouted" / "text.txt", 1)
    result = toy.run("--from", "count")
    assert result.returncode == 2
    assert "text.txt: has 1 bytes, its manifest says 6" in result.stderr


def test_from_refuses_a_stage_that_is_unknown_or_does_not_run(toy: Toy) -> None:
    unknown, inactive = toy.run("--from", "cuont"), toy.run("--from", "publish")
    assert (unknown.returncode, inactive.returncode) == (2, 2)
    assert "--from cuont: unknown stage; there are: shout, count. Did you mean 'count'?" in unknown.stderr
    assert "--from publish: this stage does not run, as name_to_publish has no value." in inactive.stderr


# -- failure -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("user", 2, ["error: fail='user': not valid; expected peace.", "Try again."]),
        ("bug", 1, ["RuntimeError: a defect"]),
        ("exit", 7, ["exit code 7"]),
        ("killed", 137, ["killed by signal 9", "ran out of memory"]),
    ],
)
def test_a_failing_stage_gives_its_exit_code_its_last_words_and_the_way_on(
    toy: Toy, how: str, code: int, words: list[str]
) -> None:
    result = toy.run(f"fail={how}")
    assert result.returncode == code
    assert toy.states(result) == {"shout": "done", "count": "failed"}
    again = f"tuneport run toy text=text.txt fail={how} --output_dir runs/toy --from count"
    for word in [*words, f"{toy.output}/logs/count.log", again]:
        assert word in result.stderr
    assert not (toy.output / "count" / "counted").exists()
    assert toy.states(toy.run()) == {"shout": "cached", "count": "done"}


# -- being stopped -----------------------------------------------------------------------------------------------------


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while not path.is_file() or text not in path.read_text():
        assert time.monotonic() < deadline, f"{path} does not show {text}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_stopped_run_stops_its_stage_keeps_what_is_done_and_goes_on_with_the_same_command(
    toy: Toy, number: int, code: int, word: str
) -> None:
    process = toy.start("pause=60")
    wait_for(toy.output / "logs" / "count.log", "[2/2]")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert f"{word} in count. To go on, repeat the same command" in stderr
    assert "tuneport run toy text=text.txt pause=60" in stderr
    assert "Traceback" not in stdout + stderr
    assert [p.name for p in (toy.output / "count").iterdir()] == []
    assert toy.states(toy.run()) == {"shout": "cached", "count": "done"}


def test_ctrl_c_asks_a_stage_to_stop_once_and_kills_it_the_second_time(toy: Toy) -> None:
    process = toy.start("pause=60", "deaf=true")
    wait_for(toy.output / "logs" / "count.log", "[2/2]")
    process.send_signal(signal.SIGINT)
    wait_for(toy.notes, "asked to stop")
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert toy.notes.read_text() == "asked to stop\n"


def test_ctrl_c_at_a_terminal_reaches_the_stage_exactly_once_and_the_table_shows_every_stage(toy: Toy) -> None:
    pid, main = pty.fork()
    if pid == 0:
        os.chdir(toy.folder)
        command = toy.command("run", "toy", "text=text.txt", "pause=60", "times=40", "--output_dir", "runs/toy")
        os.execve(sys.executable, command, toy.environment(TERM="xterm", COLUMNS="120"))
    wait_for(toy.output / "logs" / "count.log", "[40/40]")
    time.sleep(0.6)
    os.write(main, b"\x03")
    seen = read_all(main)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert toy.notes.read_text() == "asked to stop\n"
    assert re.search(r"shout\s+.*done", seen)
    assert re.search(r"count\s+.*running.*40/40", seen)
    assert "written, offline=1" in seen
    assert "━" in seen
    assert "interrupted in count. To go on, repeat the same command" in seen


def read_all(descriptor: int) -> str:
    """All that a terminal shows until its last writer is gone."""
    seen = b""
    while select.select([descriptor], [], [], 20)[0]:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    return seen.decode(errors="replace")


def test_two_runs_do_not_share_a_folder(toy: Toy) -> None:
    first = toy.start("pause=60")
    wait_for(toy.output / "logs" / "count.log", "[2/2]")
    second = toy.run()
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=20)
    assert second.returncode == 2
    assert f"another run (process {first.pid}) is using this folder" in second.stderr
    assert toy.run().returncode == 0


def stage_of(output: Path) -> int:
    """The process of the stage that runs."""
    return int((output / ".lock").read_text().split()[1])


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_a_stage_stops_when_its_run_is_killed_and_the_same_command_goes_on(toy: Toy) -> None:
    first = toy.start("pause=60")
    wait_for(toy.output / "logs" / "count.log", "[2/2]")
    stage = stage_of(toy.output)
    first.kill()
    first.communicate(timeout=20)
    deadline = time.monotonic() + 30
    while is_there(stage):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    again = toy.run()
    assert again.returncode == 0, again.stderr
    assert toy.states(again) == {"shout": "cached", "count": "done"}


def test_a_stage_that_outlives_its_killed_run_keeps_others_out_and_is_named(toy: Toy) -> None:
    first = toy.start("pause=60", "deaf=true")
    wait_for(toy.output / "logs" / "count.log", "[2/2]")
    stage = stage_of(toy.output)
    first.kill()
    first.communicate(timeout=20)
    assert f"another run (process {stage}) is using this folder" in toy.run().stderr
    os.kill(stage, signal.SIGKILL)


def test_a_reader_of_the_output_who_goes_away_does_not_stop_the_run(toy: Toy) -> None:
    process = toy.start("times=1000")
    assert process.stdout
    process.stdout.close()
    process.wait(timeout=30)
    assert json.loads((toy.output / "count" / "stage.json").read_text())["parameters"]["times"] == 1000


def test_a_stage_whose_effect_beyond_its_outputs_is_lost_runs_again(toy: Toy) -> None:
    source = toy.package / "count.py"
    lost = (
        '\n    def lost_effect(self):\n        return "its upload is gone" * Path(os.environ["TOY_NOTES"]).exists()\n'
    )
    source.write_text(source.read_text() + lost)
    assert toy.run().returncode == 0
    assert toy.states(toy.run())["count"] == "cached"
    toy.notes.touch()
    again = toy.run()
    assert "count | running (its upload is gone)" in again.stdout
    assert toy.states(again) == {"shout": "cached", "count": "done"}
