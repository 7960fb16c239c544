"""Checkpoints of one run: the last two, each with a checksum, tensors and primitives only."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from common.files import write_bytes, write_text

KEPT = 2


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.pt"))


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as `step-<step>.pt` and drop all but the last two. It counts only once its checksum stands."""
    path = folder / f"step-{step}.pt"
    # By way of the memory: writing to a full disk, torch.save raises a RuntimeError that hides the reason.
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes(path, content.getvalue())
    write_text(path.with_suffix(".sha256"), hashlib.sha256(content.getvalue()).hexdigest() + "\n")
    # A checkpoint of a later step is an unreadable one that a resume passed over.
    kept = [old for old in _steps(folder) if old <= step][-KEPT:]
    for old in set(_steps(folder)) - set(kept):
        for suffix in (".sha256", ".pt"):
            (folder / f"step-{old}{suffix}").unlink(missing_ok=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    return path


def load_latest(folder: Path, map_location: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest readable checkpoint, or None. One that is torn, altered or without checksum is passed over."""
    for step in reversed(_steps(folder)):
        path = folder / f"step-{step}.pt"
        checksum = path.with_suffix(".sha256")
        if not checksum.exists() or checksum.read_text().strip() != _digest(path):
            continue
        return torch.load(path, map_location=map_location, weights_only=True)
    return None
