"""The networks of the three supervised tasks (spec 4), each with the paper's exact number of parameters."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, log2, pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from papers.coordconv import fast
from papers.coordconv.method import AddCoords, tile
from papers.coordconv.tf_layers import BatchNorm, Dense, SameConv2d, SameConvTranspose2d


def bands(canvas: int) -> int:
    """Frequencies of Fourier features that tell neighbouring pixels of a canvas apart: the highest turns by 90 degrees
    or a little more from one pixel to the next."""
    return max(1, ceil(log2(canvas)))


def channels_last(x: Tensor) -> Tensor:
    """The same images [N, C, H, W] with channels last in memory; convolutions on a CPU keep that and are faster for it.

    torch's own `memory_format` neither works under vmap nor takes effect on a single channel.
    """
    last = x.movedim(1, -1)
    return last.flatten().view(last.shape).movedim(-1, 1)


class Entry(nn.Module):
    """How the pixel (x, y) enters a network: [B, 2] -> [B, channels].

    Args:
        coordinates: "scaled": 2 v / (canvas - 1) - 1; "raw": as it is (the released code); "fourier": sin and cos of
            pi/2 * 2^k times the scaled coordinate.
        canvas: pixels of a side.
    """

    def __init__(self, coordinates: str, canvas: int) -> None:
        super().__init__()
        self.coordinates, self.canvas = coordinates, canvas
        self.channels = 4 * bands(canvas) if coordinates == "fourier" else 2

    def forward(self, xy: Tensor) -> Tensor:
        """Pixels [B, 2] -> [B, channels]; of Fourier features x's come first, sin and cos of a frequency together."""
        if self.coordinates == "raw":
            return xy
        scaled = xy * (2 / (self.canvas - 1)) - 1
        if self.coordinates == "scaled":
            return scaled
        waves = [pi / 2 * 2**k * scaled for k in range(bands(self.canvas))]
        return torch.stack([wave for phase in waves for wave in (phase.sin(), phase.cos())], dim=-1).flatten(1)


class PixelNetwork(nn.Module):
    """CoordConv for classification: the vector at every pixel, coordinates, 1x1 convolutions 32m, 32m, 64m, 64m, 1.

    7,553 parameters with m = 1, 29,441 with m = 2. `coords=None` leaves the coordinates out: all pixels are then alike.
    """

    def __init__(self, entry: Entry, canvas: int, multiplier: int, coords: AddCoords | None, plain: bool) -> None:
        super().__init__()
        self.entry, self.canvas, self.coords, self.plain = entry, canvas, coords, plain
        widths = [entry.channels + (coords.extra_channels if coords else 0)]
        widths += [width * multiplier for width in (32, 32, 64, 64)] + [1]
        self.convs = nn.ModuleList(SameConv2d(a, b, 1) for a, b in pairwise(widths))

    def forward(self, xy: Tensor) -> Tensor:
        """Pixels [B, 2] -> logits [B, canvas, canvas]."""
        size = (self.canvas, self.canvas)
        if not self.plain:
            weights = [conv.weight.flatten(1) for conv in self.convs]
            biases = [conv.bias for conv in self.convs]
            vectors = self.entry(xy)
            if self.coords is None:
                # All pixels are alike: one of them is computed.
                for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                    vectors = F.relu(F.linear(vectors, weight, bias))
                return tile(F.linear(vectors, weights[-1], biases[-1])[:, 0], size)
            coords = self.coords.channels(size, vectors).flatten(1)
            return fast.pixel_layers(vectors, coords, weights, biases).unflatten(1, size)
        x = tile(self.entry(xy), size)
        if self.coords is not None:
            x = self.coords(x)
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        return self.convs[-1](x).squeeze(1)


class Decoder(nn.Module):
    """The baseline: a vector as a 1x1 image, doubled until it is the canvas; BatchNorm and ReLU after all but the last.

    Channels 64m, 64m, 64m, 32m, 32m, 1 for a canvas of 64; a smaller one drops the first layers (32: 64m, 64m, 32m,
    32m, 1), a larger one has more of them.

    Args:
        upsample: False: transposed convolutions with stride 2. True: nearest-neighbour doubling and a convolution.
        coords: what appends coordinates before each convolution (with upsample).
    """

    def __init__(
        self,
        entry: Entry,
        canvas: int,
        multiplier: int,
        kernel: int,
        upsample: bool,
        coords: AddCoords | None,
        padding: str,
        plain: bool,
    ) -> None:
        super().__init__()
        self.entry, self.canvas, self.upsample, self.coords, self.plain = entry, canvas, upsample, coords, plain
        depth = canvas.bit_length() - 1
        widths = [64] * max(0, depth - 3) + [32, 32, 1][-depth:]
        widths = [entry.channels, *(width * multiplier for width in widths[:-1]), 1]
        pairs = list(pairwise(widths))
        extra = coords.extra_channels if coords else 0
        self.convs = nn.ModuleList(
            SameConv2d(a + extra, b, kernel, padding_mode=padding) if upsample else SameConvTranspose2d(a, b, kernel)
            for a, b in pairs
        )
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths[1:-1])

    def forward(self, xy: Tensor) -> Tensor:
        """Pixels [B, 2] -> logits [B, canvas, canvas]."""
        if not (self.plain or self.upsample):
            layers = [(conv.weight, conv.bias) for conv in self.convs]
            norms = [(norm.weight, norm.bias, norm.running_mean, norm.running_var) for norm in self.norms]
            norm = self.norms[0]
            return fast.decoder(self.entry(xy), layers, norms, self.training, norm.momentum, norm.eps)
        x = self.entry(xy)[:, :, None, None]
        if not self.plain:
            x = channels_last(x)
        for i, conv in enumerate(self.convs):
            if self.upsample:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            if self.coords is not None:
                x = self.coords(x)
            x = conv(x)
            if i < len(self.norms):
                x = F.relu(self.norms[i](x))
        return x.squeeze(1)


class Perceptron(nn.Module):
    """Dense layers 64m, 64m and one output for each pixel of the canvas, ReLU between."""

    def __init__(self, entry: Entry, canvas: int, multiplier: int) -> None:
        super().__init__()
        self.entry, self.canvas = entry, canvas
        widths = [entry.channels, 64 * multiplier, 64 * multiplier, canvas * canvas]
        self.layers = nn.ModuleList(Dense(a, b) for a, b in pairwise(widths))

    def forward(self, xy: Tensor) -> Tensor:
        """Pixels [B, 2] -> logits [B, canvas, canvas]."""
        x = self.entry(xy)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x).unflatten(-1, (self.canvas, self.canvas))


class Renderer(nn.Module):
    """CoordConv for rendering: a PixelNetwork finds the centre, five 'same' convolutions make a square of it.

    Their channels are 8m, 8m, 16m, 16m, 1, with ReLU between; the PixelNetwork is always of m = 1.

    Args:
        centre: the PixelNetwork.
        softmax: whether its logits become probabilities over all pixels before the convolutions.
    """

    def __init__(self, centre: PixelNetwork, multiplier: int, kernel: int, softmax: bool, padding: str) -> None:
        super().__init__()
        self.centre, self.softmax, self.plain = centre, softmax, centre.plain
        widths = [1, *(width * multiplier for width in (8, 8, 16, 16)), 1]
        self.convs = nn.ModuleList(SameConv2d(a, b, kernel, padding_mode=padding) for a, b in pairwise(widths))

    def forward(self, xy: Tensor, with_centre: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Pixels [B, 2] -> logits [B, canvas, canvas]; with_centre: also the centre's, before the softmax."""
        centre = self.centre(xy)
        x = centre.flatten(1).softmax(1).view_as(centre) if self.softmax else centre
        x = x[:, None] if self.plain else channels_last(x[:, None])
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        logits = self.convs[-1](x).squeeze(1)
        return (logits, centre) if with_centre else logits


class CoordRegressor(nn.Module):
    """CoordConv for regression: coordinates, 1x1 convolutions 8m, 8m, 8m, 3x3 8m, 3x3 2, global pooling; 906 weights.

    Args:
        coords: None leaves the coordinates out.
        pooling: "max" or "mean" over all pixels.
        relu: ReLU between the convolutions; the paper's network has none.
    """

    def __init__(
        self, multiplier: int, coords: AddCoords | None, pooling: str, relu: bool, padding: str, plain: bool
    ) -> None:
        super().__init__()
        self.coords, self.pooling, self.relu, self.plain = coords, pooling, relu, plain
        widths = [1 + (coords.extra_channels if coords else 0), *[8 * multiplier] * 4, 2]
        self.convs = nn.ModuleList(
            SameConv2d(a, b, kernel, padding_mode=padding)
            for a, b, kernel in zip(widths, widths[1:], (1, 1, 1, 3, 3), strict=False)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 1, H, W] -> (x, y) / canvas, [B, 2]."""
        if self.plain or self.relu:
            x = self._layers(image)
        else:
            # Without ReLU the layers are affine: f(image) = f(0) + L image, where the coordinates are in f(0) alone and
            # L needs two convolutions, the second last with the product of the 1x1 kernels before it.
            first, second, third, fourth, last = self.convs
            mixed = third.weight[:, :, 0, 0] @ second.weight[:, :, 0, 0] @ first.weight[:, :1, 0, 0]
            kernel = (fourth.weight * mixed[:, :, None]).sum(1, keepdim=True)
            x = last.without_bias(fourth.without_bias(channels_last(image), kernel))
            x = x + self._layers(torch.zeros_like(image[:1]))
        return x.amax((-2, -1)) if self.pooling == "max" else x.mean((-2, -1))

    def _layers(self, image: Tensor) -> Tensor:
        """Images [B, 1, H, W] -> maps [B, 2, H, W]."""
        x = image if self.coords is None else self.coords(image)
        if not self.plain:
            x = channels_last(x)
        for conv in self.convs[:-1]:
            x = conv(x)
            x = F.relu(x) if self.relu else x
        return self.convs[-1](x)


class UniformRegressor(nn.Module):
    """The baseline for regression on the uniform split: three 3x3 convolutions of 16m with max-pooling, a fourth
    without, dense 64, dense 2; 72,850 parameters at 64x64 with m = 1."""

    def __init__(self, canvas: int, multiplier: int, padding: str, plain: bool) -> None:
        super().__init__()
        self.plain = plain
        width, side = 16 * multiplier, canvas // 8
        self.convs = nn.ModuleList(SameConv2d(a, width, 3, padding_mode=padding) for a in (1, width, width, width))
        self.dense = Dense(side * side * width, 64)
        self.head = Dense(64, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 1, H, W] -> (x, y) / canvas, [B, 2]."""
        x = image if self.plain else channels_last(image)
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            if i < 3:
                x = F.max_pool2d(x, 2)
        # TensorFlow's order: channels vary fastest.
        return self.head(F.relu(self.dense(x.movedim(1, -1).flatten(1))))


class QuadrantRegressor(nn.Module):
    """The baseline for regression on the quadrant split: nine convolutions, five with stride 2, global average; 12,914
    parameters with m = 1."""

    # Kernel, stride, and what follows: BatchNorm before or after the ReLU.
    LAYERS = (
        (5, 2, "relu"), (1, 1, "relu-norm"), (3, 1, "relu"), (3, 2, "relu"), (3, 2, "norm-relu"), (3, 2, "relu"),
        (1, 1, "relu"), (3, 2, "relu"), (3, 1, "relu"),
    )  # fmt: skip

    def __init__(self, multiplier: int, padding: str, plain: bool) -> None:
        super().__init__()
        self.plain = plain
        width = 16 * multiplier
        widths = [1, *[width] * 8, 2]
        self.convs = nn.ModuleList(
            SameConv2d(a, b, kernel, stride, padding_mode=padding)
            for a, b, (kernel, stride, _) in zip(widths, widths[1:], self.LAYERS, strict=False)
        )
        self.norms = nn.ModuleList(BatchNorm(width) for _, _, after in self.LAYERS if "norm" in after)

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 1, H, W] -> (x, y) / canvas, [B, 2]."""
        x, norms = image if self.plain else channels_last(image), iter(self.norms)
        for conv, (_, _, after) in zip(self.convs, self.LAYERS, strict=True):
            x = conv(x)
            for step in filter(None, after.split("-")):
                x = F.relu(x) if step == "relu" else next(norms)(x)
        return x.mean((-2, -1))


NETWORKS: dict[str, Sequence[str]] = {
    "classification": ("coordconv", "no-coords", "fourier", "deconv", "upsample", "upsample-coordconv", "mlp"),
    "rendering": ("coordconv", "no-coords", "fourier", "deconv", "upsample", "upsample-coordconv", "mlp"),
    "regression": ("coordconv", "no-coords", "fourier", "conv-uniform", "conv-quadrant"),
}


def build(config: Any) -> nn.Module:
    """The network of a config (fields as in `config.Config`), initialised by torch's current generator.

    Classification and rendering: forward(xy [B, 2], raw pixels) -> logits [B, canvas, canvas]. Regression:
    forward(image [B, 1, canvas, canvas]) -> (x, y) / canvas, [B, 2]. Beside the paper's networks: "no-coords" is the
    CoordConv network without its coordinate channels, "fourier" has Fourier features in their place.

    Raises:
        UserError: settings that do not go together.
    """
    network, canvas, m = config.network, config.canvas, config.multiplier
    if network not in NETWORKS[config.task]:
        raise UserError(f"no network '{network}' for {config.task}; there is {', '.join(NETWORKS[config.task])}")
    if canvas < 8 or canvas & (canvas - 1):
        raise UserError(f"canvas must be a power of two from 8 up, not {canvas}")
    coords: AddCoords | None = AddCoords(with_r=config.radius)
    if network == "fourier":
        coords = AddCoords(with_r=config.radius, scaling="fourier", fourier_bands=bands(canvas))
    elif network in ("no-coords", "upsample"):
        coords = None
    if config.task == "regression":
        if network == "conv-uniform":
            return UniformRegressor(canvas, m, config.padding, config.plain)
        if network == "conv-quadrant":
            return QuadrantRegressor(m, config.padding, config.plain)
        return CoordRegressor(m, coords, config.pooling, config.relu, config.padding, config.plain)
    entry = Entry(config.coordinates, canvas)
    if network == "mlp":
        return Perceptron(entry, canvas, m)
    if network == "deconv" and (config.kernel < 2 or config.padding == "circular"):
        raise UserError("a deconvolution needs kernel=2 or more and padding='zeros'")
    if network in ("deconv", "upsample", "upsample-coordconv"):
        upsample = network != "deconv"
        return Decoder(
            entry, canvas, m, config.kernel, upsample, coords if upsample else None, config.padding, config.plain
        )
    if config.kernel != 1:
        raise UserError(f"the per-pixel networks have kernel=1, not {config.kernel}; render_kernel is the renderer's")
    if config.task == "classification":
        return PixelNetwork(entry, canvas, m, coords, config.plain)
    centre = PixelNetwork(entry, canvas, 1, coords, config.plain)
    return Renderer(centre, m, config.render_kernel, config.render_softmax, config.padding)
