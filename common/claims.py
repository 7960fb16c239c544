"""Claims are data, and verdicts follow from them and the runs by the rules below: nothing else decides.

A `Claim` is a sentence of the paper. Per preset it has a `Rule`: which number the runs of one seed give (a `Quantity`),
which way is better, the `gate` the mean must reach and the `null` the interval must clear. For better = higher:

    held          mean >= gate and the 95 % interval lies above the null
    failed        the whole interval lies below the gate
    inconclusive  neither; fewer than 3 values; a baseline that diverged or did not train
    reproduced    held on the paper's data and protocol, and the paper's verified number lies where further runs like
                  ours would (95 % prediction interval)
    not run       no seed in which every run of the claim was attempted; the preset `smoke`; no rule for the preset

better = lower is the mirror image. An equivalence has a pair of gates and no null: `held` with the whole interval
between them, `failed` with the whole interval outside. The interval is two-sided, so a claim whose true effect is the
null holds by chance in 2.5 % of cases.

Only seeds from 1000 count. Runs of one seed are compared with each other, and a seed that diverged is never dropped.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from common.quantities import (
    Better,
    Quantity,
    Run,
    RunMetrics,
    TrainGate,
    beyond,
    correlation,
    difference,
    level,
    ratio,
    smallest_step,
    worst,
)
from common.statistics import FEWEST, Measurement, Resampling, Value, enough_for, measure, prediction_interval

__all__ = [
    "FIRST_CONFIRMING_SEED",
    "Better",
    "Claim",
    "Measurement",
    "Quantity",
    "Rule",
    "Run",
    "RunMetrics",
    "TrainGate",
    "Value",
    "Verdict",
    "beyond",
    "correlation",
    "difference",
    "expected_by_chance",
    "judge",
    "judge_all",
    "judge_runs",
    "level",
    "measure",
    "paper_gate",
    "ratio",
    "smallest_step",
    "worst",
]

FIRST_CONFIRMING_SEED = 1000
"""Trying things out uses the seeds below, which are never judged."""
HOLDS_BY_CHANCE = 0.025

Row = Mapping[str, Any]
"""One of `runs[]` or `claims[]` of results.json."""


class Verdict(NamedTuple):
    """The word and, in `note`, what a reader must know beside it (may be empty)."""

    verdict: Literal["reproduced", "held", "failed", "inconclusive", "not run"]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a claim is decided at one preset; committed, with the seeds, before the confirming runs.

    Attributes:
        quantity: the number of one seed.
        better: which way the quantity favours the claim.
        gate: what the mean must reach; a pair (low, high) for an equivalence.
        null: what the interval must clear: 0 for a difference, 1 for a ratio, chance for a level to be reached, the
            gate itself for a level not to be passed; `None` for an equivalence.
        seeds: how many confirming seeds (1000, 1001, ...) were promised; further ones are called added afterwards.
        data: the data set in words.
        resampling: the unit of which there are n independent ones.
        stand_in: other data than the paper's: the claim can hold, never be reproduced.
        paper_protocol: the paper's data and the paper's full schedule.
        paper_value: the paper's number for this very quantity in this unit, else `None`; `paper_std` its spread over
            `paper_runs` runs.
    """

    quantity: Quantity
    better: Better
    gate: float | tuple[float, float]
    null: float | None
    seeds: int
    data: str
    resampling: Resampling = "seed"
    stand_in: bool = False
    paper_protocol: bool = False
    paper_value: float | None = None
    paper_std: float | None = None
    paper_runs: int | None = None

    def __post_init__(self) -> None:
        what = f"the rule on {self.quantity.text!r}"
        if isinstance(self.gate, tuple):
            if self.null is not None or not self.gate[0] < self.gate[1]:
                raise ValueError(f"{what}: an equivalence has gate (low, high) with low < high, and no null")
        elif self.null is None:
            raise ValueError(f"{what}: a single gate needs a null")
        elif (self.gate < self.null) if self.better == "higher" else (self.gate > self.null):
            raise ValueError(f"{what}: the gate is easier than the null; for a margin not to be passed null = gate")
        if self.stand_in and self.paper_protocol:
            raise ValueError(f"{what}: a stand-in is not the paper's protocol")


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper with its number and source, and a rule for each preset that can test it.

    `verified` says whether the paper's number was read in the paper. One recalled from memory may be shown but decides
    nothing: a claim whose gate rests on it is refused.
    """

    id: str
    statement: str
    source: str
    verified: bool
    rules: Mapping[str, Rule]
    note: str = ""

    def __post_init__(self) -> None:
        for preset, rule in self.rules.items():
            if not self.verified and _gate_rests_on_paper(rule):
                raise ValueError(f"claim {self.id}, preset {preset}: a number that was not verified cannot be the gate")


def paper_gate(value: float, std: float, better: Better) -> float:
    """The gate that a verified number of the paper gives on its full protocol: 2 std on the worse side."""
    return value - 2 * std if better == "higher" else value + 2 * std


def _gate_rests_on_paper(rule: Rule) -> bool:
    # A gate of 0 or 1 that is also the null is a direction, whatever the paper's number happens to be.
    if rule.paper_value is None or (rule.gate == rule.null and rule.gate in (0, 1)):
        return False
    reach = 2 * (rule.paper_std or 0.0)
    edges = rule.gate if isinstance(rule.gate, tuple) else (rule.gate,)
    from_paper = (rule.paper_value, rule.paper_value - reach, rule.paper_value + reach)
    return any(math.isclose(edge, number, rel_tol=1e-9) for edge in edges for number in from_paper)


def judge(rule: Rule, measured: Measurement, verified: bool = True) -> Verdict:
    """The verdict that the numbers give. `verified` is the claim's: whether the paper's value may count."""
    fewest = 1 if rule.resampling == "exact" else FEWEST
    if measured.n < fewest:
        return Verdict("inconclusive", f"n = {measured.n}; at least {fewest} {rule.resampling} values are needed")
    if isinstance(rule.gate, tuple):
        verdict = _judge_equivalence(rule, measured, *rule.gate)
    else:
        assert rule.null is not None  # Rule sees to it
        if rule.better == "higher":
            verdict = _judge_higher(rule, measured, rule.gate, rule.null)
        else:
            verdict = _judge_higher(rule, measured.negated(), -rule.gate, -rule.null)
    return _reproduced(rule, measured, verified) if verdict.verdict == "held" else verdict


def _judge_higher(rule: Rule, measured: Measurement, gate: float, null: float) -> Verdict:
    mean, low, high = measured.mean, measured.low, measured.high
    if mean is not None and low is not None and _at_least(mean, gate) and _above(low, null):
        return Verdict("held")
    if high is not None and _above(gate, high):
        return Verdict("failed")
    if mean is None or measured.std is None:
        return Verdict("inconclusive", _undecided(rule))
    if _at_least(mean, gate):
        return Verdict("inconclusive", _power(rule, mean - null, measured.std))
    hopeless = "the mean misses the gate, so more of the same cannot make it hold; "
    return Verdict("inconclusive", hopeless + _power(rule, gate - mean, measured.std, "call it failed"))


def _judge_equivalence(rule: Rule, measured: Measurement, lower: float, upper: float) -> Verdict:
    mean, low, high = measured.mean, measured.low, measured.high
    if low is not None and high is not None and _at_least(low, lower) and _at_least(upper, high):
        return Verdict("held")
    if (high is not None and _above(lower, high)) or (low is not None and _above(low, upper)):
        return Verdict("failed")
    if mean is None or measured.std is None:
        return Verdict("inconclusive", _undecided(rule))
    if lower <= mean <= upper:
        return Verdict("inconclusive", _power(rule, min(mean - lower, upper - mean), measured.std))
    hopeless = "the mean lies outside the gates, so more of the same cannot make it hold; "
    distance = max(lower - mean, mean - upper)
    return Verdict("inconclusive", hopeless + _power(rule, distance, measured.std, "call it failed"))


def _reproduced(rule: Rule, measured: Measurement, verified: bool) -> Verdict:
    if not rule.paper_protocol or rule.paper_value is None:  # a stand-in never has the paper's protocol
        return Verdict("held")
    if not verified:
        return Verdict("held", "the paper's value was not verified and is not compared")
    if measured.mean is None or (measured.std is None and rule.resampling != "exact"):
        return Verdict("held", "some values are known from one side only, so the paper's value is not compared")
    # Examples of one model: the paper's number is a mean over as many, not over one.
    runs = measured.n if rule.resampling == "example" and rule.paper_runs is None else rule.paper_runs
    low, high = prediction_interval(measured, rule.paper_std, runs)
    if _at_least(rule.paper_value, low) and _at_least(high, rule.paper_value):
        return Verdict("reproduced")
    interval = f"{low:.4g} to {high:.4g}"
    return Verdict("held", f"the paper's {rule.paper_value:g} lies outside our prediction interval {interval}")


def _undecided(rule: Rule) -> str:
    return "the value is at the null or differs between seeds" if rule.resampling == "exact" else "a value is censored"


def _power(rule: Rule, distance: float, std: float, what: str = "settle it") -> str:
    """How many seeds (repeats, examples) would decide, from the distance that the interval has to clear."""
    units = f"{rule.resampling}s"
    n = enough_for(distance, std)
    if n is None:
        return f"at this mean and spread even 10,000 {units} would not {what}"
    return f"about {n} {units} would {what}, if mean and spread stay"


def _at_least(a: float, b: float) -> bool:
    # Rounding must not decide: 11.2 - 3.2 reaches a gate of 8.
    return a >= b or _same(a, b)


def _above(a: float, b: float) -> bool:
    return a > b and not _same(a, b)


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9)


def judge_runs(rule: Rule, runs: Iterable[Row], verified: bool = True) -> tuple[Measurement | None, Verdict]:
    """Measure and judge one rule from rows of `runs[]`; no measurement where no seed gave a value.

    What happened to the runs comes before the numbers: the claimed method diverged (`failed`), another one did or did
    not train, or a finished seed has no value (`inconclusive`: to drop it could favour either side). Seeds with a run
    that failed, stopped or is missing are not measured, and the note says so.
    """
    seeds = _confirming(rule, runs)
    if not seeds:
        return None, Verdict("not run")
    quantity = rule.quantity
    values: list[Value] = []
    no_value: list[str] = []
    untrained: list[str] = []
    for seed, rows in seeds.items():
        if _unfinished(rows, quantity.requires):
            continue
        metrics = {run: row["metrics"] for run, row in rows.items()}
        untrained += [f"{gate.method} ({seed})" for gate in quantity.train_gates if not gate.passed(metrics)]
        try:
            value = quantity.function(metrics)
            measure([value], rule.resampling)
        except (KeyError, ValueError, ArithmeticError) as error:
            no_value.append(f"{seed} ({type(error).__name__}: {error})")
        else:
            values.append(value)
    measured = measure(values, rule.resampling, attempted=len(seeds))

    others = [run for run in quantity.requires if run not in quantity.claimed]
    if diverged := _diverged(seeds, quantity.claimed):
        verdict = Verdict("failed", f"diverged: {diverged}")
    elif diverged := _diverged(seeds, others):
        verdict = Verdict("inconclusive", f"what it is compared with diverged: {diverged}")
    elif all(len(rows) < len(quantity.requires) for rows in seeds.values()):
        verdict = Verdict("not run", "no seed has all the runs that the claim compares")
    elif untrained:
        verdict = Verdict("inconclusive", f"a baseline did not train: {', '.join(untrained)}")
    elif no_value:
        verdict = Verdict("inconclusive", f"no value at seed {', '.join(no_value)}")
    else:
        verdict = judge(rule, measured, verified)
    notes = [verdict.note, *_remarks(rule, seeds, values)]
    return measured if values else None, Verdict(verdict.verdict, "; ".join(note for note in notes if note))


def _confirming(rule: Rule, runs: Iterable[Row]) -> dict[int, dict[Run, Row]]:
    """The attempted runs that the rule reads, by confirming seed in ascending order."""
    seeds: dict[int, dict[Run, Row]] = {}
    for row in runs:
        run = (row["experiment"], row["method"])
        if row["seed"] >= FIRST_CONFIRMING_SEED and run in rule.quantity.requires:
            seeds.setdefault(row["seed"], {})[run] = row
    # Repeats and examples are of one fixed model: the first that was attempted, whatever came of it.
    chosen = sorted(seeds)[: 1 if rule.resampling in ("repeat", "example") else None]
    return {seed: seeds[seed] for seed in chosen}


def _unfinished(rows: Mapping[Run, Row], requires: Sequence[Run]) -> str:
    """Why a seed is not measured: the status of its first run that has not finished; empty where all have."""
    statuses = (rows[run]["status"] if run in rows else "missing" for run in requires)
    return next((status for status in statuses if status != "finished"), "")


def _diverged(seeds: Mapping[int, Mapping[Run, Row]], which: Sequence[Run]) -> str:
    found = [
        (run[1], seed)
        for seed, rows in seeds.items()
        for run in which
        if run in rows and rows[run]["status"] == "diverged"
    ]
    return ", ".join(f"{method} at seed {seed}" for method, seed in found)


def _remarks(rule: Rule, seeds: Mapping[int, Mapping[Run, Row]], values: Sequence[Value]) -> list[str]:
    """What a reader must know beside any verdict."""
    remarks = []
    gaps = {seed: _unfinished(rows, rule.quantity.requires) for seed, rows in seeds.items()}
    lost = [f"{seed} {status}" for seed, status in gaps.items() if status]
    if lost:
        remarks.append(f"{len(seeds) - len(lost)} of {len(seeds)} seeds measured ({', '.join(lost)})")
    censored = sum(isinstance(value, Mapping) and "low" in value for value in values)
    if censored:
        remarks.append(f"{censored} of {len(values)} values known from one side only")
    stale = sum(bool(row["stale"]) for rows in seeds.values() for row in rows.values())
    if stale:
        remarks.append(f"{stale} of {sum(map(len, seeds.values()))} runs are stale: the code has changed since")
    added = sum(seed >= FIRST_CONFIRMING_SEED + rule.seeds for seed in seeds)
    if added:
        remarks.append(f"{added} seed{'s' if added > 1 else ''} added afterwards")
    return remarks


def judge_all(claims: Iterable[Claim], preset: str, runs: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows `claims[]` of results.json, one a claim and in their order, from its rows `runs[]`."""
    rows = list(runs)
    return [_judge_claim(claim, preset, rows) for claim in claims]


def _judge_claim(claim: Claim, preset: str, runs: Sequence[Row]) -> dict[str, Any]:
    rule = claim.rules.get(preset)
    measured = None
    if rule is None:
        verdict = Verdict("not run", f"preset {preset} does not test it")
    elif preset == "smoke" or preset.endswith("-explore"):
        verdict = Verdict("not run", f"runs of {preset} are never judged")
    else:
        measured, verdict = judge_runs(rule, runs, claim.verified)
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "quantity": rule and rule.quantity.text,
        "unit": rule and rule.quantity.unit,
        "resampling": rule and rule.resampling,
        "better": rule and rule.better,
        "gate": rule and (list(rule.gate) if isinstance(rule.gate, tuple) else rule.gate),
        "null": rule and rule.null,
        "paper_value": rule and rule.paper_value,
        "paper_std": rule and rule.paper_std,
        "verified": claim.verified,
        "measured": measured and measured.as_row(),
        "stand_in": rule and rule.stand_in,
        "data": rule and rule.data,
        "verdict": verdict.verdict,
        "note": "; ".join(note for note in (verdict.note, claim.note) if note),
    }


def expected_by_chance(claims: Iterable[Row]) -> float:
    """How many of the rows `claims[]` would hold by chance if every effect were exactly its null: 2.5 % of the tests.

    Counted are claims judged over seeds with enough of them to hold; the figure is an upper limit, since a gate beyond
    the null is harder to reach.
    """
    tests = [
        row
        for row in claims
        if row["verdict"] != "not run" and row["resampling"] == "seed" and (row["measured"] or {}).get("n", 0) >= FEWEST
    ]
    return HOLDS_BY_CHANCE * len(tests)
