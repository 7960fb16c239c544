"""The LightningModule that trains a classifier with an extra front layer, and the run function of its experiments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.random import Stream, seeded
from common.runs import Execution, Folder
from common.trainer import Schedule, autocast, fit, save_weights
from papers.coordconv.imagenet.config import Config
from papers.coordconv.imagenet.data import ImageNet, Shapes, open_source
from papers.coordconv.imagenet.networks import build


class Classification(pl.LightningModule):
    """Softmax cross entropy and SGD with momentum; batches are functions of (seed, step)."""

    def __init__(self, model: nn.Module, config: Config, source: ImageNet | Shapes, execution: Execution):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.config, self.source, self.execution = model, config, source, execution
        self.step, self.samples_per_step = 0, config.batch_size

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD; the rate is set before every step."""
        config = self.config
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, fused=True
        )
        return self.optimizer

    def on_fit_start(self) -> None:
        """Memory layout and compilation."""
        self.model.to(memory_format=torch.channels_last)
        if self.execution.compile:
            self.model.compile()

    def optimise(self, step: int) -> Tensor:
        """One step on the batch that belongs to it; its loss."""
        images, labels = self.source.batch(step)
        with autocast(self.execution):
            loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.param_groups[0]["lr"] = self.config.rate(step, self.source.num_train)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        """The optimisation steps range(*bounds); the loss of the last one."""
        losses = [self.optimise(step) for step in range(*bounds)]
        return {"loss": losses[-1]}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Top-1 and top-5 error on the test split in percent."""
        self.model.eval()
        wrong = torch.zeros(2, dtype=torch.int64, device=self.device)
        for images, labels in self.source.evaluation():
            with autocast(self.execution):
                best = self.model(images).topk(min(5, self.source.num_classes)).indices
            right = best == labels[:, None]
            wrong += torch.stack([(~right[:, 0]).sum(), (~right.any(1)).sum()])
        self.model.train()
        top1, top5 = wrong.tolist()
        return {"top1_error": 100 * top1 / self.source.num_test, "top5_error": 100 * top5 / self.source.num_test}


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train one arm on one seed; {"top1_error", "top5_error"} in percent, at the end.

    UserError where ImageNet is missing, incomplete or has a file that cannot be read.
    """
    settings, seed = Config.of(config), int(config["seed"])
    device = torch.device(folder.execution.device)
    source = open_source(settings, seed, folder.data_dir, folder.path, device)
    with seeded(Stream(seed, "initialisation")):
        model = build(settings, source.num_classes, source.channels)
    module = Classification(model, settings, source, folder.execution)
    images = source.num_train
    schedule = Schedule(
        settings.steps(images),
        settings.steps(images, settings.evaluate_epochs),
        settings.checkpoint_every,
        settings.log_every,
        settings.steps_per_call,
    )
    fit(module, folder, schedule)
    save_weights(folder, model.state_dict())
    return {name: folder.curves.values(name)[-1] for name in ("top1_error", "top5_error")}
