"""Stacked jobs: several runs of equal shape trained as one batched model.

A job is what is scheduled and locked: one run, or a stack of runs in a folder `jobs/<hash of their keys>/` of the
preset, which holds `job.json` (which runs), the checkpoints and `log.txt`. The runs keep folders of their own with
config, record, curves, artifacts and weights, so a stacked run differs from one trained alone in nothing that the
later stages read but `stacked` and its share of the job's seconds. An unfinished job resumes with the runs it started
with; runs that come later make a job of their own.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import runs
from common.errors import Diverged, describe
from common.files import lock, read_json, write_json
from common.runs import Execution, Folder, Metrics, Report, RunSpec, Stackable, Workplace, check_metrics, resolve


@dataclass(frozen=True)
class StackSpec:
    """A stacked job before it starts: runs of one paper, preset, execution and `Stackable`, in a fixed order."""

    runs: tuple[RunSpec, ...]

    @property
    def _first(self) -> RunSpec:
        return self.runs[0]

    @property
    def function(self) -> str:
        assert self._first.stackable is not None  # `arrange` sees to it
        return self._first.stackable.function

    @property
    def folder(self) -> Path:
        keys = hashlib.sha256(" ".join(sorted(spec.key for spec in self.runs)).encode()).hexdigest()[:16]
        return self._first.folder.parents[2] / "jobs" / keys

    @property
    def lock_path(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.lock")

    @property
    def name(self) -> str:
        methods = {spec.method for spec in self.runs}
        what = next(iter(methods)) if len(methods) == 1 else f"{len(methods)} methods"
        return f"{self._first.experiment}/{what} x{len(self.runs)}"

    @property
    def execution(self) -> Execution:
        return self._first.execution

    @property
    def exclusive(self) -> bool:
        return False

    @property
    def needs(self) -> dict[str, RunSpec]:
        return {f"{spec.name}/{name}": need for spec in self.runs for name, need in spec.needs.items()}


JobSpec = RunSpec | StackSpec


class Job(Workplace):
    """What a stack's function may do: its own folder for checkpoints, and the folders of its runs in `members`."""

    def __init__(self, spec: StackSpec, members: list[Folder], report: Report | None = None):
        super().__init__(spec.folder, spec.execution, spec.runs[0].data_dir, report)
        self.spec, self.members = spec, members


def execute(
    spec: JobSpec, report: Report | None = None, on_open: Callable[[Workplace], None] | None = None
) -> list[dict[str, Any]]:
    """Do a job in this process, resuming what its folder holds; the records of its runs, in order.

    As `runs.execute`: what the training does never raises; Locked and a full disk do.
    """
    if isinstance(spec, RunSpec):
        return [runs.execute(spec, report, on_open)]
    with ExitStack() as locks:
        locks.enter_context(lock(spec.lock_path))
        for run in sorted(spec.runs, key=lambda run: str(run.folder)):
            locks.enter_context(lock(run.lock_path))
        begun = [runs.begin(run, stacked=len(spec.runs)) for run in spec.runs]
        if all(settled for _, settled in begun):
            return [record for record, _ in begun]
        write_json(spec.folder / "job.json", _document(spec))
        members = [Folder(run) for run in spec.runs]
        for member, (record, _) in zip(members, begun, strict=True):
            member.resumed = list(record["resumed"])
        job = Job(spec, members, report)
        if on_open is not None:
            on_open(job)
        configs = [{**run.config, "seed": run.seed} for run in spec.runs]
        needs = [{name: need.folder for name, need in run.needs.items()} for run in spec.runs]
        found, problem = runs.attempt(lambda: resolve(spec.function)(configs, job, needs), members)
        seconds = job.seconds() / len(members)
        records = []
        for i, (member, (record, settled)) in enumerate(zip(members, begun, strict=True)):
            if not settled:
                outcome = problem or _outcome(member, None if found is None else found[i])
                record = runs.end(member, record, outcome, seconds)
            records.append(record)
        return records


def _outcome(member: Folder, metrics: Metrics | None) -> dict[str, Any]:
    """How one run of a stack ended that as a whole went through."""
    if member.diverged is not None:
        return {"status": "diverged", "error": describe(member.diverged)}
    try:
        return {"status": "finished", "metrics": check_metrics(metrics or {})}
    except Diverged as error:
        return {"status": "diverged", "error": describe(error)}
    except TypeError as error:
        return {"status": "failed", "error": describe(error)}


def _document(spec: StackSpec) -> dict[str, Any]:
    rows = [{"experiment": run.experiment, "method": run.method, "seed": run.seed, "key": run.key} for run in spec.runs]
    return {"schema_version": 1, "function": spec.function, "runs": rows}


def _unfinished(folder: Path) -> Iterator[list[tuple[str, str, int, str]]]:
    """The runs (experiment, method, seed, key) of each job in a preset's folder that has a checkpoint to resume."""
    for path in sorted(folder.glob("jobs/*/job.json")):
        if any(path.parent.glob("checkpoints/step-*.pt")):
            yield [(run["experiment"], run["method"], run["seed"], run["key"]) for run in read_json(path)["runs"]]


Find = Callable[[str, str, int], RunSpec | None]


def arrange(
    specs: Sequence[RunSpec], slots: int, size_of: Callable[[RunSpec, int], int], find: Find = lambda *_: None
) -> list[JobSpec]:
    """The jobs that do these runs, each run once, in the order of their first runs.

    First come the unfinished jobs that any of the runs is part of, with all the runs they started with; `find` gives
    the specification of one that is not among `specs`. A run that was begun alone goes on alone. The others are
    stacked, `size_of(run, how many are alike)` at the most, in as many stacks as there are slots where they suffice.
    """
    left = {spec.folder: spec for spec in specs}
    jobs: dict[Path, JobSpec] = {}
    stackable = [spec for spec in specs if spec.stackable is not None and not spec.exclusive]
    for folder in dict.fromkeys(spec.folder.parents[2] for spec in stackable):
        for rows in _unfinished(folder):
            names = [folder / experiment / method / f"seed-{seed}" for experiment, method, seed, _ in rows]
            if not any(name in left for name in names) or all(
                _is_settled_as(n, r) for n, r in zip(names, rows, strict=True)
            ):
                continue
            found = [left.get(name) or find(*row[:3]) for name, row in zip(names, rows, strict=True)]
            members = [run for run, row in zip(found, rows, strict=True) if run is not None and run.key == row[3]]
            if len(members) == len(rows):
                job = StackSpec(tuple(members))
                jobs |= {name: job for name in names if name in left}
                left = {name: spec for name, spec in left.items() if name not in names}
    for alike in _alike([spec for spec in stackable if spec.folder in left]).values():
        size = max(1, size_of(alike[0], len(alike)))
        count = max(-(-len(alike) // size), min(slots, len(alike)))
        bounds = [len(alike) * i // count for i in range(count + 1)]
        for low, high in pairwise(bounds):
            part = alike[low:high]
            job_of_part: JobSpec = StackSpec(tuple(part)) if len(part) > 1 else part[0]
            jobs |= {spec.folder: job_of_part for spec in part}
    ordered = [jobs.get(spec.folder, spec) for spec in specs]
    return list({job.folder: job for job in ordered}.values())


def _is_settled_as(folder: Path, row: tuple[str, str, int, str]) -> bool:
    record = runs.read_record(folder)
    return record is not None and record["key"] == row[3] and record["status"] in runs.SETTLED


def _alike(specs: Sequence[RunSpec]) -> dict[Any, list[RunSpec]]:
    """The runs that can be stacked with each other. One that has a checkpoint of its own is alike to none."""
    groups: dict[Any, list[RunSpec]] = {}
    for spec in specs:
        record = runs.read_record(spec.folder)
        begun = record is not None and record["key"] == spec.key and any(spec.folder.glob("checkpoints/step-*.pt"))
        key: Any = spec.folder if begun else _stack_key(spec)
        groups.setdefault(key, []).append(spec)
    return groups


def _stack_key(spec: RunSpec) -> tuple[Any, ...]:
    return (
        spec.experiment,
        spec.stackable,
        spec.function,
        spec.execution,
        spec.data,
        tuple(spec.needs),
        spec.tensorboard,
    )


def without(spec: JobSpec, lost: Sequence[RunSpec]) -> JobSpec | None:
    """The job without some of its runs; None where none is left."""
    rest = tuple(run for run in spec.runs if run not in lost)
    if len(rest) == len(spec.runs):
        return spec
    return StackSpec(rest) if len(rest) > 1 else rest[0] if rest else None


__all__ = ["Job", "JobSpec", "StackSpec", "Stackable", "arrange", "execute", "without"]
