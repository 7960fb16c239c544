"""The meta-controller: when it chooses, what is stored of a choice, what is learnt from it, and that it resumes."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.random import Stream, seeded
from common.runs import Execution, Folder, RunSpec, read_record
from papers.diayn import meta
from papers.diayn.config import Config
from papers.diayn.copies import Environments, Outcome
from papers.diayn.meta import Choices, MetaController, double_dqn_loss, initial_network
from papers.diayn.meta_config import MetaConfig
from papers.diayn.networks import Agent, save_agent
from tests import faults, toy
from tests.faults import Fault

# Twelve steps in ranges of two; choices of three steps in episodes of seven.
BASE: dict[str, Any] = {
    "env": "DIAYN/Waypoints-v0", "copies": 3, "horizon": 7, "observe_goal": True, "observation_scale": "range",
    "hold": 3, "width": 8, "batch_size": 8, "buffer_size": 12, "learning_starts": 12, "update_every": 1,
    "exploration": 0.8, "steps": 12, "evaluate_every": 6, "evaluation_rollouts": 2, "checkpoint_every": 4,
    "log_every": 2, "steps_per_call": 2,
}  # fmt: skip


def directions(count: int, env: str = "DIAYN/Waypoints-v0") -> Agent:
    """Skills of a point mass made by hand: each goes straight on, all together around the circle."""
    agent = Agent(Config(env=env, skills=count, width=count, steps=1), 2, 2)
    angle = torch.arange(count) * (2 * torch.pi / count)
    policy = agent.policy
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.zero_()
        policy.w1[0, 2:] = policy.w2[0] = torch.eye(count)
        policy.w3[0, :, :2] = torch.atanh(0.98 * torch.stack([angle.cos(), angle.sin()], 1))
        policy.b3[0, 0, 2:] = -2.0
    return agent.eval().requires_grad_(False)


def controller(seeds: list[int], agent: Agent | None = None, **changes: Any) -> MetaController:
    """A module that is ready for `training_step`."""
    one = directions(4) if agent is None else agent
    module = MetaController(Agent.stack([one] * len(seeds)), MetaConfig(**{**BASE, **changes}), seeds, Execution())
    module.configure_optimizers()
    module.on_fit_start()
    return module


def test_settings() -> None:
    config = MetaConfig.of({**BASE, "seed": 3})
    assert (config.chance(0), config.chance(12)) == (1.0, config.epsilon)
    assert config.chance(5) == pytest.approx(1 - (1 - config.epsilon) * 5 / 9.6)
    assert MetaConfig.of({**BASE, "exploration": 0}).chance(0) == config.epsilon
    # Twelve environment steps are four of three copies.
    assert [step for step in range(8) if config.learns(step)] == [3, 4, 5, 6, 7]
    sparse = replace(config, learning_starts=0, update_every=2)
    assert [step for step in range(8) if sparse.learns(step)] == [3, 5, 7]
    with pytest.raises(TypeError, match="horizont"):
        MetaConfig.of({"horizont": 3})
    wrong = {
        "hold": 0, "learning_rate": 0.0, "discount": 1.0, "tau": 1.1, "epsilon": 2.0, "buffer_size": 2,
        "observation_scale": "running", "exploration": -1.0,
    }  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            MetaConfig.of({**BASE, name: value})


class Scripted(Environments):
    """One member; copy i has episodes of lengths[i] steps, which terminate where `terminates[i]`, else are cut.

    It observes (episode, step of the episode), and pays the number of the step in all.
    """

    def __init__(self, lengths: list[int], terminates: list[bool]):
        super().__init__(1, len(lengths))
        self.lengths, self.terminates = torch.tensor(lengths), torch.tensor(terminates)
        self.observation_size, self.action_size, self.device_side, self.horizon = 2, 2, True, max(lengths)
        self.now = torch.zeros(1, len(lengths), 2)
        self.total = 0

    @property
    def observation(self) -> Tensor:
        return self.now.clone()

    @property
    def context(self) -> Tensor:
        return torch.empty(1, self.copies, 0)

    def draws(self, steps: range) -> dict[str, Tensor]:
        return {}

    def step(self, action: Tensor, draws: dict[str, Tensor]) -> Outcome:
        self.total += 1
        after = self.now + torch.tensor([0.0, 1.0])
        ended = after[..., 1] >= self.lengths
        following = torch.stack([after[..., 0] + 1, torch.zeros_like(after[..., 0])], -1)
        self.now = torch.where(ended[..., None], following, after)
        reward = torch.full((1, self.copies), float(self.total))
        return Outcome(after, reward, ended & self.terminates, ended, self.context)


def test_a_choice_holds_k_steps_or_until_its_episode_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, terminates, hold, steps = [7, 3, 4, 50], [True, True, False, False], 3, 24
    monkeypatch.setattr(meta, "make_environments", lambda *_, **__: Scripted(lengths, terminates))
    module = controller([5], copies=4, buffer_size=400, observation_scale="none", learning_starts=999)
    acted = []
    act = module.agent.act
    monkeypatch.setattr(module.agent, "act", lambda *a: acted.append(a[1][0].tolist()) or act(*a))
    module.training_step((0, 10))
    module.training_step((10, steps))
    for i, (length, terminal) in enumerate(zip(lengths, terminates, strict=True)):
        # The same in plain Python: (seen, reward / k, terminated, next seen) of every finished choice.
        expected: list[tuple[Any, ...]] = []
        episode = place = held = 0
        earned, start, skill = 0.0, (0, 0), acted[0][i]
        for step in range(steps):
            if held == 0:
                earned, start, skill = 0.0, (episode, place), acted[step][i]
            assert acted[step][i] == skill  # held
            earned, held, place = earned + (step + 1) / hold, held + 1, place + 1
            if held == hold or place == length:
                expected.append((start, skill, pytest.approx(earned), terminal and place == length, (episode, place)))
                held = 0
            if place == length:
                episode, place = episode + 1, 0
        choices = module.choices
        assert choices.count[0, i] == len(expected)
        found = [
            (
                tuple(choices.observation[0, i, j].int().tolist()),
                int(choices.skill[0, i, j]),
                float(choices.reward[0, i, j]),
                bool(choices.terminated[0, i, j]),
                tuple(choices.next_observation[0, i, j].int().tolist()),
            )
            for j in range(len(expected))
        ]
        assert found == expected


def test_a_full_ring_forgets_its_oldest_choice_and_samples_only_what_it_holds() -> None:
    choices = Choices(members=1, copies=2, capacity=3, size=1)
    for number in range(5):
        finished = torch.tensor([[True, number == 1]])
        value = torch.full((1, 2), float(number))
        flags = torch.zeros(1, 2, dtype=torch.bool)
        skill = torch.full((1, 2), number)
        choices.add(finished, {"observation": value[..., None], "skill": skill, "reward": value, "terminated": flags,
                               "next_observation": value[..., None] + 1})  # fmt: skip
    assert choices.count.tolist() == [[5, 1]]
    copies = torch.tensor([[0, 0, 0, 0, 1, 1]])
    place = torch.tensor([[0.0, 0.34, 0.67, 1 - 2.0**-24, 0.0, 1 - 2.0**-24]])
    batch = choices.sample(copies, place)
    assert batch["reward"].tolist() == [[3, 4, 2, 2, 1, 1]]
    assert batch["skill"].tolist() == [[3, 4, 2, 2, 1, 1]]
    assert batch["next_observation"][..., 0].tolist() == [[4, 5, 3, 3, 2, 2]]


def test_double_dqn_bootstraps_with_the_slow_network_where_nothing_terminated() -> None:
    network, target = (initial_network(MetaConfig(width=4), [seed], 2, 3) for seed in (1, 2))
    batch = {
        "observation": torch.tensor([[[0.1, 0.2], [0.3, -0.4]]]),
        "next_observation": torch.tensor([[[0.5, -0.1], [0.2, 0.6]]]),
        "skill": torch.tensor([[2, 0]]),
        "reward": torch.tensor([[0.7, -0.2]]),
        "terminated": torch.tensor([[False, True]]),
    }
    losses, _ = double_dqn_loss(network, target, batch, 0.9)
    losses.sum().backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    with torch.no_grad():
        best = network(batch["next_observation"])[0, 0].argmax()
        y = torch.stack([0.7 + 0.9 * target(batch["next_observation"])[0, 0, best], torch.tensor(-0.2)])
        q = network(batch["observation"])[0]
        error = (torch.stack([q[0, 2], q[1, 0]]) - y).abs()
        assert (error < 1).all()
        torch.testing.assert_close(losses[0].detach(), (0.5 * error.square()).mean())


def test_a_stack_computes_what_each_computes_alone() -> None:
    both = controller([3, 8])
    both.training_step((0, 12))
    evaluated = both.evaluate()
    for number, seed in enumerate((3, 8)):
        alone = controller([seed])
        # Where ranges are cut changes nothing.
        for start in range(0, 12, 4):
            alone.training_step((start, start + 4))
        assert torch.equal(alone.choices.skill[0], both.choices.skill[number])
        torch.testing.assert_close(alone.shown[:, 0], both.shown[:, number], rtol=1e-5, atol=1e-7)
        for name, tensor in alone.network.state_dict().items():
            torch.testing.assert_close(tensor[0], both.network.state_dict()[name][number], rtol=1e-4, atol=1e-6)
        assert alone.evaluate()[0] == pytest.approx(evaluated[number])


def test_a_controller_learns_to_reach_the_first_goal() -> None:
    module = controller(
        [0], directions(8), copies=64, horizon=40, hold=10, width=32, batch_size=128, buffer_size=4000, steps=600,
        learning_starts=640, learning_rate=3e-3, tau=0.05, evaluation_rollouts=8, exploration=0.6, discount=0.9,
    )  # fmt: skip
    module.training_step((0, 600))
    assert module.evaluate()[0]["task_return"] >= 0.75


def test_skills_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match="observation_size 4, but the skills were learnt with 2"):
        controller([0], env="DIAYN/Point-v0", observe_goal=False)
    fitting = Agent(Config(skills=2, width=4, steps=1), 17, 6)
    with pytest.raises(UserError, match="no range"):
        controller([0], fitting, env="HalfCheetah-v5", copies=1, observe_goal=False)


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """As `meta.run`, over an agent that it writes itself."""
    skills = folder.path / "needed"
    skills.mkdir(exist_ok=True)
    save_agent(directions(4), skills)
    return meta.run(config, folder, {"skills": skills})


@pytest.mark.usefixtures("fork_server")
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    def spec_of(root: Path) -> RunSpec:
        return RunSpec("diayn", "smoke", "control", "waypoints", 7, "tests.diayn.test_meta:run", BASE, root / "seed-7")

    whole, spec = spec_of(tmp_path / "whole"), spec_of(tmp_path / "killed")
    assert faults.run_with(whole) == 0
    # After the checkpoint of step 4, in the middle of choices and of episodes.
    assert faults.run_with(spec, Fault("papers.diayn.meta:MetaController.training_step", 4)) == -9
    assert faults.run_with(spec) == 0
    assert toy.end_state(spec.folder) == toy.end_state(whole.folder)
    record = read_record(spec.folder)
    assert record is not None and record["status"] == "finished" and record["resumed"] == [4]
    assert set(record["metrics"]) == {"task_return", "return_area", "return_area_third"}


def test_over_gymnasiums_environments_it_goes_on_where_it_was() -> None:
    with seeded(Stream(0, "skills")):
        untrained = Agent(Config(skills=3, width=4, steps=1), 2, 1).requires_grad_(False)
    changes = {"env": "MountainCarContinuous-v0", "observe_goal": False, "buffer_size": 60, "learning_starts": 9}
    whole, resumed = (controller([4], untrained, **changes) for _ in range(2))
    torch.manual_seed(0)
    whole.training_step((0, 8))
    # Copied: a state dictionary holds the tensors themselves.
    module, optimizer = copy.deepcopy((whole.state_dict(), whole.optimizer.state_dict()))
    whole.training_step((8, 12))
    torch.manual_seed(1)  # nothing is random but by streams
    resumed.load_state_dict(module)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.training_step((8, 12))
    assert int(whole.choices.count.sum()) == 12 and whole.shown.any()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    assert resumed.evaluate() == whole.evaluate()
