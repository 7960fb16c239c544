"""Pictures of the generative models: samples beside data, where the objects' centres lie, and latent paths."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.report.pictures import Picture, new_figure
from common.report.plots import INK, MUTED
from papers.coordconv.gan.experiments import LSUN, ONE, TWO, VAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arrays = dict[str, np.ndarray]
TITLES = {
    "gan": "GAN",
    "vae": "VAE",
    "coordconv": "CoordConv",
    "coordconv-d": "CoordConv in G and D",
    "coordconv-tanh": "CoordConv, D after tanh",
    "gan-features": "GAN, feature matching",
    "coordconv-features": "CoordConv, feature matching",
}
GRID = 6
"""Samples in a row and in a column of the grid."""
BINS = 8
SHOWN_PATHS, SHOWN_FRAMES = 3, 12


def draw(document: dict[str, Any], folder: Path) -> list[Picture]:
    """Samples, centres and latent paths of each experiment's first seed; none where its runs left no arrays."""
    pictures = []
    for experiment in (ONE, TWO, VAE, LSUN):
        rows = [run for run in document["runs"] if run["experiment"] == experiment]
        seeds = sorted({run["seed"] for run in rows})
        methods = dict.fromkeys(run["method"] for run in rows)
        found = {method: _load(folder / experiment / method / f"seed-{seeds[0]}") for method in methods}
        runs = {method: arrays for method, arrays in found.items() if arrays is not None}
        if not runs:
            continue
        about = f"{experiment}, seed {seeds[0]}"
        caption = (
            f"{about}: the first samples, as they come, beside images of the data; below, the mean of all samples."
        )
        pictures.append(Picture(f"{experiment}-samples", caption, _samples(runs)))
        if all("centers" in arrays for arrays in runs.values()):
            caption = (
                f"{about}: where the objects' centres are in the samples (8 x 8 bins, the darker, the more) "
                "and the entropy in nats; 4.16 would be perfectly even."
            )
            pictures.append(Picture(f"{experiment}-centers", caption, _histograms(runs)))
        caption = f"{about}: images along straight lines between two latent vectors, from left to right."
        pictures.append(Picture(f"{experiment}-paths", caption, _paths(runs)))
    return pictures


def _load(run: Path) -> Arrays | None:
    path = run / "artifacts" / "gan.npz"
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return dict(arrays)


def _title(method: str) -> str:
    return TITLES.get(method, method)


def _bare(axes: "Axes") -> None:
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set(visible=True, color=MUTED, linewidth=0.6)


def _tiled(images: np.ndarray, rows: int, columns: int, gap: int = 1) -> np.ndarray:
    """uint8 [N, H, W, 3] -> one image of rows x columns of them with grey lines between; missing ones are grey."""
    height, width = images.shape[1:3]
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 205, np.uint8)
    for number, image in enumerate(images[: rows * columns]):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _samples(runs: dict[str, Arrays]) -> "Figure":
    """A column for the data and for each method: a grid of images above, the mean image below."""
    first = next(iter(runs.values()))
    columns = [("data", first["data"], first["mean_data"])]
    columns += [(_title(name), arrays["samples"], arrays["mean_sample"]) for name, arrays in runs.items()]
    side, small, left, top = 2.15, 0.95, 0.1, 0.3
    width, height = left + side * len(columns), top + side + small + 0.1
    figure = new_figure(width, height)
    for column, (name, images, mean) in enumerate(columns):
        x = (left + side * column) / width
        axes = figure.add_axes((x, (small + 0.1) / height, 0.94 * side / width, 0.94 * side / height))
        axes.imshow(_tiled(images, GRID, GRID), interpolation="nearest")
        axes.set_title(name, fontsize=9, color=INK, pad=4)
        _bare(axes)
        place = (x + 0.47 * (side - small) / width, 0.05 / height, 0.94 * small / width, 0.94 * small / height)
        axes = figure.add_axes(place)
        axes.imshow(mean, interpolation="nearest")
        _bare(axes)
    return figure


def _histograms(runs: dict[str, Arrays]) -> "Figure":
    """A row for blue, red and blue minus red; a column for the data and for each method."""
    from papers.coordconv.gan.measures import entropy, histogram

    first = next(iter(runs.values()))
    columns = [("data", first["data_centers"])]
    columns += [(_title(name), arrays["centers"]) for name, arrays in runs.items()]
    size, canvas = int(first["size"]), first["samples"].shape[1]
    low, high, span = size, canvas - size, canvas - 2 * size
    rows = [("blue", "Blues", low, high), ("red", "Reds", low, high), ("blue - red", "Greys", -span, span)]
    rows = rows if first["centers"].shape[1] == 2 else rows[:1]
    side, left, top, under = 1.35, 0.75, 0.3, 0.2
    width, height = left + side * len(columns), top + (side + under) * len(rows)
    figure = new_figure(width, height)
    for row, (what, colors, start, stop) in enumerate(rows):
        bottom = 1 - (top + (side + under) * (row + 1) - under) / height
        figure.text(0.01, bottom + 0.46 * side / height, what, va="center", ha="left", fontsize=9, color=INK)
        points = [_points(centers, row) for _, centers in columns]
        counts = [histogram(p, start, stop) / max(len(p), 1) for p in points]
        # Four times the even share is full colour in every panel of the row.
        for column, ((name, _), shares) in enumerate(zip(columns, counts, strict=True)):
            place = ((left + side * column) / width, bottom, 0.92 * side / width, 0.92 * side / height)
            axes = figure.add_axes(place)
            axes.imshow(shares, cmap=colors, vmin=0, vmax=4 / BINS**2, interpolation="nearest")
            _bare(axes)
            axes.set_xlabel(f"{entropy(points[column], start, stop):.2f}", fontsize=8, color=INK, labelpad=2)
            if row == 0:
                axes.set_title(name, fontsize=8, color=INK, pad=4)
    return figure


def _points(centers: np.ndarray, row: int) -> np.ndarray:
    """Blue's centres, red's, or blue's minus red's, of the images that have them: float64 [M, 2]."""
    points = centers[:, row] if row < 2 else centers[:, 0] - centers[:, 1]
    return points[~np.isnan(points).any(1)].astype(np.float64)


def _paths(runs: dict[str, Arrays]) -> "Figure":
    """A strip of frames for each of the first latent paths of each method."""
    strip = 9.0 / SHOWN_FRAMES
    left, top, gap = 1.25, 0.05, 0.12
    width, height = left + 9.0 + 0.05, top + (strip * SHOWN_PATHS + gap) * len(runs)
    figure = new_figure(width, height)
    for row, (name, arrays) in enumerate(runs.items()):
        frames = int(arrays["frames"])
        paths = arrays["paths"].reshape(-1, frames, *arrays["paths"].shape[1:])[:SHOWN_PATHS]
        chosen = np.linspace(0, frames - 1, min(SHOWN_FRAMES, frames)).round().astype(int)
        images = paths[:, chosen].reshape(-1, *paths.shape[2:])
        bottom = 1 - (top + (strip * SHOWN_PATHS + gap) * (row + 1) - gap) / height
        share = strip * SHOWN_PATHS / height
        figure.text(0.01, bottom + share / 2, _title(name), va="center", ha="left", fontsize=8, color=INK, wrap=True)
        axes = figure.add_axes((left / width, bottom, 9.0 / width, share))
        axes.imshow(_tiled(images, len(paths), len(chosen)), interpolation="nearest")
        _bare(axes)
    return figure
