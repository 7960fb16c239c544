"""Run functions of what only uses skills that another run has learnt, and of what needs no run at all.

Each takes (config, folder, needs) and returns metrics; settings are in `measure_config.py`. Episodes to choose by and
episodes to score by are of separate random streams, "selection" and "scoring".
"""

from collections.abc import Mapping
from dataclasses import replace
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.files import atomic_path
from common.runs import Folder
from papers.diayn import gridworld as grid
from papers.diayn.config import Config
from papers.diayn.dynamics import DYNAMICS
from papers.diayn.environments import goals
from papers.diayn.evaluation import every_skill, per_skill_returns, play, select_skill, trajectories
from papers.diayn.imitation import (
    POSES,
    distances,
    imitation_metrics,
    infer_skills,
    pitch_index,
    pose_errors,
    pose_states,
)
from papers.diayn.measure_config import MeasureBest, MeasureGoals, MeasureGridworld, MeasureImitation, MeasurePoses
from papers.diayn.networks import Agent, load_agent

Needs = Mapping[str, Path]
Device = torch.device | str
SELECTION, SCORING = "selection", "scoring"


def _save(folder: Folder, name: str, **arrays: Tensor) -> None:
    content: dict[str, Any] = {key: array.cpu().numpy() for key, array in arrays.items()}
    with atomic_path(folder.artifact(name)) as path, open(path, "wb") as file:
        np.savez_compressed(file, **content)


def _skills(folder: Folder, path: Path) -> tuple[Agent, Config]:
    agent, config, _ = load_agent(path)
    return agent.to(folder.execution.device), config


# ---------------------------------------------------------------- choosing a skill for a task (spec 3.6)


def best_skill_for_task(agent: Agent, config: Config, seed: int, device: Device, rollouts: int | None = None) -> int:
    """The skill of an agent (S = 1) with the highest mean return in the environment's own reward (spec 3.6), over
    `rollouts` (default: evaluation_rollouts) stochastic episodes each."""
    return int(select_skill(per_skill_returns(agent, config, [seed], SELECTION, device, rollouts=rollouts))[0])


def goal_returns(observation: Tensor) -> Tensor:
    """Returns of episodes in the box for each of the 25 goals: observations [T+1, N, 2] to [25, N].

    The reward -||s' - g||^2 of a step needs the state alone (spec 9.1), so one set of episodes serves every goal.
    """
    places = goals().to(observation)
    return torch.stack([-(observation[1:] - goal).square().sum((0, -1)) for goal in places])


def skills_for_goals(
    agent: Agent, config: Config, seed: int, name: str, device: Device, rollouts: int | None = None
) -> tuple[Tensor, Tensor]:
    """(mean returns [25, K] in the task of each goal, observations [T+1, K, R, 2]) of stochastic episodes of the stream
    `name`, of an agent (S = 1) in the box. UserError elsewhere."""
    if config.env != "DIAYN/Box-v0":
        raise UserError(f"the 25 goals are places in DIAYN/Box-v0: use skills learnt there, not in {config.env}")
    number = config.evaluation_rollouts if rollouts is None else rollouts
    played = trajectories(agent, config, [seed], name, device, every_skill(agent, config, number, device))
    observation = played.observation[:, 0]
    shape = (config.skills, number)
    return goal_returns(observation).unflatten(1, shape).mean(-1), observation.unflatten(1, shape)


def best_skills_for_goals(
    agent: Agent, config: Config, seed: int, device: Device, rollouts: int | None = None
) -> Tensor:
    """The best skill for each of the 25 goals, int64 [25], chosen on the selection episodes alone (claim C6)."""
    return select_skill(skills_for_goals(agent, config, seed, SELECTION, device, rollouts)[0])


# ---------------------------------------------------------------- run functions


def goals_of_skills(config: Mapping[str, Any], folder: Folder, needs: Needs) -> dict[str, Any]:
    """The best of the skills in `needs["skills"]` for each of the 25 goals of the box, one skill an episode (C6).

    Metrics: `hierarchy_return`, mean over the goals of the chosen skill's mean return over fresh episodes;
    `selection_return`, the same over the episodes that it was chosen by; `skills_used`, how many different ones.
    Leaves goals.npz: goals [25, 2], skill [25], returns [25] and trajectories [25, T+1, 2], a fresh episode each.
    """
    settings, device, seed = MeasureGoals.of(config), folder.execution.device, int(config["seed"])
    agent, trained = _skills(folder, needs["skills"])
    returns, _ = skills_for_goals(agent, trained, seed, SELECTION, device, settings.selection_rollouts)
    skill = select_skill(returns)
    fresh, observation = skills_for_goals(agent, trained, seed, SCORING, device, settings.evaluation_rollouts)
    scored = fresh.gather(1, skill[:, None])[:, 0]
    ways = observation[:, skill, 0].transpose(0, 1)
    _save(folder, "goals.npz", goals=goals(), skill=skill, returns=scored, trajectories=ways)
    return {
        "hierarchy_return": float(scored.mean()),
        "selection_return": float(returns.amax(1).mean()),
        "skills_used": len(skill.unique()),
    }


def best_skill(config: Mapping[str, Any], folder: Folder, needs: Needs) -> dict[str, Any]:
    """The best of the skills in `needs["skills"]` for the environment's own reward (spec 3.6, C14).

    Metrics, of fresh episodes: `selected_return`, the chosen skill's mean; `median_return`, the median skill's mean;
    `deterministic_return`, one episode of the chosen skill with deterministic actions.
    """
    settings, device, seed = MeasureBest.of(config), folder.execution.device, int(config["seed"])
    agent, trained = _skills(folder, needs["skills"])
    chosen = best_skill_for_task(agent, trained, seed, device, settings.selection_rollouts)
    fresh = per_skill_returns(agent, trained, [seed], SCORING, device, rollouts=settings.evaluation_rollouts)[0]
    skill = torch.full((1, 1), chosen, device=device)
    once = play(agent, trained, [seed], f"{SCORING}/deterministic", device, skill, deterministic=True)
    return {
        "selected_return": float(fresh[chosen]),
        # torch.median would take the lower of the two middle ones.
        "median_return": float(fresh.quantile(0.5)),
        "deterministic_return": float(once.returns),
    }


def imitation(config: Mapping[str, Any], folder: Folder, needs: Needs) -> dict[str, Any]:
    """The agent in `needs["student"]` imitates every skill of the one in `needs["expert"]` (spec 10.3, App. G, C12).

    Both act in the expert's environment, one episode a skill, from starts of their own where starts are random [D].
    Metrics: see `imitation.imitation_metrics`. Leaves imitation.npz: scores [E, K] and distances [E, K] of every
    expert and skill of the student, skill [E], the inferred ones, and expert and student, the places (observations)
    [E, T+1, D] of the expert and of the inferred skill. UserError where the two did not learn in the same environment.
    """
    settings, device, seed = MeasureImitation.of(config), folder.execution.device, int(config["seed"])
    (expert, its), (student, own) = _skills(folder, needs["expert"]), _skills(folder, needs["student"])
    if (its.env, its.positions) != (own.env, own.positions):
        raise UserError(f"the student learnt in {own.env} and the expert in {its.env}: take two of one environment")
    shown = trajectories(
        expert, its, [seed], "imitation/expert", device, every_skill(expert, its, 1, device), deterministic=True
    )
    skills = every_skill(student, own, 1, device)
    tried = trajectories(
        student, its, [seed], "imitation/student", device, skills, deterministic=settings.deterministic
    )
    lengths = shown.alive.sum(0)[0].tolist()
    inferred = infer_skills(student, shown.observation[:, 0], lengths)
    dynamics = DYNAMICS.get(its.env)
    plane = slice(None) if dynamics is None or dynamics.position is None else list(dynamics.position)
    way, ways = shown.observation[:, 0, :, plane], tried.observation[:, 0, :, plane]
    apart = distances(way, lengths, ways)
    _save(
        folder,
        "imitation.npz",
        scores=inferred.scores,
        distances=apart,
        skill=inferred.skill,
        expert=way.transpose(0, 1),
        student=ways[:, inferred.skill].transpose(0, 1),
    )
    return imitation_metrics(inferred, apart)


def poses(config: Mapping[str, Any], folder: Folder, needs: Needs) -> dict[str, Any]:
    """The skills in `needs["skills"]` imitate HalfCheetah states that no agent produced (C13).

    Metrics for each pose of `imitation.POSES` (see `imitation.pose_errors`): `<pose>_error` of the inferred skill,
    `<pose>_random_error`, mean over skills, and `<pose>_best_error`. Deterministic episodes. Leaves poses.npz: skill
    [4], pitch [K, T+1] in rad, errors [4, K].
    """
    settings, device, seed = MeasurePoses.of(config), folder.execution.device, int(config["seed"])
    agent, trained = _skills(folder, needs["skills"])
    index = pitch_index(trained)
    acting = replace(trained, evaluation_horizon=settings.steps)
    skills = every_skill(agent, trained, 1, device)
    played = trajectories(agent, acting, [seed], "poses", device, skills, deterministic=True)
    pitch = played.observation[:, 0, :, index]
    metrics: dict[str, float] = {}
    chosen, errors = [], []
    for pose in POSES:
        states, seconds = pose_states(trained, pose, settings.pose_steps)
        rate = 2 * pi / (settings.pose_steps * seconds)
        inferred = infer_skills(agent, states.to(device)[:, None], [settings.pose_steps])
        error = pose_errors(pitch, pose, rate, seconds)
        chosen.append(inferred.skill[0])
        errors.append(error)
        metrics[f"{pose}_error"] = float(error[inferred.skill[0]])
        metrics[f"{pose}_random_error"] = float(error.mean())
        metrics[f"{pose}_best_error"] = float(error.min())
    _save(folder, "poses.npz", skill=torch.stack(chosen), pitch=pitch.T, errors=torch.stack(errors))
    return metrics


def gridworld(config: Mapping[str, Any], folder: Folder, needs: Needs) -> dict[str, Any]:
    """The optimum of App. B's gridworld, exactly (C15); metrics: see `gridworld.measure`."""
    return grid.measure(MeasureGridworld.of(config).size)
