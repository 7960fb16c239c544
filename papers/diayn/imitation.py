"""Imitation (Sec. 4.2.3; spec 3.6 and 10.3): of an expert's states, the skill that the classifier thinks them to be.

z^ = argmax_z sum_t log q(z|s_t) for the expert's states; the student then runs skill z^. How near it comes is the root
of the mean squared distance between the two at equal times: places in the plane where the environment has one, whole
observations elsewhere.

For claim C13 the expert is no agent at all: a sequence of HalfCheetah states that are written down (`pose_states`).
"""

from collections.abc import Sequence
from math import pi
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from papers.diayn.config import Config
from papers.diayn.method import imitation_scores
from papers.diayn.networks import Agent
from papers.diayn.simulators import make_env

POSES = {"upright": -pi / 2, "flip": None, "faceplant": pi / 4, "handstand": pi / 2}
"""Pitch in rad of each pose of Fig. 9, nose down positive [D: the paper shows pictures alone]: on the hind legs, nose
up; turning over forwards; nose on the ground, back legs up; on the head."""


class Inferred(NamedTuple):
    """What a classifier makes of E experts' states.

    scores [E, K]: mean over time of log q(z|s) in nats; posterior [E, K]: softmax of the sums; skill int64 [E]: z^.
    """

    scores: Tensor
    posterior: Tensor
    skill: Tensor


@torch.no_grad()
def infer_skills(agent: Agent, observation: Tensor, lengths: Sequence[int]) -> Inferred:
    """The skill of each of E experts, from an agent with S = 1.

    observation: [T+1, E, Do], s_0 .. s_T; lengths: steps of each expert's episode, at least 1. D is asked about
    s_0 .. s_{T-1}, or s_1 .. s_T where it was trained on next states.
    """
    following = agent.config.classifier_input == "next"
    states = observation[1:] if following else observation[:-1]
    log_q = agent.log_q(states.flatten(0, 1)[None])[0].unflatten(0, states.shape[:2])
    found = [imitation_scores(log_q[:length, expert]) for expert, length in enumerate(lengths)]
    sums, posterior = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Inferred(sums / sums.new_tensor(lengths)[:, None], posterior, sums.argmax(-1))


def distances(expert: Tensor, lengths: Sequence[int], student: Tensor) -> Tensor:
    """sqrt(mean_t ||s_t - s*_t||^2) of each expert and each skill, [E, K], over the expert's states s*_0 .. s*_length.

    expert: [T+1, E, D]; student: [T+1, K, D], an episode of each skill that stays where it ended.
    """
    found = []
    for number, length in enumerate(lengths):
        apart = student[: length + 1] - expert[: length + 1, number, None]
        found.append(apart.square().sum(-1).mean(0).sqrt())
    return torch.stack(found)


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's, of two vectors; 0 where one of them does not vary."""
    x, y = x.cpu().double(), y.cpu().double()
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 1e-12 else 0.0


def imitation_metrics(inferred: Inferred, apart: Tensor) -> dict[str, float]:
    """Means over the expert's E tasks, of distances apart [E, K].

    `distance`: of the inferred skill; `best_distance`: of the nearest skill; `random_distance`: of the mean skill;
    `correlation`: over the tasks, between the inferred skill's score and its distance; `confidence`: its posterior.
    """
    chosen = inferred.skill[:, None]
    distance, score = apart.gather(1, chosen)[:, 0], inferred.scores.gather(1, chosen)[:, 0]
    return {
        "distance": float(distance.mean()),
        "best_distance": float(apart.amin(1).mean()),
        "random_distance": float(apart.mean()),
        "correlation": correlation(score, distance),
        "confidence": float(inferred.posterior.gather(1, chosen).mean()),
    }


# ---------------------------------------------------------------- poses of HalfCheetah (C13)


def pitch_index(config: Config) -> int:
    """Which entry of HalfCheetah's observation is its pitch in rad (it counts whole turns). UserError elsewhere."""
    if not config.env.startswith("HalfCheetah"):
        raise UserError(f"poses are HalfCheetah's: use skills learnt there, not in {config.env}")
    return 2 if config.positions else 1


def pose_states(config: Config, pose: str, steps: int) -> tuple[Tensor, float]:
    """Observations float32 [steps + 1, Do] of a HalfCheetah in a pose of `POSES`, and the seconds of a step [D].

    All joints of the legs are as the model has them, the lowest point touches the ground, and nothing moves; in "flip"
    the pitch grows by one turn, evenly, with velocities to match.
    """
    import mujoco
    import numpy as np

    index = pitch_index(config)
    env = make_env(config)
    robot: Any = env.unwrapped
    model, seconds = robot.model, robot.dt
    env.close()
    angle = POSES[pose]
    pitches = np.linspace(0, 2 * pi, steps + 1) if angle is None else np.full(steps + 1, angle)
    positions = np.stack([_on_the_ground(mujoco.MjData(model), model, float(pitch)) for pitch in pitches])
    velocities = np.gradient(positions, seconds, axis=0)
    observed = np.concatenate([positions[:, 2 - index :], velocities], axis=1)
    return torch.from_numpy(observed).float(), seconds


def _on_the_ground(data: Any, model: Any, pitch: float) -> Any:
    """qpos [9] (x, z, pitch, legs) of this pitch whose lowest capsule touches the plane z = 0."""
    import mujoco

    data.qpos[:] = 0
    data.qpos[2] = pitch
    mujoco.mj_kinematics(model, data)
    capsules = model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE
    radius, half = model.geom_size[capsules, 0], model.geom_size[capsules, 1]
    # The axis of a capsule is its frame's third one: entry (2, 2) of the matrix is how far that points upwards.
    low = data.geom_xpos[capsules, 2] - half * abs(data.geom_xmat[capsules, 8]) - radius
    data.qpos[1] = -low.min()
    return data.qpos.copy()


def pose_errors(pitch: Tensor, pose: str, turn_rate: float, seconds: float) -> Tensor:
    """How far each of K skills is from a pose, from its pitch [T+1, K] in rad: [K].

    Of a pose that is held: mean angle in rad, at most pi, over the second half of the episode, when it may be reached.
    Of "flip": difference in rad/s between the mean rate of turning and `turn_rate`, over the whole episode.
    """
    angle = POSES[pose]
    if angle is None:
        return ((pitch[-1] - pitch[0]) / ((len(pitch) - 1) * seconds) - turn_rate).abs()
    apart = pitch[len(pitch) // 2 :] - angle
    return (torch.remainder(apart + pi, 2 * pi) - pi).abs().mean(0)
