"""Data sets by name: `load("cifar10")` finds, checks and reads one; `locate` only finds it.

Importing this package needs NumPy only. The batches on the device are in `common.data.loader`, the augmentation in
`common.data.augment` (these import torch), the labelled/unlabelled splits in `common.data.splits`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data import formats
from common.data.catalog import DATASETS, DIGITS_SHA256, DatasetInfo, Layout, dataset_info, licence_table
from common.data.files import check, read_archive, read_folder
from common.data.formats import Images, concatenate
from common.data.location import Location, locate
from common.errors import UserError

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetInfo",
    "Images",
    "Location",
    "concatenate",
    "dataset_info",
    "licence_table",
    "load",
    "locate",
]


@dataclass(frozen=True)
class Dataset:
    """A set in memory.

    name: as asked for, or "custom" where the files came with checksums of their own. train, test: may be empty
    (digits has no test part). unlabeled: STL-10's. extra: SVHN's with split="extra". folds: STL-10's, int64
    [10, 1000] indices into train. label: the data in words. fingerprint: as `locate` gives it.
    """

    name: str
    train: Images
    test: Images
    unlabeled: Images | None
    extra: Images | None
    folds: np.ndarray | None
    class_names: tuple[str, ...]
    label: str
    fingerprint: str


def load(name: str, split: str = "official", data_dir: Path | str | None = None) -> Dataset:
    """Read a set: digits, mnist, cifar10, cifar100, svhn or stl10.

    split: "official"; "holdout" for cifar10 (training batches 1-4 against batch 5, needs no test batch); "extra" for
    svhn (official with the extra images, which are not read otherwise). It looks in DATA_DIR/<name> (`data_dir`, or
    the environment variable), then in the Hugging Face cache and hub. Every file is checked before it is parsed.
    Raises UserError in one line for everything `locate` does and for a truncated, altered or foreign file, by name.
    """
    location = locate(name, data_dir, split)
    info = dataset_info(name, split)
    folds = None
    if location.kind == "built-in":
        parts = _digits()
    elif location.layout is None:
        parts = _from_hub(info, split)
    else:
        parts, folds = _from_files(location, info)
    train, test = parts["train"][0], parts.get("test")
    if split == "holdout":
        train, test = concatenate(*parts["train"][:-1]), parts["train"][-1:]
    elif len(parts["train"]) > 1:
        train = concatenate(*parts["train"])
    return Dataset(
        name="custom" if location.kind == "custom" else name,
        train=train,
        test=test[0] if test else formats.empty(*train.images.shape[1:]),
        unlabeled=parts["unlabeled"][0] if "unlabeled" in parts else None,
        extra=concatenate(*parts["extra"]) if "extra" in parts else None,
        folds=folds,
        class_names=info.class_names,
        label=location.label,
        fingerprint=location.fingerprint,
    )


def _digits() -> dict[str, list[Images]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    digits = Images(bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int64))
    content = digits.images.tobytes() + digits.labels.astype(np.uint8).tobytes()
    check(content, f"sha256:{DIGITS_SHA256}", "the digits inside scikit-learn")
    return {"train": [digits]}


def _from_files(location: Location, info: DatasetInfo) -> tuple[dict[str, list[Images]], np.ndarray | None]:
    """Read and check the split's files, then parse them: the images of each role, a list entry for each file."""
    layout, path = location.layout, location.path
    assert layout is not None and path is not None
    names = [file.name for role in info.splits[location.split] for file in layout.parts[role]]
    digests = dict(location.digests)
    contents = read_folder(path, names, digests) if path.is_dir() else read_archive(path, layout, names, digests)
    return _parse(layout, info, contents, str(path))


def _parse(
    layout: Layout, info: DatasetInfo, contents: Mapping[str, bytes], where: str
) -> tuple[dict[str, list[Images]], np.ndarray | None]:
    """Arrays from the contents of a layout's files (by name): images by role and file, and STL-10's folds."""
    parts: dict[str, list[Images]] = {}
    folds = None
    classes = len(info.class_names)
    for role, files in layout.parts.items():
        names = [file.name for file in files if file.name in contents]
        if not names:
            continue
        paths = [f"{where}/{name}" for name in names]
        data = [contents[name] for name in names]
        if layout.format.endswith("-binary"):
            parts[role] = [formats.cifar_binary(d, p, classes) for d, p in zip(data, paths, strict=True)]
        elif layout.format.endswith("-python"):
            parts[role] = [formats.cifar_python(d, p, classes) for d, p in zip(data, paths, strict=True)]
        elif layout.format == "svhn":
            parts[role] = [formats.svhn_mat(data[0], paths[0])]
        elif layout.format == "idx":
            parts[role] = [formats.idx_pair(data[0], data[1], (paths[0], paths[1]), classes)]
        elif role == "folds":
            folds = formats.stl10_folds(data[0], paths[0], len(parts["train"][0].images))
        else:
            images = formats.stl10_images(data[0], paths[0])
            labels = np.full(len(images), -1)
            if len(data) > 1:
                labels = formats.stl10_labels(data[1], paths[1], len(images))
            parts[role] = [Images(images, labels)]
    return parts, folds


def _from_hub(info: DatasetInfo, split: str) -> dict[str, list[Images]]:
    """Read the pinned revision's Parquet files, from the cache or downloaded into it."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(f"{info.name} from the Hugging Face hub needs its library: pip install datasets") from None
    hub = info.hub
    assert hub is not None
    parts = {}
    for role in info.splits[split]:
        paths = []
        for file in hub.parts[role]:
            try:
                path = hf_hub_download(
                    hub.repository, file.path, repo_type="dataset", revision=hub.revision, etag_timeout=5
                )
            except Exception as error:  # network, disk and server errors of several libraries
                cause = " ".join(str(error).split())[:200]
                raise UserError(
                    f"{hub.repository} could not be fetched from the Hugging Face hub ({cause}): try again, or put "
                    f"the official files ({info.source}) into DATA_DIR/{info.name}"
                ) from None
            if file.sha256 and hashlib.sha256(Path(path).read_bytes()).hexdigest() != file.sha256:
                raise UserError(f"{path} is truncated or altered: delete it from the Hugging Face cache and try again")
            paths.append(path)
        parts[role] = [formats.parquet(paths, hub.image_column, hub.label_column, len(info.class_names))]
    if split == "holdout":
        # The hub keeps the official order, 10,000 images a batch.
        images, labels = parts["train"][0]
        fifth = len(images) // 5
        parts["train"] = [Images(images[i : i + fifth], labels[i : i + fifth]) for i in range(0, 5 * fifth, fifth)]
    return parts
