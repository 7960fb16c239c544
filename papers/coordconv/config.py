"""Every setting of the supervised tasks, with the paper's CoordConv classification as defaults. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil, isfinite
from typing import Any

TASKS = ("classification", "rendering", "regression")
LOSSES = {"classification": ("cross-entropy",), "rendering": ("sigmoid", "mse"), "regression": ("mse",)}
NETWORKS = (
    "coordconv", "deconv", "upsample", "upsample-coordconv", "no-coords", "mlp", "fourier", "conv-uniform",
    "conv-quadrant",
)  # fmt: skip
SPLITS = ("uniform", "uniform-released", "quadrant", "quadrant-released")
CHOICES = {
    "task": TASKS,
    "network": NETWORKS,
    "split": SPLITS,
    "coordinates": ("scaled", "raw", "fourier"),
    "pooling": ("max", "mean"),
    "padding": ("zeros", "circular"),
    "loss": tuple(dict.fromkeys(loss for losses in LOSSES.values() for loss in losses)),
    "centre_loss": ("none", "cross-entropy", "mse"),
}
AT_LEAST_ONE = (
    "canvas", "square", "multiplier", "kernel", "render_kernel", "steps", "batch_size", "evaluate_every",
    "checkpoint_every", "log_every", "steps_per_call", "evaluation_batch_size",
)  # fmt: skip
STACKABLE = ("learning_rate", "l2", "decay_every", "decay_factor", "max_decays", "split")
"""Settings that may differ between the members of a stack: none changes a tensor's shape."""


@dataclass(frozen=True)
class Config:
    """Settings of one run of a supervised task (spec, sections 3-5).

    Data: `canvas` pixels a side, filled squares of `square` pixels a side; `split` as in `data.NotSoClevr.split`.
    Network: `network` with `multiplier` (m) and `kernel` (k, of the deconvolution); coordinates: how (x, y) enters the
    classifying and rendering networks ("scaled" to [-1, 1], "raw" pixels as in the released code, "fourier" features);
    radius: a third coordinate channel. Rendering with CoordConv: render_softmax, render_kernel, and centre_loss on the
    intermediate map of the centre. Regression with CoordConv: pooling, relu. padding: of the convolutions. plain: the
    obviously right formulation of the same network (the tests' and the benchmark's oracle).
    Optimisation: `steps` of Adam(0.9, beta2) on batches of batch_size; every decay_every steps (0: never) the learning
    rate is multiplied by decay_factor, at most max_decays times; l2 * sum(w^2) over the kernels is added to the loss.
    Evaluation on every sample of both sides of the split at every evaluate_every steps and at the end.
    evaluation_batch_size: samples in one evaluating forward pass, of each run of a stack; a CPU is fastest with few,
    whose activations its caches hold.
    cuda_graph: on one GPU, whether the whole step is captured in a CUDA graph.
    """

    task: str = "classification"
    network: str = "coordconv"
    canvas: int = 64
    square: int = 9
    multiplier: int = 1
    kernel: int = 1
    coordinates: str = "scaled"
    radius: bool = False
    render_softmax: bool = True
    render_kernel: int = 3
    centre_loss: str = "none"
    pooling: str = "max"
    relu: bool = False
    padding: str = "zeros"
    plain: bool = False

    split: str = "uniform"
    steps: int = 7850
    batch_size: int = 16
    learning_rate: float = 0.005
    decay_every: int = 0
    decay_factor: float = 0.1
    max_decays: int = 4
    l2: float = 0.0
    beta2: float = 0.99
    loss: str = "cross-entropy"

    evaluate_every: int = 785
    checkpoint_every: int = 785
    log_every: int = 157
    steps_per_call: int = 16
    evaluation_batch_size: int = 16
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} '{getattr(self, name)}'; there is {', '.join(known)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be a number from 0 up, not {value}")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 lies in [0, 1), not {self.beta2}")
        if self.loss not in LOSSES[self.task]:
            raise ValueError(f"{self.task} has the losses {', '.join(LOSSES[self.task])}, not '{self.loss}'")
        if self.square >= self.canvas or self.square % 2 == 0:
            raise ValueError(f"square must be odd and smaller than the canvas of {self.canvas}, not {self.square}")
        if self.centre_loss != "none" and (self.task, self.network) != ("rendering", "coordconv"):
            raise ValueError("centre_loss is a setting of the CoordConv renderer alone")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step under the step schedule (spec, invariant 16)."""
        if self.decay_every == 0:
            return self.learning_rate
        return self.learning_rate * self.decay_factor ** min(step // self.decay_every, self.max_decays)

    @property
    def num_samples(self) -> int:
        """Centres of which the whole square fits on the canvas."""
        return (self.canvas - self.square + 1) ** 2

    @property
    def shape(self) -> str:
        """What runs must share to be trained as one stack, as text: whatever is not as in the paper's default."""
        parts = [self.task, self.network]
        for field in fields(self):
            if field.name not in (*STACKABLE, "task", "network") and getattr(self, field.name) != field.default:
                parts.append(f"{field.name} {getattr(self, field.name)}")
        return ", ".join(parts)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Config":
        """From a run's config (its `seed` is left out); TypeError names a key that is no setting."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known - {"seed"}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class TimeTo:
    """Settings of a comparison of training times: until a test accuracy of `target` percent."""

    target: float = 85.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TimeTo":
        """As `Config.of`."""
        if unknown := set(values) - {"target", "seed"}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        found = cls(float(values.get("target", 85.0)))
        if not 0 < found.target <= 100:
            raise ValueError(f"target lies in (0, 100] percent, not {found.target}")
        return found


def train_size(split: str, canvas: int = 64, square: int = 9) -> int:
    """Training samples of a split (spec, section 8); of "uniform-released", a coin each, the expected number."""
    side = canvas - square + 1
    if split == "quadrant":
        return side**2 - (side // 2) ** 2
    if split == "quadrant-released":
        return side**2 - (canvas - square // 2 - 1 - canvas // 2) ** 2
    return round(side**2 * (0.8 if split == "uniform" else 0.75))


def steps_for(epochs: int, split: str, batch_size: int, canvas: int = 64, square: int = 9) -> int:
    """The official code's number of steps in so many epochs, each of which ends there with a short batch.

    Our batches are whole and run across the epochs' ends, so in as many steps a few more samples are seen.
    """
    return epochs * ceil(train_size(split, canvas, square) / batch_size)
