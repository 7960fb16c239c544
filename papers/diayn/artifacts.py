"""What a finished run leaves for the pictures: episodes of every skill, and frames of some skills."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from common.files import atomic_path
from common.random import Stream
from common.runs import FIRST_CONFIRMING_SEED, Folder
from papers.diayn.config import Config
from papers.diayn.copies import Environments
from papers.diayn.dynamics import DYNAMICS
from papers.diayn.environments import make_environments
from papers.diayn.evaluation import action_noise, every_skill, trajectories
from papers.diayn.networks import Agent
from papers.diayn.simulators import make_drawable

SKILLS, UNTRAINED = "skills.npz", "untrained.npz"
EPISODES, STATES = 4, 200
"""Of each skill (one in environments of gymnasium), and how many states of an episode are kept, about."""
FILMED, FRAMES, PIXELS = 6, 5, 96
"""How many skills are filmed, how many frames of each are kept, and their largest side."""


def save(agent: Agent, config: Config, folder: Folder, untrained: Mapping[str, float] | None = None) -> None:
    """Write `artifacts/skills.npz` of a run that learnt skills, and `artifacts/untrained.npz` where `untrained`, the
    metrics before training, are given.

    untrained.npz, of every seed: returns [K], mean task returns of the untrained skills. skills.npz, only up to the
    first confirming seed, for pictures show one run of each method: what `episodes` and `key_frames` return.
    """
    if config.reward != "skills":
        return
    if untrained is not None:
        _write(folder, UNTRAINED, returns=[untrained[f"return_skill_{skill:02d}"] for skill in range(config.skills)])
    if folder.spec.seed <= FIRST_CONFIRMING_SEED:
        found = episodes(agent, config, folder.spec.seed)
        _write(folder, SKILLS, **found, **key_frames(agent, config, folder.spec.seed, found["returns"].mean(1)))


def episodes(agent: Agent, config: Config, seed: int) -> dict[str, Any]:
    """Stochastic episodes of every skill of one agent, K skills and n episodes.

    trajectories: float32 [K, n, T', 2], the place in the plane (plane: True) or else two `entries` of the observation,
    at `steps` int [T'], with s_0 and s_T; alive: bool [K, n, T'], whether a state belongs to the episode, its last one
    included; returns, lengths: [K, n]; prior: [K]; extent: [2, 2] of the plane, or empty.
    """
    number = EPISODES if config.env in DYNAMICS else 1
    device = agent.prior.device
    played = trajectories(agent, config, [seed], "artifacts", device, every_skill(agent, config, number, device))
    environments = make_environments(config, [seed], 1, device)
    entries, last = _entries(config, environments), len(played.reward)
    every = -(-last // STATES)
    steps = np.array([*range(0, last, every), last])
    length = _by_skill(played.alive.sum(0)[0], config)
    # A kept state is the episode's own when the one before it was not yet the end.
    alive = np.concatenate([np.full((*length.shape, 1), True), steps[:-1] < length[..., None]], -1)
    extent = environments.extent if environments.position is not None else None
    return {
        "trajectories": _by_skill(played.observation[steps, 0][..., entries].transpose(0, 1), config),
        "alive": alive,
        "steps": steps,
        "entries": entries,
        "plane": environments.position is not None,
        "extent": np.array(extent or (), np.float32),
        "returns": _by_skill(played.reward.sum(0)[0], config),
        "lengths": length,
        "prior": agent.prior[0].cpu().numpy(),
    }


def _horizon(config: Config) -> int:
    return config.evaluation_horizon or config.horizon


def _entries(config: Config, environments: Environments) -> list[int]:
    """Which two entries of the observation are kept: the place, what the classifier reads, or the first ones."""
    if environments.position is not None:
        return list(environments.position)
    chosen = [*config.features, *range(environments.observation_size)][:2]
    return chosen if len(chosen) == 2 else chosen * 2


def _by_skill(values: Tensor, config: Config) -> np.ndarray:
    """[K * n, ...] -> [K, n, ...]."""
    return values.unflatten(0, (config.skills, -1)).cpu().numpy()


def key_frames(agent: Agent, config: Config, seed: int, returns: np.ndarray) -> dict[str, Any]:
    """Frames of an episode of some skills, evenly chosen between the lowest and the highest of `returns` [K].

    frames: uint8 [skills, FRAMES, h, w, 3], evenly spaced from the first step to the last; frame_skills: int [skills];
    frame_steps: int [skills, FRAMES]; frame_returns: [skills], of these episodes, rising. Empty where a place in the
    plane says as much, and where the environment cannot be drawn on this machine, for whatever reason.
    """
    if config.env in DYNAMICS and DYNAMICS[config.env].position is not None:
        return {}
    places = np.unique(np.linspace(0, config.skills - 1, FILMED).round().astype(int))
    chosen = np.argsort(returns, kind="stable")[places]
    try:
        with _offscreen():
            env = make_drawable(config, _horizon(config))
            if env is None:
                return {}
            follow(env)
            try:
                films = [_film(env, agent, int(skill), seed) for skill in chosen]
            finally:
                env.close()
    except Exception:  # Drivers and environments fail in many ways; none of them is worth a run's results.
        return {}
    frames, steps, earned = (np.stack(parts) for parts in zip(*films, strict=True))
    order = np.argsort(earned, kind="stable")
    return {
        "frames": frames[order],
        "frame_skills": chosen[order],
        "frame_steps": steps[order],
        "frame_returns": earned[order],
    }


def follow(env: gymnasium.Env) -> None:
    """Let the camera of a MuJoCo robot go with it, where its model has one that does; others stand still."""
    model: Any = getattr(env.unwrapped, "model", None)
    renderer: Any = getattr(env.unwrapped, "mujoco_renderer", None)
    names = [] if model is None or renderer is None else [model.camera(i).name for i in range(model.ncam)]
    if "track" in names:
        renderer.camera_id = names.index("track")


@torch.no_grad()
def _film(env: gymnasium.Env, agent: Agent, skill: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(frames, their steps, return) of one stochastic episode, which is played once to know its length, and again."""
    device = agent.prior.device
    noise = action_noise(agent, [seed], f"frames/{skill}", 1, device)
    start = Stream(seed, f"frames/{skill}").derived_seed() >> 32  # gymnasium takes seeds below 2^31
    space: Any = env.action_space
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    observation, _ = env.reset(seed=start)
    chosen = torch.full((1, 1), skill, device=device)
    actions: list[np.ndarray] = []
    earned, ended = 0.0, False
    while not ended:
        seen = torch.as_tensor(np.asarray(observation, np.float32), device=device).view(1, 1, -1)
        action = agent.act(seen, chosen, noise(len(actions))).cpu().double().numpy().reshape(low.shape)
        own = low + (action + 1) / 2 * (high - low)
        actions.append(np.clip(own, low, high).astype(space.dtype))
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        earned, ended = earned + float(reward), bool(terminated or truncated)
    steps = np.linspace(0, len(actions), FRAMES).round().astype(int)
    env.reset(seed=start)
    frames = {0: _small(env.render())}
    for step, action in enumerate(actions, 1):
        env.step(action)
        if step in steps:
            frames[step] = _small(env.render())
    return np.stack([frames[step] for step in steps]), steps, earned


def _small(image: Any) -> np.ndarray:
    """A frame uint8 [h, w, 3] with sides of at most PIXELS: means over squares."""
    frame = np.asarray(image, np.float32)
    side = -(-max(frame.shape[:2]) // PIXELS)
    height, width = (size // side for size in frame.shape[:2])
    squares = frame[: height * side, : width * side, :3].reshape(height, side, width, side, 3)
    return squares.mean((1, 3)).round().astype(np.uint8)


@contextmanager
def _offscreen() -> Iterator[None]:
    """On Linux without a display gymnasium would first try a library that needs one, and fail."""
    if not sys.platform.startswith("linux") or "DISPLAY" in os.environ or "MUJOCO_GL" in os.environ:
        yield
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]


def _write(folder: Folder, name: str, **arrays: Any) -> None:
    with atomic_path(folder.artifact(name)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
