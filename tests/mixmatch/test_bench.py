"""The fast paths equal the plain ones on the same input and draws; no test asserts a time."""

from dataclasses import replace

import pytest
import torch

from common.bench import Setting
from common.runs import Execution
from papers.mixmatch import bench
from papers.mixmatch.bench import PlainImages, PlainStep, example_split, make_module, step_difference
from papers.mixmatch.config import Config

SMALL = Setting(Execution(), "cpu (test)", small=True)
CONFIG = Config(model="wrn-10-1", batch_size=8, unlabeled_batch_size=8)


@pytest.fixture(scope="module")
def split():
    return example_split(64, 16)


def test_the_plain_images_are_the_fast_ones(split):
    module = make_module(CONFIG, split, Execution())
    drawn = module.draw(range(1))["unlabeled_augmentation"][0]
    assert len(drawn[..., 0].unique()) == 2 and len(drawn[..., 1:3].unique()) == 9
    index = torch.arange(8)
    images = PlainImages(split.unlabeled, split.scale, CONFIG.reflect_crop)
    plain = torch.cat([images.batch(index, view) for view in drawn])
    assert torch.equal(module.unlabeled.gather(index, module.augmentation, drawn), plain)


def test_a_plain_step_is_a_fast_step(split):
    assert step_difference(replace(CONFIG, batch_size=32, unlabeled_batch_size=32), split, steps=4) < 1e-9


def test_their_losses_agree_in_single_precision(split):
    module = make_module(CONFIG, split, Execution())
    plain = PlainStep(module)
    step = CONFIG.ramp_steps
    loss = module.training_step((step, step + 1))["loss"]
    assert float(loss) == pytest.approx(plain.training_step((step, step + 1)), rel=1e-5)


@pytest.mark.parametrize("case", [bench.augmentation, bench.draws, bench.ema_update, bench.evaluation])
def test_rows_of_the_cheap_cases(case):
    row = case(SMALL)
    assert row["equivalence"] < 1e-6 and row["ratio"] > 0 and row["case"].endswith("(smoke)")


def test_one_forward_for_all_batches_gives_the_gradients_of_separate_ones():
    for small_images in (True, False):
        assert bench.ghost_batch_norm(SMALL, small_images)["equivalence"] < 1e-5


def test_lightning_computes_the_same_however_steps_are_grouped():
    step, overhead = bench.digits_steps(SMALL)
    assert step["equivalence"] == 0.0 and overhead["plain"] is None


def test_a_training_step_row(monkeypatch):
    monkeypatch.setattr(bench, "example_split", lambda: example_split(64, 16))
    row = bench.train_step(SMALL)
    assert row["equivalence"] < 1e-9 and row["floor"] is None
