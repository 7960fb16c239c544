"""The experiments of the `paper` preset on miniatures of their data sets: two tiny steps of the real networks
(CIFAR-100 takes a small one, since the large network has its own case)."""

import dataclasses

import pytest

from common.data import locate
from common.paper import expand
from common.runs import Data, Execution, execute
from papers.mixmatch.reproduce import PAPER
from tests import miniatures

TINY = {
    "steps": 2,
    "batch_size": 2,
    "unlabeled_batch_size": 2,
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "steps_per_call": 2,
    "evaluation_batch_size": 20,
}
CASES = {
    "cifar10-250": (miniatures.write_cifar10, {"num_labeled": 20}),
    "cifar10-all": (miniatures.write_cifar10, {}),
    "svhn-extra-250": (miniatures.write_svhn, {"num_labeled": 20}),
    "svhn-cnn13-250": (miniatures.write_svhn, {"num_labeled": 20}),
    "cifar10-large-4000": (miniatures.write_cifar10, {"num_labeled": 20}),
    "cifar100-large-10000": (miniatures.write_cifar100, {"num_labeled": 100, "model": "wrn-10-1"}),
    "stl10-1000": (miniatures.write_stl10, {"num_labeled": 5}),
}


@pytest.mark.parametrize("name", CASES)
def test_full_scale_experiments_run_on_miniatures(name, tmp_path):
    write, changes = CASES[name]
    write(tmp_path / "data")
    preset = PAPER.preset("paper")

    def located(source):
        found = locate(source.name, tmp_path / "data", source.split)
        return Data(source.name, found.label, found.fingerprint)

    method = next(iter(preset.experiment(name).methods))
    (spec,) = expand(
        PAPER, preset, tmp_path / "runs", Execution(), located, [1000], [method], [name], tmp_path / "data"
    )
    record = execute(dataclasses.replace(spec, config={**spec.config, **TINY, **changes}))
    assert record["status"] == "finished", record["error"]
    assert 0 <= record["metrics"]["test_error"] <= 100
