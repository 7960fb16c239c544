"""Faults on purpose: processes that end, or system calls that fail, at a chosen point of a run."""

import errno
import functools
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

from common import jobs, runs
from common.files import lock, write_text
from common.jobs import JobSpec


@dataclass(frozen=True)
class Fault:
    """What happens at the `nth` call of `where`, "module:attribute.attribute".

    when: "before" the call, "after" it, or "half": Path.write_bytes writes half of the content. number: the signal that
    this process then sends itself; a negative one is an errno that is raised as OSError.
    """

    where: str
    nth: int = 1
    when: str = "before"
    number: int = signal.SIGKILL

    def strike(self) -> None:
        """Do the damage."""
        if self.number < 0:
            raise OSError(-self.number, os.strerror(-self.number), "some/file")
        os.kill(os.getpid(), self.number)


FULL_DISK = -errno.ENOSPC


def _armed(fault: Fault, original: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(original)  # Lightning looks at signatures
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != fault.nth:
            return original(*arguments, **keywords)
        if fault.when == "half":
            path, content = arguments
            original(path, content[: len(content) // 2])
        result = original(*arguments, **keywords) if fault.when == "after" else None
        fault.strike()
        # A signal that is handled lets the call go on.
        return result if fault.when == "after" else original(*arguments, **keywords)

    return wrapper


def arm(fault: Fault) -> Any:
    """A context in which the fault waits for its call."""
    module, _, path = fault.where.partition(":")
    owner = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return mock.patch.object(owner, name, _armed(fault, getattr(owner, name)))


def _body(spec: JobSpec, faults: tuple[Fault, ...]) -> None:
    import torch

    torch.set_num_threads(spec.execution.threads)
    runs.redirect_output(spec.runs[0].folder.parent / "log.txt")
    with ExitStack() as stack:
        for fault in faults:
            stack.enter_context(arm(fault))
        jobs.execute(spec, on_open=lambda place: place.listen_for_stop())


# What processes other than runs do in the tests. They stand here because a child imports the module of its function.


def follow(receiver: Connection) -> None:
    """Be the process that follows a run."""
    while True:
        receiver.recv()


def write_with(path: Path, content: str, fault: Fault) -> None:
    """Write a file with a fault."""
    with arm(fault):
        write_text(path, content)


def hold(path: Path, sender: Connection) -> None:
    """Hold a lock until killed."""
    with lock(path):
        sender.send("held")
        time.sleep(600)


def print_to(path: Path) -> None:
    """Print in every way there is, with the output going to a log."""
    runs.redirect_output(path)
    print("out", flush=True)
    print("err", file=sys.stderr, flush=True)
    os.system("echo child")


def start(target: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process forked from the server that has imported everything (fixture `fork_server`)."""
    process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
    process.start()
    return process


def wait_for(path: Path, seconds: float = 120.0) -> None:
    """Wait until a file is there; an AssertionError when it takes too long."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


def written(spec: JobSpec) -> int:
    """When the record of a job's first run was last written, in ns; it is the first thing a run does."""
    path = spec.runs[0].folder / "run.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def run_with(spec: JobSpec, *faults: Fault, kill_after: float | None = None) -> int | None:
    """Execute a job in a process of its own with the faults; its exit code.

    kill_after: SIGKILL so many seconds after the run has begun.
    """
    before = written(spec)
    process = start(_body, spec, faults)
    if kill_after is not None:
        while written(spec) == before and process.is_alive():
            time.sleep(0.002)
        time.sleep(kill_after)
        process.kill()
    process.join()
    return process.exitcode
