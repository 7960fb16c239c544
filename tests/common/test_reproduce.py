"""From a paper to a report: the grid, what is trained, what stands in the results, and the commands beside it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from common import reproduce, results, runs
from common.curves import read_rows
from common.errors import UserError
from common.paper import DataSource, Experiment, Metric, Need, Paper, Preset, expand, parse_seeds
from common.reproduce import Options, choose_execution, merge_bench
from common.runs import Data, Execution, RunSpec
from common.schemas import validate
from tests import toy
from tests.conftest import Answer, Command

QUICK = toy.PAPER.preset("quick")
NOTHING = {"cuda": 0, "mps": False, "amx_bf16": False}


def grid(preset: str = "quick", **chosen: Any) -> list[RunSpec]:
    def locate(source: DataSource) -> Data:
        return Data(source.name, source.name, "fingerprint")

    return expand(toy.PAPER, toy.PAPER.preset(preset), Path("runs"), Execution(), locate, **chosen)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# ---------------------------------------------------------------- seeds


@given(st.integers(1, 200))
def test_a_count_is_the_first_confirming_seeds(count: int) -> None:
    assert parse_seeds(str(count)) == list(range(1000, 1000 + count))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, unique=True))
def test_a_list_is_taken_as_it_is_unless_it_mixes(seeds: list[int]) -> None:
    text = ",".join(map(str, seeds)) + ","
    if min(seeds) < 1000 <= max(seeds):
        with pytest.raises(UserError, match="mix exploring"):
            parse_seeds(text)
    else:
        assert parse_seeds(text) == seeds and parse_seeds(f" {text.replace(',', ' , ')}") == seeds


@given(st.text(max_size=12))
def test_any_text_is_seeds_or_one_line_that_names_it(text: str) -> None:
    try:
        seeds = parse_seeds(text)
    except UserError as error:
        assert "seeds" in str(error)
    else:
        assert seeds is None or (seeds and all(0 <= seed < 2**32 for seed in seeds))


@pytest.mark.parametrize("text", ["0", "-1", "five", "1.5", "1e3", "1000-", "3;4", "[1,2]", "0x10", "1003", "10" * 8])
def test_bad_counts_of_seeds(text: str) -> None:
    with pytest.raises(UserError, match="seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("text", [",", ",,", "1,1", "1,x", "-1,2", "1000,-1", "4294967296,", "1,1000"])
def test_bad_lists_of_seeds(text: str) -> None:
    with pytest.raises(UserError, match="seeds"):
        parse_seeds(text)


def test_no_seeds_is_the_presets_own_number() -> None:
    assert parse_seeds(None) is None and parse_seeds("") is None


# ---------------------------------------------------------------- the grid


def test_the_grid_is_experiments_times_seeds_times_methods() -> None:
    names = [spec.name for spec in grid()]
    plain = [f"plain/{method}/seed-{seed}" for seed in (1000, 1001, 1002) for method in ("good", "bad")]
    chain = [f"chain/{method}/seed-{seed}" for seed in (1000, 1001) for method in ("first", "second", "third")]
    assert names == plain + chain


def test_a_run_carries_its_experiments_settings() -> None:
    spec = grid(preset="trained", data_dir=Path("data"), tensorboard=True)[0]
    assert spec.function == toy.TRAIN and spec.config == {**toy.SETTINGS, "dropout": 0.5} and spec.preset == "trained"
    assert spec.folder == Path("runs/toy/trained/line/wet/seed-1000")
    assert spec.data_dir == Path("data") and spec.tensorboard
    assert grid()[0].function == toy.PLAIN and grid("data")[0].data == (Data("digits", "digits", "fingerprint"),)


def _paper(*experiments: Experiment, **settings: Any) -> Paper:
    return replace(toy.PAPER, presets=(Preset("quick", experiments, "", ""),), **settings)


def _expand(paper: Paper, **chosen: Any) -> list[RunSpec]:
    locate: Callable[[DataSource], Data] = lambda source: Data(source.name, "", "")  # noqa: E731
    return expand(paper, paper.presets[0], Path("runs"), Execution(device="cuda", threads=7), locate, **chosen)


def test_threads_function_and_exclusiveness_are_the_experiments() -> None:
    of = replace(toy.of_plain("e", a={}, b={}), threads=2, exclusive=True, functions={"b": "tests.toy:threads"})
    specs = _expand(_paper(of, Experiment("f", {"a": {}})), seeds=[1000])
    assert [spec.function for spec in specs] == [toy.PLAIN, "tests.toy:threads", toy.TRAIN]
    assert [spec.execution for spec in specs] == [Execution(device="cuda", threads=threads) for threads in (2, 2, 1)]
    assert [spec.exclusive for spec in specs] == [True, True, False]


def test_a_methods_settings_go_over_the_experiments_and_are_checked() -> None:
    checked = []
    paper = _paper(
        Experiment("e", {"a": {"x": 1}, "b": {}}, {"x": 0, "y": 0}, function=toy.PLAIN), check_config=checked.append
    )
    assert [spec.config for spec in _expand(paper, seeds=[1000])] == [{"x": 1, "y": 0}, {"x": 0, "y": 0}] == checked


def test_a_filter_pulls_in_what_is_needed_of_the_same_seed() -> None:
    specs = grid(methods=["third"], seeds=[1005])
    assert [spec.name for spec in specs] == [f"chain/{name}/seed-1005" for name in ("first", "second", "third")]
    assert specs[2].needs["before"] is specs[1] and specs[1].needs["before"] is specs[0]


def test_a_need_may_be_of_a_fixed_seed_and_is_one_run() -> None:
    source = toy.of_plain("source", expert={})
    target = replace(toy.of_plain("target", pupil={}), needs={"pupil": {"expert": Need("source", "expert", 1000)}})
    specs = _expand(_paper(target, source), seeds=[1000, 1001], experiments=["target"])
    assert [spec.name for spec in specs] == [
        "source/expert/seed-1000",
        *(f"target/pupil/seed-{n}" for n in (1000, 1001)),
    ]
    assert specs[1].needs["expert"] is specs[2].needs["expert"] is specs[0]


def test_filters_keep_the_papers_order() -> None:
    names = [spec.name for spec in grid(methods=["bad", "good"], seeds=[1001], experiments=["plain"])]
    assert names == ["plain/good/seed-1001", "plain/bad/seed-1001"]


@pytest.mark.parametrize("chosen", [{"methods": ["wrong"]}, {"experiments": ["wrong"]}, {"methods": ["good", "wrong"]}])
def test_unknown_names_are_answered_with_the_known_ones(chosen: dict[str, list[str]]) -> None:
    with pytest.raises(UserError, match=r"no (method|experiment) 'wrong' here; there is .*(good|plain)"):
        grid(**chosen)


def test_exploring_seeds_have_a_folder_of_their_own() -> None:
    spec = grid(seeds=[999])[0]
    assert spec.folder == Path("runs/toy/quick-explore/plain/good/seed-999") and spec.preset == "quick-explore"


def test_a_metric_is_not_selected_on_the_split_that_it_reports() -> None:
    with pytest.raises(ValueError, match="selected on it"):
        Metric("percent", "lower", "test", "best on test", "error")
    assert Metric("percent", "lower", "test", "best on validation", "error").split == "test"
    with pytest.raises(ValueError, match="higher or lower"):
        Metric("percent", "up", "test", "last", "error")


# ---------------------------------------------------------------- device and precision


def execution(
    options: Options | None = None, *, gpu: bool = False, bf16: bool = False, name: str = "quick", **found: Any
) -> Execution:
    preset = Preset(name, (), "", "", needs_gpu=gpu, bf16=bf16)
    return choose_execution(preset, options or Options(), {**NOTHING, **found})


def test_small_presets_stay_on_the_cpu_in_float32_unless_told() -> None:
    assert execution(cuda=2, amx_bf16=True) == Execution()
    assert execution(cuda=2, name="paper", bf16=True) == Execution(device="cuda", precision="bfloat16", compile=True)
    assert execution(mps=True, name="paper", bf16=True) == Execution(device="mps")
    assert execution(Options(device="cuda"), cuda=1) == Execution(device="cuda", compile=True)


def test_bfloat16_on_a_cpu_only_with_the_units_for_it() -> None:
    assert execution(bf16=True, name="cpu").precision == "float32"
    assert execution(bf16=True, name="cpu", amx_bf16=True).precision == "bfloat16"
    assert execution(bf16=False, name="cpu", amx_bf16=True).precision == "float32"
    assert execution(Options(precision="bfloat16")).precision == "bfloat16"


def test_compile_and_determinism_as_asked() -> None:
    assert execution(Options(compile="yes")).compile
    assert not execution(Options(compile="no", device="cuda"), cuda=1).compile
    assert execution(Options(deterministic=True)).deterministic


def test_a_preset_for_a_gpu_runs_without_one_only_when_told() -> None:
    with pytest.raises(UserError, match=r"made for a GPU and none was found.*DEVICE=cpu"):
        execution(gpu=True)
    assert execution(Options(device="cpu"), gpu=True).device == "cpu"
    for device in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"no {device} device on this machine"):
            execution(Options(device=device))


# ---------------------------------------------------------------- everything, once


@pytest.fixture
def first(papers: Command) -> Answer:
    """The quick preset of the toy, reproduced in runs/."""
    return papers("reproduce", "toy", "--experiments", "plain")


def test_one_command_from_claims_to_verdicts(papers: Command, first: Answer, toy_repository: Path) -> None:
    assert first.status == 0 and first.err == ""
    assert "[6/6]" in first.out and "C1 held" in first.out and "report: runs/toy/quick/report.html" in first.out
    folder = Path("runs/toy/quick")
    document = results.read(folder / "results.json")
    rows = document["runs"]
    assert [row["metrics"] for row in rows] == [
        {"score": score + digit / 100} for score in (2, 1) for digit in range(3)
    ]
    assert {row["status"] for row in rows} == {"finished"} and not any(row["stale"] for row in rows)
    claims = {claim["id"]: claim for claim in document["claims"]}
    assert claims["C1"]["verdict"] == "held" and claims["C1"]["measured"]["n"] == 3
    assert claims["C2"]["verdict"] == "not run"
    assert document["data"] == {"plain": "plain, made up", "chain": "chain, made up"}
    assert list(document["metrics"]) == ["score"]
    for name in ("report.html", "report.md", "quick.curves.csv.gz"):
        assert (folder / name).stat().st_size > 0

    # Again: nothing is trained, the same results.
    again = papers("reproduce", "toy", "--experiments", "plain")
    assert again.status == 0 and "6 of 6 runs are there already" in again.out and "[1/" not in again.out
    assert read(folder / "results.json") == document

    # The report alone, from the folders.
    for name in ("report.html", "report.md", "results.json"):
        (folder / name).unlink()
    drawn = papers("report", "toy")
    assert drawn.status == 0 and "C1 held" in drawn.out and (folder / "report.html").exists()
    assert read(folder / "results.json")["runs"] == document["runs"]

    # Recorded, verified, and found out when edited.
    recorded = papers("record", "toy")
    paper = toy_repository / "papers" / "toy"
    assert recorded.status == 0 and "redrew papers/toy/README.md" in recorded.out
    assert (paper / "results" / "quick.json").read_bytes() == (folder / "results.json").read_bytes()
    gathered = "quick.curves.csv.gz"
    assert (paper / "results" / gathered).read_bytes() == (folder / gathered).read_bytes()
    assert "C1" in (paper / "README.md").read_text() and "toy" in (toy_repository / "README.md").read_text()
    assert papers("verify").status == papers("verify", "toy").status == 0
    (paper / "README.md").write_text((paper / "README.md").read_text().replace("held", "reproduced"))
    answer = papers("verify")
    assert answer.status == 1 and "README.md" in answer.out and "1 problems" in answer.out
    document["claims"][0]["verdict"] = "failed"
    (paper / "results" / "quick.json").write_text(json.dumps(document))
    assert papers("verify").status == 1 and "verdicts differ" in papers("verify").out


def test_seeds_are_added_and_every_confirming_run_stays_in_the_results(papers: Command, undrawn: None) -> None:
    assert papers("reproduce", "toy", "--experiments", "plain", "--seeds", "2").status == 0
    answer = papers("reproduce", "toy", "--experiments", "plain", "--methods", "good", "--seeds", "1002,1007")
    assert answer.status == 0 and "[2/2]" in answer.out
    found = [(run["method"], run["seed"]) for run in read(Path("runs/toy/quick/results.json"))["runs"]]
    assert found == [("good", seed) for seed in (1000, 1001, 1002, 1007)] + [("bad", 1000), ("bad", 1001)]


def test_exploring_is_not_judged(papers: Command) -> None:
    answer = papers("reproduce", "toy", "--experiments", "plain", "--seeds", "0,4", "--out", "elsewhere")
    assert answer.status == 0 and "nothing is judged" in answer.out and "elsewhere/toy/quick-explore" in answer.out
    folder = Path("elsewhere/toy/quick-explore")
    assert read(folder / "plain/good/seed-4/run.json")["status"] == "finished"
    assert not list(folder.glob("*.json")) and not Path("elsewhere/toy/quick").exists() and not Path("runs").exists()


def test_nothing_vanishes_and_divergence_is_no_error(papers: Command, undrawn: None) -> None:
    answer = papers("reproduce", "toy", "--preset", "faults", "--methods", "good,diverge,nan,explode")
    assert answer.status == 0 and answer.err == ""
    rows = {run["method"]: run for run in read(Path("runs/toy/faults/results.json"))["runs"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good": "finished",
        "diverge": "diverged",
        "nan": "diverged",
        "explode": "diverged",
    }
    assert rows["explode"]["error"] == "train_loss is not finite at step 12"
    assert read_rows(Path("runs/toy/faults/faults.curves.csv.gz"))  # those of the run that diverged
    # What failed is there with its reason, and the status says so.
    answer = papers("reproduce", "toy", "--preset", "faults")
    assert answer.status == 1
    rows = {run["method"]: run for run in read(Path("runs/toy/faults/results.json"))["runs"]}
    assert len(rows) == 5 and rows["fail"]["status"] == "failed"
    assert rows["fail"]["error"] == "ValueError: broken on purpose"


def test_the_claimed_methods_divergence_fails_the_claim(papers: Command, undrawn: None) -> None:
    answer = papers("reproduce", "toy", "--preset", "faults", "--methods", "nan")
    claim = read(Path("runs/toy/faults/results.json"))["claims"][1]
    assert answer.status == 0 and claim["id"] == "C2" and claim["verdict"] == "failed" and "diverged" in claim["note"]


def test_what_needs_a_diverged_run_fails_also_when_the_run_was_there_already(
    papers: Command, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = replace(QUICK.experiment("chain"), methods={"first": {"do": "diverge"}, "second": {}}, seeds=1)
    paper = replace(toy.PAPER, presets=(replace(QUICK, experiments=(chain,)),))
    monkeypatch.setattr("common.command.load_paper", lambda name: paper)
    for _ in range(2):
        assert papers("reproduce", "toy").status == 1
        second = read(Path("runs/toy/quick/chain/second/seed-1000/run.json"))
        assert second["status"] == "failed"
        assert second["error"] == "it needs chain/first/seed-1000, which did not finish"


def test_a_run_of_older_code_is_marked_stale(papers: Command, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    papers("reproduce", "toy", "--experiments", "plain", "--seeds", "1")
    monkeypatch.setattr(results, "code_hash", lambda function: "changed since")
    answer = papers("report", "toy")
    document = read(Path("runs/toy/quick/results.json"))
    assert answer.status == 0 and [run["stale"] for run in document["runs"]] == [True, True]
    monkeypatch.setattr(runs, "code_hash", lambda function: "changed since")
    # Trained again, since the key is another one; the old runs are kept aside and not counted.
    monkeypatch.setattr(reproduce, "train", _train_here)
    assert papers("reproduce", "toy", "--experiments", "plain", "--seeds", "1").status == 0
    document = read(Path("runs/toy/quick/results.json"))
    assert [run["stale"] for run in document["runs"]] == [False, False]
    assert Path("runs/toy/quick/plain/good/seed-1000.old-1/run.json").exists()


def _train_here(planned: Any, *_: Any) -> Any:
    """Runs in this process, where the code hash is patched."""
    from common.scheduler import Outcome

    return Outcome({spec.folder: runs.execute(spec)["status"] for spec in planned.specs})


def test_the_time_limit_ends_with_1_and_resumes(
    papers: Command, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = replace(toy.of_plain("plain", good={"do": "wait"}, bad={}), seeds=1)
    paper = replace(toy.PAPER, presets=(replace(QUICK, experiments=(slow,)),))
    monkeypatch.setattr("common.command.load_paper", lambda name: paper)
    answer = papers("reproduce", "toy", "--time_limit", "1.5", "--engine", "serial")
    assert answer.status == 1 and "stopped (time limit): the same command resumes" in answer.out
    rows = read(Path("runs/toy/quick/results.json"))["runs"]
    assert [(row["method"], row["status"]) for row in rows] == [("good", "stopped")]


def test_serial_parallel_and_in_process_runs_have_equal_bits(papers: Command, undrawn: None, tmp_path: Path) -> None:
    states = []
    for engine in (("--engine", "serial"), ("--parallel", "2")):
        out = str(tmp_path / engine[1])
        assert papers("reproduce", "toy", "--preset", "trained", "--out", out, *engine).status == 0
        folders = sorted((tmp_path / engine[1] / "toy" / "trained" / "line").glob("*/seed-*"))
        states.append([toy.end_state(folder) for folder in folders])
    here = [replace(spec, folder=tmp_path / "here" / spec.method / f"seed-{spec.seed}") for spec in grid("trained")]
    for spec in here:
        runs.execute(spec)
    states.append([toy.end_state(spec.folder) for spec in sorted(here, key=lambda spec: str(spec.folder))])
    assert len(states[0]) == 4 and states[0] == states[1] == states[2]
    assert len({state["module"] for state in states[0]}) == 4


# ---------------------------------------------------------------- data


def test_an_experiment_without_data_is_one_line_and_the_others_go_on(
    papers: Command, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.miniatures import WRITERS

    WRITERS["mnist"](tmp_path / "data")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("common.data.location._reachable", lambda *_: False)
    answer = papers("reproduce", "toy", "--preset", "data")
    assert answer.status == 0 and answer.err == "" and "[2/2]" in answer.out
    missing = [line for line in answer.out.splitlines() if line.startswith("not run: ")]
    # MNIST is there although it stands beside a missing set in the experiment before.
    assert len(missing) == 1 and "cifar10" in missing[0] and "DATA_DIR" in missing[0]
    rows = read(Path("runs/toy/data/results.json"))["runs"]
    assert [row["experiment"] for row in rows] == ["built-in", "present"]
    assert list(rows[1]["provenance"]["data"]) == ["mnist"] and rows[1]["provenance"]["data"]["mnist"]


# ---------------------------------------------------------------- results and bench


def test_rejudging_changes_nothing_and_finds_what_was_changed(papers: Command, undrawn: None) -> None:
    papers("reproduce", "toy", "--experiments", "plain")
    document = results.read(Path("runs/toy/quick/results.json"))
    assert results.rejudge(toy.PAPER, document) == document
    for run in document["runs"]:
        if run["method"] == "good":
            run["metrics"]["score"] = run["seed"] % 10 / 100
    assert results.rejudge(toy.PAPER, document)["claims"][0]["verdict"] == "failed"


def row(case: str, device: str = "cpu", threads: int = 1, fast: float = 1.0) -> dict[str, Any]:
    numbers = {"fast": fast, "plain": None, "ratio": None, "floor": None, "equivalence": None}
    return {"case": case, "device": device, "threads": threads, "unit": "ms", **numbers}


def bench(*rows: dict[str, Any], **provenance: Any) -> dict[str, Any]:
    return {"schema_version": 1, "paper": "toy", "provenance": provenance, "rows": list(rows)}


def test_bench_rows_are_replaced_by_case_device_and_threads() -> None:
    old = bench(row("step"), row("step", "cuda H200"), row("step", threads=2), row("other"), commit="old")
    merged = merge_bench(old, bench(row("step", fast=0.5), row("new"), commit="new"))
    validate(merged, "bench")
    found = {(r["case"], r["device"], r["threads"]): r["fast"] for r in merged["rows"]}
    assert found == {
        ("step", "cpu", 1): 0.5,
        ("step", "cuda H200", 1): 1.0,
        ("step", "cpu", 2): 1.0,
        ("other", "cpu", 1): 1.0,
        ("new", "cpu", 1): 1.0,
    }
    assert merged["provenance"] == {"commit": "new"}
    assert merge_bench(None, bench(row("step")))["rows"] == [row("step")]


def test_record_merges_bench_rows_and_needs_no_results(papers: Command, toy_repository: Path) -> None:
    for fast in (1.0, 2.0):
        Path("runs/toy").mkdir(parents=True, exist_ok=True)
        Path("runs/toy/bench.json").write_text(json.dumps(bench(row("step", fast=fast), row(f"only {fast}"))))
        assert papers("record", "toy").status == 0
    stored = read(toy_repository / "papers/toy/results/bench.json")["rows"]
    assert {(r["case"], r["fast"]) for r in stored} == {("step", 2.0), ("only 1.0", 1.0), ("only 2.0", 1.0)}


def test_console_output_has_no_absolute_path(papers: Command, undrawn: None, tmp_path: Path) -> None:
    answer = papers("reproduce", "toy", "--experiments", "plain", "--seeds", "1", "--out", "runs")
    assert str(tmp_path) not in answer.out
    text = Path("runs/toy/quick/results.json").read_text()
    assert str(tmp_path) not in text


def test_the_console_may_be_left_out(toy_repository: Path, fork_server: None, undrawn: None) -> None:
    options = Options(experiments="plain", seeds="1", methods="good")
    assert reproduce.reproduce(toy.PAPER, options) == reproduce.reproduce(toy.PAPER, options, Console(quiet=True)) == 0
