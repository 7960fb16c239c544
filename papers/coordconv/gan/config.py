"""Every setting of a GAN or VAE run, with the paper's full-scale values as defaults. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

CHOICES = {
    "model": ("gan", "vae"),
    "dataset": ("sort-of-clevr", "lsun-bedrooms"),
    "shapes": ("both", "square"),
    "generator": ("deconv", "deconv-coords", "coordconv"),
    "discriminator_coords": ("none", "first", "all"),
    "tanh": ("released", "always"),
}


@dataclass(frozen=True)
class Config:
    """Settings of one run (spec, sections 3-5 and 8).

    model: a GAN, or a VAE whose decoder is the generator with a sigmoid. dataset: Sort-of-CLEVR is generated (`images`
    of them; `objects` 1: blue only, 2: blue and red; `shapes`), LSUN is read from DATA_DIR (at most `images`; 0: all).
    canvas: side in pixels, a power of two from 16 up; objects shrink with it.
    generator: "deconv", "deconv-coords" (coordinates before every transposed convolution) or "coordconv" (1x1 layers on
    the tiled latent vector). discriminator_coords: before no, the first or all convolutions. generator_width,
    network_width: share of the paper's channels in generator or decoder, and in discriminator or encoder. latent: size
    of z. plain: the CoordConv generator as the paper writes it, through Conv2d on tiled z, and not the fast form.
    tanh: "released": a CoordConv generator's images go to the discriminator before the tanh, as in the official code.
    feature_matching: weight of that term (0: none). generator_steps: G's steps for each of D's, on the same batch.
    learning_rate: of the generator, or of the whole VAE. kl_weight: of the VAE's KL term.
    samples, paths, frames: images generated, and latent paths of so many frames, when the model is measured.
    cuda_graph: on one GPU, whether the whole iteration is captured in a CUDA graph.
    """

    model: str = "gan"
    dataset: str = "sort-of-clevr"
    images: int = 50_000
    objects: int = 2
    shapes: str = "both"
    canvas: int = 64

    generator: str = "coordconv"
    discriminator_coords: str = "none"
    generator_width: float = 1.0
    network_width: float = 1.0
    latent: int = 256
    plain: bool = False

    tanh: str = "released"
    feature_matching: float = 0.0
    generator_steps: int = 2
    steps: int = 156_250
    batch_size: int = 16
    learning_rate: float = 5e-4
    discriminator_learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    kl_weight: float = 1.0

    samples: int = 1000
    paths: int = 32
    frames: int = 16
    evaluate_every: int = 15_625
    checkpoint_every: int = 3125
    log_every: int = 625
    steps_per_call: int = 25
    evaluation_batch_size: int = 100
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} '{getattr(self, name)}'; there is {', '.join(known)}")
        zero_allowed = ("feature_matching", "kl_weight", "beta1", "beta2", "plain", "cuda_graph")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) or (field.name == "images" and self.dataset == "lsun-bedrooms" and value == 0):
                continue
            if not (isfinite(value) and (value > 0 or (value == 0 and field.name in zero_allowed))):
                raise ValueError(f"{field.name} must be a number above 0, not {value}")
        if self.objects > 2:
            raise ValueError(f"there are images of 1 or 2 objects, not {self.objects}")
        if self.canvas < 16 or self.canvas & (self.canvas - 1):
            raise ValueError(f"canvas must be a power of two from 16 up, not {self.canvas}")
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} lies in [0, 1), not {getattr(self, name)}")
        for name in ("generator_width", "network_width"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a share of the paper's channels, at most 1, not {getattr(self, name)}")
        if self.frames < 3:
            raise ValueError(f"a latent path needs at least 3 frames, not {self.frames}")
        if self.model == "vae" and (self.feature_matching or self.discriminator_coords != "none"):
            raise ValueError("a VAE has no discriminator: leave feature_matching and discriminator_coords out")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Config":
        """From a run's config (its `seed` is left out); TypeError names a key that is no setting."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known - {"seed"}:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**{name: value for name, value in values.items() if name in known})
