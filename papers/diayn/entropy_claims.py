"""Claims about training and the entropy's weight, C9 and C10 (spec, section 6). Loads no torch."""

from common.claims import Claim, Quantity, beyond, difference, smallest_step, worst
from papers.diayn import full_scale as scale
from papers.diayn.experiments import BOX_TEXT, POINT_TEXT, QUICK_SEEDS
from papers.diayn.full_scale import CPU_SEEDS, GPU_SEEDS, SEEDS
from papers.diayn.rules import (
    ACCURACY,
    COVERAGE,
    ENTROPY,
    FRACTION,
    INFORMATION,
    NATS,
    at_least,
    both,
    full,
    of_margin,
    positive,
    rise,
    short,
    together,
)

HALF = "mutual_information_half"
CHEETAH = "half-cheetah"


def training() -> list[Claim]:
    """C9."""
    low = [
        difference(("box", "k6"), ("alpha", "alpha-0.01"), ENTROPY, NATS, claimed=[("box", "k6")]),
        difference(("box", "k20"), ("box", "k20-low-entropy"), ENTROPY, NATS, claimed=[("box", "k20")]),
    ]
    cheetah = (CHEETAH, "k20"), (CHEETAH, "k20-low-entropy")

    def rises(experiment: str, method: str) -> Quantity:
        return rise((experiment, method), INFORMATION, HALF, NATS)

    lead = worst(*low, better="higher")
    margins = together(beyond(rises("box", "k20"), -1.0), of_margin(lead, 1.5), better="higher")
    return [
        Claim(
            "C9",
            "Discriminability keeps growing during training while the policy's entropy does not vanish",
            "Fig. 12",
            True,
            {
                **both(at_least(margins, 1.0, 0.0, f"{BOX_TEXT}, K = 6 and 20", QUICK_SEEDS)),
                "paper": full(
                    positive(
                        worst(
                            rises(CHEETAH, "k20"),
                            difference(*cheetah, ENTROPY, NATS, claimed=cheetah[:1]),
                            better="higher",
                        ),
                        f"{scale.CHEETAH_TEXT}, here K = 20",
                        SEEDS,
                    )
                ),
            },
            "the smaller of 1 plus the rise of the bound on mutual information in the second half of training (K = 20) "
            "and the entropy's lead over alpha = 0.01 in units of 1.5 nats; `paper`: the smaller of rise and lead",
        ),
        Claim(
            "C9.rise",
            "Discriminability keeps growing during training",
            "Fig. 12",
            True,
            {
                **both(positive(rises("box", "k20"), f"{BOX_TEXT}, K = 20", QUICK_SEEDS)),
                "cpu": short(positive(rises(CHEETAH, "k20"), scale.CPU_CHEETAH_TEXT, CPU_SEEDS)),
                "paper": full(positive(rises(CHEETAH, "k20"), f"{scale.CHEETAH_TEXT}, here K = 20", SEEDS)),
            },
            "rise of the bound on mutual information in the second half of training",
        ),
        Claim(
            "C9.cheetah",
            "HalfCheetah, K = 50: discriminability keeps growing during training",
            "Fig. 12",
            True,
            {"gpu": short(positive(rises(CHEETAH, "k50"), scale.GPU_CHEETAH_TEXT, GPU_SEEDS))},
            "rise of the bound on mutual information in the second half of training",
        ),
        Claim(
            "C9.entropy",
            "The policy's entropy does not vanish as skills become discriminable",
            "Fig. 12",
            True,
            {
                **both(positive(lead, f"{BOX_TEXT}, K = 6 and 20", QUICK_SEEDS, gate=1.5)),
                "paper": full(
                    positive(
                        difference(*cheetah, ENTROPY, NATS, claimed=cheetah[:1]),
                        f"{scale.CHEETAH_TEXT}, here K = 20",
                        SEEDS,
                    )
                ),
            },
            "entropy at the end with alpha 0.1 minus that with 0.01",
        ),
    ]


def entropy_weight() -> list[Claim]:
    """C10."""

    def covers(experiment: str) -> Quantity:
        runs = [(experiment, f"alpha-{alpha}") for alpha in (0.01, 0.1, 0.5)]
        return smallest_step(runs, COVERAGE, FRACTION, claimed=runs)

    def tells(experiment: str) -> Quantity:
        runs = (experiment, "alpha-0.1"), (experiment, "alpha-1")
        return difference(*runs, ACCURACY, FRACTION, claimed=[runs[0]])

    point = "alpha-point"
    return [
        Claim(
            "C10",
            "The larger alpha, the more of the plane skills cover",
            "Fig. 14; App. D.2",
            True,
            {
                **both(positive(covers("alpha"), f"{BOX_TEXT}, K = 6", QUICK_SEEDS)),
                "paper": full(positive(covers(point), scale.POINT_PAPER_TEXT, SEEDS)),
            },
            "smallest rise of the share of a 10 x 10 grid that skills visit, from alpha 0.01 to 0.1 to 0.5",
        ),
        Claim(
            "C10.point",
            "The larger alpha, the more of the plane skills cover: the point with heading and speed of Fig. 14",
            "Fig. 14; App. D.2",
            True,
            both(positive(covers(point), POINT_TEXT, QUICK_SEEDS)),
            "as C10",
        ),
        Claim(
            "C10.accuracy",
            "The larger alpha, the less skills are told apart: 1 against 0.1",
            "Fig. 14; App. D.2",
            True,
            {
                **both(positive(tells("alpha"), f"{BOX_TEXT}, K = 6", QUICK_SEEDS)),
                "paper": full(positive(tells(point), scale.POINT_PAPER_TEXT, SEEDS)),
            },
            "accuracy of q(z|s) with alpha 0.1 minus that with 1",
        ),
    ]


def entropy() -> list[Claim]:
    """C9 and C10."""
    return [*training(), *entropy_weight()]
