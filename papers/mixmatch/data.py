"""Which images an experiment labels, leaves unlabelled and tests on; and the procedural textures of `quick`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data import load
from common.data.splits import labeled_split
from common.errors import UserError
from papers.mixmatch.config import Config

DIGITS_TEST = 500
TEXTURES = {"train": 4000, "test": 1000}


@dataclass(frozen=True)
class Split:
    """images uint8 [N, H, W, C], labels int64 [N]; a pixel becomes pixel * scale - 1. test: None if there is none."""

    labeled: tuple[np.ndarray, np.ndarray]
    unlabeled: np.ndarray
    test: tuple[np.ndarray, np.ndarray] | None
    num_classes: int
    scale: float


def textures(count: int, seed: int, size: int = 32, num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Coloured gratings whose class is their orientation: uint8 [count, size, size, 3] and labels [count].

    Two random colours, a random phase and frequency, a wobbling orientation and strong pixel noise hide the class; none
    of them depends on it. Classes are balanced.
    """
    random = np.random.RandomState(seed)
    labels = np.arange(count) % num_classes
    random.shuffle(labels)
    angle = (labels + random.uniform(-0.25, 0.25, count)) * np.pi / num_classes
    frequency, phase = random.uniform(0.08, 0.22, count), random.uniform(0, 2 * np.pi, count)
    y, x = np.mgrid[:size, :size]
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * frequency[:, None, None] * along + phase[:, None, None])
    dark, bright = random.uniform(40, 215, (2, count, 1, 1, 3))
    images = dark + (bright - dark) * wave[..., None] + random.normal(0, 40, (count, size, size, 3))
    return images.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def load_split(config: Config, seed: int, data_dir: Path | None) -> Split:
    """The split of one seed: labels by the official rule, labelled images removed from the unlabelled pool.

    UserError when the data is not there, corrupt, or has fewer images than labels are asked for.
    """
    scale = 2 / 255
    fold: np.ndarray | None = None
    if config.dataset == "digits":
        digits = load("digits").train
        order = np.random.RandomState(seed).permutation(len(digits.labels))
        images, labels = digits.images[order], digits.labels[order]
        test = images[:DIGITS_TEST], labels[:DIGITS_TEST]
        images, labels, extra, scale = images[DIGITS_TEST:], labels[DIGITS_TEST:], None, 1 / 8
    elif config.dataset == "textures":
        images, labels = textures(TEXTURES["train"], seed=1)
        test, extra = textures(TEXTURES["test"], seed=2), None
    else:
        name, _, variant = config.dataset.partition("+")
        data = load(name, "extra" if variant == "extra" else config.split, data_dir)
        images, labels, test = data.train.images, data.train.labels, (data.test.images, data.test.labels)
        extra = None if data.unlabeled is None else data.unlabeled.images
        if variant == "extra":
            assert data.extra is not None  # the split says so
            images = np.concatenate([images, data.extra.images])
            labels = np.concatenate([labels, data.extra.labels])
        if data.folds is not None and config.num_labeled == len(data.folds[0]):
            fold = data.folds[seed % len(data.folds)]
    num_classes = int(labels.max()) + 1
    if config.num_labeled > len(labels):
        raise UserError(f"{config.dataset} has {len(labels)} training images, fewer than {config.num_labeled} labels")
    if fold is None:
        wanted = config.num_labeled or len(labels)
        fold = (
            labeled_split(labels, wanted, seed, num_classes).labeled if wanted < len(labels) else np.arange(len(labels))
        )
    rest = np.setdiff1d(np.arange(len(labels)), fold)
    pool = images[rest] if len(rest) else images
    if extra is not None:
        pool = np.concatenate([pool, extra])
    return Split((images[fold], labels[fold]), pool, test, num_classes, scale)
