"""Scattered digits: five digits at random places of a 64 x 64 canvas, with their boxes (spec, section 9).

A digit is cropped to the box of its non-zero pixels and drawn by an affine map, bilinearly, into a target box of height
and width U(15, 25) that lies on a 120 x 120 canvas; the central 64 x 64 pixels of the sum, cut off at 1, are the image.
So boxes may stick out of the image or lie outside it altogether. An affine map without rotation is separable: a drawn
digit is `rows @ digit @ columns^T`, and only the pixels inside the crop are ever computed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.data import load
from common.random import Stream

CANVAS, CROP = 120, 64
OFFSET = (CANVAS - CROP) // 2
SMALLEST, LARGEST = 15.0, 25.0
TEST_SHARE = 0.2
"""Of the digits that come without a test part (scikit-learn's)."""
CHUNK = 500


@dataclass(frozen=True)
class Scattered:
    """images: uint8 [N, 64, 64], 255 is white. boxes: float32 [N, P, 4], (centre i, centre j, height, width) in pixels
    of the image, i downwards; they may leave it."""

    images: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, index: Tensor) -> Tensor:
        """The images at index (int64 [B]) as a network reads them: float32 [B, 1, 64, 64] in [0, 1], channels last.

        With one channel PyTorch tells the memory formats apart by strides only; made this way round, the first
        convolution and its pooling take a third of the time.
        """
        return (self.images[index].to(torch.float32) * (1 / 255)).unsqueeze(3).permute(0, 3, 1, 2)


def sources(dataset: str, seed: int, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """The digits that are scattered, float32 [n, H, W] in [0, 1]: (for training, for testing), none in both.

    "mnist": its own two parts. "digits": scikit-learn's 1,797 images of 8 x 8, of which a fifth, drawn by the seed, is
    for testing. Raises UserError where MNIST cannot be had.
    """
    found = load(dataset, data_dir=data_dir)
    train, test = found.train.images[..., 0], found.test.images[..., 0]
    if dataset == "digits":
        order = Stream(seed, "digits for testing").permutation(0, len(train)).numpy()
        held_out = int(TEST_SHARE * len(train))
        train, test = train[order[held_out:]], train[order[:held_out]]
    white = 16.0 if dataset == "digits" else 255.0
    return train.astype(np.float32) / white, test.astype(np.float32) / white


def content_boxes(digits: Tensor) -> Tensor:
    """First and last non-zero row and column of each of [n, H, W]: int64 [n, 4] (top, bottom, left, right), ends
    included."""
    found = []
    for lit in ((digits > 0).any(2), (digits > 0).any(1)):
        lit = lit.to(torch.uint8)
        found += [lit.argmax(1), lit.shape[1] - 1 - lit.flip(1).argmax(1)]
    return torch.stack(found, dim=1)


def place(stream: Stream, index: Tensor, count: int) -> Tensor:
    """Boxes on the 120 x 120 canvas for the images at index: float32 [*index.shape, count, 4]."""
    drawn = stream.uniform(index, 4 * count).unflatten(-1, (count, 4))
    size = SMALLEST + (LARGEST - SMALLEST) * drawn[..., 2:]
    return torch.cat([size / 2 + (CANVAS - size) * drawn[..., :2], size], dim=-1)


def interpolation(centre: Tensor, size: Tensor, first: Tensor, last: Tensor, source: int) -> Tensor:
    """Weights of the source pixels in each of the crop's pixels, along one axis: float32 [n, 64, source].

    As Pillow's affine transform with bilinear filter: pixel centres lie at halves, the source is continued by its edge
    pixels, and a target pixel whose centre falls outside the source is 0. All arguments but `source` are [n].
    """
    length = (last - first + 1).to(torch.float32)
    target = torch.arange(OFFSET, OFFSET + CROP, device=centre.device) + 0.5
    position = (target - (centre - size / 2)[:, None]) * (length / size)[:, None]
    inside = (position >= 0) & (position < length[:, None])
    below = (position - 0.5).floor()
    share = position - 0.5 - below
    pixel = torch.arange(source, device=centre.device) - first[:, None, None]
    ends = (length - 1)[:, None]
    low, high = below.clamp(min=0).minimum(ends), (below + 1).clamp(min=0).minimum(ends)
    weights = (pixel == low[..., None]) * (1 - share)[..., None] + (pixel == high[..., None]) * share[..., None]
    return weights * inside[..., None]


def draw(digits: Tensor, content: Tensor, boxes: Tensor) -> Tensor:
    """Digits [n, H, W] in their boxes [n, 4] on the 120 x 120 canvas, its central part: float32 [n, 64, 64]."""
    height, width = digits.shape[1:]
    rows = interpolation(boxes[:, 0], boxes[:, 2], content[:, 0], content[:, 1], height)
    columns = interpolation(boxes[:, 1], boxes[:, 3], content[:, 2], content[:, 3], width)
    return rows @ digits @ columns.transpose(1, 2)


def scatter(
    digits: np.ndarray,
    count: int,
    per_image: int,
    stream: Stream,
    binarised: bool = False,
) -> Scattered:
    """`count` images, each a function of the stream and its index, on the stream's device.

    The p-th digit of image i is the i-th of the p-th permutation of `digits` (float [n, H, W] in [0, 1]), which starts
    afresh when they are used up. binarised: the released loader paints pixels of 0..255 as 8-bit numbers and cuts the
    sum at 1, so whatever rounds to 1 of 255 or more is white.
    """
    device = stream.device
    source = torch.from_numpy(digits).to(device)
    content = content_boxes(source)
    orders = [stream.child(f"digit {p}").epochs(range(count), 1, len(source)) for p in range(per_image)]
    chosen = torch.cat(orders, dim=1)
    images = torch.empty(count, CROP, CROP, dtype=torch.uint8, device=device)
    boxes = place(stream.child("boxes"), torch.arange(count, device=device), per_image)
    for start in range(0, count, CHUNK):
        part = slice(start, min(start + CHUNK, count))
        which = chosen[part].flatten()
        drawn = draw(source[which], content[which], boxes[part].flatten(0, 1))
        if binarised:
            drawn = (255 * drawn + 0.5).floor()
        images[part] = (drawn.unflatten(0, (-1, per_image)).sum(1).clamp(max=1) * 255).round().to(torch.uint8)
    shift = torch.tensor([OFFSET, OFFSET, 0, 0], dtype=torch.float32, device=device)
    return Scattered(images, boxes - shift)
