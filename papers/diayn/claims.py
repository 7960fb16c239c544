"""Claims about skills, C1 to C4, C11 and C16 (spec, section 6), and the list of all. Loads no torch.

Those about training and entropy are in `entropy_claims.py`, those about what skills are used for in
`downstream_claims.py`; how all are judged, in `rules.py`.
"""

from common.claims import Claim, Quantity, beyond, difference, level, ratio, worst
from papers.diayn import full_scale as scale
from papers.diayn.downstream_claims import downstream
from papers.diayn.entropy_claims import entropy
from papers.diayn.experiments import (
    BOX_TEXT,
    CAR_TEXT,
    HALLWAY_TEXT,
    QUICK_SEEDS,
)
from papers.diayn.full_scale import CPU_SEEDS, GPU_SEEDS, SEEDS
from papers.diayn.rules import (
    ACCURACY,
    EFFECTIVE,
    FRACTION,
    INFORMATION,
    NATS,
    RETURN,
    SKILLS,
    at_least,
    at_most,
    between,
    both,
    fold,
    full,
    of_margin,
    positive,
    short,
    spread,
    together,
)

SPREAD = "return_std", "return_std_untrained"
RANGE = "return_range", "return_range_untrained"
LENGTH = "length_max", "length_max_untrained"
CHEETAH, PENDULUM, CAR, HOPPER, ANT = "half-cheetah", "inverted-pendulum", "mountain-car", "hopper", "ant"
CLASSIC_TEXT = f"{scale.PENDULUM_TEXT}; {scale.CAR_TEXT}"
ROBOTS_TEXT = "HalfCheetah-v5, Hopper-v5, Ant-v5, K = 50"


# ---------------------------------------------------------------- Figure 2: skills without a task


def distinguishable() -> list[Claim]:
    """C1, C2 and C16."""
    k6 = "box", "k6"
    accuracy, information = level(*k6, ACCURACY, FRACTION), level(*k6, INFORMATION, NATS)
    margins = worst(of_margin(accuracy, 0.8), of_margin(information, 1.3), better="higher")
    # A classifier that guesses.
    nothing = round(1 / 6 / 0.8, 6)
    outside, few_outside = (level("hallway", method, "skills_outside", SKILLS) for method in ("k20", "k6"))
    trainings = [("box", method) for method in ("k6", "k6-b", "k6-c")]
    cheetahs = [(CHEETAH, method) for method in ("k50", "k50-b", "k50-c")]
    return [
        Claim(
            "C1",
            "6 skills in the 2-D box move apart and stay distinguishable",
            "Fig. 2a",
            True,
            {
                **both(at_least(margins, 1.0, nothing, BOX_TEXT, QUICK_SEEDS)),
                "paper": full(at_least(margins, nothing, nothing, scale.BOX_PAPER_TEXT, SEEDS)),
            },
            "no number in the paper; the smaller of accuracy of q(z|s) over 0.8 and of the bound on mutual information "
            "over 1.3 nats (at most ln 6 = 1.79); guessing gives 0.21",
        ),
        Claim(
            "C1.accuracy",
            "6 skills in the 2-D box: the classifier tells from a state which skill acts",
            "Fig. 2a",
            True,
            both(at_least(accuracy, 0.8, round(1 / 6, 6), BOX_TEXT, QUICK_SEEDS)),
        ),
        Claim(
            "C1.information",
            "6 skills in the 2-D box: states tell most of the skill's ln 6 = 1.79 nats",
            "Fig. 2a",
            True,
            both(positive(information, BOX_TEXT, QUICK_SEEDS, gate=1.3)),
        ),
        Claim(
            "C2",
            "Skills may overlap early if they separate later: through a hallway into a room",
            "Fig. 2b",
            True,
            {
                **both(positive(outside, HALLWAY_TEXT, QUICK_SEEDS, gate=3.0)),
                "paper": positive(few_outside, "hallway and room, geometry ours", SEEDS, gate=3.0),
            },
            "skills that end in the room in most episodes, of 20 (`paper`: of 6); the paper publishes neither their "
            "number nor the geometry",
        ),
        Claim(
            "C2.k6",
            "The same with 6 skills",
            "ours",
            True,
            both(positive(few_outside, HALLWAY_TEXT, QUICK_SEEDS, gate=3.0)),
        ),
        Claim(
            "C16",
            "Little sensitivity to the seed",
            "Sec. 3.3",
            True,
            {
                **both(at_most(spread(trainings, INFORMATION), 0.25, BOX_TEXT, QUICK_SEEDS)),
                "paper": full(at_most(spread(cheetahs, INFORMATION), 0.25, scale.CHEETAH_TEXT, SEEDS)),
            },
            "range over mean of the final mutual information of three trainings with different draws",
        ),
    ]


# ---------------------------------------------------------------- Figures 2c, 13, 15, 18: task rewards of skills


def rewards() -> list[Claim]:
    """C3 and C11."""

    def solved(experiment: str, method: str) -> Quantity:
        return level(experiment, method, "solved_ever", "fraction of seeds")

    def at_full(experiments: tuple[str, ...], names: tuple[str, str]) -> Quantity:
        return worst(*(fold((name, "k50"), *names) for name in experiments), better="higher")

    hopper = level("best-skill", "hopper-k50", "selected_return", RETURN)
    some = 0.666
    return [
        Claim(
            "C3",
            "Without any reward, some skills solve the task: mountain car (`paper`: and the inverted pendulum)",
            "Fig. 2c, 13, 18",
            True,
            {
                "quick": positive(solved(CAR, "k10"), CAR_TEXT, QUICK_SEEDS, gate=some),
                "cpu": positive(solved(CAR, "k10"), scale.CPU_CAR_TEXT, CPU_SEEDS, gate=some),
                "paper": full(
                    positive(
                        worst(solved(CAR, "k50"), solved(PENDULUM, "k50"), better="higher"),
                        CLASSIC_TEXT,
                        SEEDS,
                        gate=some,
                    )
                ),
            },
            "share of the seeds in which some skill solves the task at some evaluation",
        ),
        Claim(
            "C3.pendulum",
            "Without any reward, some skills solve the task: the inverted pendulum",
            "Fig. 2c, 13",
            True,
            {"cpu": short(positive(solved(PENDULUM, "k10"), scale.CPU_PENDULUM_TEXT, CPU_SEEDS, gate=some))},
            "as C3",
        ),
        Claim(
            "C3.gymnasium",
            "Without any reward, some skill solves MountainCarContinuous-v0",
            "Fig. 2c, 13",
            True,
            {"cpu": short(positive(solved("mountain-car-gymnasium", "k10"), scale.GYM_CAR_TEXT, CPU_SEEDS, gate=some))},
            "as C3, in gymnasium's environment",
        ),
        Claim(
            "C3.range",
            "The diversity of task rewards over skills grows during training",
            "Fig. 2c, 13",
            True,
            {
                "quick": at_least(fold((CAR, "k10"), *RANGE), 5.0, 1.0, CAR_TEXT, QUICK_SEEDS),
                "cpu": at_least(fold((CAR, "k10"), *RANGE), 5.0, 1.0, scale.CPU_CAR_TEXT, CPU_SEEDS),
                "paper": full(at_least(at_full((CAR, PENDULUM), RANGE), 1.0, 1.0, CLASSIC_TEXT, SEEDS)),
            },
            "range of the skills' mean returns at the end over that before training",
        ),
        Claim(
            "C3.length",
            "Inverted pendulum: the best skill learns to stay up, without a reward for it",
            "Fig. 2c, 13",
            True,
            {"cpu": short(at_least(fold((PENDULUM, "k10"), *LENGTH), 5.0, 1.0, scale.CPU_PENDULUM_TEXT, CPU_SEEDS))},
            "mean length of the best skill's episodes over that of the best untrained skill",
        ),
        Claim(
            "C11",
            "Task rewards of skills spread widely",
            "Fig. 15; App. D.3",
            True,
            {
                "quick": at_least(fold((CAR, "k10"), *SPREAD), 3.0, 1.0, CAR_TEXT, QUICK_SEEDS),
                "cpu": short(
                    at_least(
                        worst(fold((CHEETAH, "k20"), *SPREAD), fold((HOPPER, "k10"), *SPREAD), better="higher"),
                        3.0,
                        1.0,
                        f"{scale.CPU_CHEETAH_TEXT}; {scale.CPU_HOPPER_TEXT}",
                        CPU_SEEDS,
                    )
                ),
                "gpu": short(
                    at_least(
                        at_full((CHEETAH, HOPPER, ANT), SPREAD),
                        3.0,
                        1.0,
                        f"{ROBOTS_TEXT}, 0.5M to 1M steps",
                        GPU_SEEDS,
                    )
                ),
                "paper": full(
                    at_least(at_full((CHEETAH, HOPPER, ANT), SPREAD), 1.0, 1.0, f"{ROBOTS_TEXT}, 10M steps", SEEDS)
                ),
            },
            "standard deviation over skills of the mean return, over that of untrained skills; of several robots the "
            "least; the paper: cheetahs flip and flop at about -100, run backward far below and forward far above that",
        ),
        Claim(
            "C11.hopper",
            "Hopper: some skills earn 1000 or more",
            "Fig. 15; App. D.3",
            True,
            {"paper": full(positive(hopper, scale.HOPPER_TEXT, SEEDS, gate=1000.0))},
            "mean return of the best skill, on other episodes than it is chosen by",
        ),
    ]


# ---------------------------------------------------------------- Figures 4, 17: the prior


def prior() -> list[Claim]:
    """C4."""

    def collapse(experiment: str, fixed: str, learned: str) -> Quantity:
        runs = (experiment, fixed), (experiment, learned)
        return ratio(*runs, EFFECTIVE, claimed=[runs[0]])

    def accuracy(experiment: str, fixed: str) -> Quantity:
        runs = (experiment, fixed), (experiment, f"{fixed}-learned-prior")
        return difference(*runs, ACCURACY, FRACTION, claimed=[runs[0]])

    def fifty(experiment: str) -> Quantity:
        return level(experiment, "k50", EFFECTIVE, SKILLS)

    three = CHEETAH, PENDULUM, CAR
    collapses = worst(*(collapse(name, "k50", "k50-learned-prior") for name in three), better="higher")
    three_text = f"{scale.CHEETAH_TEXT}; {CLASSIC_TEXT}"
    kept = level("box", "k50-learned-prior", EFFECTIVE, SKILLS, claimed=())
    told = difference(("box", "k50-learned-prior"), ("box", "k50"), ACCURACY, FRACTION, claimed=[("box", "k50")])
    margins = together(beyond(kept, 25.0), told, better="lower")
    return [
        Claim(
            "C4",
            "A learned p(z) collapses, a fixed one does not: in the paper from 50 effective skills to a tenth of them",
            "Fig. 4, 17; App. E.2",
            True,
            {
                **both(at_most(margins, 0.0, BOX_TEXT, QUICK_SEEDS)),
                "cpu": at_least(collapse(CAR, "k10", "k10-learned-prior"), 1.0, 1.0, scale.CPU_CAR_TEXT, CPU_SEEDS),
                "paper": full(at_least(collapses, 1.0, 1.0, three_text, SEEDS), paper_value=10.0, paper_runs=3),
            },
            "`quick`, `gpu`: the larger of the effective skills exp(H[p(z)]) that a learned p(z) keeps of 50, beyond "
            "25, and of its accuracy beyond the fixed p(z)'s; elsewhere effective skills of the fixed p(z) over those "
            "of the learned one, the least of the environments",
        ),
        Claim(
            "C4.kept",
            "Of 50 skills a learned p(z) keeps at most 25 effective ones",
            "Fig. 4, 17",
            True,
            both(at_most(kept, 25.0, BOX_TEXT, QUICK_SEEDS)),
        ),
        Claim(
            "C4.cheetah",
            "HalfCheetah: a learned p(z) keeps fewer effective skills than a fixed one",
            "Fig. 4",
            True,
            {
                "gpu": short(
                    at_least(collapse(CHEETAH, "k50", "k50-learned-prior"), 1.0, 1.0, scale.GPU_CHEETAH_TEXT, GPU_SEEDS)
                )
            },
        ),
        Claim(
            "C4.fixed",
            "With a fixed p(z), 50 skills stay 50 effective skills",
            "Fig. 4, 17",
            True,
            {
                **both(between(fifty("box"), 49.99, 50.01, BOX_TEXT, QUICK_SEEDS)),
                "paper": full(between(fifty(CHEETAH), 49.99, 50.01, scale.CHEETAH_TEXT, SEEDS)),
            },
            "true by construction",
        ),
        Claim(
            "C4.accuracy",
            "Skills of a fixed p(z) are told apart better than those of a learned one",
            "Sec. 4.2; App. E",
            True,
            {
                **both(positive(accuracy("box", "k50"), BOX_TEXT, QUICK_SEEDS)),
                "cpu": positive(accuracy(CAR, "k10"), scale.CPU_CAR_TEXT, CPU_SEEDS),
                "paper": full(
                    positive(worst(*(accuracy(name, "k50") for name in three), better="higher"), three_text, SEEDS)
                ),
            },
            "accuracy of q(z|s), skills weighted alike: fixed minus learned; weighted by p(z), which hardly draws the "
            "skills that are lost, the learned one's is higher",
        ),
    ]


def _row(claim: Claim) -> int:
    return int(claim.id.partition(".")[0].removeprefix("C"))


CLAIMS: tuple[Claim, ...] = tuple(
    sorted((*distinguishable(), *rewards(), *prior(), *downstream(), *entropy()), key=_row)
)
"""In the order of the spec's rows."""
