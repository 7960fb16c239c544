"""Speed of the supervised tasks, measured by `make bench PAPER=coordconv`.

Every network has two formulations of one function: the fast one, and with `plain=True` the obviously right one of
PyTorch's own layers. `sweep` compares a handful of configurations trained one after the other with the better of
stacking and processes, shape by shape.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from common.bench import Row, Setting, compare, row
from common.engines import PRELOAD, cores, keep_memory, set_threads
from common.runs import Execution
from common.timing import interleaved
from papers.coordconv.config import Config
from papers.coordconv.module import Supervised, make_module

FULL: dict[str, Config] = {
    "CoordConv classification, 64x64": Config(),
    "deconv classification m=2 k=3, 64x64": Config(network="deconv", multiplier=2, kernel=3),
    "CoordConv rendering k=3, 64x64": Config(task="rendering", loss="sigmoid"),
    "CoordConv regression, 64x64": Config(task="regression", loss="mse", batch_size=256),
    "conv regression, quadrant, 64x64": Config(
        task="regression", network="conv-quadrant", loss="mse", batch_size=256
    ),
}  # fmt: skip
PEAK_FLOPS = 400e12
"""What an H200's tensor cores sustain in bfloat16 on large matrices."""
MULTIPLICATIONS = {
    # Per image and forward pass (spec, section 11); a training step is three times that.
    "CoordConv classification, 64x64": 30.15e6,
    "deconv classification m=2 k=3, 64x64": 17.7e6,
}


def _tiny(config: Config) -> Config:
    return replace(config, canvas=16, square=3, batch_size=4)


class Steps:
    """Each call does the next `count` training steps of a module."""

    def __init__(self, module: Supervised, count: int):
        self.module, self.count, self.next = module, count, 0

    def __call__(self) -> None:
        self.module.training_step((self.next, self.next + self.count))
        self.next += self.count


def first_steps(configs: Sequence[Config], seeds: Sequence[int], steps: int = 3) -> torch.Tensor:
    """What a stack does in its first steps on batches of 4, in double precision on the CPU: [S, numbers].

    All losses, and the gradients of the first step. (Not the parameters: a bias before BatchNorm has a gradient of
    nothing but rounding, which Adam turns into whole moves that change no output.)
    """
    module = Supervised([replace(config, batch_size=4) for config in configs], seeds, Execution()).double()
    module.configure_optimizers()
    module.on_fit_start()
    found = []
    for step in range(steps):
        found.append(module.training_step((step, step + 1))["loss"][:, None])
        if step == 0:
            assert module.stack.weights.grad is not None
            found.append(module.stack.weights.grad.clone())
    return torch.cat(found, dim=1)


def step_difference(config: Config) -> float:
    """Largest difference between the first steps of a fast and a plain network."""
    fast, plain = (first_steps([replace(config, plain=plain)], [0]) for plain in (False, True))
    return float((fast - plain).abs().max())


def network_step(setting: Setting, case: str, config: Config) -> Row:
    """A whole training step of one network, alone, fast and plain."""
    on_gpu = setting.execution.device == "cuda"
    config = _tiny(config) if setting.small else config
    count = 1 if setting.small else 64 if on_gpu else 2
    modules = [make_module([replace(config, plain=plain)], [0], setting.execution) for plain in (False, True)]
    floor = None
    if on_gpu and case in MULTIPLICATIONS:
        floor = 1e3 * 6 * MULTIPLICATIONS[case] * config.batch_size / PEAK_FLOPS
    return compare(
        setting,
        f"step: {case}",
        "ms",
        Steps(modules[0], count),
        Steps(modules[1], count),
        step_difference(config),
        repeats=5,
        warm_up=2,
        per_call=count,
        floor=floor,
    )


# ---------------------------------------------------------------- the sweep

SWEEP: dict[str, Config] = {
    "CoordConv m=1, 32x32": Config(canvas=32, square=5),
    "deconv m=1 k=2, 32x32": Config(canvas=32, square=5, network="deconv", kernel=2),
    "deconv m=1 k=3, 32x32": Config(canvas=32, square=5, network="deconv", kernel=3),
    "deconv m=2 k=3, 32x32": Config(canvas=32, square=5, network="deconv", multiplier=2, kernel=3),
    "CoordConv regression, 32x32": Config(canvas=32, square=5, task="regression", loss="mse", batch_size=32),
}
RUNS = 4
"""Configurations of each shape: they differ in learning rate, penalty and seed."""


def configurations(config: Config, count: int = RUNS) -> list[Config]:
    """A handful of a sweep's configurations of one shape."""
    rates, penalties = (0.001, 0.002, 0.005, 0.01), (0.0, 0.001)
    return [replace(config, learning_rate=rates[number % 4], l2=penalties[number // 2 % 2]) for number in range(count)]


def _train(modules: Sequence[Supervised], steps: int) -> float:
    start = time.perf_counter()
    for module in modules:
        module.training_step((0, steps))
    if modules[0].device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _modules(configs: Sequence[Config], execution: Execution, stacked: bool) -> list[Supervised]:
    seeds = list(range(len(configs)))
    if stacked:
        return [make_module(configs, seeds, execution)]
    return [make_module([config], [seed], execution) for config, seed in zip(configs, seeds, strict=True)]


def _worker(execution: Execution, pipe: Connection) -> None:
    """A process that builds modules of the (configurations, stacked) it is sent, or trains so many steps of them."""
    keep_memory()
    set_threads(execution.threads)
    modules: list[Supervised] = []
    while (message := pipe.recv()) is not None:
        if isinstance(message, int):
            _train(modules, message)
        else:
            modules = _modules(message[0], execution, message[1])
        pipe.send(True)


class Processes:
    """Two processes that share configurations: `ask` tells both what to do and waits until both have done it."""

    def __init__(self, execution: Execution):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOAD, "papers.coordconv.module"])
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(execution, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def share(self, configs: Sequence[Config], stacked: bool) -> None:
        """Give each process half of the configurations."""
        self._ask([(configs[::2], stacked), (configs[1::2], stacked)])

    def train(self, steps: int) -> None:
        """So many steps of every configuration."""
        self._ask([steps, steps])

    def _ask(self, messages: Sequence[Any]) -> None:
        for pipe, message in zip(self.pipes, messages, strict=True):
            pipe.send(message)
        for pipe in self.pipes:
            pipe.recv()

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def stack_difference(configs: Sequence[Config]) -> float:
    """Largest difference between the first steps of a stack and of its members alone."""
    stack = first_steps(configs, range(len(configs)))
    alone = [first_steps([config], [number]) for number, config in enumerate(configs)]
    return float((stack - torch.cat(alone)).abs().max())


def sweep_times(setting: Setting, config: Config, processes: Processes | None) -> dict[str, float]:
    """Seconds of one step of every configuration of one shape, by the way they are trained: medians.

    One after the other and stacked take turns in this process; each way of two processes is timed in turns with the
    first, since all four at once would not fit the caches.
    """
    on_gpu = setting.execution.device == "cuda"
    count = 2 if setting.small else 32 if on_gpu else RUNS
    steps, repeats = (1, 1) if setting.small else (32, 3) if on_gpu else (4, 5)
    configs = configurations(config, count)
    alone, stack = (_modules(configs, setting.execution, stacked) for stacked in (False, True))

    def measured(way: Callable[[], object]) -> float:
        plain, other = interleaved((lambda: _train(alone, steps), way), repeats, 1, setting.execution.device)
        plains.append(plain / steps)
        return other / steps

    plains: list[float] = []
    times = {"stack": measured(lambda: _train(stack, steps))}
    if processes is not None:
        for name, stacked in (("2 processes", False), ("2 processes, stacks", True)):
            processes.share(configs, stacked)
            times[name] = measured(lambda: processes.train(steps))
    return {"one after the other": statistics.median(plains), **times}


def sweep(setting: Setting) -> Iterator[Row]:
    """A handful of the sweep's configurations: each way of training them beside one after the other, shape by shape,
    and the whole with every shape trained in the way that is fastest here."""
    together = one_by_one = difference = 0.0
    processes = Processes(setting.execution) if setting.execution.device == "cpu" and cores() > 1 else None
    try:
        for name, config in list(SWEEP.items())[: 2 if setting.small else None]:
            config = _tiny(config) if setting.small else config
            times = sweep_times(setting, config, processes)
            plain = times.pop("one after the other")
            apart = stack_difference(configurations(config))
            for way, seconds in times.items():
                yield row(setting, f"sweep, {way}: {name}", "ms", 1e3 * seconds, 1e3 * plain, equivalence=apart)
            together, one_by_one = together + min(plain, *times.values()), one_by_one + plain
            difference = max(difference, apart)
    finally:
        if processes is not None:
            processes.close()
    yield row(setting, "sweep", "ms", 1e3 * together, 1e3 * one_by_one, equivalence=difference)


def rows(setting: Setting) -> Iterator[Row]:
    """Every case of the supervised tasks."""
    for case, config in FULL.items():
        yield network_step(setting, case, config)
    if setting.execution.threads == 1:
        yield from sweep(setting)
