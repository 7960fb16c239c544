"""Where batches come from: folders of JPEGs, decoded ahead in threads, or generated shapes.

A source has `num_classes`, `channels`, `num_train`, `batch(step)` - the augmented training batch of a step, a function
of (seed, step, sample) - and `evaluation()`, the whole test split as batches. Images are float32 [B, C, H, W].
"""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.data.folders import ImageFiles, list_images
from common.errors import UserError
from common.files import write_bytes
from common.random import Stream
from papers.coordconv.imagenet.config import Config
from papers.coordconv.imagenet.resample import ATTEMPTS, centre_crops, random_crops, resample

AHEAD = 3
"""Batches that are being decoded while one is used."""
Batch = tuple[Tensor, Tensor]


def read_image(path: Path, longest: int) -> np.ndarray:
    """uint8 [H, W, 3]; an image with a side above `longest` is reduced to it. UserError names a file that is broken."""
    try:
        with Image.open(path) as image:
            ratio = longest / max(image.size)
            wanted = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
            if ratio < 1:
                # A JPEG decoder can halve, quarter or divide by eight for less than the price of the whole image.
                image.draft("RGB", wanted)
            picture = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({' '.join(str(error).split())}): replace it") from None
    if max(picture.size) > longest:
        picture = picture.resize(wanted, Image.Resampling.BILINEAR)
    return np.asarray(picture)


class Decoder:
    """Decodes the batches that `indices` names into canvases, a few ahead of the one asked for.

    The next batches are those of the next keys; asking for any other key starts anew, so there is no state to save.
    """

    def __init__(self, files: ImageFiles, indices: Callable[[int], Tensor | None], config: Config, pin: bool):
        self._files, self._indices, self._canvas, self._pin = files, indices, config.canvas, pin
        self._pool = ThreadPoolExecutor(config.workers)
        self._begun: dict[int, tuple[Tensor, Tensor, Tensor, list[Future[None]]]] = {}

    def __call__(self, key: int) -> tuple[Tensor, Tensor, Tensor]:
        """canvas uint8 [B, S, S, 3] (undefined outside the images), sizes int64 [B, 2], labels int64 [B]."""
        for old in [k for k in self._begun if not key <= k <= key + AHEAD]:
            for future in self._begun.pop(old)[-1]:
                future.cancel()
        for ahead in range(key, key + AHEAD + 1):
            if ahead not in self._begun:
                self._begin(ahead)
        canvas, sizes, labels, futures = self._begun.pop(key)
        for future in futures:
            future.result()
        return canvas, sizes, labels

    def _begin(self, key: int) -> None:
        index = self._indices(key)
        if index is None:
            return
        canvas = torch.empty(len(index), self._canvas, self._canvas, 3, dtype=torch.uint8, pin_memory=self._pin)
        sizes = torch.empty(len(index), 2, dtype=torch.int64)
        labels = torch.from_numpy(self._files.labels)[index]
        futures = [self._pool.submit(self._one, canvas[i], sizes[i], n) for i, n in enumerate(index.tolist())]
        self._begun[key] = canvas, sizes, labels, futures

    def _one(self, canvas: Tensor, size: Tensor, number: int) -> None:
        image = read_image(self._files.path(number), self._canvas)
        height, width = image.shape[:2]
        canvas.numpy()[:height, :width] = image
        size[0], size[1] = height, width


class ImageNet:
    """ImageNet, or any set in its layout. Decoded in threads; crops, flips and sizes are batched on the device."""

    channels = 3

    def __init__(self, config: Config, seed: int, root: Path, device: torch.device):
        train, test = (part.every(config.every_class) for part in list_images(root))
        self.config, self.seed, self.device = config, seed, device
        self.num_classes, self.num_train, self.num_test = len(train.classes), len(train), len(test)
        pin = device.type == "cuda"
        self._train = Decoder(train, self._train_index, config, pin)
        self._test = Decoder(test, self._test_index, config, pin)

    def _train_index(self, step: int) -> Tensor | None:
        order = Stream(self.seed, "order")
        steps = self.config.steps(self.num_train)
        return order.epochs(range(step, step + 1), self.config.batch_size, self.num_train)[0] if step < steps else None

    def _test_index(self, number: int) -> Tensor | None:
        first = number * self.config.evaluation_batch_size
        if first >= self.num_test:
            return None
        return torch.arange(first, min(first + self.config.evaluation_batch_size, self.num_test))

    def batch(self, step: int) -> Batch:
        """Random crops, half of them mirrored, and their labels."""
        canvas, sizes, labels = self._train(step)
        count, stream = len(labels), Stream(self.seed, "augmentation")
        crops = random_crops(sizes, stream.child("crop").uniform(step, count * ATTEMPTS * 4).view(count, ATTEMPTS, 4))
        flip = stream.child("flip").integers(step, count, 2) > 0
        return self._finish(canvas, sizes, crops, labels, flip)

    def evaluation(self) -> Iterator[Batch]:
        """Centre crops of every test image, in order."""
        for number in range(-(-self.num_test // self.config.evaluation_batch_size)):
            canvas, sizes, labels = self._test(number)
            yield self._finish(canvas, sizes, centre_crops(sizes, self.config.size), labels, None)

    def _finish(self, canvas: Tensor, sizes: Tensor, crops: Tensor, labels: Tensor, flip: Tensor | None) -> Batch:
        moved = [tensor.to(self.device, non_blocking=True) for tensor in (canvas, sizes, crops, labels)]
        flip = None if flip is None else flip.to(self.device, non_blocking=True)
        return resample(moved[0], moved[1], moved[2].float(), self.config.size, flip), moved[3]


SIDE, SHAPE = 32, 11
SHAPE_NAMES = ("square", "frame", "disc", "ring", "plus", "cross", "triangle", "bars")


def shape_masks() -> Tensor:
    """float32 [8, 11, 11] of 0 and 1, in the order of SHAPE_NAMES."""
    radius = SHAPE // 2
    row, column = torch.meshgrid(torch.arange(-radius, radius + 1), torch.arange(-radius, radius + 1), indexing="ij")
    furthest = torch.maximum(row.abs(), column.abs())
    square = row**2 + column**2
    masks = [
        furthest < radius,
        (furthest < radius) & (furthest > 2),
        square <= radius**2,
        (square <= radius**2) & (square > 8),
        torch.minimum(row.abs(), column.abs()) <= 1,
        torch.minimum((row - column).abs(), (row + column).abs()) <= 1,
        (row + radius) >= 2 * column.abs(),
        row.abs() % 3 != 1,
    ]
    return torch.stack(masks).float()


class Shapes:
    """Classification that does not depend on position: one of eight shapes anywhere in 32x32 pixels, and noise.

    The shape lies wholly inside and every place is equally likely, whatever the class; its brightness lies in 0.5..1.
    The test images are the same for every seed.
    """

    channels, num_classes = 1, len(SHAPE_NAMES)

    def __init__(self, config: Config, seed: int, device: torch.device):
        self.config, self.seed, self.device = config, seed, device
        self.num_train, self.num_test = config.train_images, config.test_images
        self._masks = shape_masks().to(device)

    def batch(self, step: int) -> Batch:
        """New images, which no other step sees."""
        return self._draw("shapes", self.seed, step, self.config.batch_size)

    def evaluation(self) -> Iterator[Batch]:
        """The test images."""
        size = self.config.evaluation_batch_size
        for number in range(-(-self.num_test // size)):
            yield self._draw("test shapes", 0, number, min(size, self.num_test - number * size))

    def _draw(self, name: str, seed: int, step: int, count: int) -> Batch:
        stream = Stream(seed, name, self.device)
        labels = stream.child("class").integers(step, count, self.num_classes)
        top, left = stream.child("place").integers(step, 2 * count, SIDE - SHAPE + 1).view(2, count)
        brightness = 0.5 + 0.5 * stream.child("brightness").uniform(step, count)
        position = torch.arange(SIDE, device=self.device)
        row, column = position - top[:, None], position - left[:, None]
        inside = ((row >= 0) & (row < SHAPE))[:, :, None] & ((column >= 0) & (column < SHAPE))[:, None, :]
        row, column = row.clamp(0, SHAPE - 1), column.clamp(0, SHAPE - 1)
        images = self._masks[labels[:, None, None], row[:, :, None], column[:, None, :]] * inside
        noise = stream.child("noise").normal(step, (count, SIDE, SIDE))
        return (brightness[:, None, None] * images + self.config.noise * noise)[:, None], labels


def imagenet_root(data_dir: Path | None) -> Path:
    """DATA_DIR/imagenet; UserError where there is none."""
    text = str(data_dir) if data_dir is not None else os.environ.get("DATA_DIR", "")
    root = Path(text) / "imagenet"
    if not text or not root.is_dir():
        where = root if text else "DATA_DIR is not set, so ImageNet"
        raise UserError(f"{where} was not found: put it into DATA_DIR/imagenet/train/<class> and .../val/<class>")
    return root


def write_miniature(root: Path, train: int = 4, val: int = 2) -> None:
    """Three classes of small JPEGs in ImageNet's layout: noise around a colour, of various sizes."""
    for number, name in enumerate(("n01", "n02", "n03")):
        for split, count in (("train", train), ("val", val)):
            for i in range(count):
                height, width = 40 + 8 * i, 64 - 6 * number
                noise = Stream(number, f"miniature {split}").integers(i, height * width * 3, 120)
                image = noise.view(height, width, 3).numpy().astype(np.uint8)
                image[..., number] += 120
                path = root / split / name / f"{name}_{i}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, _jpeg(image))


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def open_source(config: Config, seed: int, data_dir: Path | None, own: Path, device: torch.device) -> ImageNet | Shapes:
    """The source of a run. own: the run's folder, in which a miniature is written."""
    if config.dataset == "shapes":
        return Shapes(config, seed, device)
    if config.dataset == "miniature":
        write_miniature(own / "miniature")
        return ImageNet(config, seed, own / "miniature", device)
    return ImageNet(config, seed, imagenet_root(data_dir), device)
