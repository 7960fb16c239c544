"""The family's tables: configurations, claims and pictures."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.claims import judge_all
from common.report.plots import png
from papers.coordconv.gan.config import Config
from papers.coordconv.gan.experiments import CLAIMS, EXPERIMENTS, METRICS, ONE, TWO, VAE
from papers.coordconv.gan.pictures import draw


def test_importing_the_experiments_loads_neither_torch_nor_scipy() -> None:
    code = "import sys, papers.coordconv.gan.experiments; sys.exit(bool({'torch', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_configuration_is_valid_and_the_paper_is_at_full_scale() -> None:
    for experiments in EXPERIMENTS.values():
        for experiment in experiments:
            for changes in experiment.methods.values():
                Config.of({**experiment.config, **changes})
    full = Config.of({**EXPERIMENTS["paper"][0].config, **EXPERIMENTS["paper"][0].methods["coordconv"]})
    assert full.steps * full.batch_size == 50 * full.images and full.latent == 256 and full.canvas == 64
    assert (full.learning_rate, full.discriminator_learning_rate, full.generator_steps) == (5e-4, 1e-4, 2)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"colour": 1}, TypeError),
        ({"generator": "vit"}, ValueError),
        ({"canvas": 48}, ValueError),
        ({"steps": 0}, ValueError),
        ({"latent": -1}, ValueError),
        ({"images": 0}, ValueError),
        ({"objects": 3}, ValueError),
        ({"beta2": 1.0}, ValueError),
        ({"generator_width": 2.0}, ValueError),
        ({"frames": 2}, ValueError),
        ({"learning_rate": float("nan")}, ValueError),
        ({"model": "vae", "feature_matching": 1.0}, ValueError),
    ],
)
def test_bad_settings_are_refused(wrong: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        Config.of(wrong)


def test_claims_read_runs_and_metrics_that_exist() -> None:
    assert [claim.id for claim in CLAIMS if "." not in claim.id] == ["C10", "C11", "C12"]
    for claim in CLAIMS:
        for preset, rule in claim.rules.items():
            runs = {(e.name, method) for e in EXPERIMENTS[preset] for method in e.methods}
            assert set(rule.quantity.requires) <= runs, (claim.id, preset)
            seeds = {e.name: e.seeds for e in EXPERIMENTS[preset]}
            assert {seeds[experiment] for experiment, _ in rule.quantity.requires} == {rule.seeds}
            rule.quantity.function({run: dict.fromkeys(METRICS, 1.0) for run in rule.quantity.requires})


def test_verdicts_follow_the_direction_of_the_paper() -> None:
    def row(experiment: str, method: str, seed: int, **metrics: float) -> dict:
        return {
            "experiment": experiment,
            "method": method,
            "seed": seed,
            "status": "finished",
            "metrics": metrics,
            "stale": False,
        }

    runs = []
    for i, seed in enumerate((1000, 1001, 1002)):
        shift = 0.01 * i
        gan = {"entropy_red": 3.1, "entropy_blue": 2.7 + shift, "entropy_difference": 2.8, "right_objects": 60.0}
        ours = {"entropy_red": 3.3, "entropy_blue": 3.0, "entropy_difference": 2.6 + shift, "right_objects": 60.0}
        runs += [row(TWO, "gan", seed, **gan), row(TWO, "coordconv", seed, **ours)]
        runs += [row(TWO, "coordconv-d", seed, **{**ours, "entropy_red": 2.9 + shift})]
        runs += [
            row(ONE, "gan", seed, entropy_blue=3.0, right_objects=1.0),
            row(ONE, "coordconv", seed, entropy_blue=3.5 + shift),
        ]
        runs += [
            row(VAE, "vae", seed, step_variance=2.0 + shift, kept_mass=80.0),
            row(VAE, "coordconv", seed, step_variance=0.1, kept_mass=70.0 + shift),
        ]
    verdicts = {row["id"]: row for row in judge_all(CLAIMS, "gpu", runs)}
    assert verdicts["C10"]["verdict"] == "held" and verdicts["C10"]["measured"]["mean"] == pytest.approx(0.2, abs=0.1)
    assert verdicts["C10.discriminator"]["verdict"] == "failed"
    assert verdicts["C11"]["verdict"] == "held" and verdicts["C11"]["measured"]["mean"] == pytest.approx(-0.19)
    (on_cpu,) = (row for row in judge_all(CLAIMS, "cpu", runs) if row["id"] == "C10")
    assert on_cpu["verdict"] == "inconclusive", "a GAN that paints no squares is no baseline"
    assert verdicts["C12"]["verdict"] == "held" and verdicts["C12.mass"]["verdict"] == "failed"
    assert verdicts["C12.lsun"]["verdict"] == "not run"


def test_pictures_of_what_runs_left(tmp_path: Path) -> None:
    methods = ("gan", "coordconv")
    document = {"runs": [{"experiment": e, "method": m, "seed": 1000} for e in (TWO, VAE) for m in methods]}
    assert draw(document, tmp_path) == []
    generator = np.random.default_rng(0)
    for method in methods:
        path = tmp_path / TWO / method / "seed-1000" / "artifacts" / "gan.npz"
        path.parent.mkdir(parents=True)
        pixels = {name: generator.integers(0, 256, (8, 16, 16, 3), np.uint8) for name in ("samples", "data", "paths")}
        centers = generator.uniform(2, 14, (20, 2, 2)).astype(np.float32)
        centers[3, 1] = np.nan
        means = {"mean_sample": pixels["samples"][0], "mean_data": pixels["data"][0]}
        np.savez(path, **pixels, **means, centers=centers, data_centers=centers, size=2, frames=4)
    pictures = draw(document, tmp_path)
    assert [picture.name for picture in pictures] == [f"{TWO}-{name}" for name in ("samples", "centers", "paths")]
    assert png(pictures[1].figure, pictures[1].name)[:4] == b"\x89PNG"
    assert all(picture.caption.endswith(".") for picture in pictures)
