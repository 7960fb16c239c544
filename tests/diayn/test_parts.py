"""Replay, p(z) and running scales against slow plain versions; settings."""

from collections import deque
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.diayn import method
from papers.diayn.buffer import Batch, ReplayBuffer
from papers.diayn.config import Config, stack_shape
from papers.diayn.prior import SkillPrior, draw_skill
from papers.diayn.scaling import RunningScale


def transitions(members, copies, first):
    def numbers(*shape):
        count = torch.Size((members, copies, *shape)).numel()
        return first + torch.arange(count, dtype=torch.float32).view(members, copies, *shape)

    skill = torch.randint(0, 50, (members, copies))
    return Batch(numbers(3), -numbers(2), skill, numbers(), torch.rand(members, copies) > 0.5, numbers(3) + 0.5)


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(4, 12), st.integers(1, 9))
def test_replay_keeps_the_last_transitions(members, copies, capacity, count):
    buffer = ReplayBuffer(members, capacity, 3, 2)
    kept = [deque(maxlen=capacity) for _ in range(members)]
    positions = buffer.positions(torch.arange(count), copies)
    for step in range(count):
        batch = transitions(members, copies, 100 * step)
        buffer.add(positions[step], batch)
        for member in range(members):
            kept[member].extend(tuple(each[member, copy] for each in batch) for copy in range(copies))
    filled = int(buffer.filled(torch.tensor([count - 1]), copies))
    assert filled == len(kept[0])
    read = buffer.read(torch.arange(filled).expand(members, filled))
    for member in range(members):
        ours = sorted(float(x) for x in read.reward[member])
        assert ours == sorted(float(each[3]) for each in kept[member])
        by_reward = {float(each[3]): each for each in kept[member]}
        for i in range(filled):
            row, expected = [each[member, i] for each in read], by_reward[float(read.reward[member, i])]
            assert all(torch.equal(a, b) for a, b in zip(row, expected, strict=True))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 12))
def test_learned_prior_is_the_mean_of_each_skill_s_last_values(seed, copies, rounds):
    torch.manual_seed(seed)
    skills, window = 4, 3
    prior = SkillPrior([True, False], skills, max(window, copies))
    said = [deque(maxlen=max(window, copies)) for _ in range(skills)]
    for _ in range(rounds):
        log_q, skill = torch.randn(2, copies, skills).log_softmax(-1), torch.randint(0, skills, (2, copies))
        prior.add(log_q, skill)
        for copy in range(copies):
            said[skill[0, copy]].append(float(log_q[0, copy, skill[0, copy]]))
    p = torch.full((2, skills), 1 / skills)
    prior.update(p)
    scores = torch.tensor([sum(values) / len(values) if values else -log(skills) for values in said])
    assert torch.allclose(p[0], scores.softmax(-1), atol=1e-5)
    assert torch.equal(p[1], torch.full((skills,), 1 / skills))  # a fixed one stays


def test_skills_are_drawn_from_p():
    p = torch.tensor([[0.5, 0.0, 0.5], [0.1, 0.8, 0.1]])
    drawn = draw_skill(p, torch.arange(1000).expand(2, -1) / 1000)
    shares = torch.stack([torch.bincount(row, minlength=3) / 1000 for row in drawn])
    assert torch.allclose(shares, p, atol=2e-3)
    assert draw_skill(torch.full((1, 3), 1 / 3), torch.tensor([[1 - 2**-24]])).item() == 2


@given(st.integers(0, 100), st.integers(1, 6))
def test_running_scale_is_mean_and_deviation_of_everything_seen(seed, rounds):
    torch.manual_seed(seed)
    scale, seen = RunningScale(2, 3), []
    center, spread = torch.zeros(2, 1, 3), torch.ones(2, 1, 3)
    for _ in range(rounds):
        seen.append(torch.randn(2, 4, 3) * torch.tensor([1.0, 5.0, 0.0]) + 2)
        scale.add(seen[-1], center, spread)
    every = torch.cat(seen, 1)
    assert torch.allclose(center, every.mean(1, keepdim=True), atol=1e-5)
    expected = every.std(1, keepdim=True, correction=0)
    assert torch.allclose(spread[..., :2], expected[..., :2], rtol=1e-3) and torch.equal(
        spread[..., 2], torch.ones(2, 1)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "sac"}, "no variant 'sac'"),
        ({"skills": 0}, "skills must be at least 1"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"discount": 1.0}, "discount lies in"),
        ({"copies": 20, "buffer_size": 10}, "does not hold one step"),
        ({"prior": "learned", "reward": "task"}, "a learned prior"),
        ({"tasks": "goals"}, "reward 'task'"),
        ({"alpha": float("nan")}, "alpha must be a number"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Config.of(changes)


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="alfa"):
        Config.of({"alfa": 0.1, "seed": 3})


def test_what_a_stack_may_differ_in():
    base = {"skills": 6, "alpha": 0.1, "seed": 0}
    assert stack_shape(base) == stack_shape({**base, "alpha": 1.0, "prior": "learned", "draw": 2, "seed": 5})
    assert stack_shape(base) != stack_shape({**base, "skills": 7})


def test_effective_skills_of_a_fixed_prior_are_all_of_them():
    assert method.effective_skills(torch.full((50,), 1 / 50, dtype=torch.float64)).item() == pytest.approx(50, abs=1e-9)
