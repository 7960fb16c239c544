"""What single runs learnt, from the artifacts that they left: ways through the plane, key frames, skills for goals.

Also how every picture of this paper is dressed: `new_row`, `dress`, `legend_below` and `steps_axis`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.report.pictures import Picture, new_figure
from common.report.plots import GRID, HUES, INK, MUTED, STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = dict[str, Any]
"""A finished run of the results document with its `folder` and, where it trained an agent, its `config`."""
ARTIFACT = "skills.npz"
SHOWN_SKILLS = (6, 20)
"""Numbers of skills whose ways are shown, where an experiment has them (Fig. 2a has 6)."""
MOST_PANELS = 5


# ---------------------------------------------------------------- how pictures are dressed


def dress(axes: "Axes", title: str = "", x: str = "", y: str = "") -> "Axes":
    """Spines, grid, title and labels as in the report's other plots; the same axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED, labelcolor=INK)
    axes.set_title(title, fontsize=9.5, loc="left", weight="bold", color=INK, parse_math=False)
    axes.set_xlabel(x, fontsize=8.5, color=INK)
    axes.set_ylabel(y, fontsize=8.5, color=INK)
    return axes


def new_row(panels: int, width: float, height: float, below: float, gap: float = 0.65) -> "tuple[Figure, list[Axes]]":
    """A figure with panels side by side, each that many inches, with room for titles and, `below`, for legends."""
    left = gap
    figure = new_figure(panels * (width + gap) + 0.12, height + 0.35 + below)
    total, tall = figure.get_size_inches()
    boxes = [((left + i * (width + gap)) / total, below / tall, width / total, height / tall) for i in range(panels)]
    return figure, [figure.add_axes(box) for box in boxes]


def legend_below(axes: "Axes", inches: float = 0.5, columns: int = 1, handles: Sequence[Any] | None = None) -> None:
    """The legend so many inches below the panel, where no data are; none without labels."""
    known = handles if handles is not None else axes.get_legend_handles_labels()[0]
    figure = axes.get_figure(root=True)
    if not known or figure is None:
        return
    height = axes.get_position().height * figure.get_figheight()
    axes.legend(
        handles=known, fontsize=8, frameon=False, labelcolor=INK, ncols=columns, handlelength=2.2, borderpad=0,
        borderaxespad=0, columnspacing=1.2, loc="upper left", bbox_to_anchor=(0.0, -inches / height),
    )  # fmt: skip


def steps_axis(axes: "Axes") -> None:
    """Environment steps along x, from 0, as 20k and 1.5M."""
    from matplotlib.ticker import MaxNLocator

    def short(n: float, _: Any = None) -> str:
        return f"{n / 1e6:g}M" if n >= 1e6 else f"{n / 1e3:g}k" if n >= 1e3 else f"{n:g}"

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(short)
    axes.set_xlim(left=0)


# ---------------------------------------------------------------- ways through the plane


def first_of_each(runs: Sequence[Run]) -> Iterator[Run]:
    """The run of the lowest seed that left an artifact, of every experiment and method; `runs` are in order of seed."""
    seen = set()
    for run in runs:
        who = run["experiment"], run["method"]
        if who not in seen and "config" in run and (run["folder"] / "artifacts" / ARTIFACT).exists():
            seen.add(who)
            yield run


def alphas(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The experiments that vary the entropy's weight: experiment -> its runs of skills with that number of skills."""
    found: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        if "config" in run:
            found.setdefault((run["experiment"], run["config"].skills), []).append(run)
    return {
        experiment: some for (experiment, _), some in found.items() if len({run["config"].alpha for run in some}) > 2
    }


def trajectories(runs: Sequence[Run]) -> Iterator[Picture]:
    """Where skills go: the paper's Figure 2a and 2b, and for each study of the entropy's weight a panel a weight."""
    first = [run for run in first_of_each(runs) if _flat(run)]
    studies = alphas(runs)
    chosen = []
    for experiment in dict.fromkeys(run["experiment"] for run in first if run["experiment"] not in studies):
        plain = [run for run in first if run["experiment"] == experiment and run["config"].prior == "fixed"]
        by_size = {run["config"].skills: run for run in reversed(plain)}
        chosen += [by_size[k] for k in SHOWN_SKILLS if k in by_size] or plain[:1]
    # One run of each kind: what another experiment repeats in the same environment shows nothing new.
    kinds = {(run["config"].env, run["config"].skills): run for run in reversed(chosen)}
    shown = [run for run in chosen if run in kinds.values()][:MOST_PANELS]
    if shown:
        caption = (
            f"Where skills go (the paper's Figure 2), first seed: stochastic episodes of every skill, a colour each "
            f"(with more than {len(HUES)} skills colours come again, never in neighbouring directions). Black dot: the "
            "start; coloured dots: the ends; grey: walls."
        )
        names = [f"{run['experiment']}: {run['config'].skills} skills" for run in shown]
        yield Picture("trajectories", caption, _panels(shown, names))
    for experiment in studies:
        some = sorted((run for run in first if run["experiment"] == experiment), key=lambda run: run["config"].alpha)
        if some:
            caption = (
                f"{experiment}: where {some[0]['config'].skills} skills go when the policy's entropy is weighted by "
                "alpha, first seed (the paper's Figure 14). A colour for each skill; dots: the ends of episodes."
            )
            names = [f"alpha = {run['config'].alpha:g}" for run in some]
            yield Picture(f"{experiment}-trajectories", caption, _panels(some[:MOST_PANELS], names))


def _flat(run: Run) -> bool:
    with np.load(run["folder"] / "artifacts" / ARTIFACT) as arrays:
        return bool(arrays["plane"])


def _panels(runs: Sequence[Run], names: Sequence[str]) -> "Figure":
    size = min(2.9, 8.6 / len(runs))
    figure, panels = new_row(len(runs), size, size, 0.55, gap=0.5)
    for axes, run, name in zip(panels, runs, names, strict=True):
        with np.load(run["folder"] / "artifacts" / ARTIFACT) as arrays:
            way, alive = arrays["trajectories"], arrays["alive"]
            extent = arrays["extent"] if arrays["extent"].size else None
        dress(axes, name, "x", "y")
        axes.grid(False)
        axes.spines[:].set(visible=True, color=MUTED, linewidth=0.8)
        walls(axes, run["config"].env)
        # Of many skills fewer episodes, or nothing could be told apart.
        count = 4 if len(way) <= len(HUES) else 2
        draw_ways(axes, way[:, :count], alive[:, :count])
        if extent is None:
            axes.set_aspect("equal", adjustable="datalim")
            continue
        (left, right), (low, high) = extent
        # Room for dots and lines that lie on the walls of the box.
        room = 0.02 * (right - left)
        axes.set(xlim=(left - room, right + room), ylim=(low - room, high + room), aspect="equal")
        for ticks, ends in ((axes.set_xticks, (left, right)), (axes.set_yticks, (low, high))):
            ticks([ends[0], (ends[0] + ends[1]) / 2, ends[1]])
    return figure


def draw_ways(axes: "Axes", way: np.ndarray, alive: np.ndarray) -> None:
    """Episodes [K, n, T, 2] of every skill as lines, as far as `alive` bool [K, n, T] (never empty), with dots at ends.

    Colours follow the direction of the ends from the start, so that neighbours differ even where hues come again.
    """
    last = alive.shape[-1] - 1 - alive[..., ::-1].argmax(-1)
    ends = np.take_along_axis(way, last[..., None, None], 2)[:, :, 0]
    moved = (ends - way[:, :, 0]).mean(1)
    order = np.argsort(np.arctan2(moved[:, 1], moved[:, 0]), kind="stable")
    hues = HUES if len(way) <= len(HUES) else HUES[:-1]
    for place, skill in enumerate(order):
        color = hues[place % len(hues)]
        for episode, known, end in zip(way[skill], alive[skill], ends[skill], strict=True):
            axes.plot(*episode[known].T, color=color, linewidth=0.8, alpha=0.75, solid_joinstyle="round")
            axes.plot(*end, "o", color=color, markersize=2.6, zorder=3)
    starts = way[:, :, 0].reshape(-1, 2)
    axes.plot(*starts.T, "o", color=INK, markersize=3.6, zorder=4)


def walls(axes: "Axes", env: str) -> None:
    """What of the plane cannot be entered, in grey, and the goals of an environment that has some."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Circle
    from torch import tensor

    from papers.diayn.dynamics import DYNAMICS, Hallway, Waypoints

    dynamics = DYNAMICS.get(env)
    if isinstance(dynamics, Hallway) and dynamics.extent is not None:
        (left, right), (low, high) = dynamics.extent
        cells = 200
        x, y = (a + (b - a) * (np.arange(cells) + 0.5) / cells for a, b in ((left, right), (low, high)))
        free = dynamics.inside(tensor(np.stack(np.meshgrid(x, y), -1))).numpy()
        image = np.zeros((cells, cells, 4))
        image[~free] = to_rgba(MUTED, 0.35)
        axes.imshow(image, extent=(left, right, low, high), origin="lower", interpolation="nearest", zorder=0)
    if isinstance(dynamics, Waypoints):
        for goal in set(dynamics.goals):
            axes.add_patch(Circle(goal, 0.5, facecolor="none", edgecolor=MUTED, linestyle=(0, (3, 2)), linewidth=1))


# ---------------------------------------------------------------- what skills are good for


def artifact(folder: Path, name: str) -> Path | None:
    """The path of an artifact where the run left it."""
    path = folder / "artifacts" / name
    return path if path.exists() else None


def draw_goals(axes: "Axes", path: Path) -> None:
    """Episodes of the skill that is chosen for each goal, joined to the goal where they end apart from it."""
    with np.load(path) as arrays:
        goals, ways, skill = arrays["goals"], arrays["trajectories"], arrays["skill"]
    axes.grid(False)
    axes.spines[:].set(visible=True, color=MUTED, linewidth=0.8)
    used = {number: HUES[i % len(HUES)] for i, number in enumerate(dict.fromkeys(skill.tolist()))}
    for goal, way, number in zip(goals, ways, skill.tolist(), strict=True):
        axes.plot(*way.T, color=used[number], linewidth=0.7, alpha=0.6)
        axes.plot(*np.stack([way[-1], goal]).T, color=used[number], linewidth=0.8, linestyle=STYLES[2])
        axes.plot(*goal, "x", color=used[number], markersize=5, markeredgewidth=1.4, zorder=3)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))


def imitated(run: Run) -> list[tuple[float, float]]:
    """(score, distance) of the skill that the student chose, for every skill of the expert."""
    path = artifact(run["folder"], "imitation.npz")
    if path is None:
        return []
    with np.load(path) as arrays:
        chosen = np.arange(len(arrays["skill"])), arrays["skill"]
        return [*zip(arrays["scores"][chosen].tolist(), arrays["distances"][chosen].tolist(), strict=True)]


# ---------------------------------------------------------------- key frames


def key_frames(runs: Sequence[Run]) -> Iterator[Picture]:
    """A strip of frames for each of a few skills, of one method of every experiment whose environment can be drawn."""
    found: dict[str, tuple[Run, Mapping[str, np.ndarray]]] = {}
    for run in first_of_each(runs):
        kind = run["config"].env
        if kind not in found and run["config"].prior == "fixed":
            with np.load(run["folder"] / "artifacts" / ARTIFACT) as arrays:
                if "frames" in arrays:
                    found[kind] = run, {name: arrays[name] for name in arrays if name.startswith("frame")}
    for run, arrays in found.values():
        caption = (
            f"{run['experiment']}, {run['method']}, first seed: key frames of some of {run['config'].skills} skills, "
            "in the order of what their episodes earn in the task, which they never saw. Frames are evenly spaced from "
            "the first step of an episode to its last."
        )
        yield Picture(f"{run['experiment']}-frames", caption, _strips(**arrays))


def _strips(
    frames: np.ndarray, frame_skills: np.ndarray, frame_steps: np.ndarray, frame_returns: np.ndarray
) -> "Figure":
    """frames: uint8 [skills, frames, h, w, 3]; frame_skills, frame_returns [skills]; frame_steps [skills, frames]."""
    rows, columns, height, width = frames.shape[:4]
    across = min(1.3, 8.0 / columns)
    down, gap, names = across * height / width, 0.2, 1.15
    figure = new_figure(names + columns * (across + 0.06), 0.05 + rows * (down + gap))
    total, tall = figure.get_size_inches()
    for i in range(rows):
        for j in range(columns):
            left, top = names + j * (across + 0.06), gap + i * (down + gap)
            axes = figure.add_axes((left / total, 1 - (top + down) / tall, across / total, down / tall))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=GRID, linewidth=0.8)
            axes.imshow(frames[i, j], interpolation="antialiased")
            axes.set_title(f"step {frame_steps[i, j]}", fontsize=7.5, color=MUTED, pad=2.5, loc="left")
        middle = 1 - (gap + i * (down + gap) + down / 2) / tall
        words = f"skill {frame_skills[i]}\nreturn {frame_returns[i]:.4g}"
        figure.text((names - 0.1) / total, middle, words, ha="right", va="center", fontsize=8.5, color=INK)
    return figure
