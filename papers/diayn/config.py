"""Every setting of a DIAYN run, with the paper's HalfCheetah protocol as defaults (spec, section 5). Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

CHOICES = {
    "reward": ("skills", "task"),
    "prior": ("fixed", "learned"),
    "variant": ("twin", "v2018"),
    "classifier_input": ("state", "next"),
    "observation_scale": ("none", "range", "running"),
    "skill_change": ("episode", "epoch"),
    "tasks": ("own", "goals"),
    "pretrained": ("none", "actor", "all"),
}


@dataclass(frozen=True)
class Config:
    """Settings of one run. A "step" is one action in each of `copies` copies of the environment and what is learnt
    after it.

    Environment: env, a gymnasium id (the `DIAYN/...` ones are this paper's own); copies N; horizon: steps after which
    an episode is cut, which is no termination (0: the environment's own limit); positions: MuJoCo robots observe their
    x (and y) too; observe_goal: the task's progress is appended to the observation (waypoints, ant navigation);
    tasks: "own" reward, or the 25 "goals" of the 2-D box, each with an agent of its own, trained side by side;
    observation_scale: as they are ("none"), by the environment's declared "range", or by a "running" mean and standard
    deviation of what was collected.
    Reward: "skills", log q(z|s) - log p(z), or "task", the environment's; bonus: weight of a bonus by random
    network distillation (0: none), which stands in for VIME.
    Skills: how many (K); prior: p(z) "fixed" and uniform or "learned" (VIC, App. E); subtract_prior: whether the
    reward subtracts log p(z); classifier_input: D reads the "state" s or the "next" one s'; features: indices of the
    observation that D reads (none: all); classifier_updates: steps of D for one of the policy; skill_change: z is drawn
    for each "episode" (paper) or each "epoch" of epoch_steps environment steps (official code).
    Learner: variant "twin" (spec 3.3) or "v2018" (spec 3.2: value network, mixture of `components` Gaussians,
    likelihood-ratio gradient); alpha: the entropy's weight; width of both hidden layers; learning_rate of all networks;
    discount; tau; batch_size; updates in a step; buffer_size; learning_starts: transitions before the first update.
    pretrained: which networks start from the run that is needed as "skills" (fine-tuning): "none", the "actor", or
    "all" (actor and critics); the skill is then held fixed.
    Run: steps; draw: which of several independent trainings of one seed; evaluate_every with evaluation_rollouts
    stochastic episodes of a skill (a task), of evaluation_horizon steps (0: horizon).
    """

    env: str = "HalfCheetah-v5"
    copies: int = 1
    horizon: int = 0
    positions: bool = False
    observe_goal: bool = False
    tasks: str = "own"
    observation_scale: str = "none"

    reward: str = "skills"
    bonus: float = 0.0

    skills: int = 50
    prior: str = "fixed"
    subtract_prior: bool = True
    classifier_input: str = "state"
    features: tuple[int, ...] = ()
    classifier_updates: int = 1
    skill_change: str = "episode"
    epoch_steps: int = 1000

    variant: str = "twin"
    components: int = 4
    alpha: float = 0.1
    width: int = 300
    learning_rate: float = 3e-4
    discount: float = 0.99
    tau: float = 0.01
    batch_size: int = 128
    updates: int = 1
    buffer_size: int = 1_000_000
    learning_starts: int = 1000
    pretrained: str = "none"

    steps: int = 1_000_000
    draw: int = 0
    evaluate_every: int = 10_000
    evaluation_rollouts: int = 10
    evaluation_horizon: int = 0
    checkpoint_every: int = 10_000
    log_every: int = 1000
    steps_per_call: int = 100
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        object.__setattr__(self, "features", tuple(self.features))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} '{getattr(self, name)}'; there is {', '.join(known)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be a number from 0 up, not {value}")
        for name in (
            "copies",
            "skills",
            "classifier_updates",
            "epoch_steps",
            "components",
            "width",
            "batch_size",
            "buffer_size",
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
        if self.buffer_size < self.copies:
            raise ValueError(f"buffer_size {self.buffer_size} does not hold one step of {self.copies} copies")
        if self.prior == "learned" and self.reward != "skills":
            raise ValueError("a learned prior is a setting of the reward 'skills'")
        if self.reward == "skills" and self.tasks != "own":
            raise ValueError("tasks 'goals' are learnt from the reward 'task'")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Config":
        """From an experiment's flat settings; `seed` is not one of them. TypeError names a key that nobody reads."""
        return cls(**{key: value for key, value in config.items() if key != "seed"})


def stack_shape(config: Mapping[str, Any]) -> str:
    """Equal for runs that one stack can train: all but the entropy's weight, the prior and the draws is the same."""
    free = ("alpha", "prior", "subtract_prior", "draw", "seed")
    return ", ".join(f"{name} {value}" for name, value in sorted(config.items()) if name not in free)
