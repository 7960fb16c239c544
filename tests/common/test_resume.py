"""Resuming is exact: runs that are killed, stopped or damaged end, bit for bit, as if nothing had happened.

Every kill is a real SIGKILL of a process that trains. What is compared is the whole end state (`toy.end_state`):
network, optimiser, averaged weights, BatchNorm statistics, weights file, curves and record.
"""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import engines, runs
from common.engines import Event, LocalEngine
from common.files import is_locked
from common.runs import RunSpec, read_record
from common.scheduler import schedule
from tests import faults, toy
from tests.faults import Fault

pytestmark = pytest.mark.usefixtures("fork_server")
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, fork_server: None) -> dict[str, str]:
    """The end state of the run that nothing disturbs."""
    spec = toy.spec_of(tmp_path_factory.mktemp("undisturbed") / "toy")
    assert faults.run_with(spec) == 0
    return toy.end_state(spec.folder)


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return toy.spec_of(tmp_path / "toy")


def record_of(spec: RunSpec) -> dict[str, Any]:
    record = read_record(spec.folder)
    assert record is not None
    return record


def finish(spec: RunSpec) -> dict[str, str]:
    """Resume to the end, without a fault; the end state."""
    assert faults.run_with(spec) == 0
    assert record_of(spec)["status"] == "finished"
    return toy.end_state(spec.folder)


WRITE, RENAME, SYNC = "pathlib:Path.write_bytes", "os:replace", "os:fsync"
STEP, EVALUATE, ADAM = "tests.toy:Toy.training_step", "tests.toy:Toy.evaluate", "torch.optim:Adam.step"
SAVE, CUT, WEIGHTS = "common.checkpoints:save", "common.curves:Curves.cut", "tests.toy:save_weights"
# Renames of an undisturbed run: 1 config, 2 record, 3 curves, then checkpoint and checksum in turn (4-13: steps 5, 10,
# 15, 20, 24), 14 weights, 15 record. Each line below is one run that is killed at these points, one after another.
CHAINS: dict[str, list[Fault]] = {
    "early": [Fault(RENAME, 1), Fault(RENAME, 2), Fault(CUT), Fault(RENAME, 3), Fault(STEP, 1), Fault(STEP, 2)],
    "in a step": [Fault(ADAM, 2), Fault(ADAM, 7, "after"), Fault(STEP, 3), Fault(STEP, 3, "after"), Fault(ADAM, 9)],
    "while saving": [
        Fault(WRITE, 4, "half"),  # the first checkpoint: there is none yet
        Fault(RENAME, 4),
        Fault(RENAME, 5),  # a checkpoint without a checksum
        Fault(WRITE, 7, "half"),
        Fault(RENAME, 6, "after"),
        Fault(SAVE, 1, "after"),
    ],
    "while saving again": [
        Fault(RENAME, 8),
        Fault(SYNC, 6),
        Fault(SYNC, 9, "after"),
        Fault("pathlib:Path.unlink", 7),  # the old ones are being dropped
        Fault("pathlib:Path.unlink", 8, "after"),
    ],
    "while evaluating": [Fault(EVALUATE, 1), Fault(EVALUATE, 1, "after"), Fault(EVALUATE, 2), Fault(EVALUATE, 1)],
    "late": [Fault(EVALUATE, 3), Fault(WEIGHTS), Fault(WRITE, 4, "half"), Fault(WEIGHTS, 1, "after"), Fault(RENAME, 5)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_killed_at_chosen_points(name: str, spec: RunSpec, undisturbed: dict[str, str]) -> None:
    for fault in CHAINS[name]:
        assert faults.run_with(spec, fault) == KILLED, f"{fault} was not reached"
        assert record_of(spec)["status"] == "stopped" if (spec.folder / "run.json").exists() else True
    assert finish(spec) == undisturbed


def test_killed_after_the_record_is_written_nothing_is_left_to_do(spec: RunSpec, undisturbed: dict[str, str]) -> None:
    assert faults.run_with(spec, Fault(RENAME, 15, "after")) == KILLED
    assert runs.is_settled(spec) and toy.end_state(spec.folder) == undisturbed


def test_killed_at_random_moments(tmp_path: Path) -> None:
    # 14 ranges of steps with a pause in each: more than 0.4 s. It does not change what is computed, but the key.
    whole = toy.spec_of(tmp_path / "whole", pause=0.03)
    expected = finish(whole)
    codes, resumed = [], 0
    for number in range(5):
        spec = replace(whole, folder=tmp_path / str(number) / "seed-1000")
        codes += [faults.run_with(spec, kill_after=random.uniform(0.0, 0.5)) for _ in range(5)]
        assert finish(spec) == expected
        resumed += len(record_of(spec)["resumed"])
    # Not in vain: many were killed, and some of them after their first checkpoint.
    assert set(codes) <= {0, KILLED} and codes.count(KILLED) >= 6 and resumed >= 2, (codes, resumed)


def test_the_record_says_where_it_was_resumed_and_counts_all_the_time(spec: RunSpec) -> None:
    slow = replace(spec, config={**spec.config, "pause": 0.03})
    for nth in (4, 5):
        assert faults.run_with(slow, Fault(STEP, nth)) == KILLED
    finish(slow)
    record = record_of(slow)
    # Ranges end at 3, 4, 5 | 6, 8, 9, 10 | 12, 15 | 16, 18, 20 | 21, 24, and a checkpoint stands at each bar.
    assert record["resumed"] == [5, 10]
    assert record["seconds"] > 14 * 0.03 and record["samples_per_second"] > 0


# ---------------------------------------------------------------- stopped on request


@pytest.mark.parametrize(
    "where",
    [
        "tests.toy:Toy.configure_optimizers",
        # Lightning's own handler stands here, for a moment.
        "pytorch_lightning.loops.fit_loop:_FitLoop.setup_data",
        STEP,
        EVALUATE,
        SAVE,
        WEIGHTS,
    ],
)
def test_stopped_on_request_at_chosen_points(where: str, spec: RunSpec, undisturbed: dict[str, str]) -> None:
    assert faults.run_with(spec, Fault(where, number=signal.SIGTERM)) == 0
    record = record_of(spec)
    if where == WEIGHTS:  # training is over: it may as well end
        assert record["status"] == "finished"
    else:
        assert record["status"] == "stopped" and record["error"] == "stopped on request; the same command resumes it"
        assert list((spec.folder / "checkpoints").glob("step-*.sha256"))
        assert finish(spec) == undisturbed


def test_a_stop_in_the_last_range_lets_the_run_finish(spec: RunSpec, undisturbed: dict[str, str]) -> None:
    assert faults.run_with(spec, Fault(STEP, 14, number=signal.SIGTERM)) == 0
    assert record_of(spec)["status"] == "finished" and toy.end_state(spec.folder) == undisturbed


def test_a_stop_takes_effect_after_the_range_that_is_going_on(spec: RunSpec, undisturbed: dict[str, str]) -> None:
    for _ in range(4):
        assert faults.run_with(spec, Fault(STEP, 2, number=signal.SIGTERM)) == 0
    assert finish(spec) == undisturbed
    assert record_of(spec)["resumed"] == [4, 6, 9, 12]


def test_stopped_by_the_engine_at_random_moments(spec: RunSpec, tmp_path: Path) -> None:
    of = replace(spec, config={**spec.config, "pause": 0.03})
    expected = finish(replace(of, folder=tmp_path / "whole" / "seed-1000"))
    engine = LocalEngine(1)
    ends: list[str] = []
    for number in range(10):
        before = faults.written(of)
        engine.start(of)
        # Every other time at once: the process may not listen yet.
        while number % 2 and faults.written(of) == before:
            time.sleep(0.002)
        time.sleep(random.uniform(0.0, 0.2))
        engine.stop()
        events: list[Event] = []
        while not events or events[-1].kind != "end":
            events += engine.wait(5.0)
        ends.append(events[-1].record["status"])
        if ends[-1] == "finished":
            break
    assert set(ends) <= {"stopped", "finished"} and "stopped" in ends
    assert finish(of) == expected


def test_when_the_parent_is_killed_its_runs_stop_cleanly(tmp_path: Path) -> None:
    spec = toy.spec_of(tmp_path / "toy", pause=0.1)
    expected = finish(replace(spec, folder=tmp_path / "whole" / "seed-1000"))
    receiver, sender = multiprocessing.Pipe(duplex=False)
    parent = faults.start(faults.follow, receiver)
    child = faults.start(engines._child, spec, sender, None)
    receiver.close()
    sender.close()
    faults.wait_for(spec.folder / "checkpoints" / "step-5.sha256")
    parent.kill()
    child.join()
    assert not is_locked(spec.lock_path)
    record = record_of(spec)
    assert record["status"] == "stopped" and record["error"] == "stopped on request; the same command resumes it"
    assert finish(spec) == expected
    assert record_of(spec)["resumed"][0] >= 8  # it wrote a checkpoint when it stopped


# ---------------------------------------------------------------- damaged checkpoints


def _cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut_short, _flip_a_bit])
def test_a_damaged_newest_checkpoint_falls_back_and_still_ends_equal(
    damage: Any, spec: RunSpec, undisturbed: dict[str, str]
) -> None:
    assert faults.run_with(spec, Fault(EVALUATE, 2)) == KILLED  # step 16; checkpoints at 10 and 15
    damage(spec.folder / "checkpoints" / "step-15.pt")
    assert finish(spec) == undisturbed
    assert record_of(spec)["resumed"] == [10]


def test_without_a_readable_checkpoint_it_begins_again(spec: RunSpec, undisturbed: dict[str, str]) -> None:
    assert faults.run_with(spec, Fault(EVALUATE, 2)) == KILLED
    for path in (spec.folder / "checkpoints").glob("*.pt"):
        _cut_short(path)
    assert finish(spec) == undisturbed
    assert record_of(spec)["resumed"] == []


def test_a_failed_run_goes_on_from_its_checkpoint(spec: RunSpec, undisturbed: dict[str, str]) -> None:
    def record(event: Event) -> None:
        errors.append(event.record.get("error"))

    errors: list[Any] = []
    assert faults.run_with(spec, Fault(EVALUATE, 2, number=-5)) == 0  # an input/output error: it fails
    assert record_of(spec)["status"] == "failed" and "OSError" in record_of(spec)["error"]
    outcome = schedule([spec], LocalEngine(1), record)
    assert outcome.failed == 0 and errors[-1] is None
    assert toy.end_state(spec.folder) == undisturbed and record_of(spec)["resumed"] == [15]
