"""Every setting of a meta-controller over frozen skills, with the paper's cheetah hurdle as defaults (Sec. 4.2.2; spec
3.6, Hierarchy). Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

SCALES = ("none", "range")


@dataclass(frozen=True)
class MetaConfig:
    """Settings of one run. A "step" is one action in each of `copies` copies of the environment, as in `Config`, so
    that curves compare with an agent that has no skills.

    Environment: env, a gymnasium id; copies N; horizon: steps after which an episode is cut, which is no termination
    (0: the environment's own limit); positions: MuJoCo robots observe their x (and y) too; observe_goal: the controller
    sees the task's progress, which the skills never do; observation_scale: what the controller sees is as it is
    ("none") or divided by the environment's declared "range".
    Hierarchy: hold k, steps that a chosen skill acts for (100 in the paper's ant navigation, 10 in its cheetah hurdle).
    Learner, a double DQN whose actions are the skills: width of both hidden layers; learning_rate; discount of one
    choice to the next (0.9 for ten steps is about 0.99 for one); tau of the target network; batch_size; buffer_size:
    choices kept; learning_starts: environment steps before the first update; update_every: steps between two updates;
    exploration: the part of the run in which the chance of a random skill falls from 1 to epsilon.
    Run: steps; evaluate_every with evaluation_rollouts episodes of evaluation_horizon steps (0: horizon).
    """

    env: str = "DIAYN/CheetahHurdle-v0"
    copies: int = 1
    horizon: int = 0
    positions: bool = False
    observe_goal: bool = False
    observation_scale: str = "none"

    hold: int = 10

    width: int = 128
    learning_rate: float = 1e-3
    discount: float = 0.9
    tau: float = 0.01
    batch_size: int = 128
    buffer_size: int = 100_000
    learning_starts: int = 1000
    update_every: int = 2
    exploration: float = 0.3
    epsilon: float = 0.1

    steps: int = 1_000_000
    evaluate_every: int = 10_000
    evaluation_rollouts: int = 10
    evaluation_horizon: int = 0
    checkpoint_every: int = 10_000
    log_every: int = 1000
    steps_per_call: int = 100
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        if self.observation_scale not in SCALES:
            raise ValueError(f"no observation_scale '{self.observation_scale}'; there is {', '.join(SCALES)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be a number from 0 up, not {value}")
        for name in (
            "copies",
            "hold",
            "width",
            "batch_size",
            "update_every",
            "steps",
            "evaluate_every",
            "evaluation_rollouts",
            "checkpoint_every",
            "log_every",
            "steps_per_call",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if self.discount >= 1 or self.tau > 1:
            raise ValueError(f"discount lies in [0, 1) and tau in [0, 1], not {self.discount} and {self.tau}")
        if self.exploration > 1 or self.epsilon > 1:
            raise ValueError(f"exploration and epsilon lie in [0, 1], not {self.exploration} and {self.epsilon}")
        if self.buffer_size < self.copies:
            raise ValueError(f"buffer_size {self.buffer_size} does not hold one choice of each of {self.copies} copies")

    def chance(self, step: int) -> float:
        """The chance that a choice at this step is a random skill: linearly from 1 to epsilon, then constant."""
        done = min(1.0, step / (self.exploration * self.steps)) if self.exploration else 1.0
        return self.epsilon + (1 - self.epsilon) * (1 - done)

    def learns(self, step: int) -> bool:
        """Whether this step ends with an update; not before every copy has finished a choice."""
        done = step + 1
        return done >= max(self.hold, self.learning_starts / self.copies) and done % self.update_every == 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "MetaConfig":
        """From an experiment's flat settings; `seed` is not one of them. TypeError names a key that nobody reads."""
        return cls(**{key: value for key, value in config.items() if key != "seed"})
