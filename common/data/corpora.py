"""Corpora for sequence models in DATA_DIR/<name>: text, music, downsampled ImageNet, and Python's own source.

`locate` finds one before a run without reading it; `find` says where it lies and in which layout, for the papers'
readers; `content` reads one file, plain or compressed, and checks it.

Checksums: enwik8's are published by the Large Text Compression Benchmark, that of IMDb's archive stands in the sources
of several libraries, the others were computed (the chorales' from the authors' repository). Downsampled ImageNet and
recordings have none: their fingerprints are of names and sizes.
"""

import bz2
import functools
import gzip
import hashlib
import io
import lzma
import os
import platform
import sysconfig
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.catalog import fingerprint
from common.data.files import CHECKSUMS, LIMIT, check, read_checksums
from common.data.images import image_files
from common.errors import UserError

COMPRESSED = ("", ".zip", ".gz", ".bz2", ".xz")
"""What a file's name may end with beside its own suffix."""

IMDB_REVIEWS = 50_000
IMAGENET64 = (1_281_149, 49_999)
IMAGENET64_PARTS = {
    "folder": ("train_64x64", "valid_64x64"),
    "tar": ("train_64x64.tar", "valid_64x64.tar"),
    "npy": ("imagenet64-train.npy", "imagenet64-valid.npy"),
}
"""Names of the two parts by layout; "npy" are the arrays of the code of distribution augmentation (Jun et al. 2020)."""

PYTHON_BYTES = 4_000_000
PYTHON_SKIPPED = "__pycache__ dist-packages distutils encodings ensurepip idlelib lib2to3 pydoc_data site-packages"
PYTHON_SKIPPED += " test tests tkinter turtledemo"
"""Tests, tables and what some distributions leave out or add."""


@dataclass(frozen=True)
class CorpusInfo:
    """A row of the table. what: what is to be put into DATA_DIR, in words.

    file: the name of its one official file, digest: "md5:..." or "sha256:..." of its content, size: in bytes; all
    empty where the set is no single file.
    """

    name: str
    title: str
    contents: str
    licence: str
    redistributable: str
    source: str
    what: str = ""
    file: str = ""
    digest: str = ""
    size: int = 0


SETS = {
    each.name: each
    for each in (
        CorpusInfo(
            "enwik8",
            "enwik8",
            "the first 100,000,000 bytes of the English Wikipedia of March 3, 2006, as XML",
            "CC BY-SA and GFDL (Wikipedia)",
            "yes",
            "http://mattmahoney.net/dc/textdata.html",
            "enwik8 or enwik8.zip",
            "enwik8",
            "md5:a1fa5ffddb56f4953e226637dabbb36a",
            100_000_000,
        ),
        CorpusInfo(
            "imdb",
            "IMDb reviews (unlabelled)",
            "50,000 film reviews, 67 MB",
            "free for research with citation (Maas et al. 2011)",
            "not stated",
            "https://ai.stanford.edu/~amaas/data/sentiment/",
            "aclImdb_v1.tar.gz, or its folder aclImdb",
            "imdb_unsup.tsv",
            "sha256:73b3d9d88f3d31a28b0b6ffca60e78a753fb98ea3fdc5a52d6b39df96f927766",
            67_245_533,
        ),
        CorpusInfo(
            "jsb_chorales",
            "JSB chorales",
            "229 + 76 + 77 four-part chorales by J. S. Bach in steps of a sixteenth note",
            "music in the public domain; none stated for the files",
            "not stated",
            "https://github.com/czhuang/JSB-Chorales-dataset",
            "Jsb16thSeparated.json",
            "Jsb16thSeparated.json",
            "sha256:79294cc374f9252e95ef4b703161524c1c53dc1f712c236f00f1c1f5d54af5a7",
            1_666_444,
        ),
        CorpusInfo(
            "imagenet64",
            "downsampled ImageNet 64x64",
            "1,281,149 + 49,999 colour 64x64 images (van den Oord et al. 2016)",
            "non-commercial research and education (ImageNet)",
            "no",
            "https://image-net.org/download-images",
            "train_64x64 and valid_64x64, as folders or .tar (not the .npz files of another reduction)",
        ),
        CorpusInfo(
            "piano",
            "piano recordings",
            "any folder of WAV files; the paper's list is not public, MAESTRO is the open substitute",
            "CC BY-NC-SA 4.0 (MAESTRO)",
            "yes, for non-commercial use",
            "https://magenta.tensorflow.org/datasets/maestro",
            "WAV files, in folders of any depth,",
        ),
        CorpusInfo(
            "python",
            "Python's standard library",
            "4 MB of the source files of the interpreter that runs",
            "PSF",
            "yes",
            "built into Python",
        ),
    )
}


@dataclass(frozen=True)
class Found:
    """Where a set lies. layout: "file", "archive" or "folder"; of imagenet64 "folder", "tar" or "npy"; or "built-in".

    path: the file or folder, None where it is built in. digests: expected checksums by file name.
    """

    name: str
    layout: str
    path: Path | None
    label: str
    fingerprint: str
    digests: tuple[tuple[str, str], ...] = ()


def locate(name: str, data_dir: Path | None) -> tuple[str, str]:
    """(label, fingerprint) of the set `name` of `SETS`; UserError in one line where it is not there."""
    found = find(name, data_dir)
    return found.label, found.fingerprint


def find(name: str, data_dir: Path | None) -> Found:
    """Where the set `name` of `SETS` lies: in DATA_DIR/<name> or in DATA_DIR itself.

    Raises UserError in one line where it is not there, has another size than the official file, or holds no data.
    """
    info = SETS[name]
    if name == "python":
        source = hashlib.sha256(python_source()).hexdigest()
        return Found(name, "built-in", None, f"the standard library of Python {platform.python_version()}", source[:32])
    places = [] if data_dir is None else [data_dir / name, data_dir]
    for place in places:
        found = _imdb_at(place) if name == "imdb" else None
        if found is None and info.file:
            found = _file_at(info, place)
        if name == "imagenet64":
            found = _imagenet64_at(info, place)
        if found is not None:
            return found
    if name == "piano" and places and (files := wav_files(places[0])):
        names = [f"{file.relative_to(places[0]).as_posix()} {file.stat().st_size}" for file in files]
        return Found(name, "folder", places[0], f"{info.title}, {len(files):,} WAV files", fingerprint(name, *names))
    state = "DATA_DIR is not set" if data_dir is None else f"nothing of it is in DATA_DIR {data_dir}"
    raise UserError(f"{name} was not found ({state}): put {info.what} ({info.source}) into DATA_DIR/{name}")


def _file_at(info: CorpusInfo, folder: Path) -> Found | None:
    """The official file, plain or compressed, or a custom one with a SHA256SUMS beside it."""
    path = next((p for suffix in COMPRESSED if (p := folder / f"{info.file}{suffix}").is_file()), None)
    if path is None:
        return None
    sums = folder / CHECKSUMS
    if sums.is_file():
        digests = read_checksums(sums)
        if not {info.file, path.name} & set(digests):
            raise UserError(f"{path} is not listed in {CHECKSUMS}: add its line with sha256sum")
        label, key = (
            f"custom (in the format of {info.title})",
            fingerprint("custom", info.name, sums.read_text("utf-8")),
        )
        return Found(info.name, "file", path, label, key, tuple(digests.items()))
    size = path.stat().st_size
    if path.name == info.file and size != info.size:
        raise UserError(f"{path} has {size:,} bytes, not the official {info.size:,}: get a fresh copy")
    return Found(info.name, "file", path, info.title, fingerprint(info.name, info.digest), ((info.file, info.digest),))


def _custom(info: CorpusInfo) -> str:
    return f"custom (in the format of {info.title})"


def _imdb_at(place: Path) -> Found | None:
    """The official archive or its unpacked folder; `place` may be the folder aclImdb itself."""
    info, archive = SETS["imdb"], place / "aclImdb_v1.tar.gz"
    if archive.is_file():
        digest = "md5:7c2ac02c03563afcf9b574c7e56c153a"
        return Found("imdb", "archive", archive, info.title, fingerprint("imdb", digest), ((archive.name, digest),))
    for folder in (place / "aclImdb" / "train" / "unsup", place / "train" / "unsup"):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                names = sorted(f"{e.name} {e.stat().st_size}" for e in entries if e.name.endswith(".txt"))
            if not names:
                raise UserError(f"{folder} has no .txt files: unpack {archive.name} again")
            label = info.title if len(names) == IMDB_REVIEWS else f"{_custom(info)}: {len(names):,} reviews"
            return Found("imdb", "folder", folder, label, fingerprint("imdb", "folder", *names))
    return None


def _imagenet64_at(info: CorpusInfo, place: Path) -> Found | None:
    """The first layout of which both parts are there; a part alone is an error that names the other."""
    for layout, names in IMAGENET64_PARTS.items():
        there = [(place / name).is_dir() if layout == "folder" else (place / name).is_file() for name in names]
        if not any(there):
            continue
        if not all(there):
            raise UserError(f"{place} has no {names[there.index(False)]}, which imagenet64 needs: add it")
        if layout != "folder":
            sizes = [f"{name} {(place / name).stat().st_size}" for name in names]
            return Found("imagenet64", layout, place, info.title, fingerprint("imagenet64", *sizes))
        files = [png_files(place / name) for name in names]
        if not all(files):
            raise UserError(f"{place / names[bool(files[0])]} has no PNG files: unpack its .tar there")
        counts = tuple(len(part) for part in files)
        label = info.title if counts == IMAGENET64 else f"{_custom(info)}: {counts[0]:,} + {counts[1]:,} images"
        return Found("imagenet64", layout, place, label, fingerprint("imagenet64", *files[0], "", *files[1]))
    return None


def png_files(folder: Path) -> list[str]:
    """Names of a folder's PNG files, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.endswith(".png"))


def wav_files(folder: Path) -> list[Path]:
    """Every WAV file below a folder that is not hidden, sorted; none where the folder does not exist."""
    return [path for path in image_files(folder) if path.suffix.lower() == ".wav"]


def content(found: Found) -> bytes:
    """The content of a set that is one file, decompressed and checked. UserError names a damaged or altered file."""
    assert found.path is not None
    raw, digests = _raw(found.path), dict(found.digests)
    stored = digests.get(found.path.name)
    if stored is not None:
        check(raw, stored, str(found.path))
    data = decompressed(raw, found.path)
    own = digests.get(SETS[found.name].file)
    if own is not None and stored is None:
        check(data, own, str(found.path))
    return data


def check_archive(found: Found) -> None:
    """UserError unless an archive that is left packed has its checksum."""
    assert found.path is not None
    check(_raw(found.path), dict(found.digests)[found.path.name], str(found.path))


def read_file(path: Path) -> bytes:
    """A file of the user's, decompressed where its name ends with .gz, .bz2, .xz or .zip (of one member)."""
    return decompressed(_raw(path), path)


def _raw(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: correct its name") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def decompressed(raw: bytes, path: Path) -> bytes:
    """What a file's bytes hold, by the suffix of its name; UserError for a damaged, foreign or too large one."""
    suffix, stream = path.suffix.lower(), io.BytesIO(raw)
    if suffix not in COMPRESSED[1:]:
        return raw
    try:
        if suffix == ".zip":
            with zipfile.ZipFile(stream) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                if len(members) != 1:
                    raise UserError(f"{path} holds {len(members)} files instead of one: unpack it")
                with archive.open(members[0]) as file:
                    data = file.read(LIMIT + 1)
        else:
            openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
            with openers[suffix](stream) as file:
                data = file.read(LIMIT + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        raise UserError(f"{path} is not a whole {suffix[1:]} file: get a fresh copy") from None
    if len(data) > LIMIT:
        raise UserError(f"{path} unpacks to more than {LIMIT >> 30} GiB: unpack it and use a part")
    return data


@functools.cache
def python_source() -> bytes:
    """Up to 4,000,000 bytes of the running interpreter's standard library; bytes from 128 up become question marks.

    Files come in the order of a hash of their names, so that any cut leaves parts of the same kind, and another
    version of Python, with files more or less, keeps the order of those that stay.
    """
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(_python_files(root), key=lambda name: hashlib.sha256(name.encode()).digest())
    parts, total = [], 0
    for name in names:
        if total >= PYTHON_BYTES:
            break
        parts.append((root / name).read_bytes())
        total += len(parts[-1])
    if total < PYTHON_BYTES // 2:
        raise UserError(f"this Python's standard library has only {total:,} bytes of source: use another interpreter")
    ascii_only = bytes(i if i < 128 else ord("?") for i in range(256))
    return b"".join(parts)[:PYTHON_BYTES].translate(ascii_only)


def _python_files(root: Path) -> Iterable[str]:
    for parent, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in PYTHON_SKIPPED.split() and not f.startswith(("config-", "lib-"))]
        for file in files:
            # Neither what the build of this machine wrote nor what its distribution adds.
            if file.endswith(".py") and not file.startswith(("_sysconfigdata", "sitecustomize", "usercustomize")):
                yield (Path(parent) / file).relative_to(root).as_posix()


def licence_rows() -> str:
    """These sets as further lines of `catalog.licence_table`."""
    names = {s.name: s.title if s.title == s.name else f"{s.title} (`{s.name}`)" for s in SETS.values()}
    rows = (
        f"| {names[s.name]} | {s.contents} | {s.licence} | {s.redistributable} | {s.source} |" for s in SETS.values()
    )
    return "\n".join(rows) + "\n"
