"""One run: its specification, key, folder and record. Several at once, as one batched model, are in `jobs.py`.

A run's folder holds `config.json` (everything that decides the result), `run.json` (the record: key, status, metrics,
provenance), `curves.csv`, `artifacts/`, `checkpoints/`, `weights.safetensors` and `log.txt`. The lock stands beside it.
A finished run with the same key is not repeated; a folder with another key is moved aside.
"""

import functools
import hashlib
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from common import provenance
from common.codehash import code_hash
from common.curves import Curves
from common.errors import Diverged, describe, is_machine_trouble
from common.files import Locked, is_locked, lock, read_json, write_json

FIRST_CONFIRMING_SEED = 1000
SETTLED = ("finished", "diverged")
Metrics = dict[str, Any]
Report = Callable[[int, int, Mapping[str, float]], None]
T = TypeVar("T")


class Stopped(Exception):
    """A run ended early on request (Ctrl-C, time limit); its checkpoint is written and it can be resumed."""


@dataclass(frozen=True)
class Execution:
    """How a run is executed. Part of the key: another thread count or precision may give other bits.

    device: "cpu", "cuda" or "mps". precision: "float32" or "bfloat16" (autocast; weights stay float32).
    """

    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    compile: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class Data:
    """A data set as located before training: what it is called in reports, and what its content must be."""

    name: str
    label: str
    fingerprint: str


@dataclass(frozen=True)
class Stackable:
    """With which other runs a run may be trained as one batched model: those of an equal `Stackable`.

    function: "package.module:name", called as function(configs, job, needs) with a list of each. shape: a text that is
    equal where tensors are. size: runs in a stack at the most; None: measured with `probe`, "package.module:name",
    called as probe(config, size, execution) -> seconds of one step of a stack of that many.
    """

    function: str
    shape: str
    size: int | None = None
    probe: str | None = None


@dataclass(frozen=True)
class RunSpec:
    """Everything about one run that is known before it starts.

    function: "package.module:name", called as function(config, folder, needs). config: JSON values only.
    needs: names, as the function knows them, to the specifications of the runs whose folders it reads. Whether a run
    is trained alone or in a stack is not part of its key.
    """

    paper: str
    preset: str
    experiment: str
    method: str
    seed: int
    function: str
    config: Mapping[str, Any]
    folder: Path
    execution: Execution = Execution()
    data: tuple[Data, ...] = ()
    needs: Mapping[str, "RunSpec"] = field(default_factory=dict)
    exclusive: bool = False
    data_dir: Path | None = None
    tensorboard: bool = False
    stackable: Stackable | None = None

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.method}/seed-{self.seed}"

    @property
    def runs(self) -> tuple["RunSpec", ...]:
        """A run alone is a job of one."""
        return (self,)

    @property
    def lock_path(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.lock")

    @functools.cached_property
    def code(self) -> str:
        """The code hash. It travels with the specification: what a grid began with counts, whatever is edited since."""
        return code_hash(self.function)

    def identity(self) -> dict[str, Any]:
        """What the key is a hash of. Where the run lives, its preset and its loggers are not in it."""
        return {
            "paper": self.paper,
            "experiment": self.experiment,
            "method": self.method,
            "seed": self.seed,
            "function": self.function,
            "config": dict(self.config),
            "execution": asdict(self.execution),
            "code": self.code,
            "data": {data.name: data.fingerprint for data in self.data},
            "needs": {name: need.key for name, need in sorted(self.needs.items())},
        }

    @property
    def key(self) -> str:
        """Hash of config, execution, code, data and the keys of the needs (16 hex digits)."""
        text = json.dumps(self.identity(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in `folder`, or None. A run marked running that no process holds was killed: stopped."""
    path = folder / "run.json"
    if not path.exists():
        return None
    record = read_json(path)
    if record["status"] == "running" and not is_locked(folder.with_name(f".{folder.name}.lock")):
        record["status"] = "stopped"
        record["error"] = "killed before it ended; the same command resumes it"
    return record


class Workplace:
    """Where training happens: a run's folder, or the folder of a stacked job. Its clock, its progress, its end.

    members: the folders of the runs that are trained here.
    """

    members: "list[Folder]"

    def __init__(self, path: Path, execution: Execution, data_dir: Path | None, report: Report | None):
        self.path, self.execution, self.data_dir = path, execution, data_dir
        self.stop_requested = False
        self._report = report
        self._reported: dict[str, float] = {}
        self._started = time.monotonic()
        self._last_report = 0.0

    def seconds(self) -> float:
        """Time spent here so far, over all resumptions, as far as a checkpoint remembers it."""
        return time.monotonic() - self._started

    def resume_clock(self, seconds: float) -> None:
        """Continue the clock from a checkpoint's reading."""
        self._started = time.monotonic() - seconds

    def listen_for_stop(self) -> None:
        """Let SIGTERM ask for a checkpoint and an early end. Only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop_requested", True))

    def report(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Tell the progress display, with the latest value of every name; at most four times a second get through.
        No reader: ask for a stop."""
        self._reported |= values
        now = time.monotonic()
        if self._report is not None and (now - self._last_report > 0.25 or step >= total):
            self._last_report = now
            try:
                self._report(step, total, dict(self._reported))
            except OSError:
                self.stop_requested = True


class Folder(Workplace):
    """What a run function may do with its folder. Made by `execute`, which holds the lock."""

    def __init__(self, spec: RunSpec, report: Report | None = None):
        super().__init__(spec.folder, spec.execution, spec.data_dir, report)
        self.spec = spec
        self.members = [self]
        self.curves = Curves(self.path / "curves.csv")
        self.resumed: list[int] = []
        self.samples = 0
        self.diverged: Diverged | None = None  # a member of a stack can diverge while the others go on
        self.error: Exception | None = None  # what ended the run, for a caller in the same process

    def note_resumed(self, step: int) -> None:
        """Put into the record, at once, that the run went on from a checkpoint at `step`: it may be killed again."""
        self.resumed.append(step)
        path = self.path / "run.json"
        write_json(path, {**read_json(path), "resumed": self.resumed})

    def artifact(self, name: str) -> Path:
        """Path of a file in `artifacts/`, whose folder exists."""
        path = self.path / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def resolve(function: str) -> Callable[..., Any]:
    """Import the function that a text `package.module:name` names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def check_metrics(metrics: Metrics) -> Metrics:
    """The metrics themselves. TypeError for what is no number of Python's own, Diverged for one that is not finite."""
    for name, value in metrics.items():
        numbers = [v for v in value.values() if v is not None] if isinstance(value, dict) else [value]
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError(f"the metric {name} is {value!r}; a run function returns numbers of Python's own")
        if not all(map(isfinite, numbers)):
            raise Diverged(None, f"the metric {name}")
    return metrics


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)


def settled_status(spec: RunSpec) -> str | None:
    """The status of this very run (same key) where the folder holds it settled: nothing is left to do. Else None."""
    record = read_record(spec.folder)
    return record["status"] if record and record["key"] == spec.key and record["status"] in SETTLED else None


def is_settled(spec: RunSpec) -> bool:
    """Whether nothing is left to do for this run."""
    return settled_status(spec) is not None


def _blank_record(spec: RunSpec) -> dict[str, Any]:
    data = {located.name: located.fingerprint for located in spec.data}
    return {
        "schema_version": 1,
        "experiment": spec.experiment,
        "method": spec.method,
        "seed": spec.seed,
        "status": "running",
        "error": None,
        "metrics": {},
        "seconds": 0.0,
        "samples_per_second": None,
        "stacked": 1,
        "resumed": [],
        "key": spec.key,
        "function": spec.function,
        "provenance": provenance.of_run(spec.code, data, spec.execution.device),
    }


def begin(spec: RunSpec, stacked: int = 1) -> tuple[dict[str, Any], bool]:
    """Make the folder ready and write the record of a run that begins: (record, whether the run is settled already).

    To be called with the lock held. A folder with another key is moved aside.
    """
    record = read_record(spec.folder)
    if record is not None and record["key"] != spec.key:
        _move_aside(spec.folder)
        record = None
    if record is not None and record["status"] in SETTLED:
        return record, True
    spec.folder.mkdir(parents=True, exist_ok=True)
    write_json(spec.folder / "config.json", {"preset": spec.preset, **spec.identity()})
    resumed = list(record["resumed"]) if record else []
    base = {**_blank_record(spec), "resumed": resumed, "stacked": stacked}
    write_json(spec.folder / "run.json", base)
    return base, False


def end(folder: Folder, base: Mapping[str, Any], outcome: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Write and return the record of a run that has ended, after so many seconds of its own."""
    folder.curves.close()
    rate = folder.samples / seconds if folder.samples and seconds > 0 else None
    finished = {
        **base,
        **outcome,
        "seconds": round(seconds, 3),
        "samples_per_second": rate and round(rate, 2),
        "resumed": folder.resumed,
    }
    write_json(folder.path / "run.json", finished)
    return finished


def execute(
    spec: RunSpec,
    report: Report | None = None,
    on_folder: Callable[[Folder], None] | None = None,
) -> dict[str, Any]:
    """Run one specification in this process, resuming what its folder holds, and return the record.

    What the run itself does never raises: a UserError, a bug, a divergence and a stop each end in the record, with the
    traceback in `log.txt`. Raises Locked when another process works on the same run, and OSError when the disk is full
    or the folder cannot be written; the run then stays resumable. on_folder: called with the open
    folder before the run starts, so that a signal handler can set `stop_requested`.
    """
    with lock(spec.lock_path):
        base, settled = begin(spec)
        if settled:
            return base
        folder = Folder(spec, report)
        folder.resumed = base["resumed"]
        if on_folder is not None:
            on_folder(folder)
        needs = {name: need.folder for name, need in spec.needs.items()}
        config = {**spec.config, "seed": spec.seed}
        metrics, outcome = attempt(lambda: check_metrics(resolve(spec.function)(config, folder, needs)), [folder])
        if metrics is not None:
            outcome = {"status": "finished", "metrics": metrics}
        return end(folder, base, outcome, folder.seconds())


def attempt(action: Callable[[], T], folders: list[Folder]) -> tuple[T | None, dict[str, Any]]:
    """What the action returns, or None and how the record of these folders' runs ends: status and error.

    A traceback goes to each `log.txt`. A full disk and the like are raised.
    """
    try:
        return action(), {}
    except Stopped:
        return None, {"status": "stopped", "error": "stopped on request; the same command resumes it"}
    except Diverged as error:
        return None, {"status": "diverged", "error": describe(error)}
    except KeyboardInterrupt:
        return None, {"status": "stopped", "error": "interrupted; the same command resumes it"}
    except Exception as error:
        if is_machine_trouble(error):
            raise
        for folder in folders:
            folder.error = error
            with open(folder.path / "log.txt", "a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
        return None, {"status": "failed", "error": describe(error)}


def record_failure(spec: RunSpec, error: str, status: str = "failed") -> dict[str, Any]:
    """Write the record of a run whose process died without one, or whose needs failed so that it never began.

    A process that died after its run had settled takes nothing back: the record that stands is returned.
    """
    with lock(spec.lock_path):
        record = read_record(spec.folder)
        if record is not None and record["key"] != spec.key:
            _move_aside(spec.folder)
            record = None
        if record is not None and record["status"] in SETTLED:
            return record
        record = {**(record or _blank_record(spec)), "status": status, "error": error}
        write_json(spec.folder / "run.json", record)
        return record


def redirect_output(path: Path) -> None:
    """Send this process's stdout and stderr, C code's too, to the end of a log file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


__all__ = [
    "Data",
    "Execution",
    "Folder",
    "Locked",
    "RunSpec",
    "Stackable",
    "Stopped",
    "Workplace",
    "execute",
    "is_settled",
    "read_record",
    "settled_status",
]
