"""Hierarchical control: a meta-controller learns which of some frozen skills to run (Sec. 4.2.2; spec 3.6).

The paper does not say how its meta-controller learns; ours is a double DQN whose actions are the K skills. A choice is
held for k environment steps or until the episode ends, whichever is first; every copy of the environment then chooses
anew at once, so that each episode begins with a choice of its own. What a choice earns is the sum of the task's rewards
divided by k, also where the episode ended early, and the discount is per choice, as if choices were the steps of an
environment of their own (the official code's wrapper). An episode that a time limit cuts has not terminated: the value
of its last observation counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.capture import CudaCapture, StepGraph
from common.errors import UserError
from common.files import write_json
from common.random import Stream, seeded
from common.runs import Execution, Folder, Workplace
from common.trainer import Schedule, fit, save_weights
from papers.diayn.copies import Environments
from papers.diayn.environments import make_environments
from papers.diayn.evaluation import MOST_PROCESSES, action_noise, rollout
from papers.diayn.meta_config import MetaConfig
from papers.diayn.method import critic_target
from papers.diayn.module import check_precision, task_metrics
from papers.diayn.networks import SETTINGS, WEIGHTS, Agent, StackedMLP, load_agent


class Choices(nn.Module):
    """Finished choices of S members with N copies: a ring for each copy, since copies choose at different times.

    observation, next_observation: [S, N, C + 1, D]; skill, reward, terminated: [S, N, C + 1]; count: int64 [S, N], how
    many a copy has ever finished. Slot C takes what is written for copies whose choice still holds.
    """

    observation: Tensor
    skill: Tensor
    reward: Tensor
    terminated: Tensor
    next_observation: Tensor
    count: Tensor

    def __init__(self, members: int, copies: int, capacity: int, size: int):
        super().__init__()
        shape = (members, copies, capacity + 1)
        self.capacity = capacity
        self.register_buffer("observation", torch.zeros(*shape, size))
        self.register_buffer("skill", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("reward", torch.zeros(shape))
        self.register_buffer("terminated", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("next_observation", torch.zeros(*shape, size))
        self.register_buffer("count", torch.zeros(shape[:2], dtype=torch.int64))

    def add(self, finished: Tensor, values: Mapping[str, Tensor]) -> None:
        """Store `values` [S, N, ...] of the copies whose choice has `finished`, bool [S, N]."""
        slot = torch.where(finished, self.count % self.capacity, self.capacity)[..., None]
        for name, value in values.items():
            ring: Tensor = getattr(self, name)
            index = slot[..., None].expand(*slot.shape, value.shape[-1]) if ring.dim() == 4 else slot
            ring.scatter_(2, index, value[:, :, None])
        self.count += finished

    def sample(self, copy: Tensor, place: Tensor) -> dict[str, Tensor]:
        """Choices [S, B, ...]: of copies int64 [S, B], those at `place` in [0, 1) [S, B] of what each ring holds,
        which must be one choice at least."""
        member = torch.arange(len(copy), device=copy.device)[:, None]
        held = self.count.clamp(max=self.capacity)[member, copy]
        # A product of float32 may round up to the number of choices.
        slot = torch.minimum((place * held).long(), held - 1)
        names = ("observation", "skill", "reward", "terminated", "next_observation")
        return {name: getattr(self, name)[member, copy, slot] for name in names}


def meta_observation(environments: Environments, observation: Tensor, context: Tensor, scale: str) -> Tensor:
    """What the controller sees, [S, N, Do + Dc]: the observation, by its range where asked to, and the progress."""
    if scale == "range":
        assert environments.center is not None and environments.half_range is not None  # `MetaController` has looked
        observation = (observation - environments.center) / environments.half_range
    return torch.cat([observation, context], -1)


def initial_network(config: MetaConfig, seeds: Sequence[int], inputs: int, skills: int) -> StackedMLP:
    """Q(s, .) of one member for each seed, as its run begins with it."""
    alone = []
    for seed in seeds:
        with seeded(Stream(seed, "initialisation of the meta-controller")):
            alone.append(StackedMLP(1, (inputs,), config.width, skills).state_dict())
    network = StackedMLP(len(seeds), (inputs,), config.width, skills)
    network.load_state_dict({name: torch.cat([each[name] for each in alone]) for name in alone[0]})
    return network


def double_dqn_loss(
    network: StackedMLP, target: StackedMLP, batch: Mapping[str, Tensor], discount: float
) -> tuple[Tensor, Tensor]:
    """Huber loss of Q(s, z) against r + discount * Q'(s', argmax Q(s')) (van Hasselt et al. 2016): losses [S], and the
    mean Q(s, z) [S]. No graph is built for the target."""
    with torch.no_grad():
        best = network(batch["next_observation"]).argmax(-1, keepdim=True)
        next_value = target(batch["next_observation"]).gather(-1, best)[..., 0]
        y = critic_target(batch["reward"], discount, batch["terminated"], next_value)
    q = network(batch["observation"]).gather(-1, batch["skill"][..., None])[..., 0]
    return F.smooth_l1_loss(q, y, reduction="none").mean(-1), q.detach().mean(-1)


class MetaController(pl.LightningModule):
    """S meta-controllers, each with a seed, an agent of frozen skills (a member of `agent`) and N copies of the
    environment.

    All that changes from step to step is in buffers: the environments, the choice that each copy holds, what it has
    earned so far, the finished choices. Random numbers of a range of steps are drawn before its first one.
    """

    skill: Tensor
    left: Tensor
    earned: Tensor
    start: Tensor
    shown: Tensor

    def __init__(self, agent: Agent, config: MetaConfig, seeds: Sequence[int], execution: Execution):
        """Raises UserError where the skills do not fit the environment, or it declares no range to scale by."""
        super().__init__()
        self.automatic_optimization = False
        self.config, self.seeds, self.execution = config, list(seeds), execution
        self.agent, self.skills = agent, agent.config.skills
        members, copies = len(self.seeds), config.copies
        self.environments = make_environments(config, self.seeds, copies, execution.device)
        check_sizes(agent, self.environments, config)
        size = self.environments.observation_size + self.environments.context_size
        self.network = initial_network(config, self.seeds, size, self.skills)
        self.target = initial_network(config, self.seeds, size, self.skills).requires_grad_(False)
        self.choices = Choices(members, copies, config.buffer_size // copies, size)
        self.register_buffer("skill", torch.zeros(members, copies, dtype=torch.int64))
        self.register_buffer("left", torch.zeros(members, copies, dtype=torch.int64))
        self.register_buffer("earned", torch.zeros(members, copies))
        self.register_buffer("start", torch.zeros(members, copies, size))
        self.register_buffer("shown", torch.zeros(2, members))
        self.step, self.samples_per_step = 0, copies

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for the controllers; the skills are frozen."""
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=self.config.learning_rate,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        return self.optimizer

    def on_fit_start(self) -> None:
        """Make the two halves of a step, recorded as CUDA graphs where that is possible."""
        graphs = self.device.type == "cuda" and self.config.cuda_graph
        collecting = graphs and self.environments.device_side
        self.collecting = StepGraph(self.collect, CudaCapture(self.device) if collecting else None)
        self.learning = StepGraph(self.learn, CudaCapture(self.device) if graphs else None)

    # ---------------------------------------------------------------- a step

    def draw(self, steps: range) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Everything random of `steps` but the environments' part: for `collect` and for `learn`, [len(steps), S, ...]
        each."""
        config, device = self.config, self.device
        copies, batch, noise = config.copies, config.batch_size, self.agent.noise_size
        index = torch.arange(steps.start, steps.stop, device=device)
        each: list[tuple[Tensor, ...]] = []
        for seed in self.seeds:
            stream = Stream(seed, "meta-controller", device)
            each.append(
                (
                    stream.child("explore").uniform(index, copies),
                    stream.child("skill").integers(index, copies, self.skills),
                    stream.child("noise").normal(index, (copies, noise)),
                    stream.child("copy").integers(index, batch, copies),
                    stream.child("place").uniform(index, batch),
                )
            )
        explore, skill, noises, copy, place = (torch.stack(rows, 1) for rows in zip(*each, strict=True))
        chance = torch.tensor([config.chance(step) for step in steps], device=device)
        random = explore < chance[:, None, None]
        return {"random": random, "skill": skill, "noise": noises}, {"copy": copy, "place": place}

    def seen(self, observation: Tensor, context: Tensor) -> Tensor:
        """The controllers' input."""
        return meta_observation(self.environments, observation, context, self.config.observation_scale)

    @torch.no_grad()
    def collect(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies without a choice choose; all act for one step; finished choices are stored."""
        environments, hold = self.environments, self.config.hold
        fresh = self.left == 0
        seen = self.seen(environments.observation, environments.context)
        choice = torch.where(draws["random"], draws["skill"], self.network(seen).argmax(-1))
        self.skill.copy_(torch.where(fresh, choice, self.skill))
        self.start.copy_(torch.where(fresh[..., None], seen, self.start))
        action = self.agent.act(environments.observation, self.skill, draws["noise"])
        outcome = environments.step(action, dict(draws))
        self.earned.copy_(torch.where(fresh, 0.0, self.earned) + outcome.reward / hold)
        left = torch.where(fresh, hold, self.left) - 1
        self.left.copy_(torch.where(outcome.ended, 0, left))
        values = {
            "observation": self.start,
            "skill": self.skill,
            "reward": self.earned,
            "terminated": outcome.terminated,
            "next_observation": self.seen(outcome.observation, outcome.context),
        }
        self.choices.add(self.left == 0, values)
        return {}

    def learn(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One update of the network from a batch of finished choices, and of its slow copy."""
        batch = self.choices.sample(draws["copy"], draws["place"])
        losses, values = double_dqn_loss(self.network, self.target, batch, self.config.discount)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.network.parameters()), self.config.tau)
            self.shown.copy_(torch.stack([losses.detach(), values]))
        return {}

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        """The steps range(*bounds); the last update's loss and mean Q, [S] (0 before the first update)."""
        steps = range(*bounds)
        collect, learn = self.draw(steps)
        collect |= self.environments.draws(steps)
        for i, step in enumerate(steps):
            self.collecting({name: drawn[i] for name, drawn in collect.items()})
            if self.config.learns(step):
                self.learning({name: drawn[i] for name, drawn in learn.items()})
        return {"critic_loss": self.shown[0].clone(), "value": self.shown[1].clone()}

    # ---------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(self) -> list[dict[str, float]]:
        """{"task_return", "hurdles_cleared" where there are hurdles} of each member: means over episodes of their own,
        as of an agent without skills. The skill with the largest Q is held as long as in training, and acts
        stochastically."""
        config, seeds, device = self.config, self.seeds, self.device
        at_once = config.evaluation_rollouts
        if not self.environments.device_side:
            at_once = MOST_PROCESSES
        found: dict[str, list[Tensor]] = {"task_return": []}
        for number, part in enumerate(torch.arange(config.evaluation_rollouts).split(at_once)):
            stream, copies = f"evaluation/{int(self.step)}/{number}", len(part)
            horizon = config.evaluation_horizon or None
            environments = make_environments(config, seeds, copies, device, stream=stream, horizon=horizon)
            noise = action_noise(self.agent, seeds, f"{stream}/action", copies, device)
            played = rollout(Controlled(self), environments, self.skill, environments.horizon, noise)
            found["task_return"].append(played.reward.sum(0))
            if environments.hurdles is not None:
                found.setdefault("hurdles_cleared", []).append(environments.hurdles)
        means = [torch.cat(values, 1).mean(1).tolist() for values in found.values()]
        return [dict(zip(found, row, strict=True)) for row in zip(*means, strict=True)]


class Controlled:
    """The controllers and their skills as one agent that `evaluation.rollout` can play, from the start of episodes."""

    def __init__(self, module: MetaController):
        self.module = module
        self.noise_size = module.agent.noise_size
        self.own_size = module.environments.observation_size
        self.observation_size = self.own_size + module.environments.context_size
        self.steps = 0

    def act(self, observation: Tensor, skill: Tensor, noise: Tensor | None) -> Tensor:
        """a [S, N, Da] for observation and progress [S, N, Do + Dc]; which skill acts is its own choice."""
        own, context = observation[..., : self.own_size], observation[..., self.own_size :]
        if self.steps % self.module.config.hold == 0:
            self.choice = self.module.network(self.module.seen(own, context)).argmax(-1)
        self.steps += 1
        return self.module.agent.act(own, self.choice, noise)


def check_sizes(agent: Agent, environments: Environments, config: MetaConfig) -> None:
    """Raises UserError where the skills do not fit the environment, or it declares no range to scale by."""
    for what in ("observation_size", "action_size"):
        known, offered = getattr(agent, what), getattr(environments, what)
        if known != offered:
            raise UserError(
                f"{config.env} has {what} {offered}, but the skills were learnt with {known}: "
                "take skills of the same robot and the same 'positions'"
            )
    if config.observation_scale == "range" and environments.center is None:
        raise UserError(f"{config.env} declares no range of observations: set observation_scale to none")


def schedule_of(config: MetaConfig) -> Schedule:
    """When a run evaluates, logs and writes checkpoints."""
    return Schedule(
        config.steps, config.evaluate_every, config.checkpoint_every, config.log_every, config.steps_per_call
    )


def run_stack(
    configs: Sequence[Mapping[str, Any]], place: Workplace, needs: Sequence[Mapping[str, Path]]
) -> list[dict[str, Any]]:
    """Train the controllers of runs that differ in their seeds and skills alone; what `run` returns of each, {} where
    it diverged.

    Raises:
        ValueError: the configurations differ in more than the seed, or a run that is needed holds several agents.
        UserError: the skills do not fit the environment, or the precision is not float32.
    """
    check_precision(place.execution)
    settings, seeds = MetaConfig.of(configs[0]), [int(config["seed"]) for config in configs]
    if any(MetaConfig.of(config) != settings for config in configs):
        raise ValueError("only runs that differ in their seeds alone can be stacked")
    agents = [load_agent(need["skills"])[0] for need in needs]
    if any(agent.members != 1 for agent in agents):
        raise ValueError("a meta-controller needs one agent of skills, not one for each of several tasks")
    agent = Agent.stack(agents).eval().requires_grad_(False)
    module = MetaController(agent, settings, seeds, place.execution).to(place.execution.device)
    untrained = module.evaluate()
    fit(module, place, schedule_of(settings))
    metrics: list[dict[str, Any]] = []
    for number, member in enumerate(place.members):
        metrics.append({})
        if member.diverged is None:
            weights = {name: tensor[number : number + 1] for name, tensor in module.network.state_dict().items()}
            save_weights(member, weights, WEIGHTS)
            write_json(member.path / SETTINGS, {"config": asdict(settings), "skills": module.skills})
            metrics[-1] = task_metrics(member.curves, untrained[number], settings.steps)
    return metrics


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train a meta-controller on one seed over the frozen skills of the run `needs["skills"]`, trained or not.

    {"task_return": mean return of the last evaluation's episodes; "return_area_third", "return_area": mean height of
    that curve over the first third of training and over all of it}. Leaves the controller's weights.
    """
    return run_stack([config], folder, [needs])[0]
