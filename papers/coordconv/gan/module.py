"""The LightningModules of the GAN and the VAE, and the run function of their experiments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.capture import CudaCapture, StepGraph
from common.files import atomic_path
from common.random import Stream, seeded
from common.runs import Execution, Folder
from common.trainer import Schedule, autocast, fit, save_weights
from papers.coordconv.gan.config import Config
from papers.coordconv.gan.data import FolderImages, SortOfClevr, read_folder
from papers.coordconv.gan.measures import Layout, distribution, look, smoothness
from papers.coordconv.gan.networks import build_discriminator, build_encoder, build_generator

PICTURES, PICTURED_PATHS = 64, 6
"""Samples and latent paths that a run keeps as images."""


def load_images(
    config: Config, seed: int, data_dir: Path | None, stream: str = "objects"
) -> SortOfClevr | FolderImages:
    """The images of `config.dataset`, on the CPU. UserError where LSUN is not there."""
    if config.dataset == "lsun-bedrooms":
        return FolderImages(read_folder(data_dir, config.canvas, config.images))
    return SortOfClevr(seed, config.images, config.canvas, config.objects, config.shapes, stream=stream)


class Generative(pl.LightningModule):
    """What GAN and VAE share: images on the device, ranges of steps, and the measures of a generator.

    As in every module that `common.trainer.fit` trains, all random numbers of a range of steps are drawn before the
    first of them (`draw`), and a step (`iterate`) is a function of tensors that a CUDA graph can capture.
    """

    def __init__(self, config: Config, images: SortOfClevr | FolderImages, seed: int, execution: Execution):
        super().__init__()
        self.automatic_optimization = False
        self.config, self.images, self.seed, self.execution = config, images, seed, execution
        self.step, self.samples_per_step = 0, config.batch_size
        with seeded(Stream(seed, "initialisation")):
            self.generator = build_generator(config)
        self.layout = None
        if config.dataset == "sort-of-clevr":
            self.layout = Layout(config.canvas, config.objects, config.shapes)

    def adam(self, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        """Adam with the paper's betas (spec 5)."""
        betas, on_gpu = (self.config.beta1, self.config.beta2), self.device.type == "cuda"
        return torch.optim.Adam(parameters, learning_rate, betas, fused=True, capturable=on_gpu)

    def on_fit_start(self) -> None:
        """Move the data to the device once; nothing is copied to it afterwards."""
        self.images = self.images.to(self.device)
        self.to(memory_format=torch.channels_last)
        if self.execution.compile:
            for network in self.children():
                network.compile()
        capture = CudaCapture(self.device) if self.device.type == "cuda" and self.config.cuda_graph else None
        self.one_step = StepGraph(self.iterate, capture)

    def stream(self, name: str) -> Stream:
        """A stream of the run's seed on the module's device."""
        return Stream(self.seed, name, self.device)

    def draw(self, steps: range) -> dict[str, Tensor]:
        """Everything random of `steps`, each tensor with a leading dimension len(steps)."""
        raise NotImplementedError

    def iterate(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step from its draws (one row of each tensor of `draw`); its losses. Reads nothing from the device."""
        raise NotImplementedError

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        """The steps range(*bounds); the losses of the last one."""
        steps = range(*bounds)
        draws = self.draw(steps)
        outputs: dict[str, Tensor] = {}
        for i in range(len(steps)):
            outputs = self.one_step({name: tensor[i] for name, tensor in draws.items()})
        return outputs

    def latent(self, name: str, count: int) -> Tensor:
        """`count` latent vectors from the model's prior, float32 [count, latent], always the same for a name."""
        raise NotImplementedError

    def squash(self, raw: Tensor) -> Tensor:
        """The generator's output as an image in [-1, 1]."""
        raise NotImplementedError

    @torch.no_grad()
    def generate(self, z: Tensor) -> Tensor:
        """Images of latent vectors [N, latent], with batch norm's running statistics: [N, 3, H, W] in [-1, 1]."""
        was_training = self.training
        self.eval()
        with autocast(self.execution):
            batches = [self.squash(self.generator(part).float()) for part in z.split(self.config.evaluation_batch_size)]
        self.train(was_training)
        return torch.cat(batches)

    def path_ends(self, count: int) -> tuple[Tensor, Tensor]:
        """Where `count` latent paths begin and end, each [count, latent]."""
        return self.latent("path begins", count), self.latent("path ends", count)

    def paths(self) -> Tensor:
        """Straight latent paths, [paths * frames, latent], one path after another."""
        begin, end = self.path_ends(self.config.paths)
        share = torch.linspace(0, 1, self.config.frames, device=self.device)[None, :, None]
        return (begin[:, None] * (1 - share) + end[:, None] * share).flatten(0, 1)

    def real(self, count: int) -> Tensor:
        """The data set's first images, as many as there are, for comparison."""
        return self.images.gather(torch.arange(min(count, len(self.images)), device=self.device))

    def measured_images(self) -> tuple[Tensor, Tensor]:
        """Images of `samples` fixed latent vectors, and the frames of the latent paths."""
        return self.generate(self.latent("samples", self.config.samples)), self.generate(self.paths())

    def measure(self, images: Tensor, moving: Tensor) -> dict[str, float]:
        """Numbers of generated images and of the frames of latent paths (`papers.coordconv.gan.measures`)."""
        numbers = {"pixel_std": float(images.std(0).mean())}
        if self.layout is not None:
            numbers |= distribution(look(images, self.layout), self.layout)
            numbers |= smoothness(look(moving, self.layout), self.layout, self.config.frames)
        return numbers

    def evaluate(self) -> dict[str, float]:
        """Measures of the generator as it is."""
        return self.measure(*self.measured_images())

    def report(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The measures with the data's own beside them (over as many images), and small arrays for the pictures."""
        images, moving = self.measured_images()
        real = self.real(self.config.samples)
        numbers = {**self.measure(images, moving), "data_pixel_std": float(real.std(0).mean())}
        arrays = {
            "samples": as_pixels(images[:PICTURES]),
            "data": as_pixels(real[:PICTURES]),
            "mean_sample": as_pixels(images.mean(0, keepdim=True))[0],
            "mean_data": as_pixels(real.mean(0, keepdim=True))[0],
            "paths": as_pixels(moving[: PICTURED_PATHS * self.config.frames]),
            "frames": np.array(self.config.frames),
        }
        if self.layout is not None:
            scene = look(real, self.layout)
            found = distribution(scene, self.layout)
            numbers |= {f"data_{name}": value for name, value in found.items() if name.startswith("entropy")}
            arrays["centers"] = look(images, self.layout).centers.astype(np.float32)
            arrays["data_centers"] = scene.centers.astype(np.float32)
            arrays["size"] = np.array(self.layout.size)
        return numbers, arrays


def as_pixels(images: Tensor) -> np.ndarray:
    """[N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3]."""
    pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).cpu().numpy()


class GAN(Generative):
    """The non-saturating DCGAN of spec 3: one step of D, then `generator_steps` of G on the same batch and z.

    Every step is a forward pass of its own, and real and generated images go through D apart, each with the batch-norm
    statistics of its own batch.
    """

    def __init__(self, config: Config, images: SortOfClevr | FolderImages, seed: int, execution: Execution):
        super().__init__(config, images, seed, execution)
        with seeded(Stream(seed, "discriminator initialisation")):
            self.discriminator = build_discriminator(config)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for each of the two networks: [D's, G's]."""
        self.d_parameters, self.g_parameters = list(self.discriminator.parameters()), list(self.generator.parameters())
        self.d_optimizer = self.adam(self.d_parameters, self.config.discriminator_learning_rate)
        self.g_optimizer = self.adam(self.g_parameters, self.config.learning_rate)
        return [self.d_optimizer, self.g_optimizer]

    def latent(self, name: str, count: int) -> Tensor:
        """z ~ U(-1, 1)."""
        return self._uniform(name, torch.arange(count, device=self.device), 1)[:, 0]

    def _uniform(self, name: str, steps: Tensor, count: int) -> Tensor:
        drawn = self.stream(name).uniform(steps, count * self.config.latent)
        return (2 * drawn - 1).unflatten(-1, (count, self.config.latent))

    def squash(self, raw: Tensor) -> Tensor:
        """Saved samples are squashed in every variant."""
        return torch.tanh(raw)

    def fake(self, z: Tensor) -> Tensor:
        """What D sees: with `tanh="released"` a CoordConv generator's output before its tanh (spec 8)."""
        raw = self.generator(z)
        if self.config.generator == "coordconv" and self.config.tanh == "released":
            return raw
        return torch.tanh(raw)

    def draw(self, steps: range) -> dict[str, Tensor]:
        """Indices of the batch, z, and, for feature matching, indices of a batch in another order."""
        config, population = self.config, len(self.images)
        numbers = torch.arange(steps.start, steps.stop, device=self.device)
        draws = {
            "index": self.stream("order").epochs(steps, config.batch_size, population),
            "z": self._uniform("latent", numbers, config.batch_size),
        }
        if config.feature_matching:
            draws["other"] = self.stream("other order").epochs(steps, config.batch_size, population)
        return draws

    def iterate(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One iteration; the losses of its D step and of its last G step."""
        d_loss = self.discriminator_step(self.images.gather(draws["index"]), draws["z"])
        other = self.images.gather(draws["other"]) if "other" in draws else None
        for _ in range(self.config.generator_steps):
            g_loss = self.generator_step(draws["z"], other)
        return {"d_loss": d_loss, "g_loss": g_loss}

    def discriminator_step(self, real: Tensor, z: Tensor) -> Tensor:
        """BCE(D(x), 1) + BCE(D(G(z)), 0), with the gradient for D alone."""
        with autocast(self.execution):
            with torch.no_grad():
                fake = self.fake(z)
            loss = F.softplus(-self.discriminator(real).float()).mean()
            loss = loss + F.softplus(self.discriminator(fake).float()).mean()
        self.d_optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.d_parameters)
        self.d_optimizer.step()
        return loss.detach()

    def generator_step(self, z: Tensor, other: Tensor | None) -> Tensor:
        """BCE(D(G(z)), 1), and with `other` images mean |f(other) - f(G(z))|; with the gradient for G alone."""
        with autocast(self.execution):
            fake = self.fake(z)
            if other is None:
                loss = F.softplus(-self.discriminator(fake).float()).mean()
            else:
                features = self.discriminator.features(fake)
                with torch.no_grad():
                    wanted = self.discriminator.features(other)
                loss = F.softplus(-self.discriminator.judge(features).float()).mean()
                loss = loss + self.config.feature_matching * (wanted - features).float().abs().mean()
        self.g_optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.g_parameters)
        self.g_optimizer.step()
        return loss.detach()


class VAE(Generative):
    """A VAE whose decoder is one of the GAN's generators with a sigmoid: binary cross entropy plus KL, in nats.

    Latent paths run between the means of q(z | image) for images that were not trained on.
    """

    def __init__(self, config: Config, images: SortOfClevr | FolderImages, seed: int, execution: Execution):
        super().__init__(config, images, seed, execution)
        with seeded(Stream(seed, "encoder initialisation")):
            self.encoder = build_encoder(config)
        self.unseen = images
        if config.dataset == "sort-of-clevr":
            few = 2 * config.paths
            self.unseen = SortOfClevr(seed, few, config.canvas, config.objects, config.shapes, stream="unseen objects")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam for encoder and decoder."""
        self.optimizer = self.adam(list(self.parameters()), self.config.learning_rate)
        return self.optimizer

    def latent(self, name: str, count: int) -> Tensor:
        """z ~ N(0, 1)."""
        return self.stream(name).normal(torch.arange(count, device=self.device), (self.config.latent,))

    def squash(self, raw: Tensor) -> Tensor:
        """2 sigmoid(raw) - 1: the mean of the pixels' distribution in [-1, 1]."""
        return torch.tanh(raw / 2)

    @torch.no_grad()
    def path_ends(self, count: int) -> tuple[Tensor, Tensor]:
        """Means of q(z | image) of pairs of unseen images, each [count, latent]."""
        pair = torch.arange(2 * count, device=self.device) % len(self.unseen)
        with autocast(self.execution):
            mean, _ = self.encoder(self.unseen.to(self.device).gather(pair))
        begin, end = mean.float().chunk(2)
        return begin, end

    def draw(self, steps: range) -> dict[str, Tensor]:
        """Indices of the batch and the noise of q's samples."""
        numbers, batch = torch.arange(steps.start, steps.stop, device=self.device), self.config.batch_size
        return {
            "index": self.stream("order").epochs(steps, batch, len(self.images)),
            "noise": self.stream("noise").normal(numbers, (batch, self.config.latent)),
        }

    def iterate(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step; reconstruction and KL in nats an image."""
        x = self.images.gather(draws["index"])
        with autocast(self.execution):
            mean, log_variance = (part.float() for part in self.encoder(x))
            logits = self.generator(mean + torch.exp(log_variance / 2) * draws["noise"]).float()
        target = (x + 1) / 2
        reconstruction = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(x)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        loss = reconstruction + self.config.kl_weight * divergence
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"reconstruction": reconstruction.detach(), "kl": divergence.detach()}


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train one GAN or VAE on one seed; the measures at the end. Writes `artifacts/gan.npz`."""
    settings, seed = Config.of(config), int(config["seed"])
    images = load_images(settings, seed, folder.data_dir)
    model = GAN if settings.model == "gan" else VAE
    module = model(settings, images, seed, folder.execution)
    schedule = Schedule(
        settings.steps, settings.evaluate_every, settings.checkpoint_every, settings.log_every, settings.steps_per_call
    )
    fit(module, folder, schedule)
    save_weights(folder, module.state_dict())
    # Lightning leaves the module on the CPU.
    module.to(folder.execution.device)
    module.images = images.to(module.device)
    numbers, arrays = module.report()
    with atomic_path(folder.artifact("gan.npz")) as path, open(path, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return numbers
