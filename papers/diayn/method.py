"""DIAYN's equations, one function each (Eysenbach et al. 2019, Sec. 3 and Algorithm 1; spec, section 3).

A skill is a policy pi(a|s,z) with a latent z. Without any task reward it learns to maximise

    F = I(S;Z) + H[A|S] - I(A;Z|S) = H[Z] - H[Z|S] + H[A|S,Z]                                             (Eq. 1, 2)
      >= E_{z, s}[log q(z|s) - log p(z)] + H[A|S,Z]                                                       (Eq. 3)

where q is a classifier that learns to tell the skill from the state. The first term is the pseudo-reward of every step,
the second is what soft actor-critic adds to any reward. Functions below take tensors with any leading dimensions.
"""

from math import log, pi

import torch
from torch import Tensor
from torch.nn import functional as F

OFFICIAL_EPSILON = 1e-6
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
LOGIT_MIN = -10.0
"""Where the official code clamps a mixture's logits from below."""
HALF_LOG_TWO_PI = 0.5 * log(2 * pi)

# ---------------------------------------------------------------- what a step earns


def pseudo_reward(log_q: Tensor, skill: Tensor, log_prior: Tensor | None) -> Tensor:
    """r = log q(z|s) - log p(z) of every transition (Eq. 3), [...]; no gradient flows into the classifier.

    log_q: [..., K], log q(.|s). skill: [..., K], z as one-hot. log_prior: broadcastable to log_q, or None to leave
    log p(z) out (as the paper's MountainCar does, spec 8.6).
    """
    scores = log_q.detach() if log_prior is None else log_q.detach() - log_prior
    return (scores * skill).sum(-1)


def log_prior_official(prior: Tensor) -> Tensor:
    """log(p(z) + 1e-6), as the official code has it."""
    return (prior + OFFICIAL_EPSILON).log()


# ---------------------------------------------------------------- policies


def log_squash(u: Tensor) -> Tensor:
    """Sum over the last dimension of log(1 - tanh(u)^2), stable for every u (spec 3.3)."""
    return (2 * (log(2) - u - F.softplus(-2 * u))).sum(-1)


def log_squash_official(u: Tensor) -> Tensor:
    """The same with the official code's 1e-6, which saturates at -13.8 a dimension (spec 3.2)."""
    return (1 - u.tanh() ** 2 + OFFICIAL_EPSILON).log().sum(-1)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, exp(log_std)) of independent entries, summed over the last dimension."""
    scaled = (x - mean) * (-log_std).exp()
    return (-0.5 * scaled.square() - log_std - HALF_LOG_TWO_PI).sum(-1)


def gaussian_of(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and clamped log standard deviation [..., Da] from a policy network's output [..., 2 Da]."""
    mean, log_std = output.chunk(2, -1)
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def tanh_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(u) [..., Da], u = mean + sigma noise, and log pi(a|s,z) [...], both differentiable (spec 3.3)."""
    u = mean + log_std.exp() * noise
    # (u - mean) / sigma is the noise itself.
    log_prob = -(0.5 * noise.square() + log_std + HALF_LOG_TWO_PI).sum(-1)
    return u.tanh(), log_prob - log_squash(u)


def tanh_gaussian_gradient(output: Tensor, noise: Tensor, of_action: Tensor, of_log_pi: Tensor) -> Tensor:
    """What `tanh_gaussian` of `gaussian_of(output)` passes back to the output [..., 2 Da], from the gradients of the
    action [..., Da] and of log pi [...].

    With u = mean + sigma noise: da/du = 1 - a^2, and d log pi/du = 2 a, since d log(1 - tanh(u)^2)/du = -2 tanh(u). The
    noise is fixed, so log pi also falls by one with each log sigma, whose du is sigma noise; a clamped log sigma passes
    nothing on.
    """
    mean, log_std = gaussian_of(output)
    spread = log_std.exp() * noise
    a = (mean + spread).tanh()
    of_mean = torch.addcmul(of_action, of_action, a.square(), value=-1).addcmul_(a, of_log_pi[..., None], value=2)
    of_log_std = (of_mean * spread - of_log_pi[..., None]).mul_(log_std == output.chunk(2, -1)[1])
    return torch.cat((of_mean, of_log_std), -1)


def mixture_log_prob(x: Tensor, logits: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log density of a Gaussian mixture at x [..., Da]; logits [..., Kg]; mean, log_std [..., Kg, Da] (spec 3.4)."""
    components = gaussian_log_prob(x[..., None, :], mean, log_std)
    return (components + logits).logsumexp(-1) - logits.logsumexp(-1)


def choose(p: Tensor, uniform: Tensor) -> Tensor:
    """The index, int64 [...], whose share of [0, 1) holds uniform [...]; p: [..., K], broadcast against it."""
    before = torch.ones(p.shape[-1], p.shape[-1], dtype=p.dtype, device=p.device).tril()
    # Sums of products and no cumsum, which has no deterministic form on a GPU.
    shares = (p[..., None, :] * before).sum(-1)
    # Rounding may leave the last share below 1.
    return (uniform[..., None] >= shares).sum(-1).clamp(max=p.shape[-1] - 1)


def mixture_sample(uniform: Tensor, normal: Tensor, logits: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """x [..., Da]: the component whose share of [0, 1) holds uniform [...], then its Gaussian with normal [..., Da]."""
    chosen = choose(logits.softmax(-1), uniform)
    index = chosen[..., None, None].expand(*chosen.shape, 1, mean.shape[-1])
    picked_mean, picked_log_std = (each.gather(-2, index)[..., 0, :] for each in (mean, log_std))
    return picked_mean + picked_log_std.exp() * normal


def mixture_decay(logits: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """0.5 (mean log_sigma^2 + mean mu^2) over batch, components and entries, [S] (spec 3.2, step 5)."""
    return 0.5 * (log_std.square().mean((-3, -2, -1)) + mean.square().mean((-3, -2, -1)))


# ---------------------------------------------------------------- soft actor-critic


def critic_target(reward: Tensor, discount: float, terminated: Tensor, next_value: Tensor) -> Tensor:
    """y = r + gamma V(s'), where the episode did not terminate; being cut by a time limit is no termination."""
    return torch.where(terminated, reward, reward + discount * next_value)


def soft_value(q: Tensor, log_prob: Tensor, alpha: Tensor | float) -> Tensor:
    """V(s) = Q(s, a) - alpha log pi(a|s), of one sampled action."""
    return q - alpha * log_prob


def squared_loss(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Half the mean squared error over the last dimension (spec 3.2, with the factor 0.5), and its gradient with
    respect to the prediction."""
    error = prediction - target
    return 0.5 * error.square().mean(-1), error / error.shape[-1]


def cross_entropy(log_q: Tensor, skill: Tensor) -> tuple[Tensor, Tensor]:
    """The classifier's loss [...], -log q(z|s) averaged over the batch (spec 3.2, step 6), and its gradient with
    respect to the logits; log_q: [..., B, K], skill: [..., B, K], z as one-hot."""
    size = log_q.shape[-2]
    return (log_q * skill).sum((-2, -1)) / -size, (log_q.exp() - skill).div_(size)


def likelihood_ratio_loss(log_prob: Tensor, log_pi: Tensor, q: Tensor, value: Tensor, alpha: Tensor | float) -> Tensor:
    """The 2018 policy loss, mean over the last dimension (spec 3.2, step 5).

    log_prob: log density of the action before tanh, which carries the gradient; log_pi: after it.
    """
    return (log_prob * (alpha * log_pi - q + value).detach()).mean(-1)


# ---------------------------------------------------------------- p(z) and what skills know of each other


def entropy(p: Tensor) -> Tensor:
    """H[p] in nats over the last dimension."""
    return -torch.special.xlogy(p, p).sum(-1)


def effective_skills(p: Tensor) -> Tensor:
    """exp(H[p]): how many skills a uniform p(z) of the same entropy has (App. E.2)."""
    return entropy(p).exp()


def learned_prior(scores: Tensor, seen: Tensor) -> Tensor:
    """The p(z) that maximises H[Z] - H[Z|S] for given skills, proportional to exp(E[log q(z|s)]) (App. E; VIC).

    scores: [..., K], mean log q(z|s) over states of each skill; seen: bool [..., K], whether it has any (else it counts
    as log(1/K)).
    """
    return torch.where(seen, scores, -log(scores.shape[-1])).softmax(-1)


def mutual_information(scores: Tensor, p: Tensor) -> Tensor:
    """The lower bound H[p] + E_z[E_s log q(z|s)] of I(S;Z) in nats (Eq. 3); scores: [..., K] as for `learned_prior`."""
    return entropy(p) + (p * scores).sum(-1)


def imitation_scores(log_q: Tensor) -> tuple[Tensor, Tensor]:
    """For an expert's states, log_q [T, K]: sum over time [K], whose largest is the skill to run, and the posterior
    [K], the confidence (Sec. 4.2.3; spec 3.6)."""
    sums = log_q.sum(0)
    return sums, sums.softmax(0)
