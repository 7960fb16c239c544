"""The official file formats of the image sets, each as a function from a file's bytes to arrays.

`where` names the file in errors. All raise UserError when the bytes are not what the format says: that is how an
empty, truncated or foreign file shows in a set that has checksums of its own.
"""

import io
from typing import Any, NamedTuple, NoReturn

import numpy as np

from common.data.pickles import read_pickle
from common.errors import UserError


class Images(NamedTuple):
    """images: uint8 [N, H, W, C]; labels: int64 [N], -1 where an image has none."""

    images: np.ndarray
    labels: np.ndarray


def concatenate(*parts: Images) -> Images:
    """The images and labels of all parts, in order."""
    return Images(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def empty(height: int, width: int, channels: int) -> Images:
    """No images of this shape."""
    return Images(np.zeros((0, height, width, channels), np.uint8), np.zeros(0, np.int64))


def _wrong(where: str, what: str) -> NoReturn:
    raise UserError(f"{where} is damaged or in the wrong format ({what}): get a fresh copy")


def _labels(values: np.ndarray, num_classes: int, where: str) -> np.ndarray:
    labels = values.astype(np.int64)
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        _wrong(where, f"labels from {labels.min()} to {labels.max()} for {num_classes} classes")
    return labels


def cifar_binary(data: bytes, where: str, num_classes: int) -> Images:
    """CIFAR's binary format: per image the label byte (CIFAR-100: coarse, then fine) and 3 x 32 x 32 plane bytes."""
    label_bytes = 2 if num_classes == 100 else 1
    record = label_bytes + 3072
    if not data or len(data) % record:
        _wrong(where, f"{len(data)} bytes are not a whole number of images")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Images(np.ascontiguousarray(images), _labels(rows[:, label_bytes - 1], num_classes, where))


def cifar_python(data: bytes, where: str, num_classes: int) -> Images:
    """CIFAR's python format: a pickled dictionary with `data` [N, 3072] uint8 and `labels` (or `fine_labels`)."""
    content = read_pickle(data, where)
    if not isinstance(content, dict):
        _wrong(where, "no dictionary")
    named: dict[str, Any] = {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in content.items()}
    pixels, labels = named.get("data"), named.get("fine_labels" if num_classes == 100 else "labels")
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (3072,)):
        _wrong(where, "no uint8 array of 3072-pixel rows called data")
    if isinstance(labels, list) and all(type(label) is int for label in labels):
        labels = np.array(labels)
    if not (isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.shape == (len(pixels),)):
        _wrong(where, "not one label for each image")
    if not len(pixels):
        _wrong(where, "no images")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Images(np.ascontiguousarray(images), _labels(labels, num_classes, where))


def svhn_mat(data: bytes, where: str) -> Images:
    """SVHN's cropped digits: a MATLAB 5 file with X [32, 32, 3, N] uint8 and y [N, 1], in which 10 means digit 0."""
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(data), variable_names=["X", "y"])
    except Exception as error:  # SciPy's reader fails in many ways on foreign bytes
        _wrong(where, f"no MATLAB file: {type(error).__name__}")
    pixels, labels = content.get("X"), content.get("y")
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[2] == 3):
        _wrong(where, "no uint8 array X of shape [32, 32, 3, N]")
    if not (isinstance(labels, np.ndarray) and labels.dtype.kind in "uif" and labels.size == pixels.shape[3] > 0):
        _wrong(where, "not one label y for each image")
    images = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
    digits = labels.astype(np.int64).reshape(-1)
    return Images(images, _labels(np.where(digits == 10, 0, digits), 10, where))


def stl10_images(data: bytes, where: str) -> np.ndarray:
    """STL-10's images: 96 x 96 x 3 bytes each, colour planes first and columns before rows; uint8 [N, 96, 96, 3]."""
    if not data or len(data) % 27648:
        _wrong(where, f"{len(data)} bytes are not a whole number of 96x96 images")
    planes = np.frombuffer(data, np.uint8).reshape(-1, 3, 96, 96)
    return np.ascontiguousarray(planes.transpose(0, 3, 2, 1))


def stl10_labels(data: bytes, where: str, count: int) -> np.ndarray:
    """STL-10's labels: one byte each, 1..10; int64 [count] from 0."""
    if len(data) != count:
        _wrong(where, f"{len(data)} labels for {count} images")
    return _labels(np.frombuffer(data, np.uint8).astype(np.int64) - 1, 10, where)


def stl10_folds(data: bytes, where: str, count: int) -> np.ndarray:
    """STL-10's folds: a line of training-image numbers (from 0) for each; int64 [folds, size]."""
    try:
        folds = [[int(number) for number in line.split()] for line in data.decode("ascii").splitlines() if line.split()]
        table = np.array(folds, np.int64)
    except ValueError:
        _wrong(where, "no lines of equally many numbers")
    if table.ndim != 2 or table.min() < 0 or table.max() >= count:
        _wrong(where, f"no lines of numbers below {count}")
    return table


def idx(data: bytes, where: str, dimensions: int) -> np.ndarray:
    """MNIST's idx format of unsigned bytes: magic 0 0 8 d, d big-endian sizes, the bytes; uint8 of those sizes."""
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        _wrong(where, f"no idx file of bytes in {dimensions} dimensions")
    shape = tuple(np.frombuffer(data, ">u4", dimensions, offset=4).tolist())
    if len(data) - header != int(np.prod(shape, dtype=np.float64)) or 0 in shape:
        _wrong(where, f"{len(data) - header} bytes for sizes {list(shape)}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def idx_pair(images: bytes, labels: bytes, where: tuple[str, str], num_classes: int = 10) -> Images:
    """MNIST's images and labels; where: the names of the two files."""
    pixels, values = idx(images, where[0], 3), idx(labels, where[1], 1)
    if len(pixels) != len(values):
        _wrong(where[1], f"{len(values)} labels for {len(pixels)} images")
    return Images(pixels[..., None], _labels(values, num_classes, where[1]))


def parquet(files: list[str], image_column: str, label_column: str, num_classes: int) -> Images:
    """Images stored as PNG bytes in the hub's Parquet files, in order; greyscale images get one channel."""
    import pyarrow.parquet as pq
    from PIL import Image

    images, labels = [], []
    for name in files:
        try:
            for batch in pq.ParquetFile(name).iter_batches(4096, columns=[image_column, label_column]):
                labels.append(batch.column(label_column).to_numpy(zero_copy_only=False))
                for cell in batch.column(image_column).to_pylist():
                    pixels = np.asarray(Image.open(io.BytesIO(cell["bytes"])))
                    images.append(pixels[..., None] if pixels.ndim == 2 else pixels)
        except Exception as error:  # Arrow and Pillow each have their own families of errors
            _wrong(name, f"{type(error).__name__}")
    if len({(pixels.shape, pixels.dtype) for pixels in images}) != 1 or images[0].dtype != np.uint8:
        _wrong(files[0], "images of several sizes or types")
    return Images(np.stack(images), _labels(np.concatenate(labels), num_classes, files[0]))
