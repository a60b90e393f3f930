"""The documents say what is true: the generated page is fresh, links lead somewhere, commands exist."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(p for pattern in ("*.md", "docs/**/*.md", "examples/*/*.md") for p in ROOT.glob(pattern))
LINK = re.compile(r"(?<!!)\[[^]]+]\(([^)\s]+)\)|!\[[^]]*]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_that_a_newcomer_needs_exist() -> None:
    names = {p.relative_to(ROOT).as_posix() for p in PAGES}
    assert names >= {"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/parameters.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    broken = []
    for link in (a or b for a, b in LINK.findall(FENCE.sub("", page.read_text("utf-8")))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_site_builds_and_each_of_its_links_leads_somewhere(tmp_path: Path) -> None:
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(mkdocs, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    start = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert "Fine-tune language models" in start and "fonts.googleapis" not in start
    assert (tmp_path / "site" / "checkout" / "examples" / "chat_completion" / "lora.yaml").is_file()


def test_the_parameter_reference_is_what_the_steps_say() -> None:
    generator = load(ROOT / "docs" / "generate_parameters.py")
    assert (ROOT / "docs" / "parameters.md").read_text("utf-8") == generator.page(), (
        "docs/parameters.md is stale: run `python docs/generate_parameters.py`"
    )


def test_the_table_of_conflicts_is_what_the_code_refuses() -> None:
    generator = load(ROOT / "docs" / "generate_conflicts.py")
    assert (ROOT / "docs" / "conflicts.md").read_text("utf-8") == generator.page(), (
        "docs/conflicts.md is stale: run `python docs/generate_conflicts.py`"
    )


def test_every_make_target_that_the_documents_name_exists() -> None:
    defined = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {t for page in PAGES for t in re.findall(r"\bmake ([a-z]+)\b", "".join(code(page)))}
    assert named <= defined


def code(page: Path) -> list[str]:
    """What a page prints as code: fenced blocks, indented ones aside, and `inline` pieces."""
    text = page.read_text("utf-8")
    return [*FENCE.findall(text), *re.findall(r"`[^`\n]+`", FENCE.sub("", text))]
