"""From a list of jobs to finished runs: what may start when, on any engine."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common import runs
from common.engines import Engine, Event
from common.jobs import JobSpec, without
from common.runs import RunSpec


@dataclass
class Outcome:
    """How a schedule ended. stopped: None, "interrupted" (Ctrl-C) or "time limit"."""

    records: dict[Path, str] = field(default_factory=dict)
    stopped: str | None = None
    error: Exception | None = None

    @property
    def failed(self) -> int:
        return sum(status == "failed" for status in self.records.values())


@contextmanager
def _interrupts(stop: Callable[[], None], kill: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) stops cleanly, the second ends everything now."""
    count = 0

    def handler(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 1:
            stop()
        else:
            kill()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def schedule(
    specs: Sequence[JobSpec],
    engine: Engine,
    on_event: Callable[[Event], None] = lambda event: None,
    time_limit: float | None = None,
    settled: Outcome | None = None,
) -> Outcome:
    """Do every job once, needs first, in the given order as far as slots allow.

    A job takes as many slots as it has threads (all of them when it wants more), or one on a GPU. An `exclusive` run
    waits until nothing runs and runs alone. A run whose need failed is recorded as failed, and the rest of its stack
    goes on. time_limit: seconds after which everything is stopped, resumable. A failed run does not stop the others; an
    "error" event does.
    """
    outcome = settled or Outcome()
    waiting = list(specs)
    running: dict[Path, JobSpec] = {}
    ending: dict[Path, Path] = {}  # folder of a run that is being done to the folder of its job
    deadline = time.monotonic() + time_limit if time_limit is not None else None

    def cost(spec: JobSpec) -> int:
        return 1 if spec.execution.device != "cpu" else min(spec.execution.threads, engine.slots)

    def stop(why: str) -> None:
        if outcome.stopped is None:
            outcome.stopped = why
            engine.stop()

    def settle(event: Event) -> None:
        folder = event.spec.folder
        job = ending.pop(folder, None)
        if job is not None and job not in ending.values():
            running.pop(job, None)
        outcome.records[folder] = str(event.record["status"])
        on_event(event)

    def in_vain(run: RunSpec) -> RunSpec | None:
        """A need of the run that did not finish."""
        statuses = ((need, outcome.records.get(need.folder)) for need in run.needs.values())
        return next((need for need, status in statuses if status not in (None, "finished")), None)

    def give_up_in_vain() -> None:
        """Record the runs whose needs did not finish, and take them out of their jobs; then those that need these."""
        for spec in list(waiting):
            lost = {run.folder: need for run in spec.runs if (need := in_vain(run)) is not None}
            if not lost:
                continue
            rest = without(spec, [run for run in spec.runs if run.folder in lost])
            place = waiting.index(spec)
            waiting[place : place + 1] = [rest] if rest is not None else []
            for run in spec.runs:
                if run.folder in lost:
                    why = f"it needs {lost[run.folder].name}, which did not finish"
                    settle(Event("end", run, record=runs.record_failure(run, why)))
            return give_up_in_vain()

    def start_what_fits() -> None:
        give_up_in_vain()
        for spec in list(waiting):
            ready = all(need.folder in outcome.records for need in spec.needs.values())
            busy = sum(map(cost, running.values()))
            alone = spec.exclusive or any(other.exclusive for other in running.values())
            if not ready or (running and (alone or busy + cost(spec) > engine.slots)):
                continue
            waiting.remove(spec)
            running[spec.folder] = spec
            ending.update({run.folder: spec.folder for run in spec.runs})
            engine.start(spec)

    def follow() -> None:
        while waiting or running:
            if deadline is not None and time.monotonic() > deadline:
                stop("time limit")
            if outcome.stopped is None and outcome.error is None:
                start_what_fits()
            if not running:
                break
            for event in engine.wait(0.5):
                if event.kind == "progress":
                    on_event(event)
                elif event.kind == "end":
                    settle(event)
                else:
                    running.pop(event.spec.folder, None)
                    outcome.error = outcome.error or event.error
                    engine.stop()

    with _interrupts(lambda: stop("interrupted"), engine.kill):
        try:
            follow()
        except BaseException:
            # Nobody follows the runs any more: end them, resumable, rather than wait for them at exit.
            engine.kill()
            raise
    return outcome
