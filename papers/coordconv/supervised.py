"""Experiments of the supervised tasks (spec, sections 5, 7 and 10): classification, rendering, regression, the sweep,
and a study of ours. Their claims are in `supervised_claims.py`. Loads no torch.

`quick` and `cpu` use a canvas of 32 pixels with squares of 5, where every arm sees scaled coordinates unless its name
says otherwise; `gpu` and `paper` the paper's canvas of 64 with squares of 9.
"""

from collections.abc import Mapping
from typing import Any

from common.paper import Experiment, Metric, Need, Stacking
from papers.coordconv.config import Config, TimeTo
from papers.coordconv.supervised_claims import CLAIMS
from papers.coordconv.sweeps import FULL, SMALL, SPLITS, Methods, full_size, schedule, small_sweep

__all__ = ["CLAIMS", "EXPERIMENTS", "METRICS"]

RUN = "papers.coordconv.module:run"
TIME_TO = "papers.coordconv.module:run_time_to"


def _shape(config: Mapping[str, Any]) -> str:
    return Config.of(config).shape


MEASURED = Stacking("papers.coordconv.module:run_stack", _shape, probe="papers.coordconv.module:seconds_per_step")
"""Runs of one shape are stacked where this machine is faster so."""
BY_THREE = Stacking("papers.coordconv.module:run_stack", _shape, size=3)
"""`quick`'s numbers must not depend on the machine, so neither does what it stacks; it gained a tenth on two cores."""


def pick(methods: Mapping[str, Mapping[str, Any]], *names: str) -> Methods:
    """Some of the methods, in the order of the names."""
    return {name: methods[name] for name in names}


def supervised(
    name: str,
    split: str,
    methods: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    seeds: int,
    stacking: Stacking | None = MEASURED,
) -> Experiment:
    """An experiment on one split."""
    side, square = config["canvas"], config["square"]
    return Experiment(
        name,
        methods,
        {**config, "split": split},
        described=f"Not-so-Clevr, {side}x{side} pixels, {square}x{square} squares (generated), {split} split",
        seeds=seeds,
        function=RUN,
        check_config=Config.of,
        stacking=stacking,
    )


def time_to(method: str, baseline: str, experiment: str, described: str, seeds: int) -> Experiment:
    """Time to 85 % test accuracy of two methods of an experiment, with nothing running beside."""
    return Experiment(
        "time-to-85",
        {"ratio": {}},
        {"target": 85.0},
        described=described,
        seeds=seeds,
        needs={"ratio": {"method": Need(experiment, method), "baseline": Need(experiment, baseline)}},
        function=TIME_TO,
        exclusive=True,
        check_config=TimeTo.of,
    )


# ---------------------------------------------------------------- methods

CLASSIFY: dict[str, Any] = {"task": "classification", "batch_size": 16, "learning_rate": 0.01}
RENDER: dict[str, Any] = {"task": "rendering", "loss": "sigmoid", "batch_size": 16, "learning_rate": 0.005}
REGRESS: dict[str, Any] = {"task": "regression", "loss": "mse", "batch_size": 32, "learning_rate": 0.001}

# What classifies or renders (spec, section 7); `coordconv` is the paper's.
PAINTERS: Methods = {
    "coordconv": {},
    "with-radius": {"radius": True},
    "raw": {"coordinates": "raw"},
    "fourier-input": {"coordinates": "fourier"},
    "fourier": {"network": "fourier"},
    "no-coords": {"network": "no-coords"},
    "mlp": {"network": "mlp"},
    "deconv": {"network": "deconv", "kernel": 3},
    "upsample": {"network": "upsample", "kernel": 3},
    "upsample-coordconv": {"network": "upsample-coordconv", "kernel": 3},
}
RENDERERS: Methods = {
    "no-softmax": {"render_softmax": False},
    "k1": {"render_kernel": 1},
    "m2": {"multiplier": 2},
    "centre-loss": {"centre_loss": "cross-entropy"},
    "centre-mse": {"centre_loss": "mse"},
    "mse": {"loss": "mse"},
}
REGRESSORS: Methods = {
    "coordconv": {},
    "mean-pooling": {"pooling": "mean"},
    "relu": {"relu": True},
    "no-coords": {"network": "no-coords"},
    "conv-uniform": {"network": "conv-uniform"},
    "conv-quadrant": {"network": "conv-quadrant"},
    "conv-uniform-circular": {"network": "conv-uniform", "padding": "circular"},
    "conv-quadrant-circular": {"network": "conv-quadrant", "padding": "circular"},
}

# ---------------------------------------------------------------- smoke

TINY: dict[str, Any] = {
    "canvas": 8, "square": 3, "batch_size": 4, "steps": 8, "evaluate_every": 4, "checkpoint_every": 2, "log_every": 4,
    "steps_per_call": 2,
}  # fmt: skip
SMOKE = (
    supervised("classification-uniform", "uniform", PAINTERS, {**CLASSIFY, **TINY}, 1),
    supervised(
        "classification-quadrant",
        "quadrant",
        {
            **pick(PAINTERS, "coordconv"),
            **{f"deconv-wd{l2:g}": {**PAINTERS["deconv"], "l2": l2, "decay_every": 2} for l2 in (0, 0.001)},
        },
        {**CLASSIFY, **TINY},
        1,
    ),
    supervised(
        "rendering-uniform", "uniform", {**pick(PAINTERS, "coordconv", "deconv"), **RENDERERS}, {**RENDER, **TINY}, 1
    ),
    supervised("regression-quadrant", "quadrant", REGRESSORS, {**REGRESS, **TINY}, 1),
    time_to("coordconv", "deconv", "classification-uniform", "Not-so-Clevr, 8x8 pixels", 1),
)

# ---------------------------------------------------------------- quick

QUICK_SEEDS = 5
# Every schedule ends with a tenth of the learning rate; at the full one, chance decides on the last evaluation.
DECONV: dict[str, Any] = {
    "network": "deconv", "kernel": 3, "learning_rate": 0.01, **schedule(5200, 8), "decay_every": 3900
}  # fmt: skip
# On the quadrant split CoordConv needs the penalty and patience (spec, section 8).
PATIENT: dict[str, Any] = {"l2": 0.001, **schedule(2000, 10), "decay_every": 1600}
CLASSIFIERS: dict[str, Methods] = {
    "uniform": {"coordconv": {"l2": 0.001, **schedule(520, 40), "decay_every": 390}, "deconv": DECONV},
    "quadrant": {"coordconv": PATIENT, "deconv": DECONV},
}
REGRESSION_STEPS = {**schedule(1500, 15, 10), "decay_every": 1000}
QUICK_REGRESSORS: Methods = {
    "coordconv": REGRESSION_STEPS,
    "conv": {"network": "conv-quadrant", **REGRESSION_STEPS},
}
QUICK = (
    *(
        supervised(f"classification-{split}", split, CLASSIFIERS[split], {**CLASSIFY, **SMALL}, QUICK_SEEDS, BY_THREE)
        for split in SPLITS
    ),
    supervised("regression-quadrant", "quadrant", QUICK_REGRESSORS, {**REGRESS, **SMALL}, QUICK_SEEDS, None),
    time_to(
        "coordconv", "deconv", "classification-uniform", "Not-so-Clevr, 32x32 pixels, 5x5 squares (generated)",
        QUICK_SEEDS,
    ),
)  # fmt: skip

# ---------------------------------------------------------------- cpu: rendering, the study, ablations, a small sweep

CPU_SEEDS, STUDY_SEEDS = 3, 5
RENDER_STEPS = {"l2": 1e-5, **schedule(2600, 5), "decay_every": 2000}
CPU_RENDERERS: Methods = {
    "coordconv": RENDER_STEPS,
    "no-softmax": {"render_softmax": False, **RENDER_STEPS},
    "deconv": {**DECONV, "learning_rate": 0.005},
}
STUDY: Methods = {
    f"{coordinates}-wd{l2:g}": {**PATIENT, "coordinates": coordinates, "l2": l2}
    for coordinates, penalties in (("scaled", (0, 1e-4, 1e-3, 1e-2)), ("raw", (0, 1e-3)), ("fourier", (0, 1e-3)))
    for l2 in penalties
}
PADDING: Methods = {
    "zeros": {"network": "conv-quadrant", **REGRESSION_STEPS},
    "circular": {"network": "conv-quadrant", "padding": "circular", **REGRESSION_STEPS},
}
SHORT = {**schedule(780, 30), "decay_every": 650}
ABLATIONS: Methods = {
    name: {"l2": 0 if name.startswith("upsample") else 0.001, **settings, **SHORT}
    for name, settings in pick(
        PAINTERS,
        "coordconv",
        "with-radius",
        "raw",
        "fourier-input",
        "no-coords",
        "fourier",
        "mlp",
        "upsample",
        "upsample-coordconv",
    ).items()
}
REGRESSION_ABLATIONS: Methods = {
    name: {**REGRESSORS[name], **REGRESSION_STEPS}
    for name in ("coordconv", "mean-pooling", "relu", "no-coords", "conv-uniform", "conv-quadrant")
}


CPU = (
    *(supervised(f"rendering-{split}", split, CPU_RENDERERS, {**RENDER, **SMALL}, CPU_SEEDS) for split in SPLITS),
    supervised("study-coordinates", "quadrant", STUDY, {**CLASSIFY, **SMALL}, STUDY_SEEDS),
    *(supervised(f"study-padding-{split}", split, PADDING, {**REGRESS, **SMALL}, STUDY_SEEDS) for split in SPLITS),
    supervised("ablations-uniform", "uniform", ABLATIONS, {**CLASSIFY, **SMALL}, CPU_SEEDS),
    *(
        supervised(f"regression-{split}", split, REGRESSION_ABLATIONS, {**REGRESS, **SMALL}, CPU_SEEDS)
        for split in SPLITS
    ),
    *(supervised(f"sweep-{split}", split, small_sweep(split), {**CLASSIFY, **SMALL}, 1) for split in SPLITS),
)

# ---------------------------------------------------------------- gpu and paper: the paper's canvas

RELEASED = pick(PAINTERS, "coordconv", "raw")
FULL_CLASSIFY: dict[str, Any] = {**CLASSIFY, **FULL, "learning_rate": 0.005, "evaluation_batch_size": 98}
FULL_RENDER: dict[str, Any] = {**RENDER, **FULL, "evaluation_batch_size": 98}
FULL_REGRESS: dict[str, Any] = {**REGRESS, **FULL, "batch_size": 256, "evaluation_batch_size": 98}
SWEEP_SEEDS = 3


def full_size_experiments(preset: str) -> tuple[Experiment, ...]:
    """The sweeps of the three tasks on both splits."""
    configs = {"classification": FULL_CLASSIFY, "rendering": FULL_RENDER, "regression": FULL_REGRESS}
    return tuple(
        supervised(f"{task}-{split}", split, full_size(preset, task, split).methods, config, SWEEP_SEEDS)
        for task, config in configs.items()
        for split in SPLITS
    )


FULL_TIME_TO = time_to(
    "coordconv-k1-lr0.005-m1-b16-wd0.001",
    "deconv-k3-lr0.01-m2-b16-wd0",
    "classification-uniform",
    "Not-so-Clevr, 64x64 pixels, 9x9 squares (generated)",
    SWEEP_SEEDS,
)
FULL_STEPS = schedule(7850, 25, 128)
PAPER_ABLATIONS: dict[str, dict[str, Methods]] = {
    "classification": {
        split: {
            name: {"l2": 0.001, **settings, **FULL_STEPS} for name, settings in PAINTERS.items() if name != "deconv"
        }
        for split in SPLITS
    },
    "regression": {
        split: {name: {**settings, **schedule(1000, 50, 10)} for name, settings in REGRESSORS.items()}
        for split in SPLITS
    },
    "rendering": {
        split: {name: {**settings, **FULL_STEPS} for name, settings in RENDERERS.items()} for split in SPLITS
    },
}
PAPER = (
    *full_size_experiments("paper"),
    FULL_TIME_TO,
    *(
        supervised(f"ablations-{task}-{split}", split, methods[split], config, SWEEP_SEEDS)
        for (task, methods), config in zip(
            PAPER_ABLATIONS.items(), (FULL_CLASSIFY, FULL_REGRESS, FULL_RENDER), strict=True
        )
        for split in SPLITS
    ),
    supervised("released-splits-uniform", "uniform-released", RELEASED, FULL_CLASSIFY, SWEEP_SEEDS),
    supervised("released-splits-quadrant", "quadrant-released", RELEASED, FULL_CLASSIFY, SWEEP_SEEDS),
)

EXPERIMENTS: dict[str, tuple[Experiment, ...]] = {
    "smoke": SMOKE,
    "quick": QUICK,
    "cpu": CPU,
    "gpu": (*full_size_experiments("gpu"), FULL_TIME_TO),
    "paper": PAPER,
}

EXAMPLES = {
    "test": "held-out centres (uniform, quadrant: 157, 196 of 784 at 32x32; 627, 784 of 3,136 at 64x64)",
    "train": "the other centres",
}
METRICS: dict[str, Metric] = {
    f"{side}_{name}": Metric(unit, better, side, "last", f"{words}; {examples}")
    for side, examples in EXAMPLES.items()
    for name, unit, better, words in (
        ("accuracy", "percent", "higher", "classification: the pixel with the highest logit is the one asked for"),
        ("distance", "px", "lower", "classification: mean Euclidean distance of that pixel"),
        ("manhattan", "px", "lower", "classification: mean Manhattan distance of that pixel"),
        ("rendering_iou", "IOU", "higher", "rendering: mean intersection over union of the painted square"),
        ("error", "px", "lower", "regression: mean Euclidean distance"),
        ("exact", "percent", "higher", "regression: exact after rounding"),
    )
}
METRICS |= {
    f"best_{name}": Metric(
        METRICS[name].unit, METRICS[name].better, METRICS[name].split, "best on train loss", METRICS[name].description
    )
    for name in ("train_error", "test_error", "train_exact", "test_exact")
}
METRICS |= {
    "steps_to_85": Metric(
        "steps", "lower", "test", "first evaluation at 85 % or more",
        "classification: training steps until 85 % of the held-out pixels are right; a bound where it never came",
    ),
    "parameters": Metric("parameters", "lower", "none", "once", "trained numbers of the network"),
    "time_ratio": Metric(
        "ratio", "higher", "test", "first evaluation at 85 % or more",
        "training time to 85 % test accuracy, baseline over CoordConv; a bound where the baseline never got there",
    ),
    "method_seconds": Metric("s", "lower", "test", "first evaluation at 85 % or more", "CoordConv's training time"),
    "baseline_seconds": Metric("s", "lower", "test", "first evaluation at 85 % or more", "the baseline's"),
    "method_step_ms": Metric("ms", "lower", "train", "median of 10", "one training step of CoordConv, alone"),
    "baseline_step_ms": Metric("ms", "lower", "train", "median of 10", "one training step of the baseline, alone"),
}  # fmt: skip
