"""The gridworld of App. B, exactly: an N x N grid, two skills, four moves; a move into the wall stays put (spec 9.6).

Objective (alpha = 1): F = H[Z] - H[Z|S] + H[A|S,Z], never above ln 2 + ln 4. Two skills that keep to disjoint parts of
the grid have H[Z] - H[Z|S] = ln 2, so such a pair is as good as its action entropy, averaged over both.

The paper's pair keeps to the upper and the lower half and is uniform over the four moves, but that on the N cells along
the border the forbidden move's share goes to another one: an entropy of 3/4 ln 4 there. As every cell of a half is
visited equally often (`stationary`), F = ln 2 + ln 4 (1 - 1/(2N)) (Lemma B.2), which is ln 4/(2N) below the bound, and
so no further below the optimum of all pairs whatsoever.

For any part of the grid the largest action entropy among all policies that never leave it is known too: moves are
deterministic, so it is the growth rate of the number of action sequences that stay inside, the logarithm of the
largest eigenvalue of the matrix of moves inside (Shannon 1948, "The Discrete Noiseless Channel"). So
`partition_values` is exact. That equal halves are the best pair of disjoint parts (Lemma B.1) is shown by trying every
partition of a small grid, parts of any shape and disconnected ones included, and for larger grids every cut between
rows alone. Not covered: pairs of skills that share states, which only the bound above limits.
"""

from math import inf, log

import torch
from torch import Tensor

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Up, down, left, right as (row, column)."""
TOLERANCE = 1e-9
"""Objectives in nats that are closer than this are equal."""
MOST_TRIED = 4
"""The largest side N of a grid whose 2^(N^2 - 1) - 1 partitions are all tried."""


def neighbours(size: int) -> Tensor:
    """The cell that each move leads to, int64 [N^2, 4]; cells are numbered row by row."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    reached = [(rows + down).clamp(0, size - 1) * size + (columns + right).clamp(0, size - 1) for down, right in MOVES]
    return torch.stack(reached, dim=-1).view(size * size, 4)


def half_policy(size: int, lower: bool = False) -> Tensor:
    """The paper's policy of the upper (lower) half, float64 [N^2, 4]; rows of the other half are 0.

    The share of the move across the border goes left in even columns and right in odd ones, which keeps the cells of
    the half equally likely (N must be even); any choice has the entropy 3/4 ln 4.
    """
    policy = torch.full((size, size, 4), 0.25, dtype=torch.float64)
    border, across = (size // 2, 0) if lower else (size // 2 - 1, 1)
    policy[border, :, across] = 0
    policy[border, 0::2, 2] += 0.25
    policy[border, 1::2, 3] += 0.25
    policy[: size // 2] *= not lower
    policy[size // 2 :] *= lower
    return policy.view(size * size, 4)


def transitions(policy: Tensor) -> Tensor:
    """P[s, s'] of a policy [N^2, 4], float64 [N^2, N^2]."""
    size = round(len(policy) ** 0.5)
    return policy.new_zeros(len(policy), len(policy)).scatter_add_(1, neighbours(size), policy)


def stationary(policy: Tensor) -> Tensor:
    """How often each cell is visited in the long run, [N^2], summing to 1; the policy must keep to one connected part
    (its cells with probabilities), and cells outside have 0."""
    inside = policy.sum(1) > 0
    chain = transitions(policy)[inside][:, inside]
    # (P^T - I) d = 0 with sum(d) = 1 in place of one of these equations, which the others imply.
    system = chain.T - torch.eye(len(chain), dtype=chain.dtype)
    system[-1] = 1
    target = torch.zeros(len(chain), dtype=chain.dtype)
    target[-1] = 1
    found = torch.zeros(len(policy), dtype=policy.dtype)
    found[inside] = torch.linalg.solve(system, target)
    return found


def action_entropy(policy: Tensor) -> float:
    """H[A|S] in nats of a policy [N^2, 4] over the states that it visits."""
    entropy = -torch.special.xlogy(policy, policy).sum(1)
    return float((stationary(policy) * entropy).sum())


def halves_value(size: int) -> float:
    """F of the paper's two skills in nats: ln 2 + ln 4 (1 - 1/(2N)), computed from their Markov chains."""
    upper, lower = half_policy(size), half_policy(size, lower=True)
    # Neither visits a cell of the other, so H[Z] - H[Z|S] = ln 2.
    return log(2) + (action_entropy(upper) + action_entropy(lower)) / 2


def growth(size: int, parts: Tensor) -> Tensor:
    """The largest H[A|S] in nats of a policy that never leaves the part: parts bool [..., N^2] to float64 [...].

    -inf where every policy must leave it.
    """
    cells = size * size
    inside = torch.zeros(cells, cells, dtype=torch.float64)
    inside.scatter_add_(1, neighbours(size), torch.ones(cells, 4, dtype=torch.float64))
    chosen = parts.to(torch.float64)
    # Moves have inverses and blocked ones stay, so the matrix is symmetric.
    largest = torch.linalg.eigvalsh(inside * chosen[..., :, None] * chosen[..., None, :])[..., -1]
    return torch.where(largest > TOLERANCE, largest, 0).log()


def partition_values(size: int, parts: Tensor) -> Tensor:
    """The largest F in nats of two skills of which one keeps to the part and the other to the rest, [...]."""
    return log(2) + (growth(size, parts) + growth(size, ~parts)) / 2


def row_cuts(size: int) -> Tensor:
    """The upper 1 .. N - 1 rows, bool [N - 1, N^2]."""
    rows = torch.arange(size).repeat_interleave(size)
    return rows < torch.arange(1, size)[:, None]


def all_partitions(size: int) -> Tensor:
    """Every way to divide the cells in two nonempty parts, bool [2^(N^2 - 1) - 1, N^2]; the last cell is outside."""
    cells = size * size
    numbers = torch.arange(1, 1 << (cells - 1))
    return (numbers[:, None] >> torch.arange(cells)) % 2 == 1


def best_margin(size: int, parts: Tensor) -> float:
    """By how many nats equal halves beat the best of the partitions with unequal parts, less than 0 where they do not;
    -inf where equal parts of another shape beat the halves."""
    values = torch.cat([partition_values(size, chunk) for chunk in parts.split(4096)])
    halves = float(partition_values(size, row_cuts(size)[size // 2 - 1]))
    equal = parts.sum(-1) == size * size // 2
    if bool((values[equal] > halves + TOLERANCE).any()):
        return -inf
    return halves - float(values[~equal].max())


def measure(size: int) -> dict[str, float]:
    """The numbers behind claim C15 for an N x N grid, in nats but for ratios.

    `entropy`: H[A|S,Z] of the paper's pair; `value`: its F; `gap`: the bound ln 2 + ln 4 minus that; `gap_ratio`: gap
    over the ln 4/(2N) of Lemma B.2, to 12 decimals, must not pass 1; `optimum_gap_ratio`: that of the best pair which
    keeps to the halves. `partition_margin`: by how much the halves beat the best of the tried partitions with unequal
    parts (0 where they lose: see `partition_best`); `partition_best`: 1 where they beat those, and no other tried shape
    of equal parts beats them, else 0. All partitions are tried up to N = 4, all row cuts beyond.
    """
    bound, stated = log(2) + log(4), log(4) / (2 * size)
    value, cuts = halves_value(size), row_cuts(size)
    optimum = float(partition_values(size, cuts[size // 2 - 1]))
    margin = best_margin(size, all_partitions(size) if size <= MOST_TRIED else cuts)
    return {
        "entropy": value - log(2),
        "value": value,
        "gap": bound - value,
        "gap_ratio": round((bound - value) / stated, 12),
        "optimum_gap_ratio": (bound - optimum) / stated,
        "partition_margin": max(margin, 0.0),
        "partition_best": float(margin > TOLERANCE),
    }
