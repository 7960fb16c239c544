"""Sparse Transformers resume exactly: killed in a step, while saving and while evaluating, they end bit-equal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.random import Stream
from common.runs import Execution, Folder, RunSpec, read_record
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.data import Corpus
from papers.sparse_transformer.evaluation import bits
from papers.sparse_transformer.module import train
from papers.sparse_transformer.network import load_model
from tests import faults, toy
from tests.faults import Fault

pytestmark = pytest.mark.usefixtures("fork_server")
MODULE = "papers.sparse_transformer.module:LanguageModel"
# Eight steps in ranges of two, a checkpoint after each, evaluations at 4 and 8.
BASE = {
    "data": "python", "context": 12, "stride": 4, "layers": 2, "width": 8, "heads": 2, "feedforward": 2,
    "positions": "attention", "steps": 8, "batch_size": 4, "learning_rate": 0.01, "warmup": 2, "ema_decay": 0.9,
    "dropout": 0.1, "evaluate_every": 4, "checkpoint_every": 2, "log_every": 2, "steps_per_call": 2,
    "evaluation_items": 2,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "strided": {"attention_dropout": 0.1, "microbatch": 2},
    "fixed": {"pattern": "fixed", "summary": 1, "loss_scaling": True, "ema_decay": 0.0},
}
CHAINS = {
    "strided": [Fault(f"{MODULE}.optimise", 2), Fault("os:replace", 5), Fault(f"{MODULE}.evaluate", 1, "after")],
    "fixed": [Fault(f"{MODULE}.training_step", 3, "after"), Fault(f"{MODULE}.update", 3, "after")],
}


def text() -> np.ndarray:
    return Stream(0, "text").integers(0, 400, 5).to(torch.uint8).numpy()


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train on noise. The time of a step differs between two equal runs, so it is no metric here."""
    found = text()
    corpus = Corpus("stream", found[:300], found[300:350], found[350:], 5, None, "noise", "bytes")
    metrics = train(Config.of(config), corpus, int(config["seed"]), folder)
    assert metrics.pop("seconds_per_step") >= 0
    return metrics


def spec_of(name: str, root: Path) -> RunSpec:
    return RunSpec(
        "sparse_transformer", "smoke", "noise", name, 7, "tests.sparse_transformer.test_resume:run",
        {**BASE, **CHANGES[name]}, root / "sparse_transformer" / "smoke" / "noise" / name / "seed-7", Execution(),
    )  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_a_killed_run_ends_as_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    whole, spec = spec_of(name, tmp_path / "whole"), spec_of(name, tmp_path / "killed")
    assert faults.run_with(whole) == 0
    for fault in CHAINS[name]:
        assert faults.run_with(spec, fault) == -9, f"{fault} was not reached"
    assert faults.run_with(spec) == 0
    assert toy.end_state(spec.folder) == toy.end_state(whole.folder)
    record = read_record(spec.folder)
    assert record is not None and record["status"] == "finished" and record["resumed"]
    # What a later run reads of this one is what this one measured.
    model, config, settings = load_model(spec.folder)
    assert settings == json.loads((whole.folder / "settings.json").read_text()) and settings["vocabulary"] == 5
    assert config == Config.of({**BASE, **CHANGES[name]})
    if name == "strided":
        spread = torch.from_numpy(text())[350:398].view(4, 12)[::2]
        assert record["metrics"]["test_bits"] == pytest.approx(bits(model, spread, 12), rel=1e-6)
