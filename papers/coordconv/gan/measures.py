"""What a generator of Sort-of-CLEVR images is measured by (spec 7): where its objects are, and how they move.

An image is reduced to colours: a pixel takes the colour of the nearest corner of the RGB cube, so an object is the set
of its blue (or red) pixels. An object is there if it has a quarter of the pixels of the smallest shape; its centre is
the mean of its pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from papers.coordconv.gan.data import shape_areas

BINS = 8


@dataclass(frozen=True)
class Layout:
    """What the images are of: it fixes bins and thresholds. Spec 7 gives the bins at canvas 64; others scale them."""

    canvas: int
    objects: int
    shapes: str

    @property
    def size(self) -> int:
        """Half an object's side in pixels."""
        return self.canvas * 10 // 64

    @property
    def areas(self) -> tuple[int, int]:
        """Pixels of the smallest and the largest shape."""
        areas = shape_areas(self.size, self.shapes)
        return min(areas), max(areas)

    @property
    def fewest(self) -> float:
        """Pixels that an object has at the least."""
        return self.areas[0] / 4

    @property
    def colors(self) -> tuple[str, ...]:
        """The objects' colours, in the order they are drawn."""
        return ("blue", "red")[: self.objects]


@dataclass(frozen=True)
class Scene:
    """What is on N images. centers: float64 [N, objects, 2] (x, y), NaN where the object is missing; areas: int64
    [N, objects] pixels of each colour; right: bool [N], exactly the right objects."""

    centers: np.ndarray
    areas: np.ndarray
    right: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """bool [N, objects]."""
        return ~np.isnan(self.centers[..., 0])


def color_masks(images: Tensor) -> Tensor:
    """Blue and red pixels of images [N, 3, H, W] in [-1, 1]: bool [N, 2, H, W]."""
    red, green, blue = (images > 0).unbind(1)
    return torch.stack([blue & ~red & ~green, red & ~green & ~blue], 1)


def look(images: Tensor, layout: Layout) -> Scene:
    """Find the objects on images [N, 3, H, W] in [-1, 1].

    An image has exactly the right objects if each colour that belongs there has one connected piece of the size of an
    object (half the smallest to one and a half times the largest shape; specks below `fewest` pixels do not count), and
    the other colour has none.
    """
    masks = color_masks(images)
    axis = torch.arange(layout.canvas, device=images.device, dtype=torch.float32)
    areas = masks.sum((2, 3))
    # Sums of integers below 2^24: exact in float32, so a centre on the edge of a bin is on the same side everywhere.
    sums = torch.stack([(masks.sum(2) * axis).sum(-1), (masks.sum(3) * axis).sum(-1)], -1).cpu().double().numpy()
    counts = areas.cpu().numpy()
    there = counts >= layout.fewest
    centers = np.where(there[..., None], sums / np.maximum(counts, 1)[..., None], np.nan)
    pieces = masks.cpu().numpy()
    right = np.array([_is_right(pair, layout) for pair in pieces], bool)
    return Scene(centers[:, : layout.objects], counts[:, : layout.objects], right)


def _is_right(masks: np.ndarray, layout: Layout) -> bool:
    low, high = layout.areas
    for number, mask in enumerate(masks):
        labels, _ = ndimage.label(mask)
        found = np.bincount(labels.ravel())[1:]
        found = found[found >= layout.fewest]
        if len(found) != (number < layout.objects):
            return False
        if len(found) and not low / 2 <= found[0] <= 1.5 * high:
            return False
    return True


def histogram(points: np.ndarray, low: float, high: float) -> np.ndarray:
    """Counts in 8 x 8 bins over [low, high)^2 of points [N, 2]; points beyond the edge count in the bins there."""
    index = np.floor((points - low) * BINS / (high - low)).clip(0, BINS - 1).astype(np.int64)
    return np.bincount(index[:, 1] * BINS + index[:, 0], minlength=BINS * BINS).reshape(BINS, BINS)


def entropy(points: np.ndarray, low: float, high: float) -> float:
    """Entropy in nats of `histogram`; 0 without points. At most ln 64 = 4.158883."""
    counts = histogram(points, low, high).ravel()
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum()) + 0.0


def entropies(centers: np.ndarray, layout: Layout) -> dict[str, float]:
    """Entropy of each object's centres, and of blue minus red, over the images that have them; centers [N, objects, 2].

    Keys: `blue` and, with two objects, `red` and `difference`.
    """
    low, high = layout.size, layout.canvas - layout.size
    there = ~np.isnan(centers[..., 0])
    found = {color: entropy(centers[there[:, i], i], low, high) for i, color in enumerate(layout.colors)}
    if layout.objects == 2:
        both = there.all(1)
        span = high - low
        found["difference"] = entropy(centers[both, 0] - centers[both, 1], -span, span)
    return found


def distribution(scene: Scene, layout: Layout) -> dict[str, float]:
    """The numbers of C10 and C11: entropies in nats, missing objects and right images in percent."""
    numbers = {f"entropy_{name}": value for name, value in entropies(scene.centers, layout).items()}
    for i, color in enumerate(layout.colors):
        numbers[f"missing_{color}"] = 100.0 * float((~scene.present[:, i]).mean())
    numbers["right_objects"] = 100.0 * float(scene.right.mean())
    return numbers


def smoothness(scene: Scene, layout: Layout, frames: int) -> dict[str, float]:
    """How objects move along latent paths (C12); the scene's images are paths of `frames` frames, one after another.

    step_variance: variance of the centre's step sizes along a path in px^2, mean over paths and objects. Where an
    object has faded away its centre stays at the last place it was seen, so to vanish here and to appear there is one
    large step. kept_mass: percent of the frames with as many object pixels as the data have, within 10 % (an interval,
    where shapes differ). path_length: mean length of the centre's way in px; a generator that moves nothing is smooth.
    """
    paths = scene.centers.reshape(-1, frames, layout.objects, 2).transpose(0, 2, 1, 3).reshape(-1, frames, 2)
    steps = np.linalg.norm(np.diff(np.stack([_carried(path) for path in paths]), axis=1), axis=-1)
    low, high = (layout.objects * area for area in layout.areas)
    mass = scene.areas.sum(1)
    return {
        "step_variance": float(steps.var(1).mean()),
        "kept_mass": 100.0 * float(((mass >= 0.9 * low) & (mass <= 1.1 * high)).mean()),
        "path_length": float(steps.sum(1).mean()),
    }


def _carried(path: np.ndarray) -> np.ndarray:
    """Centres [frames, 2] with gaps filled from the frame before (at the beginning: from the first that is there)."""
    there = ~np.isnan(path[:, 0])
    if not there.any():
        return np.zeros_like(path)
    last = np.maximum.accumulate(np.where(there, np.arange(len(path)), -1))
    return path[np.where(last < 0, there.argmax(), last)]
