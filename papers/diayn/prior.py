"""p(z) as VIC learns it (App. E; spec 3.5), for the members that do; the others' stays uniform."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papers.diayn import method


class SkillPrior(nn.Module):
    """The last `window` values of log q(z|s) of each skill while it acted; p(z) follows at the end of each epoch.

    scores: [S, K, window], a ring for each skill; written: int64 [S, K], how many values each has ever had.
    """

    scores: Tensor
    written: Tensor

    def __init__(self, learned: Sequence[bool], skills: int, window: int):
        super().__init__()
        self.any = any(learned)
        self.skills, self.window = skills, window
        members, size = len(learned), window if self.any else 0
        self.register_buffer("learned", torch.tensor(learned)[:, None], persistent=False)
        self.register_buffer("scores", torch.zeros(members, skills, size))
        self.register_buffer("written", torch.zeros(members, skills, dtype=torch.int64))

    def add(self, log_q: Tensor, skill: Tensor) -> None:
        """What the classifier says of the skills that act: log_q [S, N, K], skill int64 [S, N]."""
        said = log_q.gather(-1, skill[..., None])[..., 0]
        acting = F.one_hot(skill, self.skills)
        # Copies with the same skill write one after the other.
        order = acting.cumsum(1).gather(-1, skill[..., None])[..., 0] - 1
        place = (self.written.gather(1, skill) + order) % self.window
        self.scores.view(len(skill), -1).scatter_(1, skill * self.window + place, said)
        self.written += acting.sum(1)

    def update(self, prior: Tensor) -> None:
        """The end of an epoch: p(z) [S, K] in place."""
        count = self.written.clamp(max=self.window)
        filled = torch.arange(self.window, device=count.device) < count[..., None]
        mean = (self.scores * filled).sum(-1) / count.clamp(min=1)
        prior.copy_(torch.where(self.learned, method.learned_prior(mean, count > 0), prior))  # type: ignore[arg-type]


def draw_skill(prior: Tensor, uniform: Tensor) -> Tensor:
    """z ~ p(z): prior [S, K], uniform [S, N] -> int64 [S, N]."""
    return method.choose(prior[:, None], uniform)
