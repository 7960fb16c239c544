"""This paper's own environments as functions of tensors: any number of copies is one call, on any device.

A state is float32 [..., state_size]; whatever leads is copies. Nothing here keeps a state or draws a number: starts are
functions of uniforms, and steps of state, action and task, so that a whole training step can be captured. An
observation may be (a view of) its state; nothing else that is returned shares memory with an argument. Time limits are
not part of the dynamics; `horizon` is only what is usual.
"""

from typing import ClassVar

import torch
from torch import Tensor

Range = tuple[float, float]


class Dynamics:
    """What every one of them declares; sizes count entries of the last dimension.

    low, high: bounds of the action in the environment's own units; actions beyond them count as the bound.
    center, half_range: of the observation's declared range, (observation - center) / half_range lies in [-1, 1].
    position: the two entries of the observation that are a place in the plane, which lies in `extent` (x, then y).
    start_draws: uniforms that a start takes; context_size: entries that tell the task's progress; task_size: of a task.
    terminates: whether any episode can end before the time limit; solved: return from which the task counts as solved.
    """

    observation_size: ClassVar[int] = 2
    state_size: ClassVar[int] = 2
    action_size: ClassVar[int] = 2
    start_draws: ClassVar[int] = 0
    context_size: ClassVar[int] = 0
    task_size: ClassVar[int] = 0
    horizon: ClassVar[int] = 100
    terminates: ClassVar[bool] = False
    solved: ClassVar[float | None] = None

    low: ClassVar[tuple[float, ...]] = (-1.0, -1.0)
    high: ClassVar[tuple[float, ...]] = (1.0, 1.0)
    center: ClassVar[tuple[float, ...]] = (0.5, 0.5)
    half_range: ClassVar[tuple[float, ...]] = (0.5, 0.5)
    position: ClassVar[tuple[int, int] | None] = (0, 1)
    extent: ClassVar[tuple[Range, Range] | None] = ((0.0, 1.0), (0.0, 1.0))

    def start(self, uniforms: Tensor) -> Tensor:
        """States at the start of an episode, [..., state_size], from uniforms [..., start_draws] in [0, 1)."""
        raise NotImplementedError

    def step(self, state: Tensor, action: Tensor, task: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(s' [..., state_size], reward [...], terminated bool [...]) after an action [..., action_size] in the
        environment's units; task: [..., task_size], broadcast against the state."""
        raise NotImplementedError

    def observe(self, state: Tensor) -> Tensor:
        """What an agent sees of a state, [..., observation_size]: all of it unless the environment says otherwise."""
        return state

    def context(self, state: Tensor) -> Tensor:
        """The task's progress, [..., context_size]; skills never see it."""
        return state.new_empty((*state.shape[:-1], 0))

    def _constant_start(self, uniforms: Tensor, *values: float) -> Tensor:
        # Filled number by number: a tensor of Python numbers would be copied from the host, which no capture allows.
        state = uniforms.new_empty((*uniforms.shape[:-1], self.state_size))
        for column, value in enumerate(values):
            state[..., column] = value
        return state


def _nothing(state: Tensor) -> Tensor:
    return torch.zeros(state.shape[:-1], dtype=state.dtype, device=state.device)


def _never(state: Tensor) -> Tensor:
    return torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)


class Box(Dynamics):
    """2-D navigation (App. C.1; spec 9.1): the action is added to a place in the unit square, walls clip it.

    Starts in the middle and never terminates. Reward -||s' - g||^2 with a goal g [..., 2] as task, else 0.
    """

    task_size = 2
    low, high = (-0.1, -0.1), (0.1, 0.1)

    def start(self, uniforms: Tensor) -> Tensor:
        """Always the middle."""
        return uniforms.new_full((*uniforms.shape[:-1], 2), 0.5)

    def step(self, state: Tensor, action: Tensor, task: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One move."""
        after = action.clamp(-0.1, 0.1).add_(state).clamp_(0.0, 1.0)
        reward = _nothing(state) if task is None else (after - task).square_().sum(-1).neg_()
        return after, reward, _never(state)


class Hallway(Dynamics):
    """A hallway that opens into a room (Fig. 2b; geometry of spec 9.2): [0, 0.5] x [0.45, 0.55] and [0.5, 1] x [0, 1].

    A move is tried at ten evenly spaced points, the last being its end, and stops before the first that is outside.
    Starts at the closed end, (0.05, 0.5). No reward, no termination.
    """

    low, high = (-0.05, -0.05), (0.05, 0.05)

    def start(self, uniforms: Tensor) -> Tensor:
        """Always the closed end."""
        return self._constant_start(uniforms, 0.05, 0.5)

    @staticmethod
    def inside(place: Tensor) -> Tensor:
        """Whether places [..., 2] are free space, bool [...]."""
        x, y = place.unbind(-1)
        room = (x >= 0.5) & (x <= 1.0) & (y >= 0.0) & (y <= 1.0)
        return room | ((x >= 0.0) & (x <= 0.5) & (y >= 0.45) & (y <= 0.55))

    def step(self, state: Tensor, action: Tensor, task: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One move."""
        # The state itself is the first of eleven points, so that the last free one can be looked up: computing the
        # point anew from its number could land a rounding outside.
        fractions = torch.arange(11, dtype=state.dtype, device=state.device).div_(10)
        points = state[..., None, :] + action.clamp(-0.05, 0.05)[..., None, :] * fractions[:, None]
        free = self.inside(points[..., 1:, :]).to(torch.int64).cumprod(-1).sum(-1)
        after = points.gather(-2, free[..., None, None].expand(*free.shape, 1, 2)).squeeze(-2)
        return after, _nothing(state), _never(state)


class Point(Dynamics):
    """The point with heading and speed of the study of alpha (App. D.2; spec 9.3) in the unit square.

    Action (turn, speed), both in [-1, 1]: heading += 0.5 turn (radians), then a move of 0.05 (speed + 1) along it.
    Observation (x, y, cos, sin of the heading). Starts in the middle, heading along x. No reward, no termination.
    """

    observation_size, state_size = 4, 3
    center, half_range = (0.5, 0.5, 0.0, 0.0), (0.5, 0.5, 1.0, 1.0)

    def start(self, uniforms: Tensor) -> Tensor:
        """Always the middle, heading along x."""
        return self._constant_start(uniforms, 0.5, 0.5, 0.0)

    def step(self, state: Tensor, action: Tensor, task: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One turn and move."""
        turn, speed = action.clamp(-1.0, 1.0).unbind(-1)
        heading = state[..., 2] + 0.5 * turn
        direction = torch.stack([heading.cos(), heading.sin()], -1)
        place = (state[..., :2] + direction * (0.05 * (speed + 1.0))[..., None]).clamp_(0.0, 1.0)
        return torch.cat([place, heading[..., None]], -1), _nothing(state), _never(state)

    def observe(self, state: Tensor) -> Tensor:
        """(x, y, cos, sin)."""
        heading = state[..., 2:]
        return torch.cat([state[..., :2], heading.cos(), heading.sin()], -1)


class MountainCar(Dynamics):
    """Gymnasium's MountainCarContinuous-v0 (spec 10.5) to float32 rounding: state (position, velocity), one force.

    Starts at rest, position uniform in [-0.6, -0.4). Terminates with +100 at position >= 0.45 with velocity >= 0; each
    step costs 0.1 force^2.
    """

    action_size, start_draws, horizon, terminates, solved = 1, 1, 999, True, 90.0
    low, high = (-1.0,), (1.0,)
    center, half_range = (-0.3, 0.0), (0.9, 0.07)
    position, extent = None, None

    def start(self, uniforms: Tensor) -> Tensor:
        """At rest in the valley."""
        return torch.cat([uniforms * 0.2 - 0.6, torch.zeros_like(uniforms)], -1)

    def step(self, state: Tensor, action: Tensor, task: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One push."""
        position, velocity = state.unbind(-1)
        force = action[..., 0].clamp(-1.0, 1.0)
        velocity = (velocity + (force * 0.0015 - (3.0 * position).cos_() * 0.0025)).clamp_(-0.07, 0.07)
        position = (position + velocity).clamp_(-1.2, 0.6)
        # The left wall takes the speed away.
        velocity = velocity.masked_fill((position <= -1.2) & (velocity < 0), 0.0)
        terminated = (position >= 0.45) & (velocity >= 0)
        reward = terminated * 100.0 - force.square() * 0.1
        return torch.stack([position, velocity], -1), reward, terminated


class Waypoints(Dynamics):
    """Ant navigation's goals for a point mass (spec 10.7): moves of up to 0.2 along each axis in [-3, 3]^2.

    Goals in order (2, 2), (2, -2), (-2, -2), (-2, 2), (2, 2) (spec 9.5): +1 when a move ends within 0.5 of the current
    one, then the next is current; at most one in a step; the fifth terminates. The observation is the place; how many
    goals are reached is the context, one-hot of 6. Starts at the origin.
    """

    state_size, context_size, horizon, terminates = 3, 6, 200, True
    low, high = (-0.2, -0.2), (0.2, 0.2)
    center, half_range = (0.0, 0.0), (3.0, 3.0)
    extent = ((-3.0, 3.0), (-3.0, 3.0))
    goals = ((2.0, 2.0), (2.0, -2.0), (-2.0, -2.0), (-2.0, 2.0), (2.0, 2.0))

    def start(self, uniforms: Tensor) -> Tensor:
        """Always the origin, no goal reached."""
        return uniforms.new_zeros((*uniforms.shape[:-1], 3))

    def current_goal(self, reached: Tensor) -> Tensor:
        """The goal [..., 2] after `reached` goals [...], 0 to 4."""
        # Signs of the corners by number, without a table on the device: x is + for 0, 1 and 4, y for 0, 3 and 4.
        x = torch.where((reached <= 1) | (reached >= 4), 2.0, -2.0)
        y = torch.where((reached <= 0) | (reached >= 3), 2.0, -2.0)
        return torch.stack([x, y], -1)

    def step(self, state: Tensor, action: Tensor, task: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One move."""
        reached = state[..., 2]
        place = (action.clamp(-0.2, 0.2) + state[..., :2]).clamp_(-3.0, 3.0)
        near = (place - self.current_goal(reached)).square_().sum(-1) <= 0.25
        reward = (near & (reached < 5)).to(state.dtype)
        reached = reached + reward
        return torch.cat([place, reached[..., None]], -1), reward, reached >= 5

    def observe(self, state: Tensor) -> Tensor:
        """The place."""
        return state[..., :2]

    def context(self, state: Tensor) -> Tensor:
        """One-hot of the number of goals reached."""
        return (state[..., 2:] == torch.arange(6, dtype=state.dtype, device=state.device)).to(state.dtype)


DYNAMICS: dict[str, Dynamics] = {
    "DIAYN/Box-v0": Box(),
    "DIAYN/Hallway-v0": Hallway(),
    "DIAYN/Point-v0": Point(),
    "DIAYN/MountainCar-v0": MountainCar(),
    "DIAYN/Waypoints-v0": Waypoints(),
}
