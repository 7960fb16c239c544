"""The report's pictures, from made-up runs and artifacts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.report.plots import HUES, png
from papers.diayn import gallery, pictures

Run = dict[str, Any]
Curves = dict[str, Sequence[float]]
SKILLED = {"accuracy": 0.9, "mutual_information": 1.5, "effective_skills": 3.0, "return_range": 1.0}


def store(
    root: Path,
    experiment: str,
    method: str,
    metrics: dict[str, float],
    config: dict[str, Any] | None = None,
    curves: Curves | None = None,
    seed: int = 1000,
    **artifacts: dict[str, Any],
) -> Run:
    """A finished run with its files; curves have a value every 10 steps of 4 environment steps."""
    folder = root / experiment / method / f"seed-{seed}"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": {**(config or {}), "seed": seed}}))
    rows = [
        f"{10 * i},{40 * i},0.1,{name},{value}"
        for name, values in (curves or {}).items()
        for i, value in enumerate(values, 1)
    ]
    (folder / "curves.csv").write_text("\n".join(["step,samples,seconds,name,value", *rows, ""]))
    for name, arrays in artifacts.items():
        np.savez(folder / "artifacts" / f"{name}.npz", **arrays)
    return {"experiment": experiment, "method": method, "seed": seed, "status": "finished", "metrics": metrics}


def ways(skills: int, plane: bool = True) -> dict[str, Any]:
    """skills.npz with straight ways from the middle of the box."""
    angle = 2 * np.pi * np.arange(skills) / skills
    ends = 0.5 + 0.4 * np.stack([np.cos(angle), np.sin(angle)], -1)
    line = np.linspace(0, 1, 5)[:, None]
    way = 0.5 + line * (ends[:, None, None] - 0.5)
    return {
        "trajectories": np.repeat(way, 4, 1),
        "alive": np.ones((skills, 4, 5), bool),
        "plane": plane,
        "extent": np.array([[0.0, 1.0], [0.0, 1.0]]) if plane else np.zeros(0),
    }


def drawn(root: Path, runs: list[Run]) -> dict[str, Any]:
    """name -> figure; each of them can be written."""
    found = pictures.draw({"runs": runs}, root)
    assert all(png(picture.figure, picture.name, dpi=30) and len(picture.caption) > 80 for picture in found)
    return {picture.name: picture.figure for picture in found}


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_without_runs_or_artifacts_nothing_is_drawn(tmp_path: Path) -> None:
    unfinished = {"experiment": "box", "method": "k6", "seed": 1000, "status": "failed", "metrics": {}}
    gone = {**unfinished, "status": "finished", "metrics": SKILLED}
    bare = store(tmp_path, "hallway", "k6", SKILLED, {"env": "DIAYN/Hallway-v0", "skills": 6})
    assert pictures.draw({"runs": [unfinished, gone, bare]}, tmp_path) == []


def test_ways_are_drawn_for_the_papers_numbers_of_skills_and_the_hallway_has_walls(tmp_path: Path) -> None:
    box = {"env": "DIAYN/Box-v0"}
    runs = [
        store(tmp_path, "box", f"k{k}", SKILLED, {**box, "skills": k}, skills=ways(k)) for k in (1, 6, 20, 50)
    ] + [
        store(tmp_path, "box", "k6-learned", SKILLED, {**box, "skills": 6, "prior": "learned"}, skills=ways(6)),
        store(tmp_path, "ablations", "v2018", SKILLED, {**box, "skills": 6}, skills=ways(6)),
        store(tmp_path, "hallway", "k3", SKILLED, {"env": "DIAYN/Hallway-v0", "skills": 3}, skills=ways(3)),
        store(tmp_path, "mountain-car", "k3", SKILLED, {"env": "DIAYN/MountainCar-v0", "skills": 3},
              skills=ways(3, plane=False)),
    ]  # fmt: skip
    axes = drawn(tmp_path, runs)["trajectories"].axes
    assert [each.get_title("left") for each in axes] == ["box: 6 skills", "box: 20 skills", "hallway: 3 skills"]
    # An episode is a line and a dot; of many skills two episodes each; then the starts.
    assert [len(each.lines) for each in axes] == [6 * 4 * 2 + 1, 20 * 2 * 2 + 1, 3 * 4 * 2 + 1]
    (walls,) = axes[2].images
    opacity = np.asarray(walls.get_array())[..., 3]
    assert opacity[10, 10] > 0 and opacity[100, 10] == 0 and opacity[10, 150] == 0 and not axes[0].images


def test_neighbours_have_other_colours_and_episodes_end_where_they_ended() -> None:
    from common.report.pictures import new_figure

    axes = new_figure(2, 2).add_subplot()
    arrays = ways(10)
    arrays["alive"][0, :, 3:] = False
    gallery.draw_ways(axes, arrays["trajectories"][:, :1], arrays["alive"][:, :1])
    episodes = axes.lines[:-1:2]
    colors = [line.get_color() for line in episodes]
    assert all(one != other for one, other in zip(colors, [*colors[1:], colors[0]], strict=True))
    assert set(colors) == set(HUES[:-1]) and sorted(len(line.get_xdata()) for line in episodes) == [3, *[5] * 9]  # type: ignore[arg-type]


def test_returns_of_skills_are_compared_with_those_of_untrained_ones(tmp_path: Path) -> None:
    config = {"env": "DIAYN/MountainCar-v0", "skills": 2}
    runs = [
        store(tmp_path, "mountain-car", "k2", SKILLED, config, seed=seed, untrained={"returns": [-17.0, -16.0]},
              curves={"return_skill_00": [-20.0, -40.0], "return_skill_01": [10.0, 90.0]})
        for seed in (1001, 1000)
    ]  # fmt: skip
    left, right = drawn(tmp_path, runs)["mountain-car-rewards"].axes
    assert [list(line.get_xdata()) for line in left.lines] == [[0, 40, 80]] * 2
    assert [line.get_ydata()[0] for line in left.lines] == [-17.0, -16.0]
    untrained, _, trained, _ = (patch.get_data() for patch in right.patches)
    assert untrained.values.sum() == trained.values.sum() == 100 and untrained.values.max() == 100
    assert trained.values[0] == trained.values[-1] == 50 and trained.edges[[0, -1]].tolist() == [-40, 90]
    assert labels(right) == ["untrained skills", "trained skills"]


def test_a_learned_prior_is_drawn_beside_a_fixed_one(tmp_path: Path) -> None:
    runs = [
        store(tmp_path, "box", method, SKILLED, {"env": "DIAYN/Box-v0", "skills": 20, **more},
              {"effective_skills": [20, end], "accuracy": [0.1, 0.5]})
        for method, end, more in (("k20", 20, {}), ("k20-b", 20, {"draw": 1}), ("vic", 6, {"prior": "learned"}))
    ]  # fmt: skip
    count, accuracy = drawn(tmp_path, runs)["effective-skills"].axes
    assert [list(line.get_ydata()) for line in count.lines[:2]] == [[20, 20], [20, 6]]
    assert labels(count)[:2] == ["p(z) fixed", "p(z) learned"] and len(accuracy.lines) == 2


def test_the_weight_of_the_entropy_has_a_picture_of_its_own(tmp_path: Path) -> None:
    measured = {0.01: (0.4, 0.98), 0.1: (0.6, 0.97), 10.0: (1.0, 0.2)}
    runs = [
        store(tmp_path, "alpha", f"alpha-{alpha}", {**SKILLED, "coverage": coverage + shift, "accuracy": accuracy},
              {"env": "DIAYN/Box-v0", "skills": 6, "alpha": alpha}, seed=1000 + seed,
              curves={"mutual_information": [1.0, 1.5], "policy_entropy": [1.0, 0.0]},
              **({} if seed else {"skills": ways(6)}))
        for alpha, (coverage, accuracy) in measured.items()
        for seed, shift in enumerate((-0.1, 0.1))
    ]  # fmt: skip
    found = drawn(tmp_path, runs)
    assert [*found] == ["alpha-trajectories", "entropy-weight", "information-box-v0"]
    titles = [axes.get_title("left") for axes in found["alpha-trajectories"].axes]
    assert titles == ["alpha = 0.01", "alpha = 0.1", "alpha = 10"]
    seeds, means = found["entropy-weight"].axes[0].lines[:2]
    assert len(seeds.get_xdata()) == 6 and list(means.get_ydata()) == pytest.approx([0.4, 0.6, 1.0])
    information, entropy = found["information-box-v0"].axes
    assert labels(information) == ["6 skills, alpha = 0.01", "6 skills, alpha = 0.1"], "10 is not of Figure 12"
    assert information.texts[0].get_text() == "ln 6" and list(entropy.lines[0].get_xdata()) == [40, 80]


def test_what_skills_are_good_for(tmp_path: Path) -> None:
    goals: Any = {"goals": np.full((25, 2), 0.3), "skill": np.arange(25) % 20, "trajectories": np.full((25, 4, 2), 0.5)}
    runs = [
        store(tmp_path, "hierarchy", f"k{k}", {"hierarchy_return": value + shift}, seed=1000 + seed,
              **({"goals": goals} if k == 20 else {}))
        for k, value in ((1, -32.0), (4, -10.0), (20, -3.0))
        for seed, shift in enumerate((-1.0, 1.0))
    ]  # fmt: skip
    runs += [
        store(tmp_path, "hierarchy", name, {"task_return": end}, curves={"task_return": [-20, end]})
        for name, end in (("sac", -5.0), ("sac-rnd", -6.0))
    ]
    runs += [
        store(tmp_path, experiment, name, {"task_return": 1.0}, curves={"task_return": [0, 1.0]})
        for experiment in ("waypoints", "fine-tuning", "hurdle")
        for name in ("hierarchy", "sac")
    ]
    found = drawn(tmp_path, runs)
    assert [*found] == ["tasks", "tasks-2", "hierarchy"]
    titles = [[axes.get_title("left") for axes in found[name].axes] for name in ("tasks", "tasks-2")]
    assert titles == [["hierarchy", "waypoints", "fine-tuning"], ["hurdle"]]
    assert labels(found["tasks"].axes[0]) == ["sac", "sac-rnd", "best of the skills of k20"]
    curve, where = found["hierarchy"].axes
    (mean,) = (line for line in curve.lines if line.get_label() == "best of K skills")
    assert list(mean.get_xdata()) == [1, 4, 20] and list(mean.get_ydata()) == [-32, -10, -3]
    assert labels(curve)[1:] == ["sac, no skills", "sac-rnd, no skills", "standing still"]
    assert where.get_title("left") == "K = 20: the chosen skills" and len(where.lines) == 75


def test_imitations_are_placed_by_score_and_distance(tmp_path: Path) -> None:
    measured = {"distance": 0.2, "best_distance": 0.1, "random_distance": 0.7, "correlation": -0.5}
    arrays = {
        "scores": np.array([[-9.0, -1], [-2, -9]]),
        "distances": np.array([[0.9, 0.2], [0.3, 0.8]]),
        "skill": [1, 0],
    }
    runs = [
        store(tmp_path, "imitation", "diayn", measured, imitation=arrays),
        store(tmp_path, "imitation", "few-skills", measured),
    ]
    scores, distances = drawn(tmp_path, runs)["imitation"].axes
    (points,) = scores.lines
    assert list(points.get_xdata()) == [-1, -2] and list(points.get_ydata()) == [0.2, 0.3]
    assert labels(scores) == ["diayn: correlation -0.50"]
    assert [text.get_text() for text in distances.get_yticklabels()] == ["diayn", "few-skills"]


def test_key_frames_are_shown_with_their_steps(tmp_path: Path) -> None:
    frames = {
        "frames": np.zeros((2, 3, 8, 12, 3), np.uint8), "frame_skills": [4, 1],
        "frame_steps": np.array([[0, 5, 10], [0, 2, 4]]), "frame_returns": [-3.0, 7.5],
    }  # fmt: skip
    run = store(tmp_path, "cheetah", "k5", SKILLED, {"env": "HalfCheetah-v5", "skills": 5},
                skills={**ways(5, plane=False), **frames})  # fmt: skip
    figure = drawn(tmp_path, [run])["cheetah-frames"]
    assert [axes.get_title("left") for axes in figure.axes[3:]] == ["step 0", "step 2", "step 4"]
    assert [text.get_text() for text in figure.texts] == ["skill 4\nreturn -3", "skill 1\nreturn 7.5"]
