"""A2C: the catch game, the preprocessing, the learner's arithmetic, and exact resuming with the games' states."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.claims import judge_all
from common.runs import Folder, RunSpec, execute
from papers.coordconv.atari import environments, experiments
from papers.coordconv.atari.config import GAMES, Config
from papers.coordconv.atari.environments import Environments, area_weights
from papers.coordconv.atari.games import Catch, Outcome
from papers.coordconv.atari.networks import ActorCritic, returns_of, sample
from tests import toy

(SMOKE,) = experiments.EXPERIMENTS["smoke"]


def spec_of(folder: Path, method: str = "coordconv", **changes) -> RunSpec:
    config = {**SMOKE.config, **SMOKE.methods[method], **changes}
    return RunSpec("coordconv", "smoke", SMOKE.name, method, 1000, experiments.RUN, config, folder)


# ---------------------------------------------------------------- catch


def play(game: Catch, policy) -> Iterator[Outcome]:
    outcome = Outcome(game.reset(0), 0.0, False)
    while not outcome.over:
        outcome = game.act(policy(outcome.frame), 1)
        yield outcome


def follow(frame: np.ndarray) -> int:
    """Go where the ball is."""
    ball, paddle = (frame == 255).any(0).argmax(), (frame[-1] == 128).argmax()
    return 1 + int(np.sign(int(ball) - int(paddle)))


def test_catch_rewards_catching():
    outcomes = list(play(Catch(0, 0), follow))
    assert len(outcomes) == 5 * 6 and sum(outcome.reward for outcome in outcomes) == 5.0
    assert [i for i, outcome in enumerate(outcomes, 1) if outcome.reward] == [6, 12, 18, 24, 30]
    frame = outcomes[0].frame
    assert frame.shape == (84, 84) and frame.dtype == np.uint8 and set(np.unique(frame)) == {0, 128, 255}
    assert (frame == 128).sum() == (frame == 255).sum() == 144
    missed = play(Catch(0, 0), lambda frame: 0 if (frame == 255).any(0).argmax() >= 36 else 2)
    assert sum(outcome.reward for outcome in missed) == -5.0


def test_catch_is_a_function_of_seed_environment_and_episode():
    def frames(game: Catch, episode: int) -> np.ndarray:
        first = game.reset(episode)
        return np.stack([first, *(game.act(1, 1).frame for _ in range(29))])

    game = Catch(3, 1)
    reference = frames(game, 2)
    assert (frames(Catch(3, 1), 2) == reference).all()
    for other, episode in ((Catch(4, 1), 2), (Catch(3, 0), 2), (game, 3)):
        assert (frames(other, episode) != reference).any()
    game.reset(4)
    for _ in range(8):
        game.act(2, 1)
    copy = Catch(3, 1)
    copy.restore(game.state())
    for action in (0, 0, 2, 1, 1, 0, 2):
        ours, theirs = game.act(action, 2), copy.act(action, 2)
        assert (ours.frame == theirs.frame).all() and ours[1:] == theirs[1:]


# ---------------------------------------------------------------- preprocessing


@pytest.mark.parametrize("before", [210, 160, 84])
def test_area_weights_average_equal_areas(before):
    line = torch.rand(before, generator=torch.Generator().manual_seed(0))
    # Every pixel as 84 equal pieces, of which every output takes `before`.
    exact = line.repeat_interleave(84).view(84, before).mean(1)
    assert torch.allclose(area_weights(before, 84) @ line, exact, atol=1e-6)


class Script:
    """A game that plays a list of (reward, over, life lost); a frame's pixels count the actions since the reset."""

    num_actions, fire, frame_shape = 3, 2, (84, 84)

    def __init__(self, *outcomes: tuple[float, bool, bool]):
        self.outcomes, self.log = list(outcomes), []

    def _frame(self) -> np.ndarray:
        return np.full((84, 84), len(self.log), np.uint8)

    def reset(self, episode: int) -> np.ndarray:
        self.log = [("reset", episode)]
        return self._frame()

    def act(self, action: int, frames: int) -> Outcome:
        self.log.append((action, frames))
        if action == self.fire:
            return Outcome(self._frame(), 0.0, False)
        return Outcome(self._frame(), *self.outcomes.pop(0))


def scripted(monkeypatch: pytest.MonkeyPatch, *outcomes: tuple[float, bool, bool], **changes) -> Environments:
    monkeypatch.setattr(environments, "build_game", lambda *_: Script(*outcomes))
    return Environments(Config(game="catch", num_envs=1, **changes), 0)


def newest(envs: Environments) -> list[int]:
    return envs.observations[0, :, 0, 0].tolist()


def test_episodes_lives_and_scores(monkeypatch):
    plain = (0.0, False, False)
    outcomes = [(7.0, False, False), (-30.0, False, True), plain, (100.0, True, False), plain]
    envs = scripted(monkeypatch, *outcomes)
    assert newest(envs) == [0, 0, 0, 2]  # reset, then fire
    assert envs.score() == 0.0
    seen = []
    for _ in outcomes:
        rewards, dones = envs.step([0])
        seen.append((rewards.item(), dones.item(), newest(envs)))
    assert seen[0] == (1.0, 0.0, [0, 0, 2, 3])  # the sign of the reward
    assert seen[1] == (-1.0, 1.0, [0, 0, 0, 5])  # a lost life ends the episode; fire begins the next
    assert seen[2] == (0.0, 0.0, [0, 0, 5, 6])
    assert seen[3] == (1.0, 1.0, [0, 0, 0, 2])  # a new game
    assert envs.finished == [77.0] and envs.games_played == 1 and envs.score() == 77.0
    assert envs.games[0].log[0] == ("reset", 1)


def test_lives_rewards_and_length_as_told(monkeypatch):
    outcomes = [(7.0, False, True), (2.0, False, False), (0.0, False, False)]
    envs = scripted(monkeypatch, *outcomes, episodic_life=False, clip_rewards=False, max_frames=12)
    answers = [tuple(tensor.item() for tensor in envs.step([1])) for _ in outcomes]
    assert answers == [(7.0, 0.0), (2.0, 0.0), (0.0, 1.0)]  # ended after three actions of four frames
    assert envs.finished == [9.0]


def test_threads_change_nothing():
    runs = []
    for threads in (1, 3):
        envs = Environments(Config(game="catch", num_envs=4, frame_skip=1, env_threads=threads), 5)
        steps = [envs.step([(3 * i + step) % 3 for i in range(4)]) for step in range(40)]
        runs.append((torch.stack([reward for reward, _ in steps]), envs.observations, envs.finished))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1]) and runs[0][2] == runs[1][2]
    assert len(runs[0][2]) == 4


# ---------------------------------------------------------------- the learner


def test_networks_differ_in_the_first_layer_by_its_coordinates():
    sizes = []
    for network in ("conv", "coordconv"):
        with torch.device("meta"):
            model = ActorCritic(Config(network=network), 9)
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    convs = (4 * 64 * 32 + 32) + (32 * 16 * 64 + 64) + (64 * 9 * 64 + 64)
    assert sizes[0] == convs + (3136 * 512 + 512) + 512 * 10 + 10
    assert sizes[1] - sizes[0] == 2 * 32 * 8**2


def test_the_policy_begins_uniform_and_weights_orthogonal():
    model = ActorCritic(Config(network="coordconv", width=4, dense=16), 3)
    logits, values = model(torch.randint(0, 255, (5, 4, 84, 84), dtype=torch.uint8))
    assert logits.shape == (5, 3) and values.shape == (5,)
    assert (torch.softmax(logits, -1) - 1 / 3).abs().max() < 0.05
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d)).weight.detach().flatten(1)
    assert torch.allclose(first @ first.T, 2 * torch.eye(4), atol=1e-5)


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(1000, 3)
    uniforms = (torch.arange(1000) + 0.5) / 1000
    assert sample(logits, uniforms).bincount().tolist() == [200, 500, 300]
    assert sample(torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([1 - 2**-24])).item() <= 2


def test_returns_stop_at_episode_ends():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    dones = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    found = returns_of(rewards, dones, torch.tensor([10.0, 20.0]), 0.5)
    assert torch.equal(found, torch.tensor([[1.0, 3.5], [0.0, 7.0], [8.0, 10.0]]))


def test_settings_nobody_knows_are_refused():
    assert (Config().frames_per_update, Config().updates) == (320, 31_250)
    with pytest.raises(TypeError, match="unknown settings: lr"):
        Config.of({"lr": 1.0})
    for bad in ({"game": "pong"}, {"network": "mlp"}, {"num_envs": 0}, {"discount": 1.5}, {"frames": 100}):
        with pytest.raises(ValueError):
            Config.of(bad)


# ---------------------------------------------------------------- whole runs


def stop(folder: Folder) -> None:
    folder.stop_requested = True


def resumes(whole: RunSpec, stopped: RunSpec) -> list[int]:
    """Stop a run after its every range of steps; it must end as the undisturbed one. Where it was resumed."""
    record = execute(whole)
    assert record["status"] == "finished", record["error"]
    assert set(record["metrics"]) == set(experiments.METRICS)
    while (again := execute(stopped, on_folder=stop))["status"] == "stopped":
        pass
    assert again["status"] == "finished"
    assert toy.end_state(stopped.folder) == toy.end_state(whole.folder)
    return again["resumed"]


def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path):
    # Long enough for a game to end before one of the stops.
    changes = {"frames": 90, "num_steps": 5, "steps_per_call": 3, "checkpoint_every": 3}
    assert resumes(spec_of(tmp_path / "whole", **changes), spec_of(tmp_path / "stopped", **changes)) == [2, 3, 4, 6, 8]


def test_a_real_game_resumes_too(tmp_path):
    pytest.importorskip("ale_py")
    changes = {"game": "breakout", "frame_skip": 4, "frames": 96, "no_ops": 3, "env_threads": 2}
    assert resumes(
        spec_of(tmp_path / "whole", "conv", **changes), spec_of(tmp_path / "stopped", "conv", **changes)
    ) == [2]


def test_without_the_emulator_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    record = execute(spec_of(tmp_path / "run", game="ms_pacman"))
    assert record["status"] == "failed"
    assert record["error"] == (
        "ms_pacman needs the Atari emulator: pip install 'executable-papers[atari]' (it brings ale-py)"
    )


# ---------------------------------------------------------------- experiments and claims


def test_wins_and_losses_are_counted():
    scores = {game: (100.0, 100.0 + 10 * (i - 2)) for i, game in enumerate(GAMES)}
    scores[GAMES[2]] = (-100.0, -104.0)  # similar
    rows = [
        {"experiment": f"atari-{experiments.slug(game)}", "method": method, "seed": 1000 + seed, "stale": False}
        | {"status": "finished", "metrics": {"score": score}}
        for game, pair in scores.items()
        for method, score in zip(("conv", "coordconv"), pair, strict=True)
        for seed in range(3)
    ]
    verdicts = {row["id"]: row for row in judge_all(experiments.CLAIMS, "paper", rows)}
    assert verdicts["C13"]["measured"]["mean"] == 6 - 2 and verdicts["C13"]["verdict"] == "held"
    assert verdicts["C13.alien"]["verdict"] == "failed" and verdicts["C13.ms-pacman"]["verdict"] == "held"


def test_experiments_and_claims_fit_together():
    assert {claim.id for claim in experiments.CLAIMS} == {"C13", *(f"C13.{experiments.slug(game)}" for game in GAMES)}
    for name, found in experiments.EXPERIMENTS.items():
        runs = {(e.name, method) for e in found for method in e.methods}
        for experiment in found:
            for changes in experiment.methods.values():
                Config.of({**experiment.config, **changes})
        for claim in experiments.CLAIMS:
            if name in claim.rules:
                assert set(claim.rules[name].quantity.requires) <= runs
    assert len(experiments.EXPERIMENTS["paper"]) == 9
