"""How many runs to stack: measured once per shape and machine, beside the runs, and kept in `stacking.json`.

Whether one batched model is faster than its runs one after another depends on the shape and the machine: large
layers fill a core alone, small ones do not, and a GPU wants many. So the time of a step is measured for a growing
number of runs in a process of its own, and the size with the least time per run is taken. The measured size never
changes what a run is (it is not part of its key), only how fast it is had.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import provenance
from common.codehash import code_hash
from common.engines import PRELOAD, keep_memory, set_threads
from common.errors import UserError, describe
from common.files import read_json, write_json
from common.runs import Execution, RunSpec, Stackable, resolve

LARGEST = {"cpu": 16, "mps": 16, "cuda": 256}
GAIN_PER_SIZE = 1.03
"""A larger stack must be at least this much faster per run: it keeps more memory and loses more when it is killed."""


def _sizes(most: int) -> Iterator[int]:
    size = 1
    while size <= most:
        yield size
        size *= 2


def best_size(seconds_per_step: Callable[[int], float], most: int) -> tuple[int, dict[int, float]]:
    """The stack size with the least time per run, and the times per run that were measured.

    Sizes double up to `most` until a stack is slower per run than the best by a tenth.
    """
    times: dict[int, float] = {}
    best = 1
    for size in _sizes(most):
        times[size] = seconds_per_step(size) / size
        if times[size] * GAIN_PER_SIZE < times[best]:
            best = size
        elif times[size] > 1.1 * times[best]:
            break
    return best, times


def _probe(stackable: Stackable, config: dict[str, Any], execution: Execution, most: int, sender: Connection) -> None:
    """Body of the measuring process."""
    try:
        keep_memory()
        set_threads(execution.threads)
        assert stackable.probe is not None  # the caller sees to it
        function = resolve(stackable.probe)
        sender.send(best_size(lambda size: function(config, size, execution), most))
    except Exception as error:
        sender.send(UserError(f"measuring how many runs to stack failed: {describe(error)}"))


def measure(spec: RunSpec, most: int) -> tuple[int, dict[int, float]]:
    """`best_size` for runs like `spec`, in a fresh process. UserError says what went wrong there."""
    assert spec.stackable is not None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, spec.function.partition(":")[0]])
    receiver, sender = context.Pipe(duplex=False)
    config = {**spec.config, "seed": spec.seed}
    process = context.Process(target=_probe, args=(spec.stackable, config, spec.execution, most, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"measuring how many runs of {spec.experiment} to stack ended with status {process.exitcode} "
            "(out of memory?)"
        ) from None
    finally:
        process.kill()
        process.join()
    if isinstance(found, UserError):
        raise found
    return found


class Sizes:
    """Stack sizes for `common.jobs.arrange`, kept in a file: `sizes(run, how many are alike)`.

    say: gets one line for each shape that had to be measured.
    """

    def __init__(self, path: Path, say: Callable[[str], None]):
        self.path, self._say = path, say

    def __call__(self, spec: RunSpec, alike: int) -> int:
        """The fixed size of the run's `Stackable`, else the measured one; 1 where nothing is alike."""
        stackable = spec.stackable
        if stackable is None or alike == 1:
            return 1
        if stackable.size is not None:
            return stackable.size
        known = read_json(self.path) if self.path.exists() else {}
        most = min(alike, LARGEST[spec.execution.device])
        key = self._key(spec, stackable)
        # A size that was the largest there were runs for says nothing about more runs.
        if key not in known or (known[key]["size"] == known[key]["most"] < most):
            size, times = measure(spec, most)
            known[key] = {
                "size": size,
                "most": most,
                "ms per run": {str(n): round(1e3 * t, 3) for n, t in times.items()},
            }
            write_json(self.path, known)
            measured = ", ".join(f"{n}: {1e3 * t:.3g}" for n, t in times.items())
            self._say(f"stacks of {size} for {stackable.shape} (ms per run and step by size - {measured})")
        return int(known[key]["size"])

    def _key(self, spec: RunSpec, stackable: Stackable) -> str:
        execution, hardware = spec.execution, provenance.hardware(spec.execution.device)
        where = hardware.get("gpu", hardware["processor"])
        how = f"{execution.threads} threads {execution.precision} compile={execution.compile}"
        assert stackable.probe is not None
        return f"{where}; {how}; {stackable.shape}; {code_hash(stackable.probe)[:12]}"


__all__ = ["Sizes", "best_size", "measure"]
