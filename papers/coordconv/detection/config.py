"""Every setting of a detection run, with the paper's full-scale values as defaults. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

SCORES = TRAIN, AVERAGE, SELECT = "detection_train_iou", "detection_iou_average", "detection_iou_select"
"""The numbers of Table 1: Train IOU, Test IOU-average, Test IOU-select."""
CHOICES = {
    "network": ("conv", "coordconv"),
    "anchor_layout": ("correct", "released"),
    "padding": ("valid", "same"),
    "coordinate_range": ("symmetric", "unit"),
    "dataset": ("mnist", "digits"),
}
POSITIVE = (
    "train_images",
    "test_images",
    "digits_per_image",
    "steps",
    "batch_size",
    "evaluate_every",
    "median_of",
    "checkpoint_every",
    "log_every",
    "steps_per_call",
    "evaluation_batch_size",
)


@dataclass(frozen=True)
class Config:
    """Settings of one run (spec, sections 3, 4, 5 and 8).

    Network: "conv" or "coordconv" (coordinates before the first convolution, before the 3x3 one on the features and
    before the mover's last 1x1); padding "valid" (13 x 13 cells) or "same" (16 x 16). coordinate_range: "symmetric" is
    [-1, 1] as everywhere in the paper; "unit" is [0, 1], what the released detection file has in a layer of its own.
    anchor_layout: "correct", or "released", whose array is read in the wrong order (spec, 8). clip: cut predicted and
    true boxes to the canvas, a switch of the released script that is off by default. seen_only: a true box that no box
    overlaps has no best box (ours; `method.candidates` says why).
    Data: digits of `dataset` ("mnist", or scikit-learn's "digits"), `digits_per_image` to a canvas; binarised: as the
    released loader makes them, which forgets to divide by 255.
    Optimisation: Adam(beta1, beta2) at a constant rate; the paper's batch is one image. weight_penalty: times the sum
    of the squared kernels, added to the loss.
    Evaluation: Train IOU on the first `test_images` training images, the rest on the test images. The scores swing by a
    tenth from one evaluation to the next, so the median of the last `median_of` is reported. shown_images: how many
    test images with their boxes are left for the pictures.
    cuda_graph: on a GPU, whether the whole step is captured in a CUDA graph.
    """

    network: str = "coordconv"
    anchor_layout: str = "correct"
    padding: str = "valid"
    coordinate_range: str = "symmetric"
    clip: bool = False
    seen_only: bool = False

    dataset: str = "mnist"
    binarised: bool = False
    train_images: int = 9000
    test_images: int = 1000
    digits_per_image: int = 5

    steps: int = 90_000
    batch_size: int = 1
    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.99
    weight_penalty: float = 0.0

    evaluate_every: int = 9000
    median_of: int = 5
    checkpoint_every: int = 9000
    log_every: int = 1000
    steps_per_call: int = 50
    evaluation_batch_size: int = 100
    shown_images: int = 6
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
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if max(self.beta1, self.beta2) >= 1:
            raise ValueError(f"beta1 and beta2 lie in [0, 1), not {self.beta1} and {self.beta2}")
        if self.shown_images > self.test_images:
            raise ValueError(f"of {self.test_images} test images no {self.shown_images} can be shown")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Config":
        """From a run's config (its `seed` is left out); TypeError names a key that is no setting."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known - {"seed"}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**{name: value for name, value in values.items() if name in known})
