"""The fast paths equal the plain ones from the same start; no test asserts a time."""

import pytest

from common.bench import Setting
from common.runs import Execution
from papers.coordconv import bench

SMALL = Setting(Execution(), "cpu (test)", small=True)


@pytest.mark.parametrize("case", bench.FULL)
def test_a_plain_step_is_a_fast_step(case):
    row = bench.network_step(SMALL, case, bench.FULL[case])
    assert row["equivalence"] < 1e-9 and row["ratio"] > 0 and row["case"].endswith("(smoke)")


def test_rows_of_the_sweep(monkeypatch):
    monkeypatch.setattr(bench, "cores", lambda: 1)
    shape = "deconv m=1 k=2, 32x32"
    monkeypatch.setattr(bench, "SWEEP", {shape: bench.SWEEP[shape]})
    stack, whole = bench.sweep(SMALL)
    assert stack["case"] == f"sweep, stack: {shape} (smoke)" and whole["case"] == "sweep (smoke)"
    assert whole["equivalence"] == stack["equivalence"] < 1e-9 and whole["ratio"] >= 1.0


def test_configurations_of_a_sweep_differ_and_share_a_shape():
    configs = bench.configurations(bench.SWEEP["deconv m=1 k=2, 32x32"])
    assert len(set(configs)) == bench.RUNS and len({config.shape for config in configs}) == 1
