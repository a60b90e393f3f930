"""The report's figures as inline SVG whose colours follow the page, light or dark."""

from __future__ import annotations

import io
import re
import typing as t
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise

from tuneport.metrics.metric import AnyMetric
from tuneport.metrics.scores import Evaluation

if t.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in these, then replaced by the page's own colours.
INK, SOFT, LINE, ACCENT, SECOND, GOOD, PAPER = (f"#0{i}0{i}0{i}" for i in range(1, 8))
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", ACCENT: "accent", SECOND: "second", GOOD: "good", PAPER: "paper"}
STYLE: dict[t.Any, t.Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.04,
}
POINTS = 600  # of a curve: more cannot be seen
LABEL = 22  # characters of a label that are shown
BARS = 20  # labels that are shown as bars
SPLIT_COLOURS = ((ACCENT, 1.0), (ACCENT, 0.5), (SECOND, 0.9))
CELLS = 30  # labels of a confusion matrix up to which cells carry numbers


def score_intervals(predictors: Mapping[str, Evaluation], metrics: Sequence[AnyMetric]) -> str:
    """Each predictor's value of each metric as a dot with its 95 % interval."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            for row, found in enumerate(predictors.values()):
                _dot(axes, row, found, metric, ACCENT if row == 0 else SECOND)
            axes.set_title(metric.label)
            axes.set_yticks(range(len(predictors)), [_short(who, 34) for who in predictors], color=INK)
            axes.set_ylim(len(predictors) - 0.4, -0.6)
            if (highest := max(_highs(predictors, metric.name), default=1.0)) > 1:
                axes.set_xlim(-0.03 * highest, 1.08 * highest)
                axes.locator_params(axis="x", nbins=4)
            else:
                axes.set_xlim(min([0.0, *_lows(predictors, metric.name)]) - 0.03, 1.05)
                axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
            axes.grid(axis="y", visible=False)
            axes.tick_params(length=0)
            axes.spines["left"].set_visible(False)

    return _svg("scores", (9.8, 0.75 + 0.38 * len(predictors)), "Scores with their 95 % intervals", draw)


def _lows(predictors: Mapping[str, Evaluation], metric: str) -> list[float]:
    return [found.intervals[metric][0] for found in predictors.values() if metric in found.intervals]


def _highs(predictors: Mapping[str, Evaluation], metric: str) -> list[float]:
    values = [found.metrics.get(metric) for found in predictors.values()]
    return [
        found.intervals.get(metric, (0, value))[1]
        for found, value in zip(predictors.values(), values, strict=True)
        if value
    ]


def _dot(axes: Axes, row: int, found: Evaluation, metric: AnyMetric, colour: str) -> None:
    value = found.metrics.get(metric.name)
    if value is None:
        return
    low, high = found.intervals.get(metric.name, (value, value))
    axes.plot([low, high], [row, row], color=colour, linewidth=5, alpha=0.3, solid_capstyle="round")
    axes.plot([value], [row], "o", color=colour, markersize=6.5)
    style: dict[str, t.Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8.5, "color": INK}
    axes.annotate(metric.number(value), (value, row), (0, 6.5), **style)


def training_curves(history: Sequence[Mapping[str, t.Any]], best_step: int | None, metrics: Sequence[AnyMetric]) -> str:
    """Training and validation loss, and the validation metrics that rise as it falls, over optimizer steps."""
    rising = [m for m in metrics if m.greater_is_better and any(f"eval_{m.name}" in entry for entry in history)]

    def draw(figure: Figure) -> None:
        loss, *rest = figure.subplots(1, 2 if rising else 1, squeeze=False)[0]
        _curve(loss, history, "loss", color=SECOND, label="training")
        _curve(loss, history, "eval_loss", color=ACCENT, label="validation", marker="o")
        loss.set_title("Loss")
        for axes in rest:
            for i, metric in enumerate(rising):
                look = {"color": (ACCENT, SECOND, SOFT)[i % 3], "linestyle": ("-", "--", ":")[i % 3], "marker": "o"}
                _curve(axes, history, f"eval_{metric.name}", label=metric.label, **look)
            axes.set_title("Validation metrics")
        for axes in (loss, *rest):
            if best_step:
                label = f"best checkpoint, step {best_step:,}" if axes is loss else None
                axes.axvline(best_step, color=GOOD, linewidth=1.4, label=label, zorder=1.5)
            axes.set_xlim(left=0)
            axes.set_xlabel("optimizer step")
            axes.legend(loc="best")

    return _svg("curves", (9.8, 3.0), "Loss and validation metrics over the training steps", draw)


def _curve(axes: Axes, history: Sequence[Mapping[str, t.Any]], key: str, **style: t.Any) -> None:
    points = _thinned([(entry["step"], entry[key]) for entry in history if key in entry and "step" in entry])
    if points:
        alone = {"marker": "o"} if len(points) == 1 else {}
        axes.plot(*zip(*points, strict=True), markersize=4, linewidth=1.6, **(style | alone))


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Evenly fewer points, the last one among them."""
    every = -(-len(points) // POINTS)
    return points[::-every][::-1] if every > 1 else points


def confusion_matrix(
    matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str, colour: str, inches: float
) -> str:
    """True classes down, predicted ones across; a cell is as dark as its share of the true class's rows."""
    n = len(labels)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
        if n <= CELLS:
            _cells(axes, matrix, shares, colour)
        else:
            axes.imshow([[(0.15, 0.39, 0.92, share) for share in row] for row in shares], interpolation="nearest")
        axes.set_xlim(-0.5, n - 0.5)
        axes.set_ylim(n - 0.5, -0.5)
        shown = range(n) if n <= CELLS else ()
        turned = 0 if n <= 6 and max(map(len, labels)) <= 8 else 45
        names = [_short(labels[i], LABEL) for i in shown]
        axes.set_xticks(shown, names, rotation=turned, ha="right" if turned else "center")
        axes.set_yticks(shown, names)
        axes.grid(visible=False)
        axes.tick_params(length=0, labelcolor=INK)
        axes.set(xlabel="predicted", ylabel="true", title=title)
        axes.set_aspect("equal")
        for side in axes.spines.values():
            side.set_visible(False)

    return _svg(f"confusion-{title}", (inches, inches * 0.94), f"Confusion matrix: {title}", draw)


def _cells(axes: Axes, matrix: Sequence[Sequence[int]], shares: Sequence[Sequence[float]], colour: str) -> None:
    from matplotlib.patches import Rectangle

    size = max(5.0, min(9.5, 90 / len(matrix)))
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, facecolor=LINE, alpha=0.35, linewidth=0))
            if count:
                alpha = 0.08 + 0.92 * shares[i][j]
                axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, facecolor=colour, alpha=alpha, linewidth=0))
                ink = PAPER if alpha > 0.55 else INK
                axes.text(j, i, f"{count}", ha="center", va="center", fontsize=size, color=ink)


def confidence(probabilities: Sequence[float], hits: Sequence[bool]) -> str:
    """Left, how often answers of a probability are right; right, what is gained by answering only the surer ones."""
    import numpy as np
    from sklearn.calibration import calibration_curve

    found, sure = np.asarray(hits, dtype=float), np.asarray(probabilities)

    def draw(figure: Figure) -> None:
        calibration, threshold = figure.subplots(1, 2)
        right, said = calibration_curve(found, np.clip(sure, 0, 1), n_bins=10, strategy="quantile")
        calibration.plot([0, 1], [0, 1], color=LINE, linewidth=1.4, label="as sure as it says")
        calibration.plot(said, right, "o-", color=ACCENT, markersize=4, linewidth=1.6, label="tuned model")
        calibration.set(title="Calibration", xlabel="probability that it says", ylabel="share that is right")
        calibration.set_xlim(0, 1.03)
        calibration.set_ylim(0, 1.03)
        calibration.legend(loc="upper left")
        order = np.argsort(-sure, kind="stable")
        answered = np.arange(1, len(order) + 1) / len(order)
        points = _thinned(list(zip(answered, np.cumsum(found[order]) / np.arange(1, len(order) + 1), strict=True)))
        threshold.plot(*zip(*points, strict=True), color=ACCENT, linewidth=1.6, label="share that is right")
        points = _thinned(list(zip(answered, sure[order], strict=True)))
        threshold.plot(*zip(*points, strict=True), color=SECOND, linewidth=1.6, linestyle="--", label="threshold")
        threshold.set(title="Answering the surest only", xlabel="share of the answers")
        threshold.set_xlim(0, 1.03)
        threshold.set_ylim(0, 1.03)
        threshold.legend(loc="lower left")

    return _svg("confidence", (9.8, 3.0), "Calibration, and the share that is right above a threshold", draw)


def calibration_error(probabilities: Sequence[float], hits: Sequence[bool], bins: int = 10) -> float:
    """The mean gap between probability and share that is right over bins of equal width, weighted by their rows.

    Guo et al., 2017 (arXiv 1706.04599).
    """
    import numpy as np

    sure, found = np.asarray(probabilities), np.asarray(hits, dtype=float)
    places = np.clip((sure * bins).astype(int), 0, bins - 1)
    gaps = [abs((sure - found)[places == b].sum()) for b in range(bins)]
    return float(sum(gaps) / max(1, len(sure)))


def label_shares(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Share of each label's rows per split, the most frequent labels; ``counts`` maps splits to rows by label."""
    total: Counter[str] = Counter()
    for split_counts in counts.values():
        total.update(split_counts)
    shown = [label for label, _ in total.most_common(BARS)]
    title = "Labels" if len(shown) == len(total) else f"Labels: the {len(shown)} most frequent of {len(total)}"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.8 / len(counts)
        for i, (split, found) in enumerate(counts.items()):
            rows = sum(found.values()) or 1
            places = [j + (i - (len(counts) - 1) / 2) * width for j in range(len(shown))]
            colour, alpha = SPLIT_COLOURS[i % 3]
            heights = [100 * found.get(label, 0) / rows for label in shown]
            axes.bar(places, heights, width * 0.92, color=colour, alpha=alpha, label=split)
        turned = 0 if sum(min(len(label), LABEL) for label in shown) <= 40 else 40
        names = [_short(label, LABEL) for label in shown]
        axes.set_xticks(range(len(shown)), names, rotation=turned, ha="right" if turned else "center")
        axes.grid(axis="x", visible=False)
        axes.tick_params(length=0)
        axes.margins(x=0.02, y=0.2)
        axes.set(title=title, ylabel="% of labels")
        axes.legend(loc="upper right", ncols=3)

    return _svg("labels", (4.75, 2.8), title, draw)


def token_lengths(histograms: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Distribution of sequence lengths per split; a histogram is ``{"edges": n + 1 lengths, "rows": n counts}``."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (split, found) in enumerate(histograms.items()):
            edges, rows = found["edges"], found["rows"]
            widths = [high - low for low, high in pairwise(edges)]
            heights = [100 * n / (sum(rows) or 1) / width for n, width in zip(rows, widths, strict=True)]
            colour, alpha = SPLIT_COLOURS[i % 3]
            axes.stairs(heights, edges, color=colour, alpha=alpha, label=split, linewidth=1.5, fill=False)
        axes.set(title="Sequence lengths", xlabel="tokens", ylabel="% of rows per token")
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", integer=True)
        look: dict[str, t.Any] = {"borderaxespad": 0.2, "handlelength": 1.2, "columnspacing": 1, "handletextpad": 0.5}
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(histograms), **look)

    return _svg("lengths", (4.75, 2.8), "Sequence lengths in tokens", draw)


def _short(label: str, length: int) -> str:
    line = " ".join(str(label).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _svg(name: str, inches: tuple[float, float], title: str, draw: Callable[[Figure], None]) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # text stays text: the browser has the fonts
        figure = Figure(figsize=inches)
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(out.getvalue(), inches[0], title)


def _inline(svg: str, width: float, title: str) -> str:
    """Make a stand-alone SVG part of a page: no prologue, the page's font and colours, ids only where used."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]} '
        f'style="max-width: {width:g}in" role="img" aria-label="{escape(title, quote=True)}">'
    )
    _, _, rest = svg.partition(">")
    return opening + re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], used), rest)  # text between tags stays as it is


def _tag(tag: str, used: set[str]) -> str:
    tag = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", tag)
    tag = re.sub(r"font(?:-family)?: ?[^;\"]*;? ?", lambda m: _font_size(m[0]), tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


def _font_size(style: str) -> str:
    """The size of a CSS ``font`` declaration; the family comes from the page."""
    size = re.search(r"[\d.]+px", style)
    weight = "font-weight: bold; " if re.search(r"\b(700|bold)\b", style) else ""
    return f"{weight}font-size: {size[0]}; " if size else ""
