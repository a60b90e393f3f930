"""The report as a page: it opens in a browser without network and without a complaint, also from odd inputs."""

import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tuneport import tasks
from tuneport.evaluation import figures, report
from tuneport.evaluation.comparison import Comparison
from tuneport.evaluation.shown_rows import TEXT_LENGTH, as_shown, differing, segments, shown_rows
from tuneport.evaluation.slices import Slice, slices
from tuneport.metrics.classification import evaluate
from tuneport.tasks.task import Mark, ShownAnswer
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


def page(
    *,
    labels=("desc", "hum", "loc"),
    rows=90,
    skill=0.3,
    text="who wrote it",
    history=None,
    data=None,
    answers=None,
    task="text_classification",
    comparison=None,
    subject="bert-4.4M, tuned on a.csv",
):
    labels = list(labels)
    counts = dict.fromkeys(labels, 10)
    histogram = {"edges": [3, 6, 10], "rows": [7, 3]}
    tokens = {"min": 3, "median": 5, "p95": 8, "max": 9, "total": 50, "histogram": histogram}
    dropped = {"null in column 'text'": {"rows": 3, "first": ["a.csv row 4", "a.csv row 9", "a.csv row 11"]}}
    tuned, base, luck = (evaluation(labels, rows, s, seed) for seed, s in enumerate((skill, 0.0, 0.0)))
    split = {"rows": 30, "labels": counts, "tokens": tokens, "truncated": 2}
    shown = ShownAnswer(texts=(text,), truth=labels[0], predicted=labels[1], score="0.900", base="x")
    wrong = as_shown("a.csv:17", shown, written=False)
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
        task_name=task,
        comparison=comparison or Comparison(tuned, base, False, {"luck": luck}, 0),
        subject=subject,
        answers=[wrong] if answers is None else answers,
        parts=[Slice(kind="label", name=labels[0], rows=30, value=0.5, interval=(0.4, 0.6), base=0.3)],
        confidence=report.Confidence(probabilities=[0.9, 0.6, 0.8, 0.4] * 5, hits=[True, False, True, False] * 5),
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
    assert len(svgs) == 7
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
    across = {"validation rows also in train": 0, "test rows also in train": 1, "test rows also in validation": 2}
    data["duplicates"] |= {"duplicates": 1, "across": {"test rows also in train": 1}}
    near = {"threshold": 0.8, "checked_rows": 9, "rows": 9, "across": across}
    html = page(data=data | {"near_duplicates": near | {"near_duplicates": 3}})
    assert "1 row repeats the text of another one and was kept (1 test row also in train)." in html
    kept = "and were kept (1 test row also in train, 2 test rows also in validation)."
    assert f"3 are near duplicates of another one (Jaccard index of at least 0.8) {kept}" in html
    html = page(data=data | {"near_duplicates": near | {"near_duplicates": 0}})
    assert "Of 9 rows, none is a near duplicate of another one (Jaccard index of at least 0.8)." in html


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
    assert segments("x" * 5000, []) == [("x" * (TEXT_LENGTH - 1) + "…", "", "")]
    assert _joined(["a", "b"]) == "a, b"
    assert _joined([0.5, 0.25]) == "0.500, 0.250"
    assert _joined([]) == "none"


def test_words_that_the_answer_lacks_and_adds_are_told_apart():
    reference, answer = differing("a cat sat on it", "a dog sat on it now")
    assert reference == [("a", "", ""), (" cat", "lacking", ""), (" sat on it", "", "")]
    assert answer == [("a", "", ""), (" dog", "added", ""), (" sat on it", "", ""), (" now", "added", "")]
    assert differing("", "all new") == ([("", "", "")], [("all new", "", "")])
    assert differing(" pink", "pink") == ([(" pink", "", "")], [("pink", "", "")])
    assert differing("a cat", "cat") == ([("a", "lacking", ""), (" cat", "", "")], [("cat", "", "")])


def test_marks_cut_a_text_into_pieces_in_their_order():
    marks = [Mark(text=0, start=8, end=13, kind="added"), Mark(text=0, start=0, end=3, kind="right", label="B-PER")]
    assert segments("Ann met Paris", marks) == [("Ann", "right", "B-PER"), (" met ", "", ""), ("Paris", "added", "")]


def test_the_answer_and_the_reference_are_marked_where_they_stand_in_the_context():
    task = tasks.load("question_answering")
    row = {
        "question": "Who?",
        "context": "x" * 900 + "Ann Lee sings",
        "answer_starts": [900],
        "answer_texts": ["Ann Lee"],
    }
    answer = {"answer": "Lee sings", "start": 904, "end": 913, "score": 0.5}
    shown = as_shown("a.csv:1", task.shown(row, answer, answer), written=False)
    marked = [(text, kind) for text, kind, _ in shown.texts[1] if kind]
    assert marked == [("Ann ", "lacking"), ("Lee", "right"), (" sings", "added")]


def test_each_tagged_word_is_marked_by_whether_its_tag_is_right():
    task = tasks.load("token_classification")
    row = {"tokens": ["Ann", "met", "Bob", "in", "Rome"], "tags": ["B-PER", "O", "B-PER", "O", "O"]}
    answer = {"tags": ["B-PER", "O", "O", "O", "B-LOC"], "scores": [0.9] * 5}
    shown = as_shown("a.csv:1", task.shown(row, answer, answer), written=False)
    assert [piece for piece in shown.texts[0] if piece[1]] == [
        ("Ann", "right", "B-PER"),
        ("Bob", "lacking", "B-PER → O"),
        ("Rome", "added", "O → B-LOC"),
    ]


def test_parts_of_the_rows_are_scored_as_a_recount_says():
    task = tasks.load("text_classification")
    labels = ["a", "b"]
    rows = [
        {"row_id": f"{'xy'[i % 3 == 0]}.csv:{i}", "sentence1": "word " * (i % 7), "label": labels[i % 2]}
        for i in range(80)
    ]
    answers = [{"label": labels[i % 5 == 0], "score": 0.7, "scores": {"a": 0.3, "b": 0.7}} for i in range(80)]
    tuned = task.evaluate(rows, answers, {"labels": labels, "multi_label": False}, 0)
    found = {(part.kind, part.name): part for part in slices(task, rows, tuned, tuned, 0)}
    right = [a["label"] == r["label"] for r, a in zip(rows, answers, strict=True)]
    for name in labels:
        of_it = [ok for ok, row in zip(right, rows, strict=True) if row["label"] == name]
        part = found["label", name]
        assert (part.rows, part.value, part.base) == (
            len(of_it),
            pytest.approx(np.mean(of_it)),
            pytest.approx(part.value),
        )
        assert part.interval[0] < part.value < part.interval[1]
    assert [part.name for part in found.values() if part.kind == "words"] == [
        "0 words",
        "1 to 2 words",
        "3 to 4 words",
        "5 to 6 words",
    ]
    assert sum(part.rows for part in found.values() if part.kind == "words") == 80


def test_the_calibration_error_is_the_papers():
    sure, hits = [0.95, 0.85, 0.85, 0.55], [True, True, False, False]
    by_hand = (1 * abs(0.95 - 1) + 2 * abs(0.85 - 0.5) + 1 * abs(0.55 - 0)) / 4
    assert figures.calibration_error(sure, hits) == pytest.approx(by_hand)


def test_rows_whose_labels_are_doubtful_are_named():
    html = page()
    assert "1 test row has another label than the model gives with a probability of 0.9 or more" in html
    assert "2 removed duplicates had another label" in html


def test_the_page_stays_small_with_many_long_answers():
    shown = ShownAnswer(texts=("word " * 200,), truth="a", predicted="b", score="0.5", base="c")
    task = SimpleNamespace(shown=lambda *_: shown)
    rows = [{"row_id": f"a.csv:{i}"} for i in range(30_000)]
    found = SimpleNamespace(row_correct=[False] * len(rows), row_losses=range(len(rows)))
    answers = shown_rows(task, rows, rows, rows, found)
    html = page(answers=answers)
    assert 1_000 < len(answers) < 2_000 and answers[0].row_id == "a.csv:29999"
    assert len(html) < 2_000_000


def browse(html: str, folder: Path, part: str = "", flags: tuple[str, ...] = ()) -> tuple[str, list[str]]:
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
            *flags,
            "--dump-dom",
            (folder / "page.html").as_uri() + part,
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
    assert "Errors" in rendered and rendered.rstrip().endswith("</html>")
    assert lines == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_chromium_finds_a_row_among_all_errors(tmp_path):
    def answer(i: int) -> ShownAnswer:
        return ShownAnswer(texts=(f"text <b>{i}</b>",), truth="ab"[i % 2], predicted="c", score="0.5", base="c")

    html = page(answers=[as_shown(f"{'xy'[i > 40]}.csv:{i}", answer(i), written=False) for i in range(60)])
    rendered, lines = browse(html, tmp_path / "all")
    assert "20 of 60 shown" in rendered and lines == []
    rendered, lines = browse(html, tmp_path / "found", "#words=57")
    assert "1 of 1 shown" in rendered and "y.csv:57" in rendered and "y.csv:58</small>" not in rendered
    assert "<b>57</b>" not in rendered and lines == []
    rendered, _ = browse(html, tmp_path / "filtered", "#truth=a&source=y.csv")
    assert "9 of 9 shown" in rendered


LONG = "an_unbroken_name_" * 20
TURNS = [{"role": "user", "content": LONG}, {"role": "assistant", "content": f"a cat {LONG}"}]
WRITTEN = {  # of each task that writes: a row with its reference, what of an answer is the text
    "text_generation": ({"text": f"a prompt {LONG}", "ground_truth": f"a cat {LONG}"}, "text"),
    "chat_completion": ({"messages": json.dumps(TURNS)}, "content"),
    "summarization": ({"document": f"a text {LONG}", "summary": f"a cat {LONG}"}, "summary"),
    "translation": ({"source": f"ein Text {LONG}", "target": f"a cat {LONG}"}, "translation"),
}
WIDTHS = """
<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  const seen = page.querySelectorAll(".verdict, section, .finder, #answer-table");
  const wide = [page.documentElement, ...seen].filter(part => part.scrollWidth > part.clientWidth + 1);
  const shown = document.createElement("pre");
  shown.id = "found";
  const found = wide.map(part => part.tagName + "." + part.className);
  shown.textContent = JSON.stringify([page.documentElement.clientWidth, found, page.querySelectorAll("svg").length]);
  document.body.append(shown);
});
</script>"""


def written_page(name: str) -> str:
    """The report of a task that writes, of answers and names that no line of a phone takes."""
    task, (row, key) = tasks.load(name), WRITTEN[name]
    rows = [{"row_id": f"{LONG}.jsonl:{i}"} | row for i in range(6)]
    likelihood = {"negative_log_likelihood": 8.0, "tokens": 4, "tokens_right": 2}
    tuned, base = [likelihood | {key: f"a dog {LONG}"}] * len(rows), [likelihood | {key: ""}] * len(rows)
    meta = {"target_code": "de"}
    found, other = (task.evaluate(rows, answers, meta, 0) for answers in (tuned, base))
    return page(
        task=name,
        comparison=Comparison(found, other, True, {f"a baseline of {LONG}": other}, 0),
        subject=f"a model, tuned on {LONG}.jsonl",
        answers=shown_rows(task, rows, tuned, base, found),
    )


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", WRITTEN)
def test_a_phone_shows_a_report_of_written_answers_within_its_width(name, tmp_path):
    frame = f'<iframe width="390" height="800" srcdoc="{escape(written_page(name))}"></iframe>'
    rendered, lines = browse(f"<!doctype html>{frame}{WIDTHS}", tmp_path / name, flags=("--virtual-time-budget=20000",))
    width, wide, figures_shown = json.loads(re.findall(r'<pre id="found">(.*?)</pre>', rendered)[0])
    assert 370 <= width <= 390 and wide == [] and figures_shown and lines == []


def test_an_answer_without_text_says_so_and_marks_are_named_as_written_answers_have_them():
    html = written_page("translation")
    assert '<td class="text answer" data-name="Base model"></td>' in html and ".answer:empty::after" in html
    assert "in the reference alone" in html and "true and predicted" not in html


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
