"""Files as arrays: the real sets of the paper and its stand-ins, and the user's own text, images and music.

Nothing here splits or batches (`papers.sparse_transformer.data` does). All functions raise UserError in one line for
what is missing, damaged or in another format, by the file's name.
"""

import csv
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data import load
from common.data.corpora import (
    IMAGENET64_PARTS,
    Found,
    check_archive,
    content,
    png_files,
    python_source,
    read_file,
    wav_files,
)
from common.data.images import image_files, open_image, why_unreadable
from common.data.splits import train_test_split
from common.errors import UserError
from papers.sparse_transformer.music import RATE, chorale_tokens, encode_mu_law, read_wav

CIFAR_VALIDATION, CIFAR_SEED = 2000, 11_172_018
IMAGENET_VALIDATION = 50_000
PARTS = ("train", "validation", "test")
Three = tuple[np.ndarray, np.ndarray, np.ndarray]


def as_bytes(data: bytes) -> np.ndarray:
    """uint8 [N], writable as torch wants it."""
    return np.frombuffer(data, np.uint8).copy()


def split_stream(data: np.ndarray, least: int = 0) -> Three:
    """Train, validation and test of one stream [N]: the last 5 % and the 5 % before, but no less than `least`."""
    held = max(len(data) // 20, least)
    first, second = max(0, len(data) - 2 * held), max(0, len(data) - held)
    return data[:first], data[first:second], data[second:]


def cifar10(split: str, side: int, data_dir: Path | None) -> tuple[Three, str]:
    """CIFAR-10 as uint8 [N, side, side, 3], and its label: the training part less 2,000 random images, these, test.

    The 2,000 are those of the code of distribution augmentation (scikit-learn's `train_test_split`, not stratified;
    it takes 5,000 by default, the paper 2,000). split: "official" or "holdout" (as `common.data.load`). side: 32, or
    a divisor of it, to which images are reduced.
    """
    data = load("cifar10", split, data_dir)
    train, validation = train_test_split(len(data.train.images), CIFAR_VALIDATION, CIFAR_SEED)
    parts = data.train.images[train], data.train.images[validation], data.test.images
    first, second, third = (reduced(part, side) for part in parts)
    return (first, second, third), data.label if side == 32 else f"{data.label}, reduced to {side}x{side}"


def reduced(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 [N, H, W, C] to [N, side, side, C]: means over equal areas, halves rounded up. UserError if none fit."""
    count, height, width, channels = images.shape
    if side < 1 or height != width or height % side:
        raise UserError(f"{height}x{width} images cannot be reduced to {side}x{side}: choose a divisor of {height}")
    k = height // side
    if k == 1:
        return images
    out = np.empty((count, side, side, channels), np.uint8)
    for first in range(0, count, 4096):  # sums in 16 bits would be large for all images at once
        blocks = images[first : first + 4096].reshape(-1, side, k, side, k, channels)
        out[first : first + 4096] = (blocks.sum((2, 4), dtype=np.uint32) + k * k // 2) // (k * k)
    return out


def imdb(found: Found, limit: int = 0) -> np.ndarray:
    """The unlabelled reviews, uint8 [N]: UTF-8, in the order of their numbers, each ended by a newline.

    Tabs and newlines inside a review are spaces. limit: only the first so many bytes (0: all).
    """
    if found.layout == "file":
        reviews: Iterable[bytes] = (line.rpartition(b"\t")[2] for line in content(found).split(b"\n") if line)
    elif found.layout == "folder":
        assert found.path is not None
        files = sorted((p for p in found.path.iterdir() if p.suffix == ".txt"), key=lambda p: _number(p.name))
        reviews = (_one_line(file.read_bytes()) for file in files)
    else:
        reviews = _imdb_archive(found)
    text = b"\n".join(reviews) + b"\n"
    return as_bytes(text[:limit] if limit else text)


def _one_line(review: bytes) -> bytes:
    return re.sub(rb"[\t\r\n]+", b" ", review.strip())


def _number(name: str) -> tuple[int, str]:
    digits = re.match(r"\d*", name)
    return int((digits and digits.group()) or 0), name


def _imdb_archive(found: Found) -> list[bytes]:
    assert found.path is not None
    check_archive(found)
    reviews: dict[str, bytes] = {}
    try:
        with tarfile.open(found.path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is not None and re.fullmatch(r"aclImdb/train/unsup/\d+_0\.txt", member.name):
                    reviews[Path(member.name).name] = _one_line(stream.read())
    except (tarfile.TarError, OSError, EOFError):
        raise UserError(f"{found.path} is not a whole archive: get a fresh copy") from None
    return [reviews[name] for name in sorted(reviews, key=_number)]


def imagenet64(found: Found) -> Three:
    """Downsampled ImageNet as uint8 [N, 12288]: the training images less the last 50,000, these, and `valid` as test.

    Images come in the order of their names (of an .npy file: in its own). Validation is never more than a twentieth.
    """
    assert found.path is not None
    parts = [found.path / name for name in IMAGENET64_PARTS[found.layout]]
    read: Callable[[Path], np.ndarray] = {"folder": _png_folder, "tar": _png_tar, "npy": _npy_64}[found.layout]
    train, test = (read(part) for part in parts)
    held = min(IMAGENET_VALIDATION, max(1, len(train) // 20))
    return train[:-held], train[-held:], test


def _png_folder(folder: Path) -> np.ndarray:
    names = png_files(folder)
    return _stack_64(len(names), ((f"{folder / name}", (folder / name).read_bytes) for name in names))


def _png_tar(path: Path) -> np.ndarray:
    try:
        with tarfile.open(path) as archive:
            members = sorted((m for m in archive if m.isreg() and m.name.endswith(".png")), key=lambda m: m.name)

            def reader(member: tarfile.TarInfo) -> Callable[[], bytes]:
                stream = archive.extractfile(member)
                assert stream is not None  # it is a regular file
                return stream.read

            return _stack_64(len(members), ((f"{path}:{m.name}", reader(m)) for m in members))
    except (tarfile.TarError, OSError, EOFError):
        raise UserError(f"{path} is not a whole archive: get a fresh copy") from None


def _stack_64(count: int, files: Iterable[tuple[str, Callable[[], bytes]]]) -> np.ndarray:
    from PIL import Image

    if count < 2:
        raise UserError("downsampled ImageNet needs at least two images in each part: get a fresh copy")
    out = np.empty((count, 64 * 64 * 3), np.uint8)
    for row, (where, read) in enumerate(files):
        try:
            pixels = np.asarray(Image.open(io.BytesIO(read()), formats=["PNG"]).convert("RGB"))
        except Exception as error:  # Pillow's decoders have many families of errors
            raise UserError(f"{where} is no whole PNG file ({type(error).__name__}): get a fresh copy") from None
        if pixels.shape != (64, 64, 3):
            raise UserError(f"{where} is {pixels.shape[1]}x{pixels.shape[0]}, not 64x64: get the set of that size")
        out[row] = pixels.reshape(-1)
    return out


def _npy_64(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is no whole .npy file ({' '.join(str(error).split())}): get a fresh copy") from None
    if array.dtype != np.uint8 or array.size % 12_288 or array.size < 2 * 12_288:
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}, not uint8 64x64x3: get a fresh copy")
    return array.reshape(-1, 12_288)


def chorales(data: bytes, where: str) -> Three:
    """Tokens of the chorales in a JSON file {"train", "valid", "test": [piece: [step: [four pitches or -1]]]}."""
    try:
        pieces = json.loads(data)
        first, second, third = (chorale_tokens(map(np.asarray, pieces[part])) for part in ("train", "valid", "test"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"no part {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:100]
        raise UserError(f"{where} does not hold chorales as Jsb16thSeparated.json does ({reason})") from None
    return first, second, third


def piano(found: Found) -> Three:
    """Mu-law samples of all WAV files at 12 kHz, each file whole in one part: as MAESTRO's table says, or by order."""
    assert found.path is not None
    files = wav_files(found.path)
    table = next((file for file in image_files(found.path) if file.match("maestro-v*.csv")), None)
    if table is None:
        return recordings(files, RATE)
    try:
        rows = list(csv.DictReader(io.StringIO(read_file(table).decode("utf-8-sig"))))
        part_of = {Path(row["audio_filename"]).name: PARTS.index(row["split"]) for row in rows}
    except (KeyError, ValueError):
        raise UserError(f"{table} has no columns audio_filename and split: get the official file") from None
    return recordings(files, RATE, [part_of.get(file.name, 0) for file in files])


def recordings(files: Sequence[Path], rate: int = RATE, part_of: Sequence[int] | None = None) -> Three:
    """WAV files as mu-law tokens in train, validation and test. part_of: 0, 1 or 2 for each file.

    By default, of every 20 files (or of all, if fewer) the last is test and the one before it validation; fewer than
    three files give 5 % of their length each.
    """
    if part_of is None:
        step = min(20, len(files))
        part_of = [{step - 1: 2, step - 2: 1}.get(i % step, 0) for i in range(len(files))]
    tokens = [encode_mu_law(read_wav(file, rate)) for file in files]
    if set(part_of) != {0, 1, 2}:
        return split_stream(np.concatenate(tokens))
    first, second, third = (
        np.concatenate([t for t, p in zip(tokens, part_of, strict=True) if p == part]) for part in range(3)
    )
    return first, second, third


def python() -> np.ndarray:
    """The standard library of the running Python, uint8 [N] below 128."""
    return as_bytes(python_source())


def own_text(files: Sequence[Path]) -> np.ndarray:
    """Any files as bytes, one after the other, uint8 [N]; .gz, .bz2, .xz and .zip are decompressed."""
    return as_bytes(b"".join(read_file(file) for file in files))


def own_images(files: Sequence[Path]) -> np.ndarray:
    """Images of one size as uint8 [N, H, W, C], from image files or one .npy/.npz array; C is 1 where all are grey."""
    if len(files) == 1 and files[0].suffix.lower() in (".npy", ".npz"):
        return _own_array(files[0])
    images: list[np.ndarray] = []
    for file in files:
        try:
            pixels = np.asarray(open_image(file))
        except Exception as error:  # Pillow's decoders have many families of errors
            raise UserError(f"{why_unreadable(file, error)}: remove it or replace it") from None
        if images and pixels.shape != images[0].shape:
            (h, w, _), (height, width, _) = pixels.shape, images[0].shape
            raise UserError(f"{file} is {w}x{h}, but {files[0]} is {width}x{height}: give all images the same size")
        images.append(pixels)
    stacked = np.stack(images)
    grey = bool((stacked == stacked[..., :1]).all())
    return stacked[..., :1].copy() if grey else stacked


def _own_array(path: Path) -> np.ndarray:
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        arrays = {path.stem: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: correct its name") from None
    except Exception as error:  # zip and array errors of several families
        raise UserError(f"{path} cannot be read as NumPy arrays ({type(error).__name__}): write it again") from None
    fitting = [array for array in arrays.values() if array.dtype == np.uint8 and array.ndim in (3, 4) and array.size]
    if len(fitting) != 1:
        raise UserError(f"{path} has {len(fitting)} uint8 arrays of shape [N, H, W] or [N, H, W, C]: give it one")
    return fitting[0][..., None] if fitting[0].ndim == 3 else fitting[0]


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files themselves, and those below folders that are not hidden; UserError where there is none."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist: correct its name")
        found = image_files(path) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path} is an empty folder: put files there")
        files += found
    return files


def holds_chorales(path: Path) -> bool:
    """Whether a JSON file, maybe compressed, has the three parts of chorales."""
    if ".json" not in path.suffixes[-2:]:
        return False
    data = read_file(path)
    return data.lstrip()[:1] == b"{" and all(f'"{part}"'.encode() in data for part in ("train", "valid", "test"))


def pieces_of(files: Sequence[Path]) -> Three:
    """Chorales of the user's JSON file."""
    if len(files) != 1:
        raise UserError(f"{len(files)} files of chorales: give one JSON file with train, valid and test")
    return chorales(read_file(files[0]), str(files[0]))
