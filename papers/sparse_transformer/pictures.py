"""Pictures of the report: which keys are seen, time and memory against length, bits against context and against time.

Every function draws what the results and the runs' files allow, and nothing where there is nothing. What single
networks do is in `gallery.py`.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from common.files import read_json
from common.report.pictures import Picture, new_figure
from common.report.plots import GRID, HUES, INK, MUTED, STYLES
from papers.sparse_transformer.gallery import METHODS, Run, attention, bold_title, plain, samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAD = 64
"""Size of a head in the drawings of memory, as in the measurements."""
TABLE_3 = {6144: 0.9952, 9216: 0.9936, 10752: 0.9932, 11904: 0.9930, 12096: 0.9922, 12160: 0.9908}
"""The paper's bits per byte on enwik8 against the minimum context in tokens, with a context of 12,288."""
CONTEXT = re.compile(r"context-(\d+)")
UNSEEN, SHADES = "#eef1f4", ("#0b3d66", "#2f86c6", "#a5d0ee")
"""Cells that are not attended to, and those of the first, second and third set of a factorised pattern."""


def draw(document: Mapping[str, Any], folder: Path) -> list[Picture]:
    """Every picture that the results, and the runs' files below `folder`, allow."""
    runs = [{**run, "folder": _folder(folder, run)} for run in document["runs"] if run["status"] == "finished"]
    runs.sort(key=lambda run: run["seed"])
    found = [connectivity(), length(runs), context(runs), *equal_time(runs), *attention(runs), *samples(runs)]
    return [picture for picture in found if picture is not None]


def _folder(folder: Path, run: Run) -> Path:
    return folder / run["experiment"] / run["method"] / f"seed-{run['seed']}"


def _grouped(runs: Sequence[Run], metric: str) -> dict[str, dict[str, list[Run]]]:
    """experiment -> method -> the runs with that metric, by seed."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if metric in run["metrics"]:
            found.setdefault(run["experiment"], {}).setdefault(run["method"], []).append(run)
    return found


# ---------------------------------------------------------------- which keys are seen


def connectivity() -> Picture:
    """The paper's Figure 3, drawn from the masks themselves, with the third factor of p = 3 beside it."""
    from matplotlib.colors import to_rgb

    from papers.sparse_transformer.method import Pattern

    side, query = 8, 44
    n = side * side
    # Each pattern's sets in order, as far as they lie in it; a key in several has the shade of the first.
    shown: dict[str, tuple[Pattern, tuple[Pattern, ...]]] = {
        "dense": (Pattern("dense"), (Pattern("dense"),)),
        "strided, l = 8": (Pattern("strided", side), (Pattern("window", side), Pattern("columns", side))),
        "fixed, l = 8, c = 2": (Pattern("fixed", side, 2), (Pattern("block", side), Pattern("summaries", side, 2))),
        "three factors, l = 4": (
            Pattern("cubic", 4),
            (Pattern("window", 4), Pattern("window", 16), Pattern("cubic", 4)),
        ),
    }
    figure = new_figure(9.6, 4.35)
    rows = figure.add_gridspec(
        2, 4, height_ratios=(1, 1.6), left=0.006, right=0.994, top=0.94, bottom=0.06, hspace=0.05
    )
    for column, (name, (merged, sets)) in enumerate(shown.items()):
        which = np.full((n, n), -1)
        allowed = merged.mask(n)[0].numpy()
        for order in reversed(range(len(sets))):
            which[sets[order].mask(n)[0].numpy() & allowed] = order
        colors = np.array([to_rgb(color) for color in (*SHADES, UNSEEN)])
        cells = colors[which]
        cells[np.triu_indices(n, 1)] = 1.0
        above, below = figure.add_subplot(rows[0, column]), figure.add_subplot(rows[1, column])
        image = colors[which[query]].reshape(side, side, 3)
        image.reshape(n, 3)[query] = to_rgb(HUES[1])
        image.reshape(n, 3)[query + 1 :] = 1.0
        above.imshow(image, interpolation="nearest")
        below.imshow(cells, interpolation="nearest")
        below.axhline(query, color=HUES[1], linewidth=0.8)
        bold_title(above, name)
        below.set_xlabel(f"{merged.pairs(n) / n:.1f} keys a query", fontsize=8.5, labelpad=3)
        for axes in (above, below):
            axes.set(xticks=[], yticks=[], anchor="W")
            for spine in axes.spines.values():
                spine.set(color=GRID, linewidth=0.8)
        # Lines between the pixels of the image.
        above.set_xticks(np.arange(side - 1) + 0.5, minor=True)
        above.set_yticks(np.arange(side - 1) + 0.5, minor=True)
        above.grid(which="minor", color="white", linewidth=0.8)
        above.tick_params(which="minor", length=0)
    caption = (
        "Which keys are attended to (the paper's Figure 3), n = 64. Above: the tokens as an image of 8 x 8 with one "
        "query in orange. Below: all queries (rows, the orange one marked) and keys (columns). The darkest shade is "
        "the first set (A1), the lighter ones the second (A2) and third; heads may take a set each, or all the union."
    )
    return Picture("connectivity", caption, figure)


# ---------------------------------------------------------------- time and memory against length


def length(runs: Sequence[Run]) -> Picture | None:
    """Time of a head (E1) and memory (E5) against the number of tokens, with their floors."""
    from matplotlib.ticker import LogLocator

    timed, long = _grouped(runs, "slope"), _grouped(runs, "working_gb")
    panels = [
        partial(panel, methods=methods)
        for panel, found in ((_times, timed), (_memory, long))
        for methods in [next(iter(found.values()), {})]
        if any((run["folder"] / "config.json").exists() for group in methods.values() for run in group)
    ]
    if not panels:
        return None
    figure = new_figure(5.0 * len(panels) + 0.2, 3.9)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        plain(axes)
        axes.set_yscale("log")
        panel(axes)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("n (tokens)", fontsize=9)
        axes.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
        axes.xaxis.set_major_locator(LogLocator(base=4))
        axes.minorticks_off()
        axes.legend(fontsize=7.5, frameon=False, loc="upper left", handlelength=2.6)
    figure.subplots_adjust(left=0.62 / figure.get_figwidth(), right=0.97, top=0.92, bottom=0.125, wspace=0.2)
    caption = (
        "Forward and backward passes of one head of 64 against length, both axes logarithmic. Dotted, what is to be "
        "reached: the pairs that a pattern sees in the least time per pair that dense attention took, and the memory "
        "of q, k, v, the output and their gradients."
    )
    return Picture("length", caption, figure)


def _config(run: Run) -> dict[str, Any]:
    """The settings that the run stored."""
    path = run["folder"] / "config.json"
    return read_json(path)["config"] if path.exists() else {}


def _value(metric: float | Mapping[str, float]) -> float:
    return metric["mean"] if isinstance(metric, Mapping) else metric


def _times(axes: "Axes", methods: Mapping[str, Sequence[Run]]) -> None:
    from papers.sparse_transformer.measure_config import Speed
    from papers.sparse_transformer.method import Pattern

    dense: dict[str, dict[int, list[float]]] = {"masked": {}, "causal": {}}
    names = {"masked": "dense, same mask", "causal": "dense, causal"}
    order = METHODS.index
    floors: dict[str, tuple[str, list[int], list[float]]] = {}
    for i, (name, group) in enumerate(sorted(methods.items(), key=lambda item: order(item[0]))):
        run = group[0]
        settings = Speed.of({k: v for k, v in _config(run).items() if k != "seed"})
        metrics = run["metrics"]
        times: dict[int, float] = {}
        pairs: dict[int, int] = {}
        for n, heads in zip(settings.sizes, settings.heads, strict=True):
            times[n] = _value(metrics[f"sparse_ms_{n}"]) / heads
            cells = settings.summary if settings.pattern == "fixed" else 0
            pairs[n] = Pattern(settings.pattern, int(n**0.5), cells).pairs(n)
            for way, found in dense.items():
                if f"{way}_ratio_{n}" in metrics:
                    found.setdefault(n, []).append(times[n] * _value(metrics[f"{way}_ratio_{n}"]))
        label = f"{name} (slope {_value(metrics['slope']):.2f})"
        axes.plot([*times], [*times.values()], "o-", color=HUES[i], markersize=4, linewidth=1.6, label=label)
        floors[name] = (HUES[i], [*pairs], [*pairs.values()])
    for color, (way, found) in zip((INK, MUTED), dense.items(), strict=True):
        if found:
            means = {n: mean(values) for n, values in found.items()}
            axes.plot([*means], [*means.values()], "s", linestyle=STYLES[1], color=color, markersize=3.5,
                      linewidth=1.2, label=names[way])  # fmt: skip
    each = [t / (n * n) for n, values in dense["masked"].items() for t in values]
    each += [t / (n * (n + 1) / 2) for n, values in dense["causal"].items() for t in values]
    if each:
        for name, (color, sizes, pairs_of) in floors.items():
            floor = [min(each) * pairs for pairs in pairs_of]
            label = f"{name}, its pairs at dense speed"
            axes.plot(sizes, floor, linestyle=STYLES[2], color=color, linewidth=1.2, label=label)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("time (ms)", fontsize=9)
    bold_title(axes, "time of forward and backward, one head")


def _memory(axes: "Axes", methods: Mapping[str, Sequence[Run]]) -> None:
    from papers.sparse_transformer.measure_config import Length

    found: dict[str, dict[int, float]] = {}
    for group in methods.values():
        settings = Length.of({k: v for k, v in _config(group[0]).items() if k != "seed"})
        what = f"network, {settings.layers} layers, d = {settings.width}" if settings.layers else "strided attention"
        used = mean(_value(run["metrics"]["working_gb"]) for run in group)
        found.setdefault(what, {})[settings.context] = used
    known = {n for sizes in found.values() for n in sizes}
    sizes = np.geomspace(min(1024, *known), max(known), 30)
    for i, (what, points) in enumerate(found.items()):
        axes.plot([*points], [*points.values()], "o-", color=HUES[2 * i], markersize=4, linewidth=1.6, label=what)
    label, floor = "dense: the scores alone, float32", "q, k, v, output and their gradients"
    axes.plot(sizes, 4 * sizes**2 / 1e9, linestyle=STYLES[1], color=INK, linewidth=1.2, label=label)
    axes.plot(sizes, 8 * 4 * sizes * HEAD / 1e9, linestyle=STYLES[2], color=HUES[0], linewidth=1.2, label=floor)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("memory (GB)", fontsize=9)
    bold_title(axes, "memory of forward and backward")


# ---------------------------------------------------------------- bits against context and time


def context(runs: Sequence[Run]) -> Picture | None:
    """Bits against the minimum context at evaluation (E4), beside the paper's Table 3."""
    from matplotlib.ticker import MaxNLocator

    found = {}
    for experiment, methods in _grouped(runs, "context_bits").items():
        points: dict[int, dict[int, float]] = {}
        for method, group in methods.items():
            if match := CONTEXT.fullmatch(method):
                for run in group:
                    points.setdefault(run["seed"], {})[int(match[1])] = _value(run["metrics"]["context_bits"])
        if any(len(bits) > 1 for bits in points.values()):
            found[experiment] = points
    if not found:
        return None
    panels = len(found) + 1
    figure = new_figure(3.3 * panels + 0.1, 2.9)
    for i, (experiment, points) in enumerate([*found.items(), ("paper, Table 3: enwik8", {0: TABLE_3})]):
        axes = figure.add_subplot(1, panels, i + 1)
        plain(axes)
        color = INK if i == len(found) else HUES[0]
        for bits in points.values():
            axes.plot(*zip(*sorted(bits.items()), strict=True), color=color, linewidth=0.7, alpha=0.45)
        everywhere = sorted(set.intersection(*(set(bits) for bits in points.values())))
        averages = [mean(bits[m] for bits in points.values()) for m in everywhere]
        axes.plot(everywhere, averages, "o-", color=color, markersize=4, linewidth=1.6)
        axes.set_xticks(everywhere if len(everywhere) < 5 else everywhere[:3] + everywhere[-1:])
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.tick_params(labelsize=7.5)
        axes.set_xlabel("minimum context (tokens)", fontsize=8.5)
        bold_title(axes, experiment)
        if i == 0:
            axes.set_ylabel("bits per byte", fontsize=8.5)
    figure.subplots_adjust(left=0.78 / figure.get_figwidth(), right=0.98, top=0.89, bottom=0.17, wspace=0.32)
    caption = (
        "Cost of the same text, each token scored once, when every token has at least so much context. Thin: single "
        "seeds. Thick: their mean. Scales differ."
    )
    return Picture("context", caption, figure)


def _curve(run: Run, name: str) -> list[tuple[float, float]]:
    """(seconds, value) of a curve that the run left."""
    path = run["folder"] / "curves.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(float(row["seconds"]), float(row["value"])) for row in csv.DictReader(file) if row["name"] == name]


def equal_time(runs: Sequence[Run]) -> Iterator[Picture]:
    """Bits against seconds of training where methods were given the same time: experiments whose name ends in -time."""
    for experiment, methods in _grouped(runs, "validation_bits").items():
        curves = {
            name: [c for run in group if (c := _curve(run, "validation_bits"))] for name, group in methods.items()
        }
        curves = {name: found for name, found in curves.items() if found}
        if not experiment.endswith("-time") or len(curves) < 2:
            continue
        figure = new_figure(6.2, 3.4)
        axes = figure.add_subplot(1, 1, 1)
        plain(axes)
        for i, (name, found) in enumerate(curves.items()):
            for seed, curve in enumerate(found):
                axes.plot(*zip(*curve, strict=True), color=HUES[i], linewidth=1.1, marker="o", markersize=3,
                          label=name if seed == 0 else None)  # fmt: skip
        axes.set_xlabel("seconds of training", fontsize=9)
        axes.set_ylabel("validation cost (bits per token)", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
        bold_title(axes, f"{experiment}: bits against time")
        figure.subplots_adjust(left=0.105, right=0.98, top=0.91, bottom=0.135)
        caption = (
            f"{experiment}: each line is a seed. Numbers of steps were fixed beforehand so that all methods take the "
            "same time; seconds are those that each run measured on its machine."
        )
        yield Picture(f"{experiment}-seconds", caption, figure)
