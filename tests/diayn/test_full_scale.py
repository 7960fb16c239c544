"""The presets' runs expand and have the paper's settings; tiny copies of `paper`'s networks take two steps."""

import dataclasses
import json

import pytest

from common.paper import expand
from common.runs import Execution, execute
from papers.diayn.config import Config, stack_shape
from papers.diayn.meta_config import MetaConfig
from papers.diayn.reproduce import PAPER

TINY = {
    "copies": 2,
    "updates": 2,
    "width": 8,
    "batch_size": 4,
    "buffer_size": 32,
    "learning_starts": 2,
    "horizon": 4,
    "skills": 3,
    "steps": 2,
    "evaluate_every": 1,
    "evaluation_rollouts": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "steps_per_call": 1,
}


def preset_id(preset) -> str:
    return preset.name


def settings(preset: str, experiment: str, method: str) -> dict:
    found = PAPER.preset(preset).experiment(experiment)
    return {**found.config, **found.methods[method]}


def trainings(preset):
    """(experiment, method, config) of every run that learns skills or a task."""
    for experiment in preset.experiments:
        for method, changes in experiment.methods.items():
            config = {**experiment.config, **changes}
            if "env" in config and "hold" not in config:
                yield experiment, method, Config.of(config)


@pytest.mark.parametrize("preset", PAPER.presets, ids=preset_id)
def test_every_config_is_one_and_is_json(preset, tmp_path):
    assert len({e.name for e in preset.experiments}) == len(preset.experiments)
    specs = expand(PAPER, preset, tmp_path, Execution(), lambda source: None)
    assert {(spec.experiment, spec.method) for spec in specs} == {
        (e.name, method) for e in preset.experiments for method in e.methods
    }
    assert all(json.loads(json.dumps(spec.config)) == spec.config for spec in specs)
    for experiment in preset.experiments:
        assert set(experiment.needs) <= set(experiment.methods)
        for need in (need for needs in experiment.needs.values() for need in needs.values()):
            assert need.method in preset.experiment(need.experiment).methods
            assert preset.experiment(need.experiment).seeds >= experiment.seeds


@pytest.mark.parametrize("preset", PAPER.presets, ids=preset_id)
def test_skills_are_evaluated_before_in_the_middle_and_at_the_end(preset):
    for experiment, method, config in trainings(preset):
        assert config.steps % config.evaluate_every == 0, (experiment.name, method)
        if config.reward == "skills":
            assert config.steps // 2 % config.evaluate_every == 0, (experiment.name, method)
        # What is meant to learn does, before the buffer forgets; untrained skills never do.
        starts = config.learning_starts < config.steps * config.copies
        assert starts != method.startswith("untrained"), (experiment.name, method)
        assert config.learning_starts <= config.buffer_size


@pytest.mark.parametrize("preset", PAPER.presets, ids=preset_id)
def test_what_uses_skills_fits_them(preset):
    same = ("env", "positions", "width", "variant", "skills")
    for experiment in preset.experiments:
        for method, needs in experiment.needs.items():
            config = {**experiment.config, **experiment.methods[method]}
            for need in needs.values():
                skilled = Config.of(settings(preset.name, need.experiment, need.method))
                if "pretrained" in config:
                    tuned = Config.of(config)
                    assert [getattr(tuned, name) for name in same] == [getattr(skilled, name) for name in same]
                    assert tuned.observation_scale == skilled.observation_scale
                if "hold" in config:
                    assert MetaConfig.of(config).positions == skilled.positions


def test_stacks_of_quick_are_few():
    quick = PAPER.preset("quick")
    shapes = {
        (e.name, stack_shape({**e.config, **changes}))
        for e in quick.experiments
        if e.stacking is not None
        for changes in e.methods.values()
    }
    runs = sum(len(e.methods) for e in quick.experiments if e.stacking is not None)
    assert runs == 35 and len(shapes) <= 20
    assert Config.of(settings("quick", "box", "k6")) == Config.of(settings("quick", "alpha", "alpha-0.1"))


def test_equal_environment_steps_with_and_without_skills():
    quick = PAPER.preset("quick")
    flat, controlled = settings("quick", "waypoints", "sac"), settings("quick", "waypoints", "hierarchy")
    skilled = settings("quick", "waypoint-skills", "k20")
    assert flat["steps"] * flat["copies"] == 16 * (skilled["steps"] + controlled["steps"]) == 145_536
    goal, k20 = settings("quick", "hierarchy", "sac"), settings("quick", "box", "k20")
    selecting = 20 * 16 * 100
    assert 0.9 < 25 * goal["steps"] * goal["copies"] / (k20["steps"] * k20["copies"] + selecting) < 1.1
    assert "145,536" in quick.experiment("waypoints").described


def test_the_paper_preset_has_the_papers_hyper_parameters():
    for name, env, steps in (
        ("inverted-pendulum", "InvertedPendulum-v5", 1e6),
        ("mountain-car", "MountainCarContinuous-v0", 1e6),
        ("half-cheetah", "HalfCheetah-v5", 1e7),
        ("hopper", "Hopper-v5", 1e7),
        ("ant", "Ant-v5", 1e7),
    ):
        config = Config.of(settings("paper", name, "k50"))
        assert (config.env, config.skills, config.width, config.steps * config.copies) == (env, 50, 300, steps)
        assert (config.alpha, config.learning_rate, config.discount, config.tau) == (0.1, 3e-4, 0.99, 0.01)
        assert (config.batch_size, config.updates, config.variant, config.components) == (
            128,
            config.copies,
            "v2018",
            4,
        )
        assert (config.learning_starts, config.skill_change) == (1000, "episode")
        assert config.subtract_prior == (name != "mountain-car")
        assert Config.of(settings("paper", name, "k50-twin")).variant == "twin"
    assert settings("paper", "half-cheetah", "k50")["buffer_size"] == 10_000_000
    box = Config.of(settings("paper", "box", "k6"))
    assert (box.width, box.skills, box.steps * box.copies, box.updates) == (32, 6, 50_000, box.copies)
    assert MetaConfig.of(settings("paper", "hurdle", "hierarchy")).hold == 10
    assert MetaConfig.of(settings("paper", "ant-navigation", "hierarchy")).hold == 100
    assert not settings("paper", "ant-navigation", "hierarchy").get("observe_goal", False)
    xy = Config.of(settings("paper", "ant-navigation-skills", "k50-xy-prior"))
    assert xy.positions and xy.features == (0, 1)
    tuned = {name: settings("paper", f"fine-tuning-{name}", "scratch") for name in ("half-cheetah", "hopper", "ant")}
    assert [16 * config["steps"] for config in tuned.values()] == [1_000_000, 3_000_000, 10_000_000]
    assert [config["alpha"] for config in tuned.values()] == pytest.approx([1, 1, 1 / 3])


CASES = (
    ("paper", "half-cheetah", "k50"),
    ("paper", "ant-navigation-skills", "k50-xy-prior"),
    ("paper", "hurdle", "sac-rnd"),
)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_steps_of_tiny_copies(case, tmp_path):
    name, experiment, method = case
    (spec,) = expand(
        PAPER, PAPER.preset(name), tmp_path, Execution(), lambda source: None, [1000], [method], [experiment]
    )
    record = execute(dataclasses.replace(spec, config={**spec.config, **TINY}))
    assert record["status"] == "finished", record["error"]
    found = record["metrics"]
    assert found.get("effective_skills", 0) == pytest.approx(3, abs=0.5) or "task_return" in found
