"""Settings of the measurements in `measure.py`. Loads no torch, so that presets can check them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Measurement:
    """What the settings of all measurements share."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From an experiment's flat settings without `seed`. TypeError names a key that nobody reads."""
        return cls(**{key: value for key, value in config.items() if key != "seed"})

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool) and value < 1:
                raise ValueError(f"{field.name} must be at least 1, not {value}")


@dataclass(frozen=True)
class MeasureGoals(Measurement):
    """Choosing a skill for each of the box's 25 goals (C6): stochastic episodes of each skill to choose by, and fresh
    ones to score the choice."""

    selection_rollouts: int = 16
    evaluation_rollouts: int = 16


@dataclass(frozen=True)
class MeasureBest(Measurement):
    """Choosing the best skill for the environment's own reward (spec 3.6, C14): stochastic episodes of each skill to
    choose by, and fresh ones to score the choice."""

    selection_rollouts: int = 10
    evaluation_rollouts: int = 10


@dataclass(frozen=True)
class MeasureImitation(Measurement):
    """Imitation of another run's skills (spec 10.3). deterministic: the student's skills act so; the expert's always
    do."""

    deterministic: bool = True


@dataclass(frozen=True)
class MeasurePoses(Measurement):
    """Imitation of HalfCheetah states that nobody produced (C13). steps: length of the skills' episodes; pose_steps:
    states of the expert, in which it turns over once where it flips."""

    steps: int = 200
    pose_steps: int = 50


@dataclass(frozen=True)
class MeasureGridworld(Measurement):
    """The gridworld of App. B with side N = size, an even number. Every partition is tried up to a side of 4, every cut
    between rows beyond."""

    size: int = 4

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        super().__post_init__()
        if self.size % 2:
            raise ValueError(f"a grid of side {self.size} cannot be halved between rows: take an even side")
