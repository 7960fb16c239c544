"""What trained networks do: their attention weights and their samples, from the files that `artifacts.py` writes."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.report.pictures import Picture, new_figure
from common.report.plots import GRID, HUES, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = dict[str, Any]
METHODS = ("dense", "strided", "fixed", "local")
"""The methods that most experiments have, and of which pictures of single runs show no others."""

MOST_MAPPED = 3
"""Experiments whose attention weights are drawn."""


def plain(axes: "Axes") -> None:
    """Spines and grid as in the report's other plots."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED, labelcolor=INK)


def bold_title(axes: "Axes", title: str) -> None:
    axes.set_title(title, fontsize=9.5, loc="left", weight="bold", color=INK, parse_math=False)


def _shown(runs: Sequence[Run], name: str) -> dict[str, dict[str, Path]]:
    """experiment -> method -> that artifact of the lowest seed, without ablations and repetitions at equal time."""
    found: dict[str, dict[str, Path]] = {}
    for run in runs:
        path = run["folder"] / "artifacts" / name
        if run["method"] in METHODS and not run["experiment"].endswith(("-time", "-ablation")) and path.exists():
            found.setdefault(run["experiment"], {}).setdefault(run["method"], path)
    order = METHODS.index
    return {experiment: {m: paths[m] for m in sorted(paths, key=order)} for experiment, paths in found.items()}


def attention(runs: Sequence[Run]) -> Iterator[Picture]:
    """Attention weights of trained networks on one sequence, a row for each method."""
    for experiment, paths in [*_shown(runs, "attention.npz").items()][:MOST_MAPPED]:
        figure: Figure | None = None
        for row, (method, path) in enumerate(paths.items()):
            with np.load(path) as arrays:
                weights = arrays["weights"].astype(np.float32)
                names = [(layer, head) for layer in arrays["layers"] for head in arrays["heads"]]
                n = int(arrays["length"])
            maps = weights.reshape(-1, *weights.shape[2:])
            if figure is None:
                figure = new_figure(1.95 * len(maps) + 0.75, 1.95 * len(paths) + 0.3)
            for column, (cells, (layer, head)) in enumerate(zip(maps, names, strict=True)):
                axes = figure.add_subplot(len(paths), len(maps), row * len(maps) + column + 1)
                # The square root lets small weights be seen beside those near 1.
                axes.imshow(np.sqrt(cells), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set(color=GRID)
                if row == 0:
                    axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8.5, color=INK)
                if column == 0:
                    axes.set_ylabel(method, fontsize=9, weight="bold", parse_math=False)
        if figure is None:
            continue
        width, height = figure.get_size_inches()
        figure.subplots_adjust(left=0.3 / width, right=1 - 0.05 / width, top=1 - 0.27 / height, bottom=0.05 / height,
                               hspace=0.06, wspace=0.06)  # fmt: skip
        caption = (
            f"{experiment}, first seed: attention weights after training on the first {n} tokens of the test split, "
            "queries down, keys across; the darker the larger (square root), white is 0 or not seen."
        )
        yield Picture(f"{experiment}-attention", caption, figure)


def samples(runs: Sequence[Run]) -> Iterator[Picture]:
    """What the trained networks generate, beside the data."""
    kinds = {"image": _images, "audio": _waves, "midi": _rolls}
    for experiment, paths in _shown(runs, "samples.npz").items():
        rows: dict[str, np.ndarray] = {}
        decode, vocabulary, grid = "", 256, ()
        for method, path in paths.items():
            with np.load(path) as arrays:
                decode, vocabulary, grid = str(arrays["decode"]), int(arrays["vocabulary"]), tuple(arrays["grid"])
                rows.setdefault("data", arrays["data"])
                rows[method] = arrays["tokens"]
        figure = kinds[decode](rows, vocabulary, grid) if decode in kinds else _texts(rows)
        caption = (
            f"{experiment}, first seed: what the networks generate from nothing at temperature 1, beside test data."
        )
        yield Picture(f"{experiment}-samples", caption, figure)


def _images(rows: Mapping[str, np.ndarray], vocabulary: int, grid: Sequence[int]) -> "Figure":
    from papers.sparse_transformer.data import to_images

    height, width, channels = grid
    gap = max(1, width // 12)
    columns = max(len(tokens) for tokens in rows.values())
    figure = new_figure(0.75 + 1.0 * columns, (1.0 * height / width + 0.04) * len(rows))
    for i, (name, tokens) in enumerate(rows.items()):
        strip = np.full((height, columns * (width + gap) - gap, channels), 255, np.uint8)
        for j, image in enumerate(to_images(tokens, grid, vocabulary)):
            strip[:, j * (width + gap) : j * (width + gap) + width] = image
        axes = figure.add_subplot(len(rows), 1, i + 1, anchor="W")
        axes.imshow(strip[..., 0] if channels == 1 else strip, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, labelpad=6, parse_math=False)
    figure.subplots_adjust(left=0.75 / figure.get_figwidth(), right=0.995, top=0.99, bottom=0.01, hspace=0.08)
    return figure


def _texts(rows: Mapping[str, np.ndarray], lines: int = 14) -> "Figure":
    """The first text of each row in a panel of its own, in two columns or three."""
    columns = 2 if len(rows) % 3 else 3
    panels = {name: _wrapped(tokens[0], {2: 76, 3: 49}[columns])[:lines] for name, tokens in rows.items()}
    names = [*panels]
    beside = [names[i : i + columns] for i in range(0, len(names), columns)]
    heights = [0.36 + 0.122 * max(len(panels[name]) for name in some) for some in beside]
    figure = new_figure(9.6, sum(heights) + 0.05)
    total, top = figure.get_figheight(), 0.06
    for some, height in zip(beside, heights, strict=True):
        for side, name in enumerate(some):
            x = 0.006 + side / columns
            figure.text(x, 1 - top / total, name, fontsize=9, weight="bold", va="top", parse_math=False, color=INK)
            for number, words in enumerate(panels[name]):
                y = 1 - (top + 0.2 + 0.122 * number) / total
                # No-break spaces: a web page would draw several spaces, or leading ones, as one or none.
                figure.text(x, y, words.replace(" ", "\u00a0"), fontsize=7, family="monospace", va="top", color=INK,
                            parse_math=False)  # fmt: skip
        top += height
    return figure


def _wrapped(tokens: np.ndarray, width: int) -> list[str]:
    """Bytes as lines of at most `width` characters; what cannot be shown becomes a dot."""
    text = tokens.astype(np.uint8).tobytes().decode("utf-8", "replace").expandtabs(4)
    text = "".join(c if c == "\n" or (c.isprintable() and c != "\ufffd") else "·" for c in text)
    return [
        piece
        for line in text.split("\n")
        for piece in textwrap.wrap(line, width, drop_whitespace=False, replace_whitespace=False) or [""]
    ]


def _waves(rows: Mapping[str, np.ndarray], vocabulary: int, grid: Sequence[int]) -> "Figure":
    from papers.sparse_transformer.music import RATE, decode_mu_law

    def wave(axes: "Axes", tokens: np.ndarray) -> None:
        axes.plot(np.arange(len(tokens)) * 1000 / RATE, decode_mu_law(tokens), color=HUES[0], linewidth=0.8)

    return _sequences(rows, "milliseconds", wave, (-1.05, 1.05))


def _rolls(rows: Mapping[str, np.ndarray], vocabulary: int, grid: Sequence[int]) -> "Figure":
    """Pitches of the voices of the longest chorale of each row."""
    from papers.sparse_transformer.music import VOICES, chorales_of_tokens

    def roll(axes: "Axes", tokens: np.ndarray) -> None:
        piece = max(chorales_of_tokens(tokens), key=len, default=np.full((1, VOICES), -1))
        for voice, color in enumerate(HUES[:VOICES]):
            steps = np.flatnonzero(piece[:, voice] >= 0)
            axes.hlines(piece[steps, voice], steps, steps + 1, color=color, linewidth=2)

    return _sequences(rows, "step (sixteenth notes)", roll, (33, 90))


def _sequences(rows: Mapping[str, np.ndarray], unit: str, plot: Any, limits: tuple[float, float]) -> "Figure":
    """A wide panel for each row's first sequence, all on the same scales."""
    figure = new_figure(9.0, 0.95 * len(rows) + 0.5)
    first: Axes | None = None
    for i, (name, tokens) in enumerate(rows.items()):
        axes = figure.add_subplot(len(rows), 1, i + 1, sharex=first)
        first = first or axes
        plain(axes)
        plot(axes, tokens[0])
        axes.set_ylim(limits)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, labelpad=6, parse_math=False)
        axes.tick_params(labelsize=7, labelbottom=i == len(rows) - 1)
    if first is not None:
        figure.axes[-1].set_xlabel(unit, fontsize=8.5)
    figure.subplots_adjust(left=0.095, right=0.99, top=0.98, bottom=0.45 / figure.get_figheight(), hspace=0.15)
    return figure
