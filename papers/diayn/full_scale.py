"""Experiments of `cpu`, `gpu` and `paper`: robots, and the paper's networks and hyper-parameters (spec, section 5).

A step of `gpu` and `paper` acts in several copies of the environment and then updates as many times, so that there is
one update for each step of the environment, as in the official code. Loads no torch.
"""

from collections.abc import Mapping
from dataclasses import replace

from common.paper import Experiment, Need
from papers.diayn.experiments import (
    ABLATIONS,
    ALPHA_METHODS,
    BOX,
    BOX_METHODS,
    BOX_TEXT,
    CAR,
    CAR_METHODS,
    FLAT,
    LEARNED,
    NOVELTY,
    PROTOTYPE,
    QUICK,
    SIZES,
    STACKING,
    TASK,
    Methods,
    Settings,
    fine_tuning,
    goals,
    gridworld,
    imitation,
    measured,
    meta,
    poses,
    skills,
)
from papers.diayn.measure_config import MeasureBest

CPU_SEEDS, GPU_SEEDS, SEEDS = 3, 3, 5
CHEETAH, HOPPER, ANT = "HalfCheetah-v5", "Hopper-v5", "Ant-v5"
HURDLE, NAVIGATION = "DIAYN/CheetahHurdle-v0", "DIAYN/AntNavigation-v0"


def best_skills(needs: Mapping[str, Need], seeds: int) -> Experiment:
    """C14: the best skill for a robot's own reward, chosen and scored on different episodes."""
    described = "the robots' own rewards"
    return measured(
        "best-skill",
        "best_skill",
        MeasureBest.of,
        {name: {"skills": need} for name, need in needs.items()},
        described,
        seeds,
    )


def tuning(name: str, skilled: Need, config: Settings, described: str, seeds: int) -> Experiment:
    """C5 on a robot; seeds are trained as one batch."""
    return replace(fine_tuning(name, skilled, config, described, seeds), stacking=STACKING)


def every(steps: int, evaluations: int) -> Settings:
    """A run of so many steps, evaluated so many times (an even number: once in the middle), with ten checkpoints."""
    return {"steps": steps, "evaluate_every": steps // evaluations, "checkpoint_every": steps // 10}


# ---------------------------------------------------------------- cpu

CPU_PENDULUM: Settings = {
    **PROTOTYPE,
    **every(6000, 8),
    "env": "InvertedPendulum-v5",
    "copies": 4,
    "skills": 10,
    "evaluation_rollouts": 4,
}
CPU_CAR: Settings = {**CAR, **every(24_576, 12), "buffer_size": 1 << 19}
GYM_CAR: Settings = {**CAR, "env": "MountainCarContinuous-v0", "evaluation_rollouts": 4}
CPU_CHEETAH: Settings = {
    **PROTOTYPE,
    **every(125_000, 20),
    "env": CHEETAH,
    "skills": 20,
    "width": 128,
    "buffer_size": 500_000,
    "evaluation_rollouts": 2,
    "log_every": 1000,
}
CPU_HOPPER: Settings = {**CPU_CHEETAH, **every(62_500, 10), "env": HOPPER, "skills": 10}
CPU_TUNED: Settings = {
    **CPU_CHEETAH,
    **every(31_250, 25),
    "reward": "task",
    "alpha": 1.0,
    "evaluation_rollouts": 5,
}
CPU_GOALS: Methods = {name: {**config, **every(4096, 8)} for name, config in FLAT.items()}
SCALED: Settings = {"observation_scale": "running"}
"""The official code does not scale what is observed."""
CPU_CHEETAH_TEXT = "HalfCheetah-v5, K = 20, width 128, 2M environment steps, an update for 16 of them"
CPU_HOPPER_TEXT = "Hopper-v5, K = 10, width 128, 1M environment steps, an update for 16 of them"
CPU_CAR_TEXT = "mountain car (own vectorised copy), K = 10, 393,216 environment steps"
GYM_CAR_TEXT = "MountainCarContinuous-v0, K = 10, 98,304 environment steps"
CPU_PENDULUM_TEXT = "InvertedPendulum-v5, K = 10, width 64, 24,000 environment steps"
CPU_TUNED_TEXT = "HalfCheetah-v5, width 128, 500,000 environment steps, an update for 16 of them"
CPU = (
    skills("inverted-pendulum", {"k10": {}}, CPU_PENDULUM, CPU_PENDULUM_TEXT, CPU_SEEDS),
    skills("half-cheetah", {"k20": {}, "k20-scaled": SCALED}, CPU_CHEETAH, CPU_CHEETAH_TEXT, CPU_SEEDS),
    skills("hopper", {"k10": {}}, CPU_HOPPER, CPU_HOPPER_TEXT, CPU_SEEDS),
    skills("mountain-car", {**CAR_METHODS, "k10-learned-prior": LEARNED}, CPU_CAR, CPU_CAR_TEXT, CPU_SEEDS),
    skills("mountain-car-gymnasium", {"k10": {}}, GYM_CAR, GYM_CAR_TEXT, CPU_SEEDS),
    tuning("fine-tuning", Need("half-cheetah", "k20"), CPU_TUNED, CPU_TUNED_TEXT, CPU_SEEDS),
    best_skills({"half-cheetah": Need("half-cheetah", "k20"), "hopper": Need("hopper", "k10")}, CPU_SEEDS),
    skills("box", {name: BOX_METHODS[name] for name in ("k20", "k50")}, BOX, BOX_TEXT, CPU_SEEDS),
    goals(
        "hierarchy",
        {k: Need("box", k) for k in ("k20", "k50")},
        {},
        CPU_GOALS,
        "2-D box, 25 goals; 65,536 environment steps for each goal without skills",
        CPU_SEEDS,
    ),
)

# ---------------------------------------------------------------- the paper's settings


def full(env: str, thousands: int, evaluations: int = 10) -> Settings:
    """The paper's settings for an environment and so many thousand steps of it, at one update a step."""
    return {
        "env": env,
        "copies": 16,
        "updates": 16,
        **every(thousands * 1000 // 16, evaluations),
        "evaluation_rollouts": 4,
        "log_every": 625,
        "steps_per_call": 8,
    }


V2018: Settings = {"variant": "v2018"}
UNTRAINED: Settings = {"steps": 2, "learning_starts": 1_000_000, "evaluate_every": 1, "checkpoint_every": 2}
"""Nothing is learnt before so many transitions."""
TWIN: Methods = {"k50-twin": {"variant": "twin"}}
PRIORS: Methods = {"k50": {}, "k50-learned-prior": LEARNED}
CLASSIC_METHODS: Methods = {
    **PRIORS,
    "k50-b": {"draw": 1},
    "k50-low-entropy": {"alpha": 0.01},
    "k5": {"skills": 5},
    **TWIN,
    "k50-twin-learned-prior": {**TWIN["k50-twin"], **LEARNED},
}
ROBOT_METHODS: Methods = {**PRIORS, **TWIN, "untrained": UNTRAINED}
CHEETAH_METHODS: Methods = {
    **ROBOT_METHODS,
    "k50-b": {"draw": 1},
    "k50-c": {"draw": 2},
    "k20": {"skills": 20},
    "k20-low-entropy": {"skills": 20, "alpha": 0.01},
    **{
        f"k50-twin-{name}": {**TWIN["k50-twin"], **ABLATIONS[name]}
        for name in ("classifier-next", "classifier-4", "keep-prior", "skill-per-epoch")
    },
}
PENDULUM: Settings = {**full("InvertedPendulum-v5", 1000), **V2018}
MOUNTAIN_CAR: Settings = {**full("MountainCarContinuous-v0", 1000), **V2018, "subtract_prior": False}
LONG = 10_000
HALF_CHEETAH: Settings = {**full(CHEETAH, LONG, 20), **V2018, "buffer_size": 10_000_000}
PLANE: Settings = {"width": 32, "learning_starts": 100, "copies": 10, "updates": 10, **every(5000, 10), **V2018}
"""50 epochs of 1,000 steps, paths of 100."""
NAVIGATE: Settings = {**full("DIAYN/Box-v0", 50), **PLANE, "skills": 6, "evaluation_rollouts": 16}
PLANE_METHODS: Methods = {
    **{f"k{k}": {"skills": k} for k in (1, 2, 4, 6, 20, 50)},
    "k6-b": {"draw": 1},
    "k6-c": {"draw": 2},
    "k50-learned-prior": {"skills": 50, **LEARNED},
    "k6-twin": {"variant": "twin"},
    "k50-twin": {"skills": 50, "variant": "twin"},
}
FLAT_GOAL: Settings = {**NAVIGATE, **TASK, "tasks": "goals", **every(520, 10)}
GOAL_METHODS: Methods = {
    "sac": FLAT_GOAL,
    "sac-rnd": {**FLAT_GOAL, **NOVELTY},
    "sac-long": {**FLAT_GOAL, **every(5000, 10)},
}
"""As many steps of the environment for all goals as 50 skills take with the episodes in which the best is chosen, and
as many for each goal."""


def flat(env: str, thousands: int, **changes: object) -> Methods:
    """Soft actor-critic without skills on a robot's task, alone and with a bonus for novelty, which stands in for
    VIME; reward scale 5 (weight of the entropy 0.2), as the SAC of 2018 had it."""
    config = {**full(env, thousands, 20), **V2018, "reward": "task", "skills": 1, "alpha": 0.2, **changes}
    return {"sac": config, "sac-rnd": {**config, **NOVELTY}}


def controller(env: str, hold: int, thousands: int, **changes: object) -> Settings:
    """A meta-controller that holds a skill for so many steps."""
    timing = every(thousands * 1000 // 16, 20)
    return {"env": env, "copies": 16, "hold": hold, "learning_starts": 1000, **timing, "log_every": 625, **changes}


def hurdle(skilled: Need, skill_thousands: int, thousands: int, words: str, seeds: int) -> Experiment:
    """C7: k = 10. Without skills as many steps as skills and their controller together."""
    return meta(
        "hurdle",
        {"hierarchy": skilled},
        {"hierarchy": controller(HURDLE, 10, thousands)},
        flat(HURDLE, skill_thousands + thousands),
        f"cheetah hurdle, {words}",
        seeds,
    )


XY: Settings = {"features": [0, 1]}
"""D sees the place of the torso only; all that navigates observes it, with this prior and without."""
NAVIGATION_NEEDS = {
    "hierarchy": Need("ant-navigation-skills", "k50"),
    "hierarchy-xy-prior": Need("ant-navigation-skills", "k50-xy-prior"),
}
NAVIGATION_METHODS: Methods = {
    "hierarchy": controller(NAVIGATION, 100, 10_000, positions=True),
    "hierarchy-xy-prior": controller(NAVIGATION, 100, 10_000, positions=True),
}


def tuned(env: str, thousands: int, alpha: float) -> Settings:
    """Fine-tuning of the official code: entropy weight over reward scale 1, 1 and 1/3 (spec 3.6)."""
    return {**full(env, thousands, 50), **V2018, "reward": "task", "alpha": alpha, "evaluation_rollouts": 5}


BOX_PAPER_TEXT = "2-D box, width 32, 50,000 environment steps"
POINT_PAPER_TEXT = "2-D point with heading and speed, K = 50, width 32, 50,000 environment steps"
CHEETAH_TEXT, HOPPER_TEXT, ANT_TEXT = (f"{env}, K = 50, 10M environment steps" for env in (CHEETAH, HOPPER, ANT))
PENDULUM_TEXT = "InvertedPendulum-v5, K = 50, 1M environment steps"
CAR_TEXT = "MountainCarContinuous-v0, K = 50, 1M environment steps, log p(z) not subtracted"
PAPER = (
    skills("box", PLANE_METHODS, NAVIGATE, BOX_PAPER_TEXT, SEEDS),
    skills("hallway", {"k6": {}}, {**NAVIGATE, "env": "DIAYN/Hallway-v0"}, "hallway and room, K = 6", SEEDS),
    skills("alpha-point", ALPHA_METHODS, {**NAVIGATE, "env": "DIAYN/Point-v0", "skills": 50}, POINT_PAPER_TEXT, SEEDS),
    goals("hierarchy", {k: Need("box", k) for k in SIZES}, {}, GOAL_METHODS, "2-D box, 25 goals", SEEDS),
    skills("inverted-pendulum", CLASSIC_METHODS, PENDULUM, PENDULUM_TEXT, SEEDS),
    skills("mountain-car", CLASSIC_METHODS, MOUNTAIN_CAR, CAR_TEXT, SEEDS),
    skills("half-cheetah", CHEETAH_METHODS, HALF_CHEETAH, CHEETAH_TEXT, SEEDS),
    skills("hopper", ROBOT_METHODS, {**full(HOPPER, LONG, 20), **V2018}, HOPPER_TEXT, SEEDS),
    skills("ant", ROBOT_METHODS, {**full(ANT, LONG, 20), **V2018}, ANT_TEXT, SEEDS),
    *(
        tuning(f"fine-tuning-{name}", Need(name, "k50"), tuned(env, thousands, alpha), f"{env}, its own reward", SEEDS)
        for name, env, thousands, alpha in (
            ("half-cheetah", CHEETAH, 1000, 1.0),
            ("hopper", HOPPER, 3000, 1.0),
            ("ant", ANT, LONG, 1 / 3),
        )
    ),
    *(
        imitation(f"imitation-{name}", name, "k50", f"{words}; experts: another run", SEEDS)
        for name, words in (("inverted-pendulum", PENDULUM_TEXT), ("mountain-car", CAR_TEXT))
    ),
    poses(Need("half-cheetah", "k50"), SEEDS),
    best_skills(
        {
            f"{robot}-{method}": Need(robot, f"{method}")
            for robot in ("half-cheetah", "hopper", "ant")
            for method in ("k50", "untrained")
        },
        SEEDS,
    ),
    hurdle(Need("half-cheetah", "k50"), LONG, 1000, "1M environment steps over skills of 10M", SEEDS),
    skills(
        "ant-navigation-skills",
        {"k50": {}, "k50-xy-prior": XY},
        {**full(NAVIGATION, LONG, 20), **V2018, "horizon": 1000, "positions": True},
        "ant with gears of 30, K = 50, 10M environment steps",
        SEEDS,
    ),
    meta(
        "ant-navigation",
        NAVIGATION_NEEDS,
        NAVIGATION_METHODS,
        flat(NAVIGATION, 2 * LONG, positions=True),
        "ant navigation, 10M environment steps over skills of 10M",
        SEEDS,
    ),
    gridworld(4, 8, 16),
)

# ---------------------------------------------------------------- gpu: about an hour

GPU_CHEETAH: Settings = {**full(CHEETAH, 1000, 4), "evaluation_rollouts": 2}
GPU_CHEETAH_TEXT = "HalfCheetah-v5, K = 50, 1M environment steps"
GPU_HOPPER: Settings = {**full(HOPPER, 1000, 4), "evaluation_rollouts": 2}
GPU_ANT: Settings = {**full(ANT, 512, 4), "evaluation_rollouts": 2}
GPU = (
    *(e for e in QUICK if e.name in ("box", "alpha", "alpha-point", "hallway", "hierarchy", "imitation", "gridworld")),
    skills("half-cheetah", {**PRIORS, "untrained": UNTRAINED}, GPU_CHEETAH, GPU_CHEETAH_TEXT, GPU_SEEDS),
    skills("hopper", {"k50": {}}, GPU_HOPPER, "Hopper-v5, K = 50, 1M environment steps", GPU_SEEDS),
    skills("ant", {"k50": {}}, GPU_ANT, "Ant-v5, K = 50, 512,000 environment steps", GPU_SEEDS),
    tuning(
        "fine-tuning-half-cheetah",
        Need("half-cheetah", "k50"),
        {**tuned(CHEETAH, 300, 1.0), "variant": "twin"},
        "HalfCheetah-v5, its own reward, 300,000 environment steps",
        GPU_SEEDS,
    ),
)
