"""One run's folder: what its key holds, when it is repeated, what its record says however it ends."""

import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import files, runs
from common.errors import UserError
from common.runs import Data, Execution, Folder, Locked, RunSpec, execute, is_settled, read_record
from tests import faults, toy
from tests.faults import FULL_DISK, Fault, arm


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return toy.spec_of(tmp_path / "method", toy.PLAIN, score=1.0)


def attempts(folder: Path) -> int:
    return len((folder / "artifacts" / "attempts").read_text().splitlines())


def doing(spec: RunSpec, **config: Any) -> RunSpec:
    return replace(spec, config={**spec.config, **config})


# ---------------------------------------------------------------- the key

DATA = Data("cifar10", "CIFAR-10", "abc")
OTHER: dict[str, Any] = {
    "paper": "other",
    "experiment": "other",
    "method": "other",
    "seed": 1001,
    "function": "tests.toy:train",
    "config": {"score": 2.0},
    "data": (replace(DATA, fingerprint="abd"),),
}
OTHER_EXECUTION: dict[str, Any] = {
    "device": "cuda",
    "precision": "bfloat16",
    "threads": 2,
    "compile": True,
    "deterministic": True,
}


@pytest.mark.parametrize("name", OTHER)
def test_the_key_holds_what_decides_the_result(spec: RunSpec, name: str) -> None:
    spec = replace(spec, data=(DATA,))
    assert replace(spec, **{name: OTHER[name]}).key != spec.key


@pytest.mark.parametrize("name", OTHER_EXECUTION)
def test_the_key_holds_how_it_is_executed(spec: RunSpec, name: str) -> None:
    assert set(OTHER_EXECUTION) == set(vars(Execution()))
    assert toy.on(spec, replace(Execution(), **{name: OTHER_EXECUTION[name]})).key != spec.key


def test_the_key_holds_the_code(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    before = spec.key
    monkeypatch.setattr(runs, "code_hash", lambda function: "another")
    assert replace(spec).key != before
    # What has been planned keeps the code that it was planned with, in the process of the run, too.
    assert spec.key == before == pickle.loads(pickle.dumps(spec)).key


def test_the_key_holds_the_keys_of_the_needs(spec: RunSpec) -> None:
    needing = replace(spec, method="needing", needs={"first": spec})
    assert needing.key != replace(needing, needs={}).key
    assert needing.key != replace(needing, needs={"second": spec}).key
    assert needing.key != replace(needing, needs={"first": doing(spec, score=3.0)}).key
    deep = replace(spec, method="deep", needs={"needing": needing})
    assert deep.key != replace(deep, needs={"needing": replace(needing, needs={"first": doing(spec, score=3.0)})}).key
    # Another execution is another execution of the needs, too.
    assert toy.on(deep, Execution(threads=2)).needs["needing"].needs["first"].execution.threads == 2


def test_the_key_does_not_hold_where_the_run_lives(spec: RunSpec, tmp_path: Path) -> None:
    elsewhere = replace(
        spec, folder=tmp_path / "elsewhere", preset="full", data_dir=tmp_path, tensorboard=True, exclusive=True
    )
    assert elsewhere.key == spec.key
    renamed = replace(spec, data=(replace(DATA, label="other words"),))
    assert renamed.key == replace(spec, data=(DATA,)).key
    assert doing(spec, a=1, b=2).key == replace(spec, config={"b": 2, "a": 1, **spec.config}).key


# ---------------------------------------------------------------- how a run ends


def test_a_finished_run_has_a_whole_record_and_is_not_repeated(spec: RunSpec) -> None:
    record = execute(replace(spec, data=(DATA,)))
    assert record == read_record(spec.folder) == json.loads((spec.folder / "run.json").read_text())
    assert record["status"] == "finished" and record["error"] is None and record["metrics"] == {"score": 1.0}
    assert (record["experiment"], record["method"], record["seed"]) == ("line", "method", 1000)
    assert record["schema_version"] == 1 and record["seconds"] >= 0 and record["stacked"] == 1
    source = record["provenance"]
    assert source["data"] == {"cifar10": "abc"} and source["code"] == runs.code_hash(toy.PLAIN)
    assert set(source) == {"commit", "dirty", "code", "data", "versions", "hardware"}
    assert str(spec.folder.parent) not in json.dumps(record) and os.uname().nodename not in json.dumps(source)
    config = json.loads((spec.folder / "config.json").read_text())
    assert config["config"] == {"score": 1.0} and config["execution"]["threads"] == 1 and config["preset"] == "quick"
    assert is_settled(replace(spec, data=(DATA,)))
    assert execute(replace(spec, data=(DATA,))) == record and attempts(spec.folder) == 1


def test_another_key_moves_the_folder_aside_and_never_overwrites(spec: RunSpec) -> None:
    for score in (1.0, 2.0, 3.0):
        assert not is_settled(doing(spec, score=score))
        assert execute(doing(spec, score=score))["metrics"] == {"score": score}
    folders = [spec.folder.with_name(f"seed-1000{suffix}") for suffix in (".old-1", ".old-2", "")]
    found = [json.loads((folder / "run.json").read_text())["metrics"]["score"] for folder in folders]
    assert found == [1.0, 2.0, 3.0] and [attempts(folder) for folder in folders] == [1, 1, 1]
    # Going back to the first key is a run like any other: what was moved aside is not looked at.
    assert execute(spec)["metrics"] == {"score": 1.0}
    assert attempts(spec.folder.with_name("seed-1000.old-3")) == 1


def test_an_unfinished_run_of_another_key_is_not_resumed(spec: RunSpec) -> None:
    execute(doing(spec, do="fail"))
    (spec.folder / "checkpoints").mkdir()
    execute(spec)
    assert not (spec.folder / "checkpoints").exists()
    assert (spec.folder.with_name("seed-1000.old-1") / "checkpoints").exists()


def test_a_failed_run_is_recorded_in_one_line_and_tried_again(spec: RunSpec) -> None:
    spec = doing(spec, do="fail once")
    record = execute(spec)
    assert record["status"] == "failed" and record["error"] == "ValueError: broken the first time"
    assert "Traceback" in (spec.folder / "log.txt").read_text()
    assert not is_settled(spec)
    again = execute(spec)
    assert again["status"] == "finished" and again["error"] is None and attempts(spec.folder) == 2


def test_an_error_of_several_lines_becomes_one(spec: RunSpec) -> None:
    assert execute(doing(spec, do="fail"))["error"] == "ValueError: broken on purpose"
    assert execute(doing(spec, do="user error"))["error"] == "the toy is not wound up: wind it up"


def test_a_diverged_run_is_settled(spec: RunSpec) -> None:
    spec = doing(spec, do="diverge")
    record = execute(spec)
    assert record["status"] == "diverged" and record["error"] == "the loss is not finite at step 3"
    assert is_settled(spec) and execute(spec) == record and attempts(spec.folder) == 1


def _returning(monkeypatch: pytest.MonkeyPatch, metrics: Any) -> None:
    monkeypatch.setattr(toy, "plain", lambda config, folder, needs: metrics)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {"mean": float("nan"), "std": 0.0, "n": 3}, {"low": float("nan"), "high": None}],
)
def test_a_metric_that_is_not_finite_is_a_divergence(
    spec: RunSpec, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _returning(monkeypatch, {"fine": 1.0, "score": value})
    record = execute(spec)
    assert record["status"] == "diverged" and record["error"] == "the metric score is not finite"
    assert record["metrics"] == {} and is_settled(spec)


@pytest.mark.parametrize(
    "value", [1, 2.5, np.float64(2.5), {"mean": 1.0, "std": 0.1, "n": 3}, {"low": 2.0, "high": None}]
)
def test_numbers_summaries_and_censored_numbers_are_metrics(
    spec: RunSpec, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _returning(monkeypatch, {"score": value})
    assert execute(spec)["metrics"] == {"score": value} == json.loads((spec.folder / "run.json").read_text())["metrics"]


@pytest.mark.parametrize("value", ["12", None, np.float32(1.0), [1.0], {"mean": "1"}])
def test_what_is_no_number_is_a_mistake_in_the_run_function(
    spec: RunSpec, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _returning(monkeypatch, {"score": value})
    record = execute(spec)
    assert record["status"] == "failed" and record["error"].startswith("TypeError: the metric score is")


def test_a_stopped_run_is_resumable(spec: RunSpec) -> None:
    record = execute(doing(spec, do="wait"), on_folder=lambda folder: setattr(folder, "stop_requested", True))
    assert record["status"] == "stopped" and "resumes" in record["error"] and not is_settled(spec)


def test_a_nan_loss_diverges_and_keeps_its_curves(tmp_path: Path) -> None:
    record = execute(toy.spec_of(tmp_path / "explode", explode=9))
    assert record["status"] == "diverged" and record["error"] == "train_loss is not finite at step 12"
    steps = [line.split(",")[0] for line in (tmp_path / "explode/seed-1000/curves.csv").read_text().splitlines()[1:]]
    assert steps == ["4", "8", "8"]


# ---------------------------------------------------------------- kills, locks, full disks


def test_a_killed_run_reads_as_stopped_and_is_tried_again(spec: RunSpec, fork_server: None) -> None:
    assert faults.run_with(doing(spec, do="die")) == -signal.SIGKILL
    assert json.loads((spec.folder / "run.json").read_text())["status"] == "running"
    record = read_record(spec.folder)
    assert record is not None and record["status"] == "stopped" and "killed" in record["error"]
    assert not is_settled(doing(spec, do="die"))


def test_a_run_is_refused_while_another_process_works_on_it(spec: RunSpec, fork_server: None) -> None:
    waiting = doing(spec, do="wait")
    process = faults.start(faults._body, waiting, ())
    faults.wait_for(spec.folder / "artifacts" / "attempts")
    for attempt in (waiting, spec):  # even with another key: the folder is not moved away under its owner
        with pytest.raises(Locked, match=f"seed-1000 is in use by process {process.pid}"):
            execute(attempt)
    record = read_record(spec.folder)
    assert record is not None and record["status"] == "running"
    process.terminate()
    process.join()
    record = read_record(spec.folder)
    assert record is not None and record["status"] == "stopped" and attempts(spec.folder) == 1


@pytest.mark.parametrize("nth", range(1, 4))  # config.json, the first run.json, the last run.json
def test_a_full_disk_is_raised_and_the_run_stays_resumable(spec: RunSpec, nth: int) -> None:
    with arm(Fault("common.files:os.replace", nth, number=FULL_DISK)), pytest.raises(OSError, match="No space"):
        execute(spec)
    assert not is_settled(spec)
    assert execute(spec)["status"] == "finished"


def test_a_disk_that_fills_up_for_a_moment_is_raised_too(tmp_path: Path) -> None:
    # Room for the small record of a failure, but not for a checkpoint: that is still no failure of the run.
    spec = toy.spec_of(tmp_path / "toy")
    with arm(Fault("common.files:os.replace", 6, number=FULL_DISK)), pytest.raises(OSError, match="No space"):
        execute(spec)
    record = read_record(spec.folder)
    assert record is not None and record["status"] == "stopped"
    record = execute(spec)
    assert record["status"] == "finished" and record["resumed"] == [5]


def test_a_record_of_a_finished_run_outlives_the_death_of_its_process(spec: RunSpec) -> None:
    finished = execute(spec)
    assert runs.record_failure(spec, "the process was ended by SIGKILL") == finished == read_record(spec.folder)


def test_a_failure_is_recorded_where_no_run_began(spec: RunSpec) -> None:
    record = runs.record_failure(spec, "it needs x, which did not finish")
    assert record == read_record(spec.folder) and record["status"] == "failed" and record["metrics"] == {}
    assert execute(spec)["status"] == "finished"


def test_a_failure_under_another_key_moves_the_folder_aside(spec: RunSpec) -> None:
    execute(spec)
    runs.record_failure(doing(spec, score=5.0), "died")
    kept = read_record(spec.folder.with_name("seed-1000.old-1"))
    assert kept is not None and kept["status"] == "finished"


def test_broken_and_missing_records(spec: RunSpec) -> None:
    assert read_record(spec.folder) is None and not is_settled(spec)
    files.write_text(spec.folder / "run.json", "{")
    with pytest.raises(UserError, match=r"run\.json is not valid JSON"):
        is_settled(spec)


# ---------------------------------------------------------------- the open folder


def test_progress_is_throttled_and_ends_with_the_last_step(spec: RunSpec) -> None:
    seen = []
    folder = Folder(spec, lambda step, total, values: seen.append(step))
    for step in range(1, 101):
        folder.report(step, 100, {})
    assert seen == [1, 100]


def test_a_reader_that_is_gone_asks_the_run_to_stop(spec: RunSpec) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError

    folder = Folder(spec, gone)
    folder.report(1, 100, {})
    assert folder.stop_requested


def test_the_clock_goes_on_from_a_checkpoint(spec: RunSpec) -> None:
    folder = Folder(spec)
    folder.resume_clock(100.0)
    assert 100.0 <= folder.seconds() < 101.0


def test_output_of_a_run_goes_to_its_log(spec: RunSpec, fork_server: None, tmp_path: Path) -> None:
    process = faults.start(faults.print_to, tmp_path / "log.txt")
    process.join()
    assert (tmp_path / "log.txt").read_text() == "out\nerr\nchild\n"
