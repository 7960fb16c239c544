"""What `rollout` shows of skills: an episode filmed by the environment itself, and plots of where episodes lead."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common.files import write_bytes
from papers.diayn.config import Config
from papers.diayn.gallery import draw_ways, dress, legend_below, new_row, walls

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

    from papers.diayn.copies import Environments
    from papers.diayn.networks import Agent

SIZE = 240
"""Pixels of the longer side of a film's picture."""
MOST_FRAMES = 300
MOST_FPS = 25
KEY_FRAMES = 6
MOST_LINES = 8
"""So many entries of the observation are drawn as lines; more are an image."""
SEED_BOUND = 2**31
"""Seeds of gymnasium lie below it."""


class Episodes(NamedTuple):
    """The episodes of one skill.

    observation: [E, T+1, Do], as it was at the end where an episode is over; lengths: int [E]; returns [E]; terminated
    bool [E]; log_q: mean over states of log q(z|s) in nats; accuracy: share of states in which the classifier names
    this skill.
    """

    skill: int
    observation: np.ndarray
    lengths: np.ndarray
    returns: np.ndarray
    terminated: np.ndarray
    log_q: float
    accuracy: float

    @property
    def alive(self) -> np.ndarray:
        """bool [E, T+1]: which observations belong to the episode."""
        return np.arange(self.observation.shape[1]) <= self.lengths[:, None]


# ---------------------------------------------------------------- films


class Film(NamedTuple):
    """Pictures of one episode, and how many a second show it as fast as it is."""

    frames: "list[Image.Image]"
    fps: float

    def save_gif(self, path: Path) -> None:
        """An endless GIF."""
        first, *others = (frame.quantize(64) for frame in self.frames)
        # Viewers slow down what is shorter than 2 hundredths of a second.
        duration = max(20, round(1000 / self.fps))
        first.save(path, format="GIF", save_all=True, append_images=others, duration=duration, loop=0)

    def save_key_frames(self, path: Path) -> None:
        """Up to KEY_FRAMES frames side by side, the first and the last among them."""
        from PIL import Image

        chosen = np.unique(np.linspace(0, len(self.frames) - 1, KEY_FRAMES).round().astype(int))
        width, height = self.frames[0].size
        page = Image.new("RGB", (len(chosen) * (width + 2) - 2, height), "white")
        for place, number in enumerate(chosen):
            page.paste(self.frames[number], (place * (width + 2), 0))
        page.save(path, format="PNG")


class Camera:
    """Films skills in an environment that can render. reason: why it cannot, "" where it can."""

    def __init__(self, env: Any, reason: str, fps: int | None):
        self.env, self.reason = env, reason
        own = float((env.metadata if env is not None else {}).get("render_fps") or 30)
        self._every = max(1, -(-int(own) // MOST_FPS))
        self._fps = float(fps) if fps else own / self._every

    def film(
        self, agent: "Agent", skill: int, *, seed: int = 0, steps: int = 0, stochastic: bool = True
    ) -> Film | None:
        """One episode of a skill, its first MOST_FRAMES pictures; None where the environment cannot render.

        The agent is on the processor. It is an episode of its own, a function of the seed and the skill.
        """
        if self.env is None:
            return None
        import torch

        from common.random import Stream
        from papers.diayn.evaluation import action_noise

        noise = action_noise(agent, [seed], f"film/{skill}/action", 1, "cpu")
        low, high = self.env.action_space.low, self.env.action_space.high
        observation, _ = self.env.reset(seed=Stream(seed, f"film/{skill}").derived_seed() % SEED_BOUND)
        chosen, frames, step, ended = torch.tensor([[skill]]), [self._frame()], 0, False
        while not ended and len(frames) < MOST_FRAMES and (not steps or step < steps):
            seen = torch.from_numpy(np.asarray(observation, np.float32).reshape(1, 1, -1))
            action = agent.act(seen, chosen, noise(step) if stochastic else None).numpy().reshape(low.shape)
            own = np.clip(low + (action + 1) / 2 * (high - low), low, high).astype(low.dtype)
            observation, _, terminated, truncated, _ = self.env.step(own)
            step, ended = step + 1, terminated or truncated
            if step % self._every == 0 or ended:
                frames.append(self._frame())
        return Film(frames, self._fps)

    def _frame(self) -> "Image.Image":
        from PIL import Image

        picture = Image.fromarray(np.asarray(self.env.render(), np.uint8)).convert("RGB")
        picture.thumbnail((SIZE, SIZE))
        return picture


@contextmanager
def open_camera(config: Config, fps: int | None = None) -> Iterator[Camera]:
    """A camera for an environment. One that cannot render here, for whatever reason, gives a camera without films."""
    from papers.diayn.simulators import make_drawable

    env, reason = None, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            env = make_drawable(config, config.horizon)
            if env is None:
                reason = f"{config.env} has no render mode rgb_array"
            else:
                env.reset(seed=0)
                env.render()
        except Exception as error:  # drivers and environments have many families of errors
            cause = " ".join(str(error).split())[:160]
            reason = f"{config.env} cannot be rendered here ({type(error).__name__}: {cause})"
            if "OpenGL" in cause or "gl" in type(error).__module__.lower():
                reason += (
                    "; MuJoCo draws without a screen with MUJOCO_GL=egl or MUJOCO_GL=osmesa, where one is installed"
                )
            if env is not None:
                with suppress(Exception):  # what did not start need not know how to stop
                    env.close()
                env = None
        try:
            yield Camera(env, reason, fps)
        finally:
            if env is not None:
                env.close()


# ---------------------------------------------------------------- plots


def place_in(config: Config, environments: "Environments") -> tuple[int, ...]:
    """The entries of an observation in whose plane skills are drawn: the environment's place, or the two entries in
    which skills were made to differ; () for none."""
    if environments.position is not None:
        return environments.position
    return config.features if len(config.features) == 2 else ()


def _plane(shown: Sequence[Episodes], config: Config, environments: "Environments") -> tuple[np.ndarray, str, str]:
    """Where episodes are in a plane, [K, E, T+1, 2], and what its axes are: a place, else principal components."""
    states = np.stack([one.observation for one in shown])
    if place := place_in(config, environments):
        x, y = ("x", "y") if environments.position is not None else (f"observation {entry}" for entry in place)
        return states[..., list(place)], x, y
    if states.shape[-1] == 1:
        steps = np.broadcast_to(np.arange(states.shape[2])[:, None], states.shape)
        return np.concatenate([steps, states], -1), "step", "observation 0"
    flat = states.reshape(-1, states.shape[-1]).astype(np.float64)
    spread = flat.std(0)
    flat = (flat - flat.mean(0)) / np.where(spread > 1e-6, spread, 1)
    if flat.shape[1] == 2:
        return states, "observation 0", "observation 1"
    main = np.linalg.eigh(flat.T @ flat)[1][:, :-3:-1]
    # A direction has no sign of its own: that of its largest entry.
    main *= np.sign(np.take_along_axis(main, np.abs(main).argmax(0)[None], 0))
    return (flat @ main).reshape(*states.shape[:-1], 2), "principal component 1", "principal component 2"


def _frame_plane(axes: "Axes", config: Config, environments: "Environments", ways: np.ndarray) -> None:
    if environments.position is not None:
        walls(axes, config.env)
    if environments.position is None or environments.extent is None:
        low, high = ways.reshape(-1, 2).min(0), ways.reshape(-1, 2).max(0)
    else:
        (left, right), (bottom, top) = environments.extent
        low, high = np.array([left, bottom]), np.array([right, top])
    room = 0.03 * np.maximum(high - low, 1e-6)
    axes.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
    if environments.position is not None:
        axes.set_aspect("equal", adjustable="datalim" if environments.extent is None else "box")


def _save(figure: "Figure", path: Path) -> None:
    from common.report.plots import png

    write_bytes(path, png(figure, path.stem))


def plot_overview(shown: Sequence[Episodes], config: Config, environments: "Environments", path: Path) -> None:
    """All skills in one picture, a colour each: their ways, and the returns of their episodes."""
    from common.report.plots import HUES, INK, MUTED

    ways, x, y = _plane(shown, config, environments)
    figure, (left, right) = new_row(2, 3.6, 3.6, 0.55)
    dress(left, f"{config.env}: where skills go", x, y)
    _frame_plane(left, config, environments, ways)
    draw_ways(left, ways, np.stack([one.alive for one in shown]))
    for one, way in zip(shown, ways, strict=True):
        where = np.take_along_axis(way, one.lengths[:, None, None], 1).mean(0)[0]
        left.annotate(str(one.skill), where, fontsize=9, weight="bold", color=INK, zorder=5)
    dress(right, "return of each episode", "skill", "")
    for place, one in enumerate(shown):
        right.plot(np.full(len(one.returns), place), one.returns, "o", color=MUTED, markersize=3)
        right.plot(place, one.returns.mean(), "_", color=HUES[0], markersize=12, markeredgewidth=2)
    step = -(-len(shown) // 25)
    right.set_xticks(range(0, len(shown), step), [str(one.skill) for one in shown[::step]])
    right.set_xlim(-0.6, len(shown) - 0.4)
    _save(figure, path)


def plot_skill(
    number: int, shown: Sequence[Episodes], config: Config, environments: "Environments", path: Path
) -> None:
    """The skill shown[number]: its ways before the others', grey; without a plane, its observations over time."""
    from common.report.plots import GRID

    one = shown[number]
    title = f"skill {one.skill}: return {one.returns.mean():.4g}"
    if not place_in(config, environments):
        _plot_series(one, title, path)
        return
    ways, x, y = _plane(shown, config, environments)
    figure, (axes,) = new_row(1, 3.2, 3.2, 0.5)
    dress(axes, title, x, y)
    _frame_plane(axes, config, environments, ways)
    for others, other in zip(ways, shown, strict=True):
        for way, alive in zip(others, other.alive, strict=True):
            axes.plot(*way[alive].T, color=GRID, linewidth=0.8, zorder=1)
    draw_ways(axes, ways[number : number + 1], one.alive[None])
    _save(figure, path)


def _plot_series(one: Episodes, title: str, path: Path) -> None:
    from common.report.plots import HUES

    length, size = int(one.lengths[0]) + 1, one.observation.shape[-1]
    series = one.observation[0, :length]
    figure, (axes,) = new_row(1, 5.2, 2.8, 0.75)
    dress(axes, title, "step", "observation")
    if size <= MOST_LINES:
        for entry in range(size):
            axes.plot(series[:, entry], color=HUES[entry % len(HUES)], linewidth=1, label=str(entry))
        legend_below(axes, columns=MOST_LINES)
    else:
        spread = series.std(0)
        image = (series - series.mean(0)) / np.where(spread > 1e-6, spread, 1)
        axes.imshow(image.T, aspect="auto", interpolation="nearest", cmap="RdBu", vmin=-3, vmax=3)
        axes.set_ylabel("observation (standardised)", fontsize=8.5)
        axes.grid(False)
    _save(figure, path)
