"""Atomic writes and locks, with real kills."""

import json
import math
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from common import files
from common.errors import UserError
from common.files import Locked, atomic_path, is_locked, lock, read_json, write_json, write_text
from tests import faults
from tests.faults import Fault

pytestmark = pytest.mark.usefixtures("fork_server")


@pytest.fixture
def holder(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A process that holds the lock of run `seed-1000` in tmp_path."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = faults.start(faults.hold, tmp_path / ".seed-1000.lock", sender)
    assert receiver.recv() == "held"
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize(
    ("fault", "kept"),
    [
        (Fault("pathlib:Path.write_bytes", 1, "half"), "old"),
        (Fault("os:fsync", 1), "old"),
        (Fault("os:replace", 1), "old"),
        (Fault("os:replace", 1, "after"), "new"),
    ],
)
def test_a_killed_writer_leaves_the_old_file_or_the_new_one_whole(tmp_path: Path, fault: Fault, kept: str) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old" * 1000)
    process = faults.start(faults.write_with, path, "new" * 2000, fault)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == {"old": "old" * 1000, "new": "new" * 2000}[kept]
    # What the dead process left behind is in nobody's way.
    write_text(path, "newer")
    assert path.read_text() == "newer"


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_a_write_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, name=name, call=call: (order.append(name), call(*a))[1])
    write_text(tmp_path / "new" / "folder" / "file.txt", "text")
    assert order == ["fsync", "replace", "fsync"]  # the content, then the name


def test_json_goes_through_unchanged(tmp_path: Path) -> None:
    document = {"a": [1, 0.1, 1e-300, None, True], "ä": {"b": "line\nline"}}
    write_json(tmp_path / "x.json", document)
    assert read_json(tmp_path / "x.json") == document


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_without_nan(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": value})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"not json"])
def test_broken_json_is_one_line_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is not valid JSON.*restore it") as raised:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(raised.value)


def test_a_held_lock_is_refused_with_its_holder(tmp_path: Path, holder) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / ".seed-1000.lock"
    assert is_locked(path)
    said = rf"seed-1000 is in use by process {holder.pid}: wait for it, or stop it"
    with pytest.raises(Locked, match=said), lock(path):
        pass


def test_the_kernel_frees_the_lock_of_a_killed_process(tmp_path: Path, holder) -> None:  # type: ignore[no-untyped-def]
    holder.kill()
    holder.join()
    assert not is_locked(tmp_path / ".seed-1000.lock")
    with lock(tmp_path / ".seed-1000.lock"):
        assert is_locked(tmp_path / ".seed-1000.lock")
    assert not is_locked(tmp_path / ".seed-1000.lock")


def test_asking_for_a_lock_makes_nothing(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "none" / ".x.lock")
    assert not os.listdir(tmp_path)
