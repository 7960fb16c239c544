"""Where a set's data is: DATA_DIR, the Hugging Face cache or hub, or built in. Reads no images.

The engine locates the data of every selected experiment before the first run and puts the fingerprint, which changes
with the content to be expected, into the runs' keys.
"""

import functools
import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from common.data.catalog import HOLDOUT, DatasetInfo, Hub, Layout, dataset_info, fingerprint, official_fingerprint
from common.data.files import ARCHIVE_SUFFIXES, CHECKSUMS, read_checksums, stored
from common.errors import UserError

HUB_SECONDS = 3.0
"""How long the hub may take to answer before it counts as out of reach."""


@dataclass(frozen=True)
class Location:
    """Where `load` will read a set, and what it expects there.

    kind: "directory" (official files), "custom" (files with checksums of their own), "hub" or "built-in".
    path: the folder or archive, None for the other kinds. label: the data in words for results and reports.
    digests: expected checksum by file name, for the two kinds that read files.
    """

    name: str
    kind: str
    path: Path | None
    fingerprint: str
    label: str
    split: str = "official"
    layout: Layout | None = None
    digests: tuple[tuple[str, str], ...] = ()


def locate(name: str, data_dir: Path | str | None = None, split: str = "official") -> Location:
    """Find a set by name without reading it: DATA_DIR/<name>, then the Hugging Face cache and hub.

    data_dir: the environment variable DATA_DIR where None. Inside it the files may lie in `<name>/`, in
    `<name>/<the official archive's inner folder>/` or in that inner folder directly, or be the official archive
    itself. Raises UserError for an unknown set or split, a DATA_DIR that does not exist, a folder in which some of
    the split's files are missing, and where the set is nowhere; that message names the three ways to get it.
    """
    info = dataset_info(name, split)
    root = _root(data_dir)
    if not info.layouts:
        return Location(name, "built-in", None, official_fingerprint(info, split), _label(info, split), split)
    found = root and _in_directory(info, root, split)
    if found:
        return found
    hub = info.hub
    if hub is not None and (_cached(hub, info.splits[split]) or _reachable(_endpoint())):
        contents = [file.sha256 or file.path for role in info.splits[split] for file in hub.parts[role]]
        key = fingerprint(hub.repository, hub.revision, split, *contents)
        return Location(name, "hub", None, key, _label(info, split), split)
    raise UserError(_advice(info, root, split))


def _root(data_dir: Path | str | None) -> Path | None:
    text = str(data_dir) if data_dir is not None else os.environ.get("DATA_DIR", "")
    if not text:
        return None
    root = Path(text).expanduser()
    if not root.is_dir():
        raise UserError(f"DATA_DIR {root} does not exist or is no folder: create it, or unset DATA_DIR")
    return root


def _label(info: DatasetInfo, split: str, custom: bool = False) -> str:
    title = f"custom (in the format of {info.title})" if custom else info.title
    return f"{title}, {HOLDOUT}" if split == "holdout" else title


def _in_directory(info: DatasetInfo, root: Path, split: str) -> Location | None:
    """The first layout whose files are there; a layout with some of them only is an error once none is complete."""
    incomplete = None
    for layout in info.layouts:
        folders = [root / info.name, root / info.name / layout.folder, root / layout.folder]
        for folder in dict.fromkeys(folder for folder in folders if folder != root):
            missing = missing_files(folder, layout, info.splits[split])
            if not missing:
                return _files_at(info, layout, folder, root, split)
            if any(stored(folder, file.name) for files in layout.parts.values() for file in files):
                incomplete = incomplete or (folder, layout, missing)
        stems = dict.fromkeys(filter(None, (layout.archive, layout.folder)))
        for folder in (root / info.name, root):
            for stem in stems:
                for suffix in ARCHIVE_SUFFIXES:
                    if (folder / f"{stem}{suffix}").is_file():
                        return _files_at(info, layout, folder / f"{stem}{suffix}", root, split)
    if incomplete:
        folder, layout, missing = incomplete
        advice = "add it to the folder"
        if "holdout" in info.splits and not missing_files(folder, layout, info.splits["holdout"]):
            advice = f"add it, or use split=holdout, a {HOLDOUT}"
        raise UserError(f"{folder} has no {', '.join(missing)}, which {info.name} with split={split} needs: {advice}")
    return None


def missing_files(folder: Path, layout: Layout, roles: tuple[str, ...]) -> list[str]:
    """The names of the roles' files that a folder lacks."""
    return [file.name for role in roles for file in layout.parts[role] if not stored(folder, file.name)]


def _files_at(info: DatasetInfo, layout: Layout, path: Path, root: Path, split: str) -> Location:
    """Official unless a SHA256SUMS lies beside the files (or the archive) or in DATA_DIR/<name>."""
    folder = path if path.is_dir() else path.parent
    sums = next((p for p in (folder / CHECKSUMS, root / info.name / CHECKSUMS) if p.is_file()), None)
    if sums:
        digests = read_checksums(sums)
        key = fingerprint("custom", info.name, split, sums.read_text("utf-8"))
        label = _label(info, split, custom=True)
        return Location(info.name, "custom", path, key, label, split, layout, tuple(digests.items()))
    digests = {file.name: file.digest for role in info.splits[split] for file in layout.parts[role]}
    key = official_fingerprint(info, split)
    return Location(info.name, "directory", path, key, _label(info, split), split, layout, tuple(digests.items()))


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _cached(hub: Hub, roles: tuple[str, ...]) -> bool:
    """Whether the pinned revision's files are all in the Hugging Face cache."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    paths = [file.path for role in roles for file in hub.parts[role]]
    found = [try_to_load_from_cache(hub.repository, p, revision=hub.revision, repo_type="dataset") for p in paths]
    return all(isinstance(path, str) for path in found)


@functools.cache
def _reachable(endpoint: str) -> bool:
    """Whether the hub answers at all within HUB_SECONDS; asked once a process.

    In a thread, because looking up a host name can take longer than any time limit of the request.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS):
                answered.set()
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (403, 407):  # a proxy that forbids the way is no hub
                answered.set()
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return answered.is_set()


def _advice(info: DatasetInfo, root: Path | None, split: str) -> str:
    layout = info.layouts[0]
    first = layout.parts[info.splits[split][0]][0].name
    place = f"{info.name}/{layout.folder}/{first}" if layout.folder else f"{info.name}/{first}"
    state = f"DATA_DIR {root} has no {place}" if root else "DATA_DIR is not set"
    ways = [f"put the official files ({info.source}) into DATA_DIR as {place} and so on"]
    if info.hub:
        ways.append(f"connect to the Hugging Face hub, or fill its cache, for {info.hub.repository} (needs `datasets`)")
    else:
        ways.append("wait for a maintained copy on the Hugging Face hub: today there is none")
    ways.append("use what is built in: the preset quick needs no data")
    numbered = "; ".join(f"({number}) {way}" for number, way in enumerate(ways, 1))
    return f"{info.name} was not found ({state}; not in the Hugging Face cache or hub). Three ways: {numbered}"
