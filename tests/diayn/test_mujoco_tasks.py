"""Cheetah hurdle and ant navigation: the spec's geometry, rewards and ends."""

import copy
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from papers.diayn.config import Config
from papers.diayn.environments import make_environments
from papers.diayn.evaluation import evaluate_skills, evaluate_task
from papers.diayn.mujoco_tasks import AntNavigation, CheetahHurdle
from papers.diayn.networks import Agent
from papers.diayn.simulators import GymEnvironments, make_env

HURDLE, ANT = "DIAYN/CheetahHurdle-v0", "DIAYN/AntNavigation-v0"


def hurdle() -> CheetahHurdle:
    env = make_env(Config(env=HURDLE)).unwrapped
    assert isinstance(env, CheetahHurdle)
    return env


def ant() -> AntNavigation:
    env = make_env(Config(env=ANT)).unwrapped
    assert isinstance(env, AntNavigation)
    return env


def test_invariant_17_hurdles_stand_at_minus_1_plus_3i_and_touch_nothing_at_the_start() -> None:
    env = hurdle()
    model = env.model
    assert (model.nq, model.nv, model.nu) == (9, 9, 6)
    boxes = [i for i in range(model.ngeom) if model.geom_type[i] == mujoco.mjtGeom.mjGEOM_BOX]
    assert len(boxes) == 20
    np.testing.assert_allclose(model.geom_pos[boxes, 0], [-1 + 3 * i for i in range(20)])
    np.testing.assert_allclose(model.geom_pos[boxes, 1:], [[0, 0.125]] * 20)
    np.testing.assert_allclose(model.geom_size[boxes], [[0.05, 0.5, 0.125]] * 20)
    assert (model.geom_contype[boxes] == 1).all() and (model.geom_conaffinity[boxes] == 1).all()
    assert (model.geom_bodyid[boxes] == 0).all()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert data.ncon == 0
    # The robot itself is HalfCheetah's.
    plain = make_env(Config(env="HalfCheetah-v5")).unwrapped.model
    np.testing.assert_array_equal(model.body_mass, plain.body_mass)
    assert model.opt.timestep == plain.opt.timestep


def test_the_hurdle_pays_as_the_cheetah_does_hides_the_hurdles_and_counts_them() -> None:
    env = hurdle()
    observation, _ = env.reset(seed=0)
    assert observation.shape == (17,)
    action = np.full(6, 0.5, np.float32)
    before = env.data.qpos[0]
    _, reward, terminated, _, info = env.step(action)
    assert reward == pytest.approx((env.data.qpos[0] - before) / 0.05 - 0.1 * 6 * 0.25)
    assert not terminated and info["hurdles_cleared"] == 0
    for x, cleared in ((2.0, 0), (2.1, 1), (8.2, 3)):
        position = env.init_qpos.copy()
        position[0], position[1] = x, 1.0
        env.set_state(position, env.init_qvel)
        assert env.step(np.zeros(6))[-1]["hurdles_cleared"] == cleared


def test_hurdles_cleared_in_first_episodes_are_a_metric() -> None:
    config = Config(env=HURDLE, skills=2, width=4, evaluation_rollouts=1, evaluation_horizon=3)
    environments = make_environments(config, (0,), 2, "cpu", horizon=2)
    assert isinstance(environments, GymEnvironments)
    robots: list[Any] = [single.unwrapped for single in environments._singles]

    def put(robot: Any, x: float) -> None:
        robot.set_state(np.array([x, 1.0, *robot.init_qpos[2:]]), robot.init_qvel)
        environments.step(torch.zeros(1, 2, 6), {})

    # The second clears three and is put back; the first clears one in its second episode, which does not count.
    for robot, x in ((robots[1], 8.2), (robots[1], 0.0), (robots[0], 2.1)):
        put(robot, x)
    assert environments.hurdles is not None and environments.hurdles.tolist() == [[0, 3]]
    environments.begin()
    assert environments.hurdles.tolist() == [[0, 0]]
    agent = Agent(config, 17, 6)
    assert evaluate_skills(agent, config, [0], 0, "cpu")[0]["hurdles_cleared"] == 0
    found = evaluate_task(agent, config, [0], 0, "cpu", None, torch.zeros(1, dtype=torch.int64))
    assert found["hurdles_cleared"].tolist() == [0]


def test_a_hurdle_stops_the_cheetah() -> None:
    env = hurdle()
    env.reset(seed=0)
    position, velocity = env.init_qpos.copy(), env.init_qvel.copy()
    position[0], velocity[0] = 1.0, 3.0
    env.set_state(position, velocity)
    touched = False
    for _ in range(40):
        env.step(np.zeros(6))
        bodies = env.model.geom_bodyid
        touched |= any(
            {env.model.geom(g).name for g in contact.geom} & {"hurdle at 2"} and bodies[contact.geom].any()
            for contact in env.data.contact
        )
    assert touched and env.data.qpos[0] < 2.0


def test_invariant_17_the_ants_gears_are_30_and_it_starts_at_the_origin() -> None:
    env = ant()
    assert env.model.actuator_gear[:, 0].tolist() == [30.0] * 8
    _, info = env.reset(seed=0)
    assert env.data.qpos[:2].tolist() == [0.0, 0.0] and info["x_position"] == 0.0
    assert info["context"].tolist() == [1, 0, 0, 0, 0, 0]


def test_the_ants_goals_pay_once_each_in_order() -> None:
    env = ant()
    env.reset(seed=0)

    def at(x: float, y: float) -> tuple[float, np.ndarray, bool]:
        position = env.init_qpos.copy()
        position[:2] = x, y
        env.set_state(position, env.init_qvel)
        _, reward, terminated, _, info = env.step(np.zeros(8))
        return float(reward), info["context"], terminated

    assert at(2.0, -2.0)[0] == 0.0
    assert at(2.0, 2.6)[0] == 0.0
    for number, goal in enumerate([(2, 2), (2, -2), (-2, -2), (-2, 2), (2, 2)], start=1):
        reward, context, terminated = at(goal[0] + 0.3, goal[1] - 0.3)
        assert reward == 1.0 and context.argmax() == number and context.sum() == 1 and not terminated
        assert at(*goal)[0] == 0.0
    assert env.reached == 5
    env.reset(seed=1)
    assert env.reached == 0
    for height, fall, terminated in ((0.75, 0.0, False), (0.7, -20.0, True), (1.2, 0.0, True)):
        position, velocity = env.init_qpos.copy(), env.init_qvel.copy()
        position[2], velocity[2] = height, fall
        env.set_state(position, velocity)
        assert env.step(np.zeros(8))[2] is terminated, env.data.qpos[2]


def test_the_ants_context_and_positions_reach_the_agent() -> None:
    config = Config(env=ANT, observe_goal=True, positions=True)
    environments = make_environments(config, (0,), 2, "cpu")
    assert (environments.observation_size, environments.context_size, environments.horizon) == (107, 6, 5000)
    assert environments.position == (0, 1)
    assert environments.observation[..., :2].tolist() == [[[0.0, 0.0]] * 2]
    outcome = environments.step(torch.zeros(1, 2, 8), {})
    assert outcome.context.tolist() == environments.context.tolist() == [[[1, 0, 0, 0, 0, 0]] * 2]
    plain = make_environments(Config(env=ANT), (0,), 1, "cpu")
    assert (plain.observation_size, plain.context_size, plain.position) == (105, 0, None)


@pytest.mark.parametrize("env", [HURDLE, ANT])
@pytest.mark.filterwarnings("ignore:.*observation space.*:UserWarning")
def test_both_pass_gymnasiums_checker_and_log_nothing(
    env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    single = make_env(Config(env=env, positions=True)).unwrapped
    check_env(single, skip_render_check=True)
    assert type(copy.deepcopy(single)) is type(single)
    assert not list(tmp_path.iterdir())
