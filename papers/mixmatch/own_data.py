"""The user's own images: folders as arrays, and the training run on them. The command is `train`; loads no torch.

    FOLDER/cat/... FOLDER/dog/...   a few labelled images of each class, in a folder named as the class
    FOLDER/unlabeled/...            the rest
    FOLDER/test/cat/... dog/...     optional: labelled images that training never sees

Folders may be nested and hidden files are not looked at. Anything Pillow opens is an image; it is turned as its EXIF
tag says, put on white where it is transparent, scaled (antialiased) until its shorter side is the wanted size, and cut
to the square in its middle.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.data.images import formats, image_files, open_image, readable_name, why_unreadable
from common.errors import UserError
from common.files import write_json
from common.runs import Folder, Stopped
from papers.mixmatch.config import Config
from papers.mixmatch.data import Split

UNLABELED = ("unlabeled", "unlabelled")
TEST = "test"
SCALE, OFFSET = 2 / 255, -1.0
SCHEMA_VERSION = 1
LAYOUT = "it holds a folder of labelled images for each class, and a folder 'unlabeled' with the rest"
OWN_SETTINGS = ("size", "channels", "skip_unreadable")
"""What a run on own data has in its config besides `Config`: image side; 1, 3 or 0 (chosen by the images); a bool."""


@dataclass(frozen=True)
class ImageFolder:
    """What lies where: files and, for labelled ones, their classes (indices into `class_names`, which are sorted)."""

    root: Path
    class_names: tuple[str, ...]
    labeled: tuple[tuple[Path, int], ...]
    unlabeled: tuple[Path, ...]
    test: tuple[tuple[Path, int], ...] | None

    def files(self) -> list[Path]:
        """Every file once, in a fixed order."""
        return [path for path, _ in (*self.labeled, *(self.test or ()))] + list(self.unlabeled)


@dataclass(frozen=True)
class ModelInfo:
    """What `model.json` says of the weights beside it.

    model: name of the network; config: the settings it was trained with. A uint8 pixel becomes pixel * scale + offset.
    examples: images used, by class and as "unlabeled" and "test", and how many could not be read. test_error: None
    without a test folder, else percent, low and high of the 95 % interval (Wilson) and the number of images.
    """

    model: str
    class_names: tuple[str, ...]
    size: int
    channels: int
    config: Mapping[str, Any]
    examples: Mapping[str, Any]
    seed: int
    test_error: Mapping[str, float] | None = None
    scale: float = SCALE
    offset: float = OFFSET
    schema_version: int = field(default=SCHEMA_VERSION)


class Read(NamedTuple):
    """images uint8 [n, size, size, C]; kept: which of the paths they are; unreadable: why the others are not there;
    grey: whether no image has any colour."""

    images: np.ndarray
    kept: np.ndarray
    unreadable: tuple[str, ...]
    grey: bool


# ---------------------------------------------------------------- folders


def _subfolders(folder: Path) -> list[Path]:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{folder} cannot be read: correct its permissions")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _by_class(folders: Iterable[Path], names: Sequence[str]) -> tuple[tuple[Path, int], ...]:
    pairs = []
    for folder in folders:
        files = image_files(folder)
        if not files:
            raise UserError(f"the class folder {folder} has no images: put some there, or remove it")
        pairs += [(file, names.index(folder.name)) for file in files]
    return tuple(pairs)


def scan(root: Path, needs_unlabeled: bool = True) -> ImageFolder:
    """Find the images of a data folder without opening one.

    Raises UserError in one line: no such folder, fewer than two classes, a class without images, nothing unlabelled, a
    test folder with a class that is not there.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give --data a folder; {LAYOUT}")
    classes = [path for path in _subfolders(root) if path.name not in (*UNLABELED, TEST)]
    names = [path.name for path in classes]
    if len(classes) < 2:
        found = f"only one class folder, {names[0]}" if names else "no class folders"
        raise UserError(f"{root} has {found}, and two are needed: {LAYOUT}")
    labeled = _by_class(classes, names)
    unlabeled = [file for name in UNLABELED for file in image_files(root / name)]
    if needs_unlabeled and not unlabeled:
        raise UserError(f"{root / UNLABELED[0]} is missing or empty: put the unlabelled images there")
    test = None
    if (root / TEST).is_dir():
        folders = _subfolders(root / TEST)
        if unknown := [path.name for path in folders if path.name not in names]:
            raise UserError(
                f"{root / TEST / unknown[0]} is no class with labelled images: these are {', '.join(names)}"
            )
        if not folders:
            raise UserError(f"{root / TEST} has no class folders: fill it as the labelled folders are, or remove it")
        test = _by_class(folders, names)
    return ImageFolder(root, tuple(map(readable_name, names)), labeled, tuple(unlabeled), test)


def fingerprint(found: ImageFolder) -> str:
    """Hash of every file's place and content (32 hex digits). A copy of the folder elsewhere has the same."""

    def digest(path: Path) -> bytes:
        try:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): correct its permissions or remove it") from None
        return os.fsencode(path.relative_to(found.root)) + b"\0" + content

    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(pool.map(digest, found.files()))).hexdigest()[:32]


# ---------------------------------------------------------------- images


def read_image(path: Path, size: int, channels: int = 3) -> np.ndarray:
    """One file as uint8 [size, size, channels], channels 1 or 3. What Pillow raises for a broken file goes through."""
    from PIL import Image, ImageOps

    image = open_image(path, "L" if channels == 1 else "RGB", 2 * size)
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)).reshape(size, size, channels)


def read_images(
    paths: Sequence[Path],
    size: int,
    channels: int = 0,
    skip_unreadable: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Read:
    """Read files into one array. channels: 1, 3, or 0 for 1 where no image has any colour and 3 otherwise.

    Raises UserError naming the first file that cannot be read, unless these are skipped; Stopped when `stop()` says so.
    """
    formats()
    images = np.empty((len(paths), size, size, channels or 3), np.uint8)
    kept: list[int] = []
    unreadable: list[str] = []
    grey = True

    def read(path: Path) -> np.ndarray | str:
        try:
            return read_image(path, size, channels or 3)
        except MemoryError:
            raise
        except Exception as error:  # a broken file can raise nearly anything
            return why_unreadable(path, error)

    pool = ThreadPoolExecutor()
    try:
        for i, image in enumerate(pool.map(read, paths)):
            if stop():
                raise Stopped
            if isinstance(image, str):
                if not skip_unreadable:
                    raise UserError(f"{image}: repair or remove it, or leave such files out with --skip_unreadable")
                unreadable.append(image)
                continue
            images[len(kept)] = image
            grey = grey and bool((image == image[..., :1]).all())
            kept.append(i)
    finally:
        pool.shutdown(cancel_futures=True)
    images = images[: len(kept)]
    if channels == 0 and grey:
        images = np.ascontiguousarray(images[..., :1])
    return Read(images, np.array(kept, np.int64), tuple(unreadable), grey)


def read_split(
    found: ImageFolder,
    size: int,
    channels: int = 0,
    skip_unreadable: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Split, dict[str, Any]]:
    """The images of a folder, and how many there are: what `ModelInfo.examples` holds.

    Labelled and unlabelled images decide together between grey and colour; the test images follow.
    Raises UserError for an unreadable file, or when skipping them leaves a class, the unlabelled or the test part
    empty.
    """
    count = len(found.labeled)
    paths = [path for path, _ in found.labeled] + list(found.unlabeled)
    train = read_images(paths, size, channels, skip_unreadable, stop)
    is_labeled = train.kept < count
    labels = np.array([label for _, label in found.labeled], np.int64)[train.kept[is_labeled]]
    per_class = np.bincount(labels, minlength=len(found.class_names))
    if not per_class.all():
        raise UserError(
            f"no labelled image of class {found.class_names[int(per_class.argmin())]} can be read: add some"
        )
    labeled, unlabeled = train.images[is_labeled], train.images[~is_labeled]
    if found.unlabeled and not len(unlabeled):
        raise UserError(f"no unlabelled image in {found.root} can be read: add some")
    test, unreadable = None, train.unreadable
    if found.test is not None:
        read = read_images([path for path, _ in found.test], size, labeled.shape[-1], skip_unreadable, stop)
        if not len(read.images):
            raise UserError(f"no image in {found.root / TEST} can be read: add some or remove it")
        test = read.images, np.array([label for _, label in found.test], np.int64)[read.kept]
        unreadable += read.unreadable
    examples = {
        "labeled": dict(zip(found.class_names, per_class.tolist(), strict=True)),
        "unlabeled": len(unlabeled),
        "test": None if test is None else len(test[1]),
        "test_also_in_training": None if test is None else _repeated(train.images, test[0]),
        "unreadable": len(unreadable),
    }
    return Split((labeled, labels), unlabeled, test, len(found.class_names), SCALE), examples


def _repeated(images: np.ndarray, others: np.ndarray) -> int:
    """How many of the others are among the images, pixel by pixel."""
    seen = {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images}
    return sum(hashlib.blake2b(image.tobytes(), digest_size=16).digest() in seen for image in others)


# ---------------------------------------------------------------- the run


def describe(examples: Mapping[str, Any], image_shape: Sequence[int]) -> list[str]:
    """The data in words, one line each."""
    counts = examples["labeled"]
    classes = ", ".join(f"{name} {count}" for name, count in counts.items())
    if len(counts) > 12:
        classes = f"{len(counts)} classes of {min(counts.values())} to {max(counts.values())}"
    height, width, channels = image_shape
    test = "no test images" if examples["test"] is None else f"{examples['test']:,} test images"
    lines = [
        f"data: {sum(examples['labeled'].values()):,} labelled images ({classes}), {examples['unlabeled']:,} "
        f"unlabelled, {test}; {height}x{width} {'grey' if channels == 1 else 'colour'}"
    ]
    if examples["unreadable"]:
        lines.append(f"left out: {examples['unreadable']} files that cannot be read as images")
    if examples["test_also_in_training"]:
        lines.append(
            f"warning: {examples['test_also_in_training']} test images are also among the training images, which makes "
            "the test error too low"
        )
    if examples["test"] is None:
        lines.append("without a folder 'test' only the training losses are measured; no error of the model is known")
    return lines


def test_error_of(percent: float, count: int) -> dict[str, float]:
    """An error in percent of `count` images with its 95 % interval (Wilson): the images are a sample."""
    from scipy.stats import binomtest

    interval = binomtest(round(percent * count / 100), count).proportion_ci(0.95, "wilson")
    return {"percent": percent, "low": 100 * interval.low, "high": 100 * interval.high, "examples": count}


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """The run function: train on the images in `folder.data_dir`; writes weights.safetensors and model.json.

    config: `Config`'s settings, OWN_SETTINGS and the seed. {"test_error" (with a test folder), "train_error"}, percent.
    """
    settings = Config.of({name: value for name, value in config.items() if name not in OWN_SETTINGS})
    assert folder.data_dir is not None
    found = scan(folder.data_dir, settings.views_needed > 0)
    try:
        split, examples = read_split(
            found, config["size"], config["channels"], config["skip_unreadable"], lambda: folder.stop_requested
        )
        print(*describe(examples, split.labeled[0].shape[1:]), sep="\n", flush=True)
        from papers.mixmatch.module import train

        metrics = train(settings, split, config["seed"], folder)
    except MemoryError:
        raise UserError("the memory is not enough: lower --size, or use fewer unlabelled images") from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise UserError("the GPU's memory is not enough: lower --batch_size and --unlabeled_batch_size") from None
    info = ModelInfo(
        model=settings.model,
        class_names=found.class_names,
        size=config["size"],
        channels=split.labeled[0].shape[-1],
        config={name: value for name, value in config.items() if name != "seed"},
        examples=examples,
        seed=config["seed"],
        test_error=None if split.test is None else test_error_of(metrics["test_error"], len(split.test[1])),
    )
    write_json(folder.path / "model.json", {"schema_version": info.schema_version, **asdict(info)})
    return metrics
