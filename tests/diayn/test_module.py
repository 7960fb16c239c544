"""Training as a whole: killed runs, stacks, what is collected, skills that change, what a run leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.capture import StepGraph
from common.curves import read_rows
from common.errors import UserError
from common.runs import Execution, RunSpec, execute, read_record
from papers.diayn.config import Config
from papers.diayn.module import Skills, area, build
from papers.diayn.networks import load_agent, save_agent, split_states
from tests import faults, toy
from tests.common.test_capture import FakeCapture
from tests.faults import Fault

MODULE = "papers.diayn.module:Skills"
# Eight steps of three copies in ranges of two, a checkpoint after each, evaluations at 4 and 8; episodes of five steps.
BASE: dict[str, Any] = {
    "env": "DIAYN/Box-v0", "copies": 3, "horizon": 5, "skills": 3, "width": 8, "batch_size": 6, "learning_starts": 6,
    "buffer_size": 15, "steps": 8, "evaluate_every": 4, "evaluation_rollouts": 2, "checkpoint_every": 2, "log_every": 2,
    "steps_per_call": 2, "epoch_steps": 6, "learning_rate": 0.01,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "twin": {"prior": "learned", "classifier_updates": 2, "observation_scale": "running", "updates": 2},
    "v2018": {"variant": "v2018", "skill_change": "epoch", "classifier_input": "next"},
    "mujoco": {"env": "InvertedPendulum-v5", "copies": 2, "evaluation_rollouts": 1},
    "task": {"reward": "task", "env": "DIAYN/Waypoints-v0", "observe_goal": True, "bonus": 0.1},
}
CHAINS = {
    "twin": [Fault(f"{MODULE}.update", 3), Fault("os:replace", 5), Fault(f"{MODULE}.evaluate", 2, "after")],
    "v2018": [Fault(f"{MODULE}.collect", 5, "after"), Fault(f"{MODULE}.training_step", 2, "after")],
    "mujoco": [Fault(f"{MODULE}.collect", 4, "after"), Fault(f"{MODULE}.update", 3)],
    "task": [Fault(f"{MODULE}.update", 4, "after")],
}


def config_of(**changes: Any) -> Config:
    return Config.of({**BASE, **changes})


def module_of(configs: list[Config], seeds: list[int]) -> Skills:
    module = build(configs, seeds, [{}] * len(seeds), Execution())
    module.configure_optimizers()
    module.on_fit_start()
    return module


def spec_of(name: str, root: Path) -> RunSpec:
    return RunSpec(
        "diayn", "smoke", "box", name, 7, "papers.diayn.module:run", {**BASE, **CHANGES[name]},
        root / "diayn" / "smoke" / "box" / name / "seed-7", Execution(),
    )  # fmt: skip


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("name", CHAINS)
def test_a_killed_run_ends_as_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    whole, spec = spec_of(name, tmp_path / "whole"), spec_of(name, tmp_path / "killed")
    assert faults.run_with(whole) == 0
    for fault in CHAINS[name]:
        assert faults.run_with(spec, fault) == -9, f"{fault} was not reached"
    assert faults.run_with(spec) == 0
    assert toy.end_state(spec.folder) == toy.end_state(whole.folder)
    record = read_record(spec.folder)
    assert record is not None and record["status"] == "finished" and record["resumed"]
    agent, config, info = load_agent(spec.folder)
    assert config == config_of(**CHANGES[name]) and agent.members == 1
    assert info["skill"] == ([0] if name == "task" else None)
    if name == "task":
        assert {"task_return", "return_area", "return_area_third"} <= set(record["metrics"])
    else:
        assert {"accuracy", "accuracy_untrained", "mutual_information_half", "return_std"} <= set(record["metrics"])
    names = {row["name"] for row in read_rows(spec.folder / "curves.csv")}
    assert {"train_critic_loss", "train_reward", "train_task_reward"} <= names


def test_lightning_trains_what_the_steps_train(tmp_path: Path) -> None:
    spec = spec_of("twin", tmp_path)
    assert execute(spec)["status"] == "finished"
    module = module_of([config_of(**CHANGES["twin"])], [7])
    module.training_step((0, 8))
    trained = load_agent(spec.folder)[0].state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in module.agent.state_dict().items())


def test_a_stack_trains_each_run_as_alone() -> None:
    configs = [config_of(), config_of(alpha=0.5), config_of(prior="learned", subtract_prior=False), config_of(draw=1)]
    seeds = [1, 1, 2, 1]
    stack = module_of(configs, seeds)
    outputs = [stack.training_step((step, step + 2)) for step in range(0, 8, 2)]
    values = stack.evaluate()
    states = split_states(stack.learner.state_dict(), 4)
    for i, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
        alone = module_of([config], [seed])
        for expected in outputs:
            found = alone.training_step((int(alone.step), int(alone.step) + 2))
            alone.step = int(alone.step) + 2
            assert all(
                torch.allclose(found[name][0], tensor[i], rtol=1e-4, atol=1e-5) for name, tensor in expected.items()
            )
        assert torch.equal(alone.skill[0], stack.skill[i])
        assert torch.allclose(alone.buffer.rows[0], stack.buffer.rows[i], atol=1e-5)
        state = alone.learner.state_dict()
        assert all(torch.allclose(state[name], tensor, atol=1e-4) for name, tensor in states[i].items())
        stack.step = alone.step
        assert alone.evaluate()[0]["accuracy"] == pytest.approx(stack.evaluate()[i]["accuracy"])
    assert len({round(value["mutual_information"], 6) for value in values}) == 4  # all differ


def test_evaluations_in_gymnasium_do_not_depend_on_the_stack() -> None:
    changes = {**CHANGES["mujoco"], "evaluation_rollouts": 7}  # 21 episodes: more than are played at a time
    configs = [config_of(**changes), config_of(alpha=0.5, **changes)]
    stacked = module_of(configs, [1, 2]).evaluate()
    for config, seed, expected in zip(configs, (1, 2), stacked, strict=True):
        assert module_of([config], [seed]).evaluate()[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("skilled", "tuned", "message"),
    [
        ({"width": 16}, {}, "has width 8, its skills 16"),
        ({"observation_scale": "range"}, {}, "has observation_scale none, its skills range"),
        ({"env": "DIAYN/Point-v0"}, {}, "another environment: its observation_size"),
    ],
)
def test_only_skills_of_the_same_networks_are_fine_tuned(
    skilled: dict[str, Any], tuned: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_agent(module_of([config_of(**skilled)], [0]).agent, tmp_path)
    config = config_of(reward="task", tasks="goals", pretrained="all", **tuned)
    with pytest.raises(UserError, match=message):
        build([config], [0], [{"skills": tmp_path}], Execution())


def test_fine_tuning_starts_from_the_skill_s_networks_and_scale(tmp_path: Path) -> None:
    skilled = module_of([config_of(env="DIAYN/Waypoints-v0", observation_scale="running")], [0])
    skilled.training_step((0, 8))
    save_agent(skilled.agent, tmp_path)
    config = config_of(env="DIAYN/Waypoints-v0", observation_scale="running", reward="task", pretrained="all")
    module = build([config], [0], [{"skills": tmp_path}], Execution())
    assert torch.equal(module.agent.center, skilled.agent.center) and module.agent.center.any()
    for name in ("policy", "critic"):
        ours, its = getattr(module.agent, name), getattr(skilled.agent, name)
        assert all(torch.equal(a, b) for a, b in zip(ours.tensors(), its.tensors(), strict=True))
    module.configure_optimizers()
    module.on_fit_start()
    module.training_step((0, 4))
    assert torch.equal(module.agent.center, skilled.agent.center)


def test_only_float32_is_trained_in() -> None:
    with pytest.raises(UserError, match="trains in float32, not bfloat16"):
        build([config_of()], [0], [{}], Execution(precision="bfloat16"))


def test_transitions_are_whole_and_belong_to_the_skill_that_acted() -> None:
    """Spec 8, difference 2: no transition joins two episodes, and no action follows a stale observation."""
    module = module_of([config_of(buffer_size=100)], [3])
    skills = [module.skill[0].clone()]
    for step in range(8):
        module.training_step((step, step + 1))
        skills.append(module.skill[0].clone())
    batch = module.buffer.read(torch.arange(24)[None])
    start = torch.tensor([0.5, 0.5])
    for step in range(8):
        rows = slice(3 * step, 3 * step + 3)
        assert torch.equal(batch.skill[0, rows], skills[step])
        expected = (batch.observation[0, rows] + 0.1 * batch.action[0, rows]).clamp(0, 1)
        assert torch.allclose(batch.next_observation[0, rows], expected, atol=1e-6)
        if step in (0, 5):  # episodes have five steps
            assert torch.equal(batch.observation[0, rows], start.expand(3, 2))
        else:
            assert torch.equal(batch.observation[0, rows], batch.next_observation[0, 3 * step - 3 : 3 * step])
            assert torch.equal(skills[step], skills[step - 1])
    assert not batch.terminated.any()  # cut by the time limit, which is no termination


def test_skills_change_with_the_epoch_where_the_official_code_s_way_is_asked_for() -> None:
    module = module_of([config_of(skill_change="epoch", skills=40, epoch_steps=9)], [0])
    skills = []
    for step in range(8):
        skills.append(module.skill.clone())
        module.training_step((step, step + 1))
    changed = [step for step in range(1, 8) if not torch.equal(skills[step], skills[step - 1])]
    assert changed == [3, 6]  # nine environment steps are three of ours; episodes of five do not matter


def test_nothing_is_learnt_before_there_are_transitions() -> None:
    module = module_of([config_of(learning_starts=9)], [0])
    before = {name: tensor.clone() for name, tensor in module.learner.state_dict().items()}
    outputs = module.training_step((0, 2))
    assert set(outputs) == {"task_reward"}
    assert all(torch.equal(before[name], tensor) for name, tensor in module.learner.state_dict().items())
    assert "critic_loss" in module.training_step((2, 3))


def test_how_steps_are_grouped_does_not_change_them() -> None:
    ends = []
    for size in (1, 4):
        module = module_of([config_of(**CHANGES["twin"])], [0])
        for step in range(0, 8, size):
            module.training_step((step, step + size))
        ends.append(module.state_dict())
    assert all(
        torch.equal(ends[1][name], tensor) for name, tensor in ends[0].items() if isinstance(tensor, torch.Tensor)
    )


def test_the_25_goals_are_agents_of_their_own() -> None:
    module = module_of([config_of(reward="task", tasks="goals", skills=1)], [0])
    assert module.agent.members == 25 and len(set(module.seeds)) == 25
    outputs = module.training_step((0, 4))
    assert outputs["critic_loss"].shape == (1,)
    assert len(module.evaluate()) == 1


@pytest.mark.parametrize(
    "changes", [CHANGES["twin"], {"variant": "v2018"}, {"reward": "task", "bonus": 0.1, "skills": 1}]
)
def test_captured_steps_are_the_eager_ones(changes: dict[str, Any]) -> None:
    """On a stand-in for a GPU that runs nothing while it records."""
    config = config_of(learning_starts=3, **changes)
    eager, captured = module_of([config], [0]), module_of([config], [0])

    def state() -> list[torch.Tensor]:
        moments = captured.learner.adam.state
        tensors = [value for value in captured.state_dict().values() if isinstance(value, torch.Tensor)]
        return [*tensors, *(moments[p][name] for p in moments for name in moments[p])]

    captured.learn = StepGraph(captured.update, FakeCapture(state))
    captured.act = StepGraph(captured.collect, FakeCapture(state))
    captured.learn_classifier = StepGraph(captured.update_classifier, FakeCapture(state))
    for bounds in ((0, 3), (3, 8)):
        outputs, replayed = eager.training_step(bounds), captured.training_step(bounds)
        assert all(torch.equal(outputs[name], replayed[name]) for name in outputs)
    ends = eager.state_dict(), captured.state_dict()
    assert all(torch.equal(ends[1][name], tensor) for name, tensor in ends[0].items())


def test_area_under_a_curve() -> None:
    points = [(0, 0.0), (4, 4.0), (8, 4.0)]
    assert area(points, 8) == pytest.approx(3.0)
    assert area(points, 2) == pytest.approx(1.0)
    assert area(points, 80) == pytest.approx(3.0)
