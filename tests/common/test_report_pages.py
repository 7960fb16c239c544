"""The report of a results document: what must be in it, no network, and odd input that must not break it."""

import copy
import csv
import gzip
import io
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.errors import UserError
from common.report import plots, print_verdicts, read_curves, tables, text, write_report
from common.report.curves import average
from common.schemas import validate

METRIC = {
    "unit": "percent", "better": "lower", "split": "test", "evaluation": "last", "weights": "EMA", "examples": 500,
    "description": "wrong of 500 images",
}  # fmt: skip


def run(method: str, seed: int, error: float, **changes: Any) -> dict[str, Any]:
    return {
        "experiment": "digits", "method": method, "seed": seed, "status": "finished", "stale": False, "error": None,
        "metrics": {"test_error": error}, "seconds": 8.0, "samples_per_second": 4000.0, "stacked": 1, "resumed": [],
        "key": "k", "provenance": {
            "commit": "abc123", "dirty": False, "code": "c0de", "data": {"digits": "f00"},
            "versions": {"torch": "2.13.0"}, "hardware": "2 cores",
        },
    } | changes  # fmt: skip


def claim(identity: str, verdict: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": identity, "statement": f"Sentence {identity}", "source": "Table 5", "unit": "points",
        "quantity": "supervised minus mixmatch", "resampling": "seed", "better": "higher", "gate": 8.0, "null": 0.0,
        "paper_value": 36.4, "paper_std": 2.1, "verified": True, "stand_in": True, "verdict": verdict, "note": "",
        "measured": {"mean": 15.0, "low": 11.9, "high": 18.1, "n": 3, "attempted": 3},
        "data": "digits, 2 labels per class",
    } | changes  # fmt: skip


def not_run(identity: str, **changes: Any) -> dict[str, Any]:
    fields = "quantity unit resampling better gate null paper_value paper_std measured stand_in data"
    empty: dict[str, Any] = dict.fromkeys(fields.split())
    return claim(identity, "not run", **empty, note="preset quick does not test it") | changes


@pytest.fixture
def results() -> dict[str, Any]:
    methods = {"supervised": 26.0, "mixmatch": 11.0}
    document = {
        "schema_version": 1, "paper": "mixmatch", "title": "MixMatch: A Holistic Approach", "preset": "quick",
        "provenance": {"commit": "abc123", "dirty": True, "command": "make reproduce PAPER=mixmatch", "versions": {}},
        "data": {"digits": "digits, 2 labels per class"}, "metrics": {"test_error": METRIC},
        "runs": [run(method, 1000 + i, error + i) for method, error in methods.items() for i in range(3)],
        "claims": [
            not_run("C2", verified=False),
            claim("C1", "held"),
            claim("A4", "inconclusive", paper_value=None, paper_std=None, verified=False, note="12 seeds would do"),
            claim("A7", "failed", better="lower", gate=[0.9, 1.1], null=None, unit="1"),
        ],
    }  # fmt: skip
    validate(document, "results")
    return document


def write_curves(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("experiment", "method", "seed", "step", "samples", "seconds", "name", "value"))
    writer.writerows(rows)
    path.write_bytes(gzip.compress(buffer.getvalue().encode()))
    return path


@pytest.fixture
def curves(tmp_path: Path, results: dict[str, Any]) -> Path:
    rows = [
        ("digits", r["method"], r["seed"], step, step * 32, step / 50, name, 90 / (1 + step) + r["seed"] % 7)
        for r in results["runs"]
        for step in (0, 50, 100)
        for name in ("test_error", "loss")
    ]
    return write_curves(tmp_path / "quick.curves.csv.gz", rows)


BENCH = {
    "schema_version": 1, "paper": "mixmatch", "provenance": {}, "rows": [
        {"case": "train step", "device": "cpu", "threads": 2, "unit": "s", "fast": 0.6, "plain": 1.3, "ratio": 2.17,
         "floor": 0.5, "equivalence": 1e-6},
        {"case": "alone", "device": "cuda", "threads": 1, "unit": "ms", "fast": 3.0, "plain": None, "ratio": None,
         "floor": None, "equivalence": None},
    ],
}  # fmt: skip


class Page(HTMLParser):
    """Collects what a browser would load, the ids, the tags that stay open, and the cells of each row."""

    void = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, markup: str):
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.void:
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action") and value:
                self.loads.append(value)
            if name == "id" and value:
                self.ids.append(value)


def page_of(path: Path) -> tuple[str, Page]:
    markup = path.read_text(encoding="utf-8")
    page = Page(markup)
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert all(load.startswith("#") for load in page.loads), page.loads
    assert not re.search(r"https?:|@import|url\((?!#)|<script|<link", markup)
    assert not {"script", "iframe", "object"} & page.tags
    return markup, page


def table_widths(markdown: str) -> list[set[int]]:
    """For each table of a Markdown text, how many cells its rows have."""
    widths, block = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            block.append(len(re.findall(r"(?<!\\)\|", line)) - 1)
        elif block:
            widths.append(set(block))
            block = []
    return widths


def test_report_shows_verdicts_results_plots_and_provenance(results, curves, tmp_path):
    page = write_report(results, curves, BENCH, tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    markup, _ = page_of(page)
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for content in (markup, markdown):
        for words in (
            "MixMatch: A Holistic Approach", "36.4 ± 2.1", "15.0 [11.9, 18.1] points, n = 3", "≥ 8, null 0",
            "between 0.9 and 1.1", "quick: digits, 2 labels per class (stand-in)", "12 seeds would do",
            "3 claims were judged; about 0.075 would be expected to hold by chance", "27.0 ± 2.5", "12.0 ± 2.5",
            "test_error (%, lower is better)", "in the claim †", "recalled, not checked",
            "abc123 with uncommitted changes",
            "make reproduce PAPER=mixmatch PRESET=quick", "train step", "2.17 x", "wrong of 500 images", "digits f00",
        ):  # fmt: skip
            assert words in content, words
    assert "1 held, 1 failed, 1 inconclusive, 1 not run" in markdown
    # What was judged comes first; the rest is folded away.
    assert markdown.index("Sentence A7") < markdown.index("<details>") < markdown.index("Sentence C2")
    assert markup.index("Sentence A7") < markup.index("<details>") < markup.index("Sentence C2")
    assert markup.count("<svg") == 3 and "prefers-color-scheme: dark" in markup and "var(--ink)" in markup
    files = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert files == {"forest.png", "digits--test_error.png", "digits--loss.png"}
    for file in files:
        assert f"plots/{file}" in markdown
        assert (tmp_path / "out" / "plots" / file).read_bytes().startswith(b"\x89PNG")
    assert all(len(width) == 1 for width in table_widths(markdown))


def test_report_of_nothing_but_claims_that_were_not_run(results, tmp_path):
    results.update(claims=[not_run("C1"), not_run("C2")], runs=[], metrics={}, data={})
    markup, _ = page_of(write_report(results, None, None, tmp_path))
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for content in (markup, markdown):
        assert "No claim was judged." in content
        assert "2 claims not run with this preset" in content
        assert "No run is recorded." in content
    assert "<svg" not in markup and not (tmp_path / "plots").exists()


def test_a_missing_curve_file_is_no_error_and_a_damaged_one_is_named(results, curves, tmp_path):
    assert read_curves(tmp_path / "nowhere.csv.gz") == {}
    whole = curves.read_bytes()
    flipped = whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
    for damaged in (whole[: len(whole) // 2], b"not gzip", gzip.compress(b"other,header\n1,2\n"), flipped):
        curves.write_bytes(damaged)
        with pytest.raises(UserError, match=r"quick\.curves\.csv\.gz is damaged"):
            write_report(results, curves, None, tmp_path / "out")


def test_plain_and_gzip_curves_read_alike_and_drop_what_is_not_finite(curves, tmp_path):
    plain = tmp_path / "plain.csv"
    plain.write_bytes(gzip.decompress(curves.read_bytes()) + b"digits,mixmatch,1000,150,1,1,loss,nan\n")
    assert read_curves(plain) == read_curves(curves)
    assert read_curves(curves)["digits", "loss"]["mixmatch"][1001][0] == 90.0


def test_one_seed_has_a_mean_and_no_interval(results, tmp_path):
    results["runs"] = [run("mixmatch", 1000, 11.0625)]
    single = {"mean": 15.0, "low": None, "high": None, "n": 1, "attempted": 1}
    results["claims"] = [claim("C1", "inconclusive", measured=single, note="n = 1 is never enough")]
    curves = write_curves(tmp_path / "c.csv.gz", [("digits", "mixmatch", 1000, 100, 1, 1, "test_error", 11.0)])
    write_report(results, curves, None, tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| mixmatch | 11.06 | 1 | 8.0 s | 4,000 |" in markdown
    assert "15 points, n = 1 |" in markdown


def test_runs_that_did_not_finish_and_stale_ones_are_visible(results, curves, tmp_path):
    results["runs"][0].update(status="diverged", error="the loss is not finite at step 312", metrics={})
    results["runs"][1].update(status="failed", error="OSError: a | pipe\nand <b>more</b>", metrics={"test_error": 99.0})
    results["runs"][3].update(stale=True)
    markup, _ = page_of(write_report(results, curves, None, tmp_path))
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for content in (markup, markdown):
        assert "supervised seed 1000 diverged: the loss is not finite at step 312" in content
        assert "1 of 3 (1 diverged, 1 failed)" in content
        assert "3 (stale)" in content
        assert "1 run trained by code other than today's (stale): mixmatch 1000" in content.replace("&#39;", "'")
    assert "OSError: a \\| pipe and &lt;b&gt;more&lt;/b&gt;" in markdown
    assert "&lt;b&gt;more" in markup and "<b>more" not in markup
    # The metric of a run that failed does not count.
    assert "| supervised | 28 |" in markdown
    console = Console(file=io.StringIO(), width=80)
    print_verdicts(results, None, console)
    assert "digits supervised seed 1000 diverged: the loss is not finite" in console.file.getvalue()


def test_hostile_names_break_no_table_and_no_page(results, tmp_path):
    nasty = '<b>"x" | `y` $z$ [a](javascript:b) *c* \\ _d_'
    for row in results["runs"]:
        row["method"] = nasty if row["method"] == "mixmatch" else row["method"]
        row["experiment"] = "<img src=x>"
    results["claims"][1].update(statement=f"{nasty}\nsecond line", note="a | b\n\nc", quantity=nasty, data="<i>")
    results["data"] = {"<img src=x>": "<u>"}
    curves = write_curves(
        tmp_path / "c.csv.gz", [("<img src=x>", nasty, s, 1, 1, 1, "test_error", 3.0) for s in (1000, 1001)]
    )
    markup, page = page_of(write_report(results, curves, None, tmp_path / "out"))
    assert not {"img", "i", "u"} & page.tags
    assert "&lt;b&gt;" in markup
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert all(len(width) == 1 for width in table_widths(markdown))
    assert not re.search(r"<(?!/?details>|/?summary>)", markdown)
    assert "](javascript" not in markdown


def test_another_schema_version_is_refused(results, tmp_path):
    with pytest.raises(UserError, match="results document has schema_version 2"):
        write_report({**results, "schema_version": 2}, None, None, tmp_path)
    with pytest.raises(UserError, match="bench document has schema_version None"):
        write_report(results, None, {"rows": []}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rewriting_gives_the_same_bytes_and_leaves_no_temporary_file(results, curves, tmp_path):
    def write() -> dict[str, bytes]:
        write_report(results, curves, BENCH, tmp_path / "out")
        return {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    first = write()
    assert write() == first and not [name for name in first if name.endswith(".tmp")]


def test_average_has_a_t_band_and_keeps_seeds_that_ended_early_in_sight():
    seeds = {seed: {0: 10.0 + seed, 100: 5.0 + seed} for seed in range(3)} | {3: {0: 11.0, 50: 40.0}}
    line = average(seeds, unfinished=[3])
    assert line.steps == [0, 50, 100] and line.mean == [11.0, (8.5 * 3 + 40) / 4, 6.0]
    assert line.high[2] - 6.0 == pytest.approx(4.302653 * 1 / 3**0.5, rel=1e-6)
    assert line.ends == [(50, 40.0)]
    pair = average({0: {0: 1.0}, 1: {0: 3.0}})
    assert (pair.low, pair.mean, pair.high) == ([1.0], [2.0], [3.0])


def test_labels_are_spread_without_overlap_and_in_order():
    placed = plots.spread_out([0.1, 0.1, 0.11, 0.9, 1.0], 0.06)
    assert all(b - a >= 0.06 - 1e-12 for a, b in pairwise(placed))
    assert placed[0] >= 0 and placed[-1] <= 1 and placed[3] == pytest.approx(0.9)


def test_methods_keep_their_style_and_eighteen_are_distinct():
    styles = plots.method_styles([f"m{i}" for i in range(18)])
    assert len({(color, str(style)) for color, style in styles.values()}) == 18
    assert plots.method_styles(["m0", "m1"])["m1"] == styles["m1"]


def test_a_sweep_of_sixty_methods_labels_the_best_eight(results, tmp_path):
    results["runs"] = [run(f"lr{i}", 1000, i) for i in range(60)]
    grouped = {("digits", "test_error"): {f"lr{i}": {1000: {0: 90.0, 10: float(i)}} for i in range(60)}}
    figure = plots.learning_curves(results, grouped, "digits", "test_error")
    assert figure is not None
    assert {words.get_text() for words in figure.axes[0].texts} == {f"lr{i}" for i in range(8)}


def test_forest_turns_every_row_so_that_right_is_better(results):
    lower = claim("C1.250", "held", better="lower", gate=20.0, null=30.0, paper_value=11.08, paper_std=0.9,
                  measured={"mean": 12.0, "low": 10.0, "high": 14.0, "n": 3, "attempted": 3})  # fmt: skip
    censored = claim("C6", "inconclusive", better="lower", gate=400.0, null=None, paper_value=None, paper_std=None,
                     measured={"mean": 350.0, "low": 310.0, "high": None, "n": 3, "attempted": 3})  # fmt: skip
    unknown = claim("C7", "inconclusive", measured={"mean": None, "low": None, "high": None, "n": 1, "attempted": 3})
    results["claims"] = [lower, censored, unknown, not_run("C2")]
    figure = plots.forest(results)
    assert figure is not None
    axes = figure.axes[0]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert len(means) == 2 and all(0 < mean < 1 for mean in means)
    arrow = next(line for line in axes.lines if line.get_marker() == "<")
    assert arrow.get_xdata()[0] < 0
    words = [words.get_text() for words in axes.texts]
    assert "350 [310, ∞] points, n = 3" in words and "12.0 [10.0, 14.0] points, n = 3" in words
    assert plots.forest({**results, "claims": [not_run("C1")]}) is None


def test_plain_lines_where_there_is_no_terminal(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO(), width=40)
    print_verdicts(results, tmp_path / "runs" / "mixmatch" / "report.html", console)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "C1 held  paper 36.4  ours 15.0 [11.9, 18.1] points n=3  (digits, 2 labels per class, stand-in)"
    assert lines[1].startswith("A4 inconclusive  paper —  ours") and lines[1].endswith("12 seeds would do")
    assert "mixmatch quick: 1 held, 1 failed, 1 inconclusive, 1 not run" in lines
    assert lines[-1] == "report: runs/mixmatch/report.html"


def test_a_table_on_a_terminal(results, tmp_path):
    results["claims"][1]["statement"] = "odd [markup] [/b]"
    console = Console(file=io.StringIO(), width=140, force_terminal=True, color_system=None)
    print_verdicts(results, None, console)
    shown = console.file.getvalue()
    assert "odd [markup] [/b]" in shown and "36.4 ± 2.1" in shown and "All on quick: digits" in shown
    assert "†" in shown and "report:" not in shown


def test_numbers_are_rounded_by_their_spread():
    assert text.with_spread(14.7321, 3.2456) == "14.7 ± 3.2"
    assert text.with_spread(0.98342, 0.0123) == "0.983 ± 0.012"
    assert text.with_spread(51234.2, 1200.0) == "51,234 ± 1,200"
    assert text.with_spread(11.08, None) == "11.08"
    assert text.with_spread(-0.001, 0.2) == "0.00 ± 0.20"
    assert text.interval({"mean": 350, "low": 310, "high": None}) == "350 [310, ∞]"
    assert text.interval({"mean": 0.0, "low": 0.0, "high": 0.0}) == "0"
    assert [text.plain(x) for x in (11.08, 0.97, 8, None, 2.5e-7)] == ["11.08", "0.97", "8", "—", "2.5e-07"]
    durations = ["0.034 s", "8.0 s", "120 s", "10.0 min", "2.5 h"]
    assert [text.duration(x) for x in (0.034, 8.0, 119.6, 600, 9000)] == durations
    assert text.rate(4213.0) == "4,210" and text.rate(0.5) == "0.5"


def test_metrics_that_are_summaries_or_censored(results):
    values = [{"low": 400.0, "high": None}, 350.0, 360.0]
    assert tables.over_seeds([{"mean": 3.0, "std": 1.0, "n": 9}, 5.0]) == "4 ± 13"
    assert tables.over_seeds(values).endswith("∞]")
    assert tables.over_seeds(values[:1]) == "≥ 400"
    assert tables.over_seeds([]) == "—"
    before = copy.deepcopy(results)
    tables.experiment_table(results, "digits")
    assert results == before


def test_what_never_moves_and_what_is_not_shown_has_no_curve_and_no_column(results):
    steps = {0: 1.0, 10: 1.0}
    results["runs"] = [run(method, seed, 20) for method in ("mixmatch", "supervised") for seed in (1000, 1001)]
    flat = {("digits", "test_error"): {method: {1000: steps, 1001: steps} for method in ("mixmatch", "supervised")}}
    assert plots.learning_curves(results, flat, "digits", "test_error") is None
    flat["digits", "test_error"]["supervised"] = {1000: {0: 1.0, 10: 2.0}}
    assert plots.learning_curves(results, flat, "digits", "test_error") is not None
    assert "test_error" in tables.experiment_table(results, "digits").header[1]
    results["metrics"]["test_error"]["shown"] = False
    assert plots.curve_names(flat, results, "digits") == ([], [])
    assert "test_error" not in " ".join(tables.experiment_table(results, "digits").header)
