"""The user's own environment: `papers.diayn.train` and its library form."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from common.curves import read_rows
from common.errors import UserError
from papers.diayn import own_data, train
from papers.diayn.config import Config
from papers.diayn.module import Skills
from papers.diayn.networks import load_agent

Run = Callable[..., tuple[int, str, str]]

TINY = """
skills: 3
steps: 12
copies: 2
width: 8
batch_size: 8
horizon: 10
learning_starts: 4
evaluate_every: 4
evaluation_rollouts: 1
checkpoint_every: 3
log_every: 2
steps_per_call: 3
device: cpu
"""
MODULE = "own_spring_env"
SOURCE = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict


class Spring(gymnasium.Env):
    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=3).astype(np.float32)
        return self.state, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.state = 0.9 * self.state + np.float32(action[0]) * np.array([0.1, 0.2, 0], np.float32)
        return self.state, float(self.state[0]), bool(self.state[0] > 5), False, {}


class Named(Spring):
    observation_space = Dict(place=Box(-1, 1, (2,)))


class Stiff(Spring):
    def __init__(self, stiffness):
        self.stiffness = stiffness


class Torn(Spring):
    def reset(self, *, seed=None, options=None):
        return self.length, {}


gymnasium.register("Tests/Spring-v0", Spring, max_episode_steps=15)
gymnasium.register("Tests/Endless-v0", Spring)
gymnasium.register("Tests/Named-v0", Named, max_episode_steps=15)
gymnasium.register("Tests/Stiff-v0", Stiff, max_episode_steps=15)
gymnasium.register("Tests/Misspelt-v0", f"{__name__}:Sprig", max_episode_steps=15)
gymnasium.register("Tests/Torn-v0", Torn, max_episode_steps=15)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A YAML file with settings for a short run, and a module that registers environments, which Python finds."""
    root = tmp_path_factory.mktemp("files")
    (root / "tiny.yaml").write_text(TINY)
    (root / f"{MODULE}.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield root
    sys.modules.pop(MODULE, None)
    for name in [name for name in gymnasium.registry if name.startswith("Tests/")]:
        del gymnasium.registry[name]


def arguments_of(files: Path, env: str, out: Path, *more: object) -> Sequence[str]:
    return [str(each) for each in ("--env", env, "--out", out, "--config", files / "tiny.yaml", *more)]


@pytest.fixture(scope="module")
def box(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Skills of twelve steps in the box."""
    out = tmp_path_factory.mktemp("box") / "model"
    assert train.command(arguments_of(files, "DIAYN/Box-v0", out)) == 0
    return out


# ---------------------------------------------------------------- training


def test_what_was_trained_is_written(box: Path) -> None:
    info = json.loads((box / "model.json").read_text())
    assert next(iter(info)) == "schema_version" and info["schema_version"] == 1
    assert (info["env"], info["module"], info["skills"], info["samples"]) == ("DIAYN/Box-v0", "", 3, 24)
    assert (info["observation_size"], info["action_size"], info["seed"]) == (2, 2, 0)
    assert 0 <= info["accuracy"] <= 1 and info["mutual_information"] <= np.log(3)
    assert info["effective_skills"] == pytest.approx(3)
    assert len(info["returns"]) == 3 and info["metrics"]["accuracy"] == info["accuracy"]
    agent, config, _ = load_agent(box)
    assert agent.members == 1 and (config.skills, config.width, config.copies) == (3, 8, 2)
    read = own_data.read_info(box)
    assert (read.env, read.skills, read.config["width"]) == ("DIAYN/Box-v0", 3, 8)


def test_the_same_command_does_nothing_twice(box: Path, files: Path, run: Run) -> None:
    before = (box / "weights.safetensors").stat().st_mtime_ns
    status, out, err = run(train.command, *arguments_of(files, "DIAYN/Box-v0", box))
    assert (status, err) == (0, "") and "finished already" in out
    assert "told apart: the classifier names the skill in " in out and "(chance 33 %)" in out
    assert f"next: python -m papers.diayn.rollout --model {box} --out FOLDER" in out
    assert (box / "weights.safetensors").stat().st_mtime_ns == before


def test_other_settings_move_the_old_folder_aside(files: Path, tmp_path: Path, run: Run) -> None:
    short = ("--steps", 2, "--evaluate_every", 2)
    model = tmp_path / "model"
    status, out, err = run(train.command, *arguments_of(files, "DIAYN/Box-v0", model, *short))
    assert (status, err) == (0, "")
    assert "environment: DIAYN/Box-v0, 2 observations, 2 actions, episodes of up to 10 steps\n" in out
    assert "training: 3 skills, 2 steps of 2 copies = 4 environment steps, twin critics of width 8\n" in out
    other = ("--variant", "v2018", "--prior", "learned")
    status, out, _ = run(train.command, *arguments_of(files, "DIAYN/Box-v0", model, *short, *other))
    assert status == 0 and "prior fixed instead of learned, variant twin instead of v2018" in out
    assert "a value network and a mixture policy of width 8" in out and "effective skills: " in out
    assert (tmp_path / "model.old-1/model.json").exists()


def test_interrupted_training_ends_as_if_it_had_not_been(
    box: Path, files: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step, calls = Skills.training_step, []

    def interrupted(self: Skills, bounds: tuple[int, int]) -> Any:
        calls.append(tuple(bounds))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(self, bounds)

    monkeypatch.setattr(Skills, "training_step", interrupted)
    model = tmp_path / "model"
    command = arguments_of(files, "DIAYN/Box-v0", model)
    status, out, _ = run(train.command, *command)
    assert status == 130 and "stopped (interrupted): the same command resumes" in out
    assert len(calls) == 2 and not (model / "weights.safetensors").exists()
    with pytest.raises(UserError, match="has not finished: run the same train command again"):
        own_data.load_skills(model)
    assert run(train.command, *command)[0] == 0
    assert sorted(set(calls)) == calls
    for name in ("weights.safetensors", "model.json"):
        assert (model / name).read_bytes() == (box / name).read_bytes()
    values = [[(r["step"], r["name"], r["value"]) for r in read_rows(p / "curves.csv")] for p in (box, model)]
    assert values[0] == values[1]


def test_an_environment_of_the_users_own(files: Path, tmp_path: Path, run: Run) -> None:
    model, more = tmp_path / "model", ("--import", MODULE, "--horizon", 0, "--features", "0,2")
    status, out, err = run(train.command, *arguments_of(files, "Tests/Spring-v0", model, *more))
    assert (status, err) == (0, "") and "3 observations, 1 actions, episodes of up to 15 steps" in out
    assert "the environment's own reward, which training never saw: returns from " in out
    agent, info = own_data.load_skills(model)
    assert (info.module, agent.config.features, len(info.returns)) == (MODULE, (0, 2), 3)
    # The environment's code is part of what was trained.
    (files / f"{MODULE}.py").write_text(SOURCE.replace("0.9 *", "0.8 *"))
    status, out, _ = run(train.command, *arguments_of(files, "Tests/Spring-v0", model, *more))
    (files / f"{MODULE}.py").write_text(SOURCE)
    assert status == 0 and "it had another data" in out


def test_gymnasiums_own_from_python(tmp_path: Path) -> None:
    info = train.learn(
        "InvertedPendulum-v5", tmp_path / "model", skills=2, steps=6, copies=2, width=8, batch_size=8, horizon=8,
        evaluation_rollouts=1, device="cpu", seed=3,
    )  # fmt: skip
    assert isinstance(info, dict)
    assert (info["observation_size"], info["action_size"], info["seed"]) == (4, 1, 3)
    assert all(1 <= value <= 8 for value in info["returns"])
    with pytest.raises(UserError, match="--skills must be at least 2, not 1"):
        train.learn("InvertedPendulum-v5", tmp_path / "other", skills=1)


def test_settings_follow_from_steps_and_copies() -> None:
    settings = own_data.settings_of({"env": "Hopper-v5"})
    assert (settings.steps, settings.copies, settings.width, settings.learning_rate) == (5000, 16, 64, 1e-3)
    assert (settings.buffer_size, settings.learning_starts, settings.evaluate_every) == (80_000, 1000, 1000)
    assert (settings.log_every, settings.steps_per_call, settings.batch_size) == (100, 10, 128)
    settings = own_data.settings_of({"env": "Hopper-v5", "steps": 100, "copies": 4, "log_every": None}, "cuda")
    assert (settings.buffer_size, settings.learning_starts, settings.log_every) == (400, 40, 5)
    assert settings.steps_per_call == 100


def test_every_setting_of_skills_has_a_flag() -> None:
    # env is an argument of its own; the others are of experiments on tasks, whose progress (observe_goal) skills do not
    # see: they and the classifier read the observation alone.
    beyond = {"env", "tasks", "reward", "bonus", "draw", "pretrained", "observe_goal"}
    assert {setting.name for setting in train.FLAGS} == set(vars(Config())) - beyond == set(train.HELP)


@pytest.mark.parametrize("name", ["pretrained", "observe_goal", "wings"])
def test_learn_names_a_setting_that_skills_do_not_have(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {name: "all"}
    with pytest.raises(UserError, match=f"^skills have no setting '{name}'; there is copies, horizon, ") as caught:
        train.learn("DIAYN/Box-v0", tmp_path / "model", **settings)
    assert "\n" not in str(caught.value) and not (tmp_path / "model").exists()


# ---------------------------------------------------------------- what is wrong is one line


@pytest.mark.parametrize(
    ("env", "more", "message"),
    [
        ("Nothing-v7", (), "no environment 'Nothing-v7'"),
        ("CartPole-v1", (), "Discrete"),
        ("Tests/Named-v0", ("--import", MODULE), "Dict"),
        ("Tests/Endless-v0", ("--import", MODULE, "--horizon", 0), "--horizon"),
        ("Tests/Stiff-v0", ("--import", MODULE), "'Tests/Stiff-v0' cannot be made: "),
        ("Tests/Misspelt-v0", ("--import", MODULE), "has no attribute 'Sprig'; give gymnasium.register an entry_point"),
        ("DIAYN/Box-v0", ("--import", "no_such_env"), "--import no_such_env: there is no such module"),
        ("DIAYN/Box-v0", ("--import", "no.such_env"), "there is no such module"),
        (
            "DIAYN/Box-v0",
            ("--import", f"{MODULE}.py"),
            f"give the module's name as Python's import does, such as {MODULE}",
        ),
        ("DIAYN/Box-v0", ("--features", "0,2"), "--features 2: an observation of DIAYN/Box-v0 has numbers 0 to 1"),
        ("DIAYN/Box-v0", ("--features", "x"), "--features x: give numbers of observations with commas"),
        ("DIAYN/Box-v0", ("--skills", 1), "--skills must be at least 2, not 1"),
        ("DIAYN/Box-v0", ("--steps", 0), "--steps must be at least 1, not 0"),
        ("DIAYN/Box-v0", ("--updates", 0), "--updates must be at least 1, not 0"),
        ("DIAYN/Box-v0", ("--learning_starts", 10**6), "is more than all"),
        ("DIAYN/Box-v0", ("--threads", 0), "--threads must be at least 1"),
        ("DIAYN/Box-v0", ("--variant", "v2030"), "no variant 'v2030'; there is twin, v2018"),
        ("DIAYN/Box-v0", ("--alpha", -1), "alpha must be a number from 0 up"),
        ("DIAYN/Box-v0", ("--device", "abacus"), "abacus"),
        ("DIAYN/Box-v0", ("--wings", 2), "--wings"),
        ("DIAYN/Box-v0", ("--observe_goal", "true"), "--observe_goal"),
        ("Hopper-v5", ("--observation_scale", "range"), "Hopper-v5 declares no range of its observations"),
    ],
)
def test_wrong_training(env: str, more: tuple, message: str, files: Path, tmp_path: Path, run: Run) -> None:
    status, out, err = run(train.command, *arguments_of(files, env, tmp_path / "model", *more))
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_bug_of_the_environment_keeps_its_traceback(files: Path, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="length"):
        train.command(arguments_of(files, "Tests/Torn-v0", tmp_path / "model", "--import", MODULE))


def test_too_little_memory_is_one_line(files: Path, tmp_path: Path, run: Run) -> None:
    more = ("--batch_size", 10**14)
    status, _, err = run(train.command, *arguments_of(files, "DIAYN/Box-v0", tmp_path / "model", *more))
    assert (status, err) == (2, "error: the memory is not enough: lower --buffer_size, --batch_size or --width\n")


def test_wrong_folders(files: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("keep me")
    for out, message in (
        (tmp_path / "full", "holds other files"),
        (tmp_path / "full/letter.txt", "letter.txt is a file: choose a folder"),
        (tmp_path / "full/letter.txt/model", "letter.txt is a file: choose a folder"),
    ):
        status, _, err = run(train.command, *arguments_of(files, "DIAYN/Box-v0", out))
        assert status == 2 and message in err and err.count("\n") == 1
    assert run(train.command, "--env", "DIAYN/Box-v0")[::2] == (
        2, "error: --out is missing: give --env ID --out FOLDER; --help explains them\n",
    )  # fmt: skip
