"""Every setting of a MixMatch experiment, with the paper's full-scale values as defaults. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

METHODS = ("supervised", "pseudo-label", "pi-model", "mean-teacher", "vat", "ssl-mixup", "ict", "mixmatch")
MODELS = ("convnet", "convnet13", "wrn-10-1", "wrn-10-2", "wrn-28-2", "wrn-28-2-large", "wrn-stl10")
CHOICES = {
    "method": METHODS,
    "model": MODELS,
    "mixing": tuple(f"{x}.{u}" for x in ("", "xx", "xxy") for u in ("", "yy", "yxy", "yx")),
    "batch_norm": ("ghost", "official", "all-batches", "frozen"),
    "guess_with": ("model", "ema"),
    "unlabeled_loss": ("l2", "cross-entropy"),
}


@dataclass(frozen=True)
class Config:
    """Settings of one run (spec, sections 3-5 and 8).

    Data: `dataset`, `split` as in `common.data.load` ("digits" and "textures" are built in); num_labeled images keep
    their label (0: all of them); fold: STL-10's predefined fold is the seed's (num_labeled is then 1,000).
    Optimisation: total steps; Adam; decoupled decay of kernels by weight_decay * learning_rate a step; ema_decay of the
    averaged weights. ramp_steps: steps over which unlabeled_weight rises from 0.
    MixMatch: num_views (K), temperature (T), alpha, mixing, per_item_lambda, batch_norm, interleave, guess_with
    ("model" or "ema"), unlabeled_loss. bn_momentum: of BatchNorm's running statistics in PyTorch's sense. Baselines:
    threshold (Pseudo-Label), vat_epsilon, entropy_weight, label_smoothing.
    Evaluation: every evaluate_every steps on the test split with the averaged weights and the raw BatchNorm statistics;
    the reported error is the median of the last `median_of` evaluations (1: the last one).
    cuda_graph: on one GPU, whether the whole step is captured in a CUDA graph.
    """

    method: str = "mixmatch"
    dataset: str = "cifar10"
    split: str = "official"
    num_labeled: int = 250
    model: str = "wrn-28-2"
    conv_bias: bool = False
    bn_momentum: float = 0.001

    steps: int = 1_048_576
    batch_size: int = 64
    unlabeled_batch_size: int = 64
    learning_rate: float = 0.002
    weight_decay: float = 0.02
    ema_decay: float = 0.999
    ramp_steps: int = 16_384
    unlabeled_weight: float = 75.0

    num_views: int = 2
    temperature: float = 0.5
    alpha: float = 0.75
    mixing: str = "xxy.yxy"
    per_item_lambda: bool = True
    batch_norm: str = "ghost"
    interleave: bool = True
    guess_with: str = "model"
    unlabeled_loss: str = "l2"

    threshold: float = 0.95
    vat_epsilon: float = 6.0
    entropy_weight: float = 0.06
    label_smoothing: float = 0.0

    flip: bool = True
    reflect_crop: int = 4
    shift: int = 0
    cutout: int = 0
    noise: float = 0.0

    evaluate_every: int = 1024
    median_of: int = 20
    checkpoint_every: int = 1024
    log_every: int = 128
    steps_per_call: int = 1
    evaluation_batch_size: int = 1000
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
        for name in (
            "steps",
            "batch_size",
            "unlabeled_batch_size",
            "num_views",
            "evaluate_every",
            "median_of",
            "checkpoint_every",
            "log_every",
            "steps_per_call",
            "evaluation_batch_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "temperature", "alpha"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("ema_decay", "threshold", "label_smoothing"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} lies in [0, 1), not {getattr(self, name)}")

    @property
    def views_needed(self) -> int:
        """Augmented views of each unlabelled image that the method reads."""
        return {
            "supervised": 0,
            "pseudo-label": 1,
            "pi-model": 2,
            "mean-teacher": 2,
            "vat": 1,
            "ssl-mixup": 1,
            "ict": 1,
            "mixmatch": self.num_views,
        }[self.method]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Config":
        """From a run's config (its `seed` is left out); TypeError names a key that is no setting."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known - {"seed"}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**{name: value for name, value in values.items() if name in known})
