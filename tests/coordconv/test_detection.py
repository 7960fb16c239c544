"""Detection's runs: every smoke method, kill and resume, batches against accumulation, experiments and claims."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.claims import judge_runs
from common.paper import Experiment
from common.random import Stream
from common.runs import Execution, RunSpec, execute, read_record
from papers.coordconv.detection import experiments
from papers.coordconv.detection.config import SCORES, Config
from papers.coordconv.detection.data import sources
from papers.coordconv.detection.module import Detection
from papers.coordconv.detection.pictures import draw
from tests import faults, toy
from tests.faults import Fault

MODULE = "papers.coordconv.detection.module:Detection"
SMOKE = experiments.EXPERIMENTS["smoke"][0]


def spec_of(root: Path, method: str, **changes: Any) -> RunSpec:
    """One run of the smoke experiment below root."""
    folder = root / SMOKE.name / method / "seed-1000"
    config = {**SMOKE.config, **SMOKE.methods[method], **changes}
    return RunSpec("coordconv", "smoke", SMOKE.name, method, 1000, experiments.RUN, config, folder)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the smoke preset."""
    root = tmp_path_factory.mktemp("smoke")
    for method in SMOKE.methods:
        record = execute(spec_of(root, method))
        assert record["status"] == "finished", record["error"]
    return root


def test_every_method_of_smoke_runs_and_leaves_its_boxes(smoke: Path) -> None:
    for method in SMOKE.methods:
        record = read_record(spec_of(smoke, method).folder)
        assert record is not None and set(record["metrics"]) == set(SCORES)
        assert all(0 <= value <= 1 for value in record["metrics"].values())
        with np.load(spec_of(smoke, method).folder / "artifacts" / "detections.npz") as arrays:
            assert arrays["images"].shape == (2, 64, 64) and arrays["truths"].shape == (2, 5, 4)
            assert arrays["proposals"].shape == (2, 10, 4) and arrays["found"].any(1).all()
    conv, released = (read_record(spec_of(smoke, name).folder)["metrics"] for name in ("conv", "conv-released"))  # type: ignore[index]
    assert conv != released


def test_pictures_are_drawn_from_what_runs_left(smoke: Path, tmp_path: Path) -> None:
    runs = [{"experiment": SMOKE.name, "method": method, "seed": 1000} for method in SMOKE.methods]
    pictures = draw({"runs": runs}, smoke)
    assert [picture.name for picture in pictures] == [f"{SMOKE.name}-boxes", f"{SMOKE.name}-anchors"]
    assert all(picture.caption and picture.figure.axes for picture in pictures)
    assert draw({"runs": runs}, tmp_path) == []


@pytest.mark.usefixtures("fork_server")
def test_a_killed_run_ends_as_an_undisturbed_one(smoke: Path, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "coordconv")
    for fault in (Fault(f"{MODULE}.optimise", 4), Fault(f"{MODULE}.evaluate", 1, "after")):
        assert faults.run_with(spec, fault) == -9, f"{fault} was not reached"
    assert faults.run_with(spec) == 0
    assert toy.end_state(spec.folder) == toy.end_state(spec_of(smoke, "coordconv").folder)
    record = read_record(spec.folder)
    assert record is not None and record["resumed"]


# ---------------------------------------------------------------- the module


def detection(**changes: Any) -> Detection:
    """A module ready to train, outside of a Trainer."""
    config = Config.of({**SMOKE.config, **changes})
    module = Detection(config, sources("digits", 0, None), 0, Execution())
    module.configure_optimizers()
    module.on_fit_start()
    with torch.no_grad():  # moved anchors differ between images
        module.model.transform.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.05)
    return module


def gradients(module: Detection, index: torch.Tensor, keys: torch.Tensor) -> list[torch.Tensor]:
    losses = module.losses(module.train_set, index, keys)
    return list(torch.autograd.grad((losses.boxes + losses.scores).mean(), list(module.model.parameters())))


@pytest.mark.parametrize("network", ["conv", "coordconv"])
def test_a_batch_is_the_accumulation_of_single_images(network: str) -> None:
    module = detection(network=network)
    index, keys = torch.tensor([3, 9, 0, 17]), torch.tensor([103, 109, 100, 117])
    whole = gradients(module, index, keys)
    single = [gradients(module, index[i : i + 1], keys[i : i + 1]) for i in range(4)]
    for together, alone in zip(whole, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(together, torch.stack(alone).mean(0), rtol=1e-4, atol=1e-5)


def test_the_weight_penalty_is_the_sum_of_squared_kernels() -> None:
    draws = {"index": torch.tensor([1, 2]), "keys": torch.tensor([1, 2])}
    plain, penalised = (detection(weight_penalty=penalty) for penalty in (0.0, 0.5))
    expected = 0.5 * sum((kernel**2).sum() for name, kernel in plain.model.named_parameters() if "weight" in name)
    difference = penalised.optimise(draws)["loss"] - plain.optimise(draws)["loss"]
    torch.testing.assert_close(difference, expected.detach(), rtol=1e-5, atol=1e-4)


def test_where_ranges_of_steps_are_cut_changes_nothing() -> None:
    one, other = detection(), detection()
    one.training_step((0, 6))
    for bounds in ((0, 1), (1, 4), (4, 6)):
        other.training_step(bounds)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert Stream(0, "order").epochs(range(6), 4, 32).unique().numel() == 24


# ---------------------------------------------------------------- experiments and claims


def test_settings_are_checked() -> None:
    with pytest.raises(TypeError, match="unknown settings: strides"):
        Config.of({"strides": 2})
    for name, value in (("network", "deconv"), ("steps", 0), ("learning_rate", 0), ("beta2", 1.0), ("clip", -1)):
        with pytest.raises(ValueError, match=name):
            Config.of({name: value})
    with pytest.raises(ValueError, match="shown"):
        Config.of({"test_images": 3, "shown_images": 4})
    paper = Config()
    assert (paper.batch_size, paper.beta1, paper.beta2, paper.weight_penalty) == (1, 0.9, 0.99, 0)
    assert (paper.train_images, paper.test_images) == (9000, 1000)


def test_every_switch_is_in_smoke_and_every_config_is_known() -> None:
    tried: dict[str, set[Any]] = {}
    every: list[Experiment] = [experiment for some in experiments.EXPERIMENTS.values() for experiment in some]
    for experiment in every:
        for changes in experiment.methods.values():
            config = Config.of({**experiment.config, **changes})
            if experiment is SMOKE:
                for field in fields(config):
                    tried.setdefault(field.name, set()).add(getattr(config, field.name))
    assert {"conv", "coordconv"} == tried["network"] and {"valid", "same"} == tried["padding"]
    assert len(tried["clip"]) == len(tried["binarised"]) == len(tried["coordinate_range"]) == 2
    sweep = experiments.EXPERIMENTS["paper"][0]
    assert len(sweep.methods) == 12 and Config.of({**sweep.config, **sweep.methods["conv-lr0.0001"]}).batch_size == 1


def rows(preset: str, values: dict[str, float]) -> list[dict[str, Any]]:
    """Finished runs of three seeds with a little spread; values: Test IOU-average by method."""
    found = []
    for experiment in experiments.EXPERIMENTS[preset]:
        for seed in range(3):
            for method, value in values.items():
                metrics = {**dict.fromkeys(SCORES, value + 0.0001 * seed), experiments.TRAIN: 0.7}
                found.append(
                    {
                        "experiment": experiment.name,
                        "method": method,
                        "seed": 1000 + seed,
                        "status": "finished",
                        "stale": False,
                    }
                    | {"metrics": metrics}
                )
    return found


def test_claims_read_the_runs_of_their_presets() -> None:
    for preset, some in experiments.EXPERIMENTS.items():
        known = {(experiment.name, method) for experiment in some for method in experiment.methods}
        for claim in experiments.CLAIMS:
            if preset in claim.rules:
                assert set(claim.rules[preset].quantity.requires) <= known
    values = {"conv": 0.14, "coordconv": 0.141, "conv-released": 0.149, "coordconv-released": 0.185}
    claims = {claim.id: claim for claim in experiments.CLAIMS}
    measured, verdict = judge_runs(claims["C9.released"].rules["cpu"], rows("cpu", values))
    assert judge_runs(claims["C9"].rules["cpu"], rows("cpu", values))[1].verdict == "held"
    assert verdict.verdict == "held" and measured is not None and measured.mean == pytest.approx(1.241, abs=2e-3)
    measured, verdict = judge_runs(claims["C9.digits.artefact"].rules["cpu"], rows("cpu", values))
    assert verdict.verdict == "held" and measured is not None and measured.mean == pytest.approx(23.4, abs=0.2)
    even = values | {"coordconv-released": 0.149}
    assert judge_runs(claims["C9.artefact"].rules["cpu"], rows("cpu", even))[1].verdict == "failed"
    assert set(experiments.METRICS) == set(SCORES) and Config().median_of == 5  # as METRICS say
    untrained = [dict(row, metrics={**row["metrics"], experiments.TRAIN: 0.3}) for row in rows("cpu", values)]
    assert judge_runs(claims["C9"].rules["cpu"], untrained)[1].verdict == "inconclusive"
