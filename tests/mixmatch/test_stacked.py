"""Runs that differ in their seeds alone, trained as one batched model, are the runs alone."""

import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common import checkpoints, jobs, runs
from common.curves import read_rows
from common.data.loader import DeviceImages
from common.jobs import StackSpec, arrange
from common.paper import Preset, expand
from common.runs import Data, Execution, RunSpec, read_record
from papers.mixmatch import bench, stacked
from papers.mixmatch.config import Config
from papers.mixmatch.data import load_split
from papers.mixmatch.module import SemiSupervised, initial_model
from papers.mixmatch.reproduce import PAPER, STACKING
from papers.mixmatch.stacked import Stack
from tests import faults
from tests.faults import Fault

SMOKE = PAPER.preset("smoke").experiment("digits-20")
METHODS = ("supervised", "pseudo-label", "mixmatch", "k1")
SEEDS = (3, 4)


def settings(method: str, **changes: Any) -> Config:
    """A method of the digits with small batches."""
    small = {"batch_size": 4, "unlabeled_batch_size": 4}
    return Config.of({**SMOKE.config, **SMOKE.methods[method], **small, **changes})


def pair(config: Config, dtype: torch.dtype, seeds: Sequence[int] = SEEDS) -> tuple[Stack, list[SemiSupervised]]:
    """A stack and its runs alone, ready for steps."""
    stack, members = bench.stack_and_members(config, seeds, Execution())
    for module in (stack, *members):
        module.to(dtype).configure_optimizers()
        module.on_fit_start()
    return stack, members


def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in double precision, so that nothing in a step is in single."""
    gather = DeviceImages.gather
    monkeypatch.setattr(DeviceImages, "gather", lambda *arguments: gather(*arguments).double())


@torch.no_grad()
def outputs(stack: Stack, members: Sequence[SemiSupervised]) -> tuple[Tensor, Tensor]:
    """Logits [S, n, L] of the raw networks for the same images: the stack's and those of the runs alone."""
    x = members[0].unlabeled.gather(torch.arange(16))
    for module in (stack, *members):
        module.model.eval()
    found = stack.model(x.repeat(1, stack.size, 1, 1)).transpose(0, 1), torch.stack([m.model(x) for m in members])
    for module in (stack, *members):
        module.model.train()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_stacked_equals_alone_in_single_precision(method: str) -> None:
    stack, members = pair(settings(method), torch.float32)
    for step in range(3):
        found = stack.training_step((step, step + 1))
        alone = [member.training_step((step, step + 1)) for member in members]
        for name, values in found.items():
            assert values.shape == (len(SEEDS),)
            torch.testing.assert_close(values, torch.stack([each[name] for each in alone]), rtol=1e-5, atol=1e-6)
    ours, theirs = outputs(stack, members)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_stacked_equals_alone_in_double_precision(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_double(monkeypatch)
    stack, members = pair(settings(method, ramp_steps=40), torch.float64)
    for module in (stack, *members):
        module.training_step((0, 50))
    assert stack.evaluate() == [member.evaluate() for member in members]
    assert bench.stack_difference(stack, members) < 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        {"guess_with": "ema", "mixing": "xx.yx", "unlabeled_batch_size": 6, "unlabeled_loss": "cross-entropy"},
        {"batch_norm": "official", "mixing": "xx.", "num_views": 3},
        {"batch_norm": "all-batches", "per_item_lambda": False},
        {"batch_norm": "frozen", "mixing": ".yy", "temperature": 1.0},
    ],
)
def test_every_switch_of_mixmatch_works_in_a_stack(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    in_double(monkeypatch)
    stack, members = pair(settings("mixmatch", **changes), torch.float64)
    for module in (stack, *members):
        module.training_step((1, 4))
    assert bench.stack_difference(stack, members) < 1e-9


def test_runs_need_not_have_equally_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    in_double(monkeypatch)
    config = settings("mixmatch", evaluation_batch_size=7)
    splits = []
    for seed, count in ((3, 17), (4, 20)):
        split = load_split(config, seed, None)
        labeled, test = ((images[:count], labels[:count]) for images, labels in (split.labeled, split.test))  # type: ignore[misc]
        splits.append(replace(split, labeled=labeled, test=test, unlabeled=split.unlabeled[: 50 * count]))
    stack = Stack(config, splits, SEEDS, Execution())
    members = [
        SemiSupervised(initial_model(config, split, seed), config, split, seed, Execution())
        for split, seed in zip(splits, SEEDS, strict=True)
    ]
    for module in (stack, *members):
        module.double().configure_optimizers()
        module.on_fit_start()
        module.training_step((0, 8))
    assert bench.stack_difference(stack, members) < 1e-9
    errors = stack.evaluate()
    assert errors == [member.evaluate() for member in members]
    # A 17th of the first run's images, a 20th of the second's.
    assert [round(row["test_error"] * n / 100, 9) % 1 for row, n in zip(errors, (17, 20), strict=True)] == [0, 0]


@pytest.mark.parametrize("method", ("pseudo-label", "mixmatch"))
def test_a_member_that_is_no_number_leaves_the_others(method: str) -> None:
    states = []
    for poisoned in (False, True):
        stack, _ = pair(settings(method), torch.float32, (3, 4, 5))
        if poisoned:
            with torch.no_grad():
                stack.model.member(1)["body.3.weight"].fill_(torch.nan)
        losses = stack.training_step((0, 6))["loss"]
        assert losses.isfinite().tolist() == [True, not poisoned, True]
        states.append([stack.average.member(i) for i in (0, 2)] + [stack.model.member(i) for i in (0, 2)])
    for calm, beside in zip(*states, strict=True):
        assert all(torch.equal(calm[name], beside[name]) for name in calm)


def test_what_cannot_be_stacked_is_refused(tmp_path: Path) -> None:
    for config in (settings("vat"), settings("mixmatch", model="wrn-10-1")):
        with pytest.raises(ValueError, match="no stack"):
            Stack(config, [], [], Execution())
    first, second = specs(tmp_path, "mixmatch")
    other = replace(second, config={**second.config, "temperature": 0.7})
    records = jobs.execute(StackSpec((first, other)))
    assert all("differ in their seeds alone" in record["error"] for record in records)


# ---------------------------------------------------------------- jobs


def expanded(preset: Preset, root: Path, **filters: Any) -> list[RunSpec]:
    return expand(PAPER, preset, root, Execution(), lambda source: Data(source.name, source.name, ""), **filters)


def specs(root: Path, method: str) -> list[RunSpec]:
    """Two seeds of a method of the smoke preset, as `quick` would stack them."""
    experiments = (replace(SMOKE, stacking=STACKING, function="papers.mixmatch.stacked:run"),)
    preset = replace(PAPER.preset("smoke"), experiments=experiments)
    return expanded(preset, root, methods=[method], seeds=[1000, 1001])


def curve(folder: Path) -> list[list[str]]:
    """The rows of a run's curves without the seconds."""
    return [[value for name, value in row.items() if name != "seconds"] for row in read_rows(folder / "curves.csv")]


def test_quick_stacks_the_seeds_of_each_method_on_digits(tmp_path: Path) -> None:
    assert STACKING.size == 5
    found = arrange(expanded(PAPER.preset("quick"), tmp_path), 2, lambda *_: 5)
    sizes = Counter((job.runs[0].experiment, len(job.runs)) for job in found)
    assert sizes == {("digits-20", 5): 14, ("digits-pate", 1): 30, ("textures-40", 1): 6}
    assert all(len({run.method for run in job.runs}) == 1 for job in found)
    methods = {run.config.get("method", "mixmatch") for job in found for run in job.runs}
    assert methods <= set(stacked.METHODS)


def test_a_stacked_run_leaves_what_the_run_alone_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = stacked.initial_model

    def broken(config: Config, split: Any, seed: int) -> torch.nn.Module:
        model = begin(config, split, seed)
        if seed == 1001:
            torch.nn.init.constant_(next(model.parameters()), torch.nan)
        return model

    monkeypatch.setattr(stacked, "initial_model", broken)
    together, alone = specs(tmp_path / "stacked", "mixmatch"), specs(tmp_path / "alone", "mixmatch")[0]
    first, second = jobs.execute(StackSpec(tuple(together)))
    expected = runs.execute(alone)
    assert (first["status"], second["status"], expected["status"]) == ("finished", "diverged", "finished")
    assert second["error"] == "train_loss is not finite at step 4" and second["metrics"] == {}
    assert not (together[1].folder / "weights.safetensors").exists()
    assert first["key"] == expected["key"] and first["stacked"] == 2
    assert first["metrics"] == pytest.approx(expected["metrics"], abs=1.0)
    ours, theirs = (load_file(spec.folder / "weights.safetensors") for spec in (together[0], alone))
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 0.01
    rows, others = curve(together[0].folder), curve(alone.folder)
    assert [row[:-1] for row in rows] == [row[:-1] for row in others] and len(rows) == 10
    losses = [[float(row[-1]) for row in part if "loss" in row[-2]] for part in (rows, others)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_killed_stack_ends_as_an_undisturbed_one(tmp_path: Path, fork_server: None) -> None:
    calm, struck = (StackSpec(tuple(specs(tmp_path / name, "mixmatch"))) for name in ("calm", "struck"))
    jobs.execute(calm)
    for fault in (
        Fault("papers.mixmatch.stacked:Stack.loss", 4),
        Fault("papers.mixmatch.stacked:Stack.evaluate", 1, "after"),
    ):
        assert faults.run_with(struck, fault) == -signal.SIGKILL, f"{fault} was not reached"
    assert arrange(struck.runs[:1], 2, lambda *_: 1, lambda *_: struck.runs[1]) == [struck]
    jobs.execute(struck)
    ours, theirs = (checkpoints.load_latest(job.folder / "checkpoints") for job in (struck, calm))
    assert ours is not None and theirs is not None and ours["step"] == theirs["step"] == 8
    assert ours["module"].keys() == theirs["module"].keys()
    assert all(torch.equal(ours["module"][name], theirs["module"][name]) for name in ours["module"])
    moments = [
        [tensor for state in each["optimizers"][0]["state"].values() for tensor in state.values()]
        for each in (ours, theirs)
    ]
    assert len(moments[0]) > 20 and all(map(torch.equal, *moments))
    for one, other in zip(struck.runs, calm.runs, strict=True):
        weights = [(spec.folder / "weights.safetensors").read_bytes() for spec in (one, other)]
        assert weights[0] == weights[1] and curve(one.folder) == curve(other.folder)
        record, undisturbed = read_record(one.folder), read_record(other.folder)
        assert record is not None and undisturbed is not None
        assert record["status"] == "finished" and record["metrics"] == undisturbed["metrics"] and record["resumed"]


def test_the_bench_row() -> None:
    row = bench.stacked_steps(bench.Setting(Execution(), "cpu (test)", small=True))
    assert row["case"] == "stack of 2, digits step (smoke)" and row["equivalence"] < 1e-9
