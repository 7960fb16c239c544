"""Weak augmentation of whole batches as pure tensor functions of draws that are made beforehand.

An image is augmented by reading it at shifted, mirrored and reflected coordinates, so a batch is one gather from the
uint8 data set by row and column indices; nothing is padded or copied first. Every random number of a chunk of steps
is drawn at once from the counter-based streams of `common.random` (one child stream per transform), which makes a
batch a function of (seed, step, position): the same when drawn in one chunk or step by step, on CPU or GPU.

Order: horizontal flip, reflection padding and random crop, shift with black borders, scaling to floats, Cutout
(DeVries and Taylor 2017), Gaussian noise. The first two are the spec's section 3.2, shift and noise its section 10.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.random import Stream

FIELDS = ("flip", "crop row", "crop column", "shift row", "shift column", "cutout row", "cutout column", "noise key")
"""What the last dimension of a tensor of draws holds."""

PIXEL_SCALE, PIXEL_OFFSET = 2 / 255, -1.0
"""float32 image = uint8 image * PIXEL_SCALE + PIXEL_OFFSET lies in [-1, 1]; digits (0..16) use 1/8 and -1."""

_POSITION_BITS = 16


@dataclass(frozen=True)
class Augmentation:
    """Which transforms are applied; the default is none.

    flip: mirror left-right with probability 1/2.
    reflect_crop: pad by reflection with this many pixels and crop back at one of (2p + 1) x (2p + 1) offsets; must be
        smaller than both sides of the image.
    shift: move by -s..s pixels in both directions; what comes in is pixel value 0.
    cutout: side of a square whose centre is uniform over the image and whose inside becomes 0.0 after scaling; it may
        hang over the edge.
    noise: standard deviation of Gaussian noise added after scaling.
    """

    flip: bool = False
    reflect_crop: int = 0
    shift: int = 0
    cutout: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("reflect_crop", "shift", "cutout", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")

    def draw(self, stream: Stream, steps: range | Tensor | int, count: int, views: int = 1) -> Tensor:
        """All random numbers of `steps` for `count` images: int64 [S, count, 8], or [S, views, count, 8] if views > 1.

        `steps` is a range, an int64 tensor of any shape S, or an int (no leading dimension). The columns are FIELDS;
        those of transforms that are off are 0. Switching one transform on or off leaves the draws of the others, and
        more views leave the draws of the first. Noise is 64 bits an image here and is spread over the pixels in
        `apply`.
        """
        if isinstance(steps, range):
            steps = torch.arange(steps.start, steps.stop, steps.step, device=stream.device)
        rows = count * views
        crops, shifts, positions = 2 * self.reflect_crop + 1, 2 * self.shift + 1, 1 << _POSITION_BITS

        def integers(name: str, high: int, wanted: object) -> Tensor:
            return stream.child(name).integers(steps, rows, high) if wanted else nothing

        nothing = torch.zeros(*torch.as_tensor(steps).shape, rows, dtype=torch.int64, device=stream.device)
        columns = [
            integers("flip", 2, self.flip),
            integers("crop row", crops, self.reflect_crop),
            integers("crop column", crops, self.reflect_crop),
            integers("shift row", shifts, self.shift),
            integers("shift column", shifts, self.shift),
            integers("cutout row", positions, self.cutout),
            integers("cutout column", positions, self.cutout),
            stream.child("noise").bits(steps, rows) if self.noise else nothing,
        ]
        draws = torch.stack(columns, -1)
        return draws.unflatten(-2, (views, count)) if views > 1 else draws

    def apply(
        self,
        images: Tensor,
        index: Tensor,
        draws: Tensor | None,
        scale: float = PIXEL_SCALE,
        offset: float = PIXEL_OFFSET,
    ) -> Tensor:
        """The augmented, scaled batch: float32 [n, C, H, W] in channels_last memory.

        images: uint8 [N, H, W, C], contiguous; index: int64 [n]; draws: int64 [n, 8], one step of `draw`, or
        [views, n, 8] for several views of the same images, which gives [views * n, C, H, W], view by view; None where
        no transform is on. The result is a permuted view of NHWC memory. Nothing here waits for the device or
        branches on a tensor's values, so after one warm-up call it can be captured in a CUDA graph and, without
        noise, compiled as one graph.
        Raises ValueError where a reflection would reach past the other side of the image or draws are missing.
        """
        if draws is None:
            if self != Augmentation():
                raise ValueError("augmentation needs the draws of a step: see Augmentation.draw")
            return _scaled(images.index_select(0, index), scale, offset).permute(0, 3, 1, 2)
        height, width = images.shape[1:3]
        if self.reflect_crop >= min(height, width) and self.reflect_crop:
            raise ValueError(f"reflect_crop={self.reflect_crop} needs images larger than {height}x{width}")
        index = index.expand(draws.shape[:-1]).reshape(-1)
        flip, crop_row, crop_column, shift_row, shift_column, cut_row, cut_column, key = draws.reshape(-1, 8).unbind(-1)
        row, row_inside = self._source(crop_row, shift_row, height)
        column, column_inside = self._source(crop_column, shift_column, width)
        if self.flip:
            column = torch.where(flip[:, None] > 0, width - 1 - column, column)
        pixel = ((index[:, None] * height + row) * width)[:, :, None] + column[:, None, :]
        batch = images.view(-1, images.shape[3]).index_select(0, pixel.view(-1)).view(-1, *images.shape[1:])
        if self.shift:
            batch = batch * (row_inside[:, :, None] & column_inside[:, None, :])[..., None]
        result = _scaled(batch, scale, offset)
        if self.cutout:
            hole = self._hole(cut_row, height)[:, :, None] & self._hole(cut_column, width)[:, None, :]
            result.masked_fill_(hole[..., None], 0.0)
        if self.noise:
            # The key is already 64 random bits of the run's stream: this stream's own seed and name add nothing.
            normals = Stream(0, "pixel noise", result.device).normal(key, result.shape[1:])
            result.add_(normals.mul_(self.noise))
        return result.permute(0, 3, 1, 2)

    def _source(self, crop: Tensor, shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Which source coordinate each of `size` output coordinates reads, [n, size], and whether one exists."""
        position = torch.arange(size, device=crop.device) + (shift - self.shift)[:, None]
        inside = (position >= 0) & (position < size)
        if self.shift:
            position = position.clamp(0, size - 1)
        position = (position + (crop - self.reflect_crop)[:, None]).abs()
        return size - 1 - (size - 1 - position).abs(), inside

    def _hole(self, centre: Tensor, size: int) -> Tensor:
        """Which of `size` coordinates the square covers, bool [n, size]."""
        first = ((centre * size) >> _POSITION_BITS) - self.cutout // 2
        distance = torch.arange(size, device=centre.device) - first[:, None]
        return (distance >= 0) & (distance < self.cutout)


def _scaled(batch: Tensor, scale: float, offset: float) -> Tensor:
    """float32 of a uint8 batch of any shape."""
    return batch.to(torch.float32).mul_(scale).add_(offset)
