"""The one table of image sets: what their official files are called and contain, where they come from, their licence.

Checksums are of the decompressed content. CIFAR's python files, SVHN and STL-10: the lists in torchvision's sources;
CIFAR-10 binary: the lists that several public C++ projects ship, recomputed for the training batches; CIFAR-100
binary: torchvision for Ruby; MNIST: recomputed, and equal to the published sums. A hub revision is a full commit id of
the data set's repository, with the SHA-256 of its Parquet files where public sources state it. STL-10 has no copy on
the hub that its authors or the hub maintain.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from common.errors import UserError


@dataclass(frozen=True)
class File:
    """One official file: its name and "md5:..." or "sha256:..." of its decompressed content ("" where none is known).

    `optional` files (class names) may be missing and are not part of the fingerprint.
    """

    name: str
    digest: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Layout:
    """One official file format of a set.

    folder: the archive's inner folder; archive: its name without suffix; format: what common.data.formats reads it
    with; parts: files by role - "train", "test", "extra", "unlabeled", "folds".
    """

    format: str
    folder: str
    archive: str
    parts: Mapping[str, tuple[File, ...]]


@dataclass(frozen=True)
class HubFile:
    """A Parquet file in the hub's repository and its SHA-256 ("" where no public source states it)."""

    path: str
    sha256: str = ""


@dataclass(frozen=True)
class Hub:
    """A data set's repository on the Hugging Face hub at one commit."""

    repository: str
    revision: str
    image_column: str
    label_column: str
    parts: Mapping[str, tuple[HubFile, ...]]


@dataclass(frozen=True)
class DatasetInfo:
    """One row of the table. `splits` maps each split to the roles it reads; digits has no files and no layouts."""

    name: str
    title: str
    contents: str
    source: str
    licence: str
    redistributable: str
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"official": ("train", "test")})
    layouts: tuple[Layout, ...] = ()
    hub: Hub | None = None


_DIGIT_NAMES = tuple("0123456789")
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_CIFAR100_TEXT = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100_NAMES = tuple(_CIFAR100_TEXT.split())

_CIFAR10_BINARY = Layout(
    format="cifar10-binary",
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary",
    parts={
        "train": (
            File("data_batch_1.bin", "md5:5dd7e06a14cb22eb9f671a540d1b7c25"),
            File("data_batch_2.bin", "md5:5ea93a67294ea407fff1d09f752e9692"),
            File("data_batch_3.bin", "md5:942cd6a4bcdd0dd3c604fbe906cb4421"),
            File("data_batch_4.bin", "md5:ae636b3ba5c66a11e91e8cb52e771fcb"),
            File("data_batch_5.bin", "md5:53f37980c15c3d472c316c40844f3f0d"),
        ),
        "test": (File("test_batch.bin", "md5:803d5f7f4d78ea53de84dbe85f74fb6d"),),
    },
)
_CIFAR10_PYTHON = Layout(
    format="cifar10-python",
    folder="cifar-10-batches-py",
    archive="cifar-10-python",
    parts={
        "train": (
            File("data_batch_1", "md5:c99cafc152244af753f735de768cd75f"),
            File("data_batch_2", "md5:d4bba439e000b95fd0a9bffe97cbabec"),
            File("data_batch_3", "md5:54ebc095f3ab1f0389bbae665268c751"),
            File("data_batch_4", "md5:634d18415352ddfa80567beed471001a"),
            File("data_batch_5", "md5:482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        "test": (File("test_batch", "md5:40351d587109b95175f43aff81a1287e"),),
    },
)
_CIFAR100_BINARY = Layout(
    format="cifar100-binary",
    folder="cifar-100-binary",
    archive="cifar-100-binary",
    parts={
        "train": (File("train.bin", "sha256:f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"),),
        "test": (File("test.bin", "sha256:d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"),),
    },
)
_CIFAR100_PYTHON = Layout(
    format="cifar100-python",
    folder="cifar-100-python",
    archive="cifar-100-python",
    parts={
        "train": (File("train", "md5:16019d7e3df5f24257cddd939b257f8d"),),
        "test": (File("test", "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    },
)
_SVHN_MATLAB = Layout(
    format="svhn",
    folder="",
    archive="",
    parts={
        "train": (File("train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),),
        "test": (File("test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),),
        "extra": (File("extra_32x32.mat", "md5:a93ce644f1a588dc4d68dda5feec44a7"),),
    },
)
_STL10_BINARY = Layout(
    format="stl10",
    folder="stl10_binary",
    archive="stl10_binary",
    parts={
        "train": (
            File("train_X.bin", "md5:918c2871b30a85fa023e0c44e0bee87f"),
            File("train_y.bin", "md5:5a34089d4802c674881badbb80307741"),
        ),
        "test": (
            File("test_X.bin", "md5:7f263ba9f9e0b06b93213547f721ac82"),
            File("test_y.bin", "md5:36f9794fa4beb8a2c72628de14fa638e"),
        ),
        "unlabeled": (File("unlabeled_X.bin", "md5:5242ba1fed5e4be9e1e742405eb56ca4"),),
        "folds": (File("fold_indices.txt"),),
    },
)
_MNIST_IDX = Layout(
    format="idx",
    folder="",
    archive="",
    parts={
        "train": (
            File("train-images-idx3-ubyte", "md5:6bbc9ace898e44ae57da46a324031adb"),
            File("train-labels-idx1-ubyte", "md5:a25bea736e30d166cdddb491f175f624"),
        ),
        "test": (
            File("t10k-images-idx3-ubyte", "md5:2646ac647ad5339dbf082846283269ea"),
            File("t10k-labels-idx1-ubyte", "md5:27ae3e4e09519cfbb04c329615203637"),
        ),
    },
)

DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""Of scikit-learn's digits: the 1,797 images as uint8 in C order, then the labels as uint8."""

HOLDOUT = "holdout of the training set (train 1-4, test 5)"
"""What every label says where CIFAR-10's fifth training batch stands in for its test batch."""

DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="digits",
            title="digits",
            contents="1,797 grey 8x8 images, 10 classes",
            source="built into scikit-learn (UCI Optical Recognition of Handwritten Digits, test part)",
            licence="CC BY 4.0",
            redistributable="yes",
            class_names=_DIGIT_NAMES,
            splits={"official": ()},
        ),
        DatasetInfo(
            name="mnist",
            title="MNIST",
            contents="60,000 + 10,000 grey 28x28 images, 10 classes",
            source="http://yann.lecun.com/exdb/mnist/",
            licence="CC BY-SA 3.0",
            redistributable="yes",
            class_names=_DIGIT_NAMES,
            layouts=(_MNIST_IDX,),
            hub=Hub(
                "ylecun/mnist",
                "77f3279092a1c1579b2250db8eafed0ad422088c",
                "image",
                "label",
                {
                    "train": (
                        HubFile(
                            "mnist/train-00000-of-00001.parquet",
                            "f2c01285a9f89399335b00ee4e8d499dc4e46db5e39c74903ce5618d895eb3bf",
                        ),
                    ),
                    "test": (
                        HubFile(
                            "mnist/test-00000-of-00001.parquet",
                            "d49fcf556ce25b002b302e318ce4a11098bbfe5d4499c3f35d7c72297c52374b",
                        ),
                    ),
                },
            ),
        ),
        DatasetInfo(
            name="cifar10",
            title="CIFAR-10",
            contents="50,000 + 10,000 colour 32x32 images, 10 classes",
            source="https://www.cs.toronto.edu/~kriz/cifar.html",
            licence="none stated; research use with citation (Krizhevsky 2009)",
            redistributable="not stated",
            class_names=_CIFAR10_NAMES,
            splits={"official": ("train", "test"), "holdout": ("train",)},
            layouts=(_CIFAR10_BINARY, _CIFAR10_PYTHON),
            hub=Hub(
                "uoft-cs/cifar10",
                "0b2714987fa478483af9968de7c934580d0bb9a2",
                "img",
                "label",
                {
                    "train": (
                        HubFile(
                            "plain_text/train-00000-of-00001.parquet",
                            "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
                        ),
                    ),
                    "test": (
                        HubFile(
                            "plain_text/test-00000-of-00001.parquet",
                            "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
                        ),
                    ),
                },
            ),
        ),
        DatasetInfo(
            name="cifar100",
            title="CIFAR-100",
            contents="50,000 + 10,000 colour 32x32 images, 100 classes",
            source="https://www.cs.toronto.edu/~kriz/cifar.html",
            licence="none stated; research use with citation (Krizhevsky 2009)",
            redistributable="not stated",
            class_names=_CIFAR100_NAMES,
            layouts=(_CIFAR100_BINARY, _CIFAR100_PYTHON),
            hub=Hub(
                "uoft-cs/cifar100",
                "aadb3af77e9048adbea6b47c21a81e47dd092ae5",
                "img",
                "fine_label",
                {
                    "train": (
                        HubFile(
                            "cifar100/train-00000-of-00001.parquet",
                            "694865d6b990e234804f01268586c41e88bcbbb75e20858432c05ad4081aca23",
                        ),
                    ),
                    "test": (
                        HubFile(
                            "cifar100/test-00000-of-00001.parquet",
                            "98776c529bb146a9c791229df74a5cf076be9b43d82dbbd334b6a7788d73dc68",
                        ),
                    ),
                },
            ),
        ),
        DatasetInfo(
            name="svhn",
            title="SVHN (cropped digits)",
            contents="73,257 + 26,032 colour 32x32 images, 10 classes; split=extra adds 531,131",
            source="http://ufldl.stanford.edu/housenumbers/",
            licence="non-commercial use only",
            redistributable="no",
            class_names=_DIGIT_NAMES,
            splits={"official": ("train", "test"), "extra": ("train", "test", "extra")},
            layouts=(_SVHN_MATLAB,),
            hub=Hub(
                "ufldl-stanford/svhn",
                "f9e1717d73324ebbc1ece84267ccd80d0aca0690",
                "image",
                "label",
                {
                    "train": (HubFile("cropped_digits/train-00000-of-00001.parquet"),),
                    "test": (HubFile("cropped_digits/test-00000-of-00001.parquet"),),
                    "extra": (
                        HubFile("cropped_digits/extra-00000-of-00002.parquet"),
                        HubFile("cropped_digits/extra-00001-of-00002.parquet"),
                    ),
                },
            ),
        ),
        DatasetInfo(
            name="stl10",
            title="STL-10",
            contents="5,000 (10 folds of 1,000) + 8,000 + 100,000 unlabeled colour 96x96 images, 10 classes",
            source="https://cs.stanford.edu/~acoates/stl10/",
            licence="none stated; research use with citation (images from ImageNet)",
            redistributable="not stated",
            class_names=_STL10_NAMES,
            splits={"official": ("train", "test", "unlabeled", "folds")},
            layouts=(_STL10_BINARY,),
        ),
    )
}


def dataset_info(name: str, split: str = "official") -> DatasetInfo:
    """The row of a set by name. UserError lists the known names, or the set's splits."""
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    info = DATASETS[name]
    if split not in info.splits:
        raise UserError(f"{name} has no split {split!r}: choose one of {', '.join(info.splits)}")
    return info


def official_fingerprint(info: DatasetInfo, split: str) -> str:
    """Names the official content that a split reads; the same for every layout of it (they hold the same images)."""
    if not info.layouts:
        return f"{info.name}-{DIGITS_SHA256[:16]}"
    digests = [file.digest for layout in info.layouts for role in info.splits[split] for file in layout.parts[role]]
    return fingerprint(info.name, split, *digests)


def fingerprint(*parts: str) -> str:
    """32 hexadecimal digits of SHA-256 over texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def licence_table() -> str:
    """The table of sets, contents, licences and whether they may be redistributed, as Markdown for the README."""
    rows = ["| set | contents | licence | may be redistributed | source |", "| --- | --- | --- | --- | --- |"]
    for info in DATASETS.values():
        name = f"{info.title} (`{info.name}`)" if info.title != info.name else f"`{info.name}`"
        rows.append(f"| {name} | {info.contents} | {info.licence} | {info.redistributable} | {info.source} |")
    return "\n".join(rows) + "\n"
