"""A running mean and standard deviation of what was observed, for `observation_scale` "running"."""

import torch
from torch import Tensor, nn


class RunningScale(nn.Module):
    """Chan's parallel form of Welford's sums, for each member."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, members: int, observation_size: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(members, 1, observation_size))
        self.register_buffer("squares", torch.zeros(members, 1, observation_size))

    def add(self, observation: Tensor, center: Tensor, scale: Tensor) -> None:
        """Count observations [S, N, Do] in and write the mean and the standard deviation [S, 1, Do] in place."""
        copies = observation.shape[1]
        total = self.count + copies
        mean = observation.mean(1, keepdim=True)
        away = mean - self.mean
        self.squares += (observation - mean).square().sum(1, keepdim=True) + away.square() * self.count * copies / total
        self.mean += away * copies / total
        self.count.copy_(total)
        center.copy_(self.mean)
        # An entry that never changes stays as it is, less its mean.
        spread = (self.squares / self.count).sqrt()
        scale.copy_(torch.where(spread > 1e-6, spread, 1.0))
