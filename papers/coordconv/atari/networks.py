"""The actor-critic network (spec, section 4), with a plain or a coordinate-aware first convolution."""

from math import sqrt

import torch
from torch import Tensor, nn

from papers.coordconv.atari.config import Config
from papers.coordconv.atari.environments import SIZE, STACKED
from papers.coordconv.method import CoordConv2d


class ActorCritic(nn.Module):
    """Convolutions 8x8 stride 4, 4x4 stride 2 and 3x3, a dense layer, then action logits and a value.

    At the default width 32, 64 and 64 channels and 512 units. Weights start orthogonal (gain sqrt 2; 0.01 for the
    policy, so that it begins uniform; 1 for the value) and biases at 0, as in the first public A2C.
    """

    def __init__(self, config: Config, num_actions: int):
        super().__init__()
        first = CoordConv2d if config.network == "coordconv" else nn.Conv2d
        width = config.width
        self.body = nn.Sequential(
            first(STACKED, width, 8, 4),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, 2),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 7 * 7, config.dense),
            nn.ReLU(),
        )
        self.policy, self.value = nn.Linear(config.dense, num_actions), nn.Linear(config.dense, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                gain = {self.policy: 0.01, self.value: 1.0}.get(module, sqrt(2))
                nn.init.orthogonal_(module.weight, gain)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N, 4, 84, 84] -> (logits [N, actions], values [N])."""
        assert observations.shape[1:] == (STACKED, SIZE, SIZE)
        features = self.body(observations.float() / 255)
        return self.policy(features), self.value(features)[:, 0]


def sample(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The actions int64 [N] that uniforms [N] in [0, 1) pick from softmax(logits [N, actions])."""
    cumulative = torch.softmax(logits, -1).cumsum(-1)
    # Where rounding leaves the last sum below a uniform, the last action is meant.
    return (uniforms[:, None] >= cumulative[:, :-1]).sum(-1)


def returns_of(rewards: Tensor, dones: Tensor, last_values: Tensor, discount: float) -> Tensor:
    """n-step returns [T, E] from rewards and episode ends [T, E] and the value [E] of what follows."""
    following, backwards = last_values, []
    for reward, done in zip(rewards.flip(0), dones.flip(0), strict=True):
        following = reward + discount * (1 - done) * following
        backwards.append(following)
    return torch.stack(backwards[::-1])
