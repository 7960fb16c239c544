"""Forest plot of the claims and learning curves of the experiments, as matplotlib figures without pyplot.

Every figure is drawn once in the light theme; for the web page it is saved as SVG, and the four colours of ink, muted
ink, grid and paper become CSS variables, so that the plot follows the page into the dark.
"""

import io
import logging
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from common.report import tables, text
from common.report.curves import Grouped, Line, average

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2328", "#69727d", "#d1d9e1", "#fefefe"
THEME = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}
# Hues that colour-blind readers tell apart, with a contrast of 3 and more to a white and to a dark page; line styles
# carry on where they end.
HUES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#767676")
STYLES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
VERDICT_COLORS = {
    "reproduced": "#0072b2", "held": "#0072b2", "failed": "#d55e00", "inconclusive": "#8a8a8a"
}  # fmt: skip
MANY = len(HUES) * len(STYLES)
BAND = (
    "Line: mean over seeds. Band: 95 % t interval of the mean (two seeds: their range). "
    "A cross: a run that ended early."
)
FOREST_CAPTION = (
    "Each row has a scale of its own, lined up at its gate; right of the gate (shaded) is better. A claim holds when "
    "the mean is past the gate and the whole interval past the null; it failed when the whole interval is short of the "
    "gate. "
    "An equivalence has two gates and must lie between them. An arrowhead: it goes on beyond the picture."
)


@contextmanager
def _settings(salt: str) -> Iterator[None]:
    """Our own settings on top of matplotlib's defaults, whatever the user's matplotlibrc says."""
    import matplotlib

    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({
            "font.size": 9, "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": salt,
            "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED,
            "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.titlesize": 10,
            "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
            "axes.spines.right": False, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
        })  # fmt: skip
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of that many inches on our paper, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def png(figure: "Figure", name: str, dpi: int = 110) -> bytes:
    """The figure as PNG; the same figure gives the same bytes (no date, no version inside)."""
    buffer = io.BytesIO()
    with _settings(name):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: "Figure", name: str) -> str:
    """The figure as an inline SVG element: theme colours as CSS variables, ids salted by `name`, no link out."""
    buffer = io.StringIO()
    with _settings(name):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    markup = buffer.getvalue()
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.DOTALL)
    markup = re.sub(r' xmlns(:xlink)?="[^"]*"', "", markup)
    # Ids must be unique in a page of many plots; matplotlib numbers its groups in each (axes_1, patch_2).
    markup = re.sub(r'(<g) id="[^"]*"', r"\1", markup)
    for color, variable in THEME.items():
        markup = markup.replace(color, variable)
    # The page sets the width: from 80 % of the natural size (scrolling sideways on a phone) to 120 %.
    points = 72 * figure.get_figwidth()
    style = f"min-width: {0.8 * points:.0f}pt; max-width: {1.2 * points:.0f}pt"
    markup = re.sub(r' (width|height)="[\d.]+pt"', "", markup, count=2)
    return markup.replace("<svg", f'<svg class="plot" role="img" style="{style}"', 1)


def method_styles(order: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Colour and line style of each method: the same in every plot of a report."""
    return {method: (HUES[i % len(HUES)], STYLES[i // len(HUES) % len(STYLES)]) for i, method in enumerate(order)}


def _ends(claim: Mapping[str, Any]) -> list[float]:
    gate = claim["gate"]
    gates = list(gate) if isinstance(gate, list | tuple) else [gate]
    measured = claim["measured"]
    ours = [measured[key] for key in ("mean", "low", "high")]
    return [value for value in (*gates, claim["null"], *ours) if value is not None]


def forest_claims(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The judged claims that have a measurement to draw."""
    return [c for c in tables.judged(dict(results)) if c["measured"] is not None and c["measured"]["mean"] is not None]


def forest(results: Mapping[str, Any]) -> "Figure | None":
    """One row per judged claim, each on a scale of its own, all lined up at the gate; better is always to the right.

    Drawn: mean and 95 % interval, the null, the paper's number. None where nothing was judged.
    """
    claims = forest_claims(results)
    if not claims:
        return None
    with _settings("forest"):
        figure = new_figure(12, 0.95 + 0.47 * len(claims))
        top, bottom = 1 - 0.62 / figure.get_figheight(), 0.3 / figure.get_figheight()
        axes = figure.add_axes((0.41, bottom, 0.28, top - bottom))
        axes.set(xlim=(-1, 1), ylim=(len(claims) - 0.5, -0.5), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.axvspan(0, 1, color=HUES[2], alpha=0.08, linewidth=0)
        axes.axvline(0, color=INK, linewidth=1)
        axes.text(0, -0.62, "gate", ha="center", va="bottom", fontsize=8)
        axes.text(1, -0.62, "better →", ha="right", va="bottom", fontsize=8, color=MUTED)
        axes.text(-1, -0.62, "← worse", ha="left", va="bottom", fontsize=8, color=MUTED)
        for row, claim in enumerate(claims):
            _forest_row(axes, row, claim)
        _forest_legend(figure)
    return figure


def _forest_row(axes: "Axes", row: int, claim: Mapping[str, Any]) -> None:
    gate, measured = claim["gate"], claim["measured"]
    equivalence = isinstance(gate, list | tuple)
    # An equivalence has two gates; the left one stands on the common line, the right one is drawn in its row.
    sign = -1.0 if claim["better"] == "lower" and not equivalence else 1.0
    origin = gate[0] if equivalence else gate if gate is not None else measured["mean"]
    others = [abs(value - origin) for value in _ends(claim)]
    paper = claim["paper_value"]
    extent = max(others) or abs(origin) or 1.0
    if paper is not None and abs(paper - origin) <= 4 * extent:
        extent = max(extent, abs(paper - origin) + (claim["paper_std"] or 0))
    scale = 0.92 * sign / extent

    def place(value: float) -> float:
        return max(-0.97, min(0.97, (value - origin) * scale))

    color = VERDICT_COLORS.get(claim["verdict"], MUTED)
    axes.plot([-1, 1], [row + 0.5, row + 0.5], color=GRID, linewidth=0.6)
    if equivalence:
        # Outside its band an equivalence is as wrong to the right as to the left.
        axes.fill_betweenx([row - 0.45, row + 0.45], place(gate[1]), 1, color=PAPER, linewidth=0, zorder=1.5)
        axes.plot([place(gate[1])] * 2, [row - 0.45, row + 0.45], color=INK, linewidth=1)
    if claim["null"] is not None and claim["null"] != gate:
        null = place(claim["null"])
        axes.plot([null, null], [row - 0.3, row + 0.3], color=MUTED, linewidth=1.2, linestyle=(0, (2, 1.5)))
    low, high = measured["low"], measured["high"]
    if low is not None or high is not None:
        left, right = (low, high) if sign > 0 else (high, low)
        ends = [-0.97 if left is None else place(left), 0.97 if right is None else place(right)]
        axes.plot(ends, [row, row], color=color, linewidth=2.6, solid_capstyle="butt", zorder=3)
        for end, bound, marker in ((ends[0], left, "<"), (ends[1], right, ">")):
            if bound is None:
                axes.plot([end], [row], marker=marker, color=color, markersize=6, zorder=3)
    axes.plot([place(measured["mean"])], [row], marker="o", color=color, markersize=6.5, zorder=4)
    if paper is not None:
        where = place(paper)
        clipped = abs((paper - origin) * scale) > 0.97
        marker = "D" if not clipped else ">" if where > 0 else "<"
        if claim["paper_std"] and not clipped:
            spread = abs(claim["paper_std"] * scale)
            axes.plot([where - spread, where + spread], [row + 0.24] * 2, color=INK, linewidth=0.9, zorder=4)
        axes.plot([where], [row + 0.24], marker=marker, color=PAPER, markeredgecolor=INK, markersize=5, zorder=5)
    _forest_words(axes, row, claim, color)


def _forest_words(axes: "Axes", row: int, claim: Mapping[str, Any], color: str) -> None:
    from matplotlib.transforms import blended_transform_factory

    figure = axes.get_figure(root=True)
    if figure is None:
        return
    beside = blended_transform_factory(figure.transFigure, axes.transData)

    def write(x: float, y: float, words: str, **style: Any) -> None:
        axes.text(x, y, words, transform=beside, va="center", **{"fontsize": 7.5, **style})

    label = textwrap.wrap(" ".join((claim["quantity"] or claim["statement"]).split()), 48)
    if len(label) > 2:
        label = [label[0], text.shorten(" ".join(label[1:]), 48)]
    write(0.01, row, text.shorten(claim["id"], 16), weight="bold", fontsize=8.5)
    write(0.125, row, "\n".join(label))
    write(0.70, row - 0.17, claim["verdict"], weight="bold", fontsize=8, color=color)
    write(0.78, row - 0.17, tables.ours_text(dict(claim)))
    small = [f"gate {tables.gate_text(dict(claim))}"]
    small += [f"paper {tables.paper_number(dict(claim))}"] if claim["paper_value"] is not None else []
    write(0.70, row + 0.2, "; ".join(small), color=MUTED)


def _forest_legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    marks: list[Line2D] = [
        Line2D([], [], color=VERDICT_COLORS["held"], marker="o", linewidth=2.6, markersize=6),
        Line2D([], [], color=MUTED, linestyle=(0, (2, 1.5)), linewidth=1.2),
        Line2D([], [], color=PAPER, marker="D", markeredgecolor=INK, markersize=5, linewidth=0),
    ]
    names = ["ours: mean, 95 % interval", "null", "the paper's number (its setting, not always ours)"]
    figure.legend(
        marks, names, loc="upper left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=8, handlelength=1.8
    )


def curve_names(grouped: Grouped, results: Mapping[str, Any], experiment: str) -> tuple[list[str], list[str]]:
    """Curve names of an experiment: those that are metrics of the results and shown, and the others (losses, rates)."""
    names = [name for (where, name) in grouped if where == experiment]
    known = [name for name, about in results["metrics"].items() if name in names and about.get("shown", True)]
    return known, sorted(set(names) - set(results["metrics"]))


def learning_curves(
    results: Mapping[str, Any],
    grouped: Grouped,
    experiment: str,
    name: str,
    size: tuple[float, float] = (7.0, 3.6),
) -> "Figure | None":
    """One line per method over the steps, labelled at its end; None where no run left such a curve, or none of them
    ever moves: what is measured only at the end, or is the same for all, stands in the tables.

    With more than 18 methods (a sweep) all are drawn thinly and the best 8 are labelled.
    """
    curves = grouped.get((experiment, name), {})
    runs = [run for run in results["runs"] if run["experiment"] == experiment]
    known = {(run["method"], run["seed"]) for run in runs}
    unfinished = {(run["method"], run["seed"]) for run in runs if run["status"] != "finished"}
    lines: dict[str, Line] = {}
    for method in dict.fromkeys(run["method"] for run in runs):
        seeds = {seed: curve for seed, curve in curves.get(method, {}).items() if (method, seed) in known}
        if seeds:
            lines[method] = average(seeds, [seed for seed in seeds if (method, seed) in unfinished])
    values = {value for line in lines.values() for value in (*line.low, *line.high)}
    if len(values) <= 1 or all(len(line.steps) == 1 for line in lines.values()):
        return None
    about = results["metrics"].get(name, {})
    better = about.get("better", "")
    shown = list(lines)
    if len(lines) > MANY:
        shown = sorted(lines, key=lambda method: lines[method].mean[-1], reverse=better == "higher")[:8]
        styles = method_styles(shown)
    else:
        styles = method_styles(tables.methods(dict(results)))
    with _settings(f"{experiment}-{name}"):
        figure = new_figure(size[0], max(size[1], 1.0 + 0.17 * len(shown)))
        longest = max(len(method) for method in shown)
        room = min(0.42, (0.35 + 0.075 * min(longest, 34)) / size[0])
        height = figure.get_figheight()
        axes = figure.add_axes((0.72 / size[0], 0.46 / height, 1 - 0.72 / size[0] - room, 1 - 0.84 / height))
        alpha = 0.14 if len(shown) <= 8 else 0.06
        for method, line in lines.items():
            if method in styles:
                color, style = styles[method]
                axes.fill_between(line.steps, line.low, line.high, color=color, alpha=alpha, linewidth=0)
                axes.plot(line.steps, line.mean, color=color, linestyle=style, linewidth=1.6, **_lone(line))
            else:
                axes.plot(line.steps, line.mean, color=MUTED, linewidth=0.5, alpha=0.5)
            for step, value in line.ends:
                axes.plot([step], [value], marker="x", color=styles.get(method, (MUTED, "-"))[0], markersize=6)
        _limits(axes, lines, log=better != "higher")
        axes.grid(axis="y")
        unit = text.unit(about.get("unit"))
        direction = f", {better} is better" if better else ""
        axes.set_title(f"{text.shorten(experiment, 40)}: {name}{direction}", pad=8)
        axes.set(xlabel="step", ylabel=f"{name} ({unit})" if unit else name)
        _label_ends(axes, {method: lines[method] for method in shown}, styles)
    return figure


def _lone(line: Line) -> dict[str, Any]:
    """A curve of one point needs a marker to be seen."""
    return {"marker": "o", "markersize": 4} if len(line.steps) == 1 else {}


def _limits(axes: "Axes", lines: Mapping[str, Line], log: bool) -> None:
    """By the means, and the bands as far as they do not push the means together; log for losses over decades."""
    first, last = min(line.steps[0] for line in lines.values()), max(line.steps[-1] for line in lines.values())
    axes.set_xlim(first - 0.01 * (last - first or 1), last + 0.01 * (last - first or 1))
    means = [value for line in lines.values() for value in line.mean]
    low, high = min(means), max(means)
    if log and low > 0 and high / low > 100:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(low / 1.3, high * 1.3)
        return
    spread = (high - low) or abs(high) or 1.0
    bottom = max(min(value for line in lines.values() for value in line.low), low - 0.25 * spread)
    top = min(max(value for line in lines.values() for value in line.high), high + 0.25 * spread)
    # A band that dips below zero does not make a negative error rate.
    bottom = max(bottom, 0.0) if low >= 0 else bottom
    axes.set_ylim(bottom - (0.0 if bottom == 0.0 else 0.04 * spread), top + 0.04 * spread)


def _label_ends(axes: "Axes", lines: Mapping[str, Line], styles: Mapping[str, tuple[str, Any]]) -> None:
    """Names beside the lines' ends, pushed apart until they do not overlap, joined to the ends by leaders."""
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    height = axes.get_position().height * figure.get_figheight()
    gap = 0.155 / height
    to_axes = axes.transLimits if axes.get_yscale() == "linear" else axes.transScale + axes.transLimits
    ends = {method: float(to_axes.transform((line.steps[-1], line.mean[-1]))[1]) for method, line in lines.items()}
    order = sorted(ends, key=lambda method: ends[method])
    for method, y in zip(order, spread_out([ends[method] for method in order], gap), strict=True):
        color, style = styles[method]
        start = float(to_axes.transform((lines[method].steps[-1], lines[method].mean[-1]))[0])
        axes.plot(
            [start, 1.025, 1.06], [ends[method], y, y], transform=axes.transAxes, color=color, linestyle=style,
            linewidth=1.1, clip_on=False,
        )  # fmt: skip
        axes.text(1.07, y, text.shorten(method, 34), transform=axes.transAxes, va="center", ha="left", fontsize=8)


def spread_out(positions: Sequence[float], gap: float) -> list[float]:
    """Rising positions at least `gap` apart, each as near as the others allow to where it was, within 0 and 1."""
    groups: list[tuple[float, int]] = []  # labels that touch: sum of the starts that each would wish for, count
    for position in positions:
        wish, count = position, 1
        while groups and groups[-1][0] / groups[-1][1] + groups[-1][1] * gap > wish / count:
            above, number = groups.pop()
            wish, count = above + wish - count * number * gap, number + count
        groups.append((wish, count))
    placed = [wish / count + offset * gap for wish, count in groups for offset in range(count)]
    # Back inside the plot: first down from the top, then up from the bottom.
    limit = 1.0
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    limit = 0.0
    for index in range(len(placed)):
        placed[index] = max(placed[index], limit)
        limit = placed[index] + gap
    return placed
