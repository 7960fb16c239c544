"""Stacked networks: the spec's sizes, members alone and in a stack, hand-written gradients, files."""

import pytest
import torch

from papers.diayn.config import Config
from papers.diayn.networks import Agent, StackedMLP, count_parameters, load_agent, save_agent

SMALL = Config(skills=3, width=8, variant="twin")


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ((17, 6), (126_352, 112_801, 111_001, 110_750)),
        ((111, 8), (159_368, 141_601, 139_201, 138_950)),
        ((11, 3), (117_328, 110_101, 109_201, 108_950)),
        ((4, 1), (110_412, 107_401, 107_101, 106_850)),
    ],
)
def test_parameter_counts_invariant_17(sizes, counts):
    agent = Agent(Config(variant="v2018"), *sizes)
    networks = (agent.policy, agent.critic, agent.value, agent.classifier)
    assert tuple(count_parameters(network) for network in networks) == counts


def test_single_gaussian_policy_has_the_spec_s_size():
    agent = Agent(Config(), 17, 6)
    assert count_parameters(agent.policy) == 114_312 and agent.value is None
    assert agent.critic.tensors()[0].shape[0] == 2  # twin


def test_each_input_block_is_drawn_with_its_own_fan_in():
    network = StackedMLP(1, (200, 2), 16, 1)
    first = network.tensors()[0]
    assert first[:, :200].abs().max() <= (6 / 216) ** 0.5 < first[:, 200:].abs().max() <= (6 / 18) ** 0.5
    assert all(not bias.any() for bias in network.tensors()[1::2])


def test_gradients_are_autograd_s():
    torch.manual_seed(0)
    network = StackedMLP(2, (3, 2), 7, 4).double()
    x = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 5, 4, dtype=torch.float64)
    *expected, of_x = torch.autograd.grad((network(x) * gradient).sum(), [*network.tensors(), x])
    trace = network.trace(x.detach())
    network.backward(trace, gradient)
    assert all(torch.allclose(ours, e) for ours, e in zip(network.gradients, expected, strict=True))
    assert torch.allclose(network.input_gradient(trace, gradient, slice(3, None)), of_x[..., 3:])


@pytest.mark.parametrize("variant", ["twin", "v2018"])
def test_a_member_computes_alone_what_it_computes_in_a_stack(variant):
    torch.manual_seed(0)
    config = Config(skills=3, width=8, variant=variant)
    agents = [Agent(config, 4, 2) for _ in range(3)]
    stack = Agent.stack(agents)
    s, z = torch.randn(3, 5, 4), torch.randint(0, 3, (3, 5))
    noise = torch.randn(3, 5, stack.noise_size)
    for i, agent in enumerate(agents):
        own = slice(i, i + 1)
        for n in (noise, None):
            whole, alone = stack.act(s, z, n), agent.act(s[own], z[own], None if n is None else n[own])
            assert torch.allclose(whole[own], alone, atol=1e-6) and whole.abs().max() <= 1
        assert torch.allclose(stack.log_q(s)[own], agent.log_q(s[own]), atol=1e-6)
        assert torch.allclose(stack.entropy(s, z, noise)[own], agent.entropy(s[own], z[own], noise[own]), atol=1e-5)
        again = stack.member(i).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in agent.state_dict().items())


def test_the_2018_policy_s_deterministic_action_is_the_mean_with_the_largest_q():
    torch.manual_seed(1)
    agent = Agent(Config(skills=2, width=8, variant="v2018"), 3, 2)
    s, z = torch.randn(1, 4, 3), torch.randint(0, 2, (1, 4))
    x = agent.augmented(s, z)
    means = agent.policy.distribution(x)[1].tanh()
    q = torch.stack([agent.critic(torch.cat((x, means[:, :, k]), -1))[..., 0] for k in range(4)], -1)
    best = torch.stack([means[0, i, q[0, i].argmax()] for i in range(4)])
    assert torch.allclose(agent.act(s, z, None)[0], best)


def test_features_and_scaling():
    agent = Agent(Config(skills=2, width=8, features=(2,), observation_scale="range"), 3, 1)
    agent.center.fill_(1.0)
    agent.scale.fill_(2.0)
    s = torch.randn(1, 6, 3)
    other = s.clone()
    other[..., :2] = 9.0
    assert torch.equal(agent.log_q(s), agent.log_q(other))
    assert torch.allclose(agent.scaled(s), (s - 1) / 2)
    with pytest.raises(ValueError, match="entries 0 to 2"):
        Agent(Config(features=(3,)), 3, 1)


def test_files(tmp_path):
    torch.manual_seed(0)
    agent = Agent(SMALL, 4, 2, members=2)
    save_agent(agent, tmp_path, skill=[1, 2])
    again, config, info = load_agent(tmp_path)
    assert config == SMALL and info["skill"] == [1, 2] and again.members == 2
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in agent.state_dict().items())
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_permuting_skill_ids_changes_nothing_invariant_16():
    torch.manual_seed(0)
    agent = Agent(SMALL, 4, 2)
    order = torch.tensor([2, 0, 1])
    permuted = Agent.stack([agent])
    with torch.no_grad():
        first = permuted.policy.tensors()[0]
        first[:, 4:] = first[:, 4:][:, order.argsort()]
        for tensor in permuted.classifier.tensors()[-2:]:
            tensor.copy_(tensor[..., order.argsort()])
    s, z, noise = torch.randn(1, 6, 4), torch.randint(0, 3, (1, 6)), torch.randn(1, 6, 2)
    # Skill z of the agent is skill order[z] of the other.
    renamed = order[z]
    assert torch.allclose(agent.act(s, z, noise), permuted.act(s, renamed, noise))
    ours = agent.log_q(s).gather(-1, z[..., None])
    assert torch.allclose(ours, permuted.log_q(s).gather(-1, renamed[..., None]))
