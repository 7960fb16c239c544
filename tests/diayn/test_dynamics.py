"""Our own environments: the spec's numbers, walls that hold, and gymnasium's mountain car step by step."""

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.diayn.dynamics import DYNAMICS, Dynamics, Hallway
from papers.diayn.environments import goals

BOX, HALLWAY = DYNAMICS["DIAYN/Box-v0"], DYNAMICS["DIAYN/Hallway-v0"]
POINT, CAR, WAYPOINTS = (DYNAMICS[f"DIAYN/{name}-v0"] for name in ("Point", "MountainCar", "Waypoints"))


def start(dynamics: Dynamics, *shape: int) -> torch.Tensor:
    return dynamics.start(torch.full((*shape, dynamics.start_draws), 0.5))


def test_invariant_10_moves_in_the_box() -> None:
    state = start(BOX)
    moves = [(0.1, 0.05), *[(0.1, 0.1)] * 4, (0.1, -0.1)]
    expected = [(0.6, 0.55), (0.7, 0.65), (0.8, 0.75), (0.9, 0.85), (1.0, 0.95), (1.0, 0.85)]
    for move, place in zip(moves, expected, strict=True):
        state, _, terminated = BOX.step(state, torch.tensor(move))
        torch.testing.assert_close(state, torch.tensor(place))
        assert not terminated
    state, _, _ = BOX.step(start(BOX), torch.tensor([0.3, -0.3]))
    torch.testing.assert_close(state, torch.tensor([0.6, 0.4]))


def test_invariant_11_the_center_policy_returns_minus_16() -> None:
    state, total = start(BOX, 25), torch.zeros(25)
    for _ in range(BOX.horizon):
        state, reward, _ = BOX.step(state, torch.zeros(25, 2), goals())
        total += reward
    assert goals().shape == (25, 2)
    assert goals().unique().tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert total.mean().item() == pytest.approx(-16.0, abs=1e-4)


@pytest.mark.parametrize("name", DYNAMICS)
def test_a_stack_of_copies_is_each_copy_alone_and_sizes_are_as_declared(name: str) -> None:
    dynamics, shape = DYNAMICS[name], (3, 4)
    torch.manual_seed(0)
    state = dynamics.start(torch.rand(*shape, dynamics.start_draws))
    before = state.clone()
    action = torch.randn(*shape, dynamics.action_size)
    after, reward, terminated = dynamics.step(state, action)
    assert torch.equal(state, before)
    assert after.shape == (*shape, dynamics.state_size)
    assert reward.shape == terminated.shape == shape
    assert terminated.dtype == torch.bool and reward.dtype == torch.float32
    assert dynamics.observe(after).shape == (*shape, dynamics.observation_size)
    assert dynamics.context(after).shape == (*shape, dynamics.context_size)
    alone = dynamics.step(state[1, 2], action[1, 2])
    assert torch.equal(alone[0], after[1, 2]) and torch.equal(alone[1], reward[1, 2])
    bounds = torch.tensor(dynamics.low), torch.tensor(dynamics.high)
    clipped = dynamics.step(state, torch.minimum(torch.maximum(action, bounds[0]), bounds[1]))
    assert torch.equal(clipped[0], after)
    scaled = (dynamics.observe(after) - torch.tensor(dynamics.center)) / torch.tensor(dynamics.half_range)
    assert scaled.abs().max() <= 1 + 1e-6


MOVE = st.floats(-0.0625, 0.0625, width=32)
MOVES = st.lists(st.tuples(MOVE, MOVE), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(MOVES)
def test_no_move_crosses_a_wall_of_the_hallway(moves: list[tuple[float, float]]) -> None:
    # Many times the same, to reach walls and the room.
    state = start(HALLWAY)
    for move in moves * 8:
        after, _, _ = HALLWAY.step(state, torch.tensor(move))
        assert Hallway.inside(after)
        line = state + (after - state) * torch.linspace(0.02, 0.98, 30)[:, None]
        x, y = line.unbind(-1)
        # To rounding: points between two free ones of a straight move may lie an ulp off the wall.
        assert ((x >= 0.5 - 1e-6) | ((y >= 0.45 - 1e-6) & (y <= 0.55 + 1e-6))).all()
        assert (after - state).abs().max() <= 0.05 + 1e-6
        state = after


def test_a_move_in_the_hallway_stops_at_the_last_free_point() -> None:
    def move(place: tuple[float, float], action: tuple[float, float]) -> torch.Tensor:
        return HALLWAY.step(torch.tensor(place), torch.tensor(action))[0]

    torch.testing.assert_close(move((0.2, 0.5), (0.05, 0.05)), torch.tensor([0.25, 0.55]), atol=0.0051, rtol=0)
    torch.testing.assert_close(move((0.2, 0.53), (0.0, 0.05)), torch.tensor([0.2, 0.55]), atol=0.0051, rtol=0)
    torch.testing.assert_close(move((0.02, 0.5), (-0.05, 0.0)), torch.tensor([0.0, 0.5]), atol=0.0051, rtol=0)
    # From the room, the corner beside the hallway's mouth is not cut, and the mouth lets through.
    torch.testing.assert_close(move((0.52, 0.6), (-0.05, 0.0)), torch.tensor([0.5, 0.6]), atol=0.0051, rtol=0)
    torch.testing.assert_close(move((0.52, 0.5), (-0.05, 0.0)), torch.tensor([0.47, 0.5]))
    torch.testing.assert_close(move((0.52, 0.6), (0.9, 0.9)), torch.tensor([0.57, 0.65]))


def test_the_point_turns_then_moves_along_its_heading() -> None:
    state, _, _ = POINT.step(start(POINT), torch.tensor([1.0, 1.0]))
    heading = torch.tensor(0.5)
    place = [0.5 + 0.1 * float(heading.cos()), 0.5 + 0.1 * float(heading.sin())]
    torch.testing.assert_close(state, torch.tensor([*place, 0.5]))
    torch.testing.assert_close(POINT.observe(state), torch.tensor([*place, float(heading.cos()), float(heading.sin())]))
    still, _, _ = POINT.step(state, torch.tensor([0.0, -1.0]))
    assert torch.equal(still, state)


def test_the_mountain_car_is_gymnasiums_to_rounding() -> None:
    env = gymnasium.make("MountainCarContinuous-v0", disable_env_checker=True)
    generator = np.random.default_rng(0)
    ends = 0
    for episode in range(4):
        observation, _ = env.reset(seed=episode)
        state = torch.tensor(observation)
        for _ in range(400):
            # Pushing along the velocity gets up the hill; noise beyond the bounds tests clipping and the wall.
            action = np.array([np.sign(observation[1] + 1e-8) * 0.9 + generator.normal() * 0.05 * episode], np.float32)
            action = np.clip(action, -1, 1)
            one, reward, terminated = CAR.step(torch.tensor(observation), torch.tensor(action))
            state, _, _ = CAR.step(state, torch.tensor(action))
            observation, expected, ended, _, _ = env.step(action)
            torch.testing.assert_close(one, torch.tensor(observation), atol=2e-7, rtol=1e-6)
            assert float(reward) == pytest.approx(float(expected), abs=1e-5)
            assert bool(terminated) == ended
            if ended:
                ends += 1
                break
        torch.testing.assert_close(state, torch.tensor(observation), atol=1e-4, rtol=1e-4)
    assert ends == 4
    wall, _, _ = CAR.step(torch.tensor([-1.19, -0.05]), torch.tensor([-1.0]))
    torch.testing.assert_close(wall, torch.tensor([-1.2, 0.0]))


def test_waypoints_pay_each_goal_once_in_order_and_end_after_the_fifth() -> None:
    def walk(state: torch.Tensor, target: tuple[float, float]) -> tuple[torch.Tensor, float, bool]:
        total = 0.0
        for _ in range(30):
            state, reward, ended = WAYPOINTS.step(state, torch.tensor(target) - state[:2])
            total += float(reward)
            if ended:
                return state, total, True
        return state, total, False

    state, total, _ = walk(start(WAYPOINTS), (2.0, -2.0))
    assert total == 0.0 and WAYPOINTS.context(state).tolist() == [1, 0, 0, 0, 0, 0]
    assert [WAYPOINTS.current_goal(torch.tensor(float(i))).tolist() for i in range(5)] == [
        [2, 2], [2, -2], [-2, -2], [-2, 2], [2, 2],
    ]  # fmt: skip
    for number, goal in enumerate(WAYPOINTS.goals, start=1):
        state, total, ended = walk(state, goal)
        assert total == 1.0 and int(state[2]) == number and ended == (number == 5)
        assert WAYPOINTS.context(state).argmax() == number
