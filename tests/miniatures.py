"""Small image sets in the official file formats, each with a SHA256SUMS of its own, for everybody's tests.

Every writer takes the folder that serves as DATA_DIR, makes `<name>/...` in it and returns the folder that holds the
files. Each class has a pattern of its own under noise, so a network can learn a miniature. All is a function of seed.
"""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np


def draw_images(
    count: int, height: int, width: int, channels: int, seed: int, classes: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [count, height, width, channels], labels int64 [count]); classes come in turn, then shuffled."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % classes)
    patterns = np.random.default_rng(7).integers(40, 216, (classes, height, width, channels))
    noise = generator.integers(-40, 41, (count, height, width, channels))
    return (patterns[labels] + noise).astype(np.uint8), labels


def write_checksums(folder: Path) -> None:
    """(Re)write SHA256SUMS over all other files of the folder, as sha256sum would."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def _write_all(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_checksums(folder)
    return folder


def _planes(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H * W * C] with colour planes first, as CIFAR stores images."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def python2_pickle(arrays: np.ndarray, labels: list[int], label_key: str) -> bytes:
    """The bytes that Python 2 wrote for CIFAR: texts are byte strings, protocol 2, NumPy's old module names."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    raw = arrays.tobytes()
    dtype = (
        b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN" + integer(-1) * 2 + b"K\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R(K\x01"
    array += integer(arrays.shape[0]) + integer(arrays.shape[1]) + b"\x86" + dtype + b"\x89"
    array += b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(integer(label) for label in labels) + b"e"
    names = b"](" + text("a.png") * len(labels) + b"e"
    items = text("data") + array + text(label_key) + numbers + text("filenames") + names
    return b"\x80\x02}(" + text("batch_label") + text("training batch 1 of 5") + items + b"u."


def write_cifar10(folder: Path, per_batch: int = 20, seed: int = 0, layout: str = "binary", test: bool = True) -> Path:
    """Five training batches and (if `test`) a test batch of per_batch images; layout "binary" or "python"."""
    contents = {}
    for number in range(1, 7):
        images, labels = draw_images(per_batch, 32, 32, 3, seed * 100 + number)
        name = "test_batch" if number == 6 else f"data_batch_{number}"
        if number == 6 and not test:
            continue
        if layout == "binary":
            rows = np.concatenate([labels[:, None].astype(np.uint8), _planes(images)], 1)
            contents[f"{name}.bin"] = rows.tobytes()
        else:
            contents[name] = python2_pickle(_planes(images), labels.tolist(), "labels")
    inner = "cifar-10-batches-bin" if layout == "binary" else "cifar-10-batches-py"
    return _write_all(Path(folder) / "cifar10" / inner, contents)


def write_cifar100(folder: Path, count: int = 200, seed: int = 0, layout: str = "binary") -> Path:
    """`count` training and test images of 100 classes; layout "binary" or "python"."""
    contents = {}
    for number, name in enumerate(("train", "test")):
        images, labels = draw_images(count, 32, 32, 3, seed * 100 + number, classes=100)
        if layout == "binary":
            both = np.stack([labels // 5, labels], 1).astype(np.uint8)
            contents[f"{name}.bin"] = np.concatenate([both, _planes(images)], 1).tobytes()
        else:
            contents[name] = python2_pickle(_planes(images), labels.tolist(), "fine_labels")
    inner = "cifar-100-binary" if layout == "binary" else "cifar-100-python"
    return _write_all(Path(folder) / "cifar100" / inner, contents)


def write_svhn(folder: Path, count: int = 60, seed: int = 0, extra: bool = True) -> Path:
    """`count` training and test images and (if `extra`) twice as many extra ones, in MATLAB files."""
    from scipy.io import savemat

    target = Path(folder) / "svhn"
    target.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("train", "test", "extra") if extra else ("train", "test")):
        images, labels = draw_images(count * (2 if name == "extra" else 1), 32, 32, 3, seed * 100 + number)
        stored_labels = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(
            target / f"{name}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": stored_labels}, do_compression=True
        )
    return _write_all(target, {})


def write_stl10(folder: Path, count: int = 20, unlabeled: int = 15, fold_size: int = 5, seed: int = 0) -> Path:
    """`count` training and test images, `unlabeled` ones, and 10 folds of fold_size."""
    contents = {}
    for number, (name, size) in enumerate((("train", count), ("test", count), ("unlabeled", unlabeled))):
        images, labels = draw_images(size, 96, 96, 3, seed * 100 + number)
        contents[f"{name}_X.bin"] = images.transpose(0, 3, 2, 1).tobytes()
        if name != "unlabeled":
            contents[f"{name}_y.bin"] = (labels + 1).astype(np.uint8).tobytes()
    generator = np.random.default_rng(seed)
    folds = [" ".join(map(str, generator.permutation(count)[:fold_size])) + " \n" for _ in range(10)]
    contents["fold_indices.txt"] = "".join(folds).encode()
    return _write_all(Path(folder) / "stl10" / "stl10_binary", contents)


def write_mnist(folder: Path, count: int = 60, seed: int = 0, gzipped: bool = True) -> Path:
    """`count` training and test images in idx files, gzipped or not."""
    contents = {}
    for number, name in enumerate(("train", "t10k")):
        images, labels = draw_images(count, 28, 28, 1, seed * 100 + number)
        pixels = struct.pack(">4i", 0x803, count, 28, 28) + images.tobytes()
        values = struct.pack(">2i", 0x801, count) + labels.astype(np.uint8).tobytes()
        for kind, content in (("images-idx3", pixels), ("labels-idx1", values)):
            full = f"{name}-{kind}-ubyte"
            contents[f"{full}.gz" if gzipped else full] = gzip.compress(content, mtime=0) if gzipped else content
    return _write_all(Path(folder) / "mnist", contents)


WRITERS = {
    "mnist": write_mnist,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
    "stl10": write_stl10,
}
