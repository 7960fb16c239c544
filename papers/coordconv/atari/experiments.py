"""Experiments and claims of A2C on Atari (spec, sections 4 and 6: C13). Loads no torch."""

from collections.abc import Mapping
from typing import Any

from common.claims import Claim, Quantity, Rule, RunMetrics, difference
from common.paper import Experiment, Metric
from common.quantities import Run
from papers.coordconv.atari.config import CATCH, GAMES, Config

RUN = "papers.coordconv.atari.module:run"
METHODS: dict[str, Mapping[str, Any]] = {"conv": {"network": "conv"}, "coordconv": {"network": "coordconv"}}
TITLES = {
    "alien": "Alien",
    "amidar": "Amidar",
    "asterix": "Asterix",
    "beam_rider": "Beam Rider",
    "breakout": "Breakout",
    "ms_pacman": "Ms. Pac-Man",
    "qbert": "Q*bert",
    "seaquest": "Seaquest",
    "space_invaders": "Space Invaders",
}
TIE = 0.05
"""Two scores within this share of the larger one's size count as similar; ours, since the paper judges by eye."""

# One frame an action, and a network a tenth as large: an arm takes about 40 seconds of one core. The rate is what
# learns within so few updates; both arms have it.
CATCH_CONFIG: dict[str, Any] = {
    "game": CATCH,
    "frame_skip": 1,
    "width": 8,
    "dense": 64,
    "frames": 64_000,
    "learning_rate": 0.002,
    "discount": 0.9,
    "evaluate_every": 100,
    "checkpoint_every": 200,
    "log_every": 100,
}
SMOKE_CONFIG: dict[str, Any] = {
    **CATCH_CONFIG,
    "width": 2,
    "dense": 8,
    "num_envs": 2,
    "num_steps": 3,
    "frames": 48,
    "evaluate_every": 4,
    "checkpoint_every": 2,
    "log_every": 2,
    "steps_per_call": 2,
}


def slug(game: str) -> str:
    """A game's name in experiments and claims."""
    return game.replace("_", "-")


def _experiment(name: str, described: str, seeds: int, config: Mapping[str, Any], threads: int = 1) -> Experiment:
    return Experiment(
        name,
        METHODS,
        config,
        described=described,
        seeds=seeds,
        function=RUN,
        threads=threads,
        check_config=Config.of,
    )


def _atari(game: str, words: str, seeds: int, **config: Any) -> Experiment:
    # The emulators take most of the time, and two of them run at once.
    return _experiment(
        f"atari-{slug(game)}",
        f"{TITLES[game]} (Atari 2600), {words}",
        seeds,
        {"game": game, "env_threads": 2, **config},
        threads=2,
    )


CATCH_DATA = "catch, a generated game of 84x84 pixels"
EXPERIMENTS: dict[str, tuple[Experiment, ...]] = {
    "smoke": (_experiment("atari-catch", CATCH_DATA, 1, SMOKE_CONFIG),),
    "cpu": (_experiment("atari-catch", CATCH_DATA, 5, CATCH_CONFIG),),
    "gpu": (_atari("ms_pacman", "2 million frames", 3, frames=2_000_000),),
    "paper": tuple(_atari(game, "10 million frames", 5) for game in GAMES),
}

METRICS = {
    "score": Metric(
        "points",
        "higher",
        "training games",
        "last",
        "mean unclipped return of the last 100 whole games that ended in training, actions drawn from the policy",
        examples=100,
    ),
    "games": Metric("games", "higher", "training games", "last", "whole games that ended in training"),
}


def _runs(game: str) -> tuple[Run, Run]:
    return (f"atari-{slug(game)}", "conv"), (f"atari-{slug(game)}", "coordconv")


def _gain(experiment: str) -> Quantity:
    runs = (experiment, "coordconv"), (experiment, "conv")
    return difference(*runs, "score", "points", claimed=[runs[0]])


def _direction(quantity: Quantity, data: str, seeds: int, stand_in: bool = False) -> Rule:
    return Rule(quantity=quantity, better="higher", gate=0.0, null=0.0, seeds=seeds, data=data, stand_in=stand_in)


def better_minus_worse(metrics: RunMetrics) -> float:
    """Games in which CoordConv scores more than plain convolution minus games in which it scores less, in one seed."""
    total = 0
    for game in GAMES:
        plain, ours = (metrics[run]["score"] for run in _runs(game))
        assert isinstance(plain, int | float) and isinstance(ours, int | float)
        if abs(ours - plain) > TIE * max(abs(ours), abs(plain)):
            total += 1 if ours > plain else -1
    return float(total)


_COUNT = Quantity(
    "games in which coordconv scores more than conv minus games in which it scores less (5 % apart or more)",
    tuple(run for game in GAMES for run in _runs(game)),
    better_minus_worse,
    "games",
    tuple(_runs(game)[1] for game in GAMES),
)
_SLICE = _direction(_gain("atari-ms-pacman"), "Ms. Pac-Man, 2 million frames", 3)


def _per_game(game: str) -> Claim:
    title = TITLES[game]
    rules = {"paper": _direction(_gain(f"atari-{slug(game)}"), f"{title}, 10 million frames", 5)}
    if game == "ms_pacman":
        statement = "A2C on Ms. Pac-Man gains much from CoordConv as its first layer"
        return Claim(f"C13.{slug(game)}", statement, "RL figure", True, {**rules, "gpu": _SLICE})
    statement = f"A2C on {title}: does CoordConv as its first layer score more than convolution?"
    note = "one of our nine games: which ones the paper used, apart from Ms. Pac-Man, we could not read"
    return Claim(f"C13.{slug(game)}", statement, "ours, in the spirit of the RL figure", True, rules, note)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C13",
        "A2C with CoordConv as its first layer on 9 Atari games: better in 6, similar in 2, worse in 1 (none with "
        "Ape-X)",
        "RL figure",
        True,
        {
            "paper": _direction(_COUNT, "nine Atari games, 10 million frames", 5),
            "gpu": _SLICE,
            "cpu": _direction(_gain("atari-catch"), CATCH_DATA, 5, stand_in=True),
        },
        "reported, with a direction as its only gate; the games are ours but for Ms. Pac-Man, and Ape-X is not built",
    ),
    *(_per_game(game) for game in GAMES),
)
