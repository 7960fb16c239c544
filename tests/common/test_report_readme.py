"""Generated blocks of READMEs: drawn from the committed results, the same on every draw, and checked."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.report import record_plots
from common.report.pictures import Picture, new_figure
from common.report.readme import check, redraw, render

HAND = "# MixMatch\n\nWritten by hand.\n\n"


def block(name: str, body: str = "") -> str:
    return f"<!-- generated: {name} -->\n{body}<!-- end generated -->\n"


def document(preset: str = "quick", verdict: str = "held") -> dict[str, Any]:
    claim = {
        "id": "C1", "statement": "MixMatch is better", "source": "Table 5", "quantity": "difference", "unit": "points",
        "resampling": "seed", "better": "higher", "gate": 8.0, "null": 0.0, "paper_value": 36.4, "paper_std": None,
        "verified": True, "measured": {"mean": 15.0, "low": 11.9, "high": 18.1, "n": 3, "attempted": 3},
        "stand_in": True, "data": "digits", "verdict": verdict, "note": "",
    }  # fmt: skip
    runs = [
        {
            "experiment": "digits", "method": "mixmatch", "seed": seed, "status": "finished", "stale": False,
            "error": None,
            "metrics": {"test_error": 11.0 + seed % 3}, "seconds": 8.0, "samples_per_second": 4000.0, "stacked": 1,
            "resumed": [], "key": "k", "provenance": {
                "commit": "a", "dirty": False, "code": "c", "data": {}, "versions": {}, "hardware": "2 cores",
            },
        }
        for seed in (1000, 1001, 1002)
    ]  # fmt: skip
    metric = {"unit": "percent", "better": "lower", "split": "test", "evaluation": "last", "weights": None,
              "examples": 500, "description": "wrong images"}  # fmt: skip
    return {
        "schema_version": 1, "paper": "mixmatch", "title": "MixMatch: A Holistic Approach", "preset": preset,
        "provenance": {"commit": "a", "dirty": False, "command": "make", "versions": {}}, "data": {"digits": "digits"},
        "metrics": {"test_error": metric}, "runs": runs,
        "claims": [claim, {**claim, "id": "C2", "verdict": "not run", "measured": None}],
    }  # fmt: skip


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    folder = tmp_path / "papers" / "mixmatch"
    (folder / "results").mkdir(parents=True)
    (folder / "reproduce.py").touch()
    (folder / "results" / "quick.json").write_text(json.dumps(document()), encoding="utf-8")
    rows = [{"case": "train step", "device": "cpu", "threads": 2, "unit": "s", "fast": 0.6, "plain": 1.3, "ratio": 2.17,
             "floor": None, "equivalence": 1e-6}]  # fmt: skip
    bench = {"schema_version": 1, "paper": "mixmatch", "provenance": {}, "rows": rows}
    (folder / "results" / "bench.json").write_text(json.dumps(bench), encoding="utf-8")
    (folder / "README.md").write_text(
        HAND + block("results quick") + "\nBetween.\n\n" + block("bench") + block("results gpu") + "\nEnd.\n",
        encoding="utf-8",
    )
    return folder


def test_redraw_fills_the_blocks_keeps_the_rest_and_is_idempotent(paper):
    readme = paper / "README.md"
    assert len(check(readme)) == 3
    assert redraw(readme) is True
    drawn = readme.read_text(encoding="utf-8")
    assert drawn.startswith(HAND) and "\nBetween.\n" in drawn and drawn.endswith("\nEnd.\n")
    for words in ("1 held, 1 not run", "15.0 [11.9, 18.1] points, n = 3", "| mixmatch | 12.0 ± 2.5 |", "2.17 x",
                  "(stand-in)", "1 claim not run with this preset"):  # fmt: skip
        assert words in drawn, words
    assert drawn.count("*Not recorded yet.*") == 1
    assert redraw(readme) is False and readme.read_text(encoding="utf-8") == drawn
    assert check(readme) == []


def test_check_names_the_block_that_was_edited_by_hand_or_outdated(paper):
    readme = paper / "README.md"
    redraw(readme)
    drawn = readme.read_text(encoding="utf-8")
    readme.write_text(drawn.replace("12.0 ± 2.5", "2.0 ± 2.5"), encoding="utf-8")
    (problem,) = check(readme)
    assert "README.md:5: the block 'results quick' differs" in problem
    readme.write_text(drawn.replace("Between.", "Edited outside."), encoding="utf-8")
    assert check(readme) == []
    (paper / "results" / "gpu.json").write_text(json.dumps(document("gpu", "failed")), encoding="utf-8")
    assert ["'results gpu'" in problem for problem in check(readme)] == [True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: results quick -->\n", "has no '<!-- end generated -->'"),
        ("<!-- end generated -->\n", "has no partner"),
        (block("results quick", "<!-- generated: bench -->\n"), "has no partner"),
        (block("verdicts"), "no block is called 'verdicts'"),
        (block("results"), "no block is called 'results'"),
        (block("results uda quick"), "there is no paper in"),
    ],
)
def test_broken_markers_and_unknown_blocks_are_one_clear_line(paper, text, message):
    readme = paper / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        redraw(readme)
    assert readme.read_text(encoding="utf-8") == text
    (problem,) = check(readme)
    assert message in problem and "\n" not in problem


def test_missing_readme_and_other_schema_version(paper):
    assert "does not exist" in check(paper / "MISSING.md")[0]
    (paper / "results" / "quick.json").write_text(json.dumps(document() | {"schema_version": 9}), encoding="utf-8")
    assert "quick.json has schema_version 9" in check(paper / "README.md")[0]


def test_the_root_readme_lists_papers_and_can_show_one(paper):
    root = paper.parents[1]
    other = root / "papers" / "uda"
    other.mkdir()
    (other / "reproduce.py").touch()
    (other / "README.md").write_text("# UDA | data augmentation\n", encoding="utf-8")
    (paper / "results" / "cpu.json").write_text(json.dumps(document("cpu", "failed")), encoding="utf-8")
    lines = render("papers", root).splitlines()
    assert lines[0] == "| Paper | Name | `quick` | `cpu` |"
    link = "[MixMatch: A Holistic Approach](papers/mixmatch/README.md)"
    assert lines[2] == f"| {link} | `mixmatch` | 1 held, 1 not run | 1 failed, 1 not run |"
    assert lines[3] == (
        "| [UDA \\| data augmentation](papers/uda/README.md) | `uda` | not recorded yet | not recorded yet |"
    )
    assert render("results mixmatch quick", root) == render("results quick", paper)
    assert render("bench mixmatch", root) == render("bench", paper)
    assert render("papers", other) == "*Not recorded yet.*"


def test_recorded_plots_are_shown_replace_the_old_ones_and_have_equal_bytes(paper, tmp_path):
    results = document()
    curves = tmp_path / "quick.curves.csv"
    rows = "".join(f"digits,mixmatch,{s},{t},{t},{t},{n},{50 / (t + 1)}\n" for s in (1000, 1001) for t in (0, 9)
                   for n in ("test_error", "loss"))  # fmt: skip
    curves.write_text("experiment,method,seed,step,samples,seconds,name,value\n" + rows, encoding="utf-8")
    assert render("plots quick", paper) == "*Not recorded yet.*"
    folder = paper / "results" / "plots"
    (folder / "quick").mkdir(parents=True)
    (folder / "quick" / "old.png").touch()
    first = {path.name: path.read_bytes() for path in record_plots(results, curves, folder)}
    second = {path.name: path.read_bytes() for path in record_plots(results, curves, folder)}
    assert first == second and set(first) == {"forest.png", "digits--test_error.png"}
    assert {path.name for path in (folder / "quick").iterdir()} == set(first)
    parts = render("plots quick", paper).split("\n\n")
    assert parts[0] == "![forest](results/plots/quick/forest.png)" and parts[1].startswith("*Each row has a scale")
    assert parts[2] == "![digits--test_error](results/plots/quick/digits--test_error.png)" and len(parts) == 4
    own = [Picture("samples", "Four *samples*.", new_figure(2, 1))]
    record_plots(results, curves, folder, own)
    parts = render("plots quick", paper).split("\n\n")
    assert parts[2:4] == [
        "![picture--samples](results/plots/quick/picture--samples.png)", "*Four \\*samples\\*.*"
    ]  # fmt: skip
    record_plots(results, curves, folder)
    assert {path.name for path in (folder / "quick").iterdir()} == set(first)
    at_root = render("plots mixmatch quick", paper.parents[1])
    assert "![forest](papers/mixmatch/results/plots/quick/forest.png)" in at_root
