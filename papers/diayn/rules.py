"""How the claims are judged: quantities and rules that several of them share. Loads no torch.

The margins of the stand-ins are the spec's (sections 6 and 10). The paper has no table: its claims are sentences and
figures without spreads, so that at full scale a claim is a direction unless a sentence gives a number to reach.
"""

from collections.abc import Sequence
from dataclasses import replace

from common.claims import Quantity, Rule, Run, RunMetrics, TrainGate, difference, ratio, worst
from common.quantities import Better, divide

ACCURACY, INFORMATION, EFFECTIVE = "accuracy", "mutual_information", "effective_skills"
ENTROPY, COVERAGE = "policy_entropy", "coverage"
TASK_RETURN, AREA = "task_return", "return_area_third"
NATS, FRACTION, SKILLS, RETURN = "nats", "fraction", "skills", "return"


def at_least(quantity: Quantity, gate: float, null: float, data: str, seeds: int, *, stand_in: bool = True) -> Rule:
    """A level to be reached; `null` is chance."""
    return Rule(
        quantity=quantity, better="higher", gate=gate, null=null, seeds=seeds, data=data, stand_in=stand_in
    )  # fmt: skip


def at_most(quantity: Quantity, gate: float, data: str, seeds: int, *, stand_in: bool = True) -> Rule:
    """A level not to be passed."""
    return Rule(
        quantity=quantity, better="lower", gate=gate, null=gate, seeds=seeds, data=data, stand_in=stand_in
    )  # fmt: skip


def positive(quantity: Quantity, data: str, seeds: int, *, gate: float = 0.0, stand_in: bool = True) -> Rule:
    """A difference above nothing, by the margin of `gate`."""
    return at_least(quantity, gate, 0.0, data, seeds, stand_in=stand_in)


def between(quantity: Quantity, low: float, high: float, data: str, seeds: int, *, stand_in: bool = True) -> Rule:
    """An equivalence."""
    return Rule(
        quantity=quantity, better="lower", gate=(low, high), null=None, seeds=seeds, data=data, stand_in=stand_in
    )  # fmt: skip


def full(rule: Rule, paper_value: float | None = None, paper_runs: int = 1) -> Rule:
    """The same rule on the paper's environment and schedule; one run in the paper, where it says nothing else."""
    return replace(rule, stand_in=False, paper_protocol=True, paper_value=paper_value, paper_runs=paper_runs)


def short(rule: Rule) -> Rule:
    """The same rule on the paper's environment with a smaller network or a shorter schedule."""
    return replace(rule, stand_in=False)


def both(rule: Rule) -> dict[str, Rule]:
    """The rule of an experiment that `quick` and `gpu` share."""
    return {"quick": rule, "gpu": rule}


# ---------------------------------------------------------------- quantities


def rise(run: Run, after: str, before: str, unit: str) -> Quantity:
    """By how much a number of one run rose: the metric `after` minus the metric `before`."""
    return difference(run, run, (after, before), unit, claimed=[run])


def fold(run: Run, after: str, before: str) -> Quantity:
    """How many times larger: the metric `after` over the metric `before` of one run."""
    return ratio(run, run, (after, before), claimed=[run])


def ahead(
    run: Run, *baselines: Run, metric: str | tuple[str, str], unit: str, gates: Sequence[TrainGate] = ()
) -> Quantity:
    """By how much a run is ahead of the best of its baselines (a pair of metrics: the run's and the baselines')."""
    leads = [
        difference(run, other, metric, unit, claimed=[run], train_gates=[g for g in gates if g[:2] == other])
        for other in baselines
    ]
    return worst(*leads, better="higher") if len(leads) > 1 else leads[0]


def of_margin(quantity: Quantity, margin: float) -> Quantity:
    """The quantity over its margin, so that quantities of different units have a worst."""
    return replace(
        quantity,
        text=f"{quantity.text} over {margin:g}",
        function=lambda metrics: divide(quantity.function(metrics), margin),
        unit="of the margin",
    )


def together(*quantities: Quantity, better: Better) -> Quantity:
    """The worst of quantities of several units, each with its own margin already subtracted."""
    return worst(*(replace(quantity, unit="beyond its margin") for quantity in quantities), better=better)


def spread(runs: Sequence[Run], metric: str) -> Quantity:
    """(largest - smallest) / mean of a metric over independent trainings."""

    def function(metrics: RunMetrics) -> float:
        numbers = [value for run in runs if isinstance(value := metrics[run][metric], int | float)]
        if len(numbers) < len(runs):
            raise ValueError(f"{metric} is one number of a run")
        return (max(numbers) - min(numbers)) * len(numbers) / sum(numbers)

    names = ", ".join(method for _, method in runs)
    return Quantity(f"spread of {metric} over {names} of {runs[0][0]}", tuple(runs), function, "ratio", tuple(runs))
