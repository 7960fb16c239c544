"""Claims about what skills are used for: fine-tuning, hierarchy, imitation; and the gridworld. Loads no torch."""

from dataclasses import replace

from common.claims import Claim, Quantity, Rule, Run, TrainGate, beyond, difference, level, ratio, worst
from papers.diayn.experiments import GOALS_TEXT, QUICK_SEEDS, TUNED_TEXT, WAYPOINTS_TEXT
from papers.diayn.full_scale import CPU_CHEETAH_TEXT, CPU_HOPPER_TEXT, CPU_SEEDS, CPU_TUNED_TEXT, GPU_SEEDS, SEEDS
from papers.diayn.rules import (
    AREA,
    RETURN,
    TASK_RETURN,
    ahead,
    at_least,
    at_most,
    between,
    both,
    full,
    positive,
    short,
    together,
)

STANDING_STILL = -16.0
"""Mean return over the 25 goals of the box of staying in its middle, exactly (spec 12.11): a baseline that earns less
has not trained."""
ROBOTS = ("half-cheetah", "hopper", "ant")
CLASSIC = ("imitation-inverted-pendulum", "imitation-mountain-car")
CLASSIC_TEXT = "InvertedPendulum-v5 and MountainCarContinuous-v0, experts: 50 skills of another run"
POSES = ("upright", "flip", "faceplant")
IMITATION_TEXT = "2-D box, experts: 20 skills of another training"


def tuning() -> list[Claim]:
    """C5."""

    def lead(experiment: str, method: str) -> Quantity:
        return ahead((experiment, method), (experiment, "scratch"), metric=AREA, unit=RETURN)

    def rules(method: str) -> dict[str, Rule]:
        robots = worst(*(lead(f"fine-tuning-{robot}", method) for robot in ROBOTS), better="higher")
        gpu = lead("fine-tuning-half-cheetah", method)
        return {
            "quick": positive(lead("fine-tuning", method), TUNED_TEXT, QUICK_SEEDS),
            "cpu": short(positive(lead("fine-tuning", method), CPU_TUNED_TEXT, CPU_SEEDS)),
            "gpu": short(positive(gpu, "HalfCheetah-v5, 300,000 environment steps", GPU_SEEDS)),
            "paper": full(positive(robots, "HalfCheetah-v5, Hopper-v5, Ant-v5", SEEDS)),
        }

    note = "mean of the return's curve over the first third of training: pre-trained minus scratch"
    return [
        Claim(
            "C5",
            "Fine-tuning a skill learns a task from fewer samples than random initialisation",
            "Fig. 5",
            True,
            rules("actor-and-critics"),
            note,
        ),
        Claim(
            "C5.actor",
            "Fine-tuning a skill's actor with new critics learns a task from fewer samples than random initialisation",
            "Fig. 5; the official code's form",
            True,
            rules("actor"),
            note,
        ),
    ]


def hierarchy() -> list[Claim]:
    """C6: one skill an episode."""

    def lead(more: str, fewer: str) -> Quantity:
        runs = ("hierarchy", more), ("hierarchy", fewer)
        return difference(*runs, "hierarchy_return", RETURN, claimed=runs)

    def against(method: str, baseline: str) -> Quantity:
        gate = TrainGate("hierarchy", baseline, TASK_RETURN, STANDING_STILL, "higher")
        metrics = ("hierarchy_return", TASK_RETURN)
        return ahead(("hierarchy", method), ("hierarchy", baseline), metric=metrics, unit=RETURN, gates=[gate])

    margins = worst(beyond(lead("k20", "k4"), 3.0), beyond(lead("k4", "k1"), 10.0), better="higher")
    rises = worst(
        *(lead(more, fewer) for more, fewer in (("k4", "k1"), ("k20", "k4"), ("k50", "k20"))), better="higher"
    )

    def rules(baseline: str) -> dict[str, Rule]:
        rule = positive(against("k20", baseline), GOALS_TEXT, QUICK_SEEDS)
        paper = positive(against("k50", baseline), "2-D box, 25 goals, width 32", SEEDS)
        return {**both(rule), "paper": full(paper)}

    rule = positive(margins, GOALS_TEXT, QUICK_SEEDS)
    same = (
        "equal environment steps in all, within 5 percent: those of the skills and of choosing among them against "
        "those of 25 agents"
    )
    return [
        Claim(
            "C6",
            "2-D navigation: the hierarchy's return rises with the number of skills",
            "Fig. 6",
            True,
            {**both(rule), "paper": full(positive(rises, "2-D box, 25 goals, width 32", SEEDS))},
            "`quick`, `gpu`: the smaller of K = 20's lead over K = 4 beyond 3 and K = 4's over K = 1 beyond 10; "
            "`paper`: the smallest step from K = 1 to 4 to 20 to 50",
        ),
        Claim(
            "C6.rnd",
            "2-D navigation: the hierarchy earns more than exploration by novelty (VIME in the paper)",
            "Fig. 6",
            True,
            rules("sac-rnd"),
            f"SAC with a bonus by random network distillation stands in for VIME; {same}",
        ),
        Claim(
            "C6.sac",
            "2-D navigation: the hierarchy earns more than SAC from scratch",
            "ours, in the spirit of Fig. 6",
            True,
            rules("sac"),
            same,
        ),
    ]


def controllers() -> list[Claim]:
    """C7 and C8: a meta-controller over frozen skills."""

    def lead(experiment: str, *baselines: str) -> Quantity:
        others: list[Run] = [(experiment, baseline) for baseline in baselines]
        return ahead((experiment, "hierarchy"), *others, metric=TASK_RETURN, unit=RETURN)

    flat = "sac", "sac-rnd"
    navigation = "ant navigation, k = 100, K = 50"
    prior = ahead(
        ("ant-navigation", "hierarchy-xy-prior"), ("ant-navigation", "hierarchy"), metric=TASK_RETURN, unit=RETURN
    )
    return [
        Claim(
            "C7",
            "Cheetah hurdle: a meta-controller over skills earns more than TRPO, SAC and VIME",
            "Fig. 7, 8",
            True,
            {"paper": full(positive(lead("hurdle", *flat), "cheetah hurdle, k = 10, K = 50", SEEDS))},
            "lead over the better of SAC and SAC with random network distillation; TRPO and VIME are not implemented",
        ),
        Claim(
            "C8",
            "Ant navigation: a meta-controller over skills earns more than TRPO, SAC and VIME",
            "Fig. 7, 8",
            True,
            {
                "quick": positive(lead("waypoints", *flat), WAYPOINTS_TEXT, QUICK_SEEDS),
                "paper": full(positive(lead("ant-navigation", *flat), navigation, SEEDS)),
            },
            "lead over the better of SAC and SAC with random network distillation at equal environment steps, whether "
            "or not these get anywhere: that they do not is what the paper says; the best possible return is 5",
        ),
        Claim(
            "C8.untrained",
            "The same controller earns more over skills than over untrained ones",
            "ours, in the spirit of Fig. 8",
            True,
            {"quick": positive(lead("waypoints", "untrained-skills"), WAYPOINTS_TEXT, QUICK_SEEDS)},
        ),
        Claim(
            "C8.prior",
            "Ant navigation: skills told apart by the place of the torso alone serve the controller better still",
            "Fig. 8",
            True,
            {"paper": full(positive(prior, navigation, SEEDS))},
            "lead of DIAYN + prior over DIAYN",
        ),
    ]


def imitating() -> list[Claim]:
    """C12 and C13."""
    ours = "imitation", "diayn"

    def over(student: str) -> Quantity:
        return ratio(("imitation", student), ours, "distance", claimed=[ours])

    few = ratio(ours, ("imitation", "few-skills"), "distance", claimed=[ours])
    random = ratio(ours, ours, ("distance", "random_distance"), claimed=[ours])
    low = ratio(ours, ("imitation", "low-entropy"), "distance", claimed=[ours])
    correlation = level(*ours, "correlation", "correlation")
    margins = together(beyond(few, 0.6), beyond(random, 0.25), beyond(low, 1 / 0.9), correlation, better="lower")
    seeds = QUICK_SEEDS

    def classic(*baselines: str) -> Rule:
        found = [
            ratio((name, student), (name, "diayn"), "distance", claimed=[(name, "diayn")])
            for name in CLASSIC
            for student in baselines
        ]
        return full(at_least(worst(*found, better="higher"), 1.0, 1.0, CLASSIC_TEXT, SEEDS))

    correlations = worst(*(level(name, "diayn", "correlation", "correlation") for name in CLASSIC), better="lower")

    run = "poses", "diayn"
    leads = [ratio(run, run, (f"{pose}_random_error", f"{pose}_error"), claimed=[run]) for pose in POSES]
    angles = [
        difference(run, run, ("handstand_error", f"{pose}_error"), "rad", claimed=[run])
        for pose in ("upright", "faceplant")
    ]
    poses = "HalfCheetah-v5, K = 50, states built from the model"
    return [
        Claim(
            "C12",
            "Imitation: skills of DIAYN come nearest to the expert; low entropy, few skills and a learned p(z) are "
            "worse",
            "Fig. 22; App. G",
            True,
            {
                **both(at_most(margins, 0.0, IMITATION_TEXT, seeds)),
                "paper": classic("low-entropy", "few-skills", "learned-prior"),
            },
            "`quick`, `gpu`: the largest of distance over that with 5 skills, beyond 0.6, over a random skill's, "
            "beyond 0.25, over that with low entropy, beyond 1 / 0.9, and of the correlation of score and distance; "
            "`paper`: the smallest ratio of a baseline's distance to DIAYN's",
        ),
        Claim(
            "C12.few",
            "Imitation: with few skills the distance to the expert is larger",
            "Fig. 22; App. G",
            True,
            {**both(at_least(over("few-skills"), 1.0, 1.0, IMITATION_TEXT, seeds)), "paper": classic("few-skills")},
            "distance over that of DIAYN",
        ),
        Claim(
            "C12.entropy",
            "Imitation: with low entropy the distance to the expert is not smaller by more than 10 percent",
            "Fig. 22; App. G",
            True,
            both(at_least(over("low-entropy"), 0.9, 0.9, IMITATION_TEXT, seeds)),
            "distance over that of DIAYN; the paper has it larger",
        ),
        Claim(
            "C12.learned",
            "Imitation: with a learned p(z) the distance to the expert is larger",
            "Fig. 22; App. G",
            True,
            {
                **both(at_least(over("learned-prior"), 1.0, 1.0, IMITATION_TEXT, seeds)),
                "paper": classic("learned-prior"),
            },
            "distance over that of DIAYN",
        ),
        Claim(
            "C12.correlation",
            "Imitation: the distance to the expert falls as the classifier's score rises",
            "Fig. 22; App. G",
            True,
            {
                **both(at_most(correlation, 0.0, IMITATION_TEXT, seeds)),
                "paper": full(at_most(correlations, 0.0, CLASSIC_TEXT, SEEDS)),
            },
            "correlation over the expert's skills of the inferred skill's score with its distance",
        ),
        Claim(
            "C13",
            "Imitation on HalfCheetah works for upright, flip and faceplant",
            "Fig. 9",
            True,
            {"paper": full(at_least(worst(*leads, better="higher"), 1.0, 1.0, poses, SEEDS))},
            "error of a random skill over that of the inferred one, the least of the three poses",
        ),
        Claim(
            "C13.handstand",
            "Imitation on HalfCheetah does not work for the handstand",
            "Fig. 9",
            True,
            {"paper": full(positive(worst(*angles, better="higher"), poses, SEEDS))},
            "angle from the handstand minus the larger of those from upright and faceplant",
        ),
    ]


def exploration() -> list[Claim]:
    """C14."""

    def lead(method: str) -> Quantity:
        run = "best-skill", method
        return difference(run, run, ("selected_return", "median_return"), RETURN, claimed=[run])

    def trained(robot: str) -> Quantity:
        runs = ("best-skill", f"{robot}-k50"), ("best-skill", f"{robot}-untrained")
        return difference(*runs, "selected_return", RETURN, claimed=[runs[0]])

    robots = "HalfCheetah-v5, Hopper-v5, Ant-v5, K = 50"
    return [
        Claim(
            "C14",
            "Run, jump and move: on each task some skill is better than the one policy of VIME (here: than the median "
            "skill)",
            "Fig. 16",
            True,
            {
                "cpu": short(
                    positive(
                        worst(lead("half-cheetah"), lead("hopper"), better="higher"),
                        f"{CPU_CHEETAH_TEXT}; {CPU_HOPPER_TEXT}",
                        CPU_SEEDS,
                    )
                ),
                "paper": full(positive(worst(*(lead(f"{r}-k50") for r in ROBOTS), better="higher"), robots, SEEDS)),
            },
            "there is no VIME here: the best skill against the median skill in the robots' own rewards, scored on "
            "other episodes than it is chosen by",
        ),
        Claim(
            "C14.untrained",
            "On each robot the best skill earns more than the best untrained one",
            "ours, in the spirit of Fig. 16",
            True,
            {"paper": full(positive(worst(*map(trained, ROBOTS), better="higher"), robots, SEEDS))},
        ),
    ]


def gridworld() -> list[Claim]:
    """C15."""
    sizes = (4, 8, 16)
    best = worst(*(level("gridworld", f"n{n}", "partition_best", "yes or no") for n in sizes), better="higher")
    gap = worst(*(level("gridworld", f"n{n}", "gap_ratio", "ratio") for n in sizes), better="lower")
    exact = "N x N grids, N = 4, 8, 16"

    def everywhere(rule: Rule) -> dict[str, Rule]:
        rule = replace(short(rule), resampling="exact")
        return {**both(rule), "paper": replace(rule, paper_protocol=True)}

    return [
        Claim(
            "C15",
            "Gridworld: two skills that share the states equally are the optimum",
            "App. B, Lemma B.1",
            True,
            everywhere(positive(best, exact, 1, gate=1.0)),
            "1 where halves beat every other partition: of all for N = 4, of those into blocks of rows beyond",
        ),
        Claim(
            "C15.value",
            "Gridworld: the value of the two halves is within log(4)/(2N) of the upper bound",
            "App. B, Lemma B.2",
            True,
            everywhere(between(gap, 0.0, 1.0, exact, 1)),
            "distance from the bound over log(4)/(2N), the largest",
        ),
    ]


def downstream() -> tuple[Claim, ...]:
    """C5 to C8 and C12 to C15."""
    return (*tuning(), *hierarchy(), *controllers(), *imitating(), *exploration(), *gridworld())
