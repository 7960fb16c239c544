"""How the claims are judged: quantities and rules that several of them share. Loads no torch.

On generated data the margins are the spec's (section 10, E1-E5). At full scale a number with a spread is a level, 2
standard deviations on its worse side; one without is a direction: each row of a table against the row it is compared
with. Bits are bits per dimension of images and per byte of anything else: the mean of -log2 p over tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

from common.claims import Quantity, Rule, TrainGate, difference, level, paper_gate
from papers.sparse_transformer.experiments import IMAGES_TEXT, IMDB_TEXT, TEXT_TEXT
from papers.sparse_transformer.full_scale import SEEDS

TEST, CONTEXT, BITS = "test_bits", "context_bits", "bits"
IMAGES, TEXT = IMAGES_TEXT, TEXT_TEXT
CPU_TEXT, IMDB, CIFAR10 = "Python's standard library, n = 512", IMDB_TEXT, "CIFAR-10 reduced to 16x16 (holdout)"
CHORALES = "Bach's chorales, n = 512"
SPEED_DATA = "attention alone, random inputs, one thread"
PAPER_DATA = {"cifar10": "CIFAR-10", "enwik8": "enwik8", "imagenet64": "ImageNet 64x64", "music": "piano at 12 kHz"}
GIGABYTES_AT_2_20 = 12.0
"""E5: one step at 2^20 tokens fits; memory may grow no faster than the length, so shorter ones get their share."""


def gap(
    experiment: str, worse: str, better: str, claimed: Sequence[str] | None = None, gates: Sequence[TrainGate] = ()
) -> Quantity:
    """By how many bits `better` is ahead of `worse` on the test split."""
    ours = [(experiment, method) for method in (claimed or [better])]
    return difference((experiment, worse), (experiment, better), TEST, BITS, claimed=ours, train_gates=gates)


def direction(
    quantity: Quantity,
    data: str,
    seeds: int,
    *,
    gate: float = 0.0,
    stand_in: bool = True,
    paper_protocol: bool = False,
    paper_value: float | None = None,
) -> Rule:
    """More than nothing, by the margin of `gate`."""
    return Rule(
        quantity=quantity,
        better="higher",
        gate=gate,
        null=0.0,
        seeds=seeds,
        data=data,
        stand_in=stand_in,
        paper_protocol=paper_protocol,
        paper_value=None if paper_value is None else round(paper_value, 6),
    )


def full(quantity: Quantity, data: str, paper_value: float | None = None) -> Rule:
    """A direction on the paper's data and schedule; one run of each in the paper, where it says nothing else."""
    found = direction(quantity, PAPER_DATA[data], SEEDS, stand_in=False, paper_protocol=True, paper_value=paper_value)
    return replace(found, paper_runs=1)


def short(quantity: Quantity, data: str) -> Rule:
    """A direction on the paper's data with a smaller network or a shorter schedule."""
    return direction(quantity, data, SEEDS, stand_in=False)


def at_most(quantity: Quantity, limit: float, data: str, seeds: int, *, stand_in: bool = True) -> Rule:
    """A level not to be passed."""
    return Rule(
        quantity=quantity, better="lower", gate=limit, null=limit, seeds=seeds, data=data, stand_in=stand_in
    )  # fmt: skip


def reported(experiment: str, method: str, metric: str, mean: float, std: float) -> Rule:
    """The paper's own number with its spread over 3 seeds, on its own protocol."""
    gate = round(paper_gate(mean, std, "lower"), 6)
    rule = at_most(level(experiment, method, metric, BITS), gate, PAPER_DATA[experiment.partition("-")[0]], SEEDS)
    return replace(rule, stand_in=False, paper_protocol=True, paper_value=mean, paper_std=std, paper_runs=3)


def times(
    metric: str,
    run: tuple[str, str],
    data: str,
    *,
    gate: float = 1.0,
    stand_in: bool = True,
    paper_value: float | None = None,
) -> Rule:
    """How many times faster: a ratio measured over repeats within one run."""
    return Rule(
        quantity=level(*run, metric, "ratio"),
        better="higher",
        gate=gate,
        null=1.0,
        seeds=1,
        data=data,
        resampling="repeat",
        stand_in=stand_in,
        paper_value=paper_value,
    )


def trained(experiment: str, *methods: str, bits: float) -> list[TrainGate]:
    """Baselines that learnt nothing show nothing: half a bit below chance at least on what they were trained on."""
    return [TrainGate(experiment, method, "train_bits", bits, "lower") for method in methods]


IMAGE_BITS, TEXT_BITS = 3.5, 6.5
"""16 levels are 4 bits, 128 bytes 7."""
