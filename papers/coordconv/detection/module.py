"""The LightningModule of the region-proposal network, and the run function of the experiments."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from common.capture import CudaCapture, StepGraph
from common.files import atomic_path
from common.random import Stream, seeded
from common.runs import Execution, Folder
from common.trainer import Schedule, autocast, fit, save_weights
from papers.coordconv.detection.config import SCORES, Config
from papers.coordconv.detection.data import CROP, Scattered, scatter, sources
from papers.coordconv.detection.method import (
    Losses,
    clip,
    draw_keys,
    make_anchors,
    move,
    proposal_losses,
    proposal_scores,
    propose,
)
from papers.coordconv.detection.networks import RegionProposal


class Detection(pl.LightningModule):
    """A region-proposal network trained on scattered digits that are made once and stay on the device.

    A step is a function of its number: which images it reads comes from the stream "order", what an image's sampler
    picks from "sampler", by the step and the image alone, whatever the batch around it.
    """

    def __init__(self, config: Config, digits: tuple[np.ndarray, np.ndarray], seed: int, execution: Execution):
        super().__init__()
        self.automatic_optimization = False
        self.config, self.digits, self.seed, self.execution = config, digits, seed, execution
        self.step, self.samples_per_step = 0, config.batch_size
        with seeded(Stream(seed, "initialisation")):
            self.model = RegionProposal(config.network == "coordconv", config.padding, config.coordinate_range)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at a constant rate (the released script's default; beta2 0.99 as everywhere in the paper)."""
        config = self.config
        betas = (config.beta1, config.beta2)
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), config.learning_rate, betas, fused=True, capturable=on_gpu
        )
        return self.optimizer

    def on_fit_start(self) -> None:
        """Make the data and the anchors on the device; nothing is copied to it afterwards."""
        config, device = self.config, self.device
        self.model.to(memory_format=torch.channels_last)
        counts = {"train": config.train_images, "test": config.test_images}
        self.train_set, self.test_set = (
            scatter(part, counts[name], config.digits_per_image, self._stream(f"{name} images"), config.binarised)
            for name, part in zip(counts, self.digits, strict=True)
        )
        self.anchors = make_anchors(config.padding, config.anchor_layout).to(device)
        self.kernels = self.model.kernels()
        if self.execution.compile:
            self.model.compile()
        capture = CudaCapture(device) if device.type == "cuda" and config.cuda_graph else None
        self.one_step = StepGraph(self.optimise, capture)

    def _stream(self, name: str) -> Stream:
        return Stream(self.seed, name, self.device)

    def losses(self, data: Scattered, index: Tensor, keys: Tensor) -> Losses:
        """Losses of the images at index; keys: a number for each, which decides what its sampler picks."""
        truths = data.boxes[index]
        with autocast(self.execution):
            scores, transform = self.model(data.gather(index))
        drawn = draw_keys(self._stream("sampler"), keys, len(self.anchors), truths.shape[1])
        return proposal_losses(
            scores.float(),
            transform.float(),
            self.anchors,
            truths,
            drawn,
            CROP,
            self.config.clip,
            self.config.seen_only,
        )

    def optimise(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step: losses averaged over the images, gradients, Adam. Reads nothing back from the device."""
        losses = self.losses(self.train_set, draws["index"], draws["keys"])
        total = losses.boxes.mean() + losses.scores.mean()
        if self.config.weight_penalty:
            total = total + self.config.weight_penalty * sum(kernel.square().sum() for kernel in self.kernels)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return {
            "loss": total.detach(),
            "box_loss": losses.boxes.detach().mean(),
            "score_loss": losses.scores.detach().mean(),
            "positive_iou": losses.positive_iou.mean(),
        }

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        """The optimisation steps range(*bounds); the losses of the last one."""
        steps = range(*bounds)
        index = self._stream("order").epochs(steps, self.config.batch_size, len(self.train_set))
        keys = torch.arange(*bounds, device=self.device)[:, None] * len(self.train_set) + index
        outputs: dict[str, Tensor] = {}
        for i in range(len(steps)):
            outputs = self.one_step({"index": index[i], "keys": keys[i]})
        return outputs

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Train IOU on training images, Test IOU-average and Test IOU-select on all test images; in [0, 1]."""
        train = []
        for index in self._batches(min(len(self.test_set), len(self.train_set))):
            # Keys below 0 are no training step's.
            train.append(self.losses(self.train_set, index, -1 - index).positive_iou)
        average, select = [], []
        for index in self._batches(len(self.test_set)):
            proposals, _, found = self.proposals(index)
            truths = self.test_set.boxes[index]
            scores = proposal_scores(proposals, found, clip(truths, CROP) if self.config.clip else truths)
            average.append(scores[0])
            select.append(scores[1])
        means = torch.stack([torch.cat(values).mean() for values in (train, average, select)]).tolist()
        return dict(zip(SCORES, means, strict=True))

    @torch.no_grad()
    def proposals(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes proposed for the test images at index, after suppression: [B, 10, 4], their probability [B, 10],
        and which of the ten there are, bool [B, 10]."""
        with autocast(self.execution):
            scores, transform = self.model(self.test_set.gather(index))
        moved = move(self.anchors, transform.float())
        if self.config.clip:
            moved = clip(moved, CROP)
        chosen, probability, found = propose(scores.float(), moved)
        return moved.gather(1, chosen[..., None].expand(-1, -1, 4)), probability, found

    def _batches(self, count: int) -> Iterator[Tensor]:
        return iter(torch.arange(count, device=self.device).split(self.config.evaluation_batch_size))


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train one network on one seed; what `Detection.evaluate` measures, IOU in [0, 1], as `median_of` says.

    Leaves weights and `artifacts/detections.npz`: images uint8 [S, 64, 64], truths [S, P, 4], proposals [S, 10, 4],
    probabilities [S, 10], found bool [S, 10] of the first test images, and anchors [N, 4].
    """
    settings, seed = Config.of(config), int(config["seed"])
    module = Detection(settings, sources(settings.dataset, seed, folder.data_dir), seed, folder.execution)
    schedule = Schedule(
        settings.steps, settings.evaluate_every, settings.checkpoint_every, settings.log_every, settings.steps_per_call
    )
    fit(module, folder, schedule)
    save_weights(folder, module.model.state_dict())
    if settings.shown_images:
        _save_detections(module, folder, settings.shown_images)
    return {name: statistics.median(folder.curves.values(name)[-settings.median_of :]) for name in SCORES}


def _save_detections(module: Detection, folder: Folder, count: int) -> None:
    module.to(module.anchors.device)  # Lightning leaves the weights on the CPU
    index = torch.arange(count, device=module.device)
    proposals, probability, found = module.proposals(index)
    arrays = {
        "images": module.test_set.images[:count],
        "truths": module.test_set.boxes[:count],
        "proposals": proposals,
        "probabilities": probability,
        "found": found,
        "anchors": module.anchors,
    }
    with atomic_path(folder.artifact("detections.npz")) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **{name: tensor.cpu().numpy() for name, tensor in arrays.items()})
