"""One update the plain way: a network of `nn.Linear`s for every function, an optimiser and a backward pass for each.

It is the oracle of `learner.py` and what `make bench PAPER=diayn` compares it with, so it shares no mathematics with
it: the equations stand here a second time, written as the paper's code base and single-file implementations of soft
actor-critic have them. One agent, no leading dimension of members: a `Batch` holds s [B, Do], a [B, Da], z int64 [B],
a `Noise` [B, noise size].
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papers.diayn.buffer import Batch
from papers.diayn.config import Config
from papers.diayn.learner import Learner, Noise

LOG_STD_RANGE = (-5.0, 2.0)
LOGIT_FLOOR = -10.0
REGULARISER = 0.001


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of rectified units (spec 4); Glorot-uniform weights, biases of zero."""
    network = nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network


def gaussian_log_density(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, std) of independent dimensions, summed over the last one."""
    return (-0.5 * ((x - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def mixture_log_density(x: Tensor, logits: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Spec 3.4: x [B, Da], logits [B, Kg], mean and log_std [B, Kg, Da] -> [B]."""
    parts = gaussian_log_density(x[:, None], mean, log_std)
    return torch.logsumexp(parts + logits, dim=1) - torch.logsumexp(logits, dim=1)


def squash_correction(x: Tensor) -> Tensor:
    """sum_d log(1 - tanh(x_d)^2) in the form that does not saturate (spec 3.3)."""
    return (2 * (math.log(2) - x - F.softplus(-2 * x))).sum(dim=-1)


def official_squash_correction(x: Tensor) -> Tensor:
    """The same as the official code has it, which saturates at log(1e-6) (spec 3.2)."""
    return torch.log(1 - torch.tanh(x) ** 2 + 1e-6).sum(dim=-1)


def bellman_target(reward: Tensor, discount: float, terminated: Tensor, next_value: Tensor) -> Tensor:
    """r + gamma * (1 - terminal) * V(s'), where a time limit is no terminal."""
    return reward + discount * (1 - terminated.to(reward.dtype)) * next_value


def average_into(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- (1 - tau) * target + tau * source, parameter by parameter."""
    with torch.no_grad():
        for average, parameter in zip(target.parameters(), source.parameters(), strict=True):
            average.copy_((1 - tau) * average + tau * parameter)


class PlainLearner:
    """The networks of one agent and its update, in both variants (spec 3.2 and 3.3).

    networks: what is trained, by name: "policy", "critic_0" and in the variant "twin" also "critic_1", in "v2018"
    "value", and "classifier" with the reward "skills"; targets: the slow copies that critic targets read.
    """

    def __init__(self, config: Config, observation_size: int, action_size: int):
        self.config, self.action_size = config, action_size
        self.alpha, self.subtract_prior = config.alpha, config.subtract_prior
        state = observation_size + config.skills
        twin = config.variant == "twin"
        outputs = 2 * action_size if twin else config.components * (2 * action_size + 1)
        self.networks = {"policy": mlp(state, config.width, outputs)}
        for number in range(2 if twin else 1):
            self.networks[f"critic_{number}"] = mlp(state + action_size, config.width, 1)
        if not twin:
            self.networks["value"] = mlp(state, config.width, 1)
        if config.reward == "skills":
            self.networks["classifier"] = mlp(len(config.features) or observation_size, config.width, config.skills)
        self.prior = torch.full((config.skills,), 1 / config.skills)
        self.center, self.scale = torch.zeros(observation_size), torch.ones(observation_size)
        self.targets = {}
        for name in ("critic_0", "critic_1") if twin else ("value",):
            self.targets[name] = mlp(state + action_size if twin else state, config.width, 1)
            # The official target is not a copy: one soft update towards its network, from an initialisation of its own.
            average_into(self.targets[name], self.networks[name], 1.0 if twin else config.tau)
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), lr=config.learning_rate)
            for name, network in self.networks.items()
        }

    def scaled(self, observation: Tensor) -> Tensor:
        """What networks see of a state [B, Do]."""
        if self.config.observation_scale == "none":
            return observation
        return ((observation - self.center) / self.scale).clamp(-10, 10)

    def augmented(self, observation: Tensor, skill: Tensor) -> Tensor:
        """s~ = (s, one-hot z), [B, Do + K]."""
        one_hot = F.one_hot(skill, self.config.skills).to(observation.dtype)
        return torch.cat([self.scaled(observation), one_hot], dim=1)

    def log_q(self, batch: Batch) -> Tensor:
        """log q(.|s) [B, K] of the state that the classifier is to read."""
        seen = self.scaled(batch.observation if self.config.classifier_input == "state" else batch.next_observation)
        if self.config.features:
            seen = seen[:, list(self.config.features)]
        return F.log_softmax(self.networks["classifier"](seen), dim=1)

    def critic(self, name: str, state: Tensor, action: Tensor, slow: bool = False) -> Tensor:
        """Q(s~, a) [B] of one critic or of its slow copy."""
        network = (self.targets if slow else self.networks)[name]
        return network(torch.cat([state, action], dim=1))[:, 0]

    def pseudo_reward(self, log_q: Tensor, skill: Tensor) -> Tensor:
        """log q(z|s) - log p(z) [B] under today's classifier, which gets no gradient from it."""
        reward = log_q.detach().gather(1, skill[:, None])[:, 0]
        if self.subtract_prior:
            reward = reward - torch.log(self.prior[skill] + 1e-6)
        return reward

    # ------------------------------------------------------------ spec 3.3

    def squashed_gaussian(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action [B, Da] that this noise gives, differentiable, and its log-probability [B]."""
        mean, log_std = self.networks["policy"](state).chunk(2, dim=1)
        log_std = log_std.clamp(*LOG_STD_RANGE)
        x = mean + log_std.exp() * noise
        return torch.tanh(x), gaussian_log_density(x, mean, log_std) - squash_correction(x)

    def twin_losses(self, batch: Batch, noise: Noise, reward: Tensor) -> dict[str, Tensor]:
        """Losses of the policy and of both critics."""
        config = self.config
        state = self.augmented(batch.observation, batch.skill)
        with torch.no_grad():
            next_state = self.augmented(batch.next_observation, batch.skill)
            next_action, next_log_prob = self.squashed_gaussian(next_state, noise.next_action)
            slow = [self.critic(name, next_state, next_action, slow=True) for name in self.targets]
            next_value = torch.minimum(*slow) - self.alpha * next_log_prob
            target = bellman_target(reward, config.discount, batch.terminated, next_value)
        losses = {}
        for name in ("critic_0", "critic_1"):
            losses[name] = 0.5 * F.mse_loss(self.critic(name, state, batch.action), target)
        action, log_prob = self.squashed_gaussian(state, noise.action)
        value = torch.minimum(self.critic("critic_0", state, action), self.critic("critic_1", state, action))
        losses["policy"] = (self.alpha * log_prob - value).mean()
        return losses

    # ------------------------------------------------------------ spec 3.2

    def mixture(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The policy's logits [B, Kg], means and log standard deviations [B, Kg, Da]."""
        size = self.action_size
        outputs = self.networks["policy"](state).view(len(state), self.config.components, 2 * size + 1)
        logits, mean, log_std = outputs.split([1, size, size], dim=2)
        return logits[..., 0].clamp(min=LOGIT_FLOOR), mean, log_std.clamp(*LOG_STD_RANGE)

    def v2018_losses(self, batch: Batch, noise: Noise, reward: Tensor) -> dict[str, Tensor]:
        """Losses of the critic, the value network and, by its likelihood ratio, the policy."""
        config = self.config
        state = self.augmented(batch.observation, batch.skill)
        with torch.no_grad():
            next_state = self.augmented(batch.next_observation, batch.skill)
            next_value = self.targets["value"](next_state)[:, 0]
            target = bellman_target(reward, config.discount, batch.terminated, next_value)
        losses = {"critic_0": 0.5 * F.mse_loss(self.critic("critic_0", state, batch.action), target)}

        logits, mean, log_std = self.mixture(state)
        x = self.mixture_sample(logits, mean, log_std, noise.action).detach()
        log_density = mixture_log_density(x, logits, mean, log_std)
        cost = self.alpha * (log_density - official_squash_correction(x)).detach()
        q = self.critic("critic_0", state, torch.tanh(x)).detach()
        value = self.networks["value"](state)[:, 0]
        losses["value"] = 0.5 * F.mse_loss(value, q - cost)
        regulariser = REGULARISER * 0.5 * ((log_std**2).mean() + (mean**2).mean())
        losses["policy"] = (log_density * (cost - q + value.detach())).mean() + regulariser
        return losses

    @staticmethod
    def mixture_sample(logits: Tensor, mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
        """x [B, Da] before the squashing. noise [B, 1 + Da]: normals; the first chooses the component."""
        uniform = torch.special.ndtr(noise[:, :1])
        component = (uniform > torch.softmax(logits, dim=1).cumsum(dim=1)[:, :-1]).sum(dim=1)
        rows = torch.arange(len(component), device=component.device)
        return mean[rows, component] + log_std[rows, component].exp() * noise[:, 1:]

    # ------------------------------------------------------------ the update

    def losses(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """The loss of every trained network at the present parameters, by the network's name."""
        reward, losses = batch.reward, {}
        if self.config.reward == "skills":
            log_q = self.log_q(batch)
            reward = self.pseudo_reward(log_q, batch.skill)
            losses["classifier"] = F.nll_loss(log_q, batch.skill)
        find = self.twin_losses if self.config.variant == "twin" else self.v2018_losses
        return losses | find(batch, noise, reward)

    def update(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """One update of everything; the losses by the network's name. All of them are of the parameters before it
        (spec 3.2)."""
        losses = self.losses(batch, noise)
        for name, loss in losses.items():
            self.optimisers[name].zero_grad()
            # The policy's loss runs through the critics, and must leave nothing in them.
            loss.backward(inputs=list(self.networks[name].parameters()))
        for name in losses:
            self.optimisers[name].step()
        for name, target in self.targets.items():
            average_into(target, self.networks[name], self.config.tau)
        return {name: loss.detach() for name, loss in losses.items()}


# ---------------------------------------------------------------- beside the stacked learner


def counterparts(plain: PlainLearner, learner: Learner, member: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every parameter, targets included, with the same numbers of a member of the stack, in the plain one's shape."""
    agent, second = learner.agent, learner.members + member
    trained = {
        "policy": (agent.policy, member),
        "critic_0": (agent.critic, member),
        "critic_1": (agent.critic, second),
        "value": (agent.value, member),
        "classifier": (agent.classifier, member),
    }
    slow = {
        "critic_0": (learner.critic_target, member),
        "critic_1": (learner.critic_target, second),
        "value": (learner.value_target, member),
    }
    for networks, stacks in ((plain.networks, trained), (plain.targets, slow)):
        for name, network in networks.items():
            stack, row = stacks[name]
            assert stack is not None
            for parameter, stacked in zip(network.parameters(), stack.tensors(), strict=True):
                # A stack's weights are [members, inputs, outputs], and its biases [members, 1, outputs].
                yield parameter, stacked[row].mT if parameter.dim() == 2 else stacked[row, 0]


@torch.no_grad()
def plain_of(learner: Learner, member: int = 0) -> PlainLearner:
    """A plain learner with the weights, targets, p(z), scaling and alpha of one member; its optimisers are fresh.

    Raises ValueError for a learner with a novelty bonus, which is no part of the method.
    """
    if learner.bonus is not None:
        raise ValueError("the plain learner has no novelty bonus: set bonus=0")
    agent = learner.agent
    plain = PlainLearner(agent.config, agent.observation_size, agent.action_size)
    for network in (*plain.networks.values(), *plain.targets.values()):
        network.to(agent.prior)
    for parameter, stacked in counterparts(plain, learner, member):
        parameter.copy_(stacked)
    plain.prior, plain.center, plain.scale = agent.prior[member], agent.center[member, 0], agent.scale[member, 0]
    plain.alpha, plain.subtract_prior = float(learner.alpha[member]), bool(learner.subtract[member])
    return plain


@torch.no_grad()
def difference(plain: PlainLearner, learner: Learner, member: int = 0) -> float:
    """Largest difference between a parameter and its counterpart."""
    return max(float((one - other).abs().max()) for one, other in counterparts(plain, learner, member))
