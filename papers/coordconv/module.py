"""The LightningModule of the supervised tasks and the run functions of the experiments.

Runs of one shape are trained as one stack: S networks whose parameters are the rows of one matrix, evaluated together
by `torch.func.vmap`, with Adam row by row. A run alone is a stack of one, which calls the plain network.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.capture import CudaCapture, StepGraph
from common.curves import read_rows
from common.files import atomic_path, read_json
from common.random import Stream, seeded
from common.runs import Execution, Folder, Workplace
from common.trainer import Schedule, autocast, fit, save_weights
from papers.coordconv.config import Config, TimeTo
from papers.coordconv.data import NotSoClevr, iou
from papers.coordconv.networks import build

ALIGNMENT = 16
"""Every tensor of a row begins at a multiple of so many elements, which some matrix kernels want."""
REACHED = 85.0
"""Percent of the held-out samples: about what the paper's best deconvolution gets right."""
EXAMPLES = 8
"""Rendered test images that a run keeps for the pictures."""


class Stack(nn.Module):
    """S networks of one architecture as one module: `forward` maps [S, B, ...] to [S, B, ...].

    weights: [S, P], every network's parameters one after the other; `kernel_mask` [P] marks those that the weight
    penalty counts: convolution and dense kernels, neither biases nor BatchNorm's weights. Persistent buffers
    (BatchNorm's statistics) are stacked; others are constants and belong to the one network that computes.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.size = len(networks)
        first = networks[0]
        self._network = (first,)  # in a tuple, or its parameters would be this module's too
        self.shapes = {name: parameter.shape for name, parameter in first.named_parameters()}
        self.lengths: list[int] = []
        for shape in self.shapes.values():
            self.lengths += [shape.numel(), -shape.numel() % ALIGNMENT]
        rows = [self._row(dict(network.named_parameters())) for network in networks]
        self.weights = nn.Parameter(torch.stack(rows))
        ones = {name: torch.full(shape, float(len(shape) > 1)) for name, shape in self.shapes.items()}
        self.register_buffer("kernel_mask", self._row(ones), persistent=False)
        self.buffer_names = {name: name.replace(".", "-") for name in first.state_dict() if name not in self.shapes}
        for name, ours in self.buffer_names.items():
            self.register_buffer(ours, torch.stack([network.state_dict()[name] for network in networks]))

    def _row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for name, padding in zip(self.shapes, self.lengths[1::2], strict=True):
            parts += [tensors[name].detach().flatten(), torch.zeros(padding)]
        return torch.cat(parts)

    @property
    def network(self) -> nn.Module:
        """The network whose code computes; its own parameters are not read."""
        return self._network[0]

    @property
    def num_parameters(self) -> int:
        """Of one network."""
        return sum(shape.numel() for shape in self.shapes.values())

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and statistics by the network's names, each [S, ...], views of what is trained."""
        parts = self.weights.split(self.lengths, dim=1)[::2]
        found = {
            name: part.view(self.size, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        return found | {name: getattr(self, ours) for name, ours in self.buffer_names.items()}

    def member(self, number: int) -> dict[str, Tensor]:
        """The state dict of one network."""
        return {name: tensor[number].detach() for name, tensor in self.tensors().items()}

    def forward(self, inputs: Tensor, with_centre: bool = False) -> tuple[Tensor, ...]:
        """inputs [S, B, ...] -> (outputs [S, B, ...],); in training mode BatchNorm's statistics move.

        with_centre: also what CoordConv's renderer takes for the centre, as logits [S, B, H, W].
        """
        network, tensors = self.network, self.tensors()
        keywords = {"with_centre": True} if with_centre else {}

        def call(state: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
            found = torch.func.functional_call(network, state, (x,), keywords)
            return found if with_centre else (found,)

        if self.size == 1:
            alone = {name: tensor[0] for name, tensor in tensors.items()}
            return tuple(output[None] for output in call(alone, inputs[0]))
        return torch.func.vmap(call)(tensors, inputs)

    def penalty(self) -> Tensor:
        """Sum of the squared kernels, [S]."""
        return (self.weights.square() * self.kernel_mask).sum(1)


class Supervised(pl.LightningModule):
    """S runs of one shape trained together on one data set that lives on the device.

    Each member has its own seed (initialisation, order, split), learning rate, schedule, l2 and split; nothing that one
    member computes depends on another. A loss that is not finite stays in its own row.
    """

    def __init__(self, configs: Sequence[Config], seeds: Sequence[int], execution: Execution):
        super().__init__()
        if len({config.shape for config in configs}) != 1:
            raise ValueError("the runs of a stack must have one shape")
        self.automatic_optimization = False
        self.configs, self.seeds, self.execution = list(configs), list(seeds), execution
        self.config = config = configs[0]
        self.size = len(configs)
        self.step = 0
        self.samples_per_step = config.batch_size
        networks = []
        for seed in seeds:
            with seeded(Stream(seed, "initialisation")):
                networks.append(build(config))
        self.stack = Stack(networks)
        self.data = NotSoClevr(config.canvas, config.square)
        splits = [self.data.split(member.split, seed) for member, seed in zip(configs, seeds, strict=True)]
        self.train_indices = [train for train, _ in splits]
        in_train = torch.zeros(self.size, len(self.data.centers), dtype=torch.bool)
        for row, train in zip(in_train, self.train_indices, strict=True):
            row[train] = True
        self.register_buffer("in_train", in_train, persistent=False)
        self.register_buffer("l2", torch.tensor([member.l2 for member in configs]), persistent=False)
        if config.task == "regression":
            # The spec's evaluation rule: the weights with the lowest training loss among the evaluated ones.
            self.register_buffer("best_loss", torch.full((self.size,), torch.inf))
            for name, tensor in self.stack.state_dict().items():
                self.register_buffer(f"best_{name}", tensor.clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam with a parameter group for each member; its parameters and gradients are rows of the stack's."""
        weights = self.stack.weights
        weights.grad = torch.zeros_like(weights)
        groups = []
        for number, config in enumerate(self.configs):
            row = nn.Parameter(weights.data[number])
            row.grad = weights.grad[number]
            groups.append({"params": [row], "lr": config.learning_rate})
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            groups, betas=(0.9, self.config.beta2), eps=1e-8, fused=True, capturable=on_gpu
        )
        return self.optimizer

    def on_fit_start(self) -> None:
        """Move the data to the device once; nothing is copied to it afterwards.

        `execution.compile` is not heeded: the networks' gradients are written by hand, block by block, which leaves
        little to fuse, and on a GPU the whole step is one CUDA graph.
        """
        device, dtype = self.device, self.stack.weights.dtype
        self.stack.network.to(device, dtype)
        self.data = NotSoClevr(self.config.canvas, self.config.square, device)
        self.train_indices = [index.to(device) for index in self.train_indices]
        self.centers = self.data.centers.to(dtype)
        on_gpu = device.type == "cuda"
        self.rates: list[float] = []
        if on_gpu:
            # A recorded step reads the learning rates from the device.
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(float(group["lr"]), device=device)
        self.one_step = StepGraph(self.optimise, CudaCapture(device) if on_gpu and self.config.cuda_graph else None)

    def draw(self, steps: range) -> Tensor:
        """The samples of `steps`: int64 [len(steps), S, B]. Each member shuffles its own training set every epoch."""
        drawn = []
        for seed, train in zip(self.seeds, self.train_indices, strict=True):
            order = Stream(seed, "order", self.device)
            drawn.append(train[order.epochs(steps, self.config.batch_size, len(train))])
        return torch.stack(drawn, dim=1)

    def inputs(self, index: Tensor) -> Tensor:
        """What the network sees of the samples at index [S, B]: (x, y) [S, B, 2], or images [S, B, 1, H, W]."""
        if self.config.task == "regression":
            return self.data.onehot(index.flatten()).to(self.centers.dtype).unflatten(0, index.shape)
        return self.centers[index]

    def data_loss(self, outputs: Tensor, index: Tensor) -> Tensor:
        """The loss of each member without the penalty, [S], from outputs [S, B, ...] for the samples index [S, B]."""
        config, outputs = self.config, outputs.to(self.centers.dtype)
        if config.task == "classification":
            return self._cross_entropy(outputs, index)
        if config.task == "regression":
            return (outputs - self.centers[index] / config.canvas).square().flatten(1).mean(1)
        targets = self.data.squares(index.flatten()).to(outputs.dtype).unflatten(0, index.shape)
        if config.loss == "mse":
            return (outputs - targets).square().flatten(1).mean(1)
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").flatten(1).mean(1)

    def _cross_entropy(self, logits: Tensor, index: Tensor) -> Tensor:
        """Softmax cross entropy over the pixels, [S]."""
        losses = functional.cross_entropy(
            logits.flatten(2).flatten(0, 1), self.data.labels(index).flatten(), reduction="none"
        )
        return losses.view(index.shape).mean(1)

    def centre_loss(self, centre: Tensor, index: Tensor) -> Tensor:
        """The loss of the renderer's intermediate map, logits [S, B, H, W], against the centre's pixel, [S]."""
        centre = centre.to(self.centers.dtype)
        if self.config.centre_loss == "cross-entropy":
            return self._cross_entropy(centre, index)
        targets = self.data.onehot(index.flatten()).to(centre.dtype).view_as(centre)
        return (centre - targets).square().flatten(1).mean(1)

    def loss(self, index: Tensor) -> Tensor:
        """The loss of each member, [S], with its weight penalty (added to the loss, so it goes through Adam)."""
        with_centre = self.config.centre_loss != "none"
        outputs, *centre = self.stack(self.inputs(index), with_centre)
        loss = self.data_loss(outputs, index) + self.l2 * self.stack.penalty()
        return loss + self.centre_loss(centre[0], index) if with_centre else loss

    def optimise(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step of every member. Reads nothing back from the device."""
        with autocast(self.execution):
            loss = self.loss(draws["index"])
        self.zero_grad()
        loss.sum().backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Fill the gradients with zeros in their place, also when Lightning asks: the optimiser holds views of them."""
        if self.stack.weights.grad is not None:
            self.stack.weights.grad.zero_()

    def set_rates(self, step: int) -> None:
        """Give the optimiser the learning rates of a step where they changed."""
        rates = [config.learning_rate_at(step) for config in self.configs]
        if rates != self.rates:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            self.rates = rates

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        """The optimisation steps range(*bounds); the losses [S] of the last one."""
        draws = self.draw(range(*bounds))
        outputs: dict[str, Tensor] = {}
        for step, index in zip(range(*bounds), draws, strict=True):
            self.set_rates(step)
            outputs = self.one_step({"index": index})
        return outputs

    @torch.no_grad()
    def predict(self) -> Tensor:
        """What every member makes of each sample: predicted centres in pixels [S, N, 2], or (rendering) IOUs [S, N]."""
        self.stack.network.eval()
        parts = []
        for index in torch.arange(len(self.data.centers), device=self.device).split(self.config.evaluation_batch_size):
            with autocast(self.execution):
                (outputs,) = self.stack(self.inputs(index.expand(self.size, -1)))
            outputs = outputs.to(self.centers.dtype)
            if self.config.task == "classification":
                label = outputs.flatten(2).argmax(2)
                parts.append(torch.stack([label % self.config.canvas, label // self.config.canvas], dim=2))
            elif self.config.task == "regression":
                parts.append(outputs * self.config.canvas)
            else:
                parts.append(iou(outputs > 0, self.data.squares(index)))
        self.stack.network.train()
        return torch.cat(parts, dim=1)

    def scores(self, predicted: Tensor) -> dict[str, Tensor]:
        """Every metric sample by sample, [S, N], from what `predict` gives."""
        if self.config.task == "rendering":
            return {"rendering_iou": predicted}
        away = (predicted - self.data.centers).to(self.centers.dtype)
        distance = away.norm(dim=2)
        if self.config.task == "regression":
            exact = (predicted.round() == self.data.centers).all(2)
            return {"error": distance, "exact": 100.0 * exact}
        return {"accuracy": 100.0 * (distance == 0), "distance": distance, "manhattan": away.abs().sum(2)}

    def averages(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over each side of each member's split, [S]."""
        found = {}
        for name, score in scores.items():
            for side, mask in (("test", ~self.in_train), ("train", self.in_train)):
                found[f"{side}_{name}"] = torch.where(mask, score.double(), 0.0).sum(1) / mask.sum(1)
        return found

    @torch.no_grad()
    def evaluate(self) -> list[dict[str, float]]:
        """The averages of every member; regression also keeps the weights that have the lowest training loss so far."""
        predicted = self.predict()
        found = self.averages(self.scores(predicted))
        if self.config.task == "regression":
            squared = (predicted - self.data.centers).square().mean(2)
            self._keep_best(self.averages({"loss": squared})["train_loss"])
        numbers = torch.stack(list(found.values()), dim=1).tolist()
        return [dict(zip(found, row, strict=True)) for row in numbers]

    def _keep_best(self, loss: Tensor) -> None:
        better = loss < self.best_loss
        self.best_loss.copy_(torch.where(better, loss, self.best_loss))
        for name, tensor in self.stack.state_dict().items():
            kept = getattr(self, f"best_{name}")
            kept.copy_(torch.where(better.view(-1, *[1] * (tensor.dim() - 1)), tensor, kept))

    @torch.no_grad()
    def use_best(self) -> None:
        """Go back to the weights with the lowest training loss."""
        for name, tensor in self.stack.state_dict().items():
            tensor.copy_(getattr(self, f"best_{name}"))

    def finish(self, folders: Sequence[Folder]) -> list[dict[str, Any]]:
        """Write every member's weights and predictions into its folder; the metrics of each."""
        metrics: list[dict[str, Any]] = [*self.evaluate()]
        if self.config.task == "regression":
            self.use_best()
            metrics = [
                last | {f"best_{name}": value for name, value in best.items()}
                for last, best in zip(metrics, self.evaluate(), strict=True)
            ]
        predicted = self.predict().cpu().numpy()
        for number, folder in enumerate(folders):
            save_weights(folder, self.stack.member(number))
            arrays = {
                "centers": self.data.centers.cpu().numpy().astype(np.uint8),
                "in_train": self.in_train[number].cpu().numpy(),
                "predicted": predicted[number].astype(np.uint8 if self.config.task == "classification" else np.float32),
            }
            if self.config.task == "rendering":
                arrays |= self._examples(number)
            with atomic_path(folder.artifact("predictions.npz")) as path, open(path, "wb") as file:
                np.savez_compressed(file, **arrays)
            metrics[number]["parameters"] = self.stack.num_parameters
            if self.config.task == "classification":
                folder.curves.sync()
                steps = first_step(folder.path / "curves.csv", "test_accuracy", REACHED)
                metrics[number]["steps_to_85"] = steps or {"low": self.config.steps, "high": None}
        return metrics

    @torch.no_grad()
    def _examples(self, number: int) -> dict[str, np.ndarray]:
        """A few test images of one member: painted probabilities and targets, [EXAMPLES, H, W], in 0..255."""
        test = (~self.in_train[number]).nonzero().flatten()
        chosen = test[torch.linspace(0, len(test) - 1, EXAMPLES).long().to(test.device)]
        self.stack.network.eval()
        painted = self.stack(self.inputs(chosen.expand(self.size, -1)))[0][number].sigmoid()
        self.stack.network.train()
        return {
            name: (255 * image.float()).round().byte().cpu().numpy()
            for name, image in (("painted", painted), ("targets", self.data.squares(chosen)))
        }


def schedule_of(config: Config) -> Schedule:
    """When a run evaluates, logs and writes checkpoints."""
    return Schedule(
        config.steps, config.evaluate_every, config.checkpoint_every, config.log_every, config.steps_per_call
    )


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train one configuration on one seed; its metrics."""
    module = Supervised([Config.of(config)], [int(config["seed"])], folder.execution)
    fit(module, folder, schedule_of(module.config))
    return module.finish([folder])[0]


def run_stack(
    configs: Sequence[Mapping[str, Any]], job: Workplace, needs: Sequence[Mapping[str, Path]]
) -> list[dict[str, Any]]:
    """Train configurations of one shape, each with its seed, as one stack; the metrics of each."""
    settings = [Config.of(config) for config in configs]
    module = Supervised(settings, [int(config["seed"]) for config in configs], job.execution)
    fit(module, job, schedule_of(settings[0]))
    return module.finish(job.members)


def make_module(configs: Sequence[Config], seeds: Sequence[int], execution: Execution) -> Supervised:
    """A module ready for `training_step`, without a Trainer around it."""
    module = Supervised(configs, seeds, execution).to(execution.device)
    module.configure_optimizers()
    module.on_fit_start()
    return module


def _timed_steps(module: Supervised, start: int, count: int) -> float:
    def wait() -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    began = time.perf_counter()
    module.training_step((start, start + count))
    wait()
    return (time.perf_counter() - began) / count


def seconds_per_step(config: Mapping[str, Any], size: int, execution: Execution) -> float:
    """Seconds of one step of a stack of `size` such runs, the median of a few ranges after a warm-up."""
    settings = Config.of(config)
    module = make_module([settings] * size, list(range(size)), execution)
    count = min(settings.steps_per_call, 8) if execution.device == "cpu" else settings.steps_per_call
    return statistics.median(_timed_steps(module, i * count, count) for i in range(7)[2:])


def first_step(curves: Path, name: str, level: float) -> int | None:
    """The first step at which a curve reaches a level from below, or None."""
    for row in read_rows(curves):
        if row["name"] == name and float(row["value"]) >= level:
            return int(row["step"])
    return None


def run_time_to(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Training time to a test accuracy of `target` percent: of the run `baseline` over the run `method`.

    The steps are read in the curves of the two runs, which may have been trained beside others; what a step of each
    takes is measured here, in turns, with nothing else running (the experiment is `exclusive`). A run that never got
    there gives a bound: at least the time of all its steps.
    """
    target, execution = TimeTo.of(config).target, folder.execution
    found = {name: read_json(needs[name] / "config.json") for name in ("method", "baseline")}
    settings = {name: Config.of(document["config"]) for name, document in found.items()}
    modules = {name: make_module([settings[name]], [int(found[name]["seed"])], execution) for name in found}
    count = settings["method"].steps_per_call
    rounds = [[_timed_steps(module, i * count, count) for module in modules.values()] for i in range(12)]
    step_seconds = dict(zip(modules, map(statistics.median, zip(*rounds[2:], strict=True)), strict=True))
    steps = {name: first_step(needs[name] / "curves.csv", "test_accuracy", target) for name in found}
    bounds = {name: (steps[name] or settings[name].steps) * seconds for name, seconds in step_seconds.items()}
    ratio = bounds["baseline"] / bounds["method"]
    metrics: dict[str, Any] = {f"{name}_step_ms": 1e3 * seconds for name, seconds in step_seconds.items()}
    for name, seconds in bounds.items():
        metrics[f"{name}_seconds"] = seconds if steps[name] else {"low": seconds, "high": None}
    if steps["method"]:
        metrics["time_ratio"] = ratio if steps["baseline"] else {"low": ratio, "high": None}
    elif steps["baseline"]:
        metrics["time_ratio"] = {"low": None, "high": ratio}
    return metrics
