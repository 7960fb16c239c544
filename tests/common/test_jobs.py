"""Stacked jobs: which runs are trained together, that it changes nothing, and that nothing is lost on the way."""

import io
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from common import jobs, runs, stacking
from common.engines import Event, LocalEngine
from common.errors import UserError
from common.files import lock
from common.jobs import StackSpec, arrange
from common.paper import Stacking
from common.progress import Display
from common.runs import RunSpec, Stackable, read_record
from common.scheduler import schedule
from tests import faults, toy
from tests.conftest import Command

Make = Callable[..., RunSpec]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(method, seed=1000, shape="a", size=3, **config): a stackable run of the toy."""

    def of(method: str, seed: int = 1000, shape: str = "a", size: int | None = 3, **config: Any) -> RunSpec:
        folder = tmp_path / "toy" / "stacked" / "stack" / method / f"seed-{seed}"
        spec = toy.spec_of(folder.parent, "tests.toy:train_one", seed, **toy.SETTINGS, **config)
        how = Stackable("tests.toy:train_stack", shape, size, "tests.toy:seconds_of_stack")
        return replace(spec, preset="stacked", experiment="stack", folder=folder, stackable=how)

    return of


def fixed(spec: RunSpec, alike: int) -> int:
    assert spec.stackable is not None and spec.stackable.size is not None
    return spec.stackable.size


def names(found: list[jobs.JobSpec]) -> list[str]:
    return [" ".join(f"{run.method}{run.seed % 10}" for run in job.runs) for job in found]


# ---------------------------------------------------------------- which runs go together


def test_runs_of_one_shape_are_stacked_evenly_and_in_order(make: Make) -> None:
    specs = [
        make(method, seed, shape) for seed in (1000, 1001) for method, shape in (("a", "x"), ("b", "y"), ("c", "x"))
    ]
    assert names(arrange(specs, 1, fixed)) == ["a0 c0", "b0 b1", "a1 c1"]  # four of x: two twos rather than 3 and 1
    # Two slots are both put to use, though one stack would hold both.
    assert names(arrange(specs[1::3], 2, fixed)) == ["b0", "b1"]
    assert names(arrange(specs[:2], 1, fixed)) == ["a0", "b0"]
    assert names(arrange(specs, 1, lambda *_: 1)) == ["a0", "b0", "c0", "a1", "b1", "c1"]


def test_only_like_runs_are_stacked(make: Make) -> None:
    a, b = make("a"), make("b")
    assert len(arrange([a, b], 1, fixed)) == 1
    for other in (
        replace(b, execution=replace(b.execution, threads=2)),
        replace(b, stackable=None),
        replace(b, exclusive=True),
        replace(b, experiment="other"),
        replace(b, needs={"before": a}),
    ):
        assert len(arrange([a, other], 1, fixed)) == 2


def test_a_run_that_was_begun_alone_goes_on_alone(make: Make) -> None:
    specs = [make(name) for name in "abc"]
    assert faults.run_with(specs[1], faults.Fault("common.checkpoints:save", 2)) == -signal.SIGKILL
    assert names(arrange(specs, 1, fixed)) == ["a0 c0", "b0"]
    # With another key there is nothing to go on with.
    changed = [replace(spec, config={**spec.config, "rate": 0.3}) for spec in specs]
    assert names(arrange(changed, 1, fixed)) == ["a0 b0 c0"]


def test_an_unfinished_job_resumes_with_the_runs_it_started_with(make: Make) -> None:
    specs = [make(name) for name in "abcd"]
    job = StackSpec(tuple(specs[:3]))
    assert faults.run_with(job, faults.Fault("common.checkpoints:save", 2)) == -signal.SIGKILL
    assert names(arrange(specs, 1, fixed)) == ["a0 b0 c0", "d0"]
    # Also when only one of them is asked for; `find` knows the others.
    known = {spec.method: spec for spec in specs}
    assert names(arrange(specs[1:2], 1, fixed, lambda experiment, method, seed: known[method])) == ["a0 b0 c0"]
    # Where one cannot be had any more, the job cannot go on.
    assert names(arrange(specs[1:], 1, fixed)) == ["b0 c0 d0"]
    changed = [replace(spec, config={**spec.config, "rate": 0.3}) for spec in specs]
    assert names(arrange(changed, 2, fixed)) == ["a0 b0", "c0 d0"]
    jobs.execute(job)
    assert names(arrange(specs[3:], 1, fixed)) == ["d0"]


# ---------------------------------------------------------------- a stack is its runs


def test_stacked_runs_end_as_the_runs_alone(make: Make, tmp_path: Path) -> None:
    specs = [make("a", rate=0.05), make("b", rate=0.2), make("c", 1001)]
    records = jobs.execute(StackSpec(tuple(specs)))
    for spec, record in zip(specs, records, strict=True):
        alone = replace(spec, folder=tmp_path / "alone" / spec.method)
        assert alone.key == spec.key == record["key"]
        expected = runs.execute(alone)
        assert record["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
        assert (record["status"], record["stacked"], expected["stacked"]) == ("finished", 3, 1)
        assert record == read_record(spec.folder) and runs.is_settled(spec)
        ours, theirs = (load_file(each.folder / "weights.safetensors")["weight"] for each in (spec, alone))
        assert torch.allclose(ours, theirs, rtol=1e-5)
        ours, theirs = ((each.folder / "curves.csv").read_text().splitlines() for each in (spec, alone))
        assert [row.split(",")[0::3] for row in ours] == [row.split(",")[0::3] for row in theirs] and len(ours) > 5
    document = json.loads((StackSpec(tuple(specs)).folder / "job.json").read_text())
    assert [row["key"] for row in document["runs"]] == [spec.key for spec in specs]
    # Its runs share the job's seconds evenly, and its name says what it is.
    assert len({record["seconds"] for record in records}) == 1
    assert StackSpec(tuple(specs)).name == "stack/3 methods x3"


def test_a_member_that_diverges_ends_alone(make: Make) -> None:
    specs = [make("a"), make("b", explode=9), make("c")]
    undisturbed = jobs.execute(StackSpec((make("a", 1005), make("c", 1005))))
    assert all(record["status"] == "finished" for record in undisturbed)
    records = jobs.execute(StackSpec(tuple(specs)))
    assert [record["status"] for record in records] == ["finished", "diverged", "finished"]
    assert records[1]["error"] == "train_loss is not finite at step 12" and records[1]["metrics"] == {}
    curves = [(spec.folder / "curves.csv").read_text().splitlines() for spec in specs]
    assert curves[1][-1].startswith("8,") and curves[0][-1].startswith("24,")
    records = jobs.execute(StackSpec((make("d", explode=3), make("e", explode=9))))
    assert [record["status"] for record in records] == ["diverged", "diverged"]


def test_an_error_fails_every_run_of_the_stack(make: Make) -> None:
    specs = [make("a"), make("b", do="fail")]
    records = jobs.execute(StackSpec(tuple(specs)))
    assert [record["error"] for record in records] == ["ValueError: broken on purpose"] * 2
    assert all("broken on" in (spec.folder / "log.txt").read_text() for spec in specs)


# ---------------------------------------------------------------- nothing is lost


@pytest.mark.parametrize(
    "fault",
    [
        faults.Fault("common.checkpoints:save", 2),
        faults.Fault("common.checkpoints:save", 3, "after"),
        faults.Fault("common.curves:Curves.append", 13),
        faults.Fault("common.runs:end", 2),  # all is trained, and one record of three is written
    ],
)
def test_a_killed_stack_resumes_and_ends_bit_equal(make: Make, fault: faults.Fault, tmp_path: Path) -> None:
    specs = [make("a"), make("b", explode=17), make("c", rate=0.3)]
    elsewhere = [
        replace(spec, folder=tmp_path / "toy" / "calm" / "stack" / spec.method / "seed-1000") for spec in specs
    ]
    undisturbed = jobs.execute(StackSpec(tuple(elsewhere)))
    job = StackSpec(tuple(specs))
    assert faults.run_with(job, fault) == -signal.SIGKILL
    (resumed,) = arrange(specs, 1, fixed)
    assert resumed == job
    records = jobs.execute(resumed)
    assert [(r["status"], r["metrics"], r["error"]) for r in records] == [
        (r["status"], r["metrics"], r["error"]) for r in undisturbed
    ]
    for ours, theirs in zip(specs, elsewhere, strict=True):
        for file in ("weights.safetensors", "curves.csv"):
            rows = [(each.folder / file).read_bytes() for each in (ours, theirs)]
            if file == "curves.csv":  # without the seconds
                rows = [[line.split(b",")[:2] + line.split(b",")[3:] for line in row.splitlines()] for row in rows]  # type: ignore[misc]
            assert rows[0] == rows[1]
    if fault.where != "common.runs:end":
        assert records[0]["resumed"] and records[0]["resumed"] == records[2]["resumed"]


def test_a_stack_whose_process_dies_is_recorded_and_can_go_on(make: Make, fork_server: None) -> None:
    specs = [make("a", pause=0.2), make("b")]
    engine = LocalEngine(1)
    seen: list[Event] = []

    def kill(event: Event) -> None:
        seen.append(event)
        if event.kind == "progress":
            for _, process, _ in engine._running.values():
                os.kill(process.pid, signal.SIGKILL)

    outcome = schedule([StackSpec(tuple(specs))], engine, kill)
    assert set(outcome.records.values()) == {"failed"} and outcome.failed == 2
    ends = [event for event in seen if event.kind == "end"]
    assert [event.spec.method for event in ends] == ["a", "b"] and "SIGKILL" in ends[0].record["error"]
    outcome = schedule(arrange(specs, 1, fixed), LocalEngine(1))
    assert set(outcome.records.values()) == {"finished"} and not outcome.failed


def test_a_run_in_use_elsewhere_stops_the_job_before_it_starts(make: Make, fork_server: None) -> None:
    specs = [make("a"), make("b")]
    with lock(specs[1].lock_path):
        outcome = schedule([StackSpec(tuple(specs))], LocalEngine(1))
    assert isinstance(outcome.error, UserError) and "in use" in str(outcome.error)
    assert read_record(specs[0].folder) is None


def test_a_run_whose_need_failed_leaves_its_stack(make: Make, tmp_path: Path, fork_server: None) -> None:
    broken = toy.spec_of(tmp_path / "toy" / "stacked" / "stack" / "broken", toy.PLAIN, do="fail")
    good = toy.spec_of(tmp_path / "toy" / "stacked" / "stack" / "good", toy.PLAIN)
    specs = [replace(make(name), needs={"before": need}) for name, need in (("a", good), ("b", broken), ("c", good))]
    stacks = arrange(specs, 1, fixed)
    assert names(stacks) == ["a0 b0 c0"]
    outcome = schedule([*stacks, broken, good], LocalEngine(1))
    statuses = {folder.parent.name: status for folder, status in outcome.records.items()}
    assert statuses == {"a": "finished", "b": "failed", "c": "finished", "broken": "failed", "good": "finished"}
    record = read_record(specs[0].folder)
    assert record is not None and record["stacked"] == 2


# ---------------------------------------------------------------- sizes


def test_the_best_size_is_where_a_run_costs_least() -> None:
    assert stacking.best_size(lambda n: 1.0 + 0.1 * n, 8) == (
        8,
        {1: 1.1, 2: 0.6, 4: pytest.approx(0.35), 8: pytest.approx(0.225)},
    )
    assert stacking.best_size(lambda n: float(n), 8)[0] == 1
    assert stacking.best_size(lambda n: n * 0.98, 8)[0] == 1  # a gain that is not worth it
    size, times = stacking.best_size(lambda n: 1.0 if n <= 2 else 2.0 * n, 16)
    assert size == 2 and list(times) == [1, 2, 4]  # it stops where more is slower


def test_sizes_are_measured_once_and_kept(make: Make, tmp_path: Path, fork_server: None) -> None:
    said: list[str] = []
    sizes = stacking.Sizes(tmp_path / "stacking.json", said.append)
    spec = make("a", size=None)
    assert sizes(spec, 1) == 1 and sizes(make("b", size=5), 9) == 5 and not said
    assert sizes(spec, 12) == 4 and len(said) == 1 and said[0].startswith("stacks of 4 for a (ms per run")
    assert stacking.Sizes(tmp_path / "stacking.json", said.append)(spec, 12) == 4 and len(said) == 1
    assert sizes(make("c", shape="b", size=None), 2) == 2 and len(said) == 2
    # Two runs told nothing about twelve.
    assert sizes(make("c", shape="b", size=None), 12) == 4 and len(said) == 3
    with pytest.raises(UserError, match="measuring how many runs to stack failed: nothing to measure"):
        sizes(make("d", shape="c", size=None, do="fail"), 2)


def test_a_measured_size_needs_a_probe() -> None:
    with pytest.raises(ValueError, match="needs a probe"):
        Stacking("tests.toy:train_stack", lambda config: "a")


# ---------------------------------------------------------------- the whole command, and what a person sees


def test_the_command_stacks_and_knows_what_is_done(papers: Command) -> None:
    answer = papers("reproduce", "toy", "--preset", "stacked", "--engine", "serial")
    assert answer.status == 0
    document = json.loads(Path("runs/toy/stacked/results.json").read_text())
    assert sorted({row["stacked"] for row in document["runs"]}) == [3] and len(document["runs"]) == 6
    assert "6 of 6 runs are there already" in papers("reproduce", "toy", "--preset", "stacked").out


def test_progress_of_a_stack_counts_its_runs(make: Make) -> None:
    job = StackSpec((make("a"), make("a", 1001)))
    text = io.StringIO()
    with Display(list(job.runs), Console(file=text, width=120)) as display:
        display(Event("progress", job, 12, 24, {"loss": 1.0}))
        assert display._fraction() == 1.0 and list(display.running) == ["stack/a x2"]
        record = {"status": "finished", "error": None, "metrics": {}, "seconds": 1.0}
        display(Event("end", job.runs[0], record=record))
        assert display.done == 1 and display._fraction() == 1.5
        display(Event("end", job.runs[1], record=record))
        assert display._fraction() == 2.0 and not display.running
