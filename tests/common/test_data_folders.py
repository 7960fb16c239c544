"""Images in folders: what is found, in which order, and the one line a user gets when something is missing."""

from pathlib import Path

import numpy as np
import pytest

from common.data import folders
from common.data.folders import describe, fingerprint, list_images
from common.errors import UserError

FILES = (
    "train/b/2.JPEG",
    "train/b/1.jpg",
    "train/a/1.png",
    "train/c/9.JPEG",
    "train/c/.hidden.JPEG",
    "train/c/notes.txt",
    "val/a/1.JPEG",
    "val/b/1.JPEG",
    "val/c/1.JPEG",
)


def write(root: Path, *files: str) -> Path:
    """Empty files: nothing here reads them."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_images_and_labels_in_alphabetical_order(tmp_path):
    train, val = list_images(write(tmp_path, *FILES))
    assert train.classes == val.classes == ("a", "b", "c")
    assert train.files == ("train/a/1.png", "train/b/1.jpg", "train/b/2.JPEG", "train/c/9.JPEG")
    assert train.labels.tolist() == [0, 1, 1, 2] and train.labels.dtype == np.int64
    assert train.path(1) == tmp_path / "train/b/1.jpg"
    assert (len(train), len(val)) == (4, 3)
    assert describe(train, val) == "3 classes, 4 + 3 images"


def test_every_other_class(tmp_path):
    train, _ = list_images(write(tmp_path, *FILES))
    some = train.every(2)
    assert some.classes == ("a", "c") and some.files == (train.files[0], train.files[3])
    assert some.labels.tolist() == [0, 1]
    assert train.every(1).files == train.files


def test_a_flat_validation_folder_has_a_table(tmp_path):
    flat = [file for file in FILES if file.startswith("train")]
    write(tmp_path, *flat, "val/x.JPEG", "val/y.JPEG")
    (tmp_path / "val.txt").write_text("y.JPEG a\nx.JPEG c\n\n")
    _, val = list_images(tmp_path)
    assert val.files == ("val/x.JPEG", "val/y.JPEG") and val.labels.tolist() == [2, 0]


def test_the_fingerprint_follows_the_files(tmp_path):
    before = fingerprint(*list_images(write(tmp_path, *FILES)))
    assert len(before) == 32 and before == fingerprint(*list_images(tmp_path))
    write(tmp_path, "train/a/2.png")
    assert fingerprint(*list_images(tmp_path)) != before


@pytest.mark.parametrize(
    ("files", "table", "message"),
    [
        ((), None, "{root}/train does not exist or is no folder: put the images there, a folder for each class"),
        (("train/1.png",), None, "{root}/train has no folders: give each class a folder of its images there"),
        (("train/a/x.txt", "val/a/1.png"), None, "{root}/train/a has no images: fill it, or remove the class"),
        (("train/a/1.png",), None, "{root}/val does not exist or is no folder: put the images there"),
        (("train/a/1.png", "val/b/1.png"), None, "{root}/val/b is no class of {root}/train: remove it"),
        (("train/a/1.png", "val/x.txt"), None, "{root}/val has no images: put them there"),
        (("train/a/1.png", "val/1.png"), None, "{root}/val has no folders and {root}/val.txt is missing: write its"),
        (("train/a/1.png", "val/1.png"), "1.png", "{root}/val.txt, entry 1, is not 'file-name class'"),
        (("train/a/1.png", "val/1.png"), "1.png b", "{root}/val.txt gives 1.png the class b, which"),
    ],
)
def test_what_is_missing_is_one_line(files, table, message, tmp_path):
    write(tmp_path, *files)
    if table is not None:
        (tmp_path / "val.txt").write_text(table)
    with pytest.raises(UserError) as raised:
        list_images(tmp_path)
    assert str(raised.value).startswith(message.format(root=tmp_path)) and "\n" not in str(raised.value)


def test_sets_are_located_by_name_without_reading_them(tmp_path):
    write(tmp_path / "imagenet", "train/a/1.JPEG", "train/b/1.JPEG", "val/a/2.JPEG", "val/b/2.JPEG")
    label, key = folders.locate("imagenet", tmp_path)
    assert label == "custom (in the format of ImageNet-1k): 2 classes, 2 + 2 images" and len(key) == 32
    write(tmp_path / "lsun-bedrooms", "1.jpg", "more/2.webp", "notes.txt")
    label, key = folders.locate("lsun-bedrooms", tmp_path)
    assert label == "LSUN bedrooms, 2 images"
    write(tmp_path / "lsun-bedrooms", "3.png")
    assert folders.locate("lsun-bedrooms", tmp_path)[1] != key
    rows = folders.licence_rows().splitlines()
    assert len(rows) == len(folders.SETS) and all(row.count("|") == 6 for row in rows)


@pytest.mark.parametrize("name", folders.SETS)
def test_a_set_that_is_not_there_is_one_line(name, tmp_path):
    for data_dir in (None, tmp_path):
        with pytest.raises(UserError, match=f"^{name} was not found"):
            folders.locate(name, data_dir)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError):
        folders.locate(name, tmp_path)
