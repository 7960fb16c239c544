"""One training on the user's own data, in this process, as the papers' `train` commands do it; loads no torch."""

import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from common.engines import Event, cores, keep_memory, probe_devices
from common.errors import UserError
from common.files import read_json
from common.paper import Preset
from common.progress import Display
from common.reproduce import Options, choose_execution
from common.runs import Execution, Folder, RunSpec, execute, is_settled

PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


def options_of(parsed: Any) -> Options:
    """The part of the arguments that every command of the repository has."""
    return Options(
        device=parsed.device,
        precision=parsed.precision,
        compile=parsed.compile,
        deterministic=parsed.deterministic,
        time_limit=parsed.time_limit,
    )


def execution_of(parsed: Any) -> Execution:
    """Where a training runs, from the command's arguments: all cores of this machine where --threads is not given.

    Imports torch and sets this process's threads.
    """
    execution = choose_execution(Preset("own-data", (), "", "", bf16=True), options_of(parsed), probe_devices())
    execution = replace(execution, threads=parsed.threads or cores())
    import torch

    torch.set_num_threads(execution.threads)
    return execution


def check_no_file(out: Path) -> None:
    """Raises UserError where `out`, or a folder above it, is a file."""
    if blocked := [path for path in (out, *out.parents) if path.is_file()]:
        raise UserError(f"--out {out}: {blocked[0]} is a file: choose a folder")


def check_out(out: Path) -> None:
    """Raises UserError where a training cannot have `out` as its folder: it is a file, or holds something else."""
    check_no_file(out)
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").exists():
        raise UserError(f"--out {out} holds other files: choose a new or an empty folder")


def differences(spec: RunSpec) -> str:
    """In words, how the run that stands in the folder differs from this one; "" where it does not or there is none."""
    path = spec.folder / "config.json"
    if not path.exists():
        return ""
    old, new = read_json(path), spec.identity()
    words = []
    for name in ("config", "execution"):
        before = old.get(name, {})
        changed = sorted(key for key in {**before, **new[name]} if before.get(key) != new[name].get(key))
        words += [f"{key} {before.get(key)} instead of {new[name].get(key)}" for key in changed]
    words += [f"another {name}" for name in ("method", "seed", "code", "data") if old.get(name) != new[name]]
    return ", ".join(words)


class Stops:
    """Ctrl-C and the time limit ask the run to write a checkpoint and end; a second Ctrl-C ends it at once."""

    def __init__(self, folder: Folder, deadline: float | None):
        self.folder, self.reason = folder, ""
        self._before = signal.getsignal(signal.SIGINT)
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            signal.signal(signal.SIGINT, self._interrupt)
        self._timer = threading.Timer(max(0.0, (deadline or 0) - time.monotonic()), self._stop, ["time limit"])
        self._timer.daemon = True
        if deadline is not None:
            self._timer.start()

    def _stop(self, reason: str) -> None:
        self.reason, self.folder.stop_requested = self.reason or reason, True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._stop("interrupted")
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def end(self) -> None:
        """Back to how it was."""
        self._timer.cancel()
        if self._is_main:
            signal.signal(signal.SIGINT, self._before)


def train(spec: RunSpec, time_limit: float | None, console: Console) -> tuple[dict[str, Any], str]:
    """Execute the run in this process with a progress display; its record, and why it was stopped ("" if it was not).

    Raises what made the run fail: a UserError, or a bug with its traceback.
    """
    keep_memory()
    deadline = None if time_limit is None else time.monotonic() + time_limit
    stops: list[Stops] = []
    if changed := differences(spec):
        console.print(f"what was in {spec.folder.name} is kept beside it as .old-N: it had {changed}", **PLAIN)
    with Display([spec], console) as display:

        def report(step: int, total: int, values: Mapping[str, float]) -> None:
            display(Event("progress", spec, step, total, values))

        try:
            record = execute(spec, report, lambda folder: stops.append(Stops(folder, deadline)))
        finally:
            for stop in stops:
                stop.end()
        if record["status"] == "finished":
            display(Event("end", spec, record=record))
    if not stops:
        return record, ""
    if record["status"] == "failed" and stops[0].folder.error is not None:
        raise stops[0].folder.error
    return record, stops[0].reason


def finish(spec: RunSpec, time_limit: float | None, console: Console, advice: str) -> dict[str, Any] | int:
    """Train, and return what `model.json` then says; of a training that was stopped, the command's exit status.

    advice: what to change when the training diverges, which is a UserError.
    """
    settled = is_settled(spec)
    record, stopped = train(spec, time_limit, console)
    if record["status"] == "diverged":
        raise UserError(f"training failed, {record['error']}: {advice}")
    if record["status"] == "stopped":
        console.print(f"stopped ({stopped or 'on request'}): the same command resumes", **PLAIN)
        return 130 if stopped == "interrupted" else 1
    if settled:
        console.print("finished already, with the same data, settings and code", **PLAIN)
    found: dict[str, Any] = read_json(spec.folder / "model.json")
    return found
