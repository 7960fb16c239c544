"""Replay of transitions for several members, on the device, in one tensor."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """Transitions of S members. observation, next_observation: [S, B, Do]; action: [S, B, Da]; skill: int64 [S, B];
    reward: [S, B], the task's; terminated: bool [S, B], not set by a time limit."""

    observation: Tensor
    action: Tensor
    skill: Tensor
    reward: Tensor
    terminated: Tensor
    next_observation: Tensor


class ReplayBuffer(nn.Module):
    """The last `capacity` transitions of each member, one row of numbers each.

    Every step writes as many as there are copies of the environment, so where a step writes, and how many rows are
    filled by then, follow from its number: there is no pointer to keep. A row is read with one gather.
    """

    rows: Tensor

    def __init__(self, members: int, capacity: int, observation_size: int, action_size: int):
        """All rows are zeros, float32 [S, capacity, 2 Do + Da + 3]: a skill's number is exact up to 2^24."""
        super().__init__()
        self.members, self.capacity = members, capacity
        self.sizes = (observation_size, action_size, 1, 1, 1, observation_size)
        self.register_buffer("rows", torch.zeros(members, capacity, sum(self.sizes)))

    def positions(self, steps: Tensor, copies: int) -> Tensor:
        """Rows that each of `steps` int64 [T] writes, int64 [T, copies]."""
        return (steps[:, None] * copies + torch.arange(copies, device=steps.device)) % self.capacity

    def filled(self, steps: Tensor, copies: int) -> Tensor:
        """Rows that are filled after each of `steps` int64 [T] has written, int64 [T]."""
        return ((steps + 1) * copies).clamp(max=self.capacity)

    def add(self, position: Tensor, batch: Batch) -> None:
        """Write transitions, [S, N, ...] each, into the rows `position` int64 [N] of every member."""
        single = (each[..., None].to(self.rows.dtype) for each in (batch.skill, batch.reward, batch.terminated))
        row = torch.cat((batch.observation, batch.action, *single, batch.next_observation), -1)
        self.rows.index_copy_(1, position, row)

    def read(self, index: Tensor) -> Batch:
        """The transitions at index int64 [S, B]."""
        first = torch.arange(self.members, device=index.device)[:, None] * self.capacity
        rows = self.rows.view(-1, self.rows.shape[-1])[first + index]
        observation, action, skill, reward, terminated, following = rows.split(self.sizes, -1)
        return Batch(observation, action, skill[..., 0].long(), reward[..., 0], terminated[..., 0] > 0, following)
