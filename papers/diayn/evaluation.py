"""Episodes of frozen agents and what they say: metrics of skills (spec 10), returns in a task, the choice of a skill.

Members, skills and episodes run side by side. Nothing waits for the device inside an episode; every metric is a tensor
until the end and reaches the host in one copy. Starts and noise are functions of (seed, "evaluation", step).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from common.random import Stream
from papers.diayn.config import Config
from papers.diayn.copies import Environments
from papers.diayn.dynamics import DYNAMICS
from papers.diayn.environments import make_environments
from papers.diayn.method import effective_skills, mutual_information
from papers.diayn.networks import Agent

SOLVED = {
    "MountainCarContinuous-v0": 90.0,
    "InvertedPendulum-v4": 1000.0,
    "InvertedPendulum-v5": 1000.0,
}
"""Mean returns from which gymnasium's tasks count as solved, where a claim asks for it (C3). They are the spec's (10.5
and 10.6), not gymnasium's own thresholds, of which the pendulum's is lower (950)."""
CELLS = 10
"""Coverage counts the cells of a grid of CELLS x CELLS over the plane's extent."""
MOST_PROCESSES = 16
"""So many environments of gymnasium run at a time."""
CHUNK = 32
"""Random numbers are drawn for so many steps at once; then it is asked whether an episode still runs."""
ROWS = 32_768
"""The classifier reads about so many states at once, which bounds its memory."""
Noise = Callable[[int], Tensor]


class Actor(Protocol):
    """What can be played: an agent of skills, or a controller over one."""

    observation_size: int

    @property
    def noise_size(self) -> int:
        """Normals that an action takes."""

    def act(self, observation: Tensor, skill: Tensor, noise: Tensor | None) -> Tensor:
        """Actions [S, N, Da] in [-1, 1]; see `Agent.act`."""


class Rollout(NamedTuple):
    """The first episode of every copy. After its end the observation stays as it was and the reward is 0.

    observation [T+1, S, N, Do]: s_0 .. s_T, without context; reward [T, S, N]; alive bool [T, S, N]: step t belongs to
    the episode; terminated bool [S, N]: it ended by itself, not at the time limit; entropy [S, N] nats: the mean of
    -log pi(a|s, z) over its states (0 where it was not asked for).
    """

    observation: Tensor
    reward: Tensor
    alive: Tensor
    terminated: Tensor
    entropy: Tensor


class Episodes(NamedTuple):
    """Sums over each episode, [S, N]: rewards, steps, states that the classifier recognised, log q(z|s) and -log pi in
    nats; last [S, N, Do], the observation at the end; moved [S, N], how far that is from the start in the plane;
    visited bool [S, N, CELLS^2], the cells of the plane that it saw; hurdles [S, N], the most that it had cleared. The
    last three are empty without a plane, or hurdles.
    """

    returns: Tensor
    length: Tensor
    correct: Tensor
    log_q: Tensor
    entropy: Tensor
    last: Tensor
    moved: Tensor
    visited: Tensor
    hurdles: Tensor


def action_noise(agent: Agent, seeds: Sequence[int], name: str, copies: int, device: torch.device | str) -> Noise:
    """Standard normals [S, copies, noise size] as a function of the step, one stream of that name for each seed."""
    streams = [Stream(seed, name, device) for seed in seeds]
    shape = (copies, agent.noise_size)
    chunk, drawn = -1, torch.empty(0)

    def noise(step: int) -> Tensor:
        nonlocal chunk, drawn
        if step // CHUNK != chunk:
            chunk = step // CHUNK
            steps = torch.arange(chunk * CHUNK, (chunk + 1) * CHUNK, device=device)
            drawn = torch.stack([stream.normal(steps, shape) for stream in streams], dim=1)
        return drawn[step % CHUNK]

    return noise


def agent_input(agent: Actor, environments: Environments) -> Tensor:
    """What the agent acts on, [S, N, Do (+ Dc)]: an agent that learns a task also reads its progress, skills do not."""
    if agent.observation_size == environments.observation_size:
        return environments.observation
    return torch.cat([environments.observation, environments.context], dim=-1)


@torch.no_grad()
def rollout(
    agent: Actor,
    environments: Environments,
    skill: Tensor,
    steps: int,
    noise: Noise | None,
    *,
    entropy: bool = False,
) -> Rollout:
    """Act with skill int64 [S, N] from where the environments stand, at most `steps` steps.

    noise gives standard normals [S, N, noise size] for a step; None: deterministic actions. entropy: also estimate the
    policy's entropy (needs noise, and an `Agent`).
    """
    shape = (environments.members, environments.copies)
    observation = environments.observation.new_empty(steps + 1, *shape, environments.observation_size)
    reward = observation.new_zeros(steps, *shape)
    alive = torch.zeros_like(reward, dtype=torch.bool)
    going = torch.ones(shape, dtype=torch.bool, device=reward.device)
    terminated = torch.zeros_like(going)
    surprise = observation.new_zeros(shape)
    observation[0] = environments.observation
    for step in range(steps):
        place = step % CHUNK
        if place == 0:
            if not going.any():
                observation[step + 1 :] = observation[step]
                break
            draws = environments.draws(range(step, min(step + CHUNK, steps)))
        seen = agent_input(agent, environments)
        drawn = None if noise is None else noise(step)
        action = agent.act(seen, skill, drawn)
        if entropy and drawn is not None and isinstance(agent, Agent):
            surprise += torch.where(going, agent.entropy(seen, skill, drawn), 0)
        outcome = environments.step(action, {name: values[place] for name, values in draws.items()})
        observation[step + 1] = torch.where(going[..., None], outcome.observation, observation[step])
        reward[step] = torch.where(going, outcome.reward, 0)
        alive[step] = going
        terminated |= going & outcome.terminated
        going = going & ~outcome.ended
    return Rollout(observation, reward, alive, terminated, surprise / alive.sum(0).clamp(min=1))


@torch.no_grad()
def _classified(agent: Agent, played: Rollout, skill: Tensor) -> tuple[Tensor, Tensor]:
    """How many of an episode's states D takes for its skill, and its sum of log q(z|s): both [S, N].

    D is asked about s_0 .. s_{T-1}, or s_1 .. s_T where it was trained on next states, of the episode's T steps.
    """
    observation = played.observation[1:] if agent.config.classifier_input == "next" else played.observation[:-1]
    members, copies = skill.shape
    correct, total = torch.zeros_like(played.reward[0]), torch.zeros_like(played.reward[0])
    rows = max(1, ROWS // (members * copies))
    for states, alive in zip(observation.split(rows), played.alive.split(rows), strict=True):
        flat = states.transpose(0, 1).reshape(members, len(states) * copies, -1)
        log_q = agent.log_q(flat).view(members, len(states), copies, -1)
        chosen = log_q.gather(-1, skill[:, None, :, None].expand(-1, len(states), -1, -1))[..., 0]
        counts = alive.transpose(0, 1)
        correct += ((log_q.argmax(-1) == skill[:, None]) & counts).sum(1)
        total += torch.where(counts, chosen, 0).sum(1)
    return correct, total


def cells(positions: Tensor, extent: tuple[tuple[float, float], tuple[float, float]]) -> Tensor:
    """Index 0 .. CELLS^2 - 1 of the grid's cell of positions [..., 2], int64 [...]. Outside counts as edge."""
    low = positions.new_tensor([axis[0] for axis in extent])
    high = positions.new_tensor([axis[1] for axis in extent])
    place = ((positions - low) / (high - low) * CELLS).long().clamp(0, CELLS - 1)
    return place[..., 0] * CELLS + place[..., 1]


def _sums(agent: Agent, environments: Environments, played: Rollout, skill: Tensor, classify: bool) -> Episodes:
    length = played.alive.sum(0).to(played.reward.dtype)
    nothing = torch.zeros_like(length)
    correct, log_q = _classified(agent, played, skill) if classify else (nothing, nothing)
    moved, visited = length.new_empty(*length.shape, 0), length.new_empty(*length.shape, 0, dtype=torch.bool)
    if environments.position is not None:
        plane = played.observation[..., list(environments.position)]
        moved = (plane[-1] - plane[0]).norm(dim=-1)
        if environments.extent is not None:
            # An ended episode stays where it ended, so nothing need be masked.
            visited = length.new_zeros(*length.shape, CELLS * CELLS, dtype=torch.bool)
            visited.scatter_(-1, cells(plane, environments.extent).permute(1, 2, 0), True)
    hurdles = length.new_empty(*length.shape, 0) if environments.hurdles is None else environments.hurdles
    surprise, last = played.entropy * length, played.observation[-1].clone()
    return Episodes(played.reward.sum(0), length, correct, log_q, surprise, last, moved, visited, hurdles)


def _rounds(
    agent: Agent,
    config: Config,
    seeds: Sequence[int],
    name: str,
    device: torch.device | str,
    skill: Tensor,
    *,
    tasks: Tensor | None = None,
    entropy: bool = False,
    deterministic: bool = False,
) -> Iterator[tuple[Environments, Rollout, Tensor]]:
    """One episode for every entry of skill int64 [S, N]: our own environments all at once, those of gymnasium
    MOST_PROCESSES of each member at a time, however many members there are: which episodes are played must not depend
    on the stack. Gives the environments, the episodes and their part of the skills."""
    at_once = skill.shape[1] if config.env in DYNAMICS else MOST_PROCESSES
    horizon = config.evaluation_horizon or None
    for number, part in enumerate(skill.split(at_once, dim=1)):
        stream, copies = f"{name}/{number}", part.shape[1]
        environments = make_environments(config, seeds, copies, device, stream=stream, horizon=horizon, tasks=tasks)
        noise = None if deterministic else action_noise(agent, seeds, f"{stream}/action", copies, device)
        yield environments, rollout(agent, environments, part, environments.horizon, noise, entropy=entropy), part


def play(
    agent: Agent,
    config: Config,
    seeds: Sequence[int],
    name: str,
    device: torch.device | str,
    skill: Tensor,
    *,
    tasks: Tensor | None = None,
    classify: bool = False,
    deterministic: bool = False,
) -> Episodes:
    """One episode for every entry of skill int64 [S, N]; its randomness is that of the stream `name`.

    tasks: [S, task size], what the environment rewards. classify: also ask the classifier, and estimate the policy's
    entropy. deterministic: the policy's deterministic actions.
    """
    rounds = _rounds(
        agent, config, seeds, name, device, skill, tasks=tasks, entropy=classify, deterministic=deterministic
    )
    found = [_sums(agent, environments, played, part, classify) for environments, played, part in rounds]
    return Episodes(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


def trajectories(
    agent: Agent,
    config: Config,
    seeds: Sequence[int],
    name: str,
    device: torch.device | str,
    skill: Tensor,
    *,
    deterministic: bool = False,
) -> Rollout:
    """As `play`, with every state kept."""
    rounds = list(_rounds(agent, config, seeds, name, device, skill, deterministic=deterministic))
    parts = zip(*(played for _, played, _ in rounds), strict=True)
    axes = (2, 2, 2, 1, 1)  # where the copies are
    return Rollout(*(torch.cat(part, dim=axis) for part, axis in zip(parts, axes, strict=True)))


def every_skill(agent: Agent, config: Config, rollouts: int, device: torch.device | str) -> Tensor:
    """Skills of `rollouts` episodes of each of the K skills in their order, int64 [S, K * rollouts]."""
    skills = torch.arange(config.skills, device=device).repeat_interleave(rollouts)
    return skills.expand(agent.members, -1)


def evaluate_skills(
    agent: Agent,
    config: Config,
    seeds: Sequence[int],
    step: int,
    device: torch.device | str,
    *,
    rollouts: int | None = None,
) -> list[dict[str, float]]:
    """Metrics of all skills of every member, from `rollouts` (default: evaluation_rollouts) stochastic episodes each.

    Where it is said what is averaged: states of one skill's episodes first, then skills alike, except in
    `weighted_accuracy` and `mutual_information` (by p(z)). In nats: `mutual_information`, the lower bound
    H[p] + E_z mean_t log q(z|s_t), and `policy_entropy`. `return_*`: over the skills' mean returns (the standard
    deviation is that of these K numbers). `coverage`, `cells_per_skill`, `displacement`: only with a plane;
    `hurdles_cleared`, `solved_skills`, `skills_outside`: only where they mean something. `return_skill_00` ... are the
    mean returns.
    """
    number = config.evaluation_rollouts if rollouts is None else rollouts
    skill = every_skill(agent, config, number, device)
    found = play(agent, config, seeds, f"evaluation/{step}", device, skill, classify=True)
    # On the host, since not every device has float64.
    values = summarise(agent, config, Episodes(*(part.unflatten(1, (config.skills, number)).cpu() for part in found)))
    table = torch.stack([value.double() for value in values.values()], dim=1).tolist()
    return [dict(zip(values, row, strict=True)) for row in table]


def summarise(agent: Agent, config: Config, episodes: Episodes) -> dict[str, Tensor]:
    """The metrics of `evaluate_skills`, each [S], from episodes [S, K, R, ...] of all skills, on the host."""
    states = episodes.length.sum(-1)
    accuracy = episodes.correct.sum(-1) / states
    prior = agent.prior.cpu().double()
    prior = prior / prior.sum(-1, keepdim=True)
    returns = episodes.returns.mean(-1)
    values = {
        "accuracy": accuracy.mean(-1),
        "weighted_accuracy": (prior * accuracy).sum(-1),
        "mutual_information": mutual_information(episodes.log_q.sum(-1) / states, prior),
        "effective_skills": effective_skills(prior),
        "policy_entropy": (episodes.entropy.sum(-1) / states).mean(-1),
        "return_mean": returns.mean(-1),
        "return_std": returns.std(-1, correction=0),
        "return_range": returns.amax(-1) - returns.amin(-1),
        "return_max": returns.amax(-1),
        "length_max": episodes.length.mean(-1).amax(-1),
    }
    if episodes.visited.shape[-1]:
        visited = episodes.visited.any(2)
        values["coverage"] = visited.any(1).float().mean(-1)
        values["cells_per_skill"] = visited.sum(-1).float().mean(-1)
    if episodes.moved.numel():
        values["displacement"] = episodes.moved.mean((-1, -2))
    if episodes.hurdles.numel():
        values["hurdles_cleared"] = episodes.hurdles.mean((-1, -2))
    if (solved := solved_return(config)) is not None:
        values["solved_skills"] = (returns >= solved).sum(-1)
    if config.env == "DIAYN/Hallway-v0":
        outside = (episodes.last[..., 0] > 0.5).float().mean(-1)
        values["skills_outside"] = (outside > 0.5).sum(-1)
    for skill in range(config.skills):
        values[f"return_skill_{skill:02d}"] = returns[:, skill]
    return values


def solved_return(config: Config) -> float | None:
    """The mean return from which the environment counts as solved; None where nobody has said."""
    if config.env in DYNAMICS:
        return DYNAMICS[config.env].solved
    return SOLVED.get(config.env)


def evaluate_task(
    agent: Agent,
    config: Config,
    seeds: Sequence[int],
    step: int,
    device: torch.device | str,
    tasks: Tensor | None,
    skill: Tensor,
) -> dict[str, Tensor]:
    """Means [S] over evaluation_rollouts stochastic episodes of each member in its own task: `task_return`, and
    `hurdles_cleared` where there are hurdles.

    tasks: [S, task size] or None; skill: int64 [S], the one that a member's policy is held at.
    """
    skills = skill.to(device)[:, None].expand(-1, config.evaluation_rollouts)
    found = play(agent, config, seeds, f"evaluation/{step}", device, skills, tasks=tasks)
    values = {"task_return": found.returns.mean(-1)}
    if found.hurdles.numel():
        values["hurdles_cleared"] = found.hurdles.mean(-1)
    return values


def per_skill_returns(
    agent: Agent,
    config: Config,
    seeds: Sequence[int],
    name: str,
    device: torch.device | str,
    *,
    rollouts: int | None = None,
    tasks: Tensor | None = None,
) -> Tensor:
    """Mean return [S, K] of each skill in the environment's reward, over stochastic episodes of the stream `name`."""
    number = config.evaluation_rollouts if rollouts is None else rollouts
    skill = every_skill(agent, config, number, device)
    returns = play(agent, config, seeds, name, device, skill, tasks=tasks).returns
    return returns.unflatten(1, (config.skills, number)).mean(-1)


def select_skill(returns: Tensor) -> Tensor:
    """The best skill of each member (spec 3.6): mean returns [S, K] to int64 [S]."""
    return returns.argmax(-1)
