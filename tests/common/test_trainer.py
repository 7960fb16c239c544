"""The trainer: ranges of steps, what happens at which of them, and that neither the cuts nor loggers matter."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from common import checkpoints
from common.curves import read_rows
from common.runs import Execution, execute
from common.trainer import Schedule, StepRanges
from tests import toy

EVERY = st.integers(1, 40)


@given(total=st.integers(1, 120), start=st.integers(0, 120), evaluate=EVERY, checkpoint=EVERY, log=EVERY, call=EVERY)
def test_ranges_cover_the_steps_and_stop_wherever_something_happens(
    total: int, start: int, evaluate: int, checkpoint: int, log: int, call: int
) -> None:
    ranges = list(StepRanges(SimpleNamespace(step=start), Schedule(total, evaluate, checkpoint, log, call)))  # type: ignore[arg-type]
    assert [step for bounds in ranges for step in range(*bounds)] == list(range(start, total))
    stops = {stop for _, stop in ranges}
    assert stops >= {
        step for step in range(start + 1, total) if any(step % n == 0 for n in (evaluate, checkpoint, log))
    }
    assert all(0 < stop - begin <= call for begin, stop in ranges)


def trained(folder: Path, execution: Execution | None = None, **config: Any) -> dict[str, str]:
    """The end state of a run in this process, but for its record, which holds the key."""
    spec = toy.on(toy.spec_of(folder, **config), execution or Execution())
    record = execute(spec)
    assert record["status"] == "finished", record["error"]
    return {name: digest for name, digest in toy.end_state(spec.folder).items() if name != "record"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_where_ranges_are_cut_does_not_change_what_is_computed(tmp_path: Path, precision: str) -> None:
    execution = Execution(precision=precision)
    states = [trained(tmp_path / str(call), execution, steps_per_call=call) for call in (1, 3, 100)]
    assert states[0] == states[1] == states[2]


def test_bfloat16_is_another_computation(tmp_path: Path) -> None:
    states = [trained(tmp_path / name, Execution(precision=name)) for name in ("float32", "bfloat16")]
    assert states[0]["module"] != states[1]["module"]
    state = checkpoints.load_latest(tmp_path / "bfloat16" / "seed-1000" / "checkpoints")
    assert state is not None and {t.dtype for t in state["module"].values()} == {torch.float32, torch.int64}


def test_when_things_happen(tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "seed-1000"
    trained(tmp_path / "toy", total_steps=23)
    found = [(row["name"], int(row["step"]), int(row["samples"])) for row in read_rows(folder / "curves.csv")]
    # Each at its own multiples and at the end; at one step the log comes before the evaluation.
    logs = [("train_loss", step, 16 * step) for step in (4, 8, 12, 16, 20, 23)]
    evaluations = [("test_loss", step, 16 * step) for step in (8, 16, 23)]
    assert found == sorted(logs + evaluations, key=lambda row: (row[1], row[0] == "test_loss"))
    assert sorted(path.name for path in (folder / "checkpoints").glob("*.pt")) == ["step-20.pt", "step-23.pt"]
    record = json.loads((folder / "run.json").read_text())
    assert record["metrics"]["test_loss"] == float(read_rows(folder / "curves.csv")[-1]["value"])
    assert record["samples_per_second"] == pytest.approx(23 * 16 / record["seconds"], rel=0.1)


def test_final_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    trained(tmp_path / "toy")
    folder = tmp_path / "toy" / "seed-1000"
    state = checkpoints.load_latest(folder / "checkpoints")
    weights = load_file(folder / "weights.safetensors")
    assert state is not None and weights
    for name, tensor in weights.items():
        assert torch.equal(tensor, state["module"][f"average.{name}"])


def test_tensorboard_changes_nothing_but_its_own_files(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain")
    spec = replace(toy.spec_of(tmp_path / "logged"), tensorboard=True)
    execute(spec)
    assert {name: digest for name, digest in toy.end_state(spec.folder).items() if name != "record"} == plain
    assert list((spec.folder / "tensorboard").rglob("events.out.tfevents.*"))
    assert not list((tmp_path / "plain").rglob("*tfevents*"))


def test_deterministic_mode_lasts_as_long_as_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    evaluate = toy.Toy.evaluate

    def watched(module: toy.Toy) -> dict[str, float]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return evaluate(module)

    monkeypatch.setattr(toy.Toy, "evaluate", watched)
    trained(tmp_path / "strict", Execution(deterministic=True))
    assert seen == [True] * 3 and not torch.are_deterministic_algorithms_enabled()
    trained(tmp_path / "free")
    assert seen[3:] == [False] * 3


def test_a_trained_run_says_nothing_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "toy")
    assert capfd.readouterr() == ("", "")
