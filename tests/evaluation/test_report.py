"""The report as a page: it opens in a browser without network and without a complaint, also from odd inputs."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tuneport.evaluation import figures, report
from tuneport.evaluation.comparison import Comparison
from tuneport.metrics.classification import evaluate
from tuneport.tasks.task import ShownAnswer
from tuneport.tasks.text_classification import _joined

VOID = {"meta", "link", "br", "img", "input", "hr"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def evaluation(labels, rows, skill, seed=0):
    rng = np.random.default_rng(seed)
    truth = [labels[i % len(labels)] for i in range(rows)]
    answers = []
    for label in truth:
        scores = rng.dirichlet(np.ones(len(labels))) * (1 - skill)
        scores[labels.index(label)] += skill
        by_label = dict(zip(labels, scores.tolist(), strict=True))
        best = max(by_label, key=by_label.get)
        answers.append({"label": best, "score": by_label[best], "scores": by_label})
    return evaluate(truth, answers, labels, False, 0)


def page(*, labels=("desc", "hum", "loc"), rows=90, skill=0.3, text="who wrote it", history=None, data=None):
    labels = list(labels)
    counts = dict.fromkeys(labels, 10)
    histogram = {"edges": [3, 6, 10], "rows": [7, 3]}
    tokens = {"min": 3, "median": 5, "p95": 8, "max": 9, "total": 50, "histogram": histogram}
    dropped = {"null in column 'text'": {"rows": 3, "first": ["a.csv row 4", "a.csv row 9", "a.csv row 11"]}}
    tuned, base, luck = (evaluation(labels, rows, s, seed) for seed, s in enumerate((skill, 0.0, 0.0)))
    split = {"rows": 30, "labels": counts, "tokens": tokens, "truncated": 2}
    shown = ShownAnswer(texts=(text,), truth=labels[0], predicted=labels[1], score="0.900", base="x")
    wrong = report.Answer(row_id="a.csv:17", shown=shown)
    origin = report.Origin(
        notices=["LICENSE"],
        name="preprocess_output",
        type="Dataset",
        step="preprocess",
        version="1.2.3",
        digest="d" * 64,
        inputs={"train_file_path": "e" * 64},
        parameters={"min_rows": "10"},
        files=9,
        bytes=1_500_000,
    )
    return report.render(
        task_name="text_classification",
        comparison=Comparison(tuned, base, False, {"luck": luck}, 0),
        answers=[wrong],
        training=report.Training(
            history=[{"loss": 1.0 / s, "step": s} for s in range(1, 4000)] if history is None else history,
            best_step=2000,
            summary={},
        ),
        data=data
        or {
            "sources": {
                "train": {
                    "file": "a.csv",
                    "read": 100,
                    "kept": 90,
                    "duplicates_removed": 7,
                    "dropped": dropped,
                }
            },
            "splits": {"train": split, "validation": split, "test": split},
            "duplicates": {"deduplicate": "exact", "duplicates": 7, "with_another_label": 2, "removed": {"train": 7}},
        },
        max_seq_length=64,
        lineage=[origin],
        parameters={"seed": 42, "trivial_baselines": True},
    )


class Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")


def test_every_tag_is_closed():
    parser = Balance()
    parser.feed(page())
    assert parser.problems == [] and parser.open == []


def test_no_two_elements_share_an_id_and_every_reference_is_met():
    html = page()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', html)) <= set(ids)


def test_figures_take_the_pages_colours():
    html = page()
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(svgs) == 6
    assert all(set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) - {"none"} for svg in svgs)
    assert not re.search(r"(?:fill|stroke): #", "".join(svgs))
    assert "#0" not in "".join(re.findall(r"<[^>]*>", "".join(svgs)))


def test_equal_input_gives_the_same_bytes():
    assert page() == page()


def test_the_data_report_is_in_it():
    html = page()
    assert "null in column &#39;text&#39;, 3 rows" in html
    assert "a.csv row 4, a.csv row 9, a.csv row 11" in html
    assert "7 duplicates of other rows were removed before the split, 2 of them with another label" in html


def test_duplicates_that_were_left_in_are_named_with_their_splits():
    split = {"rows": 3, "labels": {}, "tokens": None, "truncated": 0}
    data = {
        "sources": {"train": {"file": "a", "read": 9, "kept": 9, "duplicates_removed": 0, "dropped": {}}},
        "splits": dict.fromkeys(("train", "validation", "test"), split),
        "duplicates": {
            "deduplicate": "none",
            "duplicates": 4,
            "with_another_label": 0,
            "within": {},
            "across": {"test rows also in train": 3, "validation rows also in train": 0},
        },
    }
    assert "4 rows repeat the text of another one and were kept (3 test rows also in train)." in page(data=data)


def test_a_curve_of_many_points_is_thinned_and_keeps_its_last_point():
    for n in (2, figures.POINTS, figures.POINTS + 1, 100_000):
        points = [(s, 1.0) for s in range(1, n + 1)]
        kept = figures._thinned(points)
        assert kept[-1] == points[-1] and list(kept) == sorted(kept)
        assert min(n, figures.POINTS // 2) <= len(kept) <= figures.POINTS
    assert len(page(history=[{"loss": 1.0 / s, "step": s} for s in range(1, 100_001)])) < 400_000


def test_many_labels_still_make_a_page():
    html = page(labels=[f"label {i}" for i in range(120)], rows=360)
    assert "the 20 most frequent of 120" in html
    assert len(html) < 1_000_000


def test_labels_that_are_markup_or_formulas_are_drawn_as_they_are():
    labels = ["<b>x</b>", "$y^2$", 'font: 12px " id="q"', "#010101", "日本 語"]
    html = page(labels=labels)
    assert "<b>" not in html
    assert "&lt;b&gt;x&lt;/b&gt;" in html and "$y^2$" in html and "日本 語" in html
    svg = figures.confusion_matrix([[1, 2], [3, 4]], labels[2:4], "t", figures.ACCENT, 4)
    assert 'font: 12px " id="q"' in svg and ">#010101<" in svg


def test_a_long_text_is_cut_and_a_list_of_labels_is_joined():
    assert len(report._cut("x" * 5000)) == report.TEXT_LENGTH
    assert _joined(["a", "b"]) == "a, b"
    assert _joined([0.5, 0.25]) == "0.500, 0.250"
    assert _joined([]) == "none"


def browse(html: str, folder: Path) -> tuple[str, list[str]]:
    """Open a page in Chromium with no network: the page as rendered, and what Chromium wrote to its console."""
    folder.mkdir()
    (folder / "page.html").write_text(html, "utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--proxy-server=127.0.0.1:9",  # nobody listens there
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            (folder / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_chromium_opens_the_page_without_network_and_without_a_console_error(tmp_path):
    html = page(text="<script>alert(1)</script>")
    rendered, lines = browse(html, tmp_path / "good")
    assert "Worst errors" in rendered and rendered.rstrip().endswith("</html>")
    assert lines == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(
    "planted",
    [
        '<img src="http://pictures.invalid/x.png">',
        "<script>1</script>",
        '<iframe src="http://x.invalid">',
    ],
)
def test_chromium_refuses_what_would_fetch_or_run_if_it_ever_got_into_the_page(planted, tmp_path):
    html = page().replace("<main>", f"<main>{planted}")
    _, lines = browse(html, tmp_path / "bad")
    assert any("Content Security Policy" in line for line in lines)
