"""Claims C1-C7 (spec, section 6) and the study's own, with a rule for each preset that can test them.

On the small canvas the margins are the spec's (section 10). At full size, sweeps are judged by their best model, as the
paper does: "no deconvolution generalises" is a statement about the best one. The paper trained each configuration
once; three seeds are trained here, because a verdict needs an interval.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from common.claims import Claim, Quantity, Rule, RunMetrics, TrainGate, Value, beyond, difference, level, worst
from common.quantities import negate, smallest, subtract
from papers.coordconv.sweeps import full_size

ACCURACY, IOU, ERROR = "test_accuracy", "test_rendering_iou", "best_test_error"
PERCENT, PIXELS = "percent", "px"
SMALL_DATA = "Not-so-Clevr 32x32, squares of 5"
FULL_DATA = "Not-so-Clevr 64x64, squares of 9"
CHANCE = {"quick": round(100 / 784, 6), "gpu": round(100 / 3136, 6), "paper": round(100 / 3136, 6)}
QUICK_SEEDS, CPU_SEEDS, STUDY_SEEDS, SWEEP_SEEDS = 5, 3, 5, 3
UNIFORM, QUADRANT = "classification-uniform", "classification-quadrant"


def trained(experiment: str, method: str = "deconv") -> TrainGate:
    """A classifier that did not fit its training set says nothing about generalising."""
    return TrainGate(experiment, method, "train_accuracy", 80.0, "higher")


def best(
    experiment: str,
    methods: Iterable[str],
    metric: str,
    unit: str,
    train: tuple[str, float] | None = None,
    better: Literal["higher", "lower"] = "higher",
) -> Quantity:
    """The best `metric` of a sweep of baselines on the very split that is reported: in their favour, not the claim's.

    train: a train metric (higher is better) and what one model at least must have reached, else the seed has no value:
    a sweep in which nothing was learnt shows nothing.
    """
    runs = tuple((experiment, method) for method in methods)

    def function(metrics: RunMetrics) -> Value:
        if train is not None and max(metrics[run][train[0]] for run in runs) < train[1]:  # type: ignore[type-var]
            raise ValueError(f"no model reached a {train[0]} of {train[1]:g}")
        values = [metrics[run][metric] for run in runs]
        return smallest(values) if better == "lower" else negate(smallest([negate(value) for value in values]))

    kind = runs[0][1].partition("-")[0]
    text = f"best {metric} of {len(runs)} {kind} models on {experiment}"
    return Quantity(text, runs, function, unit, ())


def chosen_on_train(experiment: str, methods: Iterable[str], metric: str, unit: str) -> Quantity:
    """The test score `metric` of the model of a sweep with the best train score; of equal ones the first.

    What is claimed must not be selected on the split that is reported.
    """
    runs = tuple((experiment, method) for method in methods)
    train = metric.replace("test_", "train_", 1)

    def function(metrics: RunMetrics) -> Value:
        return metrics[max(runs, key=lambda run: metrics[run][train])][metric]  # type: ignore[arg-type, return-value]

    kind = runs[0][1].partition("-")[0]
    text = f"{metric} of the one of {len(runs)} {kind} models on {experiment} with the best {train}"
    return Quantity(text, runs, function, unit, runs)


def gap(first: Quantity, second: Quantity) -> Quantity:
    """How far the first quantity, of the claimed method, is above the second."""
    return Quantity(
        f"{first.text} minus {second.text}",
        tuple(dict.fromkeys((*first.requires, *second.requires))),
        lambda metrics: subtract(first.function(metrics), second.function(metrics)),
        first.unit,
        first.claimed,
        (*first.train_gates, *second.train_gates),
    )


FULL_PRESETS = ("gpu", "paper")
Better = Literal["higher", "lower"]


def small(quantity: Quantity, gate: float, null: float, seeds: int = QUICK_SEEDS, better: Better = "higher") -> Rule:
    """A rule on the small canvas: a stand-in."""
    return Rule(
        quantity=quantity, better=better, gate=gate, null=null, seeds=seeds, data=SMALL_DATA, stand_in=True
    )  # fmt: skip


def full(
    preset: str,
    quantity: Quantity,
    gate: float,
    null: float,
    paper_value: float | None = None,
    better: Better = "higher",
) -> Rule:
    """A rule at full size; only `paper` has the paper's whole schedule and grid."""
    return Rule(
        quantity=quantity,
        better=better,
        gate=gate,
        null=null,
        seeds=SWEEP_SEEDS,
        data=FULL_DATA,
        paper_protocol=preset == "paper",
        paper_value=paper_value,
    )


def best_deconv(preset: str, task: str, split: str) -> Quantity:
    """The best deconvolution's test score, given that one of them fitted its training set."""
    metric, unit, train = (ACCURACY, PERCENT, ("train_accuracy", 80.0))
    if task == "rendering":
        metric, unit, train = (IOU, "IOU", ("train_rendering_iou", 0.8))
    return best(f"{task}-{split}", full_size(preset, task, split).baselines, metric, unit, train)


def best_coordconv(preset: str, task: str, split: str) -> Quantity:
    """The test score of CoordConv's model with the best train score."""
    metric, unit = (ACCURACY, PERCENT) if task == "classification" else (IOU, "IOU")
    return chosen_on_train(f"{task}-{split}", full_size(preset, task, split).coordconv, metric, unit)


# ---------------------------------------------------------------- classification


HOW_FAR = (
    "`quick`: how many points of test accuracy CoordConv is ahead of one deconvolution; `gpu`, `paper`: the best "
    "deconvolution of the sweep"
)


def classification() -> list[Claim]:
    """C1 to C3."""
    method, baseline = "coordconv", "deconv"

    def ahead(experiment: str) -> Quantity:
        pair = (experiment, method), (experiment, baseline)
        return difference(*pair, ACCURACY, PERCENT, claimed=[pair[0]], train_gates=[trained(experiment)])

    worst_deconv = level(QUADRANT, baseline, ACCURACY, PERCENT, claimed=(), train_gates=[trained(QUADRANT)])
    solved = worst(*(level(e, method, ACCURACY, PERCENT) for e in (UNIFORM, QUADRANT)), better="higher")

    def uniform(preset: str) -> Rule:
        return full(preset, best_deconv(preset, "classification", "uniform"), 90, 90, 86.0, "lower")

    def quadrant(preset: str) -> Rule:
        return full(preset, best_deconv(preset, "classification", "quadrant"), 2, 2, 0.0, "lower")

    def both(preset: str) -> Rule:
        parts = (best_coordconv(preset, "classification", split) for split in ("uniform", "quadrant"))
        return full(preset, worst(*parts, better="higher"), 99, CHANCE[preset], 100.0)

    return [
        Claim(
            "C1",
            "Uniform split: no deconvolution generalises; the best of 324 gets 86 % of the held-out pixels right (and "
            "100 % of its training set) after more than an hour",
            'Fig. "SCC", uniform; the authors\' blog',
            True,
            {"quick": small(ahead(UNIFORM), 50, 0), **{preset: uniform(preset) for preset in FULL_PRESETS}},
            HOW_FAR,
        ),
        Claim(
            "C2",
            "Quadrant split: deconvolutions get about 0 % of the held-out pixels right",
            'Fig. "SCC", quadrant; the authors\' blog',
            True,
            {"quick": small(ahead(QUADRANT), 90, 0), **{preset: quadrant(preset) for preset in FULL_PRESETS}},
            HOW_FAR,
        ),
        Claim(
            "C2.level",
            "Quadrant split: a deconvolution that fits its training set gets at most 2 % of the held-out pixels right",
            'Fig. "SCC", quadrant',
            True,
            {"quick": small(worst_deconv, 2, 2, better="lower")},
        ),
        Claim(
            "C3",
            "CoordConv, 7,553 parameters, gets all pixels right on both splits, trained and held-out, after 10-20 s "
            "(the seconds from memory)",
            'Fig. "SCC"; the authors\' blog',
            True,
            {
                "quick": small(solved, 99, CHANCE["quick"]),
                **{preset: both(preset) for preset in FULL_PRESETS},
            },
            "the test accuracy on the worse split",
        ),
    ]


def speed_and_size() -> list[Claim]:
    """C4."""
    run = ("time-to-85", "ratio")
    faster = level(*run, "time_ratio", "ratio")
    quick = replace(faster, requires=(*faster.requires, (UNIFORM, "deconv")), train_gates=(trained(UNIFORM),))

    def larger(preset: str) -> Rule:
        sweep = full_size(preset, "classification", "uniform")
        runs = [(UNIFORM, method) for method in sweep.baselines]
        ours = (UNIFORM, next(iter(sweep.coordconv)))

        def function(metrics: RunMetrics) -> Value:
            winner = max(runs, key=lambda run: metrics[run][ACCURACY])  # type: ignore[arg-type, return-value]
            return metrics[winner]["parameters"] / metrics[ours]["parameters"]  # type: ignore[operator]

        text = "parameters of the deconvolution with the best test accuracy over CoordConv's"
        quantity = Quantity(text, (*runs, ours), function, "ratio", (ours,))
        return replace(full(preset, quantity, 1, 1), gate=(10.0, 100.0), null=None)

    return [
        Claim(
            "C4",
            "CoordConv learns the uniform split 150 times faster than the best deconvolution, with 10-100 times fewer "
            "parameters",
            "abstract; the authors' blog",
            True,
            {"quick": small(quick, 20, 1), **{p: full(p, faster, 20, 1, 150.0) for p in FULL_PRESETS}},
            "training time to 85 % test accuracy, deconvolution over CoordConv; at least the ratio shown where the "
            "deconvolution never got there",
        ),
        Claim(
            "C4.size",
            "The best deconvolution on the uniform split has 10 to 100 times as many parameters as CoordConv",
            "abstract; the authors' blog",
            True,
            {preset: larger(preset) for preset in FULL_PRESETS},
        ),
    ]


# ---------------------------------------------------------------- rendering


def rendering() -> list[Claim]:
    """C5 and C6."""
    margins, levels = {"uniform": 0.1, "quadrant": 0.4}, {"uniform": 0.95, "quadrant": 0.9}
    paper = {"uniform": 0.83, "quadrant": 0.36}

    def small_gap(split: str) -> Quantity:
        experiment = f"rendering-{split}"
        fitted = TrainGate(experiment, "deconv", "train_rendering_iou", 0.8, "higher")
        pair = (experiment, "coordconv"), (experiment, "deconv")
        return difference(*pair, IOU, "IOU", claimed=[pair[0]], train_gates=[fitted])

    def full_gap(preset: str, split: str) -> Quantity:
        return gap(best_coordconv(preset, "rendering", split), best_deconv(preset, "rendering", split))

    def small_level(split: str) -> Quantity:
        return level(f"rendering-{split}", "coordconv", IOU, "IOU")

    def all_of(parts: dict[str, Quantity], gates: dict[str, float]) -> Quantity:
        return worst(*(beyond(part, gates[split]) for split, part in parts.items()), better="higher")

    gaps = {preset: {split: full_gap(preset, split) for split in margins} for preset in FULL_PRESETS}
    tops = {preset: {split: best_coordconv(preset, "rendering", split) for split in margins} for preset in FULL_PRESETS}
    gaps["cpu"], tops["cpu"] = ({s: make(s) for s in margins} for make in (small_gap, small_level))
    words = {"uniform": "Uniform", "quadrant": "Quadrant"}
    source = 'Fig. "SR"; the authors\' blog'

    def rules(parts: dict[str, Quantity], gate: float, null: float, value: float | None) -> dict[str, Rule]:
        found = {"cpu": small(parts["cpu"], gate, null, CPU_SEEDS)}
        return found | {preset: full(preset, parts[preset], gate, null, value) for preset in FULL_PRESETS}

    claims = [
        Claim(
            "C5",
            "Rendering: no deconvolution, of up to a million parameters and more and 90 minutes, gets a test IOU "
            "above 0.83 (uniform) or 0.36 (quadrant)",
            source,
            True,
            rules({preset: all_of(parts, margins) for preset, parts in gaps.items()}, 0, 0, None),
            "how far the IOU gap to CoordConv is beyond 0.1 (uniform) and 0.4 (quadrant), the worse split",
        ),
        Claim(
            "C6",
            "Rendering: many CoordConv models reach a test IOU of 1.0 on both splits",
            source,
            True,
            rules({preset: all_of(parts, levels) for preset, parts in tops.items()}, 0, 0, None),
            "how far the IOU is beyond 0.95 (uniform) and 0.9 (quadrant), the worse split",
        ),
    ]
    for split in margins:
        top = 1.0
        claims += [
            Claim(
                f"C5.{split}",
                f"{words[split]} split: the best deconvolution renders with IOU {paper[split]}, CoordConv with {top}",
                source,
                True,
                rules({p: parts[split] for p, parts in gaps.items()}, margins[split], 0, round(top - paper[split], 6)),
                "IOU of CoordConv minus that of the deconvolution (full size: the best on train, and the best on test)",
            ),
            Claim(
                f"C6.{split}",
                f"{words[split]} split: CoordConv renders with IOU {top}",
                source,
                True,
                rules({p: parts[split] for p, parts in tops.items()}, levels[split], levels[split], top),
            ),
        ]
    return claims


# ---------------------------------------------------------------- regression


def log_ratio(numerator: Quantity, denominator: Quantity) -> Quantity:
    """The decimal logarithm of the ratio of two positive numbers: their ratio's mean would be that of its largest."""
    both = gap(denominator, numerator)
    return replace(
        both,
        text=f"log10 of {numerator.text} over {denominator.text}",
        function=lambda metrics: math.log10(
            numerator.function(metrics) / denominator.function(metrics)  # type: ignore[operator]
        ),
        unit="log10 of a ratio",
    )


def regression() -> list[Claim]:
    """C7."""
    experiment = "regression-quadrant"
    fitted = TrainGate(experiment, "conv", "best_train_error", 1.0, "lower")
    conv = level(experiment, "conv", ERROR, PIXELS, claimed=(), train_gates=[fitted])
    ours = level(experiment, "coordconv", ERROR, PIXELS)

    def full_conv(preset: str) -> Quantity:
        methods = full_size(preset, "regression", "quadrant").baselines
        return best(experiment, methods, ERROR, PIXELS, better="lower")

    gate = round(math.log10(4), 6)
    return [
        Claim(
            "C7",
            "Regression: convolutions work poorly on the quadrant split; CoordConv, 906 parameters, fits both splits "
            "to within a few pixels at most",
            'Fig. "SCR"; the authors\' blog (the pixels from memory)',
            False,
            {
                "quick": small(log_ratio(conv, ours), gate, 0),
                **{p: full(p, log_ratio(full_conv(p), ours), gate, 0) for p in FULL_PRESETS},
            },
            "log10 of the convolution's test error over CoordConv's, each at its lowest train loss; the gate is a "
            "ratio of 4; `gpu`, `paper`: the best of nine convolutions",
        ),
        Claim(
            "C7.coordconv",
            "Quadrant split: CoordConv's held-out points are within 1.5 px (at full size 3 px) on average",
            "spec, section 10",
            False,
            {
                "quick": small(ours, 1.5, 1.5, better="lower"),
                **{p: full(p, ours, 3, 3, better="lower") for p in FULL_PRESETS},
            },
        ),
        Claim(
            "C7.conv",
            "Quadrant split: a convolution that fits its training set is more than 5 px off on held-out points",
            "spec, section 10",
            False,
            {"quick": small(conv, 5, 5), **{p: full(p, full_conv(p), 5, 5) for p in FULL_PRESETS}},
        ),
    ]


# ---------------------------------------------------------------- the study: ours, not the paper's


def study() -> list[Claim]:
    """Questions that the paper leaves open, with intervals."""

    def more(experiment: str, first: str, second: str, metric: str, unit: str) -> Quantity:
        pair = (experiment, first), (experiment, second)
        return difference(*pair, metric, unit, claimed=[pair[0]])

    def steps(method: str) -> Quantity:
        return level("ablations-uniform", method, "steps_to_85", "steps", claimed=())

    coordinates, padding = "study-coordinates", "study-padding-uniform"
    return [
        Claim(
            "S-raw",
            "Uniform split, CoordConv: with raw pixel numbers as input, as in the released code, it takes at least "
            "twice as many steps to 85 % as with (x, y) scaled to [-1, 1]",
            "ours",
            True,
            {"cpu": small(log_ratio(steps("raw"), steps("coordconv")), round(math.log10(2), 6), 0, CPU_SEEDS)},
            "log10 of the ratio of the steps",
        ),
        Claim(
            "S-fourier",
            "Quadrant split, CoordConv: scaled (x, y) generalises better than Fourier features of it",
            "ours",
            True,
            {
                "cpu": small(
                    more(coordinates, "scaled-wd0.001", "fourier-wd0.001", ACCURACY, PERCENT), 0, 0, STUDY_SEEDS
                )
            },
        ),
        Claim(
            "S-l2",
            "Quadrant split, CoordConv: a weight penalty of 0.001 generalises better than none",
            "ours; the paper's grid has both",
            True,
            {"cpu": small(more(coordinates, "scaled-wd0.001", "scaled-wd0", ACCURACY, PERCENT), 0, 0, STUDY_SEEDS)},
        ),
        Claim(
            "S-padding",
            "A convolutional regressor without coordinates reads positions off its zero padding: with circular padding "
            "its held-out error on the uniform split is larger",
            "ours",
            True,
            {"cpu": small(more(padding, "circular", "zeros", ERROR, PIXELS), 0, 0, STUDY_SEEDS)},
        ),
        Claim(
            "S-stride",
            "Zero padding is not the only leak: with circular padding, strides alone tell the same regressor where a "
            "pixel is, to less than 5 px on held-out samples (always answering the middle: 10.7 px)",
            "ours",
            True,
            {"cpu": small(level(padding, "circular", ERROR, PIXELS), 5, 10.7, STUDY_SEEDS, "lower")},
        ),
        Claim(
            "S-coords",
            "Uniform split: the same network without coordinate channels stays at chance (at most 1 %)",
            "ours; follows from spec 12.10",
            True,
            {"cpu": small(level("ablations-uniform", "no-coords", ACCURACY, PERCENT), 1, 1, CPU_SEEDS, "lower")},
        ),
    ]


CLAIMS: tuple[Claim, ...] = (*classification(), *speed_and_size(), *rendering(), *regression(), *study())
