"""The LightningModule of a DIAYN run: collect, store, update (Algorithm 1); and the experiments' run functions.

One step is an action in each copy of the environment, its transitions stored, and `updates` updates. Everything random
of a range of steps is drawn before the first of them, from (seed, stream, step), so that a run resumes bit by bit from
its tensors: networks, buffer, p(z), the skills that act and the environments.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from common.capture import CudaCapture, StepGraph
from common.curves import Curves, read_rows
from common.errors import UserError
from common.random import Stream, seeded
from common.runs import Execution, Folder, Workplace
from common.trainer import Schedule, fit
from papers.diayn import artifacts, evaluation, measure
from papers.diayn.buffer import Batch, ReplayBuffer
from papers.diayn.config import Config, stack_shape
from papers.diayn.copies import Environments
from papers.diayn.environments import goals, make_environments
from papers.diayn.learner import Learner, Noise
from papers.diayn.networks import Agent, join_states, load_agent, save_agent, split_states
from papers.diayn.prior import SkillPrior, draw_skill
from papers.diayn.scaling import RunningScale


def seeds_of(config: Config, seed: int) -> list[int]:
    """The seed of each member of a run: one, or one for each of the 25 goals."""
    if config.tasks == "own":
        return [seed if config.draw == 0 else Stream(seed, f"draw {config.draw}").derived_seed()]
    return [Stream(seed, f"draw {config.draw}/goal").derived_seed(goal) for goal in range(len(goals()))]


def initial_learner(config: Config, seed: int, environments: Environments) -> Learner:
    """The learner of one member as its training begins."""
    size = environments.observation_size
    # An agent that learns the task reads its progress, skills never do.
    context = environments.context_size if config.reward == "task" else 0
    with seeded(Stream(seed, "initialisation")):
        agent = Agent(config, size + context, environments.action_size)
        if config.observation_scale == "range":
            if environments.center is None or environments.half_range is None:
                raise UserError(f"{config.env} declares no range of its observations: use observation_scale running")
            agent.center[..., :size] = environments.center.cpu()
            agent.scale[..., :size] = environments.half_range.cpu()
        return Learner(agent)


class Skills(pl.LightningModule):
    """R runs of one shape with M members each (M = 25 with tasks "goals", else 1), trained as one stack of S = R M.

    learners: of each member. tasks: [S, task size] or None. fixed: the skill that each member holds, int64 [S], or None
    where skills are drawn.
    """

    fixed: Tensor | None
    skill: Tensor

    def __init__(
        self,
        configs: Sequence[Config],
        seeds: Sequence[int],
        environments: Environments,
        learners: Sequence[Learner],
        fixed: Tensor | None,
        tasks: Tensor | None,
        execution: Execution,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.config, self.execution = configs[0], execution
        config, self.runs = configs[0], len(configs)
        self.seeds = [each for run, seed in zip(configs, seeds, strict=True) for each in seeds_of(run, seed)]
        self.environments, self.learner = environments, Learner.stack(learners)
        members, agent = len(self.seeds), self.learner.agent
        self.step, self.samples_per_step, self.tasks = 0, config.copies, tasks
        self.buffer = ReplayBuffer(
            members, min(config.buffer_size, config.steps * config.copies), agent.observation_size, agent.action_size
        )
        learned = [run.prior == "learned" for run in configs for _ in range(members // self.runs)]
        self.prior = SkillPrior(learned, config.skills, environments.horizon)
        # What was pre-trained keeps the scale that it was trained with.
        running = config.observation_scale == "running" and config.pretrained == "none"
        self.running = RunningScale(members, agent.observation_size) if running else None
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("skill", self.first_skills() if fixed is None else fixed[:, None].repeat(1, config.copies))

    @property
    def agent(self) -> Agent:
        """The agent of all members."""
        return self.learner.agent

    def first_skills(self) -> Tensor:
        """z of the first episodes, int64 [S, N]."""
        uniform = self._each(lambda seed: Stream(seed, "first skills").uniform(0, self.config.copies))
        return draw_skill(self.agent.prior, uniform)

    def _each(self, draw: Callable[[int], Tensor], dim: int = 0) -> Tensor:
        return torch.stack([draw(seed) for seed in self.seeds], dim)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One fused Adam."""
        return self.learner.optimizer()

    def on_fit_start(self) -> None:
        """On a GPU a whole update is one captured graph, and so is a whole step of our own environments."""
        captured = self.device.type == "cuda" and self.config.cuda_graph
        self.learn = StepGraph(self.update, CudaCapture(self.device) if captured else None)
        self.act = StepGraph(
            self.collect, CudaCapture(self.device) if captured and self.environments.device_side else None
        )
        self.learn_classifier = StepGraph(self.update_classifier, CudaCapture(self.device) if captured else None)

    # ------------------------------------------------------------ what is random

    def draw(self, steps: range) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draws of the collection [T, ...] and of the updates [T, updates, ...] of `steps`."""
        config, noise_size, device = self.config, self.agent.noise_size, self.device
        numbers = torch.arange(steps.start, steps.stop, device=device)
        copies, updates, batch = config.copies, config.updates, config.batch_size

        def normal(name: str, *shape: int) -> Tensor:
            return self._each(lambda seed: Stream(seed, name, device).normal(numbers, shape), 1)

        collection = {
            "noise": normal("action", copies, noise_size),
            "skill": self._each(lambda seed: Stream(seed, "skill", device).uniform(numbers, copies), 1),
            "position": self.buffer.positions(numbers, copies),
            **self.environments.draws(steps),
        }
        filled = self.buffer.filled(numbers, copies)[:, None, None, None]
        batches = updates * config.classifier_updates

        def index(seed: int) -> Tensor:
            bits = Stream(seed, "replay", device).bits(numbers, batches * batch)
            # The upper 31 of 64 bits; uniform below `filled` up to a bias of filled / 2^31.
            return (((bits >> 33) & 0x7FFFFFFF).view(len(steps), batches, batch) * filled[..., 0]) >> 31

        shape = (updates, batch, noise_size)
        noise = {name: normal(f"update/{name}", *shape).transpose(1, 2) for name in ("action", "next_action")}
        return collection, {"index": self._each(index, 2), **noise}

    # ------------------------------------------------------------ one step

    @torch.no_grad()
    def collect(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An action in every copy of the environment; {"task_reward": mean [S]}. A transition ends with the state that
        the episode reached, and its skill is the one that acted, also where the next episode begins at once."""
        observation = evaluation.agent_input(self.agent, self.environments)
        action = self.agent.act(observation, self.skill, draws["noise"])
        outcome = self.environments.step(action, draws)
        reached = outcome.observation
        if reached.shape != observation.shape:
            reached = torch.cat([reached, outcome.context], -1)
        transition = Batch(observation, action, self.skill, outcome.reward, outcome.terminated, reached)
        self.buffer.add(draws["position"], transition)
        if self.prior.any:
            following = self.config.classifier_input == "next"
            self.prior.add(self.agent.log_q(reached if following else observation), self.skill)
        if self.running is not None:
            self.running.add(observation, self.agent.center, self.agent.scale)
        if self.fixed is None:
            drawn = draw_skill(self.agent.prior, draws["skill"])
            changes = outcome.ended if self.config.skill_change == "episode" else torch.zeros_like(outcome.ended)
            self.skill.copy_(torch.where(changes, drawn, self.skill))
        return {"task_reward": outcome.reward.mean(-1)}

    def update(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One update of every network."""
        return self.learner.update(self.buffer.read(draws["index"]), Noise(draws["action"], draws["next_action"]))

    def update_classifier(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step of the classifier alone."""
        self.learner.update_classifier(self.buffer.read(draws["index"]))
        return {}

    @torch.no_grad()
    def end_epoch(self, uniform: Tensor) -> None:
        """Every `epoch_steps` environment steps p(z) is learnt and, as in the official code, z may change."""
        if self.prior.any:
            self.prior.update(self.agent.prior)
        if self.config.skill_change == "epoch" and self.fixed is None:
            self.skill.copy_(draw_skill(self.agent.prior, uniform))

    def training_step(self, bounds: tuple[int, int]) -> dict[str, Tensor]:
        """The steps range(*bounds); of the last one the losses, the batch's mean reward and the mean task reward."""
        config, steps = self.config, range(*bounds)
        collection, updates = self.draw(steps)
        outputs: dict[str, Tensor] = {}
        extra = config.classifier_updates - 1
        for i, step in enumerate(steps):
            collected = self.act({name: tensor[i] for name, tensor in collection.items()})
            before, after = step * config.copies, (step + 1) * config.copies
            if after // config.epoch_steps > before // config.epoch_steps:
                self.end_epoch(collection["skill"][i])
            if after < config.learning_starts:
                outputs = collected
                continue
            for j in range(config.updates):
                index = updates["index"][i, j * (extra + 1) : (j + 1) * (extra + 1)]
                for k in range(extra):
                    self.learn_classifier({"index": index[k]})
                noise = {name: updates[name][i, j] for name in ("action", "next_action")}
                outputs = {**self.learn({"index": index[extra], **noise}), **collected}
        return {name: tensor.view(self.runs, -1).mean(1) for name, tensor in outputs.items()}

    # ------------------------------------------------------------ evaluation

    @torch.no_grad()
    def evaluate(self) -> list[dict[str, float]]:
        """Of each run, on episodes of its own: `evaluation.evaluate_skills`, or the mean return over its tasks."""
        step, config = int(self.step), self.config
        if config.reward == "skills":
            return evaluation.evaluate_skills(self.agent, config, self.seeds, step, self.device)
        skill = self.skill[:, 0]
        found = evaluation.evaluate_task(self.agent, config, self.seeds, step, self.device, self.tasks, skill)
        means = [value.view(self.runs, -1).mean(1).tolist() for value in found.values()]
        return [dict(zip(found, row, strict=True)) for row in zip(*means, strict=True)]


# ---------------------------------------------------------------- run functions


def starting_point(
    config: Config, seeds: Sequence[int], environments: Environments, needs: Mapping[str, Path], seed: int
) -> tuple[list[Learner], Tensor | None]:
    """The learners of a run's members, and the skills that they hold fixed (None where skills are drawn).

    With `pretrained`, the policy (and the critics) of the run that is needed as "skills", and of its skills the one
    that earns most at each task (Sec. 4.2.1). UserError where that run's networks have other shapes.
    """
    learners = [initial_learner(config, each, environments) for each in seeds]
    if config.reward == "skills":
        return learners, None
    fixed = torch.zeros(len(seeds), dtype=torch.int64)
    if config.pretrained == "none":
        return learners, fixed
    trained, its, _ = load_agent(needs["skills"])
    for name in ("skills", "width", "variant", "components", "observation_scale"):
        if getattr(its, name) != getattr(config, name):
            raise UserError(f"what is fine-tuned has {name} {getattr(config, name)}, its skills {getattr(its, name)}")
    for name in ("observation_size", "action_size"):
        if getattr(trained, name) != getattr(learners[0].agent, name):
            raise UserError(f"the skills to fine-tune were learnt in another environment: its {name} differs")
    if config.tasks == "goals":
        fixed = measure.best_skills_for_goals(trained, its, seed, "cpu")
    else:
        fixed[:] = measure.best_skill_for_task(trained, its, seed, "cpu", config.evaluation_rollouts)
    for learner in learners:
        learner.agent.policy.load_state_dict(trained.policy.state_dict())
        for name in ("center", "scale"):
            getattr(learner.agent, name).copy_(getattr(trained, name))
        if config.pretrained == "all":
            learner.load_critics(trained)
    return learners, fixed


def check_precision(execution: Execution) -> None:
    """Raises UserError for anything but float32: updates are a few small products whose differences matter."""
    if execution.precision != "float32":
        raise UserError(f"DIAYN trains in float32, not {execution.precision}: leave out --precision")


def build(
    configs: Sequence[Config], seeds: Sequence[int], needs: Sequence[Mapping[str, Path]], execution: Execution
) -> Skills:
    """The module of a stack of runs as their training begins."""
    config = configs[0]
    check_precision(execution)
    if any(len(each) != len(seeds_of(config, 0)) for each in map(seeds_of, configs, seeds)):
        raise ValueError("runs of a stack have equally many members")
    members = [each for run, seed in zip(configs, seeds, strict=True) for each in seeds_of(run, seed)]
    tasks = goals().repeat(len(configs), 1) if config.tasks == "goals" else None
    environments = make_environments(
        config, members, config.copies, execution.device, tasks=tasks, threads=execution.threads
    )
    learners: list[Learner] = []
    fixed: list[Tensor] = []
    for run, seed, need in zip(configs, seeds, needs, strict=True):
        found, skills = starting_point(run, seeds_of(run, seed), environments, need, seed)
        learners += found
        fixed += [] if skills is None else [skills]
    return Skills(configs, seeds, environments, learners, torch.cat(fixed) if fixed else None, tasks, execution)


def schedule_of(config: Config) -> Schedule:
    """When a run evaluates, logs and writes checkpoints."""
    return Schedule(
        config.steps, config.evaluate_every, config.checkpoint_every, config.log_every, config.steps_per_call
    )


UNTRAINED = ("return_std", "return_range", "length_max", "coverage", "displacement", "accuracy")
"""Metrics that are also reported of the untrained skills."""


def metrics_of(config: Config, curves: Curves, untrained: Mapping[str, float]) -> dict[str, float]:
    """What a run returns, from its curves and from the evaluation before training."""
    if config.reward == "task":
        return task_metrics(curves, untrained, config.steps)
    ends = _evaluations(curves)
    last = {name: values[-1][1] for name, values in ends.items() if "_skill_" not in name}
    found = {f"{name}_untrained": untrained[name] for name in UNTRAINED if name in untrained}
    information = ends["mutual_information"]
    found["mutual_information_half"] = min(information, key=lambda pair: abs(pair[0] - config.steps / 2))[1]
    if "solved_skills" in ends:
        found["solved_ever"] = float(max(value for _, value in ends["solved_skills"]) >= 1)
    return {**last, **found}


def _evaluations(curves: Curves) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every evaluation, by name."""
    curves.sync()
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(curves.path):
        if not row["name"].startswith("train_"):
            found.setdefault(row["name"], []).append((int(row["step"]), float(row["value"])))
    return found


def task_metrics(curves: Curves, untrained: Mapping[str, float], steps: int) -> dict[str, float]:
    """What a run of so many steps returns that learnt a task, from its curves and from the evaluation before training:
    the values of the last evaluation, and mean heights of the curve of returns, which begins untrained at step 0."""
    ends = _evaluations(curves)
    returns = [(0, untrained["task_return"]), *ends["task_return"]]
    last = {name: values[-1][1] for name, values in ends.items()}
    return {**last, "return_area": area(returns, steps), "return_area_third": area(returns, steps / 3)}


def area(points: Sequence[tuple[int, float]], end: float) -> float:
    """Mean height, from 0 to `end`, of the line through (step, value) points that begin at step 0."""
    total, (before, height) = 0.0, points[0]
    for step, value in points[1:]:
        if before >= end:
            break
        stop = min(step, end)
        at_stop = height + (value - height) * (stop - before) / (step - before)
        total += (stop - before) * (height + at_stop) / 2
        before, height = step, value
    return total / min(end, points[-1][0])


def run_stack(
    configs: Sequence[Mapping[str, Any]], job: Workplace, needs: Sequence[Mapping[str, Path]]
) -> list[dict[str, Any]]:
    """Train runs that differ in seed, alpha, prior and draw alone as one stack; what `run` returns of each, {} where it
    diverged. Raises ValueError for other differences."""
    settings, seeds = [Config.of(config) for config in configs], [int(config["seed"]) for config in configs]
    if len({stack_shape(asdict(each)) for each in settings}) > 1:
        raise ValueError("runs of a stack differ in alpha, prior, subtract_prior, draw and seed alone")
    module = build(settings, seeds, needs, job.execution).to(job.execution.device)
    untrained = module.evaluate()
    fit(module, job, schedule_of(settings[0]))
    members = len(module.seeds) // len(settings)
    states = split_states(module.agent.state_dict(), len(module.seeds))
    metrics: list[dict[str, Any]] = []
    for number, (config, member, before) in enumerate(zip(settings, job.members, untrained, strict=True)):
        metrics.append({})
        if member.diverged is not None:
            continue
        agent = Agent(config, module.agent.observation_size, module.agent.action_size, members)
        own = slice(number * members, (number + 1) * members)
        agent.load_state_dict(join_states(states[own], [1] * members))
        save_agent(agent, member.path, skill=module.skill[own, 0].tolist() if module.fixed is not None else None)
        artifacts.save(agent.eval(), config, member, before)
        metrics[-1] = metrics_of(config, member.curves, before)
    return metrics


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train one run; leaves its agent, and what the pictures are drawn from.

    With the reward "skills" the metrics of `evaluation.evaluate_skills` at the end, those of `UNTRAINED` before,
    "mutual_information_half" (in the middle) and "solved_ever" (1 if some evaluation found a skill that solves the
    task); with "task" "task_return", "return_area" and "return_area_third" (means of the curve over all, and over the
    first third, of training).
    """
    return run_stack([config], folder, [needs])[0]
