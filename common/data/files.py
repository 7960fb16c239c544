"""Reading the files of a set: plain, gzipped or inside an archive, each checked before anybody parses it.

Archives are never unpacked to disk: the wanted members are read into memory by name, and a member that is a link, a
device or lies outside the archive's own folder is refused. Nothing larger than LIMIT is decompressed.
"""

import gzip
import hashlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from common.data.catalog import Layout
from common.errors import UserError

CHECKSUMS = "SHA256SUMS"
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
LIMIT = 4 << 30
"""Bytes; STL-10's unlabeled images, the largest official file, take 2.8e9."""


def stored(folder: Path, name: str) -> Path | None:
    """Where a file lies in a folder, as it is or gzipped."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_checksums(path: Path) -> dict[str, str]:
    """A SHA256SUMS file as sha256sum writes it: hexadecimal digest by file name (the last part of its path)."""
    sums = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text: write it with sha256sum") from None
    for line in filter(str.strip, lines):
        digest, _, name = line.strip().partition(" ")
        name = PurePosixPath(name.strip().lstrip("*")).name
        if len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef") or not name:
            raise UserError(f"{path} has a line that is not a SHA-256 and a name: write it with sha256sum")
        sums[name] = f"sha256:{digest.lower()}"
    if not sums:
        raise UserError(f"{path} is empty: write it with sha256sum, or remove it if the files are the official ones")
    return sums


def check(content: bytes, digest: str, where: str) -> None:
    """UserError naming the file unless the content has the digest, "md5:..." or "sha256:..."; "" admits anything."""
    if not digest and content:
        return
    algorithm, _, expected = (digest or "md5:").partition(":")
    if hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() != expected:
        state = "is empty" if not content else f"does not have the expected {algorithm} (truncated or altered)"
        raise UserError(f"{where} {state}: get a fresh copy")


def read_folder(folder: Path, names: Iterable[str], digests: Mapping[str, str]) -> dict[str, bytes]:
    """The decompressed content of files in a folder, checked; UserError names a missing, damaged or unlisted one.

    A digest may be given for the file's own name (of the decompressed content) or for "name.gz" (as it is stored).
    """
    contents = {}
    for name in names:
        path = stored(folder, name)
        if path is None:
            raise UserError(f"{folder / name} is missing: add it to the folder")
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        contents[name] = _unpacked(raw, path) if path.suffix == ".gz" else raw
        if path.name in digests:
            check(raw, digests[path.name], str(path))
        elif name in digests:
            check(contents[name], digests[name], str(path))
        else:
            raise UserError(f"{path} is not listed in {CHECKSUMS}: add its line with sha256sum")
    return contents


def _unpacked(raw: bytes, path: Path) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            content = stream.read(LIMIT + 1)
    except (OSError, EOFError, zlib.error):
        raise UserError(f"{path} is not a whole gzip file: get a fresh copy") from None
    return _limited(content, str(path))


def _limited(content: bytes, where: str) -> bytes:
    if len(content) > LIMIT:
        raise UserError(f"{where} unpacks to more than {LIMIT >> 30} GiB, which no official file does")
    return content


def read_archive(path: Path, layout: Layout, names: Iterable[str], digests: Mapping[str, str]) -> dict[str, bytes]:
    """The content of members `name` or `<inner folder>/name` of a tar or zip archive, checked, without unpacking it."""
    wanted = {f"{prefix}{name}": name for name in names for prefix in ("", f"{layout.folder}/")}
    read = _read_zip if path.suffix == ".zip" else _read_tar
    try:
        contents = read(path, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, zlib.error, RuntimeError, NotImplementedError):
        raise UserError(f"{path} is not a whole archive: get a fresh copy") from None
    missing = [name for name in dict.fromkeys(wanted.values()) if name not in contents]
    if missing:
        raise UserError(f"{path} has no file {', '.join(missing)}: get the official archive")
    for name, content in contents.items():
        if name not in digests:
            raise UserError(f"{path}:{name} is not listed in {CHECKSUMS}: add its line with sha256sum")
        check(content, digests[name], f"{path}:{name}")
    return contents


def _member(name: str, path: Path) -> str:
    """A member's name without leading "./"; UserError when it points outside the archive."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name:
        raise UserError(f"{path} holds a file outside its own folder ({name!r}): do not trust this archive")
    return "/".join(part for part in parts if part != ".")


def _read_tar(path: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    contents = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = _member(member.name, path)
            if name not in wanted:
                continue
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is None:
                raise UserError(f"{path}: {name} is a link or a device, not a file: do not trust this archive")
            contents[wanted[name]] = _read_member(stream, member.size, f"{path}:{name}")
    return contents


def _read_zip(path: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    contents = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = _member(member.filename, path)
            if name not in wanted:
                continue
            kind = member.external_attr >> 28  # the Unix file type; 0 where the archive does not say
            if member.is_dir() or kind not in (0, 0o10):
                raise UserError(f"{path}: {name} is a link or a device, not a file: do not trust this archive")
            with archive.open(member) as stream:
                contents[wanted[name]] = _read_member(stream, member.file_size, f"{path}:{name}")
    return contents


def _read_member(stream: IO[bytes], size: int, where: str) -> bytes:
    content = _limited(stream.read(LIMIT + 1), where)
    if len(content) != size:
        raise EOFError(where)
    return content
