"""One smoke run: every part, network and option of the paper, from the command to the report."""

from rich.console import Console

from common import results
from common.reproduce import Options, reproduce
from papers.coordconv.reproduce import PAPER


def test_smoke_runs_every_method_and_reports(tmp_path, fork_server):
    with open(tmp_path / "output.txt", "w", encoding="utf-8") as output:
        console = Console(file=output, width=200)
        status = reproduce(PAPER, Options(preset="smoke", out=str(tmp_path)), console)
        text = (tmp_path / "output.txt").read_text()
        assert status == 0, text
        # Everything is settled: the second command trains nothing.
        assert reproduce(PAPER, Options(preset="smoke", out=str(tmp_path)), console) == 0
    folder = tmp_path / "coordconv" / "smoke"
    document = results.read(folder / "results.json")
    preset = PAPER.preset("smoke")
    runs = {(row["experiment"], row["method"]): row for row in document["runs"]}
    assert set(runs) == {(e.name, method) for e in preset.experiments for method in e.methods}
    assert {row["status"] for row in runs.values()} == {"finished"}, [r["error"] for r in runs.values() if r["error"]]
    assert not any(row["stale"] for row in runs.values())
    assert {claim["verdict"] for claim in document["claims"]} == {"not run"}
    assert (folder / "report.html").stat().st_size > 10_000
    checkpoints = sorted(
        path.name for path in (folder / "classification-uniform/coordconv/seed-1000/checkpoints").iterdir()
    )
    assert checkpoints == ["step-6.pt", "step-6.sha256", "step-8.pt", "step-8.sha256"]
    assert (folder / "classification-uniform/coordconv/seed-1000/weights.safetensors").exists()
    assert len(list((folder / "plots").glob("*.png"))) >= 10
    text = (tmp_path / "output.txt").read_text()
    assert f"{len(runs)} of {len(runs)} runs are there already" in text
