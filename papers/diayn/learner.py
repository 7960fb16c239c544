"""One update of soft actor-critic with the skills' reward, for all members at once (spec 3.2 and 3.3).

The order of the official code is kept: all losses are computed from the parameters before the update, then every
network takes its Adam step, then the targets follow; so one fused optimiser does for all networks. Gradients are
written out: each is a line or two beside its loss, and autograd would take twice as long.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papers.diayn import method
from papers.diayn.bonus import NoveltyBonus
from papers.diayn.buffer import Batch
from papers.diayn.networks import Agent, StackedMLP, TanhGaussian, TanhMixture, join_states

Losses = dict[str, Tensor]
POLICY_DECAY = 0.001
"""Weight of 0.5 (mean log_sigma^2 + mean mu^2) in the 2018 policy loss."""


class Noise(NamedTuple):
    """Standard normals of one update, [S, B, noise_size] each: for actions at s, and for those at s' ("twin")."""

    action: Tensor
    next_action: Tensor


class Learner(nn.Module):
    """An agent, its target networks and the update; alpha and subtract say it for each member, since members of a stack
    may differ in them: the entropy's weight [S, 1], and whether the reward subtracts log p(z) [S, 1, 1].
    """

    alpha: Tensor
    subtract: Tensor

    def __init__(self, agent: Agent):
        super().__init__()
        config, members = agent.config, agent.members
        self.agent, self.config, self.members = agent, config, members
        state, width = agent.observation_size + config.skills, config.width
        self.critic_target: StackedMLP | None = None
        self.value_target: StackedMLP | None = None
        if agent.value is None:
            self.critic_target = StackedMLP(2 * members, (state, agent.action_size), width, 1).requires_grad_(False)
        else:
            self.value_target = StackedMLP(members, (state,), width, 1).requires_grad_(False)
        self.bonus = NoveltyBonus(members, agent.observation_size, width) if config.bonus else None
        self.register_buffer("alpha", torch.full((members, 1), config.alpha))
        self.register_buffer("subtract", torch.full((members, 1, 1), config.subtract_prior))
        self.start_targets()

    @classmethod
    def stack(cls, learners: Sequence["Learner"]) -> "Learner":
        """Learners of equal shapes as one."""
        members = [learner.members for learner in learners]
        stacked = cls(Agent.stack([learner.agent for learner in learners]))
        stacked.load_state_dict(join_states([learner.state_dict() for learner in learners], members))
        return stacked

    @torch.no_grad()
    def start_targets(self) -> None:
        """Twin targets start as copies; the 2018 value target as one soft update of a random network (spec 3.2)."""
        if self.critic_target is not None:
            self.critic_target.load_state_dict(self.agent.critic.state_dict())
        self._follow(self.config.tau)

    def load_critics(self, trained: Agent) -> None:
        """Start from the critics of an agent of equal shapes, and with targets that are copies of them."""
        pairs = (
            (self.agent.critic, trained.critic, self.critic_target),
            (self.agent.value, trained.value, self.value_target),
        )
        for network, source, target in pairs:
            for each in (network, target):
                if each is not None and source is not None:
                    each.load_state_dict(source.state_dict())

    def optimizer(self) -> torch.optim.Adam:
        """One Adam for all networks that learn, each parameter with moments of its own as with one optimiser each.

        Called where the learner lies on its device. The networks' parameters become views of two flat ones, the
        classifier's and all others', so that a step of Adam is two kernels and not one for each tensor.
        """
        agent = self.agent
        networks = [agent.policy, agent.critic, agent.value, None if self.bonus is None else self.bonus.predictor]
        self.others = flatten([network for network in networks if network is not None])
        learning = [self.others] if self.config.reward == "task" else [self.others, flatten([agent.classifier])]
        self.adam = torch.optim.Adam(
            learning, lr=self.config.learning_rate, fused=True, capturable=self.others.device.type == "cuda"
        )
        return self.adam

    # ------------------------------------------------------------ the update

    @torch.no_grad()
    def update(self, batch: Batch, noise: Noise) -> Losses:
        """One update of every network; {name: [S]}, losses and the batch's mean reward, all from before the update.
        Nothing is read back from the device."""
        found = self.gradients(batch, noise)
        self.adam.step()
        self._follow(self.config.tau)
        return found

    @torch.no_grad()
    def update_classifier(self, batch: Batch) -> None:
        """A step of the classifier alone, where it takes several for one of the policy."""
        self._classify(self.agent.scaled(self._read_by_classifier(batch)), self.agent.one_hot(batch.skill))
        gradient, self.others.grad = self.others.grad, None
        self.adam.step()
        self.others.grad = gradient

    @torch.no_grad()
    def gradients(self, batch: Batch, noise: Noise) -> Losses:
        """Write every parameter's `grad`; what `update` returns."""
        agent = self.agent
        skill = agent.one_hot(batch.skill)
        scaled, following = agent.scaled(batch.observation), agent.scaled(batch.next_observation)
        state, next_state = agent.join(scaled, skill), agent.join(following, skill)
        found: Losses = {}
        if self.config.reward == "task":
            reward = batch.reward
        else:
            read = scaled if self.config.classifier_input == "state" else following
            log_q, found["classifier_loss"] = self._classify(read, skill)
            reward = method.pseudo_reward(log_q, skill, self._log_prior())
        if self.bonus is not None:
            novelty, found["bonus_loss"] = self.bonus.learn(following)
            reward = reward + self.config.bonus * novelty
        if isinstance(agent.policy, TanhGaussian):
            found |= self._twin(agent.policy, state, next_state, batch, reward, noise)
        else:
            found |= self._with_value(agent.policy, state, next_state, batch, reward, noise.action)
        return {**found, "reward": reward.mean(-1)}

    def _classify(self, read: Tensor, skill: Tensor) -> tuple[Tensor, Tensor]:
        """log q(z|s) [S, B, K] and the classifier's loss [S] (spec 3.2, step 6)."""
        classifier = self.agent.classifier
        trace = classifier.trace(self.agent.classified(read))
        log_q = F.log_softmax(trace.output, -1)
        loss, gradient = method.cross_entropy(log_q, skill)
        classifier.backward(trace, gradient)
        return log_q, loss

    def _twin(
        self, policy: TanhGaussian, state: Tensor, next_state: Tensor, batch: Batch, reward: Tensor, noise: Noise
    ) -> Losses:
        """Spec 3.3."""
        agent, target, alpha, size = self.agent, self.critic_target, self.alpha, reward.shape[-1]
        assert target is not None
        # Q: y = r + gamma (min Qbar(s', a') - alpha log pi(a'|s'))
        action, log_pi = policy.sample(next_state, noise.next_action)
        q = torch.minimum(*self._pair(target(_twice(agent.join(next_state, action)))))
        next_value = method.soft_value(q, log_pi, alpha)
        y = method.critic_target(reward, self.config.discount, batch.terminated, next_value)
        trace = agent.critic.trace(_twice(agent.join(state, batch.action)))
        critic_loss, gradient = method.squared_loss(self._pair(trace.output), y)
        agent.critic.backward(trace, gradient.view(2 * self.members, size, 1))
        # pi: mean of alpha log pi(a|s) - min Q(s, a), where only the smaller Q passes a gradient to the action
        of_policy = policy.trace(state)
        action, log_pi = method.tanh_gaussian(*method.gaussian_of(of_policy.output), noise.action)
        trace = agent.critic.trace(_twice(agent.join(state, action)))
        first, second = self._pair(trace.output)
        smaller = first <= second
        of_q = torch.cat((smaller, ~smaller)).to(first.dtype).div_(-size)[..., None]
        actions = slice(state.shape[-1], None)
        of_action = agent.critic.input_gradient(trace, of_q, actions).unflatten(0, (2, -1)).sum(0)
        of_log_pi = (alpha / size).expand_as(log_pi)
        policy.backward(of_policy, method.tanh_gaussian_gradient(of_policy.output, noise.action, of_action, of_log_pi))
        q = torch.minimum(first, second)
        return {"critic_loss": critic_loss.sum(0), "policy_loss": -method.soft_value(q, log_pi, alpha).mean(-1)}

    def _pair(self, q: Tensor) -> Tensor:
        """Twin values [2 S, B, 1] as [2, S, B]."""
        return q.view(2, self.members, -1)

    def _with_value(
        self, policy: TanhMixture, state: Tensor, next_state: Tensor, batch: Batch, reward: Tensor, noise: Tensor
    ) -> Losses:
        """Spec 3.2, steps 2 to 5."""
        agent, target = self.agent, self.value_target
        assert agent.value is not None and target is not None
        y = method.critic_target(reward, self.config.discount, batch.terminated, target(next_state)[..., 0])
        of_critic = agent.critic.trace(agent.join(state, batch.action))
        critic_loss, gradient = method.squared_loss(of_critic.output[..., 0], y)
        agent.critic.backward(of_critic, gradient[..., None])

        of_value, of_policy = agent.value.trace(state), policy.trace(state)
        value = of_value.output[..., 0]
        # Autograd for the mixture's density alone, which is small beside the networks.
        with torch.enable_grad():
            output = of_policy.output.requires_grad_()
            distribution = policy.mixture_of(output)
            x = policy.draw(distribution, noise)
            log_prob = method.mixture_log_prob(x, *distribution)
            log_pi = (log_prob - method.log_squash_official(x)).detach()
            q = agent.critic.trace(agent.join(state, x.tanh())).output[..., 0]
            policy_loss = method.likelihood_ratio_loss(log_prob, log_pi, q, value, self.alpha)
            policy_loss = policy_loss + POLICY_DECAY * method.mixture_decay(*distribution)
            (of_output,) = torch.autograd.grad(policy_loss.sum(), output)
        policy.backward(of_policy, of_output)
        value_loss, gradient = method.squared_loss(value, method.soft_value(q, log_pi, self.alpha))
        agent.value.backward(of_value, gradient[..., None])
        return {"critic_loss": critic_loss, "value_loss": value_loss, "policy_loss": policy_loss.detach()}

    # ------------------------------------------------------------ parts

    def _read_by_classifier(self, batch: Batch) -> Tensor:
        return batch.observation if self.config.classifier_input == "state" else batch.next_observation

    def _log_prior(self) -> Tensor:
        """log p(z) where a member subtracts it, [S, 1, K]."""
        return torch.where(self.subtract, method.log_prior_official(self.agent.prior)[:, None], 0.0)

    def _follow(self, tau: float) -> None:
        pairs = ((self.agent.critic, self.critic_target), (self.agent.value, self.value_target))
        for network, target in pairs:
            if target is not None and network is not None:
                torch._foreach_lerp_(list(target.tensors()), list(network.tensors()), tau)


def flatten(networks: Sequence[StackedMLP]) -> Tensor:
    """One vector that holds the parameters of the networks, which become views of it, and whose `grad` their `backward`
    fills. It is no parameter of a module, so no Trainer's `zero_grad` throws the gradient away."""
    parameters = [parameter for network in networks for parameter in network.parameters()]
    vector = torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).requires_grad_()
    vector.grad = torch.zeros_like(vector)
    sizes = [parameter.numel() for parameter in parameters]
    views = zip(parameters, vector.detach().split(sizes), vector.grad.split(sizes), strict=True)
    gradients = []
    for parameter, values, gradient in views:
        parameter.data = values.view_as(parameter)
        gradients.append(gradient.view_as(parameter))
    each = iter(gradients)
    for network in networks:
        network.gradients = [next(each) for _ in network.parameters()]
    return vector


def _twice(x: Tensor) -> Tensor:
    """[S, B, D] -> [2 S, B, D]: the input of both critics."""
    return x.repeat(2, 1, 1)
