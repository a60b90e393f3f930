"""axe-core finds nothing serious in the pages that are written for people, in light and in dark colours.

axe-core comes from npm's registry, in the version that is named here.
"""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Group
from rich.text import Text

import pipelines
from tests.evaluation.test_report import CHROMIUM, browse, page
from tuneport.evaluation.shown_rows import as_shown
from tuneport.inspection.look import preview
from tuneport.inspection.show import save_html
from tuneport.runner.html_page import as_html
from tuneport.tasks.task import ShownAnswer

AXE = "axe-core@4.14.1"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
LOOK = """
axe.run(document, {resultTypes: ["violations"]}).then(found => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const shown = document.createElement("pre");
  shown.id = "axe-found";
  shown.textContent = JSON.stringify({dark, passes: found.passes.length, violations: found.violations});
  document.body.append(shown);
});
"""
COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white", "bright_red", "bright_yellow")
SCHEMES = {"dark": 0, "light": 1}  # as Blink counts them

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's source."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if npm is None:
        pytest.skip(f"npm is not installed, by which {AXE} is fetched")
    command = [npm, "pack", "--silent", AXE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"{AXE} cannot be fetched: {(done.stderr or done.stdout).strip()[-200:]}")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder)
    return (folder / "package" / "axe.min.js").read_text("utf-8")


@pytest.fixture
def problems(axe: str, tmp_path: Path) -> Callable[[str, str], list[str]]:
    """Return a function (page, scheme) -> what axe-core finds serious or critical, each with the elements."""

    def look(source: str, scheme: str) -> list[str]:
        free = POLICY.sub("", source)  # which lets none but the page's own script run
        assert "</body>" in free
        free = free.replace("</body>", f"<script>{axe}</script><script>{LOOK}</script></body>")
        flags = (f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--virtual-time-budget=20000")
        rendered, _ = browse(free, tmp_path / scheme, flags=flags)
        (text,) = re.findall(r'<pre id="axe-found">(.*?)</pre>', rendered, re.DOTALL)
        found = json.loads(html.unescape(text))
        assert found["dark"] == (scheme == "dark") and found["passes"] > 0
        return [said(problem) for problem in found["violations"] if problem["impact"] in ("serious", "critical")]

    return look


def said(problem: dict[str, Any]) -> str:
    nodes = [
        f"{node['target']}: {node['html'][:160]} {node.get('failureSummary', '')}" for node in problem["nodes"][:3]
    ]
    return f"{problem['id']} ({problem['impact']}, {len(problem['nodes'])}): {problem['help']}\n" + "\n".join(nodes)


def answer(i: int) -> ShownAnswer:
    return ShownAnswer(texts=(f"text {i}",), truth="ab"[i % 2], predicted="c", score="0.5", base="c")


PAGES: dict[str, Callable[[], str]] = {
    "a report": page,
    "a report of many errors": lambda: page(
        answers=[as_shown(f"x.csv:{i}", answer(i), written=False) for i in range(60)]
    ),
    "a report of a good model": lambda: page(skill=0.9, history=[]),
    "every colour of a terminal": lambda: as_html(
        Group(*(Text(f"{name} {tone}", f"{tone} {name}") for name in COLOURS for tone in ("", "bold"))), "colours"
    ),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_nothing_serious(name: str, scheme: str, problems: Callable[[str, str], list[str]]) -> None:
    assert problems(PAGES[name](), scheme) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_preview_has_nothing_serious(
    scheme: str,
    *,
    problems: Callable[[str, str], list[str]],
    imported_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pipeline = pipelines.load("text_classification")
    rows = write_jsonl(tmp_path / "rows.jsonl", questions)
    values = {
        "pytorch_model_path": imported_model,
        "train_file_path": rows,
        "sentence1_key": "text",
        "label_key": "label",
    }
    save_html(preview(pipeline, pipeline.resolve(values), 2), tmp_path / "preview.html")
    assert problems((tmp_path / "preview.html").read_text("utf-8"), scheme) == []


def test_what_is_wrong_with_a_page_is_noticed(problems: Callable[[str, str], list[str]]) -> None:
    planted = page().replace("<main>", '<main><p style="color: #eee; background: #fff">pale</p><img src="data:,">')
    found = "\n".join(problems(planted, "light"))
    assert "color-contrast" in found and "image-alt" in found
