"""Gathered curves (CSV, gzip or plain): read them, and average them over seeds for a plot."""

import csv
import gzip
import io
import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.statistics import half_width

COLUMNS = ("experiment", "method", "seed", "step", "samples", "seconds", "name", "value")
MAX_POINTS = 300

# (experiment, curve name) -> method -> seed -> {step: value}
Grouped = dict[tuple[str, str], dict[str, dict[int, dict[int, float]]]]


def read_curves(path: Path) -> Grouped:
    """Finite values of a gathered curve file by (experiment, name), method, seed and step.

    `path` is `<preset>.curves.csv.gz` or the same unpacked. Values that are not finite (a run about to diverge) are
    left out. A missing file gives no curves; a damaged one is a UserError that names it.
    """
    grouped: Grouped = {}
    if not path.exists():
        return grouped
    try:
        with path.open("rb") as raw:
            binary = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            rows = csv.reader(io.TextIOWrapper(binary, encoding="utf-8", newline=""))
            if tuple(next(rows, ())) != COLUMNS:
                raise ValueError("its header is not " + ",".join(COLUMNS))
            for experiment, method, seed, step, _, _, name, value in rows:
                number = float(value)
                if math.isfinite(number):
                    seeds = grouped.setdefault((experiment, name), {}).setdefault(method, {})
                    seeds.setdefault(int(seed), {})[int(step)] = number
    except (ValueError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged ({error}): make report rebuilds it from the runs") from None
    return grouped


@dataclass(frozen=True)
class Line:
    """One method's curve: steps, mean over seeds, and the band's edges (equal to the mean for one seed)."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int
    ends: list[tuple[int, float]]  # the last points of seeds whose run did not finish


def average(seeds: Mapping[int, Mapping[int, float]], unfinished: Collection[int] = ()) -> Line:
    """Mean over seeds with a 95 % t band (3 seeds and more) or their range (2), at up to 300 steps.

    A seed without a value at a step is interpolated between its neighbours; beyond its last step it is out of the mean,
    which would hide it, so the last points of the seeds in `unfinished` are given in `ends`.
    """
    import numpy as np

    every = sorted({step for curve in seeds.values() for step in curve})
    steps = sorted({*every[:: -(-len(every) // MAX_POINTS)], every[-1]})
    table = np.stack(
        [
            np.interp(steps, sorted(curve), [curve[step] for step in sorted(curve)], left=np.nan, right=np.nan)
            for curve in seeds.values()
        ]
    )
    rows = []
    for step, column in zip(steps, table.T, strict=True):
        values = column[np.isfinite(column)]
        if not values.size:  # between two seeds' ranges
            continue
        mean, low, high = float(values.mean()), float(values.min()), float(values.max())
        if values.size >= 3:
            half = half_width(float(values.std(ddof=1)), values.size)
            low, high = mean - half, mean + half
        rows.append((step, mean, low, high))
    ends = sorted((max(curve), curve[max(curve)]) for seed, curve in seeds.items() if seed in unfinished)
    kept, means, lows, highs = (list(column) for column in zip(*rows, strict=True))
    return Line(kept, means, lows, highs, len(seeds), ends)
