"""Runs of one configuration with several seeds, trained as one batched model on the built-in digits.

A step of one such run is so small that a CPU core spends much of it between kernels. Here the networks are one network
with grouped convolutions (`common.models.convnet.stack_convnets`), its batches [n, S * C, H, W] hold S runs' images
side by side, and what `method.py` and `baselines.py` do before and after its forwards is mapped over the runs. Adam,
averages and decay work tensor by tensor and need not know. Each run has the draws, and so the numbers, that it has
alone, to rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from common.data.loader import DeviceImages
from common.models.convnet import ConvNet, StackedConvNet, stack_convnets
from common.runs import Execution, Workplace
from common.trainer import autocast, fit, save_weights
from papers.mixmatch import baselines
from papers.mixmatch.config import Config
from papers.mixmatch.data import Split, load_split
from papers.mixmatch.method import Draws, Loss, forward_batches
from papers.mixmatch.module import SemiSupervised, initial_model, metrics_of, run, schedule_of

METHODS = ("supervised", "pseudo-label", "mixmatch")
# Experiments that are stacked name `run` as this module's, so that the keys of their runs cover this file too.
__all__ = ["METHODS", "Stack", "run", "run_stack"]


def _join(splits: Sequence[Split]) -> Split:
    """The images of all runs, one run after the other."""

    def joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = zip(*parts, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    tests = [split.test for split in splits if split.test is not None]
    return Split(
        joined([split.labeled for split in splits]),
        np.concatenate([split.unlabeled for split in splits]),
        joined(tests) if tests else None,
        splits[0].num_classes,
        splits[0].scale,
    )


def _side_by_side(images: Tensor) -> Tensor:
    """Images of S runs [S, n, C, H, W] -> [n, S * C, H, W], as the stacked network takes them."""
    return images.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)


def _each(terms: Callable[..., Loss], logits: Tensor, *arguments: Tensor) -> Loss:
    """`terms` of each run: logits [n, S, L], every other argument [S, ...]; losses [S]."""
    # Guesses are left out: nobody reads them, and vmap wants tensors where some are None.
    losses = vmap(lambda *each: terms(*each)[:3], in_dims=(1, *(0,) * len(arguments)))(logits, *arguments)
    return Loss(*losses, None)


class Stack(SemiSupervised):
    """As `SemiSupervised`, for S runs that differ in their seeds alone: `model` and `average` are stacked networks,
    draws and losses have a dimension of runs, and data lie on the device one run after the other."""

    model: StackedConvNet
    average: StackedConvNet

    def __init__(self, config: Config, splits: Sequence[Split], seeds: Sequence[int], execution: Execution):
        """Raises ValueError for a method, or a network, that cannot be stacked."""
        if config.method not in METHODS or config.model != "convnet":
            raise ValueError(f"no stack for {config.method} with {config.model}: methods are {', '.join(METHODS)}")
        models = [initial_model(config, split, seed) for split, seed in zip(splits, seeds, strict=True)]
        network = stack_convnets([model for model in models if isinstance(model, ConvNet)])
        super().__init__(network, config, _join(splits), seeds[0], execution)
        self.seeds, self.size = seeds, len(seeds)
        self.labeled_sizes = [len(split.labeled[1]) for split in splits]
        self.unlabeled_sizes = [len(split.unlabeled) for split in splits]
        self.test_sizes = [0 if split.test is None else len(split.test[1]) for split in splits]

    def _first(self, sizes: Sequence[int]) -> Tensor:
        """Where each run's images begin, int64 [S, 1]."""
        return torch.tensor([sum(sizes[:i]) for i in range(self.size)], device=self.device)[:, None]

    def draw(self, steps: range) -> dict[str, Tensor]:
        """The draws of every run, [len(steps), S, ...]; indices count in the joined images."""
        runs = zip(self.seeds, self.labeled_sizes, self.unlabeled_sizes, strict=True)
        drawn = [self.draw_of(seed, steps, *sizes) for seed, *sizes in runs]
        draws = {name: torch.stack([each[name] for each in drawn], dim=1) for name in drawn[0]}
        for name, sizes in (("index", self.labeled_sizes), ("unlabeled_index", self.unlabeled_sizes)):
            if name in draws:
                draws[name] += self._first(sizes)
        return draws

    def loss(self, draws: Mapping[str, Tensor]) -> Loss:
        """The losses [S] of one step from its draws."""
        config, mixmatch, index = self.config, self.mixmatch, draws["index"]
        x = self.labeled.gather(index, self.augmentation, draws["augmentation"]).unflatten(0, index.shape)
        targets, count = self.labeled.labels[index], index.shape[1]
        if config.method == "supervised":
            logits = forward_batches(self.model, _side_by_side(x), [count])
            return _each(
                lambda logits, targets: baselines.supervised_terms(logits, targets, config.label_smoothing),
                logits,
                targets,
            )
        drawn = draws["unlabeled_augmentation"]
        views = self.unlabeled.gather(draws["unlabeled_index"][:, None], self.augmentation, drawn)
        views = views.unflatten(0, drawn.shape[:3])  # [S, K, B_u, C, H, W]
        num_views, size = views.shape[1:3]
        if config.method == "pseudo-label":
            batches = _side_by_side(torch.cat([x, views[:, 0]], dim=1))
            logits = forward_batches(self.model, batches, [count, size])

            def terms(logits: Tensor, targets: Tensor, weight: Tensor) -> Loss:
                logits_x, logits_u = logits.split([count, size])
                return baselines.pseudo_label_terms(
                    logits_x, logits_u, targets, weight, config.threshold, config.label_smoothing
                )

            return _each(terms, logits, targets, draws["weight"])
        teacher, student = (self.average, self.model) if config.guess_with == "ema" else (self.model, None)
        batches = _side_by_side(views.flatten(1, 2)).unflatten(0, (num_views, size))
        guesses = vmap(mixmatch.guess_from, in_dims=2)(mixmatch.view_logits(teacher, batches, student))
        mixing = Draws(draws["lam"], draws["permutation"])
        mixed, p = vmap(mixmatch.mixed)(x, targets, views, guesses, mixing)
        logits = mixmatch.mixed_logits(self.model, _side_by_side(mixed), (count, *(size,) * num_views))
        return _each(
            lambda logits, p, weight, guesses: mixmatch.terms(logits, p, count, weight, guesses),
            logits,
            p,
            draws["weight"],
            guesses,
        )

    @torch.no_grad()
    def evaluate(self) -> list[dict[str, float]]:  # type: ignore[override]
        """As of a run alone, for each."""
        self.copy_statistics()
        parts = {"test_error": (self.test, self.test_sizes), "train_error": (self.labeled, self.labeled_sizes)}
        errors = {name: self._errors(images, sizes) for name, (images, sizes) in parts.items() if images is not None}
        return [dict(zip(errors, row, strict=True)) for row in zip(*errors.values(), strict=True)]

    def _errors(self, images: DeviceImages, sizes: Sequence[int]) -> list[float]:
        """Errors in percent of each run's averaged network on its part of the images."""
        was_training = self.average.training
        self.average.eval()
        limits, first = torch.tensor(sizes, device=self.device)[:, None], self._first(sizes)
        wrong = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        with autocast(self.execution):
            for place in torch.arange(max(sizes), device=self.device).split(self.config.evaluation_batch_size):
                # A run with fewer images than another repeats its last one, which does not count.
                index = first + torch.minimum(place, limits - 1)
                x = images.gather(index.flatten()).unflatten(0, index.shape)
                found = self.average(_side_by_side(x)).argmax(2).T
                wrong += ((found != images.labels[index]) & (place < limits)).sum(1)
        self.average.train(was_training)
        return [100.0 * count / size for count, size in zip(wrong.tolist(), sizes, strict=True)]


def run_stack(
    configs: Sequence[Mapping[str, Any]], job: Workplace, needs: Sequence[Mapping[str, Path]]
) -> list[dict[str, Any]]:
    """Train runs of one configuration, each with its seed, as one stack; what `run` returns of each, {} where it
    diverged.

    Raises:
        ValueError: the configurations differ in more than the seed, or cannot be stacked.
    """
    settings, seeds = Config.of(configs[0]), [int(config["seed"]) for config in configs]
    if any(Config.of(config) != settings for config in configs):
        raise ValueError("only runs that differ in their seeds alone can be stacked")
    splits = [load_split(settings, seed, job.data_dir) for seed in seeds]
    module = Stack(settings, splits, seeds, job.execution)
    fit(module, job, schedule_of(settings))
    module.copy_statistics()
    metrics: list[dict[str, Any]] = []
    for number, (member, split) in enumerate(zip(job.members, splits, strict=True)):
        metrics.append({})
        if member.diverged is None:
            save_weights(member, module.average.member(number))
            metrics[-1] = metrics_of(settings, split, member)
    return metrics
