"""Running one step: whole outputs or none, and never anybody else's folder."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tuneport.artifacts import INCOMPLETE, Dataset, File, Model, read_manifest, verify, write_manifest
from tuneport.digests import sha256
from tuneport.errors import UserError
from tuneport.stage import execute
from tuneport.step import Context, Step, consumes, param, produces


class Copy(Step):
    """Copy a text."""

    data: Dataset = consumes("Text.")
    extra: File | None = consumes("More text.")
    then: str = param("What happens after writing.", default="")
    text: str = param("Text.", default="new")
    model: Model = produces("Copy.")
    second: Dataset = produces("Copy.")

    def run(self) -> None:
        (self.model.path / "model.txt").write_text(self.text)
        (self.model.path / "checkpoints" / "1").mkdir(parents=True)
        (self.model.path / "checkpoints" / "1" / "weights").write_text(self.text)
        if self.then == "fail":
            raise RuntimeError("a defect")
        if self.then == "refuse":
            raise UserError("no")
        if self.then == "interrupt":
            raise KeyboardInterrupt
        if self.then == "read-only":  # what a write to a read-only mount raises
            raise OSError(errno.EROFS, "Read-only file system", str(self.data.path / "rows.txt"))
        if self.then == "nothing more":
            return
        (self.second.path / "second.txt").write_text(self.text)


class CopyWithCheckpoints(Copy):
    """Copy a text; what is kept outlives a failure."""

    keeps_on_failure = ("checkpoints",)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = Dataset(tmp_path / "data")
    data.path.mkdir()
    (data.path / "rows.txt").write_text("rows")
    write_manifest(data, "prepare", "1", {}, {})
    return data.path


def copy(data: Path, kind: type[Copy] = Copy, **values: str) -> Copy:
    out = data.parent / "out"
    return kind(data=data, model=out / "model", second=out / "second", **values)


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_outputs_are_sealed_with_parameters_and_lineage(data: Path) -> None:
    extra = data.parent / "extra.txt"
    extra.write_text("e")
    step = copy(data, extra=str(extra))
    execute(step)
    verify(step.model)
    manifest = read_manifest(step.second)
    assert manifest["type"] == "Dataset"
    assert manifest["producer"]["step"] == "copy"
    assert manifest["parameters"] == {"then": "", "text": "new"}
    assert manifest["inputs"]["data"] == sha256(data / "manifest.json")
    assert len(manifest["inputs"]["extra"]) == 64
    assert tree(data.parent / "out") == [
        "model", "model/checkpoints", "model/checkpoints/1", "model/checkpoints/1/weights", "model/manifest.json",
        "model/model.txt", "second", "second/manifest.json", "second/second.txt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("then", "error"), [("fail", RuntimeError), ("refuse", UserError), ("interrupt", KeyboardInterrupt)]
)
def test_a_failing_step_leaves_no_output(data: Path, then: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        execute(copy(data, then=then))
    assert tree(data.parent / "out") == []


def test_a_step_that_fills_only_one_of_its_outputs_has_failed_and_leaves_neither(data: Path) -> None:
    with pytest.raises(RuntimeError, match="copy wrote nothing to"):
        execute(copy(data, then="nothing more"))
    assert tree(data.parent / "out") == []


def test_what_a_step_keeps_on_failure_stays_marked_as_no_artifact(data: Path) -> None:
    step = copy(data, CopyWithCheckpoints, then="fail")
    with pytest.raises(RuntimeError):
        execute(step)
    kept = list((data.parent / "out").rglob("weights"))
    assert [p.read_text() for p in kept] == ["new"]
    assert (kept[0].parent.parent.parent / INCOMPLETE).exists()
    assert not list((data.parent / "out").rglob("model.txt"))
    with pytest.raises(UserError):
        verify(step.model)


def test_a_run_after_a_failed_one_that_kept_something_succeeds(data: Path) -> None:
    with pytest.raises(RuntimeError):
        execute(copy(data, CopyWithCheckpoints, then="fail"))
    step = copy(data, CopyWithCheckpoints)
    execute(step)
    verify(step.model)
    assert not [p for p in tree(data.parent / "out") if ".partial" in p or INCOMPLETE in p]


def test_an_older_output_is_replaced_by_a_whole_new_one(data: Path) -> None:
    execute(copy(data, text="old"))
    execute(copy(data, text="new"))
    out = data.parent / "out"
    assert (out / "model" / "model.txt").read_text() == "new"
    assert not [p for p in tree(out) if p.startswith(".")]


@pytest.mark.parametrize("then", ["fail", "nothing more"])
def test_an_older_output_stands_when_the_new_run_fails(data: Path, then: str) -> None:
    execute(copy(data, text="old"))
    before = tree(data.parent / "out")
    step = copy(data, then=then)
    with pytest.raises(RuntimeError):
        execute(step)
    verify(step.model)
    assert (data.parent / "out" / "model" / "model.txt").read_text() == "old"
    assert tree(data.parent / "out") == before


def test_somebody_elses_folder_is_refused_and_left_alone(data: Path) -> None:
    mine = data.parent / "out" / "model" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no Model of an earlier run"):
        execute(copy(data))
    assert mine.read_text() == "years of work"


def test_an_output_of_another_type_is_not_overwritten(data: Path) -> None:
    shutil.copytree(data, data.parent / "out" / "model")
    with pytest.raises(UserError, match="holds no Model of an earlier run"):
        execute(copy(data))
    verify(Dataset(data.parent / "out" / "model"))


def test_a_file_where_an_output_should_go_is_refused(data: Path) -> None:
    (data.parent / "out").mkdir()
    (data.parent / "out" / "model").write_text("x")
    with pytest.raises(UserError, match="is a file; expected a folder to write a Model to"):
        execute(copy(data))


def test_an_empty_folder_is_a_fine_place_for_an_output(data: Path) -> None:
    (data.parent / "out" / "model").mkdir(parents=True)
    execute(copy(data))
    verify(Model(data.parent / "out" / "model"))


def test_an_altered_input_is_refused_before_the_step_runs(data: Path) -> None:
    (data / "rows.txt").write_text("sows")
    with pytest.raises(UserError, match=r"rows\.txt: was altered after it was written"):
        execute(copy(data))
    assert not (data.parent / "out").exists()


def test_an_output_without_a_path_is_asked_for(data: Path) -> None:
    with pytest.raises(UserError, match="second: is required by copy; expected a path to write to"):
        execute(Copy(data=data, model=data.parent / "m"))


def test_an_output_in_a_place_that_cannot_be_written_to_is_the_users_mistake(data: Path) -> None:
    (data.parent / "out").write_text("a file")
    with pytest.raises(UserError, match="out"):
        execute(copy(data))


FILL = '''
import sys
from pathlib import Path
from tuneport.artifacts import Model
from tuneport.errors import UserError
from tuneport.stage import execute
from tuneport.step import Step, produces

class Fill(Step):
    """Fill the disk."""
    keeps_on_failure = ("checkpoints",) if sys.argv[2] == "keeps" else ()
    model: Model = produces("Model.")
    def run(self):
        (self.model.path / "checkpoints").mkdir()
        with (self.model.path / "checkpoints" / "weights").open("wb") as f:
            for _ in range(100):
                f.write(bytes(100_000))

out = Path(sys.argv[1])
try:
    execute(Fill(model=out / "model"))
except UserError as e:
    print(e)
print("left:", sorted(p.name for p in out.rglob("*")))
'''


@pytest.mark.parametrize(
    ("keeps", "left"), [("", "[]"), ("keeps", "['.incomplete', '.model.partial', 'checkpoints', 'weights']")]
)
def test_a_full_disk_is_named_and_leaves_no_output(tmp_path: Path, keeps: str, left: str) -> None:
    namespaces = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--user", "--map-root-user"])
    if (
        not shutil.which("unshare")
        or subprocess.run([*namespaces, "mount", "-t", "tmpfs", "x", tmp_path], check=False).returncode
    ):
        pytest.skip("this system does not let a test mount a small disk")
    script = 'mount -t tmpfs -o size=1m small "$0" && exec "$@"'
    result = subprocess.run(
        [*namespaces, "sh", "-c", script, tmp_path, sys.executable, "-c", FILL, tmp_path, keeps],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    message, rest = result.stdout.splitlines()
    assert f"{tmp_path}/model: the disk is full (" in message
    assert "fill could not go on. Free some space, write to another disk" in message
    assert rest == f"left: {left}"


SLEEP = (
    FILL.split("        (self.model", maxsplit=1)[0]
    + """
        (self.model.path / "x").touch()
        print("started", flush=True)
        import time
        time.sleep(60)

execute(Fill(model=Path(sys.argv[1]) / "model"))
"""
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_unwinds_a_running_step_and_leaves_no_output(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEP, tmp_path, ""], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(timeout=20) != 0
    assert list(tmp_path.rglob("*")) == []


class CopyThatResumes(CopyWithCheckpoints):
    """Copy a text; go on from what an earlier run left."""

    def resumes(self) -> bool:
        return True

    def run(self) -> None:
        found = self.model.path / "checkpoints" / "1" / "weights"
        (self.model.path / "found.txt").write_text(found.read_text() if found.exists() else "nothing")
        shutil.rmtree(self.model.path / "checkpoints", ignore_errors=True)
        super().run()


def test_a_step_that_resumes_finds_what_a_failed_run_left(data: Path) -> None:
    with pytest.raises(RuntimeError):
        execute(copy(data, CopyWithCheckpoints, then="fail", text="old"))
    step = copy(data, CopyThatResumes)
    execute(step)
    assert (step.model.path / "found.txt").read_text() == "old"


def test_a_step_that_resumes_finds_what_a_finished_run_wrote_and_leaves_it_alone(data: Path) -> None:
    execute(copy(data, text="old"))
    with pytest.raises(RuntimeError):
        execute(copy(data, CopyThatResumes, then="fail", text="new"))
    finished = copy(data).model
    verify(finished)
    assert (finished.path / "checkpoints" / "1" / "weights").read_text() == "old"


def test_a_change_of_a_read_only_input_is_named_and_leaves_nothing(data: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.txt: cannot be changed, as data is a read-only input of copy"):
        execute(copy(data, then="read-only"))
    assert not (data.parent / "out").exists() or not any((data.parent / "out").iterdir())


class Assist(Copy):
    """What another process than rank 0 does: nothing that is written."""

    def run(self) -> None: ...


@pytest.mark.parametrize(("store", "left"), [(None, True), ("s3://runs/checkpoints", False)])
def test_beside_rank_0_an_earlier_output_goes_only_from_a_disk_that_no_other_machine_writes_to(
    store: str | None, left: bool, data: Path, tmp_path: Path
) -> None:
    outputs = {"model": Model(tmp_path / "model"), "second": Dataset(tmp_path / "second")}
    execute(Copy(data=data, **outputs))
    step = Assist(data=data, **outputs)
    step.context = Context(rank=1, local_rank=0, world_size=2, checkpoint_store=store)
    execute(step)
    assert (tmp_path / "model" / "manifest.json").is_file() == left


def test_a_full_disk_of_another_machine_than_rank_0_s_is_named_there(data: Path, tmp_path: Path) -> None:
    class Full(Assist):
        """What reads a checkpoint there, whose disk is full: such a one cannot be had here."""

        def run(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    step = Full(data=data, model=Model(tmp_path / "model"), second=Dataset(tmp_path / "second"))
    step.context = Context(rank=1, local_rank=0, world_size=2)
    with pytest.raises(UserError, match=r"model: the disk is full \(\d+ MB free\) and full could not go on"):
        execute(step)
