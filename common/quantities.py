"""What a claim is about: one number from the finished runs of one seed.

A `Quantity` is a function with the list of runs it reads. The constructors below cover what papers say: a level, a
difference, a ratio, the smallest step of an ordering, the worst of several, a correlation; anything else is a
`Quantity` with a function of its own. All of them take values as `common.statistics` describes them: summaries keep
their spread, censored values stay censored.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from common.statistics import Value, bounds, is_summary

Run = tuple[str, str]
"""An experiment and a method: a run, up to its seed."""
RunMetrics = Mapping[Run, Mapping[str, Value]]
"""The metrics of the finished runs of ONE seed."""
Better = Literal["higher", "lower"]


class TrainGate(NamedTuple):
    """The score by which a baseline must show that it trained at all; a comparison with one that did not is not won."""

    experiment: str
    method: str
    metric: str
    worst_acceptable: float
    better: Better

    def passed(self, metrics: RunMetrics) -> bool:
        """Whether the baseline trained in this seed; a score that is missing or censored on the bad side did not."""
        value = metrics[self.experiment, self.method].get(self.metric)
        if value is None:
            return False
        low, high = bounds(value)
        if self.better == "higher":
            return low is not None and low >= self.worst_acceptable
        return high is not None and high <= self.worst_acceptable


@dataclass(frozen=True)
class Quantity:
    """One number (or summary, or censored number) a seed.

    Attributes:
        text: what it is, in words.
        requires: the runs it reads; all of the same seed, so that differences are paired.
        function: from the metrics of those runs to the value. A KeyError, ValueError or ArithmeticError means that
            the seed has no value.
        unit: its unit, percent as "percent".
        claimed: those of `requires` that belong to the claimed method: if one diverges the claim has failed; if
            another diverges the comparison is inconclusive.
        train_gates: baselines that must have trained.
    """

    text: str
    requires: tuple[Run, ...]
    function: Callable[[RunMetrics], Value]
    unit: str
    claimed: tuple[Run, ...] = ()
    train_gates: tuple[TrainGate, ...] = ()

    def __post_init__(self) -> None:
        if not self.requires:
            raise ValueError(f"{self.text!r} reads no runs")
        for run in (*self.claimed, *((gate.experiment, gate.method) for gate in self.train_gates)):
            if run not in self.requires:
                raise ValueError(f"{self.text!r} names {run} but does not require it")


def level(
    experiment: str,
    method: str,
    metric: str,
    unit: str,
    *,
    claimed: Sequence[Run] | None = None,
    train_gates: Sequence[TrainGate] = (),
) -> Quantity:
    """A metric itself. `claimed` is the method unless told otherwise: `()` where the level is a baseline's."""
    run = (experiment, method)
    return Quantity(
        f"{metric} of {method} on {experiment}",
        (run,),
        lambda metrics: metrics[run][metric],
        unit,
        (run,) if claimed is None else tuple(claimed),
        tuple(train_gates),
    )


def difference(
    minuend: Run,
    subtrahend: Run,
    metric: str | tuple[str, str],
    unit: str,
    *,
    claimed: Sequence[Run],
    train_gates: Sequence[TrainGate] = (),
) -> Quantity:
    """`metric` of the minuend minus that of the subtrahend, in the same seed (a pair of names: one for each)."""
    return _of_two("minus", subtract, minuend, subtrahend, metric, unit, claimed, train_gates)


def ratio(
    numerator: Run,
    denominator: Run,
    metric: str | tuple[str, str],
    unit: str = "ratio",
    *,
    claimed: Sequence[Run],
    train_gates: Sequence[TrainGate] = (),
) -> Quantity:
    """`metric` of the numerator over that of the denominator, which must be positive, in the same seed."""
    return _of_two("over", divide, numerator, denominator, metric, unit, claimed, train_gates)


def _of_two(
    word: str,
    operation: Callable[[Value, Value], Value],
    first: Run,
    second: Run,
    metric: str | tuple[str, str],
    unit: str,
    claimed: Sequence[Run],
    train_gates: Sequence[TrainGate],
) -> Quantity:
    names = (metric, metric) if isinstance(metric, str) else metric
    left, right = f"{first[1]} on {first[0]}", f"{second[1]} on {second[0]}"
    if names[0] != names[1]:
        text = f"{names[0]} of {left} {word} {names[1]} of {right}"
    elif first[0] == second[0]:
        text = f"{names[0]} of {first[1]} {word} {second[1]} on {first[0]}"
    else:
        text = f"{names[0]} of {left} {word} {right}"
    return Quantity(
        text,
        tuple(dict.fromkeys((first, second))),
        lambda metrics: operation(metrics[first][names[0]], metrics[second][names[1]]),
        unit,
        tuple(claimed),
        tuple(train_gates),
    )


def smallest_step(
    ascending: Sequence[Run],
    metric: str,
    unit: str,
    *,
    claimed: Sequence[Run],
    train_gates: Sequence[TrainGate] = (),
) -> Quantity:
    """The smallest rise of `metric` from one run to the next: positive when the runs stand in ascending order."""
    runs = tuple(ascending)

    def function(metrics: RunMetrics) -> Value:
        levels = [metrics[run][metric] for run in runs]
        return smallest([subtract(after, before) for before, after in itertools.pairwise(levels)])

    names = " < ".join(f"{method} on {experiment}" for experiment, method in runs)
    return Quantity(f"smallest step of {metric} in {names}", runs, function, unit, tuple(claimed), tuple(train_gates))


def worst(*quantities: Quantity, better: Better) -> Quantity:
    """The worst of several quantities of one unit, per seed: the smallest where higher is better, else the largest."""
    if len({quantity.unit for quantity in quantities}) != 1:
        raise ValueError("only quantities of one unit have a worst")

    def function(metrics: RunMetrics) -> Value:
        values = [quantity.function(metrics) for quantity in quantities]
        return smallest(values) if better == "higher" else negate(smallest([negate(value) for value in values]))

    return Quantity(
        "the worst of: " + "; ".join(quantity.text for quantity in quantities),
        tuple(dict.fromkeys(run for quantity in quantities for run in quantity.requires)),
        function,
        quantities[0].unit,
        tuple(dict.fromkeys(run for quantity in quantities for run in quantity.claimed)),
        tuple(dict.fromkeys(gate for quantity in quantities for gate in quantity.train_gates)),
    )


def beyond(quantity: Quantity, gate: float) -> Quantity:
    """The quantity minus a constant: so several with gates of their own can have a worst, judged against 0."""
    return replace(
        quantity,
        text=f"{quantity.text} minus {gate:g}",
        function=lambda metrics: subtract(quantity.function(metrics), gate),
    )


def correlation(
    runs: Sequence[Run],
    x: str | Sequence[float],
    y: str,
    *,
    claimed: Sequence[Run],
    train_gates: Sequence[TrainGate] = (),
) -> Quantity:
    """Pearson's correlation, over the runs of one seed, of metric `x` (or given numbers, one a run) and metric `y`."""
    runs = tuple(runs)

    def function(metrics: RunMetrics) -> Value:
        across = [_number(metrics[run][x]) for run in runs] if isinstance(x, str) else [float(number) for number in x]
        # Rounded, since Python versions sum in different orders.
        return round(statistics.correlation(across, [_number(metrics[run][y]) for run in runs]), 12)

    name = x if isinstance(x, str) else "the setting"
    text = f"correlation of {name} and {y} over {len(runs)} runs"
    return Quantity(text, runs, function, "correlation", tuple(claimed), tuple(train_gates))


def subtract(a: Value, b: Value) -> Value:
    """a - b. Two summaries give one: their variances add, with the smaller n (the careful number of freedoms)."""
    if is_summary(a) and is_summary(b):
        (mean_a, std_a, n_a), (mean_b, std_b, n_b) = _summary(a), _summary(b)
        n = min(n_a, n_b)
        return {"mean": mean_a - mean_b, "std": math.sqrt(n * (std_a**2 / n_a + std_b**2 / n_b)), "n": n}
    (low_a, high_a), (low_b, high_b) = bounds(a), bounds(b)
    return _between(_minus(low_a, high_b), _minus(high_a, low_b))


def divide(a: Value, b: Value) -> Value:
    """a / b for positive b (and positive a where a value is censored); two summaries by the delta method.

    Raises ValueError where the sign is wrong: no ratio is better than one that means nothing.
    """
    limits = (*bounds(a), *bounds(b))
    known = [limit for limit in limits if limit is not None]
    if any(limit is not None and limit <= 0 for limit in limits[2:]) or (len(known) < 4 and min(known, default=0) < 0):
        raise ValueError("a ratio needs a positive denominator")
    if is_summary(a) and is_summary(b):
        (mean_a, std_a, n_a), (mean_b, std_b, n_b) = _summary(a), _summary(b)
        n = min(n_a, n_b)
        quotient = mean_a / mean_b
        variance = (std_a / mean_b) ** 2 / n_a + (quotient * std_b / mean_b) ** 2 / n_b
        return {"mean": quotient, "std": math.sqrt(n * variance), "n": n}
    low_a, high_a, low_b, high_b = limits
    low = None if low_a is None or high_b is None else low_a / high_b
    high = None if high_a is None or low_b is None else high_a / low_b
    return _between(low, high)


def negate(value: Value) -> Value:
    """Minus the value."""
    if is_summary(value):
        mean, std, n = _summary(value)
        return {"mean": -mean, "std": std, "n": n}
    low, high = bounds(value)
    return _between(None if high is None else -high, None if low is None else -low)


def smallest(values: Sequence[Value]) -> Value:
    """The smallest value; among summaries the one with the smallest mean. Censored if it may be a censored one."""
    if all(is_summary(value) for value in values):
        return min(values, key=lambda value: _summary(value)[0])
    lows, highs = zip(*map(bounds, values), strict=True)
    known = [high for high in highs if high is not None]
    return _between(None if None in lows else min(lows), min(known) if known else None)


def _between(low: float | None, high: float | None) -> Value:
    # Censored on one side only: of two known ends the lower is kept, which is less knowledge but never wrong.
    if low is None or high is None:
        return {"low": low, "high": high}
    return low if low == high else {"low": low, "high": None}


def _minus(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    # Scores that differ by rounding are equal: 5e-17 in every seed would be a difference without spread.
    return 0.0 if math.isclose(a, b, rel_tol=1e-12) else a - b


def _number(value: Value) -> float:
    low, high = bounds(value)
    if low is None or low != high:
        raise ValueError("a censored value has no correlation")
    return low


def _summary(value: Value) -> tuple[float, float, int]:
    assert isinstance(value, Mapping)
    mean, std, n = value["mean"], value["std"], value["n"]
    if mean is None or std is None or not n:
        raise ValueError("a summary needs its mean, its std and its n")
    return float(mean), float(std), int(n)
