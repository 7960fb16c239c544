"""Every setting of an image classification with an extra front layer, with ImageNet's as defaults. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

CHOICES = {
    "dataset": ("imagenet", "miniature", "shapes"),
    "front": ("conv", "coordconv"),
    "model": ("resnet50", "resnet-tiny", "convnet"),
}


@dataclass(frozen=True)
class Config:
    """Settings of one run (spec, sections 4 and 5).

    dataset: "imagenet" in DATA_DIR; "miniature": a dozen JPEGs of the same layout, written into the run's folder;
    "shapes": generated, with train_images new ones an epoch and test_images fixed ones, noise of standard deviation
    `noise`. every_class: only each n-th class. front: what the extra 1x1 layer of front_channels is.
    width: channels of the small network's first convolution.
    size: side of the network's input; canvas: longest side at which a decoded image is kept. workers: threads that
    decode. Optimisation: SGD with Nesterov off; learning_rate is per 256 images of batch_size, rises linearly over
    warmup_epochs and falls by drop_factor at each of drop_epochs; weight_decay applies to every parameter.
    evaluate_epochs: epochs between evaluations; the `_every` are in steps.
    """

    dataset: str = "imagenet"
    every_class: int = 1
    front: str = "coordconv"
    front_channels: int = 8
    model: str = "resnet50"
    width: int = 16
    size: int = 224
    canvas: int = 512
    workers: int = 16
    train_images: int = 6_400
    test_images: int = 4_000
    noise: float = 0.5

    epochs: float = 90
    batch_size: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: float = 5
    drop_epochs: tuple[float, ...] = (30, 60, 80)
    drop_factor: float = 0.1

    evaluate_epochs: float = 1
    evaluation_batch_size: int = 256
    checkpoint_every: int = 1000
    log_every: int = 100
    steps_per_call: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} '{getattr(self, name)}'; there is {', '.join(known)}")
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name in ("noise", "momentum", "weight_decay", "warmup_epochs")
            if isinstance(value, int | float) and (value < 0 if may_be_zero else value <= 0):
                raise ValueError(f"{field.name} must {'not be negative' if may_be_zero else 'be above 0'}, not {value}")
        if list(self.drop_epochs) != sorted(self.drop_epochs):
            raise ValueError(f"drop_epochs must rise, not {self.drop_epochs}")

    def steps(self, images: int, epochs: float | None = None) -> int:
        """Optimisation steps of so many epochs (all of them by default) over `images`, at least 1."""
        return max(1, round((self.epochs if epochs is None else epochs) * images / self.batch_size))

    def rate(self, step: int, images: int) -> float:
        """The learning rate of a step."""
        epoch = step * self.batch_size / images
        warm = min(1.0, (step + 1) / max(1.0, self.warmup_epochs * images / self.batch_size))
        drops = sum(epoch >= drop for drop in self.drop_epochs)
        return self.learning_rate * self.batch_size / 256 * warm * self.drop_factor**drops

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Config":
        """From a run's config (its `seed` is left out); TypeError names a key that is no setting."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known - {"seed"}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        settings = {name: value for name, value in values.items() if name in known}
        if "drop_epochs" in settings:
            settings["drop_epochs"] = tuple(settings["drop_epochs"])
        return cls(**settings)
