"""Speed of the supervised tasks, measured by `make bench PAPER=coordconv`.

Every network has two formulations of one function: the fast one, and with `plain=True` the obviously right one of
PyTorch's own layers. `sweep` compares a handful of configurations trained one after the other with the better of
stacking and processes, shape by shape.
"""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from common.bench import Row, Setting, compare, interleaved, row
from common.engines import cores, set_threads
from common.runs import Execution
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


def step_difference(config: Config, steps: int = 3) -> float:
    """Largest difference between fast and plain networks after a few steps: losses, parameters and statistics.

    In double precision on the CPU, on a small batch, from the same start.
    """
    small = replace(config, batch_size=4)
    modules = []
    for plain in (False, True):
        module = Supervised([replace(small, plain=plain)], [0], Execution()).double()
        module.configure_optimizers()
        module.on_fit_start()
        modules.append(module)
    losses = [float(module.training_step((0, steps))["loss"]) for module in modules]
    states = [module.stack.member(0) for module in modules]
    differences = [float((states[0][name].double() - states[1][name].double()).abs().max()) for name in states[0]]
    return max(abs(losses[0] - losses[1]), *differences)


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


def _worker(configs: Sequence[Config], execution: Execution, stacked: bool, pipe: Connection) -> None:
    """A process that trains its share whenever it is told how many steps, and answers when it is done."""
    set_threads(execution.threads)
    _train(_modules(configs, execution, stacked), 1)
    pipe.send(True)
    while steps := pipe.recv():
        _train(_modules(configs, execution, stacked), steps)
        pipe.send(True)


class Processes:
    """Two processes that share the configurations; each call trains `steps` steps of all of them."""

    def __init__(self, configs: Sequence[Config], execution: Execution, stacked: bool, steps: int):
        context = multiprocessing.get_context("forkserver")
        self.steps, self.pipes, self.processes = steps, [], []
        for share in (configs[::2], configs[1::2]):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(share, execution, stacked, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def __call__(self) -> None:
        for pipe in self.pipes:
            pipe.send(self.steps)
        for pipe in self.pipes:
            pipe.recv()

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(0)
        for process in self.processes:
            process.join()


def stack_difference(configs: Sequence[Config], steps: int = 3) -> float:
    """Largest difference of a parameter between a stack and its members alone, after steps in double precision."""
    small = [replace(config, batch_size=4) for config in configs]

    def train(part: Sequence[Config], seeds: Sequence[int]) -> Supervised:
        module = Supervised(part, seeds, Execution()).double()
        module.configure_optimizers()
        module.on_fit_start()
        module.training_step((0, steps))
        return module

    stack = train(small, range(len(small)))
    differences = []
    for number, config in enumerate(small):
        alone = train([config], [number]).stack.weights[0]
        differences.append(float((stack.stack.weights[number] - alone).detach().abs().max()))
    return max(differences)


def sweep_times(setting: Setting, config: Config) -> dict[str, float]:
    """Seconds of one step of every configuration of one shape, by the way they are trained; medians, in turns."""
    on_gpu = setting.execution.device == "cuda"
    count = 2 if setting.small else 32 if on_gpu else RUNS
    steps, repeats = (1, 1) if setting.small else (32, 3) if on_gpu else (4, 5)
    configs = configurations(config, count)
    alone, stack = (_modules(configs, setting.execution, stacked) for stacked in (False, True))
    ways: dict[str, Any] = {
        "one after the other": lambda: _train(alone, steps),
        "stack": lambda: _train(stack, steps),
    }
    pools = {}
    if not on_gpu and cores() > 1:
        pools = {
            name: Processes(configs, setting.execution, stacked, steps)
            for name, stacked in (("2 processes", False), ("2 processes, stacks", True))
        }
    try:
        ways |= pools
        times = interleaved(list(ways.values()), repeats, 1, setting.execution.device)
    finally:
        for pool in pools.values():
            pool.close()
    return {name: seconds / steps for name, seconds in zip(ways, times, strict=True)}


def sweep(setting: Setting) -> Iterator[Row]:
    """A handful of the sweep's configurations: each way of training them beside one after the other, shape by shape,
    and the whole with every shape trained in the way that is fastest here."""
    together = one_by_one = difference = 0.0
    for name, config in SWEEP.items():
        config = _tiny(config) if setting.small else config
        times = sweep_times(setting, config)
        plain = times.pop("one after the other")
        apart = stack_difference(configurations(config))
        for way, seconds in times.items():
            yield row(setting, f"sweep, {way}: {name}", "ms", 1e3 * seconds, 1e3 * plain, equivalence=apart)
        together, one_by_one = together + min(plain, *times.values()), one_by_one + plain
        difference = max(difference, apart)
    yield row(setting, "sweep", "ms", 1e3 * together, 1e3 * one_by_one, equivalence=difference)


def rows(setting: Setting) -> Iterator[Row]:
    """Every case of the supervised tasks."""
    for case, config in FULL.items():
        yield network_step(setting, case, config)
    if setting.execution.threads == 1:
        yield from sweep(setting)
