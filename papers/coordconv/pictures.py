"""Pictures of the supervised tasks: which pixels are predicted right, the sweep, rendered squares, regressed points."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.report.pictures import Picture, new_figure
from common.report.plots import GRID, HUES, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_METHODS = 6
"""Panels of one experiment; of a sweep the best model of each kind is shown."""
RIGHT, WRONG, TRAIN_RIGHT, TRAIN_WRONG = HUES[0], HUES[1], "#9ecae1", "#f3c39b"
TASKS = {"test_accuracy": "classification", "test_rendering_iou": "rendering", "test_error": "regression"}
SWEPT = re.compile(r"-k\d+-lr(?P<rate>[\d.]+)-m\d+")

Run = dict[str, Any]


def _runs(document: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Run]]:
    """experiment -> method -> the finished run of the lowest seed, with its task and its arrays if they are there."""
    found: dict[str, dict[str, Run]] = {}
    for run in sorted(document["runs"], key=lambda run: run["seed"]):
        task = next((task for metric, task in TASKS.items() if metric in run["metrics"]), None)
        if run["status"] != "finished" or task is None or "parameters" not in run["metrics"]:
            continue
        where = folder / run["experiment"] / run["method"] / f"seed-{run['seed']}" / "artifacts" / "predictions.npz"
        if where.exists():
            found.setdefault(run["experiment"], {}).setdefault(run["method"], {**run, "task": task, "arrays": where})
    return found


def _score(run: Run) -> float:
    """The run's test score, higher is better."""
    metric = next(metric for metric, task in TASKS.items() if task == run["task"])
    return -run["metrics"][metric] if run["task"] == "regression" else run["metrics"][metric]


def _shown(methods: Mapping[str, Run]) -> dict[str, Run]:
    """A few of an experiment's runs: all, or of a sweep the best of each kind."""
    if len(methods) <= MOST_METHODS:
        return dict(methods)
    best: dict[str, tuple[str, Run]] = {}
    for name, run in methods.items():
        kind = name.partition("-")[0]
        if kind not in best or _score(run) > _score(best[kind][1]):
            best[kind] = (name, run)
    return dict(list(best.values())[:MOST_METHODS])


def _of_task(runs: Mapping[str, Mapping[str, Run]], task: str) -> dict[str, dict[str, Run]]:
    chosen = {
        experiment: _shown({name: run for name, run in methods.items() if run["task"] == task})
        for experiment, methods in runs.items()
    }
    return {experiment: methods for experiment, methods in chosen.items() if methods}


def _panels(rows: Mapping[str, Mapping[str, Run]], size: float) -> tuple[Any, list[tuple[str, Run, "Axes"]]]:
    """A figure with a row for each experiment and a panel for each of its methods."""
    columns = max(len(methods) for methods in rows.values())
    figure = new_figure(size * columns + 0.2, (size + 0.5) * len(rows) + 0.4)
    panels = []
    for i, (experiment, methods) in enumerate(rows.items()):
        for j, (name, run) in enumerate(methods.items()):
            axes = figure.add_subplot(len(rows), columns, i * columns + j + 1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{experiment}\n{name}" if j == 0 else f"\n{name}", fontsize=8, loc="left")
            panels.append((experiment, run, axes))
    return figure, panels


def _grid(centers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of the samples as an image: one pixel for each centre, y down."""
    first, side = centers.min(), centers.max() - centers.min() + 1
    image = np.zeros((side, side, *values.shape[1:]), values.dtype)
    image[centers[:, 1] - first, centers[:, 0] - first] = values
    return image


def predictions(runs: Mapping[str, Mapping[str, Run]]) -> Picture | None:
    """The paper's picture of classification: for each centre, whether the network finds it."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    rows = _of_task(runs, "classification")
    if not rows:
        return None
    figure, panels = _panels(rows, 1.9)
    colors = np.array([to_rgb(color) for color in (WRONG, RIGHT, TRAIN_WRONG, TRAIN_RIGHT)])
    for _, run, axes in panels:
        with np.load(run["arrays"]) as arrays:
            right = (arrays["predicted"] == arrays["centers"]).all(1)
            image = _grid(arrays["centers"].astype(int), colors[2 * arrays["in_train"] + right])
        axes.imshow(image, interpolation="nearest")
        metrics = run["metrics"]
        axes.set_xlabel(f"train {metrics['train_accuracy']:.1f} %, test {metrics['test_accuracy']:.1f} %", fontsize=7.5)
    names = ("test, right", "test, wrong", "train, right", "train, wrong")
    handles = [Patch(color=c, label=n) for c, n in zip((RIGHT, WRONG, TRAIN_RIGHT, TRAIN_WRONG), names, strict=True)]
    height, columns = figure.get_figheight(), 4 if figure.get_figwidth() > 6 else 2
    figure.legend(handles=handles, ncols=columns, loc="lower left", fontsize=8, frameon=False)
    bottom = (0.4 + 0.6 / columns) / height
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.45 / height, bottom=bottom, hspace=0.5, wspace=0.08)
    caption = (
        "Coordinate classification, first seed: each pixel is a centre (x, y), coloured by whether the network that is "
        "given (x, y) lights that very pixel."
    )
    return Picture("coordinate-predictions", caption, figure)


def sweep(document: Mapping[str, Any], experiment: str, task: str) -> Picture | None:
    """The paper's scatter of a sweep: test score against parameters and against train score, by learning rate."""
    metric = {"classification": "accuracy", "rendering": "rendering_iou"}[task]
    points = [
        (run["metrics"]["parameters"], run["metrics"][f"train_{metric}"], run["metrics"][f"test_{metric}"],
         run["method"], match)
        for run in document["runs"]
        if run["experiment"] == experiment and run["status"] == "finished"
        and f"test_{metric}" in run["metrics"] and (match := SWEPT.search(run["method"]))
    ]  # fmt: skip
    rates = sorted({float(match["rate"]) for *_, match in points})
    if len(rates) < 2:
        return None
    name = {"classification": "accuracy (percent)", "rendering": "IOU"}[task]
    figure = new_figure(9.5, 3.6)
    by_size, by_train = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for i, rate in enumerate(rates):
        for kind, marker in (("deconv", "o"), ("coordconv", "*")):
            chosen = [p for p in points if float(p[4]["rate"]) == rate and p[3].startswith(kind)]
            if not chosen:
                continue
            size, train, test = (np.array([p[j] for p in chosen]) for j in range(3))
            style: dict[str, Any] = {
                "s": 90 if marker == "*" else 26, "marker": marker, "color": HUES[i % len(HUES)], "alpha": 0.75,
                "edgecolors": INK if marker == "*" else "none", "linewidths": 0.6, "clip_on": False,
            }  # fmt: skip
            by_size.scatter(size, test, **style)
            by_train.scatter(train, test, label=f"{kind}, {rate:g}", **style)
    by_size.set_xscale("log")
    by_size.xaxis.set_major_formatter("{x:,.0f}")
    by_size.xaxis.set_minor_formatter("")
    by_size.set(xlabel="parameters", ylabel=f"test {name}", title=experiment)
    top = 100 if task == "classification" else 1
    by_train.plot([0, top], [0, top], color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
    by_train.set(xlabel=f"train {name}", xlim=(-0.03 * top, 1.03 * top))
    for axes in (by_size, by_train):
        axes.set_ylim(-0.03 * top, 1.03 * top)
        axes.grid(True, color=GRID)
    by_train.legend(title="learning rate", fontsize=7.5, title_fontsize=8, frameon=False, loc="upper left",
                    bbox_to_anchor=(1.0, 1.02))  # fmt: skip
    figure.subplots_adjust(left=0.07, right=0.82, top=0.9, bottom=0.15, wspace=0.2)
    caption = (
        f"The sweep on {experiment}: every configuration and seed is a point (stars: CoordConv), coloured by its "
        "learning rate. On the dashed line a network does as well on the held-out centres as on its training set."
    )
    return Picture(f"sweep-{experiment}", caption, figure)


def renderings(runs: Mapping[str, Mapping[str, Run]]) -> Picture | None:
    """Squares that were not trained on, as each network paints them, beside the targets."""
    rows: list[tuple[str, np.ndarray]] = []
    for experiment, methods in _of_task(runs, "rendering").items():
        for i, (name, run) in enumerate(methods.items()):
            with np.load(run["arrays"]) as arrays:
                if i == 0:
                    rows.append((f"{experiment}\ntarget", arrays["targets"]))
                rows.append((f"{name}\nIOU {run['metrics']['test_rendering_iou']:.2f}", arrays["painted"]))
    if not rows:
        return None
    columns = len(rows[0][1])
    figure = new_figure(1.9 + 0.85 * columns, 0.1 + 0.9 * len(rows))
    for i, (label, images) in enumerate(rows):
        for j, image in enumerate(images[:columns]):
            axes = figure.add_subplot(len(rows), columns, i * columns + j + 1)
            axes.imshow(image, cmap="Blues", vmin=0, vmax=255, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if j == 0:
                axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(left=1.8 / figure.get_figwidth(), right=0.995, top=0.99, bottom=0.01, wspace=0.06)
    caption = "Rendering, first seed: the probability of every pixel for eight held-out (x, y); blue is 1."
    return Picture("renderings", caption, figure)


def regressions(runs: Mapping[str, Mapping[str, Run]]) -> Picture | None:
    """Where each network sees the centres: a perfect one draws a regular grid."""
    rows = _of_task(runs, "regression")
    if not rows:
        return None
    figure, panels = _panels(rows, 2.2)
    for _, run, axes in panels:
        with np.load(run["arrays"]) as arrays:
            centers, predicted, in_train = arrays["centers"].astype(float), arrays["predicted"], arrays["in_train"]
        # A dot covers half of the distance between two centres in a panel of 140 points.
        size = 70 / (centers.max() - centers.min() + 8)
        for mask, color in ((in_train, TRAIN_RIGHT), (~in_train, WRONG)):
            axes.plot(*predicted[mask].T, ".", markersize=2 * size, color=color, markeredgewidth=0)
        low, high = centers.min() - 4, centers.max() + 4
        axes.set(xlim=(low, high), ylim=(high, low), aspect="equal")
        metrics = run["metrics"]
        axes.set_xlabel(
            f"train {metrics['best_train_error']:.2f} px, test {metrics['best_test_error']:.2f} px", fontsize=7.5
        )
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.02, right=0.99, top=1 - 0.45 / height, bottom=0.3 / height, hspace=0.4, wspace=0.1)
    caption = (
        "Coordinate regression, first seed: the point each network gives for every centre's image, blue for training "
        "samples and orange for held-out ones; a perfect network draws the regular grid of the centres."
    )
    return Picture("regressed-points", caption, figure)


def draw(document: Mapping[str, Any], folder: Path) -> list[Picture]:
    """Every picture of the supervised tasks for which there are runs and artifacts."""
    runs = _runs(document, folder)
    found: Sequence[Picture | None] = [predictions(runs), renderings(runs), regressions(runs)]
    sweeps = [
        sweep(document, experiment, task)
        for experiment, methods in runs.items()
        for task in {run["task"] for run in methods.values()} & {"classification", "rendering"}
        if all(SWEPT.search(name) for name in methods)
    ]
    return [picture for picture in (*found, *sweeps) if picture is not None]
