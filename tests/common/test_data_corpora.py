"""Text, music and downsampled ImageNet in DATA_DIR: found without reading, checked when read, one line otherwise."""

import bz2
import gzip
import hashlib
import lzma
import zipfile
from pathlib import Path

import pytest

from common.data import corpora
from common.errors import UserError
from common.paper import DataSource
from common.reproduce import _Locator

TEXT = b"<mediawiki>" * 100


def custom(folder: Path, name: str, stored: bytes, content: bytes) -> Path:
    """A file in a set's folder, listed with the checksum of its content under its plain name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(stored)
    plain = Path(name).stem if Path(name).suffix in corpora.COMPRESSED[1:] else name
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  {plain}\n")
    return folder / name


def zipped(path: Path, *members: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, TEXT)
    return path


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_custom_files_plain_and_compressed(suffix, pack, tmp_path):
    path = custom(tmp_path / "enwik8", f"enwik8{suffix}", pack(TEXT), TEXT)
    found = corpora.find("enwik8", tmp_path)
    assert found.path == path and found.label == "custom (in the format of enwik8)"
    assert corpora.content(found) == TEXT
    path.write_bytes(pack(TEXT[:-1]))
    with pytest.raises(UserError, match=r"enwik8\S* does not have the expected sha256"):
        corpora.content(found)
    if suffix:
        path.write_bytes(pack(TEXT)[:-20])
        with pytest.raises(UserError, match=f"is not a whole {suffix[1:]} file"):
            corpora.content(found)


def test_the_checksum_may_be_of_the_file_as_it_is_stored(tmp_path):
    path = tmp_path / "enwik8" / "enwik8.gz"
    custom(tmp_path / "enwik8", "enwik8.gz", gzip.compress(TEXT), TEXT)
    (tmp_path / "enwik8/SHA256SUMS").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  enwik8.gz\n")
    assert corpora.content(corpora.find("enwik8", tmp_path)) == TEXT
    (tmp_path / "enwik8/SHA256SUMS").write_text(f"{'0' * 64}  another\n")
    with pytest.raises(UserError, match=r"enwik8.gz is not listed in SHA256SUMS"):
        corpora.find("enwik8", tmp_path)


def test_an_official_file_must_have_the_official_content(tmp_path):
    (tmp_path / "enwik8").write_bytes(TEXT)  # in DATA_DIR itself
    with pytest.raises(UserError, match=r"enwik8 has 1,100 bytes, not the official 100,000,000: get a fresh copy$"):
        corpora.find("enwik8", tmp_path)
    (tmp_path / "enwik8").unlink()
    zipped(tmp_path / "enwik8.zip", "enwik8")
    found = corpora.find("enwik8", tmp_path)
    assert found.label == "enwik8"
    with pytest.raises(UserError, match="does not have the expected md5"):
        corpora.content(found)


def test_a_zip_holds_one_file(tmp_path):
    with pytest.raises(UserError, match=r"holds 2 files instead of one: unpack it$"):
        corpora.read_file(zipped(tmp_path / "x.zip", "a", "b"))
    assert corpora.read_file(zipped(tmp_path / "y.zip", "a")) == TEXT


def test_imdb_in_three_layouts(tmp_path):
    folder = tmp_path / "imdb" / "aclImdb" / "train" / "unsup"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"unsup has no .txt files: unpack"):
        corpora.find("imdb", tmp_path)
    (folder / "0_0.txt").write_text("good")
    first = corpora.find("imdb", tmp_path)
    assert first.layout == "folder" and first.label.endswith("(unlabelled)): 1 reviews")
    (folder / "1_0.txt").write_text("bad")
    assert corpora.find("imdb", tmp_path).fingerprint != first.fingerprint
    (tmp_path / "imdb" / "aclImdb_v1.tar.gz").write_bytes(b"")
    found = corpora.find("imdb", tmp_path)
    assert found.layout == "archive" and found.label == "IMDb reviews (unlabelled)"
    with pytest.raises(UserError, match=r"aclImdb_v1.tar.gz is empty: get a fresh copy"):
        corpora.check_archive(found)
    custom(tmp_path / "more" / "imdb", "imdb_unsup.tsv.xz", lzma.compress(TEXT), TEXT)
    assert corpora.find("imdb", tmp_path / "more").layout == "file"


def test_imagenet64_in_three_layouts(tmp_path):
    place = tmp_path / "imagenet64"
    (place / "train_64x64").mkdir(parents=True)
    with pytest.raises(UserError, match="has no valid_64x64, which imagenet64 needs"):
        corpora.find("imagenet64", tmp_path)
    (place / "valid_64x64").mkdir()
    (place / "train_64x64" / "1.png").touch()
    with pytest.raises(UserError, match="valid_64x64 has no PNG files"):
        corpora.find("imagenet64", tmp_path)
    (place / "valid_64x64" / "1.png").touch()
    found = corpora.find("imagenet64", tmp_path)
    assert found.layout == "folder" and found.label.endswith("1 + 1 images")
    for layout in ("tar", "npy"):
        other = tmp_path / layout
        other.mkdir()
        for name in corpora.IMAGENET64_PARTS[layout]:
            (other / name).touch()
        assert corpora.find("imagenet64", other).layout == layout


def test_recordings_are_known_by_name_and_size(tmp_path):
    (tmp_path / "piano" / "2004").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^piano was not found"):
        corpora.find("piano", tmp_path)
    (tmp_path / "piano" / "2004" / "a.WAV").write_bytes(b"x")
    (tmp_path / "piano" / "notes.txt").touch()
    label, key = corpora.locate("piano", tmp_path)
    assert label == "piano recordings, 1 WAV files"
    (tmp_path / "piano" / "2004" / "a.WAV").write_bytes(b"xy")
    assert corpora.locate("piano", tmp_path)[1] != key


def test_pythons_own_source():
    source = corpora.python_source()
    assert len(source) == corpora.PYTHON_BYTES and max(source) < 128 and source.count(b"\ndef ") > 1000
    label, key = corpora.locate("python", None)
    assert label.startswith("the standard library of Python 3.") and hashlib.sha256(source).hexdigest().startswith(key)


@pytest.mark.parametrize("name", [name for name in corpora.SETS if name != "python"])
def test_a_set_that_is_not_there_is_one_line(name, tmp_path):
    for data_dir in (None, tmp_path):
        with pytest.raises(UserError, match=f"^{name} was not found .*DATA_DIR.*into DATA_DIR/{name}$"):
            corpora.locate(name, data_dir)


def test_experiments_locate_them_by_name(tmp_path):
    custom(tmp_path / "enwik8", "enwik8", TEXT, TEXT)
    locator = _Locator(tmp_path)
    assert locator(DataSource("enwik8")).label == "custom (in the format of enwik8)"
    assert locator(DataSource("python")).fingerprint == corpora.locate("python", None)[1]
    assert locator(DataSource("digits")).name == "digits"
    with pytest.raises(UserError, match=r"^imdb was not found"):
        locator(DataSource("imdb"))


def test_the_licence_table_has_every_set():
    rows = corpora.licence_rows().splitlines()
    assert len(rows) == len(corpora.SETS) and all(row.count("|") == 6 for row in rows)
    assert all(each.name == name and each.licence and each.source for name, each in corpora.SETS.items())
