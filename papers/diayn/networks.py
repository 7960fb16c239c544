"""The networks of DIAYN for several members at once: every weight has a leading dimension of members.

A member is one independently seeded agent. A stack of S members multiplies S times as fast as one matrix product a
layer can, and is how several seeds, or the 25 goals of the 2-D box, train at the price of a few; alone is S = 1. So
there is one path, and a member in a stack computes what it computes alone.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from common.files import atomic_path, read_json, write_json
from papers.diayn import method
from papers.diayn.config import Config

threshold_backward = torch.ops.aten.threshold_backward
"""(gradient, relu's output, 0) -> the gradient of its input."""
WEIGHTS, SETTINGS = "weights.safetensors", "settings.json"


class Trace(NamedTuple):
    """What a network's gradient needs of its forward pass: input, hidden layers and output, [M, B, ...] each."""

    x: Tensor
    h1: Tensor
    h2: Tensor
    output: Tensor


class StackedMLP(nn.Module):
    """Two hidden layers of ReLU for M members, Glorot-uniform weights and zero biases (spec, section 4).

    inputs: the sizes of the blocks that are concatenated as input; each block's weights are drawn with a fan-in of its
    own, as the official code has a matrix for each. [M, B, sum(inputs)] -> [M, B, output].
    """

    def __init__(self, members: int, inputs: Sequence[int], width: int, output: int):
        super().__init__()
        sizes = (sum(inputs), width, width, output)
        for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), 1):
            blocks = inputs if number == 1 else (fan_in,)
            weight = torch.cat([_glorot(members, block, fan_out) for block in blocks], 1)
            self.register_parameter(f"w{number}", nn.Parameter(weight))
            self.register_parameter(f"b{number}", nn.Parameter(torch.zeros(members, 1, fan_out)))
        self.gradients: list[Tensor] = []

    def tensors(self) -> tuple[Tensor, ...]:
        """w1, b1, w2, b2, w3, b3."""
        return tuple(self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """[M, B, sum(inputs)] -> [M, B, output], differentiable."""
        return self._pass(x).output

    def _pass(self, x: Tensor) -> Trace:
        w1, b1, w2, b2, w3, b3 = self.tensors()
        h1 = torch.baddbmm(b1, x, w1).relu_()
        h2 = torch.baddbmm(b2, h1, w2).relu_()
        return Trace(x, h1, h2, torch.baddbmm(b3, h2, w3))

    @torch.no_grad()
    def trace(self, x: Tensor) -> Trace:
        """A forward pass whose gradient `backward` and `input_gradient` give.

        Small layers spend most of their time between kernels, and autograd's nodes are several times as many as the
        matrix products that remain here.
        """
        return self._pass(x)

    def _hidden_gradients(self, trace: Trace, gradient: Tensor) -> tuple[Tensor, Tensor]:
        _, _, w2, _, w3, _ = self.tensors()
        # A product of a column and a row is not worth a matrix product.
        behind = gradient * w3.mT if gradient.shape[-1] == 1 else torch.bmm(gradient, w3.mT)
        g2 = threshold_backward(behind, trace.h2, 0)
        return threshold_backward(torch.bmm(g2, w2.mT), trace.h1, 0), g2

    @torch.no_grad()
    def backward(self, trace: Trace, gradient: Tensor) -> None:
        """Write the gradients of the parameters into `gradients`, from that of the output."""
        g1, g2 = self._hidden_gradients(trace, gradient)
        if not self.gradients:
            self.gradients = [torch.empty_like(parameter) for parameter in self.parameters()]
        of_weights, of_biases = self.gradients[::2], self.gradients[1::2]
        inputs, outputs = (trace.x, trace.h1, trace.h2), (g1, g2, gradient)
        for of_weight, of_bias, x, g in zip(of_weights, of_biases, inputs, outputs, strict=True):
            torch.bmm(x.mT, g, out=of_weight)
            torch.sum(g, 1, keepdim=True, out=of_bias)

    @torch.no_grad()
    def input_gradient(self, trace: Trace, gradient: Tensor, columns: slice) -> Tensor:
        """The gradient of some columns of the input; the parameters get none."""
        g1, _ = self._hidden_gradients(trace, gradient)
        return torch.bmm(g1, self.tensors()[0][:, columns].mT)


def _glorot(members: int, fan_in: int, fan_out: int) -> Tensor:
    bound = (6 / (fan_in + fan_out)) ** 0.5
    return torch.empty(members, fan_in, fan_out).uniform_(-bound, bound)


class TanhGaussian(StackedMLP):
    """pi(a|s,z): a = tanh(u), u Gaussian with a mean and a standard deviation of its own per entry (spec 3.3)."""

    def __init__(self, members: int, inputs: Sequence[int], width: int, actions: int):
        super().__init__(members, inputs, width, 2 * actions)
        self.noise_size = actions

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, [M, B, Da] each."""
        return method.gaussian_of(self(x))

    def sample(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(a [M, B, Da], log pi(a|s,z) [M, B]), differentiable in the weights; noise: standard normal [M, B, Da]."""
        return method.tanh_gaussian(*self.distribution(x), noise)

    def deterministic(self, x: Tensor) -> Tensor:
        """tanh of the mean."""
        return self.distribution(x)[0].tanh()


class TanhMixture(StackedMLP):
    """As `TanhGaussian` with a mixture of Gaussians, which has no reparameterised sample (spec 3.4)."""

    def __init__(self, members: int, inputs: Sequence[int], width: int, actions: int, components: int):
        super().__init__(members, inputs, width, components * (2 * actions + 1))
        self.actions, self.components = actions, components
        self.noise_size = actions + 1

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [M, B, Kg], means and log standard deviations [M, B, Kg, Da]."""
        return self.mixture_of(self(x))

    def mixture_of(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from the network's output."""
        parts = output.unflatten(-1, (self.components, 2 * self.actions + 1))
        logits, mean, log_std = parts.split((1, self.actions, self.actions), -1)
        clamped = log_std.clamp(method.LOG_STD_MIN, method.LOG_STD_MAX)
        return logits[..., 0].clamp(min=method.LOGIT_MIN), mean, clamped

    @staticmethod
    def draw(distribution: tuple[Tensor, Tensor, Tensor], noise: Tensor) -> Tensor:
        """x [M, B, Da] before tanh, without gradient. noise [M, B, 1 + Da]: standard normals, of which the first
        chooses the component."""
        logits, mean, log_std = (each.detach() for each in distribution)
        uniform = torch.special.ndtr(noise[..., 0])
        return method.mixture_sample(uniform, noise[..., 1:], logits, mean, log_std)


class Agent(nn.Module):
    """All networks of S members: the policy, critics, the classifier, p(z) and the scaling of observations.

    policy: pi(a|s,z). critic: Q, twice with variant "twin" (members 0..S-1, then the second Qs); value: V with variant
    "v2018", else None. classifier: log q(z|s). prior: [S, K], p(z). Their slow copies are the `Learner`'s.
    """

    prior: Tensor
    features: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, config: Config, observation_size: int, action_size: int, members: int = 1):
        """Raises ValueError for a feature that the observation does not have."""
        super().__init__()
        self.config, self.members = config, members
        self.observation_size, self.action_size = observation_size, action_size
        if any(not 0 <= feature < observation_size for feature in config.features):
            raise ValueError(f"features {config.features}: an observation has entries 0 to {observation_size - 1}")
        state, width = observation_size + config.skills, config.width
        twin = config.variant == "twin"
        self.policy: TanhGaussian | TanhMixture
        if twin:
            self.policy = TanhGaussian(members, (state,), width, action_size)
        else:
            self.policy = TanhMixture(members, (state,), width, action_size, config.components)
        self.critic = StackedMLP(members * (2 if twin else 1), (state, action_size), width, 1)
        self.value = None if twin else StackedMLP(members, (state,), width, 1)
        classified = len(config.features) or observation_size
        self.classifier = StackedMLP(members, (classified,), width, config.skills)
        self.register_buffer("prior", torch.full((members, config.skills), 1 / config.skills))
        self.register_buffer("center", torch.zeros(members, 1, observation_size))
        self.register_buffer("scale", torch.ones(members, 1, observation_size))
        # A tensor, since indexing with a list copies it to the device each time, which no CUDA graph records.
        self.register_buffer("features", torch.tensor(config.features, dtype=torch.int64), persistent=False)

    @property
    def noise_size(self) -> int:
        """Standard normals that one action takes."""
        return self.policy.noise_size

    def scaled(self, observation: Tensor) -> Tensor:
        """The observation [S, N, Do] as the networks see it."""
        if self.config.observation_scale == "none":
            return observation
        return ((observation - self.center) / self.scale).clamp(-10, 10)

    def augmented(self, observation: Tensor, skill: Tensor) -> Tensor:
        """[S, N, Do + K]: the scaled observation and the skill as one-hot."""
        return self.join(self.scaled(observation), self.one_hot(skill))

    def one_hot(self, skill: Tensor) -> Tensor:
        """int64 [S, N] -> float [S, N, K]."""
        zeros = torch.zeros(*skill.shape, self.config.skills, dtype=self.center.dtype, device=skill.device)
        return zeros.scatter_(-1, skill[..., None], 1.0)

    @staticmethod
    def join(*parts: Tensor) -> Tensor:
        """Along the last dimension."""
        return torch.cat(parts, -1)

    def classified(self, scaled: Tensor) -> Tensor:
        """What of a scaled observation the classifier reads."""
        return scaled.index_select(-1, self.features) if self.config.features else scaled

    def log_q(self, observation: Tensor) -> Tensor:
        """log q(z|s), [S, N, K]; observation: s, or s' with classifier_input "next"."""
        return F.log_softmax(self.classifier(self.classified(self.scaled(observation))), -1)

    def act(self, observation: Tensor, skill: Tensor, noise: Tensor | None) -> Tensor:
        """a [S, N, Da] in [-1, 1]; noise: standard normals [S, N, noise_size], or None for the deterministic action."""
        x = self.augmented(observation, skill)
        if isinstance(self.policy, TanhGaussian):
            return self.policy.deterministic(x) if noise is None else self.policy.sample(x, noise)[0]
        distribution = self.policy.distribution(x)
        return self._best_mean(x, distribution[1]) if noise is None else self.policy.draw(distribution, noise).tanh()

    def _best_mean(self, x: Tensor, mean: Tensor) -> Tensor:
        """tanh of the component mean with the largest Q (spec 3.4)."""
        actions = mean.tanh()
        repeated = x[..., None, :].expand(*actions.shape[:-1], x.shape[-1])
        q = self.critic(self.join(repeated, actions).flatten(1, 2)).view(actions.shape[:-1])
        index = q.argmax(-1)[..., None, None].expand(*q.shape[:-1], 1, actions.shape[-1])
        return actions.gather(-2, index)[..., 0, :]

    def entropy(self, observation: Tensor, skill: Tensor, noise: Tensor) -> Tensor:
        """-log pi(a|s,z) [S, N] of the action that this noise gives: an estimate of H[A|S,Z] in nats."""
        x = self.augmented(observation, skill)
        if isinstance(self.policy, TanhGaussian):
            return -self.policy.sample(x, noise)[1]
        distribution = self.policy.distribution(x)
        u = self.policy.draw(distribution, noise)
        return method.log_squash(u) - method.mixture_log_prob(u, *distribution)

    def member(self, number: int) -> "Agent":
        """A copy of one member, as an agent of its own."""
        alone = Agent(self.config, self.observation_size, self.action_size, 1).to(self.center.device)
        alone.load_state_dict(split_states(self.state_dict(), self.members)[number])
        return alone

    @classmethod
    def stack(cls, agents: Sequence["Agent"]) -> "Agent":
        """Agents of equal shapes as one; the settings that are kept are the first one's."""
        first, members = agents[0], [agent.members for agent in agents]
        stacked = cls(first.config, first.observation_size, first.action_size, sum(members))
        stacked.load_state_dict(join_states([agent.state_dict() for agent in agents], members))
        return stacked.to(first.center.device)


def _is_critic(name: str) -> bool:
    """Whether a tensor's leading dimension may hold all first Qs and then all second ones."""
    return any(part.startswith("critic") for part in name.split("."))


def join_states(states: Sequence[Mapping[str, Tensor]], members: Sequence[int]) -> dict[str, Tensor]:
    """The state of several stacks, of so many members each, as that of one."""
    joined = {}
    for name in states[0]:
        tensors = [state[name] for state in states]
        if _is_critic(name):
            qs = [tensor.unflatten(0, (-1, count)) for tensor, count in zip(tensors, members, strict=True)]
            joined[name] = torch.cat(qs, 1).flatten(0, 1)
        else:
            joined[name] = torch.cat(tensors)
    return joined


def split_states(state: Mapping[str, Tensor], members: int) -> list[dict[str, Tensor]]:
    """The state of each member alone."""
    return [
        {
            name: tensor[number::members] if _is_critic(name) else tensor[number : number + 1]
            for name, tensor in state.items()
        }
        for number in range(members)
    ]


def count_parameters(network: nn.Module) -> int:
    """Of one member."""
    return sum(parameter[0].numel() for parameter in network.parameters())


def save_agent(agent: Agent, folder: Path, **info: Any) -> None:
    """Write `weights.safetensors` and `settings.json`: the settings, the sizes and `info`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in agent.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    sizes = {name: getattr(agent, name) for name in ("observation_size", "action_size", "members")}
    write_json(folder / SETTINGS, {"config": asdict(agent.config), **sizes, **info})


def load_agent(folder: Path) -> tuple[Agent, Config, dict[str, Any]]:
    """The agent that `save_agent` wrote, in evaluation mode and without gradients, its settings and `info`.

    Raises OSError, KeyError, ValueError or RuntimeError where the folder does not hold one.
    """
    known = read_json(Path(folder) / SETTINGS)
    config = Config.of(known["config"])
    agent = Agent(config, known["observation_size"], known["action_size"], known["members"])
    agent.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return agent.eval().requires_grad_(False), config, known
