"""The user's own images and key points: what is trained on, as arrays, and the training run. The command is `train`,
the table is described in `tables`; loads no torch.

Anything Pillow opens is an image; it is turned as its EXIF tag says, put on white where it is transparent, and
stretched to a square.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.data.images import formats, open_image
from common.errors import UserError
from common.files import write_json
from common.runs import Folder, Stopped
from papers.coordconv.tables import Table, map_files, read_table

SCALE, OFFSET = 2 / 255, -1.0
SCHEMA_VERSION = 1
CHOICES = {
    "backbone": ("small", "resnet18", "resnet50"),
    "coords": ("none", "first", "all"),
    "coordinates": ("scaled", "raw", "fourier"),
    "head": ("heatmap", "pooled"),
}
PATHS = ("targets", "validation", "test", "pretrained")
"""Settings that may be paths: they say where training found things and are not part of the model."""


@dataclass(frozen=True)
class Config:
    """Settings of one training; `train.HELP` says what each is for.

    targets, test and a validation that is no fraction: tables, as paths relative to the folder of images. size: side to
    which images are stretched; shift: in pixels of the stretched image; channels: 1, 3 or 0 (chosen by the images).
    """

    backbone: str = "small"
    coords: str = "first"
    coordinates: str = "scaled"
    radius: bool = False
    head: str = "heatmap"
    pretrained: str = ""
    size: int = 64
    channels: int = 0
    targets: str = "targets.csv"
    validation: str = "0.2"
    test: str = ""
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 0.002
    weight_decay: float = 0.0001
    shift: int = 4
    noise: float = 0.0
    evaluate_every: int = 100
    checkpoint_every: int = 100
    log_every: int = 50
    steps_per_call: int = 1
    evaluation_batch_size: int = 256

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} '{getattr(self, name)}'; there is {', '.join(known)}")
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, int | float) and not (isfinite(value) and value >= 0):
                raise ValueError(f"{setting.name} must be a number from 0 up, not {value}")
            if setting.name in _COUNTS and value < 1:
                raise ValueError(f"{setting.name} must be at least 1, not {value}")
        if self.learning_rate == 0:
            raise ValueError("learning_rate must be above 0")
        if self.size < 16:
            raise ValueError(f"size must be at least 16, not {self.size}")
        if self.channels not in (0, 1, 3):
            raise ValueError(f"channels is 1, 3 or 0 (as the images are), not {self.channels}")
        if self.shift >= self.size // 2:
            raise ValueError(f"shift {self.shift} must be below half of size {self.size}")
        if self.pretrained and self.backbone == "small":
            raise ValueError("pretrained weights are for the backbones resnet18 and resnet50: the small one has none")
        if self.fraction is not None and not 0 <= self.fraction < 1:
            raise ValueError(f"validation is a fraction in [0, 1) or a CSV file, not {self.validation}")

    @property
    def fraction(self) -> float | None:
        """The fraction of the rows that is held out for validation; None where `validation` is a table."""
        try:
            return float(self.validation)
        except ValueError:
            return None


_COUNTS = (
    "steps",
    "batch_size",
    "evaluate_every",
    "checkpoint_every",
    "log_every",
    "steps_per_call",
    "evaluation_batch_size",
)


@dataclass(frozen=True)
class ModelInfo:
    """What `model.json` says of the weights beside it.

    columns: of the table, x and y of each key point in turn. config: the settings it was trained with, without paths;
    backbone_config: transformers' own of a ResNet. examples: images used for "train", "validation" and "test", and rows
    without any point. errors: {"validation" | "test" | "train": {"pixels", "percent", "points"}}: mean Euclidean
    distance in pixels of the original images and in percent of their diagonals. best_step: after which step the weights
    were taken: where "validation" was lowest, or, without validation, the last. A pixel becomes pixel * scale + offset.
    """

    columns: tuple[str, ...]
    size: int
    channels: int
    config: Mapping[str, Any]
    backbone_config: Mapping[str, Any] | None
    examples: Mapping[str, int]
    errors: Mapping[str, Mapping[str, float]]
    best_step: int
    seed: int
    scale: float = SCALE
    offset: float = OFFSET
    schema_version: int = field(default=SCHEMA_VERSION)


class Parts(NamedTuple):
    """What training reads: rows to learn from, to choose by and to measure on; empty: rows that name no point."""

    train: Table
    validation: Table | None
    test: Table | None
    empty: int


def split(images: Path, config: Config, seed: int) -> Parts:
    """The rows to train, validate and test on. The held-out fraction is drawn from (seed, stream "validation").

    Raises UserError as `read_table`, and where tables differ in their columns or share a file, or too few rows remain.
    """

    def read(name: str) -> Table:
        return read_table(Path(os.path.normpath(images / name)), images)

    rows = read(config.targets)
    others = {name: read(path) for name, path in (("validation", _table_of(config)), ("test", config.test)) if path}
    taken = dict.fromkeys(rows.files, rows.path)
    for table in others.values():
        if table.columns != rows.columns:
            raise UserError(
                f"{table.path} has the columns {','.join(table.columns)} and {rows.path} {','.join(rows.columns)}: "
                "give both the same key points in the same order"
            )
        for file in table.files:
            if file in taken:
                raise UserError(f"{table.path} names {file}, which {taken[file]} names too: keep it in one of them")
            taken[file] = table.path
    seen = ~np.isnan(rows.points).all((1, 2))
    kept = rows.rows(np.flatnonzero(seen))
    validation = others.get("validation")
    if config.fraction:
        from common.random import Stream

        held = min(len(kept.files) - 1, max(1, round(config.fraction * len(kept.files))))
        if held < 1:
            raise UserError(f"{rows.path} has only one row with a point: add more, or hold none out (--validation 0)")
        order = Stream(seed, "validation").permutation(0, len(kept.files)).numpy()
        validation, kept = kept.rows(np.sort(order[:held])), kept.rows(np.sort(order[held:]))
    for k in range(kept.points.shape[1]):
        if np.isnan(kept.points[:, k]).all():
            raise UserError(
                f"no row is left to learn {kept.columns[2 * k]} from: all that have it are held out; choose another "
                "--seed or --validation, or add rows"
            )
    for name, table in (("validation", validation), ("test", others.get("test"))):
        if table is not None and np.isnan(table.points).all():
            raise UserError(f"{table.path} has no point to measure the {name} error by: add some")
    return Parts(kept, validation, others.get("test"), int((~seen).sum()))


def _table_of(config: Config) -> str:
    return "" if config.fraction is not None else config.validation


def fingerprint(parts: Parts) -> str:
    """Hash of every row used and every image's content (32 hex digits). A copy elsewhere has the same."""

    def digest(path: Path) -> bytes:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    total = hashlib.sha256()
    for part in (parts.train, parts.validation, parts.test):
        if part is not None:
            # The end of one part is where a name cannot be: which rows are held out counts.
            total.update(b"\0\0" + ",".join(part.columns).encode() + part.points.tobytes())
            for name, content in zip(part.files, map_files(part.paths(), digest, lambda path: path), strict=True):
                total.update(os.fsencode(name) + b"\0" + content)
    return total.hexdigest()[:32]


# ---------------------------------------------------------------- images


def read_images(
    paths: Sequence[Path], size: int, channels: int = 0, stop: Callable[[], bool] = lambda: False
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, size, size, C] and the files' own sizes, int64 [n, 2] as (width, height).

    channels: 1, 3, or 0 for 1 where no image has any colour and 3 otherwise. Raises UserError naming the first file
    that cannot be read; Stopped when `stop()` says so.
    """
    from PIL.Image import Resampling

    formats()
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def read(numbered: tuple[int, Path]) -> tuple[int, int]:
        if stop():
            raise Stopped
        i, path = numbered
        image = open_image(path, "L" if channels == 1 else "RGB").convert("RGB")
        images[i] = np.asarray(image.resize((size, size), Resampling.BICUBIC, reducing_gap=3.0))
        return image.size

    sizes = map_files(list(enumerate(paths)), read, lambda numbered: numbered[1])
    if channels == 1 or (channels == 0 and bool((images == images[..., :1]).all())):
        images = np.ascontiguousarray(images[..., :1])
    return images, np.array(sizes, np.int64).reshape(-1, 2)


def to_square(points: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Pixels of images of these sizes [n, 2] as float32 [n, K, 2], where -1 and 1 are the images' edges; NaN stays."""
    return (2 * (points + 0.5) / sizes[:, None] - 1).astype(np.float32)


def to_pixels(points: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The inverse of `to_square`, float64 [n, K, 2]."""
    return (points.astype(np.float64) + 1) / 2 * sizes[:, None] - 0.5


def errors_of(predicted: np.ndarray, points: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Mean Euclidean distance over the points that are known, pixels [n, K, 2] of images of these sizes.

    {"pixels", "percent" (of the image's diagonal), "points" (how many)}.
    """
    distance = np.linalg.norm(predicted - points, axis=2)
    known = ~np.isnan(distance)
    share = distance / np.linalg.norm(sizes, axis=1)[:, None]
    return {
        "pixels": float(distance[known].mean()),
        "percent": 100 * float(share[known].mean()),
        "points": int(known.sum()),
    }


# ---------------------------------------------------------------- the run


def describe(parts: Parts, image_shape: Sequence[int]) -> list[str]:
    """The data in words, one line each."""
    held = [
        f"{len(part.files):,} for {name}"
        for name, part in (("validation", parts.validation), ("the test", parts.test))
        if part is not None
    ]
    height, width, channels = image_shape
    points, missing = parts.train.points.shape[1], int(np.isnan(parts.train.points[..., 0]).sum())
    lines = [
        f"data: {len(parts.train.files):,} images to train on, {', '.join(held) or 'none for validation'}; {points} "
        f"key point{'s' if points > 1 else ''}; {height}x{width} {'grey' if channels == 1 else 'colour'}"
    ]
    if missing:
        lines.append(f"missing: {missing:,} of the {parts.train.points.shape[0] * points:,} points to train on")
    if parts.empty:
        lines.append(f"left out: {parts.empty:,} rows without any point")
    if parts.validation is None:
        lines.append("without validation the last weights are kept, and no error of the model is known")
    return lines


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """The run function: train on the images in `folder.data_dir`; writes weights.safetensors and model.json.

    config: `Config`'s settings and the seed. {"validation_error", "test_error", "train_error"} in pixels of the
    original images and "..._percent" of their diagonals, of the weights that are kept; only what there is data for.
    """
    settings = Config(**{name: value for name, value in config.items() if name != "seed"})
    seed = int(config["seed"])
    assert folder.data_dir is not None
    parts = split(folder.data_dir, settings, seed)
    from papers.coordconv.keypoints import PartOfData, train

    try:
        data: dict[str, PartOfData] = {}
        channels = 3 if settings.backbone != "small" else settings.channels
        for name, table in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
            if table is not None:
                images, sizes = read_images(table.paths(), settings.size, channels, lambda: folder.stop_requested)
                channels = images.shape[-1]
                data[name] = PartOfData(images, table.points, sizes)
        print(*describe(parts, data["train"].images.shape[1:]), sep="\n", flush=True)
        outcome = train(settings, data, seed, folder)
    except MemoryError:
        raise UserError("the memory is not enough: lower --size, or use fewer images") from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise UserError("the GPU's memory is not enough: lower --batch_size or --size") from None
    info = ModelInfo(
        columns=parts.train.columns,
        size=settings.size,
        channels=channels,
        config={name: value for name, value in asdict(settings).items() if name not in PATHS},
        backbone_config=outcome.backbone_config,
        examples={**{name: len(part.images) for name, part in data.items()}, "without_points": parts.empty},
        errors=outcome.errors,
        best_step=outcome.best_step,
        seed=seed,
    )
    write_json(folder.path / "model.json", {"schema_version": info.schema_version, **asdict(info)})
    return {
        f"{name}_{key}": error[unit]
        for name, error in sorted(outcome.errors.items(), reverse=True)
        for key, unit in (("error", "pixels"), ("percent", "percent"))
    }
