"""This paper's environments under their gymnasium ids; importing this module registers them.

    import papers.diayn.registration
    env = gymnasium.make("DIAYN/Box-v0", render_mode="rgb_array", goal=(0.9, 0.1))
    envs = gymnasium.make_vec("DIAYN/Box-v0", num_envs=64)  # one batched call a step

Numbers go in and out as NumPy arrays, here; skills are learnt on the tensors themselves (environments.py).
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box as BoxSpace
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from papers.diayn.dynamics import DYNAMICS, Dynamics, Hallway, MountainCar, Waypoints

Info = dict[str, Any]

PIXELS = 240
INK = {"ground": (255, 255, 255), "wall": (90, 90, 90), "goal": (60, 160, 75), "agent": (200, 60, 40)}

MUJOCO_TASKS = {"DIAYN/CheetahHurdle-v0": ("CheetahHurdle", 1000), "DIAYN/AntNavigation-v0": ("AntNavigation", 5000)}
"""Class in mujoco_tasks.py and time limit. Ant navigation's is 50 skills of k = 100 steps; the paper gives none."""


def register() -> None:
    """Tell gymnasium of all our environments; harmless when done before."""
    for name, dynamics in DYNAMICS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point=f"{__name__}:OwnEnv",
                vector_entry_point=f"{__name__}:OwnVectorEnv",
                max_episode_steps=dynamics.horizon,
                reward_threshold=dynamics.solved,
                kwargs={"name": name},
            )
    for name, (task, limit) in MUJOCO_TASKS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=f"papers.diayn.mujoco_tasks:{task}", max_episode_steps=limit)


@contextmanager
def quiet_models() -> Iterator[None]:
    """Inside the block MuJoCo keeps its remarks about deprecated XML to itself; other warnings are shown as ever.

    Gymnasium's half_cheetah.xml draws one at each loading (`settotalmass`), which MuJoCo prints and also appends to a
    log file in the current folder.
    """
    try:
        import mujoco
    except ImportError:
        yield
        return
    before = mujoco.get_mju_user_warning()

    def warn(message: str | bytes) -> None:
        text = message.decode() if isinstance(message, bytes) else message
        if "deprecated" not in text:
            gymnasium.logger.warn(f"MuJoCo: {text.strip()}")

    mujoco.set_mju_user_warning(warn)
    try:
        with warnings.catch_warnings():
            # MjSpec makes a Python warning of the same remark.
            warnings.filterwarnings("ignore", ".*deprecated", UserWarning)
            yield
    finally:
        mujoco.set_mju_user_warning(before)


def _spaces(dynamics: Dynamics) -> tuple[BoxSpace, BoxSpace]:
    center, half_range = np.array(dynamics.center), np.array(dynamics.half_range)
    observations = BoxSpace((center - half_range).astype(np.float32), (center + half_range).astype(np.float32))
    return observations, BoxSpace(np.array(dynamics.low, np.float32), np.array(dynamics.high, np.float32))


def _task(dynamics: Dynamics, goal: Sequence[float] | None) -> torch.Tensor | None:
    if goal is None:
        return None
    if len(goal) != dynamics.task_size:
        raise ValueError(f"a goal has {dynamics.task_size} numbers here, not {len(goal)}")
    return torch.tensor(goal, dtype=torch.float32)


class OwnEnv(gymnasium.Env):
    """One copy of one of our environments. `name`: its id; `goal`: (x, y) of the box's task reward."""

    metadata: Info = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's own convention)

    def __init__(self, name: str, render_mode: str | None = None, goal: Sequence[float] | None = None):
        self.dynamics = DYNAMICS[name]
        self.render_mode = render_mode
        self.observation_space, self.action_space = _spaces(self.dynamics)
        self._goal = _task(self.dynamics, goal)
        self._state = torch.zeros(self.dynamics.state_size)
        self._background: np.ndarray | None = None

    def _seen(self) -> tuple[np.ndarray, Info]:
        observation = self.dynamics.observe(self._state).numpy().copy()
        return observation, {
            "context": self.dynamics.context(self._state).numpy()
        } if self.dynamics.context_size else {}

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """(observation, info); info["context"] tells the task's progress where there is any."""
        super().reset(seed=seed)
        uniforms = self.np_random.random(self.dynamics.start_draws, dtype=np.float32)
        self._state = self.dynamics.start(torch.from_numpy(uniforms))
        return self._seen()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """(observation, reward, terminated, truncated, info); the time limit is gymnasium's wrapper's."""
        given = torch.from_numpy(np.asarray(action, np.float32))
        self._state, reward, terminated = self.dynamics.step(self._state, given, self._goal)
        observation, info = self._seen()
        return observation, float(reward), bool(terminated), False, info

    def render(self) -> np.ndarray | None:
        """A picture of the place, uint8 [240, 240, 3], with render_mode "rgb_array"."""
        if self.render_mode != "rgb_array":
            return None
        if self._background is None:
            self._background = draw_background(self.dynamics)
        picture = self._background.copy()
        for place in goals_in_sight(self.dynamics, self._state, self._goal):
            _dot(picture, self.dynamics, place, 7, "goal")
        x, y = self._state[:2].tolist()
        if isinstance(self.dynamics, MountainCar):
            y = float(_hill(np.array(x)))
        _dot(picture, self.dynamics, (x, y), 5, "agent")
        return picture


class OwnVectorEnv(VectorEnv):
    """Copies of one of our environments, stepped as one tensor; same numbers as gymnasium's SyncVectorEnv over OwnEnv.

    Copy i of reset(seed=n) is seeded n + i. Autoreset as in gymnasium: the step after an episode's end ignores its
    action and resets (NEXT_STEP); or the end resets at once, the last observation in info["final_obs"] (SAME_STEP); or
    the user resets by options["reset_mask"] (DISABLED).
    """

    def __init__(
        self,
        name: str,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        goal: Sequence[float] | None = None,
        render_mode: str | None = None,
    ):
        """max_episode_steps: time limit (None: the usual one); render_mode: only None, render a single environment."""
        if render_mode is not None:
            raise ValueError("copies are not drawn: take gymnasium.make for a picture")
        self.dynamics, self.num_envs = DYNAMICS[name], num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**OwnEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = _spaces(self.dynamics)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._limit = max_episode_steps or self.dynamics.horizon
        self._goal = _task(self.dynamics, goal)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._state = torch.zeros(num_envs, self.dynamics.state_size)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        """Start all copies, or those in options["reset_mask"], bool [num_envs]."""
        if seed is None:
            seeds: list[int | None] = [None] * self.num_envs
        elif isinstance(seed, Sequence):
            seeds = list(seed)
        else:
            seeds = [seed + i for i in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"{self.num_envs} copies take as many seeds, not {len(seeds)}")
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask is a bool array of {self.num_envs} entries of which one at least is true")
        for index, one in enumerate(seeds):
            if one is not None and mask[index]:
                self._generators[index] = gymnasium.utils.seeding.np_random(one)[0]
        self._start(mask)
        return self._observation(), self._info(mask)

    def _start(self, mask: np.ndarray) -> None:
        which = mask.nonzero()[0]
        draws = self.dynamics.start_draws
        uniforms = np.zeros((len(which), draws), np.float32)
        if draws:
            for row, index in zip(uniforms, which, strict=True):
                row[:] = self._generators[index].random(draws, dtype=np.float32)
        self._state[torch.from_numpy(which)] = self.dynamics.start(torch.from_numpy(uniforms))
        self._elapsed[which] = 0
        self._over[which] = False

    def _observation(self) -> np.ndarray:
        # The state is written to by resets.
        return self.dynamics.observe(self._state.clone()).numpy()

    def _info(self, mask: np.ndarray) -> Info:
        if not self.dynamics.context_size:
            return {}
        context = self.dynamics.context(self._state).numpy()
        return {"context": context * mask[:, None], "_context": mask.copy()}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """(observations [num_envs, Do], rewards, terminations, truncations [num_envs], infos)."""
        again = self._over if self._over.any() else None
        if again is not None and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ValueError("some episodes are over: reset them with options={'reset_mask': ...} first")
        given = torch.from_numpy(np.ascontiguousarray(actions, np.float32))
        self._state, reward, ended = self.dynamics.step(self._state, given, self._goal)
        rewards, terminations = reward.numpy().astype(np.float64), ended.numpy()
        self._elapsed += 1
        if again is not None:
            rewards[again], terminations[again] = 0.0, False
            self._start(again.copy())
        truncations = self._elapsed >= self._limit
        over = terminations | truncations
        everywhere = np.ones(self.num_envs, np.bool_)
        if self.autoreset_mode == AutoresetMode.SAME_STEP and over.any():
            final: Info = {"final_obs": np.full(self.num_envs, None, dtype=object), "_final_obs": over.copy()}
            last = self._observation()
            for index in over.nonzero()[0]:
                final["final_obs"][index] = last[index]
            final |= {"final_info": self._info(over), "_final_info": over.copy()}
            self._start(over)
            return self._observation(), rewards, terminations, truncations, final | self._info(everywhere)
        self._over = over
        return self._observation(), rewards, terminations, truncations, self._info(everywhere)


def goals_in_sight(
    dynamics: Dynamics, state: torch.Tensor, goal: torch.Tensor | None = None
) -> list[tuple[float, float]]:
    """Places to mark in a picture of one copy: the task's goal, or the waypoint to go to next."""
    if goal is not None:
        return [(float(goal[0]), float(goal[1]))]
    if isinstance(dynamics, Waypoints) and state[2] < 5:
        return [dynamics.goals[int(state[2])]]
    return []


def _window(dynamics: Dynamics) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of a picture."""
    (left, right), (bottom, top) = dynamics.extent or ((-1.2, 0.6), (0.0, 1.8))
    margin = 0.03 * (right - left)
    return left - margin, right + margin, bottom - margin, top + margin


def _hill(x: np.ndarray) -> np.ndarray:
    return np.sin(3 * x) * 0.45 + 0.55


def draw_background(dynamics: Dynamics) -> np.ndarray:
    """The walls of the plane, or the mountain car's hill with its flag, uint8 [240, 240, 3]."""
    left, right, bottom, top = _window(dynamics)
    half_pixel = (right - left) / PIXELS / 2
    x, y = np.meshgrid(
        np.linspace(left + half_pixel, right - half_pixel, PIXELS),
        np.linspace(top - half_pixel, bottom + half_pixel, PIXELS),
    )
    if isinstance(dynamics, MountainCar):
        wall = (y < _hill(x)) | (np.abs(x - 0.45) < half_pixel) & (y < _hill(x) + 0.3)
    elif isinstance(dynamics, Hallway):
        wall = ~dynamics.inside(torch.tensor(np.stack([x, y], -1))).numpy()
    else:
        center, half_range = np.array(dynamics.center)[:2], np.array(dynamics.half_range)[:2]
        wall = (np.abs(np.stack([x, y], -1) - center) > half_range).any(-1)
    picture = np.empty((PIXELS, PIXELS, 3), np.uint8)
    picture[:] = INK["ground"]
    picture[wall] = INK["wall"]
    return picture


def _dot(picture: np.ndarray, dynamics: Dynamics, place: tuple[float, float], radius: int, ink: str) -> None:
    """Draw a filled circle of `radius` pixels at a place, in the picture."""
    left, right, bottom, top = _window(dynamics)
    column = (place[0] - left) / (right - left) * PIXELS
    row = (top - place[1]) / (top - bottom) * PIXELS
    rows, columns = np.ogrid[:PIXELS, :PIXELS]
    picture[(rows + 0.5 - row) ** 2 + (columns + 0.5 - column) ** 2 <= radius**2] = INK[ink]


register()
