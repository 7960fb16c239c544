"""Pictures of detection: proposals beside true boxes, and the two layouts of anchors."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.report.pictures import Picture, new_figure
from common.report.plots import HUES, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arrays = dict[str, np.ndarray]
ROWS = {
    "conv": "conv\ncorrect anchors",
    "coordconv": "CoordConv\ncorrect anchors",
    "conv-released": "conv\nreleased anchors",
    "coordconv-released": "CoordConv\nreleased anchors",
}
LAYOUTS = {"conv": "correct", "conv-released": "released"}
CELLS = ((0, 0), (3, 9), (6, 6), (12, 12))
SHOWN = 6
TRUE, FOUND = HUES[2], HUES[1]


def draw(document: dict[str, Any], folder: Path) -> list[Picture]:
    """Two pictures of each detection experiment, from its first seed; none where its runs left no boxes."""
    pictures = []
    for experiment in dict.fromkeys(run["experiment"] for run in document["runs"]):
        if not experiment.startswith("detection-"):
            continue
        seeds = sorted({run["seed"] for run in document["runs"] if run["experiment"] == experiment})
        found = {method: _load(folder / experiment / method / f"seed-{seeds[0]}") for method in ROWS}
        runs = {method: arrays for method, arrays in found.items() if arrays is not None}
        if runs:
            caption = (
                f"{experiment}, seed {seeds[0]}: the first test images. Dashed: the true boxes (some lie outside). "
                "Solid: the proposals left after suppression, at most ten; the fainter, the less certain."
            )
            pictures.append(Picture(f"{experiment}-boxes", caption, _boxes(runs)))
        if layouts := {LAYOUTS[method]: arrays for method, arrays in runs.items() if method in LAYOUTS}:
            caption = (
                "The nine anchors of four cells (crosses: where the cells look) before anything moves them. "
                "In the released layout five of nine have a size that depends on the cell's place, and the last four "
                "are the same in every cell."
            )
            pictures.append(Picture(f"{experiment}-anchors", caption, _anchors(layouts)))
    return pictures


def _load(run: Path) -> Arrays | None:
    path = run / "artifacts" / "detections.npz"
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return dict(arrays)


def _canvas(axes: "Axes", low: float, high: float) -> None:
    axes.set(xlim=(low, high), ylim=(high, low), xticks=[], yticks=[], aspect="equal")
    for side in axes.spines.values():
        side.set_visible(False)


def _outline(axes: "Axes", box: np.ndarray, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    i, j, height, width = (float(number) for number in box)
    axes.add_patch(Rectangle((j - width / 2, i - height / 2), width, height, fill=False, **style))


def _boxes(runs: dict[str, Arrays]) -> "Figure":
    """A row for each method, a column for each image."""
    columns = min(SHOWN, *(len(arrays["images"]) for arrays in runs.values()))
    side, left, top = 1.35, 1.15, 0.1
    width, height = left + side * columns, top + side * len(runs)
    figure = new_figure(width, height)
    for row, (method, arrays) in enumerate(runs.items()):
        bottom = 1 - (top + side * (row + 1)) / height
        figure.text(0.01, bottom + 0.46 * side / height, ROWS[method], va="center", ha="left", fontsize=8, color=INK)
        for column in range(columns):
            place = ((left + side * column) / width, bottom, 0.96 * side / width, 0.96 * side / height)
            axes = figure.add_axes(place)
            _canvas(axes, -14, 78)
            axes.imshow(arrays["images"][column], cmap="gray", vmin=0, vmax=255, extent=(0, 64, 64, 0))
            _canvas(axes, -14, 78)
            for box in arrays["truths"][column]:
                _outline(axes, box, edgecolor=TRUE, linewidth=1.1, linestyle=(0, (2.5, 1.5)), clip_on=True)
            there = arrays["found"][column]
            certain = arrays["probabilities"][column][there]
            for box, probability in zip(arrays["proposals"][column][there], certain, strict=True):
                _outline(axes, box, edgecolor=FOUND, linewidth=0.9, alpha=0.25 + 0.75 * float(probability))
    return figure


def _anchors(layouts: dict[str, Arrays]) -> "Figure":
    """A row for each layout, a column for each of four cells."""
    side, left, top = 1.75, 0.75, 0.28
    width, height = left + side * len(CELLS), top + side * len(layouts)
    figure = new_figure(width, height)
    for row, (layout, arrays) in enumerate(layouts.items()):
        cells = round((len(arrays["anchors"]) / 9) ** 0.5)
        anchors = arrays["anchors"].reshape(cells, cells, 9, 4)
        first, step = (8, 4) if cells == 13 else (2, 4)
        bottom = 1 - (top + side * (row + 1)) / height
        figure.text(0.01, bottom + 0.46 * side / height, layout, va="center", ha="left", fontsize=9, color=INK)
        for column, (i, j) in enumerate(CELLS):
            place = ((left + side * column) / width, bottom, 0.94 * side / width, 0.94 * side / height)
            axes = figure.add_axes(place)
            _canvas(axes, -8, 92)
            _outline(axes, np.array([32, 32, 64, 64]), edgecolor=MUTED, linewidth=0.8)
            for number, box in enumerate(anchors[i, j]):
                _outline(axes, box, edgecolor=HUES[number % len(HUES)], linewidth=1.0, alpha=0.9)
            axes.plot([first + step * j], [first + step * i], marker="+", color=INK, markersize=7)
            if row == 0:
                axes.set_title(f"cell ({i}, {j})", fontsize=8, color=INK, pad=3)
    return figure
