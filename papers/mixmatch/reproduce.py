"""MixMatch (Berthelot et al., NeurIPS 2019): presets, experiments and methods. The claims are in `claims.py`.

`python -m papers.mixmatch.reproduce` trains and judges; importing this loads no torch.
"""

import json
from collections.abc import Mapping
from typing import Any

from common.paper import DataSource, Experiment, Metric, Need, Paper, Preset, Stacking
from papers.mixmatch.claims import CLAIMS
from papers.mixmatch.config import Config

RUN = "papers.mixmatch.module:run"
# The same run function, by the name under which the code of stacks is part of a run's key.
STACKABLE_RUN = "papers.mixmatch.stacked:run"
PATE_TEACHERS = "papers.mixmatch.pate:run_teachers"
PATE_STUDENT = "papers.mixmatch.pate:run_student"

# Table 4: what each ablation changes in MixMatch. A0 is `mixmatch` itself; A10 is the method `ict`.
ABLATIONS: dict[str, dict[str, Any]] = {
    "k1": {"num_views": 1},
    "k3": {"num_views": 3},
    "k4": {"num_views": 4},
    "no-sharpening": {"temperature": 1.0},
    "ema-guess": {"guess_with": "ema"},
    "no-mixup": {"mixing": "."},
    "mixup-labeled-only": {"mixing": "xx."},
    "mixup-unlabeled-only": {"mixing": ".yy"},
    "mixup-separate": {"mixing": "xx.yy"},
}
# Spec, section 8: what public code does differently, each a switch.
VARIANTS: dict[str, dict[str, Any]] = {
    "batch-norm-official": {"batch_norm": "official"},
    "batch-norm-all": {"batch_norm": "all-batches"},
    "batch-norm-frozen": {"batch_norm": "frozen"},
    "no-interleave": {"interleave": False},
    "one-lambda": {"per_item_lambda": False},
    "cross-entropy": {"unlabeled_loss": "cross-entropy"},
}


def baselines(data: str, steps: int) -> dict[str, dict[str, Any]]:
    """The baselines' own settings (spec, section 5) on "cifar10", "svhn" or "svhn+extra"; ramp over 40 % of the run."""
    column = {"cifar10": 0, "svhn": 1, "svhn+extra": 2}[data]

    def of(*values: float) -> float:
        return values[column]

    ramp = {"ramp_steps": int(0.4 * steps)}
    return {
        "supervised": {"method": "supervised"},
        "pseudo-label": {"method": "pseudo-label", "unlabeled_weight": of(1, 2, 2), "label_smoothing": 0.01, **ramp},
        "pi-model": {
            "method": "pi-model",
            "unlabeled_weight": of(20, 5, 5),
            "weight_decay": of(0.02, 0.2, 0.2),
            "label_smoothing": 0.001,
            **ramp,
        },
        "mean-teacher": {
            "method": "mean-teacher",
            "unlabeled_weight": of(50, 150, 180),
            "weight_decay": of(0.2, 0.02, 0.02),
            "label_smoothing": 0.001,
            **ramp,
        },
        "vat": {"method": "vat", "unlabeled_weight": 0.3, "label_smoothing": 0.01, **ramp},
        "ssl-mixup": {"method": "ssl-mixup", "alpha": of(0.75, 0.25, 0.25)},
        "ict": {"method": "ict", "unlabeled_weight": of(1000, 20, 20), "alpha": of(0.75, 0.5, 0.5), **ramp},
    }


def settings_text(config: Mapping[str, Any]) -> str:
    """Equal where runs differ in nothing but their seeds: only those are stacked."""
    return json.dumps(dict(config), sort_keys=True)


# Five is half of ten seeds: one stack for each of two cores.
STACKING = Stacking("papers.mixmatch.stacked:run_stack", settings_text, size=5)


def pick(methods: Mapping[str, Mapping[str, Any]], *names: str) -> dict[str, Mapping[str, Any]]:
    """Some of the methods, in the order of the names."""
    return {name: methods[name] for name in names}


MIXMATCH: dict[str, dict[str, Any]] = {"mixmatch": {}}

# ---------------------------------------------------------------- quick and smoke: built in or generated

DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "num_labeled": 20,
    "model": "convnet",
    "bn_momentum": 0.05,
    "steps": 500,
    "batch_size": 32,
    "unlabeled_batch_size": 32,
    "ema_decay": 0.99,
    "ramp_steps": 400,
    "flip": False,
    "reflect_crop": 0,
    "shift": 1,
    "noise": 0.1,
    "evaluate_every": 50,
    "median_of": 1,
    "checkpoint_every": 125,
    "log_every": 50,
    "steps_per_call": 25,
    "evaluation_batch_size": 500,
}
TEXTURES: dict[str, Any] = {
    "dataset": "textures",
    "num_labeled": 40,
    "model": "wrn-10-1",
    "bn_momentum": 0.05,
    "steps": 400,
    "batch_size": 32,
    "unlabeled_batch_size": 32,
    "ema_decay": 0.99,
    "ramp_steps": 200,
    "flip": False,
    "evaluate_every": 100,
    "median_of": 1,
    "checkpoint_every": 100,
    "log_every": 50,
    "steps_per_call": 10,
    "evaluation_batch_size": 250,
}
PATE: dict[str, Any] = {
    **DIGITS,
    "num_labeled": 40,
    "num_teachers": 30,
    "num_private": 900,
    "threshold_sigma": 3.0,
    "answer_sigma": 2.0,
    "vote_threshold": 12.0,
}
PATE_KEYS = ("num_teachers", "num_private", "threshold_sigma", "answer_sigma", "vote_threshold")
DIGITS_BASELINES = baselines("cifar10", DIGITS["steps"])


def pate_experiment(
    config: Mapping[str, Any],
    seeds: int,
    name: str = "digits-pate",
    described: str = "",
    data: tuple[DataSource, ...] = (),
) -> Experiment:
    """Teachers on disjoint private shards answer queries with noise; students learn from the answers."""
    return Experiment(
        name,
        {"teachers": {}, "supervised": {"method": "supervised"}, "mixmatch": {}},
        config,
        data,
        described,
        seeds,
        needs={student: {"teachers": Need(name, "teachers")} for student in ("supervised", "mixmatch")},
        function=PATE_STUDENT,
        functions={"teachers": PATE_TEACHERS},
    )


DIGITS_TEXT = "scikit-learn digits (8x8, built in), 20 labels, 500 test"
SMOKE_STEPS = {
    "steps": 8,
    "ramp_steps": 4,
    "evaluate_every": 4,
    "checkpoint_every": 2,
    "log_every": 4,
    "steps_per_call": 2,
}

SMOKE = Preset(
    "smoke",
    (
        Experiment(
            "digits-20",
            {**MIXMATCH, **DIGITS_BASELINES, **ABLATIONS, **VARIANTS},
            {**DIGITS, **SMOKE_STEPS},
            described=DIGITS_TEXT,
            seeds=1,
        ),
        Experiment(
            "textures-40",
            pick({**MIXMATCH, **DIGITS_BASELINES}, "supervised", "mixmatch"),
            {**TEXTURES, **SMOKE_STEPS, "evaluation_batch_size": 1000},
            described="procedural textures",
            seeds=1,
        ),
        pate_experiment({**PATE, **SMOKE_STEPS}, 1, described="scikit-learn digits (built in)"),
    ),
    cost="20 s",
    description="every code path, for CI",
)
QUICK = Preset(
    "quick",
    (
        Experiment(
            "digits-20",
            {
                **pick(DIGITS_BASELINES, "supervised", "pseudo-label"),
                **MIXMATCH,
                **pick(ABLATIONS, "no-sharpening", "no-mixup", "mixup-labeled-only", "k1"),
            },
            DIGITS,
            described=DIGITS_TEXT,
            seeds=10,
            function=STACKABLE_RUN,
            stacking=STACKING,
        ),
        pate_experiment(PATE, 10, described="scikit-learn digits (built in), labels answered by 30 noisy teachers"),
        Experiment(
            "textures-40",
            pick({**MIXMATCH, **DIGITS_BASELINES}, "supervised", "mixmatch"),
            TEXTURES,
            described="procedural textures 32x32x3 (generated), 40 labels, 1,000 test",
            seeds=3,
        ),
    ),
    cost="10 minutes on 2 cores",
    description="stand-ins that are built in or generated; no download",
)

# ---------------------------------------------------------------- cpu: real images, small network, short schedule

CPU: dict[str, Any] = {
    "model": "wrn-10-1",
    "bn_momentum": 0.01,
    "steps": 2048,
    "batch_size": 32,
    "unlabeled_batch_size": 32,
    "ema_decay": 0.99,
    "evaluate_every": 1024,
    "median_of": 1,
    "checkpoint_every": 128,
    "log_every": 64,
    "steps_per_call": 8,
    "evaluation_batch_size": 500,
}


def cpu_methods(steps: int) -> dict[str, Mapping[str, Any]]:
    """What `cpu` compares; the baselines' ramps follow the number of steps."""
    return {
        **pick(baselines("cifar10", steps), "supervised", "pseudo-label", "mean-teacher"),
        **MIXMATCH,
        **pick(ABLATIONS, "no-sharpening", "no-mixup"),
    }


# MNIST is learnt sooner.
MNIST = {**CPU, "steps": 1024, "evaluate_every": 512, "dataset": "mnist", "num_labeled": 40}
CPU_PRESET = Preset(
    "cpu",
    (
        Experiment(
            "cifar10-250",
            cpu_methods(CPU["steps"]),
            {**CPU, "dataset": "cifar10", "split": "holdout", "num_labeled": 250},
            (DataSource("cifar10", "holdout"),),
            "CIFAR-10 holdout (train batches 1-4, test batch 5), 250 labels, WRN-10-1, 2,048 steps of 32+32",
            3,
        ),
        Experiment(
            "mnist-40",
            cpu_methods(MNIST["steps"]),
            {**MNIST, "flip": False, "reflect_crop": 2},
            (DataSource("mnist"),),
            "MNIST, 40 labels, WRN-10-1, 1,024 steps of 32+32",
            3,
        ),
    ),
    cost="2 hours on 2 cores",
    description="real images (DATA_DIR), small network, short schedule, a holdout",
    bf16=True,
)

# ---------------------------------------------------------------- gpu and paper

CIFAR10 = (DataSource("cifar10"),)
GPU_STEPS = 2**15
GPU: dict[str, Any] = {
    "steps": GPU_STEPS,
    "ramp_steps": 2048,
    "evaluate_every": 1024,
    "checkpoint_every": 4096,
    "steps_per_call": 64,
}
GPU_PRESET = Preset(
    "gpu",
    tuple(
        Experiment(
            f"cifar10-{labels}",
            {**MIXMATCH, **pick(baselines("cifar10", GPU_STEPS), "supervised", "mean-teacher")},
            {**GPU, "num_labeled": labels},
            CIFAR10,
            f"CIFAR-10, {labels} labels, WRN-28-2, 2^15 steps",
            3,
        )
        for labels in (250, 4000)
    ),
    cost="about an hour on one H200-class GPU (estimated)",
    description="the paper's data and network, 1/32 of the schedule",
    needs_gpu=True,
    bf16=True,
)

STEPS = Config().steps
PAPER_LABELS = (250, 500, 1000, 2000, 4000)
FULL: dict[str, Any] = {"conv_bias": True, "steps_per_call": 64}
SVHN: dict[str, Any] = {**FULL, "dataset": "svhn", "flip": False, "unlabeled_weight": 250.0}
EXTRA: dict[str, Any] = {**SVHN, "dataset": "svhn+extra", "alpha": 0.25}
LARGE: dict[str, Any] = {**FULL, "model": "wrn-28-2-large", "weight_decay": 0.04}
STL10: dict[str, Any] = {**FULL, "dataset": "stl10", "model": "wrn-stl10", "unlabeled_weight": 50.0, "reflect_crop": 12}
ABLATION: dict[str, Any] = {**FULL, "unlabeled_weight": 100.0, "ramp_steps": 2048}
PATE_SVHN: dict[str, Any] = {
    **SVHN,
    "unlabeled_weight": 75.0,
    "weight_decay": 0.04,
    "steps": 2**17,
    "num_labeled": 138,
    "num_teachers": 250,
    "num_private": 0,
    "threshold_sigma": 200.0,
    "answer_sigma": 40.0,
    "vote_threshold": 300.0,
}


def tables() -> tuple[Experiment, ...]:
    """Tables 1, 2, 4-8 of the paper and section 4.3, each row and column."""
    everything = {**MIXMATCH}
    found = []
    for data, config, source, words in (
        ("cifar10", FULL, DataSource("cifar10"), "CIFAR-10"),
        ("svhn", SVHN, DataSource("svhn"), "SVHN"),
        ("svhn+extra", EXTRA, DataSource("svhn", "extra"), "SVHN with extra"),
    ):
        methods = {**everything, **baselines(data, STEPS)}
        name = data.replace("+", "-")
        found += [
            Experiment(
                f"{name}-{labels}", methods, {**config, "num_labeled": labels}, (source,), f"{words}, {labels} labels"
            )
            for labels in PAPER_LABELS
        ]
        smoothing, decay = (0.001, 0.02) if data == "cifar10" else (0.01, 0.002)
        full = {"supervised": {"method": "supervised", "label_smoothing": smoothing, "weight_decay": decay}}
        found.append(Experiment(f"{name}-all", full, {**config, "num_labeled": 0}, (source,), f"{words}, all labels"))
    large100 = {**LARGE, "dataset": "cifar100", "unlabeled_weight": 150.0, "num_labeled": 10_000}
    found.append(
        Experiment(
            "cifar10-large-4000",
            MIXMATCH,
            {**LARGE, "num_labeled": 4000},
            CIFAR10,
            "CIFAR-10, 4000 labels, 26M parameters",
        )
    )
    found.append(
        Experiment(
            "cifar100-large-10000",
            MIXMATCH,
            large100,
            (DataSource("cifar100"),),
            "CIFAR-100, 10000 labels, 26M parameters",
        )
    )
    stl_methods = {**MIXMATCH, "supervised": {"method": "supervised"}}
    found += [
        Experiment(
            f"stl10-{labels}",
            stl_methods,
            {**STL10, "num_labeled": labels},
            (DataSource("stl10"),),
            f"STL-10, {labels} labels",
        )
        for labels in (1000, 5000)
    ]
    ablated = {**MIXMATCH, **ABLATIONS, "ict": baselines("cifar10", STEPS)["ict"], **VARIANTS}
    found += [
        Experiment(
            f"cifar10-ablation-{labels}",
            ablated,
            {**ABLATION, "num_labeled": labels},
            CIFAR10,
            f"CIFAR-10, {labels} labels, Table 4's settings",
        )
        for labels in (250, 4000)
    ]
    for data, config, counts in (("cifar10", FULL, (250, 4000)), ("svhn", SVHN, (250, 1000))):
        methods = {**MIXMATCH, **pick(baselines(data, STEPS), "mean-teacher")}
        found += [
            Experiment(
                f"{data}-cnn13-{labels}",
                methods,
                {**config, "model": "convnet13", "num_labeled": labels},
                (DataSource(data),),
                f"{data}, {labels} labels, 13-layer network",
            )
            for labels in counts
        ]
    found.append(
        pate_experiment(
            PATE_SVHN, 10, "svhn-pate", "SVHN, 138 labels answered by noisy teachers", (DataSource("svhn"),)
        )
    )
    return tuple(found)


PAPER_PRESET = Preset(
    "paper",
    tables(),
    cost="weeks of GPU time; half an hour to an hour a run (estimated)",
    description="Tables 1, 2, 4-8 and section 4.3 at full length",
    needs_gpu=True,
    bf16=True,
)

METRICS = {
    "test_error": Metric(
        "percent",
        "lower",
        "test",
        "last (quick, cpu), median of last 20 (gpu, paper)",
        "wrong predictions on the test split (CIFAR-10 in `cpu`: training batch 5); examples: digits 500, "
        "textures 1,000, MNIST and CIFAR 10,000, SVHN 26,032, STL-10 8,000",
        weights="EMA",
    ),
    "train_error": Metric(
        "percent", "lower", "labeled", "last", "wrong predictions on the labelled images", weights="EMA"
    ),
    "test_accuracy": Metric(
        "percent",
        "higher",
        "test",
        "last (quick), median of last 20 (paper)",
        "right predictions on the test split; examples: digits 500, SVHN 16,032",
        weights="EMA",
    ),
    "asked": Metric("queries", "lower", "queries", "once", "queries put to the teachers"),
    "answered": Metric("queries", "higher", "queries", "once", "queries the teachers answered"),
    "answer_accuracy": Metric("percent", "higher", "queries", "once", "right answers among those given"),
    "teacher_accuracy": Metric("percent", "higher", "test", "once", "mean accuracy of one teacher"),
    "epsilon": Metric("epsilon", "lower", "queries", "once", "privacy loss at delta 1e-5 (data-dependent Renyi bound)"),
}

PAPER = Paper(
    name="mixmatch",
    title="MixMatch: A Holistic Approach to Semi-Supervised Learning",
    citation="Berthelot, Carlini, Goodfellow, Papernot, Oliver, Raffel. NeurIPS 2019. arXiv:1905.02249",
    function=RUN,
    presets=(SMOKE, QUICK, CPU_PRESET, GPU_PRESET, PAPER_PRESET),
    claims=CLAIMS,
    metrics=METRICS,
    check_config=lambda config: Config.of({k: v for k, v in config.items() if k not in PATE_KEYS}),
    bench="papers.mixmatch.bench:rows",
)

if __name__ == "__main__":
    from common.command import paper_command
    from common.errors import main

    main(lambda: paper_command(PAPER))
