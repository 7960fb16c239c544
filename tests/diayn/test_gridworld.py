"""App. B, exactly."""

from itertools import product
from math import log

import pytest
import torch

from papers.diayn import gridworld


@pytest.mark.parametrize(("size", "entropy"), [(4, 1.213008), (8, 1.299651)])
def test_invariant_13_entropy_of_the_two_halves(size, entropy):
    upper = gridworld.half_policy(size)
    assert gridworld.action_entropy(upper) == pytest.approx(entropy, abs=5e-7)
    assert entropy == pytest.approx(log(4) * (1 - 1 / (2 * size)), abs=5e-7)
    assert gridworld.halves_value(size) == pytest.approx(log(2) + entropy, abs=5e-7)


@pytest.mark.parametrize("lower", [False, True])
def test_a_half_is_never_left_and_visited_evenly(lower):
    policy = gridworld.half_policy(6, lower)
    inside = torch.arange(36) >= 18 if lower else torch.arange(36) < 18
    assert torch.equal(policy.sum(1), inside.double())
    assert torch.allclose(gridworld.stationary(policy), inside.double() / 18, atol=1e-12)
    assert float(gridworld.transitions(policy)[inside][:, ~inside].sum()) == 0
    border = 18 if lower else 17
    shares = policy[border]
    assert float(-torch.special.xlogy(shares, shares).sum()) == pytest.approx(0.75 * log(4))
    # What the linear equations found is what a long walk finds.
    walked = torch.linalg.matrix_power(gridworld.transitions(policy), 4096)[border]
    assert torch.allclose(walked, gridworld.stationary(policy), atol=1e-9)


def test_moves_into_walls_stay_put():
    assert gridworld.neighbours(2).tolist() == [[0, 2, 0, 1], [1, 3, 0, 1], [0, 2, 2, 3], [1, 3, 2, 3]]


def test_growth_counts_the_action_sequences_that_stay_inside():
    parts = gridworld.all_partitions(2)
    assert len(parts) == 7 and len({tuple(part) for part in parts.tolist()}) == 7
    moves, length = gridworld.neighbours(2).tolist(), 7
    for part, rate in zip(parts, gridworld.growth(2, parts).tolist(), strict=True):
        inside = {cell for cell in range(4) if part[cell]}
        counts = []
        for steps in (length - 1, length):
            stay = 0
            for start, actions in product(inside, product(range(4), repeat=steps)):
                cell = start
                for action in actions:
                    cell = moves[cell][action]
                    if cell not in inside:
                        break
                else:
                    stay += 1
            counts.append(stay)
        assert log(counts[1] / counts[0]) == pytest.approx(rate, abs=0.01)


def test_no_policy_of_a_half_has_more_entropy_than_its_growth():
    top = gridworld.row_cuts(4)[1]
    largest = float(gridworld.growth(4, top[None])[0])
    assert gridworld.action_entropy(gridworld.half_policy(4)) < largest < log(4)
    # Equal shares of the moves that stay inside: what the growth allows, or less.
    inside = top[gridworld.neighbours(4)] & top[:, None]
    uniform = inside.double() / inside.sum(1, keepdim=True).clamp(min=1)
    assert gridworld.action_entropy(uniform) <= largest
    middle = torch.zeros(3, 3, dtype=torch.bool)
    middle[1, 1] = True  # from which every move leads away
    assert float(gridworld.growth(3, middle.view(9))) == -torch.inf


@pytest.mark.parametrize("size", [2, 4, 6, 16])
def test_equal_halves_are_best_and_near_the_optimum(size):
    found = gridworld.measure(size)
    assert found["gap_ratio"] == 1 and found["optimum_gap_ratio"] < 1
    assert found["gap"] == pytest.approx(log(4) / (2 * size))
    assert found["partition_best"] == 1 and found["partition_margin"] > 0
    assert all(type(value) is float for value in found.values())


def test_a_better_shape_would_be_noticed():
    # Against row cuts alone the halves win, against themselves in place of the halves nothing is unequal.
    cuts = gridworld.row_cuts(4)
    assert gridworld.best_margin(4, cuts) > 0
    values = gridworld.partition_values(4, cuts)
    assert float(values[1] - values[0]) == pytest.approx(gridworld.best_margin(4, cuts))
    assert float(values[0]) == pytest.approx(float(values[2]))
