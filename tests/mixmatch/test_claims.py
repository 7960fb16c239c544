"""The claims are the spec's rows, and the presets' grids can answer them."""

import re

import pytest

from common.claims import judge_all
from papers.mixmatch.claims import CLAIMS
from papers.mixmatch.config import Config
from papers.mixmatch.reproduce import ABLATIONS, PAPER, VARIANTS

ROWS = [
    *(
        [
            "C1",
            "C1b",
            "C1c",
            "C1d",
            "C1e",
            "C1f",
            "C1g",
            "C2",
            "C2b",
            "C2c",
            "C2d",
            "C2e",
            "C2f",
            "C3",
            "C3b",
            "C3c",
            "C3d",
            "C3e",
            "C3f",
            "C4",
            "C5",
            "C6",
            "C7",
        ]
    ),
    *(f"A{i}" for i in range(11)),
]


def test_every_row_of_the_spec_has_its_entry_and_ids_are_unique():
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids)
    assert set(ROWS) <= set(ids)


@pytest.mark.parametrize("preset", PAPER.presets, ids=lambda preset: preset.name)
def test_rules_read_runs_that_the_preset_makes_and_promise_its_seeds(preset):
    runs = {(e.name, method): e for e in preset.experiments for method in e.methods}
    for claim in CLAIMS:
        rule = claim.rules.get(preset.name)
        if rule is None:
            continue
        for run in rule.quantity.requires:
            assert run in runs, (claim.id, run)
            assert rule.seeds == runs[run].seeds, claim.id


def test_every_row_has_a_rule_at_full_scale():
    without = [claim.id for claim in CLAIMS if claim.id in ROWS and "paper" not in claim.rules]
    assert without == []


def test_numbers_in_the_rules_stand_in_the_statements():
    for claim in CLAIMS:
        rule = claim.rules.get("paper")
        if rule is not None and rule.paper_protocol:
            numbers = [float(number) for number in re.findall(r"\d+\.\d+", claim.statement)]
            assert rule.paper_value in numbers, claim.id
            assert rule.paper_std in numbers, claim.id


def test_gates_of_the_stand_ins_are_the_specs():
    gates = {claim.id: claim.rules["quick"].gate for claim in CLAIMS if "quick" in claim.rules}
    assert gates == {"C1": 8, "C1c": 8, "C6": 0, "A1": 0, "A4": 6, "A6": 1, "A7": 1, "C1.textures": 0}
    assert CLAIMS[0].rules["paper"].gate == pytest.approx(11.08 + 2 * 0.87)


def test_ablations_point_the_way_the_paper_found():
    claims = {claim.id: claim for claim in CLAIMS}
    assert claims["A1"].rules["paper"].paper_value == pytest.approx(17.09 - 11.80)
    # K=3 came out better than K=2 at 250 labels.
    assert claims["A2"].rules["paper"].quantity.requires[0][1] == "mixmatch"
    assert claims["A2"].rules["paper"].paper_value == pytest.approx(0.25)


def test_nothing_run_is_judged_not_run():
    assert {row["verdict"] for row in judge_all(CLAIMS, "quick", [])} == {"not run"}


def test_paper_preset_has_the_papers_hyper_parameters():
    preset = PAPER.preset("paper")

    def config(experiment, method="mixmatch"):
        found = preset.experiment(experiment)
        return Config.of({**found.config, **found.methods[method]})

    cifar10 = config("cifar10-250")
    assert (cifar10.steps, cifar10.batch_size, cifar10.learning_rate, cifar10.ema_decay) == (2**20, 64, 0.002, 0.999)
    assert (cifar10.num_views, cifar10.temperature, cifar10.alpha, cifar10.unlabeled_weight) == (2, 0.5, 0.75, 75)
    assert (cifar10.ramp_steps, cifar10.weight_decay, cifar10.median_of, cifar10.evaluate_every) == (
        16384,
        0.02,
        20,
        1024,
    )
    assert config("svhn-250").unlabeled_weight == 250
    assert not config("svhn-250").flip
    assert config("svhn-extra-250").alpha == 0.25
    assert config("cifar10-large-4000").weight_decay == 0.04
    assert config("cifar100-large-10000").unlabeled_weight == 150
    assert (config("stl10-1000").unlabeled_weight, config("stl10-1000").reflect_crop) == (50, 12)
    assert (config("cifar10-ablation-250").unlabeled_weight, config("cifar10-ablation-250").ramp_steps) == (100, 2048)
    teacher = config("svhn-extra-250", "mean-teacher")
    assert (teacher.unlabeled_weight, teacher.weight_decay, teacher.ramp_steps) == (180, 0.02, int(0.4 * 2**20))
    assert config("svhn-250", "pi-model").weight_decay == 0.2


def test_each_switch_changes_one_setting():
    for name, change in {**ABLATIONS, **VARIANTS}.items():
        (field,) = change
        assert getattr(Config.of(change), field) != getattr(Config(), field), name


def test_a_setting_nobody_reads_is_refused():
    with pytest.raises(TypeError, match="temprature"):
        PAPER.check_config({"temprature": 1.0})
