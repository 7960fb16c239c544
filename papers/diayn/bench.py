"""Speed of updates, environments and whole training steps, measured by `make bench PAPER=diayn`.

The plain side of an update is `plain.py`: a network and an optimiser for every function. The plain side of the
environments is gymnasium's own synchronous vector environment over single ones: ours as it is registered, and one in a
few lines of NumPy as it would be written by hand. The plain side of a training step is both, in a loop of the usual
kind. `floor` is what the matrix products of the fast update would take at the best speed measured here.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from common.bench import Row, Setting, compare
from common.capture import WARM_UP_CALLS, CudaCapture, StepGraph
from common.random import Stream, seeded
from common.runs import Execution
from common.timing import seconds
from papers.diayn import registration
from papers.diayn.buffer import Batch
from papers.diayn.config import Config
from papers.diayn.environments import make_environments
from papers.diayn.learner import Learner, Noise
from papers.diayn.module import Skills, build
from papers.diayn.networks import Agent
from papers.diayn.plain import PlainLearner, difference, plain_of

BOX = "DIAYN/Box-v0"
BOX_CONFIG = Config(
    env=BOX, copies=16, horizon=100, skills=6, width=64, learning_rate=1e-3, learning_starts=1000, steps=20_000,
    buffer_size=100_000,
)  # fmt: skip
SIZES: dict[str, tuple[Config, int, int]] = {
    # Settings, observation size, action size.
    "box, 64x64": (BOX_CONFIG, 2, 2),
    "HalfCheetah, 64x64": (Config(skills=20, width=64), 17, 6),
    "HalfCheetah, 300x300": (Config(skills=20), 17, 6),
}
COPIES = {16: 5, 80: 5, 256: 3, 1024: 3}
"""Copies of the box and repeats of each measurement; 80 are 5 stacked runs of 16."""
EPISODE = 100


# ---------------------------------------------------------------- updates


def learner_of(config: Config, observation_size: int, action_size: int, members: int, device: str) -> Learner:
    """A stack of members with random weights, ready to learn."""
    with seeded(Stream(0, "initialisation")):
        learner = Learner(Agent(config, observation_size, action_size, members)).to(device)
    learner.optimizer()
    return learner


def random_batch(learner: Learner) -> tuple[Batch, Noise]:
    """Transitions and noise of one update of every member, with some terminations."""
    agent, config = learner.agent, learner.config
    stream, shape = Stream(0, "batch", learner.alpha.device), (learner.members, config.batch_size)
    count = learner.members * config.batch_size

    def normal(name: str, size: int) -> Tensor:
        return stream.child(name).normal(0, (*shape, size))

    skill = stream.child("skill").integers(0, count, config.skills).view(shape)
    reward, terminated = normal("reward", 1)[..., 0], stream.child("end").uniform(0, count).view(shape) < 0.1
    states = [normal(name, agent.observation_size) for name in ("state", "next")]
    batch = Batch(states[0], normal("action", agent.action_size).tanh(), skill, reward, terminated, states[1])
    return batch, Noise(normal("noise", agent.noise_size), normal("next noise", agent.noise_size))


def _of_member(batch: Batch, noise: Noise, member: int) -> tuple[Batch, Noise]:
    return Batch(*(tensor[member] for tensor in batch)), Noise(*(tensor[member] for tensor in noise))


def update_of(learner: Learner) -> Callable[[Batch, Noise], object]:
    """The learner's update; on a GPU as one captured graph, as training has it."""
    device = learner.alpha.device

    def update(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = Batch(*(inputs[name] for name in Batch._fields))
        return learner.update(batch, Noise(inputs["noise"], inputs["next_noise"]))

    step = StepGraph(update, CudaCapture(device) if device.type == "cuda" else None)

    def call(batch: Batch, noise: Noise) -> object:
        return step({**batch._asdict(), "noise": noise.action, "next_noise": noise.next_action})

    return call


def matrix_seconds(device: str, small: bool = False) -> float:
    """Seconds of one floating-point operation of a large float32 matrix product, at its best."""
    size = 64 if small else 4096 if device == "cuda" else 1024
    left, right = torch.ones(size, size, device=device), torch.ones(size, size, device=device)
    return min(seconds(lambda: left @ right, device) for _ in range(2 if small else 10)) / (2 * size**3)


def floor_of(learner: Learner, setting: Setting) -> float:
    """Microseconds per member that the update's matrix products take at the speed of large ones.

    They are counted in an update of a copy, so they are those without which there is no update.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        learner.update(*random_batch(learner))
    operations = counter.get_total_flops() / learner.members
    return float(f"{1e6 * operations * matrix_seconds(setting.execution.device, setting.small):.4g}")


def update_row(setting: Setting, case: str, config: Config, observation: int, action: int, members: int = 1) -> Row:
    """An update of every member, against as many plain ones; microseconds of one member's update."""
    device = setting.execution.device
    learner = learner_of(config, observation, action, members, device)
    plains = [plain_of(learner, member) for member in range(members)]
    batch, noise = random_batch(learner)
    alone = [_of_member(batch, noise, member) for member in range(members)]
    fast = update_of(learner)

    def plain() -> object:
        return [each.update(own, its) for each, (own, its) in zip(plains, alone, strict=True)]

    # One update each; on a GPU as many as it takes until one is a replay.
    for _ in range(WARM_UP_CALLS + 2 if device == "cuda" else 1):
        fast(batch, noise)
        plain()
    apart = max(difference(each, learner, member) for member, each in enumerate(plains))
    count = 1 if setting.small else 200 if device == "cuda" else max(1, 40 // members)
    return compare(
        setting,
        case,
        "us/update",
        lambda: [fast(batch, noise) for _ in range(count)],
        lambda: [plain() for _ in range(count)],
        apart,
        repeats=9,
        warm_up=2,
        per_call=count * members,
        floor=floor_of(learner_of(config, observation, action, members, device), setting),
    )


def update_rows(setting: Setting) -> Iterator[Row]:
    """Both variants at every size, and stacks of several seeds."""
    for variant, words in (("twin", "update"), ("v2018", "update v2018")):
        for name, (config, observation, action) in list(SIZES.items())[: 1 if setting.small else None]:
            chosen = replace(config, variant=variant)
            yield update_row(setting, f"{words}: {name}", chosen, observation, action)
    for members in (5, 16) if setting.execution.device == "cuda" else (5,):
        for name, (config, observation, action) in list(SIZES.items())[: 1 if setting.small else None]:
            yield update_row(setting, f"update, {members} seeds stacked: {name}", config, observation, action, members)


# ---------------------------------------------------------------- environments


class NumpyBox(gymnasium.Env[np.ndarray, np.ndarray]):
    """2-D navigation (spec 9.1) as one would write it for a single copy."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float32)
        self.state, self.elapsed = np.full(2, 0.5, np.float32), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """To the middle."""
        self.state, self.elapsed = np.full(2, 0.5, np.float32), 0
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One move."""
        self.state = np.clip(self.state + np.clip(action, -0.1, 0.1), 0.0, 1.0).astype(np.float32)
        self.elapsed += 1
        return self.state, 0.0, False, self.elapsed >= EPISODE, {}


def vector_of(make: Callable[[], gymnasium.Env], copies: int) -> SyncVectorEnv:
    """gymnasium's synchronous vector environment, started."""
    vector = SyncVectorEnv([make] * copies, autoreset_mode=AutoresetMode.NEXT_STEP)
    vector.reset(seed=0)
    return vector


@torch.no_grad()
def environment_row(setting: Setting, copies: int, by_hand: bool, repeats: int) -> Row:
    """Steps of the box, ours as tensors against gymnasium's; microseconds of one copy's step."""
    members = 5 if copies == 80 else 1
    device = setting.execution.device
    ours = make_environments(BOX_CONFIG, range(members), copies // members, device)
    vector = vector_of(NumpyBox if by_hand else partial(gymnasium.make, BOX, disable_env_checker=True), copies)
    uniform = Stream(0, "actions").uniform(torch.arange(EPISODE), copies * 2)
    actions = (2 * uniform - 1).view(EPISODE, members, copies // members, 2).to(device)
    # The registered environment takes actions in its own units.
    hosts = list((0.1 * actions).view(EPISODE, copies, 2).cpu().numpy())
    given = list(actions)
    graph = StepGraph(
        lambda inputs: {"observation": ours.step(inputs["action"], inputs).observation},
        CudaCapture(torch.device(device)) if device == "cuda" else None,
    )

    def fast(steps: int = EPISODE) -> Tensor:
        draws = ours.draws(range(steps))
        for step in range(steps):
            found = graph({"action": given[step], **{name: each[step] for name, each in draws.items()}})
        return found["observation"]

    def plain(steps: int = EPISODE) -> np.ndarray:
        for step in range(steps):
            observation = vector.step(hosts[step])[0]
        return observation

    apart = float((fast().cpu().view(copies, 2) - torch.from_numpy(plain().copy())).abs().max())
    steps = 2 if setting.small else EPISODE if copies < 1024 else 20
    words = "NumPy copies" if by_hand else "copies"
    found = compare(
        setting,
        f"env box, {copies} {words}",
        "us/step",
        lambda: fast(steps),
        lambda: plain(steps),
        apart,
        repeats=repeats,
        per_call=steps * copies,
    )
    vector.close()
    return found


# ---------------------------------------------------------------- a whole training step


class PlainLoop:
    """Collect, store, update as single-file implementations do: gymnasium's vector environment, a replay buffer of
    NumPy arrays on the host, a plain learner.

    It takes the random numbers of a module's streams and starts from its weights, so that both do the same training.
    """

    def __init__(self, module: Skills):
        self.module, self.config, self.device = module, module.config, module.device
        self.learner: PlainLearner = plain_of(module.learner)
        self.vector = SyncVectorEnv(
            [partial(gymnasium.make, self.config.env, disable_env_checker=True)] * self.config.copies,
            autoreset_mode=AutoresetMode.DISABLED,
        )
        self.observation = self.vector.reset(seed=0)[0].copy()
        self.skill = module.skill[0].cpu().numpy().copy()
        low, high = self.vector.single_action_space.low, self.vector.single_action_space.high  # type: ignore[attr-defined]
        self.low, self.span = low, high - low
        size = module.buffer.capacity
        self.rows = {
            "observation": np.zeros((size, *self.observation.shape[1:]), np.float32),
            "action": np.zeros((size, *low.shape), np.float32),
            "skill": np.zeros(size, np.int64),
            "reward": np.zeros(size, np.float32),
            "terminated": np.zeros(size, bool),
            "next_observation": np.zeros((size, *self.observation.shape[1:]), np.float32),
        }

    def act(self, noise: Tensor) -> np.ndarray:
        """Actions of all copies in [-1, 1]."""
        with torch.no_grad():
            observation, skill = (torch.from_numpy(each).to(self.device) for each in (self.observation, self.skill))
            return self.learner.squashed_gaussian(self.learner.augmented(observation, skill), noise)[0].cpu().numpy()

    def train(self, steps: range) -> None:
        """Steps that each take an action in every copy, and make one update once enough is stored."""
        collection, updates = self.module.draw(steps)
        for i, step in enumerate(steps):
            action = self.act(collection["noise"][i, 0])
            following, reward, terminated, truncated, _ = self.vector.step(
                (self.low + (action + 1) / 2 * self.span).astype(np.float32)
            )
            place = collection["position"][i].cpu().numpy()
            stored = (self.observation, action, self.skill, reward, terminated, following)
            for name, values in zip(Batch._fields, stored, strict=True):
                self.rows[name][place] = values
            self.observation, ended = following.copy(), terminated | truncated
            if ended.any():
                fresh = (collection["skill"][i, 0].cpu().numpy() * self.config.skills).astype(np.int64)
                self.skill = np.where(ended, fresh, self.skill)
                self.observation = self.vector.reset(options={"reset_mask": ended})[0].copy()
            if (step + 1) * self.config.copies >= self.config.learning_starts:
                index = updates["index"][i, 0, 0].cpu().numpy()
                read = {name: torch.from_numpy(each[index]).to(self.device) for name, each in self.rows.items()}
                noise = Noise(updates["action"][i, 0, 0], updates["next_action"][i, 0, 0])
                self.learner.update(Batch(**read), noise)


def module_of(config: Config, execution: Execution) -> Skills:
    """A module as training has it before its first step."""
    module = build([config], [0], [{}], execution).to(execution.device)
    module.configure_optimizers()
    module.on_fit_start()
    return module


def training_row(setting: Setting) -> Row:
    """A step of 16 copies of the box and one update, through the module, against a plain loop; both do the same
    training, so `equivalence` is of all parameters after their first ten updates."""
    config = BOX_CONFIG
    if setting.small:
        config = replace(config, copies=4, batch_size=8, learning_starts=16)
    module = module_of(config, setting.execution)
    loop = PlainLoop(module)
    collected = config.learning_starts // config.copies - 1
    at = collected + 10
    for begin, end in ((0, collected), (collected, at)):
        module.training_step((begin, end))
        loop.train(range(begin, end))
    apart = difference(loop.learner, module.learner)
    count = 1 if setting.small else 50
    done = {"fast": at, "plain": at}

    def steps(name: str) -> range:
        done[name] += count
        return range(done[name] - count, done[name])

    def fast() -> None:
        found = steps("fast")
        module.training_step((found.start, found.stop))

    return compare(
        setting, "training step", "us/step", fast, lambda: loop.train(steps("plain")), apart, 7, 1, per_call=count
    )


def rows(setting: Setting) -> Iterator[Row]:
    """Every case; a step of the box is too small a tensor for a second thread."""
    registration.register()
    yield from update_rows(setting)
    if setting.execution.threads == 1:
        for copies, repeats in list(COPIES.items())[: 2 if setting.small else None]:
            for by_hand in (False, True):
                yield environment_row(setting, copies, by_hand, repeats)
    yield training_row(setting)
