"""Episodes end where they end, and every metric of skills is what a plain loop over them finds."""

from dataclasses import replace
from math import log
from types import SimpleNamespace

import pytest
import torch

from common.random import Stream, seeded
from papers.diayn import evaluation
from papers.diayn.config import Config
from papers.diayn.environments import goals, make_environments
from papers.diayn.networks import Agent

BOX = Config(env="DIAYN/Box-v0", skills=3, width=8, evaluation_rollouts=4, evaluation_horizon=12)


def agent_of(config: Config, members: int = 2, observation: int = 2, action: int = 2) -> Agent:
    with seeded(Stream(1, "agent")):
        agent = Agent(config, observation, action, members).requires_grad_(False)
    agent.prior.copy_(Stream(1, "prior").uniform(torch.arange(members), config.skills).softmax(-1))
    return agent


class Counting:
    """An environment that counts its steps: copy i ends after i + 1, the last one at the time limit; rewards are 1."""

    device_side, position, extent, hurdles, observation_size, context_size = True, None, None, None, 1, 0

    def __init__(self, members: int, copies: int, horizon: int):
        self.members, self.copies, self.horizon = members, copies, horizon
        self.observation, self.taken = torch.zeros(members, copies, 1), 0

    def draws(self, steps: range) -> dict:
        return {}

    def step(self, action, draws):
        self.taken += 1
        reached = self.observation + 1
        ends = torch.arange(1, self.copies + 1).expand(self.members, -1)
        ended = reached[..., 0] == ends
        terminated = ended & (ends < self.copies)
        # What is not of the first episode can be told by its size.
        self.observation = torch.where(ended[..., None], 100.0, reached)
        return SimpleNamespace(observation=reached, reward=ended + 1.0, terminated=terminated, ended=ended)


def test_only_first_episodes_are_kept():
    agent = agent_of(replace(BOX, skills=2), 2, 1)
    environments = Counting(2, 3, 40)
    skill = torch.zeros(2, 3, dtype=torch.int64)
    noise = evaluation.action_noise(agent, [1, 2], "noise", 3, "cpu")
    played = evaluation.rollout(agent, environments, skill, 40, noise, entropy=True)
    assert played.alive.sum(0).tolist() == [[1, 2, 3]] * 2
    assert played.reward.sum(0).tolist() == [[2, 3, 4]] * 2
    assert played.observation[:, 0, :, 0].T.tolist() == [[min(t, end) for t in range(41)] for end in (1, 2, 3)]
    assert played.terminated.tolist() == [[True, True, False]] * 2
    assert environments.taken == evaluation.CHUNK  # then nothing was left to see
    plain = [
        torch.stack([agent.entropy(torch.full((2, 3, 1), float(t)), skill, noise(t))[:, end - 1] for t in range(end)])
        for end in (1, 2, 3)
    ]
    assert torch.allclose(played.entropy, torch.stack([each.mean(0) for each in plain], 1), atol=1e-5)


@pytest.mark.parametrize("reads", ["state", "next"])
def test_the_classifier_is_asked_about_the_states_of_the_episode_alone(monkeypatch, reads):
    config = replace(BOX, skills=3, classifier_input=reads, evaluation_rollouts=1)
    agent = agent_of(config, 2, 1)
    monkeypatch.setattr(evaluation, "make_environments", lambda *_, **__: Counting(2, 3, 5))
    monkeypatch.setattr(evaluation, "ROWS", 12)  # in chunks of two steps
    found = evaluation.evaluate_skills(agent, config, [1, 2], 0, "cpu")
    for member, metrics in enumerate(found):
        hits, scores = [], []
        for skill, end in enumerate((1, 2, 3)):
            states = torch.arange(end, dtype=torch.float32) + (reads == "next")
            log_q = agent.log_q(states[None, :, None].expand(2, -1, -1))[member]
            hits.append((log_q.argmax(-1) == skill).float().mean())
            scores.append(log_q[:, skill].mean())
        prior, hits, scores = agent.prior[member], torch.stack(hits), torch.stack(scores)
        assert metrics["accuracy"] == pytest.approx(float(hits.mean()))
        assert metrics["weighted_accuracy"] == pytest.approx(float((prior * hits).sum()), abs=1e-6)
        information = float(-(prior * prior.log()).sum() + (prior * scores).sum())
        assert metrics["mutual_information"] == pytest.approx(information, abs=1e-5)
        assert metrics["length_max"] == 3


def test_metrics_are_those_of_a_plain_loop():
    agent = agent_of(BOX)
    found = evaluation.evaluate_skills(agent, BOX, [5, 6], 7, "cpu")
    skill = evaluation.every_skill(agent, BOX, 4, "cpu")
    played = evaluation.trajectories(agent, BOX, [5, 6], "evaluation/7", "cpu", skill)
    assert played.observation.shape == (13, 2, 12, 2) and bool(played.alive.all())
    for member, metrics in enumerate(found):
        visited, ends, hits = [set() for _ in range(3)], [], []
        for episode in range(12):
            way, z = played.observation[:, member, episode], int(skill[member, episode])
            ends.append(float((way[-1] - way[0]).norm()))
            visited[z] |= {(min(int(10 * x), 9), min(int(10 * y), 9)) for x, y in way.tolist()}
            log_q = agent.log_q(way[None, :-1].expand(2, -1, -1))[member]
            hits += (log_q.argmax(-1) == z).tolist()
        assert metrics["accuracy"] == pytest.approx(sum(hits) / len(hits))
        assert metrics["displacement"] == pytest.approx(sum(ends) / 12, abs=1e-6)
        assert metrics["coverage"] == pytest.approx(len(set.union(*visited)) / 100)
        assert metrics["cells_per_skill"] == pytest.approx(sum(map(len, visited)) / 3)
        assert "solved_skills" not in metrics and "skills_outside" not in metrics


def test_returns_are_compared_over_skills():
    shape = (1, 3, 2)
    returns = torch.tensor([[[0.0, 2.0], [5.0, 5.0], [95.0, 89.0]]])
    nothing, one = torch.zeros(shape), torch.ones(shape)
    last = torch.tensor([0.6, 0.7, 0.6, 0.2, 0.1, 0.9]).view(*shape, 1)
    none = nothing[..., :0]
    episodes = evaluation.Episodes(returns, one, one, nothing, 2 * one, last, none, none.bool(), none)
    car = replace(BOX, env="DIAYN/MountainCar-v0", prior="learned")
    agent = agent_of(car, 1)
    agent.prior.fill_(1 / 3)
    found = {name: float(value) for name, value in evaluation.summarise(agent, car, episodes).items()}
    assert (found["return_mean"], found["return_range"], found["return_max"]) == (pytest.approx(98 / 3), 91, 92)
    assert found["return_std"] == pytest.approx(torch.tensor([1.0, 5, 92]).std(correction=0))
    assert [found[f"return_skill_0{k}"] for k in range(3)] == [1, 5, 92]
    assert found["solved_skills"] == 1 and found["policy_entropy"] == 2 and "coverage" not in found
    assert found["effective_skills"] == pytest.approx(3, abs=1e-12)
    assert found["mutual_information"] == pytest.approx(log(3))
    hallway = evaluation.summarise(agent, replace(car, env="DIAYN/Hallway-v0"), episodes)
    assert int(hallway["skills_outside"]) == 1  # half of the episodes are not most of them


def test_a_member_alone_is_a_member_of_a_stack_and_episodes_are_functions_of_seed_and_step():
    agent = agent_of(BOX)
    both = evaluation.evaluate_skills(agent, BOX, [5, 6], 7, "cpu")
    alone = evaluation.evaluate_skills(agent.member(1), BOX, [6], 7, "cpu")[0]
    assert alone == pytest.approx(both[1], abs=1e-4)
    assert evaluation.evaluate_skills(agent, BOX, [5, 6], 7, "cpu") == both
    assert evaluation.evaluate_skills(agent, BOX, [5, 6], 8, "cpu") != both
    assert evaluation.evaluate_skills(agent, BOX, [5, 6], 7, "cpu", rollouts=2) != both


def test_gymnasium_plays_in_rounds_of_few_environments(monkeypatch):
    made = []

    def make(*arguments, **options):
        made.append(arguments[2])
        return make_environments(*arguments, **options)

    monkeypatch.setattr(evaluation, "make_environments", make)
    monkeypatch.setattr(evaluation, "MOST_PROCESSES", 4)
    config = replace(BOX, env="InvertedPendulum-v5", skills=3, evaluation_rollouts=2, evaluation_horizon=6)
    found = evaluation.evaluate_skills(agent_of(config, 1, 4, 1), config, [5], 0, "cpu")[0]
    assert made == [4, 2]
    assert 1 <= found["length_max"] <= 6 and found["solved_skills"] == 0
    assert "coverage" not in found and "displacement" not in found


def test_each_member_has_its_own_task():
    config = replace(BOX, reward="task", skills=1, tasks="goals")
    agent = agent_of(config, 25)
    seeds = list(range(25))
    skill = torch.zeros(25, dtype=torch.int64)
    found = evaluation.evaluate_task(agent, config, seeds, 3, "cpu", goals(), skill)["task_return"]
    played = evaluation.trajectories(agent, config, seeds, "evaluation/3", "cpu", skill[:, None].expand(-1, 4))
    apart = (played.observation[1:] - goals()[:, None]).square().sum((0, -1))
    assert torch.allclose(found, -apart.mean(-1), rtol=1e-5)


def test_an_agent_of_a_task_reads_its_progress():
    config = Config(env="DIAYN/Waypoints-v0", reward="task", skills=1, observe_goal=True, evaluation_horizon=5, width=8)
    environments = make_environments(config, [1], 2, "cpu")
    size = environments.observation_size + environments.context_size
    assert evaluation.agent_input(agent_of(config, 1, size), environments).shape == (1, 2, size)
    assert evaluation.agent_input(agent_of(config, 1), environments).shape == (1, 2, 2)
    skill = torch.zeros(1, dtype=torch.int64)
    found = evaluation.evaluate_task(agent_of(config, 1, size), config, [1], 0, "cpu", None, skill)
    assert {name: value.shape for name, value in found.items()} == {"task_return": (1,)}


def test_the_best_skill_has_the_highest_mean_return():
    assert evaluation.select_skill(torch.tensor([[1.0, 3, 2], [0, -1, -2]])).tolist() == [1, 0]
    car = replace(BOX, env="DIAYN/MountainCar-v0")
    agent = agent_of(car, 2, action=1)
    found = evaluation.per_skill_returns(agent, car, [5, 6], "selection", "cpu", rollouts=2)
    assert found.shape == (2, 3) and bool((found < 0).all())
