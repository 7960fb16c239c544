"""Faults on purpose: processes that end, or system calls that fail, at a chosen point of a run."""

import errno
import importlib
import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any
from unittest import mock

from common import runs
from common.runs import RunSpec


@dataclass(frozen=True)
class Fault:
    """What happens at the `nth` call of `where`, "module:attribute.attribute".

    when: "before" the call, "after" it, or "half": torch.save leaves half a file. number: the signal this process then
    sends itself; a negative one is an errno that is raised as OSError.
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

    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != fault.nth:
            return original(*arguments, **keywords)
        if fault.when == "half":
            state, target = arguments
            whole = io.BytesIO()
            original(state, whole)
            half = whole.getvalue()[: len(whole.getvalue()) // 2]
            _ = target.write(half) if hasattr(target, "write") else target.write_bytes(half)
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


def _body(spec: RunSpec, faults: tuple[Fault, ...]) -> None:
    import torch

    torch.set_num_threads(spec.execution.threads)
    runs.redirect_output(spec.folder.parent / "log.txt")
    with ExitStack() as stack:
        for fault in faults:
            stack.enter_context(arm(fault))
        runs.execute(spec, on_folder=lambda folder: folder.listen_for_stop())


def start(target: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process forked from the server that has imported everything (fixture `fork_server`)."""
    process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
    process.start()
    return process


def run_with(spec: RunSpec, *faults: Fault, kill_after: float | None = None) -> int | None:
    """Execute a run in a process of its own with the faults; its exit code. kill_after: SIGKILL after so many seconds."""
    process = start(_body, spec, faults)
    process.join(kill_after)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode
