"""Sort-of-CLEVR, generated on the device, and LSUN bedrooms, read from a folder."""

from copy import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.random import Stream

CANDIDATES = 40
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LSUN = "lsun-bedrooms"


def circle_half_widths(radius: int) -> list[int]:
    """Half-widths of the rows 0..radius below the centre of a filled circle, by the midpoint algorithm.

    Row d has 2 * half + 1 pixels. Radius 10 gives OpenCV's 317 pixels (spec 9).
    """
    widths = [0] * (radius + 1)
    x, y, error = radius, 0, 0
    while x >= y:
        widths[y] = max(widths[y], x)
        widths[x] = max(widths[x], y)
        error += 2 * y + 1
        y += 1
        if error > 0:
            error -= 2 * x - 1
            x -= 1
    return widths


def shape_areas(size: int, shapes: str = "both") -> list[int]:
    """Pixels of the square of side 2 * size + 1 and, where there are such, of the circle of radius `size`."""
    areas = [(2 * size + 1) ** 2]
    if shapes == "both":
        first, *rest = circle_half_widths(size)
        areas.append(2 * first + 1 + 2 * sum(2 * half + 1 for half in rest))
    return areas


class SortOfClevr:
    """One blue object, or a blue one and over it a red one, on white: image i is a function of (seed, i).

    An object is a square of side 2 * size + 1 or a circle of radius `size` with equal chance (spec 9): size = 10 on
    the canvas of 64 and in proportion on others (32: 5). Centres are integers, uniform in size..canvas-size-1 for each
    axis; the red one is drawn again until it is at least 2 * size away from the blue one.

    Only centres and shapes are kept, and a batch is drawn from them where it is needed.
    """

    def __init__(
        self,
        seed: int,
        images: int = 50_000,
        canvas: int = 64,
        objects: int = 2,
        shapes: str = "both",
        stream: str = "objects",
    ):
        self.canvas, self.objects, self.shapes, self.device = canvas, objects, shapes, torch.device("cpu")
        self.size = canvas * 10 // 64
        self.stream = Stream(seed, stream)
        chunks = [self._draw(torch.arange(n, min(n + 10_000, images))) for n in range(0, images, 10_000)]
        self.centers = torch.cat([centers for centers, _ in chunks])
        """int64 [N, objects, 2], (x, y) in pixels."""
        self.circles = torch.cat([circles for _, circles in chunks])
        """int64 [N, objects], 1 for a circle and 0 for a square."""
        # [2, size + 2]: squares, circles; the last entry stands for every row that the object does not touch.
        square = [self.size] * (self.size + 1)
        self._half_widths = torch.tensor([[*square, -1], [*circle_half_widths(self.size), -1]])

    def __len__(self) -> int:
        return len(self.centers)

    def to(self, device: torch.device | str) -> "SortOfClevr":
        """The same images on a device."""
        moved = copy(self)
        moved.device = torch.device(device)
        moved.centers, moved.circles = self.centers.to(device), self.circles.to(device)
        moved._half_widths = self._half_widths.to(device)
        return moved

    def _draw(self, index: Tensor) -> tuple[Tensor, Tensor]:
        low, span = self.size, self.canvas - 2 * self.size
        first = low + self.stream.child("first").integers(index, 2, span)
        kinds = 2 if self.shapes == "both" else 1
        circles = self.stream.child("shape").integers(index, self.objects, kinds)
        if self.objects == 1:
            return first[:, None], circles
        # Drawing again until a centre is allowed, without a loop: the first allowed one of 40. At worst 65 % of the
        # centres are forbidden, so all 40 are in one image of 3 * 10^7; it takes the farthest corner, which is allowed.
        drawn = low + self.stream.child("second").integers(index, 2 * CANDIDATES, span).unflatten(-1, (CANDIDATES, 2))
        corner = torch.where(first < self.canvas // 2, low + span - 1, low)
        candidates = torch.cat([drawn, corner[:, None]], 1)
        distances = (candidates - first[:, None]).square().sum(-1)
        chosen = (distances >= (2 * self.size) ** 2).int().argmax(1)
        second = candidates.gather(1, chosen[:, None, None].expand(-1, 1, 2))
        return torch.cat([first[:, None], second], 1), circles

    def masks(self, index: Tensor) -> Tensor:
        """Which pixels each object covers (before the red one hides some of the blue one): bool [B, objects, H, W]."""
        x, y = self.centers[index].unbind(-1)
        pixels = torch.arange(self.canvas, device=self.device)
        rows = (pixels - y[..., None]).abs().clamp(max=self.size + 1)
        half = self._half_widths[self.circles[index][..., None], rows]
        return (pixels - x[..., None]).abs()[..., None, :] <= half[..., None]

    def gather(self, index: Tensor) -> Tensor:
        """The images at index (int64 [B]): float32 [B, 3, H, W] in [-1, 1]; white, blue (0,0,255), red (255,0,0)."""
        masks = self.masks(index)
        blue = masks[:, 0]
        red = masks[:, 1] if self.objects == 2 else torch.zeros_like(blue)
        dark = torch.stack([blue & ~red, blue | red, red], -1)  # channels last, as the networks want them
        return (1.0 - 2.0 * dark.float()).permute(0, 3, 1, 2)


class FolderImages:
    """Images of a folder, on the device as uint8; the same interface as SortOfClevr. images: uint8 [N, H, W, 3]."""

    def __init__(self, images: np.ndarray | Tensor):
        self.images = torch.as_tensor(images)
        self.device, self.canvas = self.images.device, images.shape[1]

    def to(self, device: torch.device | str) -> "FolderImages":
        """The same images on a device."""
        return FolderImages(self.images.to(device))

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, index: Tensor) -> Tensor:
        """The images at index (int64 [B]): float32 [B, 3, H, W] in [-1, 1]."""
        return (self.images[index].float() / 127.5 - 1.0).permute(0, 3, 1, 2)


def read_folder(data_dir: Path | None, canvas: int, limit: int = 0, name: str = LSUN) -> np.ndarray:
    """Images below DATA_DIR/<name>, in the order of their paths: uint8 [N, canvas, canvas, 3].

    The shorter side is scaled to `canvas`, and the middle cut out. limit: how many at most (0: all). Raises UserError
    where the folder or its images are missing, or a file cannot be read as an image.
    """
    from PIL import Image

    if data_dir is None:
        raise UserError(f"{name} is read from DATA_DIR/{name}, and DATA_DIR is not set: point it to the data")
    folder = data_dir / name
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: put the images (jpg, png or webp) there")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = paths[:limit] if limit else paths
    if not paths:
        raise UserError(f"{folder} holds no images: put jpg, png or webp files there")
    images = np.empty((len(paths), canvas, canvas, 3), np.uint8)
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{path} cannot be read as an image ({type(error).__name__}): replace or remove it"
            ) from None
        scale = canvas / min(image.size)
        width, height = (max(canvas, round(side * scale)) for side in image.size)
        left, top = (width - canvas) // 2, (height - canvas) // 2
        small = image.resize((width, height), Image.Resampling.BICUBIC)
        images[i] = np.asarray(small.crop((left, top, left + canvas, top + canvas)))
    return images
