"""Intervals over seeds, repeats or examples.

Everything here is a function of a handful of numbers. Intervals are Student's t at every n: a percentile bootstrap of
3-5 seeds covers only 68-83 % where it promises 95 %. Means and standard deviations come from the standard library,
which computes them exactly, so equal values have exactly no spread and rounding decides nothing.

A value is one of three things:

- a number;
- a summary `{"mean", "std", "n"}` over the repeats or the examples of one run;
- a censored number `{"low": x, "high": None}` (at least x: a time that ran out before the target was reached) or
  `{"low": None, "high": x}` (at most x).
"""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Value = float | Mapping[str, float | None]
Resampling = Literal["seed", "repeat", "example", "exact"]
"""The unit of which there are n independent ones."""

CONFIDENCE = 0.95
FEWEST = 3
MOST_WORTH_NAMING = 10_000


@dataclass(frozen=True)
class Measurement:
    """What `n` of `attempted` values say about their mean: its estimate and the 95 % interval [low, high].

    `None` is what is not known: both ends after a single value; `high` where a value was censored from below, and
    `mean` is then a lower bound as well; `low` in the mirrored case; all three where values of both kinds met.
    `std` is the sample standard deviation of the values, known where none is censored and n > 1.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    attempted: int
    std: float | None = None

    def as_row(self) -> dict[str, float | None]:
        """The object `measured` of results.json."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n, "attempted": self.attempted}

    def negated(self) -> "Measurement":
        """The measurement of minus the quantity."""
        mean, low, high = (None if x is None else -x for x in (self.mean, self.high, self.low))
        return Measurement(mean, low, high, self.n, self.attempted, self.std)


def is_summary(value: Value) -> bool:
    """Whether the value is `{"mean", "std", "n"}`."""
    return isinstance(value, Mapping) and "std" in value


def bounds(value: Value) -> tuple[float | None, float | None]:
    """The lowest and the highest number the value can be, `None` where there is no limit; a summary is its mean.

    Raises ValueError for a number that is not finite: it is no measurement.
    """
    low: float | None
    high: float | None
    if not isinstance(value, Mapping):
        low = high = value
    elif "mean" in value:
        low = high = value["mean"]
    else:
        low, high = value["low"], value["high"]
    if any(end is not None and not math.isfinite(end) for end in (low, high)):
        raise ValueError("the value is not a finite number")
    return low, high


@functools.cache
def t_quantile(degrees: int) -> float:
    """The t with a probability of 95 % between -t and t, for Student's distribution with `degrees` of freedom."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # here, because importing scipy takes longer than a --help should

    # Rounded, so that the last bit does not depend on the machine or on scipy's version and results verify anywhere.
    return round(float(stdtrit(degrees, (1 + CONFIDENCE) / 2)), 10)


def half_width(std: float, n: int) -> float:
    """Half the 95 % interval of the mean of n values whose sample standard deviation is `std` (n >= 2)."""
    return t_quantile(n - 1) * std / math.sqrt(n)


def measure(values: Sequence[Value], resampling: Resampling = "seed", attempted: int | None = None) -> Measurement:
    """Mean and 95 % interval of the values, one a seed; the unit of `resampling` says what an independent value is.

    - `seed`: the values are independent; a summary counts as its mean. A censored value is replaced by its bound. The
      bound never passes the value, so the interval's end on the known side, computed from the bounds, also holds for
      the values; the other end is unknown.
    - `repeat`, `example`: the first value is a summary and its n repeats or examples are the independent values (a
      plain number counts as one of them).
    - `exact`: n = 1 and low = mean = high; should seeds disagree, low and high show how far.

    `attempted` is the number of seeds of which any run was attempted (default: as many as there are values).
    """
    if not values:
        return Measurement(None, None, None, 0, attempted or 0)
    if resampling in ("repeat", "example"):
        return _of_summary(values[0])
    lows, highs = zip(*map(bounds, values), strict=True)
    from_lows, from_highs = _sample(lows), _sample(highs)
    mean = from_highs[0] if from_lows[0] is None else from_lows[0]
    if resampling == "exact":
        lowest = None if None in lows else min(lows)
        highest = None if None in highs else max(highs)
        return Measurement(mean, lowest, highest, 1, 1)
    n = len(values)
    std = from_lows[1] if lows == highs else None
    return Measurement(mean, from_lows[2], from_highs[3], n, n if attempted is None else attempted, std)


def _of_summary(value: Value) -> Measurement:
    if not is_summary(value):
        low, high = bounds(value)
        return Measurement(high if low is None else low, None, None, 1, 1)
    assert isinstance(value, Mapping)
    mean, std, n = value["mean"], value["std"], value["n"]
    if mean is None or std is None or n is None:
        raise ValueError("a summary needs its mean, its std and its n")
    mean, std, n = float(mean), float(std), int(n)
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise ValueError("the value is not a finite number")
    if n < 2:
        return Measurement(mean, None, None, n, n)
    width = half_width(std, n)
    return Measurement(mean, mean - width, mean + width, n, n, std)


def _sample(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None, float | None]:
    """Mean, standard deviation, low and high of plain numbers; nothing where one of them is unknown."""
    numbers = [float(value) for value in values if value is not None]
    if len(numbers) < len(values):
        return None, None, None, None
    mean = statistics.mean(numbers)
    if len(numbers) < 2:
        return mean, None, None, None
    std = statistics.stdev(numbers)
    width = half_width(std, len(numbers))
    return mean, std, mean - width, mean + width


def prediction_interval(ours: Measurement, std: float | None, runs: int | None) -> tuple[float, float]:
    """Where the mean of `runs` further runs (1 if unknown) with spread `std` (ours if unknown) lies, at 95 %.

    mean +- t(n-1) * sqrt(s^2/n + p^2/m), with s and n ours, p and m theirs. An exact number (no spread) predicts
    itself. Needs a measurement without censored values.
    """
    if ours.mean is None:
        raise ValueError("no prediction from values that are known from one side only")
    if ours.std is None:
        return ours.mean, ours.mean
    theirs = ours.std if std is None else std
    width = t_quantile(ours.n - 1) * math.sqrt(ours.std**2 / ours.n + theirs**2 / (runs or 1))
    return ours.mean - width, ours.mean + width


def enough_for(distance: float, std: float) -> int | None:
    """The smallest n whose interval, at this spread, is narrower than `distance` to either side of the mean.

    `None` if even 10,000 are too few (a distance of 0 is never cleared).
    """
    fewest, most = FEWEST, MOST_WORTH_NAMING
    if half_width(std, most) >= distance:
        return None
    while fewest < most:
        middle = (fewest + most) // 2
        if half_width(std, middle) < distance:
            most = middle
        else:
            fewest = middle + 1
    return fewest
