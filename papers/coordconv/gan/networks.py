"""Generators, discriminator and encoder (spec 4): the GAN's own, and the VAE that is built from them."""

from math import log2

import torch.nn.functional as F
from torch import Tensor, nn

from papers.coordconv.gan.config import Config
from papers.coordconv.method import AddCoords, coordinates, tile
from papers.coordconv.tf_layers import BatchNorm, Dense, SameConv2d, SameConvTranspose2d

START = 4
"""Side of the map that the deconvolutions start from and the discriminator's convolutions end at."""
POINTWISE = (512, 256, 256, 128, 64)
ENCODER = (32, 64, 128, 256)


def scaled(channels: int, width: float) -> int:
    """A share of the paper's channels, at least 1."""
    return max(1, round(channels * width))


def pyramid(canvas: int, width: float) -> list[int]:
    """Channels between a 4 x 4 map and the canvas, narrowest first: 64, 128, 256, 512 for a canvas of 64."""
    return [scaled(64 * 2**i, width) for i in range(int(log2(canvas // START)))]


class DeconvGenerator(nn.Module):
    """The baseline: a dense layer to 4 x 4, then 5 x 5 transposed convolutions of stride 2 with batch norm and ReLU.

    6,413,315 parameters at latent 256, canvas 64 and full width. coords: AddCoords before every transposed convolution
    (for LSUN). Kernels start Glorot-uniform, as Keras's layers do by default.
    """

    def __init__(self, latent: int = 256, canvas: int = 64, width: float = 1.0, coords: bool = False) -> None:
        super().__init__()
        channels = pyramid(canvas, width)[::-1]
        extra = 2 if coords else 0
        self.add_coords = AddCoords() if coords else nn.Identity()
        self.dense = Dense(latent, START * START * channels[0], "glorot")
        self.norms = nn.ModuleList(BatchNorm(c) for c in channels)
        pairs = zip(channels, [*channels[1:], 3], strict=True)
        self.deconvs = nn.ModuleList(SameConvTranspose2d(a + extra, b, 5, 2, "glorot") for a, b in pairs)

    def forward(self, z: Tensor) -> Tensor:
        """z [B, latent] -> images before the tanh or sigmoid, [B, 3, canvas, canvas]."""
        x = self.dense(z).view(len(z), START, START, -1).permute(0, 3, 1, 2)
        for norm, deconv in zip(self.norms, self.deconvs, strict=True):
            x = deconv(self.add_coords(F.relu(norm(x))))
        return x


class CoordConvGenerator(nn.Module):
    """z is tiled over the canvas, coordinates are added, and 1 x 1 and 3 x 3 convolutions paint each pixel (spec 4).

    444,931 parameters at latent 256 and full width. The first layer is split (spec 11): W [z, coords] + b is W_z z + b,
    once a sample, plus W_c coords, once a grid; and the 1 x 1 layers are matrix products over all pixels. `plain` does
    the same through AddCoords and nn.Conv2d on the tiled z: equal to 1e-5, from the same state_dict.
    """

    def __init__(self, latent: int = 256, canvas: int = 64, width: float = 1.0, plain: bool = False) -> None:
        super().__init__()
        self.latent, self.canvas, self.plain = latent, canvas, plain
        channels = [scaled(c, width) for c in POINTWISE]
        pairs = zip([latent + 2, *channels[:-1]], channels, strict=True)
        self.pointwise = nn.ModuleList(SameConv2d(a, b, 1) for a, b in pairs)
        self.spatial = nn.ModuleList(SameConv2d(channels[-1], channels[-1], 3) for _ in range(2))
        self.output = SameConv2d(channels[-1], 3, 1)
        self.add_coords = AddCoords()
        self.grid: Tensor
        grid = coordinates((canvas, canvas)).flatten(1).T.contiguous()
        self.register_buffer("grid", grid, persistent=False)  # [pixels, 2]

    def forward(self, z: Tensor) -> Tensor:
        """z [B, latent] -> images before the tanh or sigmoid, [B, 3, canvas, canvas]."""
        x = self._plain_pointwise(z) if self.plain else self._fast_pointwise(z)
        for layer in self.spatial:
            x = F.relu(layer(x))
        return self.output(x)

    def _plain_pointwise(self, z: Tensor) -> Tensor:
        x = self.add_coords(tile(z, (self.canvas, self.canvas)))
        for layer in self.pointwise:
            x = F.relu(layer(x))
        return x

    def _fast_pointwise(self, z: Tensor) -> Tensor:
        # As `method.split_conv1x1`, but with channels last: the pixels' largest map is never turned around.
        first, *others = self.pointwise
        weight = first.weight.flatten(1)
        of_sample = F.linear(z, weight[:, : self.latent], first.bias)
        of_grid = F.linear(self.grid, weight[:, self.latent :])
        x = F.relu(of_sample[:, None] + of_grid)  # [B, pixels, channels]
        for layer in others:
            x = F.relu(F.linear(x, layer.weight.flatten(1), layer.bias))
        return x.unflatten(1, (self.canvas, self.canvas)).permute(0, 3, 1, 2)


class Discriminator(nn.Module):
    """5 x 5 convolutions of stride 2 with leaky ReLU 0.2, batch norm on all but the first, and a dense layer.

    4,316,545 parameters at canvas 64 and full width. coords: "none", "first" (AddCoords at the input: 4,319,745) or
    "all" (before every convolution, for LSUN).
    """

    def __init__(self, canvas: int = 64, width: float = 1.0, coords: str = "none") -> None:
        super().__init__()
        channels = pyramid(canvas, width)
        self.with_coords = [coords == "all" or (coords == "first" and i == 0) for i in range(len(channels))]
        self.add_coords = AddCoords()
        pairs = zip(self.with_coords, [3, *channels[:-1]], channels, strict=True)
        self.convs = nn.ModuleList(SameConv2d(a + 2 * extra, b, 5, 2, "glorot") for extra, a, b in pairs)
        self.norms = nn.ModuleList(BatchNorm(c) for c in channels[1:])
        self.dense = Dense(START * START * channels[-1], 1, "glorot")

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, canvas, canvas] -> what the last layer sees, [B, 16 * channels] (for feature matching)."""
        x = images
        norms = [nn.Identity(), *self.norms]
        for extra, conv, norm in zip(self.with_coords, self.convs, norms, strict=True):
            x = F.leaky_relu(norm(conv(self.add_coords(x) if extra else x)), 0.2)
        return x.permute(0, 2, 3, 1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, canvas, canvas] -> logits of being real, [B]."""
        return self.judge(self.features(images))

    def judge(self, features: Tensor) -> Tensor:
        """The last layer: [B, 16 * channels] -> logits [B]."""
        return self.dense(features)[:, 0]


class Encoder(nn.Module):
    """The VAE's: four 3 x 3 convolutions of stride 2 (32, 64, 128, 256 channels) with ReLU, and a dense layer."""

    def __init__(self, latent: int = 8, canvas: int = 64, width: float = 1.0) -> None:
        super().__init__()
        channels = [scaled(c, width) for c in ENCODER]
        pairs = zip([3, *channels[:-1]], channels, strict=True)
        self.convs = nn.ModuleList(SameConv2d(a, b, 3, 2) for a, b in pairs)
        self.dense = Dense((canvas // 16) ** 2 * channels[-1], 2 * latent, "glorot")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, canvas, canvas] -> mean and log-variance of q(z | image), each [B, latent]."""
        x = images
        for conv in self.convs:
            x = F.relu(conv(x))
        mean, log_variance = self.dense(x.permute(0, 2, 3, 1).flatten(1)).chunk(2, 1)
        return mean, log_variance


def build_generator(config: Config) -> nn.Module:
    """The generator, or the VAE's decoder, of `config.generator`."""
    latent, canvas, width = config.latent, config.canvas, config.generator_width
    if config.generator == "coordconv":
        return CoordConvGenerator(latent, canvas, width, config.plain)
    return DeconvGenerator(latent, canvas, width, coords=config.generator == "deconv-coords")


def build_discriminator(config: Config) -> Discriminator:
    """The GAN's discriminator."""
    return Discriminator(config.canvas, config.network_width, config.discriminator_coords)


def build_encoder(config: Config) -> Encoder:
    """The VAE's encoder."""
    return Encoder(config.latent, config.canvas, config.network_width)
