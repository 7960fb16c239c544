"""Several copies of a game side by side, with the preprocessing that Atari results are compared under.

Frames in grey, 84x84 by averaging areas, the last four stacked; rewards clipped to their sign; a lost life ends an
episode for the learner, while the score is the unclipped return of whole games. All of it in this process: the state
of every game can be saved, so a killed run goes on bit by bit.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from papers.coordconv.atari.config import CATCH, Config
from papers.coordconv.atari.games import NOOP, Atari, Catch, Frame, Game

SIZE, STACKED = 84, 4


def area_weights(before: int, after: int) -> Tensor:
    """The matrix [after, before] that averages `before` pixels in `after` equal areas, fractions of pixels included."""
    edges = torch.linspace(0, before, after + 1, dtype=torch.float64)
    pixels = torch.arange(before, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (overlap.clamp(min=0) * (after / before)).float()


def build_game(config: Config, seed: int, environment: int) -> Game:
    """Game number `environment` of a run; UserError where the emulator is not installed."""
    if config.game == CATCH:
        return Catch(seed, environment)
    return Atari(config.game, seed, environment, config.no_ops)


class _Advance(NamedTuple):
    """What one environment did. done: an episode ended and the frame is the next one's first. finished: the return of
    a whole game that ended."""

    frame: Frame
    reward: float
    done: bool
    finished: float | None


class Environments:
    """`config.num_envs` games of one seed.

    Attributes:
        observations: uint8 [E, 4, 84, 84] on the device, oldest frame first; zero where an episode has no frame yet.
        finished: unclipped returns of the last `score_episodes` games that ended.
        games_played: how many have ended.
    """

    def __init__(self, config: Config, seed: int, device: torch.device | str = "cpu"):
        self.config = config
        self.games = [build_game(config, seed, i) for i in range(config.num_envs)]
        self.num_actions = self.games[0].num_actions
        self.finished: list[float] = []
        self.games_played = 0
        self._episodes = [0] * config.num_envs
        self._returns = [0.0] * config.num_envs
        self._frames = [0] * config.num_envs
        self._pool = ThreadPoolExecutor(config.env_threads) if config.env_threads > 1 else None
        height, width = self.games[0].frame_shape
        self._rows, self._columns = area_weights(height, SIZE), area_weights(width, SIZE).T
        self.observations = torch.zeros(config.num_envs, STACKED, SIZE, SIZE, dtype=torch.uint8)
        self.observations[:, -1] = self._shrink([self._begin(i) for i in range(config.num_envs)])
        self.to(device)

    def to(self, device: torch.device | str) -> None:
        """Move what is computed on the device."""
        self.observations = self.observations.to(device)
        self._rows, self._columns = self._rows.to(device), self._columns.to(device)

    def step(self, actions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One action in each environment: rewards for the learner and whether an episode ended, float32 [E] each."""
        numbers = range(len(self.games))
        advances = list((self._pool.map if self._pool else map)(self._advance, numbers, actions))
        device = self.observations.device
        for score in (advance.finished for advance in advances if advance.finished is not None):
            self.finished = [*self.finished, score][-self.config.score_episodes :]
            self.games_played += 1
        outcomes = np.array([(advance.reward, advance.done) for advance in advances], np.float32)
        rewards, dones = torch.from_numpy(outcomes).to(device).unbind(1)
        older = torch.where(dones[:, None, None, None] > 0, 0, self.observations[:, 1:])
        newest = self._shrink([advance.frame for advance in advances])
        self.observations = torch.cat([older, newest[:, None]], 1)
        return rewards.sign() if self.config.clip_rewards else rewards, dones

    def _begin(self, i: int) -> Frame:
        """Begin the next game of environment i."""
        game = self.games[i]
        self._returns[i], self._frames[i] = 0.0, 0
        frame = game.reset(self._episodes[i])
        self._episodes[i] += 1
        return frame if game.fire is None else game.act(game.fire, self.config.frame_skip).frame

    def _advance(self, i: int, action: int) -> _Advance:
        game, config = self.games[i], self.config
        frame, reward, over, life_lost = game.act(action, config.frame_skip)
        self._returns[i] += reward
        self._frames[i] += config.frame_skip
        over = over or self._frames[i] >= config.max_frames
        finished = self._returns[i] if over else None
        if not over and life_lost and config.episodic_life:
            # The next life begins as a game does, without idle frames.
            again = game.act(NOOP if game.fire is None else game.fire, config.frame_skip)
            self._returns[i] += again.reward
            frame, over = again.frame, again.over
            finished = self._returns[i] if over else None
        if over:
            frame = self._begin(i)
        return _Advance(frame, reward, over or (life_lost and config.episodic_life), finished)

    def _shrink(self, frames: Sequence[Frame]) -> Tensor:
        """uint8 [E, 84, 84] on the device."""
        images = torch.from_numpy(np.stack(frames)).to(self._rows.device)
        if images.shape[1:] == (SIZE, SIZE):
            return images
        return (self._rows @ images.float() @ self._columns).round().to(torch.uint8)

    def score(self) -> float:
        """Mean return of the last games that ended; of the ones going on as far as they are, where none has."""
        returns = self.finished or self._returns
        return sum(returns) / len(returns)

    def state(self) -> dict[str, Any]:
        """Tensors and primitives from which `restore` goes on."""
        return {
            "games": [game.state() for game in self.games],
            "observations": self.observations,
            "episodes": list(self._episodes),
            "returns": list(self._returns),
            "frames": list(self._frames),
            "finished": list(self.finished),
            "games_played": self.games_played,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of the same settings."""
        for game, saved in zip(self.games, state["games"], strict=True):
            game.restore(saved)
        self.observations = state["observations"].to(self.observations.device)
        self._episodes, self._returns = list(state["episodes"]), list(state["returns"])
        self._frames, self.finished = list(state["frames"]), list(state["finished"])
        self.games_played = state["games_played"]
