"""Copies of environments: ends and resets, members on their own, resuming, and gymnasium's conventions."""

import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import papers.diayn.registration as registration
from common.errors import UserError
from common.random import Stream
from papers.diayn.config import Config
from papers.diayn.copies import Environments, Outcome
from papers.diayn.dynamics import DYNAMICS
from papers.diayn.environments import goals, make_environments
from papers.diayn.simulators import GymEnvironments, make_env

KINDS = ["DIAYN/MountainCar-v0", "DIAYN/Waypoints-v0", "MountainCarContinuous-v0", "InvertedPendulum-v5"]


def make(env: str, seeds: tuple[int, ...] = (0, 1), copies: int = 3, **settings: object) -> Environments:
    return make_environments(Config(env=env, **settings), seeds, copies, "cpu")  # type: ignore[arg-type]


def advance(environments: Environments, start: int, stop: int, seeds: tuple[int, ...] = (0, 1)) -> list[Outcome]:
    """Steps with actions that are functions of (member's seed, step)."""
    draws = environments.draws(range(start, stop))
    outcomes = []
    for step in range(start, stop):
        shape = (environments.copies, environments.action_size)
        action = torch.stack([Stream(seed, "action").normal(step, shape) for seed in seeds]).tanh()
        outcomes.append(environments.step(action, {name: tensor[step - start] for name, tensor in draws.items()}))
    return outcomes


def same(one: list[Outcome], other: list[Outcome], member: int | None = None) -> bool:
    pick = slice(None) if member is None else slice(member, member + 1)
    return all(
        torch.equal(a, b[pick])
        for mine, theirs in zip(one, other, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )


@pytest.mark.parametrize("env", ["DIAYN/Box-v0", "DIAYN/MountainCar-v0", "MountainCarContinuous-v0"])
def test_a_time_limit_ends_an_episode_without_terminating_it_and_shows_its_last_state(env: str) -> None:
    environments = make(env, horizon=7)
    assert environments.horizon == 7
    first = environments.observation
    outcomes = advance(environments, 0, 7)
    assert not any(outcome.terminated.any() for outcome in outcomes)
    assert [bool(outcome.ended.all()) for outcome in outcomes] == [False] * 6 + [True]
    # Seven steps away from the start, and then a start again.
    moved = (outcomes[-1].observation - outcomes[-2].observation).abs().amax(-1)
    assert (moved > 0).all() and (moved <= 0.2).all()
    assert not torch.equal(outcomes[-1].observation, environments.observation)
    if env == "DIAYN/Box-v0":
        assert torch.equal(environments.observation, first)
    else:
        assert (environments.observation[..., 1] == 0).all()
        assert not torch.equal(environments.observation, first)
        assert ((environments.observation[..., 0] >= -0.6) & (environments.observation[..., 0] <= -0.4)).all()


def test_a_true_end_is_terminated_and_only_what_ended_starts_anew() -> None:
    environments = make("InvertedPendulum-v5", copies=4)
    seen = 0
    for outcome in advance(environments, 0, 40):
        assert torch.equal(outcome.terminated, outcome.ended)
        if outcome.ended.any() and not outcome.ended.all():
            seen += 1
            # |angle| > 0.2 is the pendulum's end; starts lie within 0.01.
            assert (outcome.observation[outcome.ended][:, 1].abs() > 0.2).all()
    assert seen and (environments.observation[outcome.ended].abs() <= 0.01 + 1e-6).all()


@pytest.mark.parametrize("env", KINDS)
def test_a_member_alone_is_the_member_in_a_stack(env: str) -> None:
    settings = {"horizon": 9, "observe_goal": True}
    stacked = advance(make(env, **settings), 0, 20)
    alone = advance(make(env, seeds=(1,), **settings), 0, 20, seeds=(1,))
    assert same(alone, stacked, member=1)
    assert not torch.equal(stacked[0].observation[0], stacked[0].observation[1])


@pytest.mark.parametrize("env", [*KINDS, "HalfCheetah-v5", "DIAYN/AntNavigation-v0"])
def test_a_saved_state_goes_on_bit_equal_from_the_middle_of_episodes(env: str, tmp_path: Path) -> None:
    environments = make(env, copies=2, horizon=11, observe_goal=True)
    advance(environments, 0, 17)
    torch.save(environments.state_dict(), tmp_path / "state.pt")
    current = environments.observation, environments.context
    undisturbed = advance(environments, 17, 32)
    assert any(outcome.ended.any() for outcome in undisturbed)
    restored = make(env, copies=2, horizon=11, observe_goal=True)
    advance(restored, 0, 5)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(restored.observation, current[0]) and torch.equal(restored.context, current[1])
    assert same(advance(restored, 17, 32), undisturbed)


def test_an_environment_that_cannot_be_replayed_says_so() -> None:
    environments = make("InvertedPendulum-v5")
    advance(environments, 0, 3)
    state = environments.state_dict()
    state["_extra_state"]["observation"] += 1
    with pytest.raises(UserError, match="cannot be resumed"):
        make("InvertedPendulum-v5").load_state_dict(state)


def test_threads_change_no_number() -> None:
    config, seeds = Config(env="HalfCheetah-v5", horizon=6), (0, 1)
    serial, threaded = (make_environments(config, seeds, 2, "cpu", threads=threads) for threads in (1, 3))
    assert same(advance(threaded, 0, 10), advance(serial, 0, 10))


def test_what_a_step_returned_is_not_changed_by_later_ones_and_begin_starts_again() -> None:
    for env in ("DIAYN/Box-v0", "DIAYN/Waypoints-v0", "MountainCarContinuous-v0"):
        environments = make(env, observe_goal=True)
        first = environments.observation
        kept = [environments.observation, environments.context, *advance(environments, 0, 1)[0]]
        copies = [tensor.clone() for tensor in kept]
        advance(environments, 1, 4)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(kept, copies, strict=True))
        environments.begin()
        assert torch.equal(environments.observation, first)


@pytest.mark.parametrize("env", DYNAMICS)
def test_our_tensors_are_our_gymnasium_environment(env: str) -> None:
    """Over whole episodes, except for starts, which gymnasium draws from its own generators."""
    ours = make(env, seeds=(0,), copies=2, horizon=30)
    theirs = GymEnvironments(Config(env=env), (0,), 2, "cpu", horizon=30)
    assert theirs.horizon == 30 and theirs.observation_size == ours.observation_size
    torch.testing.assert_close(theirs.center, ours.center)
    torch.testing.assert_close(theirs.half_range, ours.half_range)
    if not DYNAMICS[env].start_draws:
        one, other = advance(ours, 0, 40, seeds=(0,)), advance(theirs, 0, 40, seeds=(0,))
        for mine, yours in zip(one, other, strict=True):
            torch.testing.assert_close(mine.observation, yours.observation, atol=1e-5, rtol=1e-5)
            assert torch.equal(mine.ended, yours.ended)


def test_actions_are_mapped_to_the_environments_bounds_and_goals_are_tasks() -> None:
    environments = make("InvertedPendulum-v5", seeds=(0,), copies=2)
    environments.step(torch.tensor([[[1.0], [-0.5]]]), {})
    assert environments.state_dict()["_extra_state"]["actions"].flatten().tolist() == [3.0, -1.5]
    box = make_environments(Config(env="DIAYN/Box-v0"), range(25), 2, "cpu", tasks=goals())
    outcome = box.step(torch.zeros(25, 2, 2), {})
    torch.testing.assert_close(outcome.reward[:, 0], -(goals() - 0.5).square().sum(-1))
    assert (outcome.context.shape, box.context_size) == ((25, 2, 0), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": "Nowhere-v0"}, "no environment 'Nowhere-v0'"),
        ({"env": "no_such_module:Nowhere-v0"}, "no environment"),
        ({"env": "CartPole-v1"}, "Discrete"),
        ({"env": "MountainCarContinuous-v0", "positions": True}, "no positions"),
    ],
)
def test_environments_that_cannot_be_used_are_one_line(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_environments(Config(**settings), (0,), 1, "cpu")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="goals are tasks"):
        make_environments(Config(env="MountainCarContinuous-v0"), (0,), 1, "cpu", tasks=goals()[:1])


def test_gymnasiums_robots_their_sizes_positions_and_silence(capfd: pytest.CaptureFixture[str]) -> None:
    sizes = {"HalfCheetah-v5": (17, 6), "Hopper-v5": (11, 3), "Ant-v5": (105, 8)}
    for env, (observation, action) in sizes.items():
        environments = make(env, seeds=(0,), copies=1)
        assert (environments.observation_size, environments.action_size) == (observation, action)
        assert environments.center is None and environments.horizon == 1000 and environments.position is None
        outcome = advance(environments, 0, 1, seeds=(0,))[0]
        assert outcome.observation.shape == (1, 1, observation) and outcome.observation.dtype == torch.float32
    ant = make("Ant-v5", seeds=(0,), copies=1, positions=True)
    assert (ant.observation_size, ant.position, ant.extent) == (107, (0, 1), None)
    cheetah = make("HalfCheetah-v5", seeds=(0,), copies=1, positions=True)
    assert (cheetah.observation_size, cheetah.position) == (18, None)
    assert "deprecated" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("env", DYNAMICS)
def test_our_environments_pass_gymnasiums_checker_and_draw_themselves(env: str) -> None:
    registration.register()
    single = make_env(Config(env=env), render_mode="rgb_array")
    with warnings.catch_warnings():
        # The checker would rather have actions in [-1, 1] than in the paper's units.
        warnings.simplefilter("ignore")
        check_env(single.unwrapped)
    single.reset(seed=0)
    first = single.render()
    for _ in range(5):
        single.step(single.action_space.high)
    later = single.render()
    assert first.shape == (240, 240, 3) and first.dtype == np.uint8
    assert 0 < (first != later).any(-1).sum() < 2000
    agent = (later == registration.INK["agent"]).all(-1)
    assert 40 < agent.sum() < 120
    goal = gymnasium.make("DIAYN/Box-v0", goal=(0.9, 0.1), render_mode="rgb_array")
    goal.reset(seed=0)
    rows, columns = (goal.render() == registration.INK["goal"]).all(-1).nonzero()
    assert rows.mean() > 190 and columns.mean() > 190
    assert goal.step(np.zeros(2, np.float32))[1] == pytest.approx(-0.32)


def record(envs: VectorEnv, steps: int, mode: AutoresetMode) -> list[tuple]:
    observation, info = envs.reset(seed=3)
    rows = [(observation, info)]
    generator = np.random.default_rng(0)
    over = np.zeros(envs.num_envs, np.bool_)
    for _ in range(steps):
        if mode == AutoresetMode.DISABLED and over.any():
            rows.append(envs.reset(options={"reset_mask": over.copy()}))
        action = generator.uniform(-1, 1, envs.action_space.shape).astype(np.float32)
        rows.append(envs.step(action * envs.single_action_space.high))
        over = rows[-1][2] | rows[-1][3]
    return rows


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("env", ["DIAYN/MountainCar-v0", "DIAYN/Waypoints-v0"])
def test_the_vector_environment_is_gymnasiums_over_the_single_one(env: str, mode: AutoresetMode) -> None:
    single: Callable[[], gymnasium.Env] = lambda: gymnasium.make(env, max_episode_steps=5)  # noqa: E731
    theirs = record(SyncVectorEnv([single] * 3, autoreset_mode=mode), 13, mode)
    envs = gymnasium.make_vec(env, num_envs=3, max_episode_steps=5, autoreset_mode=mode)
    assert isinstance(envs, registration.OwnVectorEnv) and envs.metadata["autoreset_mode"] == mode
    ours = record(envs, 13, mode)
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine[-1].keys() == yours[-1].keys()
        for key, value in yours[-1].items():
            for got, expected in zip(np.atleast_1d(mine[-1][key]), np.atleast_1d(value), strict=True):
                np.testing.assert_equal(got, expected)
        for got, expected in zip(mine[:-1], yours[:-1], strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)
            assert got.dtype == expected.dtype and got.shape == expected.shape


def test_the_vector_environment_refuses_what_makes_no_sense() -> None:
    envs = gymnasium.make_vec("DIAYN/Box-v0", num_envs=2, max_episode_steps=1, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    envs.step(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="reset_mask"):
        envs.step(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="as many seeds"):
        envs.reset(seed=[1])
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.zeros(2, np.bool_)})
    with pytest.raises(ValueError, match="goal"):
        gymnasium.make("DIAYN/Point-v0", goal=(0.5, 0.5))
