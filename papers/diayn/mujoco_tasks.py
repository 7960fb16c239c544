"""Cheetah hurdle and ant navigation (Fig. 7, 8; spec 9.4, 9.5): gymnasium's MuJoCo robots with the paper's tasks.

Registered as DIAYN/CheetahHurdle-v0 and DIAYN/AntNavigation-v0 by registration.py.
"""

from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

from papers.diayn.dynamics import Waypoints
from papers.diayn.registration import quiet_models

Info = dict[str, Any]

HURDLES = tuple(-1.0 + 3.0 * i for i in range(20))
"""Where the hurdles stand along x, in metres; the first is behind the start."""

HURDLE_HALF_SIZE = (0.05, 0.5, 0.125)
GEAR = 30.0


class CheetahHurdle(HalfCheetahEnv):
    """HalfCheetah-v5 with a box of 0.25 m height, 0.1 m width and 1 m depth every 3 m, which it does not see.

    Reward dx/dt - 0.1 |a|^2 as HalfCheetah's: the paper only says "bounding up and over hurdles".
    info["hurdles_cleared"]: hurdles ahead of the start that the torso has behind it, by the box's half width at least.
    """

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        with quiet_models():
            spec = mujoco.MjSpec.from_file(self.fullpath)
            for x in HURDLES:
                spec.worldbody.add_geom(
                    name=f"hurdle at {x:g}",
                    type=mujoco.mjtGeom.mjGEOM_BOX,
                    size=HURDLE_HALF_SIZE,
                    pos=(x, 0.0, HURDLE_HALF_SIZE[2]),
                    # The robot's geoms have conaffinity 0 and would pass through boxes without one of their own.
                    contype=1,
                    conaffinity=1,
                    rgba=(0.8, 0.3, 0.2, 1.0),
                )
            model = spec.compile()
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, Info]:
        """HalfCheetah's step."""
        observation, reward, terminated, truncated, info = super().step(action)
        torso = self.data.body("torso").xpos[0]
        info["hurdles_cleared"] = sum(x > 0 and torso > x + HURDLE_HALF_SIZE[0] for x in HURDLES)
        return observation, reward, terminated, truncated, info


class AntNavigation(AntEnv):
    """Ant-v5 with gears of 30 and five goals in order, (2, 2), (2, -2), (-2, -2), (-2, 2), (2, 2).

    +1 when the torso first is within 0.5 m of the current goal, which then is the next one, at most one in a step; no
    other reward. Terminates when the torso leaves the heights [0.2, 1.0] or the state is not finite, as the Ant does;
    goes on after the fifth goal, until the time limit. Starts at the origin itself, joints with the Ant's noise. How
    many goals are reached is not observed; info["context"] has it as one-hot of 6, float32, also at a reset.
    """

    def __init__(self, *positional: Any, **named: Any):
        """The Ant's arguments, e.g. exclude_current_positions_from_observation=False to observe x and y."""
        self._reached = 0
        super().__init__(*positional, **named)
        self.model.actuator_gear[:, 0] = GEAR

    @property
    def reached(self) -> int:
        """Goals reached in this episode."""
        return self._reached

    def _context(self) -> np.ndarray:
        return np.eye(len(Waypoints.goals) + 1, dtype=np.float32)[self._reached]

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """The Ant's reset, moved to the origin."""
        self._reached = 0
        _, info = super().reset(seed=seed, options=options)
        position = self.data.qpos.copy()
        position[:2] = 0.0
        self.set_state(position, self.data.qvel.copy())
        return self._get_obs(), {**info, **self._get_reset_info(), "context": self._context()}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, Info]:
        """One step of the Ant with the goals' reward."""
        observation, _, terminated, truncated, info = super().step(action)
        reward = 0.0
        if self._reached < len(Waypoints.goals):
            distance = self.get_body_com("torso")[:2] - np.array(Waypoints.goals[self._reached])
            if float(distance @ distance) <= 0.25:
                reward, self._reached = 1.0, self._reached + 1
        info["context"] = self._context()
        return observation, reward, bool(terminated), truncated, info
