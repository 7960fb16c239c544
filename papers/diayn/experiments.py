"""Experiments of `smoke` and `quick` (spec, section 10), and how experiments are made. No torch.

Those on robots, of `cpu`, `gpu` and `paper`, are in `full_scale.py`.
Runs that differ only in the entropy's weight, the prior, the draw and the seed are trained as one batch (`STACKING`).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from common.paper import Experiment, Need, Stacking
from papers.diayn.config import Config, stack_shape
from papers.diayn.measure_config import MeasureBest, MeasureGoals, MeasureGridworld, MeasureImitation, MeasurePoses
from papers.diayn.meta_config import MetaConfig

RUN, RUN_STACK = "papers.diayn.module:run", "papers.diayn.module:run_stack"
META, MEASURE = "papers.diayn.meta:run", "papers.diayn.measure"
STACKING = Stacking(RUN_STACK, stack_shape, size=5)
Settings = dict[str, Any]
Methods = Mapping[str, Mapping[str, Any]]
Of = Callable[[Mapping[str, Any]], object]

QUICK_SEEDS, ABLATION_SEEDS = 5, 3
ALPHAS = (0.01, 0.1, 0.5, 1, 10)


# ---------------------------------------------------------------- kinds of experiment


def skills(name: str, methods: Methods, config: Mapping[str, Any], described: str, seeds: int) -> Experiment:
    """Skills learnt without a task, many runs as one batch."""
    return Experiment(name, methods, config, (), described, seeds, check_config=Config.of, stacking=STACKING)


def _mixed(
    name: str, methods: Methods, described: str, seeds: int, needs: Mapping[str, Need], function: str, of: Of
) -> Experiment:
    """An experiment of agents without skills, and for each method named in `needs` what `function` does with skills."""

    def check(config: Mapping[str, Any]) -> object:
        # Only an agent that learns by itself has a reward.
        return (Config.of if "reward" in config else of)(config)

    return Experiment(
        name,
        methods,
        described=described,
        seeds=seeds,
        needs={method: {"skills": need} for method, need in needs.items()},
        functions=dict.fromkeys(needs, function),
        check_config=check,
    )


def goals(
    name: str, chosen: Mapping[str, Need], selection: Mapping[str, Any], flat: Methods, described: str, seeds: int
) -> Experiment:
    """C6: the best skill for each of the 25 goals, and agents that learn each goal alone."""
    methods = {**dict.fromkeys(chosen, selection), **flat}
    return _mixed(name, methods, described, seeds, chosen, f"{MEASURE}:goals_of_skills", MeasureGoals.of)


def meta(
    name: str, controlled: Mapping[str, Need], controllers: Methods, flat: Methods, described: str, seeds: int
) -> Experiment:
    """C7, C8: controllers over frozen skills, and agents that learn the task alone."""
    return _mixed(name, {**controllers, **flat}, described, seeds, controlled, META, MetaConfig.of)


def fine_tuning(name: str, skilled: Need, config: Mapping[str, Any], described: str, seeds: int) -> Experiment:
    """C5: a skill as initialisation - of actor and critics (paper) or of the actor (official code) - against none."""
    methods = {
        "actor-and-critics": {"pretrained": "all"},
        "actor": {"pretrained": "actor"},
        "scratch": {"pretrained": "none"},
    }
    return Experiment(
        name,
        methods,
        config,
        described=described,
        seeds=seeds,
        needs={method: {"skills": skilled} for method in ("actor-and-critics", "actor")},
        check_config=Config.of,
    )


def measured(
    name: str,
    measure: str,
    of: Of,
    needs: Mapping[str, Mapping[str, Need]],
    described: str,
    seeds: int,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Experiment:
    """What a function of `measure.py` finds out about skills that other runs have learnt."""
    return Experiment(
        name,
        {method: {} for method in needs},
        config,
        described=described,
        seeds=seeds,
        needs=needs,
        function=f"{MEASURE}:{measure}",
        check_config=of,
    )


def imitation(name: str, learnt: str, many: str, described: str, seeds: int) -> Experiment:
    """C12: students of the experiment `learnt`, with so `many` skills (as "k20"), recognise and repeat the skills of
    an independently trained expert."""
    students = {
        "diayn": many,
        "low-entropy": f"{many}-low-entropy",
        "learned-prior": f"{many}-learned-prior",
        "few-skills": "k5",
    }
    expert = Need(learnt, f"{many}-b")
    needs = {student: {"student": Need(learnt, run), "expert": expert} for student, run in students.items()}
    return measured(name, "imitation", MeasureImitation.of, needs, described, seeds)


def poses(need: Need, seeds: int, config: Mapping[str, Any] = MappingProxyType({})) -> Experiment:
    """C13: upright, flip, faceplant and handstand of a cheetah."""
    described = "HalfCheetah-v5, states built from the model as expert"
    return measured("poses", "poses", MeasurePoses.of, {"diayn": {"skills": need}}, described, seeds, config)


def gridworld(*sizes: int) -> Experiment:
    """C15, exact."""
    return Experiment(
        "gridworld",
        {f"n{size}": {"size": size} for size in sizes},
        described="N x N grid, two skills, exact",
        seeds=1,
        function=f"{MEASURE}:gridworld",
        check_config=MeasureGridworld.of,
    )


# ---------------------------------------------------------------- the 2-D box (spec 10.1, 10.2, 10.4)

PROTOTYPE: Settings = {
    "copies": 16,
    "width": 64,
    "learning_rate": 1e-3,
    "buffer_size": 1 << 17,
    "steps": 4096,
    "evaluate_every": 512,
    "evaluation_rollouts": 16,
    "checkpoint_every": 1024,
    "log_every": 128,
    "steps_per_call": 32,
}
"""One update for 16 environment steps; batches of 128, alpha 0.1, discount 0.99 and tau 0.01 are the paper's."""
BOX: Settings = {**PROTOTYPE, "env": "DIAYN/Box-v0", "skills": 6}
FIFTY: Settings = {"skills": 50, "batch_size": 256, "steps": 5632, "evaluate_every": 704, "checkpoint_every": 1408}
LEARNED: Settings = {"prior": "learned"}
BOX_METHODS: dict[str, Settings] = {
    "k1": {"skills": 1},
    "k2": {"skills": 2},
    "k4": {"skills": 4},
    "k5": {"skills": 5},
    "k6": {},
    "k6-b": {"draw": 1},
    "k6-c": {"draw": 2},
    "k20": {"skills": 20},
    "k20-b": {"skills": 20, "draw": 1},
    "k20-learned-prior": {"skills": 20, **LEARNED},
    "k20-low-entropy": {"skills": 20, "alpha": 0.01},
    "k50": FIFTY,
    "k50-learned-prior": {**FIFTY, **LEARNED},
}
SIZES = ("k1", "k2", "k4", "k6", "k20", "k50")
"""Numbers of skills of Fig. 6."""
BOX_TEXT = "2-D box, 65,536 environment steps (K = 50: 90,112)"
POINT: Settings = {**BOX, "env": "DIAYN/Point-v0"}
POINT_TEXT = "2-D point with heading and speed, K = 6, 65,536 environment steps"
ALPHA_METHODS: dict[str, Settings] = {f"alpha-{alpha}": {"alpha": alpha} for alpha in ALPHAS}
ABLATIONS: dict[str, Settings] = {
    "v2018": {"variant": "v2018"},
    "v2018-one-gaussian": {"variant": "v2018", "components": 1},
    "classifier-next": {"classifier_input": "next"},
    "classifier-4": {"classifier_updates": 4},
    "skill-per-epoch": {"skill_change": "epoch"},
    "keep-prior": {"subtract_prior": False},
}
"""Each against `k6` of the box. "keep-prior": the reward is log q(z|s) alone."""

# ---------------------------------------------------------------- tasks in the box

TASK: Settings = {
    "reward": "task",
    "skills": 1,
    # Of 0.001, 0.01 and 0.1 the best for the 25 goals, of 0.003 to 0.1 for the waypoints (seeds 0 and 1).
    "alpha": 0.01,
    "learning_starts": 256,
}
GOAL: Settings = {
    **BOX,
    **TASK,
    "tasks": "goals",
    "buffer_size": 8192,
    "steps": 256,
    "evaluate_every": 32,
    "checkpoint_every": 128,
    "log_every": 32,
}
"""An agent for each goal. 25 of them take 102,400 steps of the environment, as many as K = 20 skills together with the
episodes in which the best is chosen."""
NOVELTY: Settings = {"bonus": 0.1}
FLAT: dict[str, Settings] = {"sac": GOAL, "sac-rnd": {**GOAL, **NOVELTY}}
GOALS_TEXT = "2-D box, 25 goals; in all as many environment steps without skills as with K = 20"
TUNED: Settings = {**GOAL, "skills": 20, "steps": 384}
TUNED_TEXT = "2-D box, 25 goals, 6,144 environment steps each"

# ---------------------------------------------------------------- other environments of quick

HALLWAY: Settings = {**BOX, "env": "DIAYN/Hallway-v0"}
HALLWAY_TEXT = "hallway and room, 65,536 environment steps"
CAR: Settings = {
    **PROTOTYPE,
    "env": "DIAYN/MountainCar-v0",
    "skills": 10,
    "observation_scale": "range",
    "horizon": 500,
    "steps": 6144,
    "evaluation_rollouts": 8,
    "evaluation_horizon": 999,
}
CAR_METHODS: dict[str, Settings] = {"k10": {}, "k10-keep-prior": {"subtract_prior": False}}
"""The official code does not subtract log p(z) here."""
CAR_TEXT = "mountain car (own vectorised copy), K = 10, 98,304 environment steps"

WAYPOINTS: Settings = {**PROTOTYPE, "env": "DIAYN/Waypoints-v0"}
WAYPOINT_SKILLS: Settings = {**WAYPOINTS, "skills": 20}
UNTRAINED: Settings = {
    "steps": 2,
    "learning_starts": WAYPOINTS["buffer_size"],
    "evaluate_every": 1,
    "checkpoint_every": 2,
}
"""Nothing is learnt before so many transitions."""
CONTROLLED: Settings = {
    "env": "DIAYN/Waypoints-v0",
    "copies": 16,
    "observe_goal": True,
    "observation_scale": "range",
    "hold": 10,
    "learning_starts": 400,
    "steps": 5000,
    "evaluate_every": 250,
    "evaluation_rollouts": 16,
    "checkpoint_every": 1000,
    "log_every": 100,
    "steps_per_call": 50,
}
UNSKILLED: Settings = {
    **WAYPOINTS,
    **TASK,
    "observe_goal": True,
    "observation_scale": "range",
    "steps": WAYPOINTS["steps"] + CONTROLLED["steps"],
    "evaluate_every": 379,
}
"""As many steps as skills and their controller together."""
WAYPOINTS_TEXT = "point mass, ant navigation's waypoints, 145,536 environment steps with or without skills"


def waypoints(
    skills_: Mapping[str, Any], untrained: Mapping[str, Any], controller: Methods, flat: Methods, seeds: int
) -> tuple[Experiment, Experiment]:
    """Skills, and what is learnt over them or without them (spec 10.7)."""
    learnt = skills("waypoint-skills", {"k20": {}, "untrained": untrained}, skills_, "point mass, K = 20", seeds)
    needed = {"hierarchy": Need("waypoint-skills", "k20"), "untrained-skills": Need("waypoint-skills", "untrained")}
    return learnt, meta("waypoints", needed, controller, flat, WAYPOINTS_TEXT, seeds)


# ---------------------------------------------------------------- smoke

TINY: Settings = {
    "copies": 2,
    "horizon": 4,
    "skills": 3,
    "width": 8,
    "batch_size": 4,
    "buffer_size": 16,
    "learning_starts": 2,
    "steps": 4,
    "evaluate_every": 2,
    "evaluation_rollouts": 2,
    "evaluation_horizon": 4,
    "checkpoint_every": 1,
    "log_every": 2,
    "steps_per_call": 2,
}
TINY_META = {
    **{name: value for name, value in TINY.items() if name != "skills"},
    "env": "DIAYN/Waypoints-v0",
    "observe_goal": True,
    "hold": 2,
}
SMOKE_GOAL: Settings = {**GOAL, **TINY, "skills": 1}
SMOKE = (
    # One experiment for all: the report draws every curve once for each experiment.
    skills(
        "skills",
        {
            "k20": {},
            "k20-b": {"draw": 1},
            "k20-low-entropy": {"alpha": 0.01},
            "k20-learned-prior": LEARNED,
            "v2018": ABLATIONS["v2018"],
            "features": {"features": [0], "observation_scale": "running", "updates": 2, "classifier_updates": 4},
            "hallway": {"env": HALLWAY["env"]},
            "point": {"env": POINT["env"]},
            "mountain-car": {"env": CAR["env"], "observation_scale": "range"},
            "waypoints": {"env": WAYPOINTS["env"]},
        },
        {**BOX, **TINY, "epoch_steps": 4},
        "2-D box and our other environments, K = 3",
        1,
    ),
    skills("half-cheetah", {"k3": {}}, {**PROTOTYPE, **TINY, "env": "HalfCheetah-v5"}, "MuJoCo", 1),
    poses(Need("half-cheetah", "k3"), 1, {"steps": 4, "pose_steps": 4}),
    measured(
        "best-skill",
        "best_skill",
        MeasureBest.of,
        {"half-cheetah": {"skills": Need("half-cheetah", "k3")}},
        "MuJoCo",
        1,
    ),
    goals(
        "hierarchy",
        {"k20": Need("skills", "k20")},
        {"selection_rollouts": 1, "evaluation_rollouts": 1},
        {"sac-rnd": {**SMOKE_GOAL, **NOVELTY}},
        "2-D box, 25 goals",
        1,
    ),
    fine_tuning("fine-tuning", Need("skills", "k20"), {**SMOKE_GOAL, "skills": 3}, "2-D box, 25 goals", 1),
    measured(
        "imitation",
        "imitation",
        MeasureImitation.of,
        {"diayn": {"student": Need("skills", "k20"), "expert": Need("skills", "k20-b")}},
        "2-D box",
        1,
    ),
    meta(
        "waypoints",
        {"hierarchy": Need("skills", "waypoints")},
        {"hierarchy": TINY_META},
        {"sac": {**UNSKILLED, **TINY, "skills": 1}},
        "point mass",
        1,
    ),
    gridworld(2),
)

# ---------------------------------------------------------------- quick

QUICK = (
    skills("box", BOX_METHODS, BOX, BOX_TEXT, QUICK_SEEDS),
    skills("alpha", ALPHA_METHODS, BOX, f"{BOX_TEXT}, K = 6", QUICK_SEEDS),
    skills("alpha-point", ALPHA_METHODS, POINT, POINT_TEXT, QUICK_SEEDS),
    skills("hallway", {"k6": {}, "k20": {"skills": 20}}, HALLWAY, HALLWAY_TEXT, QUICK_SEEDS),
    skills("mountain-car", CAR_METHODS, CAR, CAR_TEXT, QUICK_SEEDS),
    goals("hierarchy", {k: Need("box", k) for k in SIZES}, {}, FLAT, GOALS_TEXT, QUICK_SEEDS),
    fine_tuning("fine-tuning", Need("box", "k20"), TUNED, TUNED_TEXT, QUICK_SEEDS),
    imitation("imitation", "box", "k20", "2-D box, 20 skills of another training as experts", QUICK_SEEDS),
    *waypoints(
        WAYPOINT_SKILLS,
        UNTRAINED,
        {"hierarchy": CONTROLLED, "untrained-skills": CONTROLLED},
        {"sac": UNSKILLED, "sac-rnd": {**UNSKILLED, **NOVELTY}},
        QUICK_SEEDS,
    ),
    skills("ablations", ABLATIONS, BOX, f"{BOX_TEXT}, K = 6", ABLATION_SEEDS),
    gridworld(4, 8, 16),
)
