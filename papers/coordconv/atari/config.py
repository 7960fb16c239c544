"""Every setting of an A2C experiment, with the full-scale values as defaults. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

CATCH = "catch"
GAMES = (
    "alien",
    "amidar",
    "asterix",
    "beam_rider",
    "breakout",
    "ms_pacman",
    "qbert",
    "seaquest",
    "space_invaders",
)
"""Nine games by ALE's names. The paper counts nine and names only Ms. Pac-Man in what we could read: these are ours."""
NETWORKS = ("conv", "coordconv")


@dataclass(frozen=True)
class Config:
    """Settings of one run (spec, sections 4 and 6; what the paper leaves open is as in the first public A2C).

    game: one of GAMES, or "catch", which is built in. network: what the first layer is. width: channels of the first
    convolution (the other two have twice as many); dense: units after them.
    frames: emulator frames in all, over num_envs environments; an update reads num_steps actions of each, and an
    action lasts frame_skip frames. learning_rate falls linearly to 0 (`anneal`); RMSProp with `decay` and `epsilon`.
    no_ops: at most so many idle frames begin a game. episodic_life: a lost life ends an episode for the learner.
    clip_rewards: to their sign. max_frames: after which a game is ended. env_threads: environments stepped at once.
    score_episodes: the score is the mean return of so many last games. The `_every` are in updates.
    """

    game: str = "ms_pacman"
    network: str = "coordconv"
    width: int = 32
    dense: int = 512

    frames: int = 10_000_000
    num_envs: int = 16
    num_steps: int = 5
    frame_skip: int = 4
    learning_rate: float = 7e-4
    anneal: bool = True
    decay: float = 0.99
    epsilon: float = 1e-5
    discount: float = 0.99
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    clip_norm: float = 0.5

    no_ops: int = 30
    episodic_life: bool = True
    clip_rewards: bool = True
    max_frames: int = 108_000
    env_threads: int = 1
    score_episodes: int = 100

    evaluate_every: int = 625
    checkpoint_every: int = 625
    log_every: int = 125
    steps_per_call: int = 25

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        if self.game not in (*GAMES, CATCH):
            raise ValueError(f"no game '{self.game}'; there is {', '.join((*GAMES, CATCH))}")
        if self.network not in NETWORKS:
            raise ValueError(f"no network '{self.network}'; there is {', '.join(NETWORKS)}")
        for field in fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name in ("no_ops", "entropy_weight", "value_weight") else None
            if isinstance(value, bool | str):
                continue
            if (value < 0) if lowest == 0 else (value <= 0):
                raise ValueError(f"{field.name} must {'not be negative' if lowest == 0 else 'be above 0'}, not {value}")
        for name in ("discount", "decay"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must not be above 1, not {getattr(self, name)}")
        if self.updates < 1:
            raise ValueError(f"frames {self.frames} are less than one update's {self.frames_per_update}")

    @property
    def frames_per_update(self) -> int:
        """Emulator frames that one optimisation step reads."""
        return self.num_envs * self.num_steps * self.frame_skip

    @property
    def updates(self) -> int:
        """Optimisation steps of the run."""
        return self.frames // self.frames_per_update

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Config":
        """From a run's config (its `seed` is left out); TypeError names a key that is no setting."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known - {"seed"}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**{name: value for name, value in values.items() if name in known})
