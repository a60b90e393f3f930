"""A distribution that declares a task and a target as entry points adds them where it is installed."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tuneport import targets, tasks
from tuneport.errors import UserError
from tuneport.plugins import plugins
from tuneport.runner.cache import code_digest
from tuneport.targets import local
from tuneport.tasks import token_classification

ROOT = Path(__file__).parents[1]
GROUPS = ("tuneport.tasks", "tuneport.targets")
TARGET = '''
"""Lists the stages of a run."""

from tuneport import Target, UserError


class Listing(Target):
    def compile(self, pipeline, values, request):
        return [node.name for node in pipeline.active(values)]

    def write(self, document, output):
        output.write_text("\\n".join(document))

    def submit(self, document):
        raise UserError(f"--target {self.name}: runs nothing.")
'''
TASK = (
    Path(token_classification.__file__)
    .read_text("utf-8")
    .replace('name = "token_classification"', 'name = "eighth"')
    .replace("token_key", "piece_key")
)
GOOD = {"tuneport.tasks": {"eighth": "extra_pieces.tagging"}, "tuneport.targets": {"listing": "extra_pieces:Listing"}}

Declare = Callable[[Mapping[str, Mapping[str, str]]], Path]


def make_wheel(folder: Path, entry_points: Mapping[str, Mapping[str, str]], name: str = "extra_pieces") -> Path:
    """A wheel with the package of that name, which holds a task and a target."""
    declared = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in of.items()) for group, of in entry_points.items()]
    info = f"{name}-1.5.dist-info"
    files = {
        f"{name}/__init__.py": TARGET,
        f"{name}/tagging.py": TASK,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.5\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join(declared),
    }
    digests = {n: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for n, text in files.items()}
    record = "".join(f"{n},sha256={digest.decode().rstrip('=')},\n" for n, digest in digests.items())
    wheel = folder / f"{name}-1.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip has installed it into."""
    folder = tmp_path_factory.mktemp("plugin")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder / "site"]
    subprocess.run([*pip, make_wheel(folder, GOOD)], check=True)
    return folder / "site"


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Declare]:
    """Unpacks a distribution with these entry points onto the Python path."""

    def unpack(entry_points: Mapping[str, Mapping[str, str]], name: str = "extra_pieces") -> Path:
        zipfile.ZipFile(make_wheel(tmp_path, entry_points, name)).extractall(tmp_path / "site")
        monkeypatch.syspath_prepend(tmp_path / "site")
        return tmp_path / "site"

    yield unpack
    for name in [name for name in sys.modules if name.startswith("extra_pieces")]:
        del sys.modules[name]


def run(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    command = (sys.executable, "-m", *command)
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_they_stand_in_help_schema_stages_and_messages(site: Path, tmp_path: Path) -> None:
    assert "eighth" in run(site, tmp_path, "pipelines", "--help").stdout
    schema = run(site, tmp_path, "pipelines", "schema", "eighth")
    assert "piece_key" in json.loads(schema.stdout)["properties"], schema.stderr
    assert "--piece_key" in run(site, tmp_path, "steps", "preprocess", "--task_name", "eighth", "--help").stdout
    values = ("piece_key=w", "tag_key=t", "train_file_path=rows.jsonl", "pytorch_model_path=model")
    compile_ = ("pipelines", "compile", "eighth", "--target", "listing", *values, "-o", "stages")
    done = run(site, tmp_path, *compile_)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stages").read_text().split()[:2] == ["model_import", "preprocess"]
    refused = run(site, tmp_path, *compile_, "num_nodes_finetune=2")
    assert refused.returncode == 2 and "--target listing has no way to honour it" in refused.stderr


@pytest.mark.slow
def test_the_task_runs_to_its_report_and_its_code_counts_in_the_cache(
    site: Path, tmp_path: Path, tiny_model: Path, write_jsonl: Callable[[Path, Iterable[Any]], Path]
) -> None:
    rows = [{"w": [f"{w}", f"{n}", "cat"], "t": ["W", "N", "C"]} for n in range(20) for w in ("red", "why", "i")]
    done = run(
        site,
        tmp_path,
        *("pipelines", "run", "eighth", f"pytorch_model_path={tiny_model}", "piece_key=w", "tag_key=t"),
        f"train_file_path={write_jsonl(tmp_path / 'rows.jsonl', rows)}",
        *("max_steps=4", "per_device_train_batch_size=8", "--output_dir", "out"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.rglob("report.html")) and list(tmp_path.rglob("MLmodel"))
    record = json.loads((tmp_path / "out" / "preprocess" / "stage.json").read_text("utf-8"))
    assert set(record["code"]) == {"steps", "tuneport", "tuneport.tasks", "extra_pieces"}


def test_a_plugin_of_one_module_counts_in_the_cache_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lonely.py").write_text("x = 1\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert code_digest("lonely") == hashlib.sha256(b"x = 1\n").hexdigest()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("summarization", "there is a 'summarization' already"),
        ("a-b", "has a name that is not an identifier"),
        ("_own", "has a name that is not an identifier"),
    ],
)
def test_a_name_that_is_taken_or_not_an_identifier_is_refused(declare: Declare, name: str, message: str) -> None:
    declare({GROUPS[0]: {name: "extra_pieces.tagging"}})
    with pytest.raises(UserError, match=message):
        tasks.names()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("extra_pieces.none", r"cannot be loaded \(ModuleNotFoundError: No module named 'extra_pieces.none'\)"),
        ("extra_pieces:Eighth", r"cannot be loaded \(AttributeError: .*'Eighth'\)"),
        ("extra_pieces:Listing", "is not a Task"),
        ("extra_pieces", r"cannot be loaded \(TypeError: extra_pieces defines 0 subclasses of Task; expected one\)"),
        ("extra_pieces.tagging", "is a task that calls itself 'eighth'"),
    ],
)
def test_one_that_is_broken_is_refused_with_its_distribution(declare: Declare, value: str, message: str) -> None:
    declare({GROUPS[0]: {"ninth": value}})
    assert "ninth" in tasks.names()
    said = re.escape(f"extra-pieces 1.5: its entry point ninth = {value} of tuneport.tasks ")
    with pytest.raises(
        UserError, match=rf"^{said}{message}\. Ask its authors for a version that fits, or uninstall it\."
    ):
        tasks.load("ninth")


def test_a_refusal_ends_the_command_with_one_message(declare: Declare, tmp_path: Path) -> None:
    site = declare({GROUPS[0]: {"ninth": "extra_pieces.none"}})
    assert run(site, tmp_path, "pipelines", "--help").returncode == 0
    done = run(site, tmp_path, "pipelines", "run", "ninth", "--help")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: extra-pieces 1.5: its entry point ninth ")
    taken = run(declare({GROUPS[1]: {"local": "extra_pieces:Listing"}}), tmp_path, "pipelines", "--help")
    assert taken.returncode == 2 and "there is a 'local' already" in taken.stderr


def test_two_distributions_cannot_give_one_name(declare: Declare) -> None:
    declare(GOOD)
    declare(GOOD, "other_pieces")
    with pytest.raises(UserError, match=r"has the name of one of (extra|other)-pieces 1.5"):
        plugins("tuneport.tasks", ())


def test_what_is_found_is_what_importlib_finds(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    for group in GROUPS:
        ours = {name: plugin.value for name, plugin in plugins(group, ()).items()}
        assert ours == {found.name: found.value for found in metadata.entry_points(group=group)} == GOOD[group]


def test_the_newer_of_two_versions_counts_where_its_folder_stands_first(declare: Declare, tmp_path: Path) -> None:
    site = declare(GOOD)
    older = tmp_path / "older" / "Extra.Pieces-1.0.dist-info"
    older.mkdir(parents=True)
    (older / "entry_points.txt").write_text("[tuneport.tasks]\ngone = extra_pieces.gone\n", "utf-8")
    sys.path.append(str(older.parent))
    try:
        assert set(plugins("tuneport.tasks", ())) == {"eighth"}
    finally:
        sys.path.remove(str(older.parent))
    assert site.is_dir()


def test_a_target_knows_its_name() -> None:
    assert targets.load("local").name == "local" and isinstance(targets.load("local"), local.Local)
