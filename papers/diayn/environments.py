"""Copies of an environment for a stack of agents: our own as tensors on the device, or gymnasium's on the host.

What they offer is in `copies.py`; gymnasium's are in `simulators.py`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.errors import UserError
from common.random import Stream
from papers.diayn.copies import Environments, Outcome, Tensors
from papers.diayn.dynamics import DYNAMICS, Dynamics
from papers.diayn.simulators import GymEnvironments, Settings


class TorchEnvironments(Environments):
    """Our own dynamics; state and elapsed time are buffers that every step updates in place."""

    state: Tensor
    elapsed: Tensor
    task: Tensor | None
    _scale: Tensor
    _offset: Tensor
    _start: Tensor
    _no_context: Tensor

    def __init__(
        self,
        dynamics: Dynamics,
        seeds: Sequence[int],
        copies: int,
        device: torch.device | str,
        *,
        stream: str = "environment",
        horizon: int = 0,
        observe_goal: bool = False,
        tasks: Tensor | None = None,
    ):
        """horizon: time limit in steps (0: the usual one); tasks: float32 [S, task_size], one of each member."""
        super().__init__(len(seeds), copies)
        self.dynamics, self.device_side = dynamics, True
        self.observation_size, self.action_size = dynamics.observation_size, dynamics.action_size
        self.context_size = dynamics.context_size if observe_goal else 0
        self.horizon = horizon or dynamics.horizon
        self.position, self.extent = dynamics.position, dynamics.extent
        self._streams = [Stream(seed, stream, device) for seed in seeds]
        self.register_buffer("center", torch.tensor(dynamics.center, device=device), persistent=False)
        self.register_buffer("half_range", torch.tensor(dynamics.half_range, device=device), persistent=False)
        low, high = torch.tensor(dynamics.low, device=device), torch.tensor(dynamics.high, device=device)
        self.register_buffer("_scale", (high - low) / 2, persistent=False)
        self.register_buffer("_offset", (high + low) / 2, persistent=False)
        self._scaled, self._shifted = bool(self._scale.ne(1).any()), bool(self._offset.ne(0).any())
        if tasks is not None and (not dynamics.task_size or tasks.shape != (len(seeds), dynamics.task_size)):
            raise UserError(
                "goals are tasks of DIAYN/Box-v0, one for each member: take that environment or tasks 'own'"
            )
        self.register_buffer("task", None if tasks is None else tasks.to(device)[:, None], persistent=False)
        places = (len(seeds), copies)
        self.register_buffer("state", torch.zeros(*places, dynamics.state_size, device=device))
        self.register_buffer("elapsed", torch.zeros(places, dtype=torch.int64, device=device))
        self.register_buffer("_no_context", torch.zeros(*places, 0, device=device), persistent=False)
        self.register_buffer("_start", torch.zeros(dynamics.state_size, device=device), persistent=False)
        self.begin()

    @property
    def observation(self) -> Tensor:
        """Current observations, float32 [S, N, Do]."""
        # The state changes in place, and an observation may be a view of it.
        return self.dynamics.observe(self.state.clone())

    @property
    def context(self) -> Tensor:
        """Current progress of the task, float32 [S, N, Dc]."""
        return self._context(self.state)

    def _context(self, state: Tensor) -> Tensor:
        return self.dynamics.context(state) if self.context_size else self._no_context

    def begin(self) -> None:
        """Start all copies anew, as the constructor did."""
        start = self.dynamics.start(self._uniforms("begin", torch.zeros((), dtype=torch.int64)))
        self._start.copy_(start[0, 0])
        self.state.copy_(start)
        self.elapsed.zero_()

    def _uniforms(self, name: str, steps: Tensor) -> Tensor:
        count = self.copies * self.dynamics.start_draws
        drawn = torch.stack([stream.child(name).uniform(steps, count) for stream in self._streams], -2)
        return drawn.unflatten(-1, (self.copies, self.dynamics.start_draws))

    def draws(self, steps: range) -> Tensors:
        """`start`: uniforms for a reset in each step, [len(steps), S, N, start_draws]; empty where starts are fixed."""
        if not self.dynamics.start_draws:
            return {}
        return {"start": self._uniforms("reset", torch.arange(steps.start, steps.stop, dtype=torch.int64))}

    def step(self, action: Tensor, draws: Mapping[str, Tensor]) -> Outcome:
        """One step of every copy. In place on the state only: nothing that it returns changes later."""
        if self._scaled:
            action = action * self._scale
        if self._shifted:
            action = action + self._offset
        state, reward, terminated = self.dynamics.step(self.state, action, self.task)
        ended = self.elapsed.add_(1) >= self.horizon
        if self.dynamics.terminates:
            ended |= terminated
        start = self.dynamics.start(draws["start"]) if self.dynamics.start_draws else self._start
        self.state.copy_(torch.where(ended[..., None], start, state))
        self.elapsed.masked_fill_(ended, 0)
        return Outcome(self.dynamics.observe(state), reward, terminated, ended, self._context(state))


def make_environments(
    config: Settings,
    seeds: Sequence[int],
    copies: int,
    device: torch.device | str,
    *,
    stream: str = "environment",
    horizon: int | None = None,
    tasks: Tensor | None = None,
    threads: int = 1,
) -> Environments:
    """`copies` copies of config.env for each member's seed; reads config.env, horizon, positions and observe_goal.

    stream: name of the random stream of the starts; horizon: in place of config.horizon; tasks: float32
    [S, task_size], goals in the box; threads: for gymnasium's environments. UserError: see make_env; also discrete
    actions, observations that are no arrays, tasks elsewhere than in the box.
    """
    limit = config.horizon if horizon is None else horizon
    dynamics = DYNAMICS.get(config.env)
    if dynamics is not None:
        return TorchEnvironments(
            dynamics,
            seeds,
            copies,
            device,
            stream=stream,
            horizon=limit,
            observe_goal=config.observe_goal,
            tasks=tasks,
        )
    if tasks is not None:
        raise UserError(f"goals are tasks of DIAYN/Box-v0, not of '{config.env}': take tasks 'own'")
    return GymEnvironments(config, seeds, copies, device, stream=stream, horizon=limit, threads=threads)


def goals() -> Tensor:
    """The 25 goals of the box, {0.1, 0.3, 0.5, 0.7, 0.9}^2 (spec 9.1), float32 [25, 2]."""
    line = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    return torch.cartesian_prod(line, line)
