"""The supervised experiments and claims as data: grids as the paper's, and verdicts from made-up runs."""

import subprocess
import sys

import pytest

from common.claims import judge_all
from papers.coordconv.config import Config
from papers.coordconv.supervised import CLAIMS, EXPERIMENTS, MEASURED, METRICS
from papers.coordconv.supervised_claims import best, chosen_on_train
from papers.coordconv.sweeps import full_size

BY_ID = {claim.id: claim for claim in CLAIMS}


def experiment(preset: str, name: str):
    return next(found for found in EXPERIMENTS[preset] if found.name == name)


def row(experiment: str, method: str, seed: int, **metrics) -> dict:
    return {
        "experiment": experiment,
        "method": method,
        "seed": seed,
        "status": "finished",
        "stale": False,
        "metrics": metrics,
    }


def verdict(claim: str, preset: str, runs: list[dict]) -> str:
    (found,) = judge_all([BY_ID[claim]], preset, runs)
    return found["verdict"]


def test_importing_the_experiments_loads_no_torch():
    code = "import sys, papers.coordconv.supervised; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_config_of_every_preset_is_one():
    for experiments in EXPERIMENTS.values():
        assert len({found.name for found in experiments}) == len(experiments)
        for found in experiments:
            for changes in found.methods.values():
                found.check_config({**found.config, **changes})


@pytest.mark.parametrize("split", ["uniform", "quadrant"])
def test_the_paper_preset_has_the_papers_grids(split):
    classification, rendering, regression = (
        full_size("paper", task, split) for task in ("classification", "rendering", "regression")
    )
    assert (len(classification.baselines), len(classification.coordconv)) == (324, 6)
    assert (len(rendering.baselines), len(regression.baselines)) == (648, 9)
    found = experiment("paper", f"classification-{split}")
    assert len(found.methods) == 330
    config = Config.of({**found.config, **found.methods["deconv-k4-lr0.02-m3-b32-wd0.01"]})
    assert (config.canvas, config.kernel, config.multiplier, config.batch_size) == (64, 4, 3, 32)
    assert (config.learning_rate, config.l2, config.decay_every * 5) == (0.02, 0.01, config.steps)
    per_epoch = {("uniform", 16): 157, ("quadrant", 16): 147, ("uniform", 32): 79, ("quadrant", 32): 74}
    assert config.steps == 1000 * per_epoch[split, 32]
    assert next(iter(classification.coordconv.values()))["steps"] == 50 * per_epoch[split, 16]
    shapes = {MEASURED.shape({**found.config, **changes}) for changes in classification.baselines.values()}
    assert len(shapes) == 18  # three multipliers, three kernels and two batch sizes; the rest is stacked


def test_every_row_of_the_specs_table_has_its_claim():
    assert {f"C{number}" for number in range(1, 8)} <= set(BY_ID)
    assert all(claim.rules for claim in CLAIMS)
    for preset, experiments in EXPERIMENTS.items():
        runs = {(found.name, method) for found in experiments for method in found.methods}
        for claim in CLAIMS:
            if preset in claim.rules:
                assert set(claim.rules[preset].quantity.requires) <= runs, (claim.id, preset)
                seeds = {found.name: found.seeds for found in experiments}
                used = {seeds[name] for name, _ in claim.rules[preset].quantity.requires}
                assert used == {claim.rules[preset].seeds}, (claim.id, preset)


def classified(train: float = 97.0, deconv: float = 25.0, method: float = 100.0) -> list[dict]:
    runs = []
    for seed in range(1000, 1005):
        noise = 0.1 * (seed - 1002)
        runs += [
            row("classification-uniform", "coordconv", seed, test_accuracy=method, train_accuracy=100.0),
            row("classification-uniform", "deconv", seed, test_accuracy=deconv + noise, train_accuracy=train),
            row("classification-quadrant", "coordconv", seed, test_accuracy=method, train_accuracy=100.0),
            row("classification-quadrant", "deconv", seed, test_accuracy=abs(noise), train_accuracy=train),
            row("time-to-85", "ratio", seed, time_ratio={"low": 30.0 + noise, "high": None}),
        ]
    return runs


def test_verdicts_of_classification():
    for claim in ("C1", "C2", "C2.level", "C3", "C4"):
        assert verdict(claim, "quick", classified()) == "held", claim
    for claim in ("C1", "C2", "C2.level", "C4"):
        assert verdict(claim, "quick", classified(train=60.0)) == "inconclusive", claim
    assert verdict("C1", "quick", classified(deconv=80.0)) == "failed"
    assert verdict("C3", "quick", classified(method=90.0)) == "failed"


def test_verdicts_of_regression():
    def runs(conv: float, train: float) -> list[dict]:
        found = []
        for seed, ours in zip(range(1000, 1005), (0.01, 0.5, 0.02, 0.004, 0.3), strict=True):
            name = "regression-quadrant"
            found.append(row(name, "coordconv", seed, best_test_error=ours, best_train_error=ours))
            found.append(row(name, "conv", seed, best_test_error=conv + ours, best_train_error=train))
        return found

    for claim in ("C7", "C7.coordconv", "C7.conv"):
        assert verdict(claim, "quick", runs(7.0, 0.6)) == "held", claim
    assert verdict("C7", "quick", runs(7.0, 2.0)) == "inconclusive"
    assert verdict("C7.conv", "quick", runs(2.0, 0.6)) == "failed"


def test_the_best_of_a_sweep_is_judged_at_full_size():
    sweep = full_size("gpu", "classification", "uniform")

    def runs(best: float, train: float) -> list[dict]:
        found = []
        for seed in range(1000, 1003):
            for i, method in enumerate(sweep.methods):
                score = 100.0 if method in sweep.coordconv else best if i == 3 else 5.0
                scores = {"test_accuracy": score, "train_accuracy": train, "parameters": 300_000 if i == 3 else 7553}
                found.append(row("classification-uniform", method, seed, **scores))
        return found

    assert verdict("C1", "gpu", runs(86.0, 100.0)) == "held"
    assert verdict("C1", "gpu", runs(95.0, 100.0)) == "failed"
    assert verdict("C1", "gpu", runs(86.0, 50.0)) == "inconclusive"
    assert verdict("C4.size", "gpu", runs(86.0, 100.0)) == "held"


def test_verdicts_of_rendering():
    def runs(uniform: float, quadrant: float) -> list[dict]:
        found = []
        for seed in range(1000, 1003):
            for split, baseline in (("uniform", uniform), ("quadrant", quadrant)):
                name, noise = f"rendering-{split}", 0.001 * seed % 0.01
                found.append(row(name, "coordconv", seed, test_rendering_iou=0.99, train_rendering_iou=0.99))
                scores = {"test_rendering_iou": baseline + noise, "train_rendering_iou": 0.95}
                found.append(row(name, "deconv", seed, **scores))
        return found

    for claim in ("C5", "C6", "C5.uniform", "C6.quadrant"):
        assert verdict(claim, "cpu", runs(0.7, 0.3)) == "held", claim
    assert verdict("C5", "cpu", runs(0.95, 0.3)) == "failed"


def test_metrics_are_described():
    for name in ("train_accuracy", "test_rendering_iou", "best_test_error", "time_ratio", "parameters"):
        assert METRICS[name].description


def test_what_is_claimed_is_selected_on_train_and_the_baseline_in_its_favour():
    runs = {
        ("e", "coordconv-a"): {"train_accuracy": 99.0, "test_accuracy": 100.0},
        ("e", "coordconv-b"): {"train_accuracy": 100.0, "test_accuracy": 60.0},
    }
    methods = ["coordconv-a", "coordconv-b"]
    assert chosen_on_train("e", methods, "test_accuracy", "percent").function(runs) == 60.0
    assert best("e", methods, "test_accuracy", "percent").function(runs) == 100.0
