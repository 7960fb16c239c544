"""MixMatch's own runs resume exactly: killed in a step, while saving and while evaluating, they end bit-equal."""

from pathlib import Path

import pytest

from common.paper import expand
from common.runs import Data, Execution, RunSpec, read_record
from papers.mixmatch.reproduce import PAPER
from tests import faults, toy
from tests.faults import Fault

pytestmark = pytest.mark.usefixtures("fork_server")
MODULE = "papers.mixmatch.module:SemiSupervised"
# Eight steps in ranges of two, a checkpoint after each, evaluations at 4 and 8.
CHAINS = {
    "mixmatch": [Fault(f"{MODULE}.optimise", 2), Fault("os:replace", 5), Fault(f"{MODULE}.evaluate", 1, "after")],
    "mean-teacher": [Fault(f"{MODULE}.optimise", 6, "after"), Fault(f"{MODULE}.evaluate", 1)],
    "ict": [Fault(f"{MODULE}.training_step", 4, "after")],
}


def smoke(method: str, root: Path, experiment: str = "digits-20") -> RunSpec:
    """One run of the smoke preset below root."""
    specs = expand(
        PAPER,
        PAPER.preset("smoke"),
        root,
        Execution(),
        lambda source: Data(source.name, source.name, ""),
        methods=[method],
        experiments=[experiment],
    )
    return specs[-1]


@pytest.mark.parametrize("method", CHAINS)
def test_a_killed_run_ends_as_an_undisturbed_one(method: str, tmp_path: Path) -> None:
    whole, spec = smoke(method, tmp_path / "whole"), smoke(method, tmp_path / "killed")
    assert faults.run_with(whole) == 0
    for fault in CHAINS[method]:
        assert faults.run_with(spec, fault) == -9, f"{fault} was not reached"
    assert faults.run_with(spec) == 0
    assert toy.end_state(spec.folder) == toy.end_state(whole.folder)
    record = read_record(spec.folder)
    assert record is not None and record["status"] == "finished" and record["resumed"]
