"""The grids behind the paper's scatter plots (spec, section 5), and corners of them for smaller scales.

A point's name tells its settings: `deconv-k3-lr0.01-m2-b16-wd0.001` is kernel 3, learning rate 0.01, multiplier 2,
batch 16, l2 0.001; rendering with the squared error ends in `-mse`. Loads no torch.
"""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

from papers.coordconv.config import steps_for

SPLITS = ("uniform", "quadrant")
SMALL: dict[str, Any] = {"canvas": 32, "square": 5}
FULL: dict[str, Any] = {"canvas": 64, "square": 9}
PER_CALL = {SMALL["canvas"]: 13, FULL["canvas"]: 128}
"""Steps whose samples are drawn together: on a GPU a stack of many runs draws for each of them."""
Methods = dict[str, Mapping[str, Any]]


def schedule(steps: int, evaluations: int, per_call: int = 13) -> dict[str, int]:
    """A number of steps with so many evaluations, a checkpoint at each and two log rows between them."""
    every = max(1, steps // evaluations)
    return {
        "steps": steps,
        "evaluate_every": every,
        "checkpoint_every": every,
        "log_every": max(1, every // 2),
        "steps_per_call": per_call,
    }


def deconv_sweep(
    epochs: int,
    split: str,
    scale: Mapping[str, Any],
    multipliers: Iterable[int] = (1, 2, 3),
    kernels: Iterable[int] = (2, 3, 4),
    rates: Iterable[float] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    penalties: Iterable[float] = (0, 0.001, 0.01),
    batches: Iterable[int] = (16, 32),
    losses: Iterable[str] = ("cross-entropy",),
    evaluations: int = 50,
) -> Methods:
    """The deconvolutions of the paper's figures (spec, section 5): every combination, each with the step schedule that
    divides the learning rate by 10 after each fifth of the run, at most four times."""
    methods: Methods = {}
    for loss, kernel, rate, m, batch, penalty in product(losses, kernels, rates, multipliers, batches, penalties):
        name = f"deconv-k{kernel}-lr{rate:g}-m{m}-b{batch}-wd{penalty:g}"
        steps = steps_for(epochs, split, batch, **scale)
        methods[f"{name}-mse" if loss == "mse" else name] = {
            "network": "deconv",
            "kernel": kernel,
            "multiplier": m,
            "batch_size": batch,
            "learning_rate": rate,
            "l2": penalty,
            "loss": loss,
            "decay_every": steps // 5,
            **schedule(steps, evaluations, PER_CALL[scale["canvas"]]),
        }
    return methods


def coordconv_sweep(
    epochs: int,
    split: str,
    scale: Mapping[str, Any],
    rates: Iterable[float],
    penalties: Iterable[float] = (0, 0.001),
    multipliers: Iterable[int] = (1,),
    render_kernels: Iterable[int] = (1,),
    evaluations: int = 50,
) -> Methods:
    """CoordConv's own, much smaller grids: batch 16, constant learning rate (k: of the rendering convolutions)."""
    steps = schedule(steps_for(epochs, split, 16, **scale), evaluations, PER_CALL[scale["canvas"]])
    return {
        f"coordconv-k{kernel}-lr{rate:g}-m{m}-b16-wd{penalty:g}": {
            "render_kernel": kernel, "multiplier": m, "learning_rate": rate, "l2": penalty, **steps,
        }
        for kernel, rate, m, penalty in product(render_kernels, rates, multipliers, penalties)
    }  # fmt: skip


def regression_sweep(epochs: int, split: str, scale: Mapping[str, Any]) -> Methods:
    """Regression's grid: nine convolutional networks and one CoordConv, batches of 256 (spec, section 5)."""
    steps = schedule(steps_for(epochs, split, 256, **scale), 50, 10)
    conv = {"network": f"conv-{split}", **steps}
    methods: Methods = {
        f"conv-lr{rate:g}-wd{penalty:g}": {**conv, "learning_rate": rate, "l2": penalty}
        for rate, penalty in product((0.0005, 0.001, 0.01), (1e-5, 1e-4, 5e-4))
    }
    return {**methods, "coordconv": {"learning_rate": 0.01, "l2": 1e-5, **steps}}


class Sweep(NamedTuple):
    """The baselines and CoordConv's models of one experiment at full size."""

    baselines: Methods
    coordconv: Methods

    @property
    def methods(self) -> Methods:
        return {**self.baselines, **self.coordconv}


def full_size(preset: str, task: str, split: str) -> Sweep:
    """The sweep of a task and split at 64x64: the paper's, or for `gpu` a part of its grid, the deconvolutions on a
    fifth of the schedule."""
    if task == "regression":
        methods = regression_sweep(100, split, FULL)
        return Sweep(
            {name: methods[name] for name in methods if name != "coordconv"}, {"coordconv": methods["coordconv"]}
        )
    grid: dict[str, Any] = {"evaluations": 50}
    if preset == "gpu":
        grid = {
            "multipliers": (1, 2), "kernels": (2, 3), "rates": (0.002, 0.005, 0.01), "penalties": (0, 0.001),
            "batches": (16,), "evaluations": 20,
        }  # fmt: skip
    epochs = 200 if preset == "gpu" else 1000
    if task == "classification":
        rates = (0.001, 0.005, 0.01)
        return Sweep(deconv_sweep(epochs, split, FULL, **grid), coordconv_sweep(50, split, FULL, rates))
    losses = ("sigmoid",) if preset == "gpu" else ("sigmoid", "mse")
    # The released script has k = 1 only, its readme's example k = 3.
    coordconv = coordconv_sweep(50, split, FULL, (0.001, 0.005), multipliers=(1, 2), render_kernels=(1, 3))
    return Sweep(deconv_sweep(epochs, split, FULL, **grid, losses=losses), coordconv)


def small_sweep(split: str) -> Methods:
    """A corner of the paper's grid on the small canvas, 50 epochs a run (CoordConv 20)."""
    grid = {"multipliers": (1, 2), "kernels": (2, 3), "rates": (0.002, 0.01), "penalties": (0, 0.001), "batches": (16,)}
    return {
        **deconv_sweep(50, split, SMALL, **grid, evaluations=5),
        **coordconv_sweep(20, split, SMALL, (0.001, 0.005), evaluations=5),
    }
