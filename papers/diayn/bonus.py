"""Random network distillation (Burda et al. 2018), a novelty bonus that stands in for VIME as a baseline (spec, 7)."""

import torch
from torch import Tensor, nn

from papers.diayn.networks import StackedMLP

FEATURES = 32
DECAY = 0.99


class NoveltyBonus(nn.Module):
    """How badly a network predicts a fixed random one at a state, over the recent standard of that error."""

    level: Tensor

    def __init__(self, members: int, observation_size: int, width: int):
        super().__init__()
        self.goal = StackedMLP(members, (observation_size,), width, FEATURES).requires_grad_(False)
        self.predictor = StackedMLP(members, (observation_size,), width, FEATURES)
        self.register_buffer("level", torch.ones(members, 1))

    @torch.no_grad()
    def learn(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """observation [S, B, Do] -> (bonus [S, B] of about 1 on average, the predictor's loss [S]), and the predictor's
        gradients."""
        trace = self.predictor.trace(observation)
        away = trace.output - self.goal(observation)
        self.predictor.backward(trace, away * (2 / away[0].numel()))
        error = away.square().mean(-1)
        self.level.lerp_(error.mean(-1, keepdim=True), 1 - DECAY)
        return error / self.level, error.mean(-1)
