"""Gymnasium's environments: making one with these settings, and copies of it on the host for a stack of agents."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import DependencyNotInstalled
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from common.errors import UserError
from common.random import Stream
from papers.diayn.config import Config
from papers.diayn.copies import Environments, Outcome, Tensors
from papers.diayn.dynamics import DYNAMICS
from papers.diayn.meta_config import MetaConfig
from papers.diayn.registration import quiet_models

Settings = Config | MetaConfig
"""Read are env, horizon, positions and observe_goal, which both have."""

UNBOUNDED = 1e10
"""Bounds of this size are placeholders for none."""


class GymEnvironments(Environments):
    """Any gymnasium environment with Box observations and actions, in synchronous vector environments.

    A reset is seeded by (member's seed, copy, number of the episode). What an environment holds inside cannot be saved;
    its state is the number of the current episode and the actions taken in it, and comes back by taking them again:
    exact for every environment that is a function of its seed and actions. UserError where it proves not to be.
    Actions, rewards and observations cross between host and device each step.
    """

    def __init__(
        self,
        config: Settings,
        seeds: Sequence[int],
        copies: int,
        device: torch.device | str,
        *,
        stream: str = "environment",
        horizon: int = 0,
        threads: int = 1,
    ):
        """horizon: time limit in steps (0: the environment's own); threads: that step copies side by side, which
        changes no number."""
        super().__init__(len(seeds), copies)
        count = len(seeds) * copies
        ends = np.linspace(0, count, min(threads, count) + 1).astype(int).tolist()
        self._places = [slice(start, end) for start, end in pairwise(ends)]
        make = partial(make_env, config, horizon=horizon)
        self._vectors = [
            SyncVectorEnv([make] * (end - start), copy=False, autoreset_mode=AutoresetMode.DISABLED)
            for start, end in pairwise(ends)
        ]
        self._pool = ThreadPoolExecutor(len(self._vectors)) if len(self._vectors) > 1 else None
        self._singles = [single for vector in self._vectors for single in vector.envs]
        self._device = torch.device(device)
        first = self._singles[0]
        observations, actions = _box_spaces(first, config.env)
        self.observation_size, self.action_size = prod(observations.shape), prod(actions.shape)
        self.horizon = _time_limit(first, config.env)
        self.position = (0, 1) if config.positions and _hidden_positions(config) == 2 else None
        self._action_shape, self._action_dtype = actions.shape, actions.dtype
        self._low, self._high = actions.low.ravel().astype(np.float64), actions.high.ravel().astype(np.float64)
        low, high = (
            torch.tensor(bound.ravel(), dtype=torch.float64) for bound in (observations.low, observations.high)
        )
        bounded = bool((low > -UNBOUNDED).all() and (high < UNBOUNDED).all())
        for name, value in (("center", (high + low) / 2), ("half_range", torch.where(high > low, (high - low) / 2, 1))):
            self.register_buffer(name, value.float().to(self._device) if bounded else None, persistent=False)
        if config.observe_goal:
            self.context_size = np.size(first.reset(seed=0)[1].get("context", ()))
        self._streams = [Stream(seed, stream).child(f"copy {copy}") for seed in seeds for copy in range(copies)]
        self._episode = np.zeros(count, np.int64)
        self._taken: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._observed = np.zeros((count, self.observation_size), np.float32)
        self._progress = np.zeros((count, self.context_size), np.float32)
        self._has_hurdles, self._cleared = False, np.zeros(count, np.float32)
        self.begin()

    @property
    def observation(self) -> Tensor:
        """Current observations, float32 [S, N, Do]."""
        return self._tensor(self._observed, self.observation_size)

    @property
    def context(self) -> Tensor:
        """Current progress of the task, float32 [S, N, Dc]."""
        return self._tensor(self._progress, self.context_size)

    @property
    def hurdles(self) -> Tensor | None:
        """Most hurdles that a copy cleared in its first episode since `begin`, float32 [S, N]; None without hurdles."""
        return self._tensor(self._cleared) if self._has_hurdles else None

    def _tensor(self, array: np.ndarray, *shape: int) -> Tensor:
        # Copied: the arrays are written again by later steps.
        return torch.tensor(array, device=self._device).view(self.members, self.copies, *shape)

    def begin(self) -> None:
        """Start all copies anew, as the constructor did."""
        self._episode[:], self._cleared[:] = -1, 0
        self._reset(np.ones(len(self._singles), np.bool_))

    def _reset(self, which: np.ndarray) -> None:
        """Start the next episode of the copies in `which`, bool [S * N]."""
        self._episode[which] += 1

        def reset(vector: SyncVectorEnv, place: slice) -> None:
            mask = which[place].copy()
            if mask.any():
                seeds = [
                    # 31 bits: NumPy's older generators, which some environments seed with it, take no more.
                    stream.derived_seed(int(episode)) >> 32 if chosen else None
                    for stream, episode, chosen in zip(self._streams[place], self._episode[place], mask, strict=True)
                ]
                observation, info = vector.reset(seed=seeds, options={"reset_mask": mask})
                self._observed[place][mask] = self._flat(observation)[mask]
                if self.context_size:
                    self._progress[place][mask] = info["context"][mask]

        self._everywhere(reset)
        for index in which.nonzero()[0]:
            self._taken[index] = []

    def _flat(self, observation: np.ndarray) -> np.ndarray:
        return observation.reshape(-1, self.observation_size)

    def _everywhere(self, function: Callable[[SyncVectorEnv, slice], None]) -> None:
        if self._pool is None:
            function(self._vectors[0], self._places[0])
        else:
            list(self._pool.map(function, self._vectors, self._places))

    def draws(self, steps: range) -> Tensors:
        """Nothing: resets are seeded by the number of the episode."""
        return {}

    def step(self, action: Tensor, draws: Mapping[str, Tensor]) -> Outcome:
        """One step of every copy."""
        given = action.detach().cpu().double().numpy().reshape(-1, self.action_size)
        # float64 until the end, so that the bounds themselves are met exactly.
        scaled = np.clip(self._low + (given + 1) / 2 * (self._high - self._low), self._low, self._high)
        own = scaled.astype(self._action_dtype).reshape(-1, *self._action_shape)
        count = len(own)
        observed, progress = np.empty_like(self._observed), np.empty_like(self._progress)
        reward = np.empty(count, np.float32)
        terminated, ended = np.empty(count, np.bool_), np.empty(count, np.bool_)

        def step(vector: SyncVectorEnv, place: slice) -> None:
            observation, reward[place], terminated[place], truncated, info = vector.step(own[place])
            observed[place] = self._flat(observation)
            ended[place] = terminated[place] | truncated
            if self.context_size:
                progress[place] = info["context"]
            if "hurdles_cleared" in info:
                self._has_hurdles = True
                most = np.maximum(self._cleared[place], info["hurdles_cleared"])
                self._cleared[place] = np.where(self._episode[place] == 0, most, self._cleared[place])

        self._everywhere(step)
        for taken, one in zip(self._taken, own, strict=True):
            taken.append(one)
        outcome = Outcome(
            self._tensor(observed, self.observation_size),
            self._tensor(reward),
            self._tensor(terminated),
            self._tensor(ended),
            self._tensor(progress, self.context_size),
        )
        self._observed, self._progress = observed, progress
        if ended.any():
            self._reset(ended)
        return outcome

    def get_extra_state(self) -> Tensors:
        """episode int64 [S * N]; taken int64 [S * N], how many actions; actions [S * N, most, *action shape] in the
        environment's units, zero after those taken; observation float32 [S * N, Do], to check a replay."""
        taken = [len(actions) for actions in self._taken]
        actions = np.zeros((len(taken), max(taken), *self._action_shape), self._action_dtype)
        for row, mine in zip(actions, self._taken, strict=True):
            for index, action in enumerate(mine):
                row[index] = action
        return {
            "episode": torch.tensor(self._episode),
            "taken": torch.tensor(taken),
            "actions": torch.from_numpy(actions),
            "observation": torch.tensor(self._observed),
        }

    def set_extra_state(self, state: Tensors) -> None:
        """Start each copy's episode again and take its actions. UserError where that leads elsewhere."""
        episode, actions = state["episode"].cpu().numpy(), state["actions"].cpu().numpy()
        self._episode = episode - 1
        self._reset(np.ones(len(self._singles), np.bool_))
        self._taken = [list(mine[:count]) for mine, count in zip(actions, state["taken"].tolist(), strict=True)]

        def replay(vector: SyncVectorEnv, place: slice) -> None:
            for index in range(place.start, place.stop):
                for action in self._taken[index]:
                    observation, _, _, _, info = self._singles[index].step(action)
                    self._observed[index] = np.ravel(observation)
                    if self.context_size:
                        self._progress[index] = info["context"]

        self._everywhere(replay)
        if not np.array_equal(self._observed, state["observation"].cpu().numpy(), equal_nan=True):
            raise UserError("the environment cannot be resumed: the same actions led elsewhere; start in a new folder")


def make_env(config: Settings, horizon: int = 0, render_mode: str | None = None) -> gymnasium.Env:
    """One gymnasium environment of these settings (env and positions; `render_mode` as in `gymnasium.make`).

    horizon: time limit in steps (0: its own). UserError, one line: no such environment, one that lacks a dependency, or
    one without the positions that the settings ask for.
    """
    arguments: dict[str, Any] = {"disable_env_checker": True}
    if render_mode is not None:
        arguments["render_mode"] = render_mode
    if horizon:
        arguments["max_episode_steps"] = horizon
    if config.positions and config.env not in DYNAMICS:
        arguments["exclude_current_positions_from_observation"] = False
    try:
        with quiet_models():
            return gymnasium.make(config.env, **arguments)
    except DependencyNotInstalled as error:
        raise UserError(f"environment '{config.env}' needs a library that is missing: {_line(error)}") from error
    except ValueError as error:
        raise UserError(f"environment '{config.env}' cannot be made: {_line(error)}") from error
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(
            f"no environment '{config.env}': {_line(error)}; ours are {', '.join(DYNAMICS)}, others any id that "
            "gymnasium.make knows (module:Name-v0 imports module first)"
        ) from error
    except TypeError as error:
        if "exclude_current_positions_from_observation" not in str(error):
            raise
        raise UserError(f"'{config.env}' has no positions to add to its observation: leave out --positions") from error


def make_drawable(config: Settings, horizon: int = 0) -> gymnasium.Env | None:
    """As `make_env`, and it renders pictures (rgb_array); None where the environment has no such mode."""
    plain = make_env(config)
    plain.close()
    # Gymnasium makes it all the same, and only warns.
    if "rgb_array" not in plain.metadata.get("render_modes", ()):
        return None
    return make_env(config, horizon, "rgb_array")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _box_spaces(env: gymnasium.Env, name: str) -> tuple[Box, Box]:
    """(observation space, action space). UserError where skills cannot be learnt in them."""
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, Box):
        raise UserError(
            f"'{name}' observes {type(observations).__name__}; only arrays (Box) can be learnt from: wrap it"
        )
    if not isinstance(actions, Box):
        raise UserError(f"'{name}' takes {type(actions).__name__} actions; only continuous ones (Box) are supported")
    if not actions.is_bounded():
        raise UserError(f"the actions of '{name}' have no bounds: give its action space a low and a high")
    return observations, actions


def _time_limit(env: gymnasium.Env, name: str) -> int:
    limit = env.spec.max_episode_steps if env.spec else None
    if not limit:
        raise UserError(f"'{name}' has no time limit of its own: give one with --horizon, for example 1000")
    return int(limit)


def _hidden_positions(config: Settings) -> int:
    """How many leading positions a MuJoCo robot hides from its observation by default: 2 are a place in the plane."""
    env = make_env(replace(config, positions=False))
    structure = getattr(env.unwrapped, "observation_structure", {})
    env.close()
    return int(structure.get("skipped_qpos", 0))
