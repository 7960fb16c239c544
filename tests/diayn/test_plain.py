"""The plain implementation: its own mathematics against numbers worked out by hand, and the learner against it."""

import math

import pytest
import torch
from torch import distributions

from common.random import Stream, seeded
from papers.diayn import plain
from papers.diayn.buffer import Batch
from papers.diayn.config import Config
from papers.diayn.learner import Learner, Noise
from papers.diayn.networks import Agent
from papers.diayn.plain import PlainLearner

SMALL = {"skills": 4, "width": 8, "batch_size": 16}
VARIANTS = ("twin", "v2018")


def learner_of(variant, **changes):
    with seeded(Stream(0, "initialisation")):
        return PlainLearner(Config(**{**SMALL, "variant": variant, **changes}), 3, 2)


def draws(variant, step=0, members=1, dtype=torch.float32):
    """A batch with every kind of transition, and its noise, [members, 16, ...]."""
    noise_size, stream, shape = 2 if variant == "twin" else 3, Stream(1, "batch"), (members, 16)
    normals = stream.normal(step, (*shape, 3 + 3 + 2 + 2 * noise_size)).to(dtype)
    state, following, action, first, second = normals.split([3, 3, 2, noise_size, noise_size], dim=-1)
    skill = stream.integers(step, members * 16, SMALL["skills"]).view(shape)
    terminated = stream.uniform(step, members * 16).view(shape) < 0.25
    batch = Batch(state, torch.tanh(action), skill, 2 * state[..., 0], terminated, following)
    return batch, Noise(first, second)


def of_member(tuples, member):
    """Batch and noise of one member, as the plain learner takes them."""
    return [type(each)(*(tensor[member] for tensor in each)) for each in tuples]


def constant(network, values):
    """Make a network give these outputs whatever it is given."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network[-1].bias.copy_(torch.tensor(values))


POLICY = [0.2, -0.4, -1.0, 0.3]
EPSILON = torch.tensor([[0.5, -1.2]])


def test_invariant_4_squashed_gaussian():
    learner = learner_of("twin")
    constant(learner.networks["policy"], POLICY)
    action, log_prob = learner.squashed_gaussian(torch.zeros(1, 7), EPSILON)
    assert action[0].tolist() == pytest.approx([0.3661, -0.9654], abs=5e-5)
    assert float(log_prob.detach()) == pytest.approx(0.849315, abs=2e-6)
    # The same from torch's own distributions.
    squashed = distributions.TransformedDistribution(
        distributions.Normal(torch.tensor(POLICY[:2]), torch.tensor(POLICY[2:]).exp()), distributions.TanhTransform()
    )
    assert float(squashed.log_prob(action.detach()).sum()) == pytest.approx(0.849315, abs=1e-4)


def test_invariant_7_mixture_density():
    logits, mean = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[[-1.0], [1.0]]])
    log_std = torch.full((1, 2, 1), math.log(0.5))
    for shift in (0.0, 5.0):
        found = plain.mixture_log_density(torch.tensor([[0.8]]), logits + shift, mean, log_std)
        assert float(found) == pytest.approx(-0.592920, abs=2e-6)
    family = distributions.MixtureSameFamily(
        distributions.Categorical(logits=logits),
        distributions.Independent(distributions.Normal(mean, log_std.exp()), 1),
    )
    assert float(family.log_prob(torch.tensor([[0.8]]))) == pytest.approx(-0.592920, abs=2e-6)


def test_invariant_8_critic_target():
    terminated = torch.tensor([False, True])
    found = plain.bellman_target(torch.tensor(0.7), 0.99, terminated, torch.tensor(2.5))
    assert found.tolist() == pytest.approx([3.175, 0.7])


def test_invariant_9_moving_average():
    target, source = (torch.nn.Linear(1, 1, bias=False).double() for _ in range(2))
    torch.nn.init.constant_(target.weight, 1.0)
    torch.nn.init.constant_(source.weight, 3.0)
    plain.average_into(target, source, 0.01)
    assert target.weight.item() == pytest.approx(1.02, abs=1e-12)
    for _ in range(68):
        plain.average_into(target, source, 0.01)
    assert (3 - target.weight.item()) / 2 == pytest.approx(0.49984, abs=5e-6)


def test_invariant_14_which_loss_reaches_which_network():
    for variant, reached in {
        # By the loss alone; the policy's loss runs through the twin critics to the policy.
        "twin": {"policy": {"policy", "critic_0", "critic_1"}, "critic_0": {"critic_0"}, "critic_1": {"critic_1"}},
        "v2018": {"policy": {"policy"}, "critic_0": {"critic_0"}, "value": {"value"}},
    }.items():
        learner = learner_of(variant)
        batch, noise = of_member(draws(learner.config.variant), 0)
        networks = learner.networks | {f"slow {name}": network for name, network in learner.targets.items()}
        for name, loss in learner.losses(batch, noise).items():
            touched = set()
            for other, network in networks.items():
                found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
                if any(gradient is not None for gradient in found):
                    touched.add(other)
            assert touched == reached.get(name, {name}), (variant, name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_invariant_14_nothing_is_left_in_another_network(variant):
    """After the update each network holds the gradient of its own loss and nothing else."""
    learner, again = learner_of(variant), learner_of(variant)
    batch, noise = of_member(draws(learner.config.variant), 0)
    learner.update(batch, noise)
    losses = again.losses(batch, noise)
    assert set(losses) == set(learner.networks)
    for name, network in again.networks.items():
        own = torch.autograd.grad(losses[name], list(network.parameters()), retain_graph=True)
        for parameter, gradient in zip(learner.networks[name].parameters(), own, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-6), name


def test_no_gradient_flows_through_a_sample_of_the_mixture():
    """Invariant 14: with one component the policy's gradient is the score function times the cost, worked out here."""
    learner = learner_of("v2018", components=1)
    batch, noise = of_member(draws(learner.config.variant), 0)
    state = learner.augmented(batch.observation, batch.skill)
    with torch.no_grad():
        output = learner.networks["policy"](state)
        mean, log_std = output[:, 1:3], output[:, 3:].clamp(-5, 2)
        x = mean + log_std.exp() * noise.action[:, 1:]
        log_prob = plain.gaussian_log_density(x, mean, log_std) - plain.official_squash_correction(x)
        value = learner.networks["value"](state)[:, 0]
        weight = 0.1 * log_prob - learner.critic("critic_0", state, torch.tanh(x)) + value
        # d log N / d mean = (x - mean) / std^2 = noise / std; the regulariser adds 0.001 * mean / (B * Da).
        expected = weight[:, None] * noise.action[:, 1:] / log_std.exp() / 16 + 0.001 * mean / 32
    loss = learner.losses(batch, noise)["policy"]
    (found,) = torch.autograd.grad(loss, learner.networks["policy"][-1].bias)
    assert torch.allclose(found[1:3], expected.sum(0), atol=1e-6) and float(found[0]) == pytest.approx(0, abs=1e-6)


def test_losses_by_hand():
    """Networks that give constants: every loss from spec 3.2 and 3.3 worked out on paper."""
    zero = torch.zeros(1, 3)
    batch = Batch(zero, zero[:, :2], torch.tensor([0]), torch.tensor([-1.0]), torch.tensor([False]), zero + 1)
    learner = learner_of("twin")
    constant(learner.networks["policy"], POLICY)
    constant(learner.networks["classifier"], [2.0, 0.0, -1.0, 0.5])
    for name, now, slow in (("critic_0", 2.0, 1.5), ("critic_1", 3.0, 2.5)):
        constant(learner.networks[name], [now])
        constant(learner.targets[name], [slow])
    losses = learner.losses(batch, Noise(EPSILON, EPSILON))
    target = 1.043941 + 0.99 * (1.5 - 0.1 * 0.849315)
    expected = {
        "critic_0": 0.5 * (target - 2) ** 2,
        "critic_1": 0.5 * (target - 3) ** 2,
        "policy": 0.1 * 0.849315 - 2,
        "classifier": 0.342350,
    }
    assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(expected, abs=3e-6)

    learner = learner_of("v2018", components=2, reward="task")
    # Logits 0 and ln 3; the first normal, 0.5 (a uniform of 0.69), chooses the second component.
    constant(learner.networks["policy"], [0.0, 0.0, 0.0, 0.0, 0.0, math.log(3), *POLICY])
    constant(learner.networks["critic_0"], [2.0])
    constant(learner.networks["value"], [1.25])
    constant(learner.targets["value"], [0.5])
    noise = torch.cat([torch.tensor([[0.5]]), EPSILON], dim=1)
    losses = learner.losses(batch, Noise(noise, noise))
    x = (0.2 + 0.5 * math.exp(-1), -0.4 - 1.2 * math.exp(0.3))
    second = -0.5 * (0.25 + 1.44) + 1.0 - 0.3 - math.log(2 * math.pi)
    first = -0.5 * (x[0] ** 2 + x[1] ** 2) - math.log(2 * math.pi)
    log_density = math.log(0.25 * math.exp(first) + 0.75 * math.exp(second))
    cost = 0.1 * (log_density - sum(math.log(1 - math.tanh(each) ** 2 + 1e-6) for each in x))
    regulariser = 0.001 * 0.5 * ((1 + 0.09) / 4 + (0.04 + 0.16) / 4)
    expected = {
        "critic_0": 0.5 * (-1.0 + 0.99 * 0.5 - 2) ** 2,
        "value": 0.5 * (1.25 - (2 - cost)) ** 2,
        "policy": log_density * (cost - 2 + 1.25) + regulariser,
    }
    assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(expected, abs=3e-6)


def test_targets_at_the_start():
    """Twin targets are copies; the official value target is one soft update from its own initialisation (spec 3.2)."""
    learner = learner_of("twin", tau=0.25)
    for name, target in learner.targets.items():
        assert all(map(torch.equal, target.parameters(), learner.networks[name].parameters()))
    slow, fast = (learner_of("v2018", tau=tau).targets["value"][0].weight.detach() for tau in (0.0, 0.25))
    value = learner_of("v2018").networks["value"][0].weight
    assert torch.allclose(fast, 0.75 * slow + 0.25 * value, atol=1e-6) and not torch.allclose(fast, value)


def test_mixture_components_are_chosen_by_their_weights():
    logits = torch.tensor([0.0, math.log(3), math.log(4)]).repeat(8, 1)
    mean = torch.tensor([[0.0], [1.0], [2.0]]).repeat(8, 1, 1)
    uniform = torch.tensor([0.01, 0.12, 0.13, 0.4, 0.49, 0.51, 0.9, 0.999])
    noise = torch.stack([torch.special.ndtri(uniform), torch.ones(8)], dim=1)
    found = PlainLearner.mixture_sample(logits, mean, torch.full_like(mean, -5.0), noise)
    assert (found[:, 0] - math.exp(-5)).tolist() == pytest.approx([0, 0, 1, 1, 1, 2, 2, 2], abs=1e-6)


# ---------------------------------------------------------------- the stacked learner against it


def stack_of(dtype, **changes):
    """Two members that differ in alpha, p(z) and whether the reward subtracts its logarithm."""
    with seeded(Stream(0, "initialisation")):
        learner = Learner(Agent(Config(**{**SMALL, **changes}), 3, 2, 2)).to(dtype)
    learner.alpha.copy_(torch.tensor([[0.1], [0.5]]))
    learner.subtract.copy_(torch.tensor([True, False])[:, None, None])
    learner.agent.prior.copy_(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]]))
    learner.agent.center.normal_(generator=torch.Generator().manual_seed(0))
    learner.agent.scale.fill_(1.5)
    learner.optimizer()
    return learner


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reward": "task"},
        {"classifier_input": "next", "features": (2, 0), "observation_scale": "running", "tau": 0.3},
    ],
    ids=["", "task", "options"],
)
def test_the_learner_is_the_plain_one(variant, dtype, changes):
    """Three updates of a stack of two members and of two plain learners from the same weights, batches and noise."""
    learner = stack_of(dtype, variant=variant, learning_rate=0.01, **changes)
    if changes:
        # Some log standard deviations and logits lie beyond where they are clamped, and pass no gradient.
        learner.agent.policy.w3.data.mul_(8.0)
    plains = [plain.plain_of(learner, member) for member in range(2)]
    start = [plain.plain_of(learner, member) for member in range(2)]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    for step in range(3):
        batch, noise = draws(variant, step, 2, dtype)
        losses = learner.update(batch, noise)
        for member, one in enumerate(plains):
            found = one.update(*of_member((batch, noise), member))
            found["critic_0"] = found["critic_0"] + found.pop("critic_1", 0.0)
            for name, loss in found.items():
                stacked = float(losses[f"{name.removesuffix('_0')}_loss"][member])
                assert float(loss) == pytest.approx(stacked, rel=tolerance, abs=tolerance), (name, step)
            assert plain.difference(one, learner, member) <= tolerance, step
    assert all(plain.difference(one, learner, member) > 0.01 for member, one in enumerate(start))


def test_a_bonus_is_refused():
    with pytest.raises(ValueError, match="bonus"):
        plain.plain_of(stack_of(torch.float32, bonus=0.5))
