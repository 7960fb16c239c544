"""A toy paper, so that the tests of `common` need none of the repository's papers.

Its run functions are named `tests.toy:...`. `train` trains a small network through `common.trainer.fit` with everything
that a checkpoint must carry: Adam, averaged weights, BatchNorm statistics, dropout. `plain` does what its config says.
"""

import copy
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from common import checkpoints
from common.claims import Claim, Rule, difference, level
from common.curves import read_rows
from common.errors import Diverged, UserError
from common.paper import DataSource, Experiment, Metric, Need, Paper, Preset, Stacking
from common.random import Stream, seeded
from common.runs import Execution, Folder, RunSpec, Stopped, Workplace
from common.trainer import Schedule, autocast, fit, save_weights

TRAIN = "tests.toy:train"
PLAIN = "tests.toy:plain"
# Ranges of 3 steps, cut at every other number below: evaluation, checkpoints and logs fall on different steps.
SETTINGS: dict[str, Any] = {
    "total_steps": 24,
    "evaluate_every": 8,
    "checkpoint_every": 5,
    "log_every": 4,
    "steps_per_call": 3,
}


class Toy(pl.LightningModule):
    """A regression on normal draws. explode: the step from which the loss is NaN. pause: seconds before each range."""

    def __init__(
        self,
        seed: int,
        execution: Execution,
        dropout: float = 0.5,
        explode: int | None = None,
        pause: float = 0.0,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.seed, self.execution, self.explode, self.pause = seed, execution, explode, pause
        self.step, self.samples_per_step = 0, 16
        with seeded(Stream(seed, "initialisation")):
            self.model = nn.Sequential(
                nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1)
            )
        self.average = copy.deepcopy(self.model).requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), 0.01, fused=True)

    def _loss(self, model: nn.Module, stream: str, step: int, count: int) -> Tensor:
        x = Stream(self.seed, stream).normal(step, (count, 6))
        return nn.functional.mse_loss(model(x), x[:, :1] * x[:, 1:2] + x[:, 2:3])

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        optimizer = self.trainer.optimizers[0]
        time.sleep(self.pause)
        for step in range(*bounds):
            with seeded(Stream(self.seed, "dropout"), step), autocast(self.execution):
                loss = self._loss(self.model, "train", step, self.samples_per_step)
            if self.explode is not None and step >= self.explode:
                loss = loss * float("nan")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            for average, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.lerp_(parameter.detach(), 0.1)
        return {"loss": loss.detach()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        self.average.eval()
        return {"test_loss": self._loss(self.average, "test", 0, 64).item()}


def train(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train `Toy`; {"test_loss"}."""
    options = {name: config[name] for name in ("dropout", "explode", "pause") if name in config}
    module = Toy(config["seed"], folder.execution, **options)
    fit(module, folder, Schedule(**{name: config[name] for name in SETTINGS}))
    save_weights(folder, module.average.state_dict())
    return {"test_loss": folder.curves.values("test_loss")[-1]}


class Stack(pl.LightningModule):
    """Regressions, each with its own seed, rate and data, trained as one: parameters [runs, 6]."""

    def __init__(self, configs: list[Mapping[str, Any]]):
        super().__init__()
        self.automatic_optimization = False
        self.configs = configs
        self.step, self.samples_per_step = 0, 8
        start = [Stream(config["seed"], "initialisation").normal(0, (6,)) for config in configs]
        self.weight = nn.Parameter(torch.stack(start))
        self.rate = torch.tensor([config.get("rate", 0.1) for config in configs])[:, None]
        self.explode = [config.get("explode") for config in configs]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], 1.0, momentum=0.5)

    def _losses(self, stream: str, step: int) -> Tensor:
        x = torch.stack([Stream(config["seed"], stream).normal(step, (8, 6)) for config in self.configs])
        return ((x * self.weight[:, None]).sum(2) - x[:, :, 0]).square().mean(1)

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        optimizer = self.trainer.optimizers[0]
        time.sleep(max(config.get("pause", 0.0) for config in self.configs))
        for step in range(*bounds):
            losses = self._losses("train", step)
            bad = torch.tensor([explode is not None and step >= explode for explode in self.explode])
            losses = torch.where(bad, torch.nan, losses)
            optimizer.zero_grad()
            losses.sum().backward()
            self.weight.grad *= self.rate
            optimizer.step()
        return {"loss": losses.detach()}

    @torch.no_grad()
    def evaluate(self) -> list[dict[str, float]]:
        return [{"test_loss": loss} for loss in self._losses("test", 0).tolist()]


def train_stack(configs: list[Mapping[str, Any]], job: Workplace, needs: list[Any]) -> list[dict[str, Any]]:
    """Train `Stack`; {"test_loss"} of each run."""
    if any(config.get("do") == "fail" for config in configs):
        raise ValueError("broken on\npurpose")
    module = Stack(configs)
    fit(module, job, Schedule(**{name: configs[0][name] for name in SETTINGS}))
    for member, weight in zip(job.members, module.weight, strict=True):
        save_weights(member, {"weight": weight})
    return [
        {"test_loss": member.curves.values("test_loss")[-1]} if member.diverged is None else {}
        for member in job.members
    ]


def train_one(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """One run of `Stack`, alone."""
    return train_stack([config], folder, [needs])[0]


def seconds_of_stack(config: Mapping[str, Any], size: int, execution: Execution) -> float:
    """A made-up time of a step: the sixth run no longer fits."""
    if config.get("do") == "fail":
        raise UserError("nothing to measure")
    return 1.0 + size * 0.1 if size < 6 else 20.0


STACKING = Stacking("tests.toy:train_stack", lambda config: f"explode={'explode' in config}", 3)


def plain(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Do `config["do"]`; {"score"}: config["score"] + a hundredth of the seed's last digit + the scores of the needs.

    Leaves in artifacts/ a line an attempt in `attempts`, and `times`: when it began and ended, by a clock that all
    processes share.
    """
    began = time.monotonic()
    with open(folder.artifact("attempts"), "a") as file:
        file.write(f"{os.getpid()}\n")
    do = config.get("do", "score")
    if do == "fail":
        raise ValueError("broken on\npurpose")
    if do == "fail once" and len(folder.artifact("attempts").read_text().splitlines()) == 1:
        raise ValueError("broken the first time")
    if do == "user error":
        raise UserError("the toy is not wound up: wind it up")
    if do == "diverge":
        raise Diverged(3)
    if do == "nan":
        return {"score": float("nan")}
    if do == "exit":
        raise SystemExit(7)
    if do == "die":
        os.kill(os.getpid(), 9)
    if do == "wait":
        for step in range(1, 10_000):
            time.sleep(0.02)
            folder.report(step, 10_000, {"waited": step / 50})
            if folder.stop_requested:
                raise Stopped
    if do == "meet":
        while not (folder.path.parents[1] / config["other"] / folder.path.name / "artifacts" / "attempts").exists():
            time.sleep(0.01)
    time.sleep(config.get("seconds", 0.0))
    needed = [json.loads((need / "artifacts" / "score.json").read_text()) for need in needs.values()]
    score = config.get("score", 0.0) + config["seed"] % 10 / 100 + sum(needed)
    folder.artifact("score.json").write_text(json.dumps(score))
    folder.artifact("times").write_text(f"{began} {time.monotonic()}")
    return {"score": score}


def threads(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """How many threads torch and the BLAS libraries have in this run."""
    import numpy  # noqa: F401 - its BLAS is one of them
    from threadpoolctl import threadpool_info

    return {"torch": torch.get_num_threads(), "blas": max(pool["num_threads"] for pool in threadpool_info())}


def of_plain(name: str, **methods: Mapping[str, Any]) -> Experiment:
    """An experiment of `plain` runs: a method is what it adds to the config."""
    return Experiment(name, methods, described=f"{name}, made up", function=PLAIN)


UNIT = "points"
BETTER = Claim(
    "C1",
    "good scores more than bad",
    "Table 1",
    True,
    {
        "quick": Rule(
            quantity=difference(("plain", "good"), ("plain", "bad"), "score", UNIT, claimed=[("plain", "good")]),
            better="higher",
            gate=0.5,
            null=0.0,
            seeds=3,
            data="made up",
            stand_in=True,
        )
    },
)
CALM = Claim(
    "C2",
    "wild does not diverge",
    "Table 2",
    True,
    {
        "faults": Rule(
            quantity=level("faults", "nan", "score", UNIT),
            better="higher",
            gate=0.5,
            null=0.0,
            seeds=1,
            data="made up",
            stand_in=True,
        )
    },
)
PAPER = Paper(
    name="toy",
    title="A toy",
    citation="Nobody, never.",
    function=TRAIN,
    presets=(
        Preset(
            "quick",
            (
                replace(of_plain("plain", good={"score": 2.0}, bad={"score": 1.0}), seeds=3),
                replace(
                    of_plain("chain", first={"score": 1.0}, second={}, third={}),
                    seeds=2,
                    needs={"second": {"before": Need("chain", "first")}, "third": {"before": Need("chain", "second")}},
                ),
            ),
            cost="a second",
            description="plain functions",
        ),
        Preset(
            "trained",
            (
                Experiment(
                    "line",
                    {"wet": {"dropout": 0.5}, "dry": {"dropout": 0.0}},
                    SETTINGS,
                    seeds=2,
                    described="normal draws",
                ),
            ),
            cost="a second",
            description="a network",
        ),
        Preset(
            "stacked",
            (
                Experiment(
                    "stack",
                    {"slow": {"rate": 0.05}, "fast": {"rate": 0.2}},
                    SETTINGS,
                    function="tests.toy:train_one",
                    stacking=STACKING,
                    seeds=3,
                    described="normal draws",
                ),
            ),
            cost="a second",
            description="regressions trained as one",
        ),
        Preset(
            "faults",
            (
                replace(
                    of_plain("faults", good={}, fail={"do": "fail"}, diverge={"do": "diverge"}, nan={"do": "nan"}),
                    seeds=1,
                ),
                Experiment("line", {"explode": {"explode": 9}}, SETTINGS, seeds=1, described="normal draws"),
            ),
            cost="a second",
            description="everything goes wrong",
        ),
        Preset(
            "data",
            (
                replace(of_plain("built-in", good={}), data=(DataSource("digits"),), seeds=1),
                replace(of_plain("absent", good={}), data=(DataSource("cifar10"), DataSource("mnist")), seeds=1),
                replace(of_plain("present", good={}), data=(DataSource("mnist"),), seeds=1),
            ),
            cost="a second",
            description="data in DATA_DIR",
        ),
        Preset("gpu", (of_plain("plain", good={}),), cost="a second", description="on a GPU", needs_gpu=True),
    ),
    claims=(BETTER, CALM),
    metrics={name: Metric(UNIT, "higher", "test", "last", f"the toy's {name}") for name in ("score", "test_loss")},
)


def spec_of(folder: Path, function: str = TRAIN, seed: int = 1000, **config: Any) -> RunSpec:
    """One run of the toy in `folder` (its name is taken as the method)."""
    settings = SETTINGS if function == TRAIN else {}
    return RunSpec("toy", "quick", "line", folder.name, seed, function, {**settings, **config}, folder / f"seed-{seed}")


def on(spec: RunSpec, execution: Execution) -> RunSpec:
    """The same run, and its needs, with another execution."""
    needs = {name: on(need, execution) for name, need in spec.needs.items()}
    return replace(spec, execution=execution, needs=needs)


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            digest.update(f"{name}:".encode())
            _feed(digest, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _feed(digest, inner)
    else:
        digest.update(repr(value).encode())


def end_state(folder: Path) -> dict[str, str]:
    """Digests of all that a training run ends with - checkpoint, weights, curves, metrics - but for times."""
    state = checkpoints.load_latest(folder / "checkpoints")
    assert state is not None
    parts: dict[str, Any] = {name: value for name, value in state.items() if name != "seconds"}
    parts["weights"] = (folder / "weights.safetensors").read_bytes()
    parts["curves"] = [[v for name, v in row.items() if name != "seconds"] for row in read_rows(folder / "curves.csv")]
    record = json.loads((folder / "run.json").read_text())
    parts["record"] = [record[name] for name in ("status", "error", "metrics", "key")]
    digests = {}
    for name, value in parts.items():
        digest = hashlib.sha256()
        _feed(digest, value)
        digests[name] = digest.hexdigest()
    return digests
