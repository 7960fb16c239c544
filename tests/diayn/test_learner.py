"""The update: what touches what, what is recomputed, targets, several updates of the classifier, stacks."""

import pytest
import torch

from papers.diayn import method
from papers.diayn.buffer import Batch
from papers.diayn.config import Config
from papers.diayn.learner import Learner, Noise
from papers.diayn.networks import Agent, split_states


def make(members=1, dtype=torch.float64, **changes):
    settings = {"skills": 3, "width": 8, "learning_rate": 1e-2, **changes}
    torch.manual_seed(0)
    learner = Learner.stack([Learner(Agent(Config(**settings), 4, 2)) for _ in range(members)]).to(dtype)
    learner.optimizer()
    return learner


def batch_of(learner, seed=0, size=7):
    generator = torch.Generator().manual_seed(seed)
    members, dtype = learner.members, learner.alpha.dtype

    def normal(*shape):
        return torch.randn(members, size, *shape, generator=generator, dtype=dtype)

    batch = Batch(
        normal(4), normal(2).tanh(), torch.randint(0, 3, (members, size), generator=generator), normal(), normal() > 1,
        normal(4),
    )  # fmt: skip
    return batch, Noise(normal(learner.agent.noise_size), normal(learner.agent.noise_size))


def reference_losses(learner, batch, noise):
    """The losses of spec 3.2 and 3.3 for autograd; each differentiable in its own network alone."""
    agent, alpha, gamma = learner.agent, learner.alpha, learner.config.discount
    state, after = agent.augmented(batch.observation, batch.skill), agent.augmented(batch.next_observation, batch.skill)
    log_q = agent.log_q(batch.observation)
    chosen = log_q.gather(-1, batch.skill[..., None])[..., 0]
    reward = (chosen - (agent.prior.gather(1, batch.skill) + 1e-6).log()).detach()
    alive, found = (~batch.terminated).to(reward.dtype), {"classifier": -chosen.mean()}

    def q_of(network, s, a):
        return network(torch.cat((s, a), -1).repeat(2 if learner.value_target is None else 1, 1, 1))[..., 0]

    if learner.value_target is None:
        a, log_pi = agent.policy.sample(after, noise.next_action)
        low = q_of(learner.critic_target, after, a).view(2, *reward.shape).amin(0)
        y = (reward + gamma * alive * (low - alpha * log_pi)).detach()
        found["critic"] = (
            0.5 * (q_of(agent.critic, state, batch.action).view(2, *reward.shape) - y).pow(2).mean(-1).sum()
        )
        a, log_pi = agent.policy.sample(state, noise.action)
        low = q_of(agent.critic, state, a).view(2, *reward.shape).amin(0)
        found["policy"] = (alpha * log_pi - low).mean()
        return found
    y = (reward + gamma * alive * learner.value_target(after)[..., 0]).detach()
    found["critic"] = 0.5 * (q_of(agent.critic, state, batch.action) - y).pow(2).mean()
    distribution = agent.policy.distribution(state)
    x = agent.policy.draw(distribution, noise.action)
    log_prob = method.mixture_log_prob(x, *distribution)
    log_pi = log_prob.detach() - method.log_squash_official(x)
    value, q = agent.value(state)[..., 0], q_of(agent.critic, state, x.tanh()).detach()
    found["value"] = 0.5 * (value - (q - alpha * log_pi)).pow(2).mean()
    _, mean, log_std = distribution
    decay = 0.001 * 0.5 * (log_std.pow(2).mean() + mean.pow(2).mean())
    found["policy"] = (log_prob * (alpha * log_pi - q + value).detach()).mean() + decay
    return found


@pytest.mark.parametrize("variant", ["twin", "v2018"])
def test_gradients_are_those_of_the_losses_each_in_its_own_network_invariant_14(variant):
    learner = make(variant=variant)
    batch, noise = batch_of(learner)
    losses = learner.gradients(batch, noise)
    reference = reference_losses(learner, batch, noise)
    for name, loss in reference.items():
        assert losses[f"{name}_loss"].item() == pytest.approx(loss.item())
        network = getattr(learner.agent, name)
        expected = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        assert all(torch.allclose(ours, e) for ours, e in zip(network.gradients, expected, strict=True)), name
    if variant == "v2018":  # the sampled x is a constant of the policy
        x = learner.agent.policy.draw(
            learner.agent.policy.distribution(learner.agent.augmented(*batch[0:3:2])), noise[0]
        )
        assert not x.requires_grad


def test_rewards_follow_the_classifier_invariant_15():
    learner = make()
    batch, noise = batch_of(learner)
    before = learner.gradients(batch, noise)["reward"].clone()
    with torch.no_grad():
        learner.agent.classifier.tensors()[-1][..., 0] += 1
    assert not torch.allclose(learner.gradients(batch, noise)["reward"], before)


def test_targets_follow_slowly_invariant_9():
    learner = make()
    with torch.no_grad():
        for target, network in zip(learner.critic_target.tensors(), learner.agent.critic.tensors(), strict=True):
            target.fill_(1.0)
            network.fill_(3.0)
    learner._follow(0.01)
    assert all(torch.allclose(t, torch.full_like(t, 1.02)) for t in learner.critic_target.tensors())
    assert abs(0.99**69 - 0.49984) < 5e-6


def test_targets_at_the_start():
    twin = make()
    pairs = zip(twin.critic_target.tensors(), twin.agent.critic.tensors(), strict=True)
    assert all(torch.equal(target, network) for target, network in pairs)
    old = make(variant="v2018")
    target, network = old.value_target.tensors()[0], old.agent.value.tensors()[0]
    # One soft update of a random network, not a copy.
    assert not torch.allclose(target, network, atol=0.05)


def test_losses_do_not_depend_on_earlier_steps_of_the_same_update():
    learner = make()
    batch, noise = batch_of(learner)
    expected = {name: loss.clone() for name, loss in learner.gradients(batch, noise).items()}
    found = learner.update(batch, noise)
    assert all(torch.equal(found[name], loss) for name, loss in expected.items())


def test_an_extra_step_of_the_classifier_moves_nothing_else():
    learner = make()
    batch, noise = batch_of(learner)
    learner.update(batch, noise)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    gradient = learner.others.grad
    learner.update_classifier(batch)
    changed = {name for name, tensor in learner.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("agent.classifier.") for name in changed)
    assert learner.others.grad is gradient


@pytest.mark.parametrize("changes", [{}, {"variant": "v2018"}, {"reward": "task", "bonus": 0.5}])
def test_a_stack_updates_each_member_as_alone(changes):
    stack = make(3, **changes)
    singles = make(3, **changes)
    batch, noise = batch_of(stack)
    states = split_states(singles.state_dict(), 3)
    for _ in range(50):
        stack.update(batch, noise)
    after = split_states(stack.state_dict(), 3)
    for i in range(3):
        alone = make(1, **changes)
        alone.load_state_dict(states[i])
        own = slice(i, i + 1)
        for _ in range(50):
            alone.update(Batch(*(each[own] for each in batch)), Noise(*(each[own] for each in noise)))
        assert all(torch.allclose(after[i][name], tensor, atol=1e-9) for name, tensor in alone.state_dict().items())


def test_a_task_s_reward_leaves_the_classifier_alone():
    learner = make(reward="task")
    batch, noise = batch_of(learner)
    before = [tensor.clone() for tensor in learner.agent.classifier.tensors()]
    found = learner.update(batch, noise)
    assert found["reward"].item() == pytest.approx(batch.reward.mean().item()) and "classifier_loss" not in found
    assert all(torch.equal(a, b) for a, b in zip(before, learner.agent.classifier.tensors(), strict=True))


def test_novelty_falls_where_it_was():
    learner = make(reward="task", bonus=1.0)
    batch, noise = batch_of(learner)
    errors = [learner.update(batch, noise)["bonus_loss"].item() for _ in range(200)]
    assert errors[-1] < 0.2 * errors[0]
    unseen, _ = learner.bonus.learn(batch.next_observation + 3)
    seen, _ = learner.bonus.learn(batch.next_observation)
    assert unseen.mean() > 3 * seen.mean()


@pytest.mark.parametrize("variant", ["twin", "v2018"])
def test_critics_that_were_trained_bring_targets_with_them(variant):
    trained, learner = make(variant=variant), make(variant=variant)
    batch, noise = batch_of(trained)
    for _ in range(5):
        trained.update(batch, noise)
    policy = learner.agent.policy.tensors()[0].clone()
    learner.load_critics(trained.agent)
    same = [(learner.agent.critic, trained.agent.critic)]
    same += [(learner.critic_target, trained.agent.critic)] if variant == "twin" else []
    same += (
        [(v, trained.agent.value) for v in (learner.agent.value, learner.value_target)] if variant == "v2018" else []
    )
    for ours, source in same:
        assert all(torch.equal(a, b) for a, b in zip(ours.tensors(), source.tensors(), strict=True))
    assert torch.equal(policy, learner.agent.policy.tensors()[0])


@pytest.mark.parametrize("variant", ["twin", "v2018"])
def test_permuting_skill_ids_leaves_all_losses_invariant_16(variant):
    learner, permuted = make(variant=variant), make(variant=variant)
    order = torch.tensor([2, 0, 1])
    back = order.argsort()
    with torch.no_grad():
        learner.agent.prior.copy_(torch.tensor([[0.5, 0.3, 0.2]]))
        permuted.agent.prior.copy_(learner.agent.prior[:, back])
        networks = (permuted.agent.policy, permuted.agent.critic, permuted.agent.value, permuted.critic_target)
        for network in (*networks, permuted.value_target):
            if network is not None:  # the one-hot follows the observation's four entries
                network.tensors()[0][:, 4:7] = network.tensors()[0][:, 4:7][:, back]
        for tensor in permuted.agent.classifier.tensors()[-2:]:
            tensor.copy_(tensor[..., back])
    batch, noise = batch_of(learner)
    expected = learner.gradients(batch, noise)
    found = permuted.gradients(batch._replace(skill=order[batch.skill]), noise)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], loss) for name, loss in expected.items())
