"""Checkpoints: the last two, each with a checksum; an unreadable newest one falls back to the one before."""

from pathlib import Path

import pytest
import torch

from common import checkpoints
from tests.faults import Fault, arm


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (5, 10, 20):
        checkpoints.save(tmp_path, step, {"step": step, "tensor": torch.full((50,), float(step))})
    return tmp_path


def test_the_last_two_are_kept(folder: Path) -> None:
    assert names(folder) == ["step-10.pt", "step-10.sha256", "step-20.pt", "step-20.sha256"]
    state = checkpoints.load_latest(folder)
    assert state is not None and state["step"] == 20 and torch.equal(state["tensor"], torch.full((50,), 20.0))


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert checkpoints.load_latest(tmp_path) is None and checkpoints.load_latest(tmp_path / "none") is None


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _lose_checksum(path: Path) -> None:
    path.with_suffix(".sha256").unlink()


def _empty_checksum(path: Path) -> None:
    path.with_suffix(".sha256").write_text("")


DAMAGE = [_truncate, _empty, _flip_a_bit, _lose_checksum, _empty_checksum]


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_unreadable_newest_one_falls_back(folder: Path, damage) -> None:  # type: ignore[no-untyped-def]
    damage(folder / "step-20.pt")
    state = checkpoints.load_latest(folder)
    assert state is not None and state["step"] == 10
    damage(folder / "step-10.pt")
    assert checkpoints.load_latest(folder) is None


@pytest.mark.parametrize("damage", DAMAGE)
def test_after_a_fallback_the_next_save_keeps_the_good_one(folder: Path, damage) -> None:  # type: ignore[no-untyped-def]
    damage(folder / "step-20.pt")
    checkpoints.save(folder, 15, {"step": 15})
    # The damaged one lies ahead of the run: it goes, and never counts as one of the last two.
    assert names(folder) == ["step-10.pt", "step-10.sha256", "step-15.pt", "step-15.sha256"]
    checkpoints.save(folder, 20, {"step": 20, "again": True})
    state = checkpoints.load_latest(folder)
    assert state is not None and state["again"]


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (Fault("common.files:os.replace", 1, number=-5), 20),  # before the checkpoint has its name
        (Fault("common.files:os.replace", 2, number=-5), 20),  # before the checksum has its name
        (Fault("common.files:os.replace", 2, "after", number=-5), 30),
    ],
)
def test_a_save_that_is_cut_short_loses_nothing(folder: Path, fault: Fault, found: int) -> None:
    with arm(fault), pytest.raises(OSError):
        checkpoints.save(folder, 30, {"step": 30})
    assert {"step-10.pt", "step-20.pt"} <= set(names(folder))
    state = checkpoints.load_latest(folder)
    assert state is not None and state["step"] == found
    checkpoints.save(folder, 30, {"step": 30})
    assert names(folder) == ["step-20.pt", "step-20.sha256", "step-30.pt", "step-30.sha256"]


def test_files_of_a_killed_save_are_cleared_away(folder: Path) -> None:
    (folder / ".step-30.pt.123.tmp").write_bytes(b"half")
    checkpoints.save(folder, 30, {"step": 30})
    assert not [name for name in names(folder) if name.endswith(".tmp")]


class Anything:
    """Not a tensor, not a primitive."""


def test_only_tensors_and_primitives_come_back(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {"object": Anything()})
    with pytest.raises(Exception, match=r"[Ww]eights[_ ]only"):
        checkpoints.load_latest(tmp_path)
