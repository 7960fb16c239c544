"""One smoke run: every pattern, option, generated data set and measurement, from the command to the report."""

import pytest
from rich.console import Console

from common import results
from common.reproduce import Options, reproduce
from papers.sparse_transformer.reproduce import PAPER

pytestmark = pytest.mark.usefixtures("fork_server")


def test_smoke_runs_every_method_and_reports(tmp_path):
    with open(tmp_path / "output.txt", "w", encoding="utf-8") as output:
        console = Console(file=output, width=200)
        status = reproduce(PAPER, Options(preset="smoke", out=str(tmp_path)), console)
        text = (tmp_path / "output.txt").read_text()
        assert status == 0, text
    folder = tmp_path / "sparse_transformer" / "smoke"
    document = results.read(folder / "results.json")
    preset = PAPER.preset("smoke")
    runs = {(row["experiment"], row["method"]): row for row in document["runs"]}
    assert set(runs) == {(e.name, method) for e in preset.experiments for method in e.methods}
    assert {row["status"] for row in runs.values()} == {"finished"}, [r["error"] for r in runs.values() if r["error"]]
    assert {name for row in runs.values() for name in row["metrics"]} <= set(PAPER.metrics)
    assert {claim["verdict"] for claim in document["claims"]} == {"not run"}
    assert (folder / "report.html").stat().st_size > 10_000
    checkpoints = sorted(path.name for path in (folder / "images/strided/seed-1000/checkpoints").iterdir())
    assert checkpoints == ["step-3.pt", "step-3.sha256", "step-4.pt", "step-4.sha256"]

    speed = {name: row["metrics"] for (experiment, name), row in runs.items() if experiment == "speed"}
    for metrics in speed.values():
        assert metrics["largest_difference"] < 5e-6
        assert metrics["slope"]["n"] == metrics["masked_ratio_256"]["n"] == 2
    assert 0.05 < runs["length", "network-512"]["metrics"]["peak_gb"] < 5
    assert 0 < runs["context", "context-12"]["metrics"]["context_bits"] <= 7.5
    assert runs["memory", "recompute"]["metrics"]["layer_tensors"] == 1
    assert runs["memory", "stored"]["metrics"]["layer_tensors"] > 10
    assert runs["step-time", "ratio"]["metrics"]["strided_speedup"]["mean"] > 0
