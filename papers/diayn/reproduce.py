"""DIAYN (Eysenbach et al., 2019): the paper as presets. Experiments: `experiments.py` and `full_scale.py`.

`python -m papers.diayn.reproduce` trains and judges; importing this loads no torch.
"""

from collections.abc import Mapping
from dataclasses import replace

from common.command import paper_command
from common.errors import main
from common.paper import Metric, Paper, Preset
from papers.diayn import experiments, full_scale
from papers.diayn.claims import CLAIMS
from papers.diayn.config import Config

PRESETS = (
    Preset("smoke", experiments.SMOKE, cost="10 s", description="every code path, for CI"),
    Preset(
        "quick",
        experiments.QUICK,
        cost="9 min on 2 cores",
        description="2-D box, hallway, mountain car, waypoints: our own environments, no download",
    ),
    Preset(
        "cpu",
        full_scale.CPU,
        cost="about an hour and a half on 2 cores",
        description="HalfCheetah, Hopper, inverted pendulum, gymnasium's mountain car; small networks",
    ),
    Preset(
        "gpu",
        full_scale.GPU,
        cost="about an hour on one H200-class GPU (estimated)",
        description="the paper's network on HalfCheetah, Hopper and Ant for up to 1M steps; the box",
        needs_gpu=True,
    ),
    Preset(
        "paper",
        full_scale.PAPER,
        cost="weeks on one GPU: 10M steps of a robot with 50 skills take hours a stack of runs (estimated)",
        description="every figure at full length, in the paper's form and with twin critics",
        needs_gpu=True,
    ),
)


def _of_skills(unit: str, better: str, description: str) -> Metric:
    return Metric(unit, better, "new episodes", "last", description)


def _before(metric: Metric) -> Metric:
    return Metric(metric.unit, metric.better, metric.split, "before training", metric.description)


def metrics() -> dict[str, Metric]:
    """Every number that a run returns."""
    found = {
        "accuracy": _of_skills(
            "fraction",
            "higher",
            "states of stochastic episodes whose skill the classifier names; mean over skills",
        ),
        "weighted_accuracy": _of_skills("fraction", "higher", "the same, skills weighted by p(z)"),
        "mutual_information": _of_skills(
            "nats", "higher", "H[p(z)] + E log q(z|s): lower bound on the mutual information of state and skill"
        ),
        "effective_skills": _of_skills("skills", "higher", "exp(H[p(z)])"),
        "policy_entropy": _of_skills("nats", "higher", "estimate of H[A|S,Z]: mean of -log pi(a|s,z)"),
        "coverage": _of_skills("fraction", "higher", "cells of a 10 x 10 grid of the plane that some skill visits"),
        "cells_per_skill": _of_skills("cells", "higher", "cells of that grid that one skill visits"),
        "displacement": _of_skills("distance", "higher", "from start to end of an episode, in the plane"),
        "return_mean": _of_skills("return", "higher", "mean over skills of their mean returns in the task"),
        "return_std": _of_skills("return", "higher", "standard deviation over skills of their mean returns"),
        "return_range": _of_skills("return", "higher", "range over skills of their mean returns"),
        "return_max": _of_skills("return", "higher", "mean return of the best skill"),
        "length_max": _of_skills("steps", "higher", "mean length of episodes of the skill that lasts longest"),
        "solved_skills": _of_skills("skills", "higher", "skills whose mean return solves the task"),
        "hurdles_cleared": _of_skills("hurdles", "higher", "most hurdles behind the robot in an episode, mean"),
        "skills_outside": _of_skills("skills", "higher", "skills that end beyond the hallway in most episodes"),
    }
    untrained = ("accuracy", "coverage", "displacement", "return_std", "return_range", "length_max")
    found |= {f"{name}_untrained": _before(found[name]) for name in untrained}

    def other(unit: str, better: str, evaluation: str, description: str) -> Metric:
        return Metric(unit, better, "new episodes", evaluation, description)

    found |= {
        "mutual_information_half": other("nats", "higher", "in the middle of training", "the bound halfway"),
        "solved_ever": other(
            "fraction", "higher", "any evaluation", "1 where some skill solved the task at some evaluation, else 0"
        ),
        "task_return": other("return", "higher", "last", "mean return in the task; over 25 goals where there are"),
        "return_area": other("return", "higher", "mean of the curve", "task_return over all of training"),
        "return_area_third": other(
            "return", "higher", "mean of the curve", "task_return over the first third of training"
        ),
        "hierarchy_return": other(
            "return", "higher", "once", "mean over 25 goals of the skill that was best on other episodes"
        ),
        "selection_return": Metric(
            "return", "higher", "selection episodes", "once", "the same on the episodes that it was chosen by"
        ),
        "skills_used": Metric("skills", "higher", "selection episodes", "once", "different skills chosen for 25 goals"),
        "selected_return": other("return", "higher", "once", "of the skill that was best on other episodes"),
        "median_return": other("return", "higher", "once", "of the median skill"),
        "deterministic_return": other("return", "higher", "once", "of the selected skill, deterministic, one episode"),
        "distance": other("distance", "lower", "once", "root mean square from the expert, of the inferred skill"),
        "best_distance": other("distance", "lower", "once", "the same of the skill nearest to the expert"),
        "random_distance": other("distance", "lower", "once", "the same of a random skill, on average"),
        "correlation": other("correlation", "lower", "once", "over tasks, of the inferred skill's score and distance"),
        "confidence": other("fraction", "higher", "once", "posterior probability of the inferred skill"),
    }
    for pose in ("upright", "flip", "faceplant", "handstand"):
        for kind, words in (("", "the inferred"), ("random_", "a random"), ("best_", "the best")):
            found[f"{pose}_{kind}error"] = other(
                "rad/s" if pose == "flip" else "rad", "lower", "once", f"from the pose {pose}, of {words} skill"
            )
    exact = {
        "entropy": ("nats", "higher", "H[A|S,Z] of the two halves"),
        "value": ("nats", "higher", "objective of the two halves"),
        "gap": ("nats", "lower", "from the value to the bound ln 2 + ln 4"),
        "gap_ratio": ("ratio", "lower", "gap over ln(4)/(2N)"),
        "optimum_gap_ratio": ("ratio", "lower", "the same of the best policies that keep to the halves"),
        "partition_margin": ("nats", "higher", "lead of the halves over the best other partition tried"),
        "partition_best": ("yes or no", "higher", "1 where no partition tried beats the halves"),
    }
    return found | {name: Metric(unit, better, "none", "exact", words) for name, (unit, better, words) in exact.items()}


HIDDEN = ("cells_per_skill", "displacement", "return_mean", "return_std")
"""Left out of tables and curves, as is what untrained skills do; claims and pictures use them."""


def shown(found: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics, those that would only widen the tables marked so."""
    return {
        name: replace(metric, shown=name not in HIDDEN and not name.endswith("_untrained"))
        for name, metric in found.items()
    }


PAPER = Paper(
    name="diayn",
    title="Diversity is All You Need: Learning Skills without a Reward Function",
    citation="Eysenbach, Gupta, Ibarz, Levine. ICLR 2019. arXiv:1802.06070",
    function=experiments.RUN,
    presets=PRESETS,
    claims=CLAIMS,
    metrics=shown(metrics()),
    check_config=Config.of,
    bench="papers.diayn.bench:rows",
    pictures="papers.diayn.pictures:draw",
)

if __name__ == "__main__":
    main(lambda: paper_command(PAPER))
