"""What starts when: a made-up engine for the order of things, and the local engine with real processes."""

import os
import platform
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.engines import Event, LocalEngine, keep_memory
from common.files import Locked
from common.runs import Execution, RunSpec, read_record
from common.scheduler import Outcome, schedule
from tests import faults, toy


class Pretended:
    """An engine in which a run lasts until `wait` was asked `lasts[method]` times, and ends as `ends[method]` says."""

    def __init__(self, slots: int = 2, lasts: dict[str, int] | None = None, ends: dict[str, str] | None = None):
        self.slots, self.lasts, self.ends = slots, lasts or {}, ends or {}
        self.left: dict[Path, tuple[RunSpec, int]] = {}
        self.log: list[str] = []
        self.beside: dict[str, set[str]] = {}
        self.busiest = 0
        self.stopping = False

    def start(self, spec: RunSpec) -> None:
        self.log.append(f"+{spec.method}")
        self.left[spec.folder] = (spec, self.lasts.get(spec.method, 1))
        names = {running.method for running, _ in self.left.values()}
        for name in names:
            self.beside.setdefault(name, set()).update(names - {name})
        self.busiest = max(self.busiest, sum(running.execution.threads for running, _ in self.left.values()))

    def wait(self, timeout: float) -> list[Event]:
        events = []
        for folder, (spec, left) in list(self.left.items()):
            self.left[folder] = (spec, left - 1)
            if left > 1 and not self.stopping:
                events.append(Event("progress", spec, 1, left))
                continue
            del self.left[folder]
            self.log.append(f"-{spec.method}")
            end = self.ends.get(spec.method, "stopped" if self.stopping and left > 1 else "finished")
            if end == "error":
                events.append(Event("error", spec, error=Locked("it is in use")))
            else:
                events.append(Event("end", spec, record={"status": end, "error": None, "metrics": {}, "seconds": 0.0}))
        return events

    def stop(self) -> None:
        self.log.append("stop")
        self.stopping = True

    def kill(self) -> None:
        self.log.append("kill")
        self.left.clear()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunSpec]:
    def of(method: str, *needs: RunSpec, threads: int = 1, exclusive: bool = False, **config: Any) -> RunSpec:
        spec = toy.spec_of(tmp_path / method, toy.PLAIN, **config)
        spec = replace(spec, needs={need.method: need for need in needs}, exclusive=exclusive)
        return toy.on(spec, Execution(threads=threads))

    return of


def statuses(outcome: Outcome) -> dict[str, str]:
    return {folder.parent.name: status for folder, status in outcome.records.items()}


def test_runs_start_in_order_as_far_as_slots_allow(make: Callable[..., RunSpec]) -> None:
    engine = Pretended(slots=2, lasts={"a": 3})
    outcome = schedule([make(name) for name in "abcd"], engine)
    assert engine.log == ["+a", "+b", "-b", "+c", "-c", "+d", "-a", "-d"] and engine.busiest == 2
    assert statuses(outcome) == dict.fromkeys("abcd", "finished")
    assert outcome.stopped is None and outcome.error is None and outcome.failed == 0


def test_one_slot_is_one_at_a_time(make: Callable[..., RunSpec]) -> None:
    engine = Pretended(slots=1)
    schedule([make(name) for name in "abc"], engine)
    assert engine.log == ["+a", "-a", "+b", "-b", "+c", "-c"]


def test_a_run_takes_as_many_slots_as_it_has_threads(make: Callable[..., RunSpec]) -> None:
    engine = Pretended(slots=3, lasts=dict.fromkeys("abcd", 2))
    schedule([make("a", threads=2), make("b", threads=2), make("c"), make("d", threads=8)], engine)
    assert engine.beside["a"] == {"c"} and engine.beside["d"] == set()  # more than there are: all of them


def test_on_a_gpu_a_run_takes_one_slot(make: Callable[..., RunSpec]) -> None:
    engine = Pretended(slots=2)
    on_gpu = Execution(device="cuda", threads=4)
    schedule([toy.on(make(name), on_gpu) for name in "ab"], engine)
    assert engine.log[:2] == ["+a", "+b"]


def test_an_exclusive_run_runs_alone(make: Callable[..., RunSpec]) -> None:
    engine = Pretended(slots=3, lasts={"a": 2, "x": 2})
    schedule([make("a"), make("x", exclusive=True), make("b"), make("c")], engine)
    assert engine.beside["x"] == set() and engine.beside["a"] == {"b", "c"}
    engine = Pretended(slots=3, lasts={"x": 3})
    schedule([make("x", exclusive=True), make("a"), make("b")], engine)
    assert engine.beside["x"] == set() and engine.beside["a"] == {"b"}


def test_needs_come_first_whatever_the_order(make: Callable[..., RunSpec]) -> None:
    first = make("first")
    second = make("second", first)
    third = make("third", first, second)
    engine = Pretended(slots=4)
    schedule([third, second, first], engine)
    assert engine.log == ["+first", "-first", "+second", "-second", "+third", "-third"]


def test_a_need_that_is_there_already_is_not_waited_for(make: Callable[..., RunSpec]) -> None:
    first = make("first")
    engine = Pretended()
    outcome = schedule([make("second", first)], engine, settled=Outcome({first.folder: "finished"}))
    assert engine.log == ["+second", "-second"] and statuses(outcome) == {"first": "finished", "second": "finished"}


@pytest.mark.parametrize("end", ["failed", "diverged"])
def test_what_needs_a_run_that_did_not_finish_is_recorded_as_failed(make: Callable[..., RunSpec], end: str) -> None:
    first = make("first")
    second = make("second", first)
    third = make("third", second)
    seen = []
    engine = Pretended(ends={"first": end})
    outcome = schedule([first, second, third, make("other")], engine, lambda event: seen.append(event.spec.method))
    assert statuses(outcome) == {"first": end, "second": "failed", "third": "failed", "other": "finished"}
    assert outcome.failed == 2 + (end == "failed") and sorted(seen) == ["first", "other", "second", "third"]
    record = read_record(third.folder)
    assert record is not None and record["error"] == "it needs line/second/seed-1000, which did not finish"
    assert "+second" not in engine.log


def test_a_failed_run_does_not_stop_the_others(make: Callable[..., RunSpec]) -> None:
    engine = Pretended(slots=1, ends={"a": "failed", "b": "diverged"})
    outcome = schedule([make(name) for name in "abc"], engine)
    assert statuses(outcome) == {"a": "failed", "b": "diverged", "c": "finished"} and outcome.failed == 1


def test_the_time_limit_stops_what_runs_and_starts_nothing_more(make: Callable[..., RunSpec]) -> None:
    engine = Pretended(slots=1, lasts={"a": 300})
    seen = []

    def slow(event: Event) -> None:
        seen.append(event.kind)
        time.sleep(0.01)

    outcome = schedule([make("a"), make("b")], engine, slow, time_limit=0.05)
    assert outcome.stopped == "time limit" and statuses(outcome) == {"a": "stopped"}
    assert engine.log == ["+a", "stop", "-a"] and seen[-1] == "end"


def test_an_error_event_stops_everything(make: Callable[..., RunSpec]) -> None:
    engine = Pretended(slots=2, lasts={"a": 10}, ends={"b": "error"})
    outcome = schedule([make(name) for name in "abc"], engine)
    assert isinstance(outcome.error, Locked) and statuses(outcome) == {"a": "stopped"}
    assert engine.log == ["+a", "+b", "-b", "stop", "-a"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_stops_cleanly(make: Callable[..., RunSpec], number: int) -> None:
    before = signal.getsignal(number)
    engine = Pretended(slots=1, lasts={"a": 5})

    def interrupt(event: Event) -> None:
        if event.kind == "progress":
            os.kill(os.getpid(), number)

    outcome = schedule([make("a"), make("b")], engine, interrupt)
    assert statuses(outcome) == {"a": "stopped"}
    assert outcome.stopped == "interrupted" and engine.log[:2] == ["+a", "stop"] and "+b" not in engine.log
    assert signal.getsignal(number) == before


def test_the_second_interrupt_ends_everything_now(make: Callable[..., RunSpec]) -> None:
    class Stubborn(Pretended):
        def stop(self) -> None:
            self.log.append("stop")

    engine = Stubborn(slots=1, lasts={"a": 300})
    with pytest.raises(KeyboardInterrupt):
        schedule([make("a")], engine, lambda event: os.kill(os.getpid(), signal.SIGINT))
    assert engine.log[:3] == ["+a", "stop", "kill"] and not engine.left


def test_nothing_runs_on_when_the_schedule_itself_breaks(make: Callable[..., RunSpec]) -> None:
    engine = Pretended(lasts={"a": 10})

    def broken(event: Event) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="terminal"):
        schedule([make("a"), make("b")], engine, broken)
    assert engine.log[-1] == "kill" and not engine.left


# ---------------------------------------------------------------- real processes


@pytest.fixture
def local(fork_server: None) -> LocalEngine:
    return LocalEngine(2)


def test_processes_run_side_by_side_and_say_how_it_went(make: Callable[..., RunSpec], local: LocalEngine) -> None:
    first = make("first", score=1.0)
    second = make("second", first, score=1.0, do="meet", other="beside")
    specs = [first, second, make("beside", do="meet", other="second")]
    specs += [make("fail", do="fail"), make("nan", do="nan"), make("exit", do="exit"), make("die", do="die")]
    records: dict[str, Any] = {}
    outcome = schedule(specs, local, lambda event: records.update({event.spec.method: event.record}))
    assert statuses(outcome) == {
        "first": "finished",
        "second": "finished",
        "beside": "finished",
        "fail": "failed",
        "nan": "diverged",
        "exit": "failed",
        "die": "failed",
    }
    # It has read its need's folder; and each of the two has ended, having waited for the other to begin.
    assert records["second"]["metrics"] == {"score": 2.0}
    assert records["exit"]["error"] == "the process ended with status 7 and no result"
    assert records["die"]["error"] == "the process was ended by SIGKILL (out of memory?)"
    for name, record in records.items():
        assert read_record(first.folder.parents[1] / name / "seed-1000") == record


def test_an_exclusive_process_runs_alone(make: Callable[..., RunSpec], local: LocalEngine) -> None:
    specs = [make("a", seconds=0.2), make("x", exclusive=True, seconds=0.2), make("b", seconds=0.2)]
    schedule(specs, local)
    times = [tuple(map(float, (spec.folder / "artifacts" / "times").read_text().split())) for spec in specs]
    assert times[1][0] > max(times[0][1], times[2][1]) or times[1][1] < min(times[0][0], times[2][0])


def test_the_child_has_the_threads_of_its_spec(make: Callable[..., RunSpec], local: LocalEngine) -> None:
    specs = [replace(make(f"t{threads}", threads=threads), function="tests.toy:threads") for threads in (1, 2)]
    found = {}
    schedule(specs, local, lambda event: found.update({event.spec.method: event.record["metrics"]}))
    assert found == {"t1": {"torch": 1, "blas": 1}, "t2": {"torch": 2, "blas": 2}}


def test_stopping_ends_processes_cleanly(make: Callable[..., RunSpec], local: LocalEngine) -> None:
    specs = [make("a", do="wait"), make("b", do="wait"), make("c", do="wait")]
    progress = set()

    def watch(event: Event) -> None:
        if event.kind == "progress":
            progress.add(event.spec.method)
        if len(progress) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            progress.add("done")

    outcome = schedule(specs, local, watch)
    assert outcome.stopped == "interrupted" and statuses(outcome) == {"a": "stopped", "b": "stopped"}
    assert not specs[2].folder.exists()


def test_killing_leaves_runs_that_read_as_stopped(make: Callable[..., RunSpec], local: LocalEngine) -> None:
    spec = make("a", do="wait")
    local.start(spec)
    while not local.wait(5.0):
        pass
    local.kill()
    record = read_record(spec.folder)
    assert record is not None and record["status"] == "stopped"


def test_a_locked_run_is_an_error_that_names_the_holder(make: Callable[..., RunSpec], local: LocalEngine) -> None:
    spec = make("a", do="wait")
    process = faults.start(faults._body, spec, ())
    faults.wait_for(spec.folder / "artifacts" / "attempts")
    outcome = schedule([spec, make("b")], local)
    assert isinstance(outcome.error, Locked) and str(process.pid) in str(outcome.error)
    process.kill()
    process.join()


def test_a_folder_that_cannot_be_made_is_an_error_without_a_traceback(
    make: Callable[..., RunSpec], local: LocalEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = make("a")
    spec.folder.parent.write_text("a file where the folder should be")
    outcome = schedule([spec], local)
    assert isinstance(outcome.error, OSError)
    assert capfd.readouterr().err == ""


def test_relative_folders_are_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: LocalEngine
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = schedule([toy.spec_of(Path("relative"), toy.PLAIN)], local)
    assert outcome.failed == 0 and (tmp_path / "relative/seed-1000/run.json").exists()


def test_gpus_are_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert LocalEngine(gpus=2)._free_gpus == ["0", "1"] and LocalEngine(gpus=2).slots == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert LocalEngine(gpus=2)._free_gpus == ["3", "5"]


def test_slots_are_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert LocalEngine().slots == 3


def test_the_c_library_is_asked_to_keep_memory_where_it_can() -> None:
    assert keep_memory() == (platform.libc_ver()[0] == "glibc")
