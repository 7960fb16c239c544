"""Single games, one class each, with the same methods: ALE's Atari games, and `Catch`, which needs nothing.

    num_actions: int              actions 0..num_actions-1
    fire: int | None              the action that some games want before they start moving
    reset(episode) -> frame       begin game number `episode` (0, 1, ...); what is random in it follows from the number
    act(action, frames) -> Outcome
    state() -> tensor, restore(tensor)   everything that decides how the game goes on
    frame_shape: (height, width) of a frame

A frame is a grey uint8 array [height, width].
"""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.random import Stream

NOOP = 0
Frame = np.ndarray


class Outcome(NamedTuple):
    """What an action brought: reward as the game gives it; over: the game ended; life_lost: and it goes on."""

    frame: Frame
    reward: float
    over: bool
    life_lost: bool = False


class Game(Protocol):
    """See the module's docstring."""

    num_actions: int
    fire: int | None
    frame_shape: tuple[int, int]

    def reset(self, episode: int) -> Frame: ...
    def act(self, action: int, frames: int) -> Outcome: ...
    def state(self) -> Tensor: ...
    def restore(self, state: Tensor) -> None: ...


class Catch:
    """Balls fall one after the other from random columns; a paddle at the bottom goes left, stays or goes right.

    84x84 pixels in 7x7 cells of 12. A ball falls one cell a frame and brings 1 when it is caught and -1 when not; five
    balls are a game, so returns lie in [-5, 5]. Where one starts is a function of (seed, environment, episode, ball).
    """

    num_actions = 3
    fire = None
    frame_shape = (84, 84)
    CELLS, CELL, BALLS = 7, 12, 5

    def __init__(self, seed: int, environment: int):
        self._stream = Stream(seed, f"catch {environment}")
        self.reset(0)

    def reset(self, episode: int) -> Frame:
        """Begin a game with the paddle in the middle."""
        self._episode, self._done, self._row, self._paddle = episode, 0, 0, self.CELLS // 2
        self._draw()
        return self._frame()

    def _draw(self) -> None:
        self._columns = self._stream.integers(self._episode, self.BALLS, self.CELLS).tolist()

    def act(self, action: int, frames: int) -> Outcome:
        """Hold the action for some frames (fewer where the game ends)."""
        reward = 0.0
        for _ in range(frames):
            self._paddle = min(max(self._paddle + action - 1, 0), self.CELLS - 1)
            self._row += 1
            if self._row == self.CELLS - 1:
                reward += 1.0 if self._columns[self._done] == self._paddle else -1.0
                self._done += 1
                if self._done == self.BALLS:
                    return Outcome(self._frame(), reward, True)
                self._row = 0
        return Outcome(self._frame(), reward, False)

    def _frame(self) -> Frame:
        cells = np.zeros((self.CELLS, self.CELLS), np.uint8)
        cells[-1, self._paddle] = 128
        cells[self._row, self._columns[min(self._done, self.BALLS - 1)]] = 255
        return cells.repeat(self.CELL, 0).repeat(self.CELL, 1)

    def state(self) -> Tensor:
        """int64 [4]: episode, balls that are done, row of the ball, column of the paddle."""
        return torch.tensor([self._episode, self._done, self._row, self._paddle])

    def restore(self, state: Tensor) -> None:
        """Go on from a `state`."""
        self._episode, self._done, self._row, self._paddle = state.tolist()
        self._draw()


class Atari:
    """One Atari 2600 game in ALE without sticky actions: what is random in it are the idle frames that begin it.

    A frame is the pixelwise maximum of the last two emulator frames of an action, since sprites flicker.
    Raises UserError where ale-py is not installed.
    """

    frame_shape = (210, 160)

    def __init__(self, name: str, seed: int, environment: int, no_ops: int = 30):
        try:
            from ale_py import ALEInterface, ALEState, LoggerMode, roms
        except ImportError:
            raise UserError(
                f"{name} needs the Atari emulator: pip install 'executable-papers[atari]' (it brings ale-py)"
            ) from None
        self._state_of = ALEState
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self._ale = ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("random_seed", Stream(seed, f"emulator {environment}").derived_seed() & 0x7FFFFFFF)
        self._ale.loadROM(roms.get_rom_path(name))
        self._actions = self._ale.getMinimalActionSet()
        self.num_actions = len(self._actions)
        names = [action.name for action in self._actions]
        self.fire = names.index("FIRE") if "FIRE" in names and len(names) >= 3 else None
        self._no_ops = Stream(seed, f"no-ops {environment}"), no_ops
        self._screens = [np.zeros(self._ale.getScreenDims(), np.uint8) for _ in range(2)]
        self.frame_shape = self._screens[0].shape

    def reset(self, episode: int) -> Frame:
        """Begin a game with 1 to `no_ops` idle frames (one where no_ops is 0)."""
        self._ale.reset_game()
        stream, most = self._no_ops
        idle = 1 + int(stream.integers(episode, 1, most)) if most else 1
        for _ in range(idle):
            self._ale.act(self._actions[NOOP])
            if self._ale.game_over():
                self._ale.reset_game()
        self._ale.getScreenGrayscale(self._screens[0])
        return self._screens[0].copy()

    def act(self, action: int, frames: int) -> Outcome:
        """Hold the action for some frames (fewer where the game ends)."""
        ale, screens = self._ale, self._screens
        lives, reward, seen = ale.lives(), 0.0, 0
        for i in range(frames):
            reward += ale.act(self._actions[action])
            over = ale.game_over()
            if i >= frames - 2 or over:
                ale.getScreenGrayscale(screens[seen % 2])
                seen += 1
            if over:
                break
        frame = np.maximum(*screens) if seen > 1 else screens[0].copy()
        # Some games show 0 lives for a while before they are over.
        return Outcome(frame, reward, over, 0 < ale.lives() < lives)

    def state(self) -> Tensor:
        """The emulator, uint8 [n]; the screen is not in it and comes with the next action."""
        return torch.frombuffer(bytearray(self._ale.cloneState(include_rng=True).serialize()), dtype=torch.uint8)

    def restore(self, state: Tensor) -> None:
        """Go on from a `state` of the same game."""
        self._ale.restoreState(self._state_of(state.numpy().tobytes()))
