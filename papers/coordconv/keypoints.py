"""Key points by regression: a backbone with CoordConv layers, a head that reads coordinates from it, its training.

Coordinates go from -1 to 1 between the edges of the image here, x to the right and y down. Two heads:

    heatmap   each key point has a map of weights that sum to 1 over the cells; its place is the mean of the cells'
              centres, each moved by a learnt offset, under these weights ("soft-argmax"). The read-out itself knows the
              coordinates, which learns well from few images. Coordinates inside the backbone then help where the place
              decides which point is meant: the left and the right one of two that look alike.
    pooled    the mean of the features over all cells, then two linear layers: the usual regression head. It does not
              know where a feature comes from, so the coordinates must be in the features: by CoordConv, or leaked by
              zero padding. The paper's regression is of this kind: its networks end in a global pooling (spec 4).
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.data.augment import Augmentation
from common.data.loader import DeviceImages
from common.errors import UserError
from common.random import Stream, seeded
from common.runs import Execution, Folder
from common.trainer import Schedule, autocast, fit, save_weights
from papers.coordconv.method import convert_model
from papers.coordconv.own_data import Config, ModelInfo, errors_of, to_pixels, to_square

RESNETS = {
    "resnet18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet50": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NECK_WIDTH = 64


# ---------------------------------------------------------------- networks


class SmallBackbone(nn.Module):
    """Five convolutions with GroupNorm (right for small batches): float [B, C, H, W] -> [B, 64, H/4, W/4].

    About 25 million multiplications for an image of 64x64. The last two are dilated, so that a cell sees 59 pixels.
    """

    out_channels = 64

    def __init__(self, in_channels: int):
        super().__init__()
        shapes = (
            (in_channels, 16, 5, 2, 1),
            (16, 32, 3, 2, 1),
            (32, 64, 3, 1, 1),
            (64, 64, 3, 1, 2),
            (64, 64, 3, 1, 3),
        )
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride, dilation in shapes:
            padding = dilation * (kernel - 1) // 2
            layers += [
                nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
                nn.GroupNorm(8, outputs),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch of images."""
        return self.layers(images)


class ResNetBackbone(nn.Module):
    """A ResNet of `transformers`, its last three stages merged: float [B, 3, H, W] -> [B, 64, H/8, W/8].

    The last stage of a ResNet has one cell for 32x32 pixels, which is coarse for a point; so each of the three is
    projected to 64 channels, enlarged to the finest and added. Images in [-1, 1] get ImageNet's mean and variance.
    """

    out_channels = NECK_WIDTH

    def __init__(self, resnet: nn.Module):
        super().__init__()
        self.resnet = resnet
        self.laterals = nn.ModuleList(nn.Conv2d(size, NECK_WIDTH, 1) for size in resnet.config.hidden_sizes[-3:])
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1) * 2, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch of images."""
        outputs = self.resnet((images - self.mean) / self.std, output_hidden_states=True)
        stages = outputs.hidden_states[-len(self.laterals) :]
        merged = self.laterals[0](stages[0])
        for lateral, stage in zip(list(self.laterals)[1:], stages[1:], strict=True):
            merged = merged + functional.interpolate(lateral(stage), merged.shape[-2:], mode="nearest")
        return torch.relu(merged)


class HeatmapHead(nn.Module):
    """Soft-argmax with offsets: float [B, F, h, w] -> [B, K, 2]. Starts at the middle of the image."""

    def __init__(self, in_channels: int, num_points: int):
        super().__init__()
        self.scores = nn.Conv2d(in_channels, num_points, 1)
        self.offsets = nn.Conv2d(in_channels, 2 * num_points, 1)
        for layer in (self.scores, self.offsets):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Coordinates (x, y) of each key point."""
        height, width = features.shape[-2:]
        weights = self.scores(features).float().flatten(2).softmax(2)
        offsets = self.offsets(features).float().flatten(2).unflatten(1, (-1, 2))
        x = (2 * torch.arange(width, device=features.device) + 1) / width - 1
        y = (2 * torch.arange(height, device=features.device) + 1) / height - 1
        centres = torch.stack([x.repeat(height), y.repeat_interleave(width)])
        return ((offsets + centres) * weights[:, :, None]).sum(3)


class PooledHead(nn.Module):
    """Global mean pooling and two linear layers: float [B, F, h, w] -> [B, K, 2]."""

    def __init__(self, in_channels: int, num_points: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_channels, 4 * in_channels), nn.ReLU(), nn.Linear(4 * in_channels, 2 * num_points)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Coordinates (x, y) of each key point."""
        return self.layers(features.mean((2, 3))).float().unflatten(1, (-1, 2))


class KeyPoints(nn.Module):
    """Images float [B, C, H, W] in [-1, 1] -> coordinates of key points [B, K, 2]."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Coordinates (x, y) of each key point."""
        return self.head(self.backbone(images))


def resnet_config(config: Config) -> dict[str, Any] | None:
    """transformers' configuration of the ResNet: of the pretrained one, or the usual one; None for the small backbone.

    Raises UserError where `config.pretrained` is no ResNet's folder or cannot be found on the hub.
    """
    if config.backbone == "small":
        return None
    transformers = _transformers()
    if not config.pretrained:
        return transformers.ResNetConfig(**RESNETS[config.backbone]).to_diff_dict()
    try:
        found = transformers.AutoConfig.from_pretrained(config.pretrained)
    except (OSError, ValueError) as error:
        raise _unloadable(config.pretrained, error) from None
    if not isinstance(found, transformers.ResNetConfig) or found.num_channels != 3:
        raise UserError(f"--pretrained {config.pretrained} is a {found.model_type}, no ResNet for colour: {_ADVICE}")
    return found.to_diff_dict()


_ADVICE = "give a folder written by save_pretrained, or the hub name of a ResNet"


def _unloadable(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    return UserError(f"--pretrained {name} cannot be loaded ({reason}): {_ADVICE}")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("the ResNets need the package transformers: install it, or use --backbone small") from None
    from huggingface_hub import logging

    logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _resnet(config: Config, backbone_config: Mapping[str, Any] | None) -> nn.Module:
    transformers = _transformers()
    if backbone_config is not None:
        return transformers.ResNetModel(transformers.ResNetConfig(**backbone_config))
    try:
        return transformers.ResNetModel.from_pretrained(config.pretrained)
    except Exception as error:  # a damaged file can raise nearly anything
        raise _unloadable(config.pretrained, error) from None


def build(
    config: Config, channels: int, num_points: int, backbone_config: Mapping[str, Any] | None = None
) -> KeyPoints:
    """The network, initialised by torch's current generator. `config.coords` says which convolutions of the backbone
    know the coordinates; converting them changes no output at the start.

    backbone_config: of a ResNet whose weights will be loaded; None: pretrained ones are read.
    """
    backbone: nn.Module
    if config.backbone == "small":
        backbone = SmallBackbone(channels)
    else:
        if not config.pretrained and backbone_config is None:
            backbone_config = resnet_config(config)
        backbone = ResNetBackbone(_resnet(config, backbone_config))
    if config.coords != "none":
        part = "layers" if config.backbone == "small" else "resnet"
        converted = convert_model(
            getattr(backbone, part), where=config.coords, with_r=config.radius, scaling=config.coordinates
        )
        setattr(backbone, part, converted)
    head = HeatmapHead if config.head == "heatmap" else PooledHead
    return KeyPoints(backbone, head(backbone.out_channels, num_points))


# ---------------------------------------------------------------- training


class PartOfData(NamedTuple):
    """Images uint8 [n, S, S, C], points float64 [n, K, 2] in pixels of the originals (NaN: missing) and the originals'
    sizes int64 [n, 2] as (width, height)."""

    images: np.ndarray
    points: np.ndarray
    sizes: np.ndarray


class Outcome(NamedTuple):
    """errors: as `ModelInfo.errors`; best_step: the step of the kept weights; backbone_config: transformers' own."""

    errors: dict[str, dict[str, float]]
    best_step: int
    backbone_config: dict[str, Any] | None


def regression_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Smooth L1 (its bend at a 50th of the image) of coordinates [B, K, 2], averaged over the points whose targets lie
    inside the image; missing ones are NaN. Zero where there is none."""
    known = (targets.abs() <= 1).all(2, keepdim=True)
    # Subtracted from something finite, so that no NaN reaches the gradient by way of 0 * NaN.
    loss = functional.smooth_l1_loss(predicted, torch.where(known, targets, 0.0), reduction="none", beta=0.04)
    return (loss * known).sum() / known.sum().clamp(min=1)


class Regression(pl.LightningModule):
    """A network trained on key points that lie on the device; keeps the weights that were best on validation.

    Everything random of a range of steps is drawn before the first of them, as functions of (seed, step).
    """

    def __init__(
        self, network: KeyPoints, config: Config, data: Mapping[str, PartOfData], seed: int, execution: Execution
    ):
        super().__init__()
        self.automatic_optimization = False
        self.config, self.data, self.seed, self.execution = config, data, seed, execution
        self.network = network
        self.best = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("best_error", torch.tensor(math.inf))
        self.register_buffer("best_step", torch.tensor(0))
        self.step = 0
        self.samples_per_step = config.batch_size
        self.augmentation = Augmentation(shift=config.shift, noise=config.noise)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; no decay of biases and of normalisation's factors."""
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, self.config.learning_rate, fused=True)
        return self.optimizer

    def on_fit_start(self) -> None:
        """Move the data to the device once; nothing is copied to it afterwards."""
        self.network.to(memory_format=torch.channels_last)
        self.best.to(memory_format=torch.channels_last)
        self.images = {name: DeviceImages(part.images, device=self.device) for name, part in self.data.items()}
        train = self.data["train"]
        # A point that was clicked a little outside counts as one on the edge.
        self.targets = torch.from_numpy(to_square(train.points, train.sizes)).clamp(-1, 1).to(self.device)
        if self.execution.compile:
            # In place: a compiled wrapper would be a second module with the same tensors in every checkpoint.
            self.network.compile()

    def learning_rate(self, step: int) -> float:
        """A rise over the first 20th of the steps, then half a cosine down to 0."""
        warm = max(1, self.config.steps // 20)
        return (
            self.config.learning_rate
            * min(1.0, (step + 1) / warm)
            * (1 + math.cos(math.pi * step / self.config.steps))
            / 2
        )

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        """The optimisation steps range(*bounds); the loss of the last one."""
        steps, count, size = range(*bounds), self.config.batch_size, self.config.size
        index = Stream(self.seed, "order", self.device).epochs(steps, count, len(self.targets))
        draws = self.augmentation.draw(Stream(self.seed, "augmentation", self.device), steps, count)
        # An image that is read s - shift pixels further on has moved by as much to the left or up.
        moved = (draws[..., [4, 3]] - self.config.shift)[:, :, None] * (2.0 / size)
        targets = self.targets[index] - moved
        outputs: dict[str, Tensor] = {}
        for i, step in enumerate(steps):
            outputs = self.optimise(step, index[i], draws[i], targets[i])
        return outputs

    def optimise(self, step: int, index: Tensor, draws: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """One step. Reads nothing back from the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        images = self.images["train"].gather(index, self.augmentation, draws)
        with autocast(self.execution):
            predicted = self.network(images)
        loss = regression_loss(predicted, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The validation error; where it is the lowest so far, the weights are kept. Nothing without validation."""
        if "validation" not in self.data:
            return {}
        error = self.errors(self.network, "validation")
        if error["pixels"] < float(self.best_error):
            self.best_error.fill_(error["pixels"])
            self.keep()
        return {"validation_error": error["pixels"], "validation_percent": error["percent"]}

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the present weights to the best ones."""
        self.best_step.fill_(self.step)
        for kept, present in zip(self.best.state_dict().values(), self.network.state_dict().values(), strict=True):
            kept.copy_(present)

    @torch.no_grad()
    def errors(self, network: nn.Module, name: str) -> dict[str, float]:
        """`errors_of` a part of the data, in evaluation mode."""
        part, images, was_training = self.data[name], self.images[name], network.training
        # After its end Lightning has put the module back on the CPU.
        network.eval().to(images.device)
        with autocast(self.execution):
            rows = [network(batch).cpu() for batch, _ in images.batches(self.config.evaluation_batch_size)]
        network.train(was_training)
        return errors_of(to_pixels(torch.cat(rows).numpy(), part.sizes), part.points, part.sizes)


def train(config: Config, data: Mapping[str, PartOfData], seed: int, folder: Folder) -> Outcome:
    """Train in `folder`, resuming what it holds; writes the kept weights as safetensors."""
    train_part = data["train"]
    with seeded(Stream(seed, "initialisation")):
        network = build(config, train_part.images.shape[-1], train_part.points.shape[1])
    backbone_config = resnet_config(config)
    module = Regression(network, config, data, seed, folder.execution)
    schedule = Schedule(
        config.steps, config.evaluate_every, config.checkpoint_every, config.log_every, config.steps_per_call
    )
    fit(module, folder, schedule)
    if "validation" not in data:
        module.keep()
    save_weights(folder, module.best.state_dict())
    errors = {name: module.errors(module.best, name) for name in data if not np.isnan(data[name].points).all()}
    return Outcome(errors, int(module.best_step), backbone_config)


__all__ = ["KeyPoints", "ModelInfo", "Outcome", "PartOfData", "Regression", "build", "regression_loss", "train"]
