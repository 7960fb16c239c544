"""What is measured of skills that are learnt: choices, imitation, poses, and what needs no skills."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.random import Stream, seeded
from common.runs import Execution, check_metrics
from papers.diayn import evaluation, measure
from papers.diayn.config import Config
from papers.diayn.environments import goals
from papers.diayn.measure_config import MeasureBest, MeasureGoals, MeasureGridworld, MeasureImitation, MeasurePoses
from papers.diayn.networks import Agent, save_agent

BOX = Config(env="DIAYN/Box-v0", skills=4, width=8, evaluation_rollouts=2, evaluation_horizon=20)


def place(path: Path):
    """What a measurement needs of a run's folder."""
    return SimpleNamespace(execution=Execution(), artifact=lambda name: path / name)


def saved(folder: Path, config: Config, observation: int = 2, action: int = 2, seed: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    with seeded(Stream(seed, "agent")):
        agent = Agent(config, observation, action)
    save_agent(agent, folder)
    return folder


def test_invariant_11_standing_still_in_the_middle():
    assert float(measure.goal_returns(torch.full((101, 1, 2), 0.5)).mean()) == pytest.approx(-16.0, abs=1e-4)


def test_returns_for_goals_are_those_of_the_environment():
    with seeded(Stream(1, "agent")):
        agent = Agent(BOX, 2, 2).requires_grad_(False)
    found, observation = measure.skills_for_goals(agent, BOX, 3, "selection", "cpu")
    assert found.shape == (25, 4) and observation.shape == (21, 4, 2, 2)
    for goal in (0, 13, 24):
        own = evaluation.per_skill_returns(agent, BOX, [3], "selection", "cpu", tasks=goals()[goal : goal + 1])
        assert torch.allclose(found[goal], own[0], rtol=1e-5)
    assert torch.equal(measure.best_skills_for_goals(agent, BOX, 3, "cpu"), found.argmax(1))
    with pytest.raises(UserError, match="25 goals"):
        measure.best_skills_for_goals(agent, replace(BOX, env="DIAYN/Hallway-v0"), 3, "cpu")


def test_goals_are_chosen_on_one_set_of_episodes_and_scored_on_another(tmp_path):
    needs = {"skills": saved(tmp_path / "skills", BOX)}
    settings = {"selection_rollouts": 3, "evaluation_rollouts": 2, "seed": 3}
    found = measure.goals_of_skills(settings, place(tmp_path), needs)
    check_metrics(found)
    assert found == measure.goals_of_skills(settings, place(tmp_path), needs)
    arrays = np.load(tmp_path / "goals.npz")
    assert arrays["trajectories"].shape == (25, 21, 2) and arrays["goals"].shape == (25, 2)
    assert found["hierarchy_return"] == pytest.approx(arrays["returns"].mean())
    assert found["skills_used"] == len(set(arrays["skill"].tolist()))
    agent = measure.load_agent(needs["skills"])[0]
    chosen = measure.best_skills_for_goals(agent, BOX, 3, "cpu", 3)
    fresh = measure.skills_for_goals(agent, BOX, 3, "scoring", "cpu", 2)[0]
    assert chosen.tolist() == arrays["skill"].tolist()
    assert np.allclose(arrays["returns"], fresh[torch.arange(25), chosen])
    assert found["selection_return"] != found["hierarchy_return"]


def test_the_best_skill_of_a_task(tmp_path):
    config = replace(BOX, env="DIAYN/MountainCar-v0")
    needs = {"skills": saved(tmp_path / "skills", config, action=1)}
    found = measure.best_skill({"selection_rollouts": 2, "evaluation_rollouts": 3, "seed": 3}, place(tmp_path), needs)
    check_metrics(found)
    agent = measure.load_agent(needs["skills"])[0]
    chosen = measure.best_skill_for_task(agent, config, 3, "cpu", 2)
    selection = evaluation.per_skill_returns(agent, config, [3], "selection", "cpu", rollouts=2)[0]
    fresh = evaluation.per_skill_returns(agent, config, [3], "scoring", "cpu", rollouts=3)[0].sort()
    assert chosen == int(selection.argmax())
    assert found["selected_return"] == pytest.approx(float(fresh.values[fresh.indices == chosen]))
    assert found["median_return"] == pytest.approx(float(fresh.values[1:3].mean()))
    assert found["deterministic_return"] != found["selected_return"]


def test_a_student_that_is_the_expert_comes_as_near_as_can_be(tmp_path):
    expert, other = saved(tmp_path / "expert", BOX), saved(tmp_path / "other", BOX, seed=2)
    found = measure.imitation({"seed": 3}, place(tmp_path), {"student": expert, "expert": expert})
    check_metrics(found)
    assert found["best_distance"] == 0 < found["random_distance"]
    arrays = np.load(tmp_path / "imitation.npz")
    assert arrays["scores"].shape == arrays["distances"].shape == (4, 4)
    assert np.array_equal(arrays["distances"].diagonal(), np.zeros(4))
    assert arrays["expert"].shape == arrays["student"].shape == (4, 21, 2)
    distance = np.sqrt(((arrays["expert"] - arrays["student"]) ** 2).sum(-1).mean(-1))
    assert np.allclose(distance, arrays["distances"][np.arange(4), arrays["skill"]], atol=1e-6)
    assert found["distance"] == pytest.approx(distance.mean(), abs=1e-6)
    assert measure.imitation({"seed": 3}, place(tmp_path), {"student": other, "expert": expert})["best_distance"] > 0
    stochastic = {"seed": 3, "deterministic": False}
    assert measure.imitation(stochastic, place(tmp_path), {"student": expert, "expert": expert})["best_distance"] > 0


def test_student_and_expert_share_an_environment(tmp_path):
    other = saved(tmp_path / "other", replace(BOX, env="DIAYN/Hallway-v0"))
    with pytest.raises(UserError, match="one environment"):
        measure.imitation({"seed": 3}, place(tmp_path), {"student": saved(tmp_path / "a", BOX), "expert": other})


def test_poses_give_an_error_for_each_of_the_four(tmp_path):
    config = Config(env="HalfCheetah-v5", skills=2, width=8)
    needs = {"skills": saved(tmp_path / "skills", config, 17, 6)}
    found = measure.poses({"seed": 3, "steps": 10, "pose_steps": 6}, place(tmp_path), needs)
    check_metrics(found)
    names = {f"{pose}_{kind}" for pose in measure.POSES for kind in ("error", "random_error", "best_error")}
    assert set(found) == names
    arrays = np.load(tmp_path / "poses.npz")
    assert arrays["pitch"].shape == (2, 11) and arrays["errors"].shape == (4, 2)
    assert found["flip_error"] == pytest.approx(arrays["errors"][1, arrays["skill"][1]])


def test_gridworld_is_exact(tmp_path):
    found = measure.gridworld({"size": 2, "seed": 3}, place(tmp_path), {})
    check_metrics(found)
    assert found["partition_best"] == found["gap_ratio"] == 1


def test_settings_that_make_no_sense_are_refused():
    for settings, config in (
        (MeasureGoals, {"selection_rollouts": 0}),
        (MeasureBest, {"evaluation_rollouts": 0}),
        (MeasurePoses, {"steps": 0}),
        (MeasureGridworld, {"size": 3}),
        (MeasureGridworld, {"size": 0}),
    ):
        with pytest.raises(ValueError):
            settings.of(config)
    assert MeasureImitation.of({"seed": 1}).deterministic
    with pytest.raises(TypeError):
        MeasureImitation.of({"episodes": 2})
