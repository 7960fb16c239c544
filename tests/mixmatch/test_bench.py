"""The fast paths equal the plain ones on the same input and draws; no test asserts a time."""

from dataclasses import replace

import pytest
import torch

from common.bench import Setting
from common.runs import Execution
from papers.mixmatch import bench
from papers.mixmatch.bench import PlainImages, PlainStep, example_split, largest_difference, make_module, step_difference
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
    torch.testing.assert_close(module.unlabeled.gather(index, module.augmentation, drawn), plain, rtol=0, atol=1e-6)


def test_a_plain_step_is_a_fast_step(split):
    assert step_difference(CONFIG, split, "cpu") < 1e-4


def test_so_are_many_steps_in_double_precision(split):
    # In float64 Adam has no rounding to amplify, so whole trainings can be compared.
    module = make_module(CONFIG, split, Execution())
    plain = PlainStep(module)
    for model in (module.model, module.average, plain.model, plain.average):
        model.double()
    gather, batches = module.unlabeled.gather, plain.batches
    module.unlabeled.gather = lambda *arguments: gather(*arguments).double()
    labeled_gather = module.labeled.gather
    module.labeled.gather = lambda *arguments: labeled_gather(*arguments).double()
    # The images themselves agree to float32's rounding (the test above); here both paths read the fast ones.
    plain.batches = lambda draws: (
        module.labeled.gather(draws["index"], module.augmentation, draws["augmentation"]),
        batches(draws)[1].double(),
        module.unlabeled.gather(draws["unlabeled_index"], module.augmentation, draws["unlabeled_augmentation"])
        .unflatten(0, (2, 8)),
    )
    module.training_step((0, 4))
    plain.training_step((0, 4))
    assert largest_difference(module.model.parameters(), plain.model.parameters()) < 1e-9
    assert largest_difference(module.average.parameters(), plain.average.parameters()) < 1e-9
    assert largest_difference(module.model.buffers(), plain.model.buffers()) < 1e-9


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
    assert row["equivalence"] < 1e-4 and row["floor"] is None
