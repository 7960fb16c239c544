"""From a list of runs to finished runs: what may start when, on any engine."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common import runs
from common.engines import Engine, Event
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
    specs: Sequence[RunSpec],
    engine: Engine,
    on_event: Callable[[Event], None] = lambda event: None,
    time_limit: float | None = None,
    settled: Outcome | None = None,
) -> Outcome:
    """Run every specification once, needs first, in the given order as far as slots allow.

    A run takes as many slots as it has threads (all of them when it wants more), or one on a GPU. An `exclusive` run
    waits until nothing runs and runs alone. A run whose need failed is recorded as failed. time_limit: seconds after
    which everything is stopped, resumable. A failed run does not stop the others; an "error" event does.
    """
    outcome = settled or Outcome()
    waiting = list(specs)
    running: dict[Path, RunSpec] = {}
    deadline = time.monotonic() + time_limit if time_limit is not None else None

    def cost(spec: RunSpec) -> int:
        return 1 if spec.execution.device != "cpu" else min(spec.execution.threads, engine.slots)

    def stop(why: str) -> None:
        if outcome.stopped is None:
            outcome.stopped = why
            engine.stop()

    def settle(spec: RunSpec, event: Event) -> None:
        running.pop(spec.folder, None)
        outcome.records[spec.folder] = str(event.record["status"])
        on_event(event)

    def start_what_fits() -> None:
        for spec in list(waiting):
            statuses = [outcome.records.get(need.folder) for need in spec.needs.values()]
            if any(status not in (None, "finished") for status in statuses):
                waiting.remove(spec)
                failed = next(
                    n.name for n in spec.needs.values() if outcome.records.get(n.folder) not in (None, "finished")
                )
                record = runs.record_failure(spec, f"it needs {failed}, which did not finish")
                settle(spec, Event("end", spec, record=record))
                continue
            busy = sum(map(cost, running.values()))
            alone = spec.exclusive or any(other.exclusive for other in running.values())
            if None in statuses or (running and (alone or busy + cost(spec) > engine.slots)):
                continue
            waiting.remove(spec)
            running[spec.folder] = spec
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
                    settle(event.spec, event)
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
