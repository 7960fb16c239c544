"""One smoke run: every form of the method, environment and measurement, from the command to the report."""

import pytest
from rich.console import Console
from safetensors.torch import load_file

from common import results
from common.reproduce import Options, reproduce
from papers.diayn.reproduce import PAPER

pytestmark = pytest.mark.usefixtures("fork_server")


def test_smoke_runs_every_method_and_reports(tmp_path):
    with open(tmp_path / "output.txt", "w", encoding="utf-8") as output:
        console = Console(file=output, width=200)
        status = reproduce(PAPER, Options(preset="smoke", out=str(tmp_path)), console)
        text = (tmp_path / "output.txt").read_text()
        assert status == 0, text
    folder = tmp_path / "diayn" / "smoke"
    document = results.read(folder / "results.json")
    preset = PAPER.preset("smoke")
    runs = {(row["experiment"], row["method"]): row for row in document["runs"]}
    assert set(runs) == {(e.name, method) for e in preset.experiments for method in e.methods}
    assert {row["status"] for row in runs.values()} == {"finished"}, [r["error"] for r in runs.values() if r["error"]]
    assert {name for row in runs.values() for name in row["metrics"]} <= set(PAPER.metrics)
    assert {claim["verdict"] for claim in document["claims"]} == {"not run"}
    assert (folder / "report.html").stat().st_size > 10_000
    checkpoints = sorted(path.name for path in (folder / "skills/hallway/seed-1000/checkpoints").iterdir())
    assert checkpoints == ["step-3.pt", "step-3.sha256", "step-4.pt", "step-4.sha256"]
    assert runs["skills", "k20"]["stacked"] > 1 == runs["skills", "hallway"]["stacked"]

    learnt = {name: row["metrics"] for (experiment, name), row in runs.items() if experiment == "skills"}
    assert learnt["k20"]["effective_skills"] == pytest.approx(3)
    assert 0 < learnt["k20"]["coverage"] <= 0.5 and 0 <= learnt["k20"]["accuracy"] <= 1
    assert "skills_outside" in learnt["hallway"] and "solved_ever" in learnt["mountain-car"]
    assert runs["imitation", "diayn"]["metrics"]["best_distance"] <= runs["imitation", "diayn"]["metrics"]["distance"]
    assert runs["hierarchy", "k20"]["metrics"]["hierarchy_return"] < 0
    assert runs["gridworld", "n2"]["metrics"]["gap_ratio"] == 1

    def weights(method):
        return load_file(folder / "skills" / method / "seed-1000" / "weights.safetensors")

    # What differs in nothing but how it learns ends elsewhere.
    trained = {method: weights(method) for method in ("k20", "k20-low-entropy", "features")}
    assert not trained["k20"]["policy.w1"].equal(trained["k20-low-entropy"]["policy.w1"])
    assert not trained["k20"]["classifier.w1"].equal(trained["features"]["classifier.w1"])
