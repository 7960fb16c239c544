"""Experiments and claims of image classification with an extra front layer (spec, sections 4 and 6: C8). No torch.

The paper's point is that nothing changes: what an image shows does not depend on where it is shown.
"""

from collections.abc import Mapping
from typing import Any

from common.claims import Claim, Quantity, Rule, TrainGate, difference
from common.paper import DataSource, Experiment, Metric
from papers.coordconv.imagenet.config import Config

RUN = "papers.coordconv.imagenet.module:run"
METHODS: dict[str, Mapping[str, Any]] = {"conv": {"front": "conv"}, "coordconv": {"front": "coordconv"}}
IMAGENET = (DataSource("imagenet"),)

# About a minute of one core an arm.
SHAPES_CONFIG: dict[str, Any] = {
    "dataset": "shapes",
    "model": "convnet",
    "noise": 0.3,
    "epochs": 10,
    "batch_size": 64,
    "learning_rate": 0.2,
    "warmup_epochs": 0.5,
    "drop_epochs": [7, 9],
    "evaluation_batch_size": 500,
    "checkpoint_every": 250,
    "log_every": 50,
    "steps_per_call": 25,
}
SMOKE: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 6,
    "warmup_epochs": 1,
    "drop_epochs": [1],
    "checkpoint_every": 1,
    "log_every": 2,
    "evaluation_batch_size": 4,
}
SMOKE_SHAPES: dict[str, Any] = {
    **SHAPES_CONFIG,
    **SMOKE,
    "width": 2,
    "train_images": 12,
    "test_images": 8,
    "steps_per_call": 2,
}
SMOKE_RESNET: dict[str, Any] = {
    **SMOKE,
    "dataset": "miniature",
    "model": "resnet-tiny",
    "size": 32,
    "canvas": 56,
    "workers": 2,
}
# A tenth of the classes at half the size, decoded at half the size.
GPU_CONFIG: dict[str, Any] = {
    "every_class": 10,
    "size": 112,
    "canvas": 256,
    "epochs": 10,
    "warmup_epochs": 1,
    "drop_epochs": [6, 8, 9],
}


def _experiment(
    name: str,
    described: str,
    seeds: int,
    config: Mapping[str, Any],
    data: tuple[DataSource, ...] = (),
    threads: int = 1,
) -> Experiment:
    return Experiment(
        name,
        METHODS,
        config,
        data=data,
        described=described,
        seeds=seeds,
        function=RUN,
        threads=threads,
        check_config=Config.of,
    )


SHAPES_DATA = "generated shapes anywhere in 32x32 pixels, 8 classes"
EXPERIMENTS: dict[str, tuple[Experiment, ...]] = {
    "smoke": (
        _experiment("imagenet-shapes", SHAPES_DATA, 1, SMOKE_SHAPES),
        _experiment("imagenet", "generated JPEGs in ImageNet's layout, 3 classes", 1, SMOKE_RESNET),
    ),
    "cpu": (_experiment("imagenet-shapes", SHAPES_DATA, 5, SHAPES_CONFIG),),
    "gpu": (_experiment("imagenet", "ImageNet, every tenth class, 112x112, 10 epochs", 3, GPU_CONFIG, IMAGENET, 2),),
    "paper": (_experiment("imagenet", "ImageNet-1k, 224x224, 90 epochs", 5, {}, IMAGENET, 2),),
}

METRICS = {
    "top1_error": Metric(
        "percent",
        "lower",
        "test",
        "last",
        "wrong first guesses (ImageNet: the validation images' centre crops); examples: ImageNet 50,000, shapes 4,000",
    ),
    "top5_error": Metric(
        "percent",
        "lower",
        "test",
        "last",
        "images whose class is not among the five best guesses; examples: ImageNet 50,000, shapes 4,000",
    ),
}


def _gain(experiment: str, metric: str, trained: float) -> Quantity:
    """Points of error by which CoordConv is better; the plain arm must have reached `trained` percent error."""
    plain, ours = (experiment, "conv"), (experiment, "coordconv")
    gates = [TrainGate(*plain, metric, trained, "lower")]
    return difference(plain, ours, metric, "percent", claimed=[ours], train_gates=gates)


def _same(quantity: Quantity, margin: float, data: str, seeds: int, **more: Any) -> Rule:
    """An equivalence: the difference lies within -margin..margin points."""
    return Rule(quantity=quantity, better="higher", gate=(-margin, margin), null=None, seeds=seeds, data=data, **more)


_SHAPES = _same(_gain("imagenet-shapes", "top1_error", 25.0), 1.0, SHAPES_DATA, 5, stand_in=True)
_FULL, _SHORT = "ImageNet-1k, 90 epochs", "ImageNet, every tenth class, 112x112, 10 epochs"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C8",
        "ResNet-50 on ImageNet gains next to nothing from an extra CoordConv layer: top-5 accuracy +0.04 points over 5 "
        "runs (p = 0.11)",
        "Sec. 5",
        False,
        {
            "paper": _same(
                _gain("imagenet", "top5_error", 12.0), 0.25, _FULL, 5, paper_value=0.04, paper_protocol=True
            ),
            "gpu": _same(_gain("imagenet", "top5_error", 50.0), 2.0, _SHORT, 3),
            "cpu": _SHAPES,
        },
        "the margins are ours; the stand-in compares top-1 error, since its classes are eight",
    ),
    Claim(
        "C8.top1",
        "ResNet-50 on ImageNet: neither does top-1 accuracy change",
        "ours, in the spirit of Sec. 5",
        False,
        {
            "paper": _same(_gain("imagenet", "top1_error", 30.0), 0.5, _FULL, 5),
            "gpu": _same(_gain("imagenet", "top1_error", 80.0), 3.0, _SHORT, 3),
        },
    ),
)
