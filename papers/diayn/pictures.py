"""Pictures of the report: what skills earn, how p(z) and the entropy's weight act, and what skills are good for.

Every function draws what the results and the runs' files allow, and nothing where there is nothing. What single runs
learnt (ways, key frames) is in `gallery.py`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from common.curves import read_rows
from common.files import read_json
from common.report.curves import average
from common.report.pictures import Picture
from common.report.plots import HUES, INK, MUTED, STYLES, method_styles
from common.report.text import slug
from papers.diayn.config import Config
from papers.diayn.downstream_claims import STANDING_STILL
from papers.diayn.gallery import (
    SHOWN_SKILLS,
    Run,
    alphas,
    artifact,
    draw_goals,
    dress,
    imitated,
    key_frames,
    legend_below,
    new_row,
    steps_axis,
    trajectories,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = "environment steps"
NUMBER_OF_SKILLS = re.compile(r"(?:^|-)k-?(\d+)(?:-|$)")
PAPERS_ALPHA = 0.1
MIDDLE = "k20"
"""The method of the hierarchy whose skills took as many steps as the agents without skills."""
UNTRAINED, GOALS = "untrained.npz", "goals.npz"
"""Artifacts of `artifacts.py` and of `measure.py`."""


def draw(document: Mapping[str, Any], folder: Path) -> list[Picture]:
    """Every picture that the results, and the runs' files below `folder`, allow."""
    runs = [_opened(run, folder) for run in document["runs"] if run["status"] == "finished"]
    runs.sort(key=lambda run: run["seed"])
    found = [
        *trajectories(runs), *task_rewards(runs), effective_skills(runs), entropy_weight(runs), *information(runs),
        *tasks(runs), hierarchy(runs), imitation(runs), *key_frames(runs),
    ]  # fmt: skip
    return [picture for picture in found if picture is not None]


def _opened(run: Run, folder: Path) -> Run:
    """With its folder, and the settings and curves of one that trained an agent or a meta-controller."""
    run = {**run, "folder": folder / run["experiment"] / run["method"] / f"seed-{run['seed']}", "curves": {}}
    if "accuracy" in run["metrics"] and (path := run["folder"] / "config.json").exists():
        run["config"] = Config.of(read_json(path)["config"])
    if "accuracy" in run["metrics"] or "task_return" in run["metrics"]:
        for row in read_rows(run["folder"] / "curves.csv"):
            run["curves"].setdefault(row["name"], {})[int(row["samples"])] = float(row["value"])
    return run


def _value(run: Run, metric: str) -> float:
    found = run["metrics"][metric]
    return float(found["mean"] if isinstance(found, Mapping) else found)


def _grouped(runs: Sequence[Run], metric: str) -> dict[str, dict[str, list[Run]]]:
    """experiment -> method -> the runs with that metric, by seed."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if metric in run["metrics"]:
            found.setdefault(run["experiment"], {}).setdefault(run["method"], []).append(run)
    return found


def _band(axes: "Axes", runs: Sequence[Run], name: str, color: str, style: Any, label: str) -> bool:
    """Mean over seeds and its 95 % band of a curve; whether the runs left it."""
    curves = {i: run["curves"][name] for i, run in enumerate(runs) if name in run["curves"]}
    if not curves:
        return False
    line = average(curves)
    axes.fill_between(line.steps, line.low, line.high, color=color, alpha=0.13, linewidth=0)
    marker: dict[str, Any] = {"marker": "o", "markersize": 4} if len(line.steps) == 1 else {}
    axes.plot(line.steps, line.mean, color=color, linestyle=style, linewidth=1.6, label=label, **marker)
    return True


# ---------------------------------------------------------------- what skills earn


def task_rewards(runs: Sequence[Run]) -> Iterator[Picture]:
    """Mean return of each skill over training, and its histogram beside that of untrained skills (Fig. 13, 15, 18)."""
    for experiment, methods in _grouped(runs, "return_range").items():
        found = next((some for some in methods.values() if all(map(_earns, some))), None)
        if found is None:
            continue
        curves = [_returns(run) for run in found]
        figure, (left, right) = new_row(2, 4.0, 2.7, 0.8, gap=0.85)
        dress(left, f"{experiment}: every skill, first seed", SAMPLES, "mean return of a skill")
        for curve in curves[0]:
            left.plot(*zip(*sorted(curve.items()), strict=True), color=HUES[0], linewidth=0.9, alpha=0.55)
        steps_axis(left)
        everything = [value for run in curves for curve in run for value in curve.values()]
        edges = np.linspace(min(everything), max(everything), 26)
        dress(right, f"{experiment}: skills of {len(curves)} seed{'s'[: len(curves) > 1]}", "share of skills (percent)")
        for label, color, values in (
            ("untrained skills", MUTED, [curve[0] for run in curves for curve in run if 0 in curve]),
            ("trained skills", HUES[0], [curve[max(curve)] for run in curves for curve in run]),
        ):
            if values:
                share = 100 * np.histogram(values, edges)[0] / len(values)
                right.stairs(share, edges, orientation="horizontal", fill=True, color=color, alpha=0.4, label=label)
                right.stairs(share, edges, orientation="horizontal", color=color, linewidth=1.2)
        room = 0.04 * (edges[-1] - edges[0])
        for axes in (left, right):
            axes.set_ylim(edges[0] - room, edges[-1] + room)
        right.set_xlim(left=0)
        legend_below(right, columns=2)
        caption = (
            f"Task reward of skills that never saw it: {experiment}, {found[0]['method']}, {len(curves[0])} skills a "
            "seed. Left: one line is the mean return of one skill. Right: how many skills earn how much, before "
            "training and after it, on the same scale."
        )
        yield Picture(f"{experiment}-rewards", caption, figure)


def _earns(run: Run) -> bool:
    """Whether this was trained with a fixed p(z), and returns of skills differ at all."""
    if "config" not in run or run["config"].prior != "fixed":
        return False
    return len({value for curve in _returns(run) for value in curve.values()}) > 1


def _returns(run: Run) -> list[dict[int, float]]:
    """{environment steps: mean return} of each skill, with that of the untrained one at 0 where it is known."""
    names = [f"return_skill_{skill:02d}" for skill in range(run["config"].skills)]
    curves = [run["curves"][name] for name in names if name in run["curves"]]
    untrained = artifact(run["folder"], UNTRAINED)
    if untrained is not None:
        with np.load(untrained) as arrays:
            return [{0: float(value), **curve} for value, curve in zip(arrays["returns"], curves, strict=True)]
    return curves


# ---------------------------------------------------------------- p(z) and the entropy's weight


def effective_skills(runs: Sequence[Run]) -> Picture | None:
    """Effective skills and accuracy over training where p(z) is fixed and where it is learned (Fig. 4, 17)."""
    pairs: dict[tuple[str, int], dict[str, list[Run]]] = {}
    for run in runs:
        if "config" in run and "effective_skills" in run["curves"]:
            config = run["config"]
            some = pairs.setdefault((run["experiment"], config.skills), {}).setdefault(config.prior, [])
            # Of several trainings that differ in something else, the first method's.
            if not some or some[0]["method"] == run["method"]:
                some.append(run)
    pairs = {key: by for key, by in pairs.items() if len(by) == 2}
    if not pairs:
        return None
    from matplotlib.ticker import MaxNLocator

    shown = [*pairs.items()][-3:]
    figure, panels = new_row(len(shown) + 1, min(3.0, 8.4 / (len(shown) + 1)), 2.6, 1.35)
    last = panels[-1]
    dress(last, "accuracy of the classifier", SAMPLES, "fraction of states")
    for i, (((experiment, k), by), axes) in enumerate(zip(shown, panels, strict=False)):
        dress(axes, f"{experiment}: {k} skills", SAMPLES, "effective skills, exp H[p(z)]" if i == 0 else "")
        for prior, color in (("fixed", HUES[0]), ("learned", HUES[1])):
            _band(axes, by[prior], "effective_skills", color, "-", f"p(z) {prior}")
            _band(last, by[prior], "accuracy", color, STYLES[i], f"{prior}, {experiment}, K = {k}")
        axes.axhline(k / 10, color=MUTED, linewidth=1, linestyle=STYLES[2], label="a tenth of them (the paper's drop)")
        axes.set_ylim(0, 1.06 * k)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        steps_axis(axes)
        legend_below(axes)
    last.set_ylim(0, 1.03)
    steps_axis(last)
    legend_below(last)
    caption = (
        "A learned p(z) (as VIC has it) against a fixed and uniform one. Left: exp H[p(z)], the number of skills that "
        "are still drawn; fixed is all of them by construction. Right: the fraction of states whose skill the "
        "classifier tells, mean over skills. Lines: means over seeds; bands: 95 % intervals."
    )
    return Picture("effective-skills", caption, figure)


def entropy_weight(runs: Sequence[Run]) -> Picture | None:
    """Coverage of the plane and accuracy against the weight of the policy's entropy, all seeds (Fig. 14, App. D.2)."""
    studies = {
        name: [run for run in some if "coverage" in run["metrics"]] for name, some in alphas(runs).items()
    }  # fmt: skip
    studies = {name: some for name, some in studies.items() if some}
    if not studies:
        return None
    figure, panels = new_row(len(studies), min(4.4, 8.6 / len(studies)), 2.8, 1.1)
    for axes, (experiment, some) in zip(panels, studies.items(), strict=True):
        k = some[0]["config"].skills
        dress(axes, f"{experiment}: {k} skills", "alpha, weight of the policy's entropy", "fraction")
        weights = sorted({run["config"].alpha for run in some})
        positive = [alpha for alpha in weights if alpha > 0]
        for metric, label, marker, color in (
            ("coverage", "coverage (of 100 cells, by any skill)", "o", HUES[0]),
            ("accuracy", "accuracy of the classifier (of states)", "s", HUES[1]),
        ):
            by = {alpha: [_value(run, metric) for run in some if run["config"].alpha == alpha] for alpha in weights}
            points = [(alpha, value) for alpha, values in by.items() for value in values]
            axes.plot(*zip(*points, strict=True), marker, color=color, markersize=4, alpha=0.4, markeredgewidth=0)
            averages = [mean(values) for values in by.values()]
            axes.plot(weights, averages, marker=marker, color=color, markersize=5, linewidth=1.6, label=label)
        axes.axhline(1 / k, color=MUTED, linewidth=1, linestyle=STYLES[2], label="accuracy by chance")
        if len(positive) == len(weights):
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(positive))
        axes.set_xticks(weights, [f"{alpha:g}" for alpha in weights])
        axes.minorticks_off()
        axes.set_ylim(0, 1.06)
        legend_below(axes)
    caption = (
        "The compromise that the entropy's weight makes: small weights give skills that are told apart but see little "
        "of the plane, large ones cover it, and the largest cannot be told apart. Pale: seeds; joined: their means."
    )
    return Picture("entropy-weight", caption, figure)


def information(runs: Sequence[Run]) -> Iterator[Picture]:
    """Mutual information of skills and states and the policy's entropy over training (Fig. 12)."""
    by_env: dict[str, dict[tuple[int, float], list[Run]]] = {}
    for run in runs:
        if "config" in run and run["config"].prior == "fixed" and "mutual_information" in run["curves"]:
            key = run["config"].skills, run["config"].alpha
            some = by_env.setdefault(run["config"].env, {}).setdefault(key, [])
            if not some or some[0]["method"] == run["method"]:
                some.append(run)
    for env, lines in by_env.items():
        usual = {key: some for key, some in lines.items() if key[0] in SHOWN_SKILLS and key[1] <= PAPERS_ALPHA}
        # One line alone says less than the curves that the report shows anyhow.
        if len(usual) > 1 or not env.startswith("DIAYN/"):
            yield _information(env, dict(sorted((usual or lines).items())[:6]))


def _information(env: str, lines: Mapping[tuple[int, float], Sequence[Run]]) -> Picture:
    name = env.removeprefix("DIAYN/")
    figure, (left, right) = new_row(2, 4.2, 2.8, 0.68 + 0.17 * ((len(lines) + 1) // 2))
    dress(left, f"{name}: mutual information of skill and state", SAMPLES, "lower bound (nats)")
    dress(right, f"{name}: entropy of the policy", SAMPLES, "H[A | S, Z] (nats)")
    sizes = sorted({k for k, _ in lines})
    weights = sorted({alpha for _, alpha in lines}, reverse=True)
    for (k, alpha), some in lines.items():
        color, style = HUES[sizes.index(k) % len(HUES)], STYLES[weights.index(alpha) % len(STYLES)]
        _band(left, some, "mutual_information", color, style, f"{k} skills, alpha = {alpha:g}")
        _band(right, some, "policy_entropy", color, style, "")
    top = left.get_ylim()[1]
    for k in sizes:
        if log(k) < 2 * top:
            left.axhline(log(k), color=MUTED, linewidth=1, linestyle=STYLES[2], zorder=1)
            left.annotate(f"ln {k}", (1, log(k)), xycoords=("axes fraction", "data"), xytext=(0, 2),
                          textcoords="offset points", ha="right", fontsize=7.5, color=MUTED)  # fmt: skip
    left.set_ylim(bottom=min(0.0, left.get_ylim()[0]), top=1.08 * max(left.get_ylim()[1], 0.1))
    for axes in (left, right):
        steps_axis(axes)
    legend_below(left, columns=2)
    caption = (
        f"The paper's Figure 12, in {name}: while skills become easier to tell apart, the policy's entropy stays "
        "well above that with a smaller alpha, its weight. Dotted: the most that so many skills can give. Lines: "
        "means over seeds; bands: 95 % intervals."
    )
    return Picture(f"information-{slug(name)}", caption, figure)


# ---------------------------------------------------------------- what skills are good for


def tasks(runs: Sequence[Run]) -> Iterator[Picture]:
    """Return in a task over training: with skills, without, and without but curious (Fig. 5, 7, 8)."""
    groups = {
        experiment: {name: some for name, some in methods.items() if any("task_return" in r["curves"] for r in some)}
        for experiment, methods in _grouped(runs, "task_return").items()
    }
    groups = {experiment: methods for experiment, methods in groups.items() if len(methods) > 1}
    # The same colour for the same method in all panels.
    styles = method_styles([*dict.fromkeys(name for methods in groups.values() for name in methods)])
    best = {name: by[MIDDLE] for name, by in _grouped(runs, "hierarchy_return").items() if MIDDLE in by}
    for first in range(0, len(groups), 3):
        part = dict([*groups.items()][first : first + 3])
        most = max(len(methods) + (experiment in best) for experiment, methods in part.items())
        figure, panels = new_row(len(part), min(4.2, 8.4 / len(part)), 2.7, 0.65 + 0.17 * most)
        for axes, (experiment, methods) in zip(panels, part.items(), strict=True):
            dress(axes, experiment, SAMPLES, "mean return in the task" if axes is panels[0] else "")
            for name, some in methods.items():
                _band(axes, some, "task_return", *styles[name], name)
            if experiment in best:
                level = mean(_value(run, "hierarchy_return") for run in best[experiment])
                label = f"best of the skills of {MIDDLE}"
                axes.axhline(level, color=INK, linewidth=1.2, linestyle=STYLES[2], label=label)
            steps_axis(axes)
            legend_below(axes)
        caption = (
            "Learning a task: with frozen skills to choose from, from a skill's networks, or from nothing, by the "
            "steps taken in the task's environment (those that skills took to be learnt without reward are not "
            "counted). Names with rnd: with a bonus for novelty. Lines: means over seeds; bands: 95 % intervals. "
            "Scales differ."
        )
        yield Picture(f"tasks-{first // 3 + 1}" if first else "tasks", caption, figure)


def hierarchy(runs: Sequence[Run]) -> Picture | None:
    """Return of the best skill for each of the box's goals against the number of skills (Fig. 6), and where it goes."""
    for experiment, methods in _grouped(runs, "hierarchy_return").items():
        points: dict[int, dict[int, float]] = {}
        for method, some in methods.items():
            if match := NUMBER_OF_SKILLS.search(method):
                for run in some:
                    points.setdefault(run["seed"], {})[int(match[1])] = _value(run, "hierarchy_return")
        sizes = sorted({k for by in points.values() for k in by})
        if len(sizes) < 2:
            continue
        chosen = {k: artifact(methods[f"k{k}"][0]["folder"], GOALS) for k in SHOWN_SKILLS if f"k{k}" in methods}
        ways = {k: path for k, path in chosen.items() if path is not None}
        figure, (axes, *squares) = new_row(1 + len(ways), 2.75, 2.75, 1.35)
        dress(axes, f"{experiment}: 25 goals", "K, number of skills", "mean return of an episode")
        for by in points.values():
            axes.plot(*zip(*sorted(by.items()), strict=True), color=HUES[0], linewidth=0.7, alpha=0.45)
        averages = [mean(by[k] for by in points.values() if k in by) for k in sizes]
        axes.plot(sizes, averages, "o-", color=HUES[0], markersize=4.5, linewidth=1.8, label="best of K skills")
        flat = _grouped(runs, "task_return").get(experiment, {})
        for i, (name, some) in enumerate(flat.items()):
            level = mean(_value(run, "task_return") for run in some)
            axes.axhline(level, color=HUES[1 + i % 4], linewidth=1.3, linestyle=STYLES[1], label=f"{name}, no skills")
        axes.axhline(STANDING_STILL, color=MUTED, linewidth=1, linestyle=STYLES[2], label="standing still")
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(k) for k in sizes])
        axes.minorticks_off()
        legend_below(axes)
        for square, (k, path) in zip(squares, ways.items(), strict=True):
            draw_goals(dress(square, f"K = {k}: the chosen skills", "x", "y"), path)
        caption = (
            "The paper's Figure 6: for each of 25 goals in the box one skill is chosen and held for an episode; the "
            "more there are, the nearer one comes. Thin: seeds; thick: their mean. Dashed: agents that learnt each "
            "goal by its reward, at the end of their training. Right: an episode of the skill chosen for each goal "
            "(crosses; dots lead from an episode's end to its goal), first seed."
        )
        return Picture("hierarchy", caption, figure)
    return None


def imitation(runs: Sequence[Run]) -> Picture | None:
    """How near imitations come to the expert, by the classifier's score, and methods compared (Fig. 22)."""
    for methods in _grouped(runs, "best_distance").values():
        points = {name: [pair for run in some for pair in imitated(run)] for name, some in methods.items()}
        figure, panels = new_row(2 if any(points.values()) else 1, 4.2, 3.0, 1.3, gap=0.95)
        styles = method_styles([*methods])
        if len(panels) > 1:
            dress(panels[0], "confidence and success", "score: mean log q(z|s) of the expert's states (nats)",
                  "distance of the chosen skill")  # fmt: skip
            for name, pairs in points.items():
                if pairs:
                    label = f"{name}: correlation {mean(_value(run, 'correlation') for run in methods[name]):.2f}"
                    panels[0].plot(*zip(*pairs, strict=True), "o", color=styles[name][0], markersize=3, alpha=0.6,
                                   markeredgewidth=0, label=label)  # fmt: skip
            panels[0].set_ylim(bottom=0)
            legend_below(panels[0])
        axes = dress(panels[-1], "distance to the expert", "distance (root of the mean square)", "")
        kinds = (
            ("distance", "the skill that the classifier names", "o", INK),
            ("best_distance", "the nearest skill", "|", HUES[0]),
            ("random_distance", "a skill at random", "x", MUTED),
        )
        for row, some in enumerate(methods.values()):
            for metric, _, marker, color in kinds:
                values = [_value(run, metric) for run in some if metric in run["metrics"]]
                axes.plot(values, [row] * len(values), marker, color=color, markersize=7 if marker == "|" else 4.5)
        axes.set_yticks(range(len(methods)), [*methods])
        axes.set(ylim=(len(methods) - 0.5, -0.5))
        axes.set_xlim(left=0)
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], marker=m, color=c, linewidth=0, markersize=5, label=n) for _, n, m, c in kinds]
        legend_below(axes, handles=handles)
        caption = (
            "Imitating every skill of an agent that was trained apart, by its states alone. Left: a point is one "
            "skill of the expert; where the classifier is surer of its choice, the choice comes nearer (correlations: "
            "means over seeds). Right: mean distances; a mark is a seed."
        )
        return Picture("imitation", caption, figure)
    return None
