"""The trainings of `gpu` and `paper` on miniatures of their data: two steps of each network, made narrow and shallow.

Pattern, positions, dropout, recomputation, averages, microbatches and minimum context are those of the preset.
"""

import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.paper import expand
from common.runs import Data, Execution, execute
from papers.sparse_transformer import readers
from papers.sparse_transformer.music import write_wav
from papers.sparse_transformer.reproduce import PAPER
from tests.miniatures import write_cifar10

TINY = {
    "layers": 2,
    "steps": 2,
    "warmup": 1,
    "evaluate_every": 2,
    "evaluation_items": 2,
    "evaluation_batch_size": 2,
    "checkpoint_every": 1,
    "log_every": 1,
    "steps_per_call": 1,
    "batch_size": 2,
    "microbatch": 1,
}
SHORT = {"context": 256, "stride": 16, "width": 16}


def write_enwik8(root: Path) -> None:
    content = np.random.RandomState(0).bytes(12_000)
    (root / "enwik8").mkdir(parents=True)
    (root / "enwik8" / "enwik8").write_bytes(content)
    (root / "enwik8" / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  enwik8\n")


def write_piano(root: Path) -> None:
    for i in range(3):
        write_wav(root / "piano" / f"{i}.wav", np.sin(np.arange(3000) * (i + 1) / 20), 12_000)


def write_imagenet64(root: Path) -> None:
    for name, count in (("train_64x64", 24), ("valid_64x64", 2)):
        folder = root / "imagenet64" / name
        folder.mkdir(parents=True)
        for i in range(count):
            stream = io.BytesIO()
            Image.new("RGB", (64, 64), (i, 2 * i, 3)).save(stream, "PNG")
            (folder / f"{i:07}.png").write_bytes(stream.getvalue())


def write_cifar(root: Path) -> None:
    write_cifar10(root, 20)


Write = Callable[[Path], None]
CASES: dict[tuple[str, str, str], tuple[Write, dict[str, Any]]] = {
    ("paper", "cifar10", "strided"): (write_cifar, {"width": 8}),
    ("gpu", "cifar10", "dense"): (write_cifar, {"width": 8}),
    ("paper", "enwik8", "fixed"): (write_enwik8, {**SHORT, "summary": 4, "min_context": 128}),
    ("gpu", "enwik8", "strided"): (write_enwik8, SHORT),
    ("paper", "enwik8-summaries", "fixed-l128-c8-rotate"): (write_enwik8, {**SHORT, "summary": 4, "min_context": 64}),
    ("paper", "imagenet64", "strided"): (write_imagenet64, {"layers": 1, "width": 16}),
    ("paper", "music-65536", "local"): (write_piano, SHORT),
}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_full_scale_trainings_run_on_miniatures(case, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CIFAR_VALIDATION", 6)
    name, experiment, method = case
    write, changes = CASES[case]
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    preset = PAPER.preset(name)
    (spec,) = expand(
        PAPER,
        preset,
        tmp_path / "runs",
        Execution(),
        lambda source: Data(source.name, source.name, ""),
        [1000],
        [method],
        [experiment],
        data,
    )
    record = execute(dataclasses.replace(spec, config={**spec.config, **TINY, **changes}))
    assert record["status"] == "finished", record["error"]
    # The output layer begins as zeros, and one small step changes little.
    assert record["metrics"]["test_bits"] == pytest.approx(8, abs=0.5)
