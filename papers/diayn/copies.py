"""N copies of an environment for each of S members: what every kind of copies offers, and what a step gives.

A step takes actions in [-1, 1], maps them to the environment's bounds, and gives what came of them before any reset:
the observation of an ended episode is s' and never the first of the next one. What ended is then started anew. A cut by
a time limit is `ended`, not `terminated`.

Starts are functions of (member's seed, stream, copy, step or episode), so a member's environments are the same alone
and in a stack. `state_dict` holds all that is needed to go on as if nothing had happened, in the middle of episodes.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from papers.diayn.dynamics import Range

Tensors = dict[str, Tensor]


class Outcome(NamedTuple):
    """What a step gave, before any reset."""

    observation: Tensor  # s', float32 [S, N, Do]
    reward: Tensor  # float32 [S, N]
    terminated: Tensor  # bool [S, N]: a true end
    ended: Tensor  # bool [S, N]: terminated, or cut by a time limit
    context: Tensor  # float32 [S, N, Dc]: of s'


class Environments(nn.Module):
    """N copies for each of S members.

    center, half_range: float32 [Do] of the observation's declared range, or None; position: the two observation entries
    that are a place in the plane, or None, and its extent, or None; device_side: whether steps are tensor functions
    only, which may be captured.
    """

    center: Tensor | None
    half_range: Tensor | None

    def __init__(self, members: int, copies: int):
        super().__init__()
        self.members, self.copies = members, copies
        self.observation_size = self.action_size = self.context_size = self.horizon = 0
        self.position: tuple[int, int] | None = None
        self.extent: tuple[Range, Range] | None = None
        self.device_side = False

    @property
    def observation(self) -> Tensor:
        """Current observations, float32 [S, N, Do]; later steps leave the tensor as it is."""
        raise NotImplementedError

    @property
    def context(self) -> Tensor:
        """Current progress of the task, float32 [S, N, Dc]; later steps leave the tensor as it is."""
        raise NotImplementedError

    @property
    def hurdles(self) -> Tensor | None:
        """Most hurdles that a copy cleared in its first episode since `begin`, float32 [S, N]; None without hurdles."""
        return None

    def begin(self) -> None:
        """Start all copies anew, as the constructor did."""
        raise NotImplementedError

    def draws(self, steps: range) -> Tensors:
        """What `step` needs of chance in each of these steps, with leading dimension len(steps)."""
        raise NotImplementedError

    def step(self, action: Tensor, draws: Mapping[str, Tensor]) -> Outcome:
        """One step of every copy with actions [S, N, Da] in [-1, 1] and the draws of this step."""
        raise NotImplementedError
