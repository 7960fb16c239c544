"""Sets that lie in DATA_DIR/<name> as folders of images and are too large to be loaded: ImageNet and LSUN bedrooms.

Which files there are, without reading them. Classified sets have one folder a class, as ImageNet is kept:

    <root>/train/<class>/*.JPEG
    <root>/val/<class>/*.JPEG      or <root>/val/*.JPEG with <root>/val.txt: a line "file-name class" for each image

Classes are the names of train's folders in alphabetical order; their numbers are the labels. Names that begin with a
dot and files that are no JPEG, PNG or WebP are passed over.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True)
class FolderSet:
    """A set of which only the place is known: no checksum of the whole exists, so its fingerprint is of file names.

    official: (classes, training images, validation images) of the whole, or None where the images have no classes.
    """

    name: str
    title: str
    contents: str
    licence: str
    source: str
    official: tuple[int, int, int] | None = None


SETS = {
    each.name: each
    for each in (
        FolderSet(
            "imagenet",
            "ImageNet-1k",
            "1,281,167 + 50,000 colour images, 1,000 classes",
            "non-commercial research and education, on request",
            "https://image-net.org/download-images",
            (1000, 1_281_167, 50_000),
        ),
        FolderSet(
            "lsun-bedrooms",
            "LSUN bedrooms",
            "3,033,042 colour photographs, as a folder of image files",
            "none stated; research use with citation (Yu et al. 2015)",
            "https://www.yf.io/p/lsun",
        ),
    )
}


def locate(name: str, data_dir: Path | None) -> tuple[str, str]:
    """(label, fingerprint) of the set `name` of `SETS` in DATA_DIR/<name>.

    Raises UserError in one line where it is not there, or not as it should lie.
    """
    info = SETS[name]
    if data_dir is None or not (data_dir / name).is_dir():
        state = "DATA_DIR is not set" if data_dir is None else f"DATA_DIR {data_dir} has no folder {name}"
        raise UserError(f"{name} was not found ({state}): put {info.title} ({info.source}) there as files of images")
    if info.official is not None:
        train, val = list_images(data_dir / name)
        whole = (len(train.classes), len(train), len(val)) == info.official
        label = info.title if whole else f"custom (in the format of {info.title}): {describe(train, val)}"
        return label, fingerprint(train, val)
    files = sorted(str(p.relative_to(data_dir)) for p in (data_dir / name).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{data_dir / name} has no images: put {info.title} ({info.source}) there")
    return f"{info.title}, {len(files):,} images", hashlib.sha256("\0".join(files).encode()).hexdigest()[:32]


def licence_rows() -> str:
    """These sets as further lines of `catalog.licence_table`."""
    rows = (f"| {s.title} (`{s.name}`) | {s.contents} | {s.licence} | no | {s.source} |" for s in SETS.values())
    return "\n".join(rows) + "\n"


@dataclass(frozen=True)
class ImageFiles:
    """The images of one split: `files` relative to `root`, `labels` int64 [N] into `classes`."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> Path:
        """Where image i is."""
        return self.root / self.files[i]

    def every(self, n: int) -> "ImageFiles":
        """Only the classes 0, n, 2n, ..., numbered anew."""
        kept = np.flatnonzero(self.labels % n == 0)
        files = tuple(self.files[i] for i in kept)
        return ImageFiles(self.root, self.classes[::n], files, self.labels[kept] // n)


def list_images(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """The training and the validation images below root.

    Raises UserError in one line where a folder is missing or a class has no images, and for a val.txt that does not
    name each image of a flat `val` with a class of `train`.
    """
    classes = _folders(root / "train")
    if not classes:
        raise UserError(f"{root / 'train'} has no folders: give each class a folder of its images there")
    train = _of_classes(root, "train", classes)
    if _folders(root / "val"):
        return train, _of_classes(root, "val", classes)
    return train, _flat(root, classes)


def describe(train: ImageFiles, val: ImageFiles) -> str:
    """The numbers of a set in words."""
    return f"{len(train.classes):,} classes, {len(train):,} + {len(val):,} images"


def fingerprint(train: ImageFiles, val: ImageFiles) -> str:
    """32 hexadecimal digits of SHA-256 over names and labels: the same files under the same names, not their bytes."""
    digest = hashlib.sha256()
    for part in (train, val):
        digest.update("\0".join((*part.classes, *part.files)).encode())
        digest.update(part.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} does not exist or is no folder: put the images there, a folder for each class"
        ) from None


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(entry.name for entry in _entries(folder) if entry.is_dir())


def _images(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.name.lower().endswith(SUFFIXES)]


def _of_classes(root: Path, split: str, classes: tuple[str, ...]) -> ImageFiles:
    foreign = set(_folders(root / split)) - set(classes)
    if foreign:
        raise UserError(f"{root / split / min(foreign)} is no class of {root / 'train'}: remove it, or add the class")
    files: list[str] = []
    counts = []
    for name in classes:
        images = _images(root / split / name)
        if not images:
            raise UserError(f"{root / split / name} has no images: fill it, or remove the class from train and val")
        files += [f"{split}/{name}/{image}" for image in images]
        counts.append(len(images))
    return ImageFiles(root, classes, tuple(files), np.arange(len(classes)).repeat(counts))


def _flat(root: Path, classes: tuple[str, ...]) -> ImageFiles:
    images, table = _images(root / "val"), root / "val.txt"
    if not images:
        raise UserError(f"{root / 'val'} has no images: put them there, in a folder for each class")
    if not table.is_file():
        raise UserError(f"{root / 'val'} has no folders and {table} is missing: write its lines 'file-name class'")
    words = [line.split() for line in table.read_text("utf-8").splitlines() if line.strip()]
    bad = next((number for number, line in enumerate(words, 1) if len(line) != 2), None)
    if bad is not None:
        raise UserError(f"{table}, entry {bad}, is not 'file-name class'")
    numbers = {name: number for number, name in enumerate(classes)}
    labels = dict(words)
    for image in images:
        if labels.get(image) not in numbers:
            raise UserError(
                f"{table} gives {image} the class {labels.get(image)}, which {root / 'train'} does not have"
            )
    files = tuple(f"val/{image}" for image in images)
    return ImageFiles(root, classes, files, np.array([numbers[labels[image]] for image in images], np.int64))
