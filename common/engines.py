"""Where jobs execute. The scheduler decides what may start; an engine starts it and reports what happened.

Every job - a run, or a stack of runs - is a child forked from a server process that has imported torch and executed
nothing, so serial and parallel execution give equal bits; an engine only decides how many children run at once. Another
engine (Ray) is another class with the same four methods.
"""

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from common import jobs, runs
from common.errors import UserError
from common.jobs import JobSpec
from common.runs import Workplace

PRELOAD = ("torch", "pytorch_lightning", "common.trainer")


@dataclass(frozen=True)
class Event:
    """What an engine reports.

    kind: "progress" of a job (step, total, values), "end" of a run (record; a stack's runs end one after another), or
    "error": the job could not be attempted at all - a folder is locked or unwritable, the disk is full - and the whole
    command should stop.
    """

    kind: str
    spec: JobSpec
    step: int = 0
    total: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    error: Exception | None = None


class Engine(Protocol):
    """What the scheduler needs. A slot is one core, or one GPU for runs on a GPU."""

    slots: int

    def start(self, spec: JobSpec) -> None: ...

    def wait(self, timeout: float) -> list[Event]:
        """Events since the last call; returns early when there is one."""
        ...

    def stop(self) -> None:
        """Ask every job to write a checkpoint and end."""
        ...

    def kill(self) -> None:
        """End every job now; what its last checkpoint holds is kept."""
        ...


def _child(spec: JobSpec, sender: Connection, gpu: str | None) -> None:
    """Body of the process of one job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu

    def report(step: int, total: int, values: Mapping[str, float]) -> None:
        sender.send(("progress", step, total, dict(values)))

    def on_open(place: Workplace) -> None:
        runs.redirect_output(place.path / "log.txt")
        place.listen_for_stop()

    keep_memory()
    set_threads(spec.execution.threads)
    message: tuple[str, Any]
    try:
        message = ("end", jobs.execute(spec, report, on_open))
    except (UserError, OSError) as error:
        if isinstance(error, OSError):
            error.filename = error.filename or str(spec.folder)
        message = ("error", error)
    except Exception as error:
        message = ("error", RuntimeError("".join(traceback.format_exception(error))))
    sender.send(message)


def set_threads(threads: int) -> None:
    """Let this process compute with that many threads; to be called before it computes anything."""
    # The only library whose pool the run's own configuration decides is torch's; BLAS libraries follow OMP_NUM_THREADS
    # at their first call, which in a forked child has not happened yet.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads)


def keep_memory() -> bool:
    """Let the C library keep the memory that tensors gave back; whether it could be asked (it is glibc).

    By default it returns every feature map to the system at once, and the next step waits while the system fills the
    same pages with zeros again: up to half of a small network's time.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h; the largest threshold that it accepts is 32 MiB
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(trim_threshold, 1 << 30)) and bool(mallopt(mmap_threshold, 1 << 25))


def probe_devices() -> dict[str, Any]:
    """What this machine has: {"cuda": number of GPUs, "mps": bool, "amx_bf16": bool}. Imports torch."""
    import torch

    return {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": torch.backends.mps.is_available(),
        "amx_bf16": bool(torch.cpu.get_capabilities().get("amx_bf16")),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalEngine:
    """Jobs on this machine: as many at once as `slots` allows. `slots=1` is the serial engine.

    modules: what the runs will import; the server process imports them once, before the first fork.
    """

    def __init__(self, slots: int | None = None, gpus: int = 0, modules: Iterable[str] = ()):
        self.slots = slots or (gpus if gpus else cores())
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*PRELOAD, *sorted(set(modules) - set(PRELOAD))])
        self._running: dict[Connection, tuple[JobSpec, Any, str | None]] = {}
        # What the user hid from this process stays hidden from the runs.
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        self._free_gpus = (visible or [str(number) for number in range(gpus)])[:gpus]

    def start(self, spec: JobSpec) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        gpu = self._free_gpus.pop(0) if spec.execution.device == "cuda" and self._free_gpus else None
        process = self._context.Process(target=_child, args=(spec, sender, gpu), name=spec.name)
        process.start()
        sender.close()
        self._running[receiver] = (spec, process, gpu)

    def wait(self, timeout: float) -> list[Event]:
        events: list[Event] = []
        for ready in wait(list(self._running), timeout):
            assert isinstance(ready, Connection)
            spec, process, gpu = self._running[ready]
            try:
                message = ready.recv()
            except EOFError:
                process.join()
                message = ("died", process.exitcode)
            if message[0] == "progress":
                events.append(Event("progress", spec, message[1], message[2], message[3]))
                continue
            del self._running[ready]
            ready.close()
            process.join()
            if gpu is not None:
                self._free_gpus.append(gpu)
            if message[0] == "died":
                # SIGTERM before the run could listen for it is a stop like any other.
                status = "stopped" if message[1] == -signal.SIGTERM else "failed"
                message = ("end", [runs.record_failure(run, _cause(message[1]), status) for run in spec.runs])
            if message[0] == "end":
                ends = zip(spec.runs, message[1], strict=True)
                events += [Event("end", run, record=record) for run, record in ends]
            else:
                events.append(Event("error", spec, error=message[1]))
        return events

    def stop(self) -> None:
        for _, process, _ in self._running.values():
            if process.pid is not None:
                process.terminate()

    def kill(self) -> None:
        for _, process, _ in self._running.values():
            process.kill()
            process.join()
        self._running.clear()


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"the process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"the process ended with status {exitcode} and no result"
