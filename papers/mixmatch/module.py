"""The LightningModule for MixMatch and its baselines, and the run function of the experiments."""

import copy
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from common.capture import CudaCapture, StepGraph
from common.data.augment import Augmentation
from common.data.loader import DeviceImages
from common.models.convnet import ConvNet, ConvNet13
from common.models.wide_resnet import wide_resnet
from common.random import Stream, seeded
from common.runs import Execution, Folder
from common.trainer import Schedule, autocast, fit, save_weights
from papers.mixmatch import baselines
from papers.mixmatch.config import Config
from papers.mixmatch.data import Split, load_split
from papers.mixmatch.method import Draws, Loss, MixMatch, decay_weights, kernels, ramp, update_average


def build_model(config: Config, num_classes: int, in_channels: int) -> nn.Module:
    """The network of `config.model`; initialised by torch's current generator."""
    if config.model == "convnet":
        return ConvNet(num_classes, in_channels, momentum=config.bn_momentum)
    if config.model == "convnet13":
        return ConvNet13(num_classes, in_channels, momentum=config.bn_momentum)
    return wide_resnet(config.model, num_classes, in_channels, conv_bias=config.conv_bias, momentum=config.bn_momentum)


class SemiSupervised(pl.LightningModule):
    """One network trained by one of the methods on data that lives on the device.

    Every random number of a range of steps is drawn before the first of them (`draw`), so a step itself is a function
    of tensors: `optimise` does one and can be captured in a CUDA graph.
    """

    def __init__(self, model: nn.Module, config: Config, split: Split, seed: int, execution: Execution):
        super().__init__()
        self.automatic_optimization = False
        self.config, self.split, self.seed, self.execution = config, split, seed, execution
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.step = 0
        self.samples_per_step = config.batch_size + (config.unlabeled_batch_size if config.views_needed else 0)
        self.augmentation = Augmentation(config.flip, config.reflect_crop, config.shift, config.cutout, config.noise)
        self.mixmatch = MixMatch(
            config.temperature,
            config.alpha,
            config.unlabeled_weight,
            config.ramp_steps * config.batch_size,
            config.mixing,
            config.per_item_lambda,
            config.batch_norm,
            config.interleave,  # type: ignore[arg-type]
            config.unlabeled_loss,  # type: ignore[arg-type]
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at a constant rate (Sec. 3.5 of the paper; betas and eps are TensorFlow's, as PyTorch's)."""
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), self.config.learning_rate, fused=True, capturable=on_gpu
        )
        return self.optimizer

    def on_fit_start(self) -> None:
        """Move the data to the device once; nothing is copied to it afterwards."""
        memory = torch.channels_last
        self.model.to(memory_format=memory)
        self.average.to(memory_format=memory)
        scale, device = self.split.scale, self.device
        self.labeled = DeviceImages(*self.split.labeled, device=device, scale=scale)
        self.unlabeled = DeviceImages(self.split.unlabeled, device=device, scale=scale)
        test = self.split.test
        self.test = None if test is None else DeviceImages(*test, device=device, scale=scale)
        self.parameters_, self.averages = list(self.model.parameters()), list(self.average.parameters())
        self.kernels = kernels(self.model)
        if self.execution.compile:
            # In place: a compiled wrapper would be a second module with the same tensors in every checkpoint.
            self.model.compile()
        capture = CudaCapture(device) if device.type == "cuda" and self.config.cuda_graph else None
        self.one_step = StepGraph(self.optimise, capture)

    def draw(self, steps: range) -> dict[str, Tensor]:
        """Everything random of `steps`, each tensor with a leading dimension len(steps), and the ramp's weight."""
        return self.draw_of(self.seed, steps, len(self.labeled), len(self.unlabeled))

    def draw_of(self, seed: int, steps: range, num_labeled: int, num_unlabeled: int) -> dict[str, Tensor]:
        """`draw` for a run of this seed with that many labelled and unlabelled images."""
        config, views = self.config, self.config.views_needed

        def stream(name: str) -> Stream:
            return Stream(seed, name, self.device)

        batch, unlabeled_batch = config.batch_size, config.unlabeled_batch_size
        numbers = torch.arange(steps.start, steps.stop, device=self.device)
        draws = {
            "index": stream("labeled order").epochs(steps, batch, num_labeled),
            "augmentation": self.augmentation.draw(stream("labeled augmentation"), steps, batch),
            "weight": config.unlabeled_weight
            * ramp(numbers.float(), config.ramp_steps)
            * torch.ones(len(steps)).to(numbers.device),
        }
        if views:
            draws["unlabeled_index"] = stream("unlabeled order").epochs(steps, unlabeled_batch, num_unlabeled)
            drawn = self.augmentation.draw(stream("unlabeled augmentation"), steps, unlabeled_batch, views)
            draws["unlabeled_augmentation"] = drawn if views > 1 else drawn[:, None]
        if config.method == "mixmatch":
            drawn = self.mixmatch.draw(stream("mixup"), numbers, batch + views * unlabeled_batch)
            draws |= {"lam": drawn.lam, "permutation": drawn.permutation}
        elif config.method in ("ssl-mixup", "ict"):
            draws["lam_labeled"] = stream("labeled mixup").beta(numbers, batch, config.alpha)
            draws["lam_unlabeled"] = stream("unlabeled mixup").beta(numbers, unlabeled_batch, config.alpha)
        elif config.method == "vat":
            shape = (unlabeled_batch, *self.unlabeled.image_shape)
            draws["direction"] = stream("direction").normal(numbers, shape)
        return draws

    def loss(self, draws: Mapping[str, Tensor]) -> Loss:
        """The loss of one step from its draws (one row of each tensor of `draw`)."""
        config, model, teacher, weight = self.config, self.model, self.average, draws["weight"]
        x = self.labeled.gather(draws["index"], self.augmentation, draws["augmentation"])
        targets = self.labeled.labels[draws["index"]]
        if config.method == "supervised":
            return baselines.supervised(model, baselines.Batch(x, targets), config.label_smoothing)
        drawn = draws["unlabeled_augmentation"]
        views = self.unlabeled.gather(draws["unlabeled_index"], self.augmentation, drawn).unflatten(0, drawn.shape[:2])
        if config.method == "mixmatch":
            guess_model = teacher if config.guess_with == "ema" else None
            return self.mixmatch.loss(
                model, x, targets, views, weight, Draws(draws["lam"], draws["permutation"]), guess_model
            )
        batch = baselines.Batch(
            x, targets, views, draws.get("lam_labeled"), draws.get("lam_unlabeled"), draws.get("direction")
        )
        smoothing = config.label_smoothing
        if config.method == "pseudo-label":
            return baselines.pseudo_label(model, batch, weight, config.threshold, smoothing)
        if config.method == "pi-model":
            return baselines.pi_model(model, batch, weight, smoothing)
        if config.method == "mean-teacher":
            return baselines.mean_teacher(model, teacher, batch, weight, smoothing)
        if config.method == "vat":
            return baselines.vat(
                model, batch, weight, config.vat_epsilon, config.entropy_weight, label_smoothing=smoothing
            )
        if config.method == "ssl-mixup":
            return baselines.ssl_mixup(model, batch)
        return baselines.ict(model, teacher, batch, weight, smoothing)

    def optimise(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step: loss, gradients, Adam, averaged weights, decay. Reads nothing back from the device."""
        with autocast(self.execution):
            loss = self.loss(draws)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.sum().backward()  # a sum for the sake of a stack of runs, whose losses have nothing in common
        self.optimizer.step()
        update_average(self.averages, self.parameters_, self.config.ema_decay)
        decay_weights(self.kernels, self.config.weight_decay * self.config.learning_rate)
        return {"loss": loss.total.detach(), "labeled_loss": loss.labeled, "unlabeled_loss": loss.unlabeled}

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        """The optimisation steps range(*bounds); the losses of the last one."""
        steps = range(*bounds)
        draws = self.draw(steps)
        outputs: dict[str, Tensor] = {}
        for i in range(len(steps)):
            outputs = self.one_step({name: tensor[i] for name, tensor in draws.items()})
        return outputs

    def copy_statistics(self) -> None:
        """Give the averaged network the raw BatchNorm statistics (spec, 3, step 10)."""
        for averaged, raw in zip(self.average.buffers(), self.model.buffers(), strict=True):
            averaged.copy_(raw)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Errors in percent of the averaged weights with the raw BatchNorm statistics; test_error if there are such."""
        self.copy_statistics()
        parts = {"test_error": self.test, "train_error": self.labeled}
        return {name: self._error(self.average, part) for name, part in parts.items() if part is not None}

    def _error(self, model: nn.Module, images: DeviceImages) -> float:
        was_training = model.training
        model.eval()
        wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        with autocast(self.execution):
            for x, y in images.batches(self.config.evaluation_batch_size):
                wrong += (model(x).argmax(1) != y).sum()
        model.train(was_training)
        return 100.0 * wrong.item() / len(images)


def initial_model(config: Config, split: Split, seed: int) -> nn.Module:
    """The network as a run of this seed begins with it."""
    with seeded(Stream(seed, "initialisation")):
        return build_model(config, split.num_classes, split.labeled[0].shape[-1])


def schedule_of(config: Config) -> Schedule:
    """When a run evaluates, logs and writes checkpoints."""
    return Schedule(
        config.steps, config.evaluate_every, config.checkpoint_every, config.log_every, config.steps_per_call
    )


def metrics_of(config: Config, split: Split, folder: Folder) -> dict[str, float]:
    """What `train` returns, from the curves of a run that has ended."""
    metrics = {"train_error": folder.curves.values("train_error")[-1]}
    if split.test is None:
        return metrics
    return {"test_error": statistics.median(folder.curves.values("test_error")[-config.median_of :]), **metrics}


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train one method on one seed; {"test_error", "train_error"} in percent."""
    settings, seed = Config.of(config), int(config["seed"])
    split = load_split(settings, seed, folder.data_dir)
    return train(settings, split, seed, folder)


def train(settings: Config, split: Split, seed: int, folder: Folder) -> dict[str, Any]:
    """Train on a given split in `folder`, resuming what it holds; writes the averaged weights as safetensors.

    The errors of `evaluate` in percent: of the test split (where there is one) as `median_of` says, else the last ones.
    """
    module = SemiSupervised(initial_model(settings, split, seed), settings, split, seed, folder.execution)
    fit(module, folder, schedule_of(settings))
    module.copy_statistics()
    save_weights(folder, module.average.state_dict())
    return metrics_of(settings, split, folder)
