"""`papers.diayn.rollout`: films, plots, the table of skills, and imitation."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from common.random import Stream, seeded
from papers.diayn import films, rollout
from papers.diayn.config import Config
from papers.diayn.networks import Agent, load_agent, save_agent

Run = Callable[..., tuple[int, str, str]]


def save(folder: Path, env: str, observations: int, actions: int, **settings: object) -> Path:
    """Untrained skills, as a training's folder holds them."""
    folder.mkdir(parents=True)
    with seeded(Stream(0, "initialisation")):
        agent = Agent(Config.of({"env": env, "skills": 3, "width": 16, **settings}), observations, actions, 1)
    save_agent(agent, folder)
    return folder


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("box") / "model", "DIAYN/Box-v0", 2, 2, horizon=20)


@pytest.fixture(scope="module")
def car(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("car") / "model", "DIAYN/MountainCar-v0", 2, 1, horizon=30)


# ---------------------------------------------------------------- what is written


def test_a_film_a_plot_and_a_row_of_every_skill(car: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "seen"
    status, printed, err = run(rollout.command, "--model", car, "--out", out, "--episodes", 2, "--seed", 5)
    assert (status, err) == (0, "")
    names = {"skills.json", "skills.png"} | {f"skill-0{i}{end}" for i in range(3) for end in (".gif", "-plot.png")}
    assert {path.name for path in out.iterdir()} == names
    with Image.open(out / "skill-00.gif") as film:
        assert film.n_frames > 10 and max(film.size) <= films.SIZE and film.info["loop"] == 0
    table = json.loads((out / "skills.json").read_text())
    assert (table["env"], table["episodes"], table["seed"]) == ("DIAYN/MountainCar-v0", 2, 5)
    rows = table["skills"]
    assert [row["skill"] for row in rows] == [0, 1, 2]
    assert all(row["length_mean"] == 30 and row["return_mean"] < 0 and row["log_q"] < 0 for row in rows)
    best = max(rows, key=lambda row: row["return_mean"])
    assert table["best"] == best["skill"]
    assert f"skill selection: skill {best['skill']} has the highest return, {best['return_mean']:.4g} " in printed
    # The table on the terminal begins with the best one.
    assert printed.splitlines()[1].split()[0] == str(best["skill"])


def test_episodes_are_a_function_of_the_seed(box: Path, tmp_path: Path) -> None:
    agent, config, _ = load_agent(box)
    first, again, other = (rollout.play(agent, config, 1, 3, seed=seed) for seed in (0, 0, 1))
    assert first.observation.shape == (3, 21, 2) and (first.observation[:, 0] == 0.5).all()
    assert np.array_equal(first.observation, again.observation)
    assert not np.array_equal(first.observation, other.observation)
    assert not np.array_equal(first.observation[0], first.observation[1])
    # Deterministic: all episodes alike; the first step is the policy's mean, scaled to the box's 0.1.
    fixed = rollout.play(agent, config, 1, 2, steps=4, stochastic=False)
    assert fixed.observation.shape == (2, 5, 2) and np.array_equal(fixed.observation[0], fixed.observation[1])
    start = torch.full((1, 1, 2), 0.5)
    step = 0.1 * agent.act(start, torch.tensor([[1]]), None)[0, 0].numpy()
    np.testing.assert_allclose(fixed.observation[0, 1] - 0.5, step, atol=1e-6)
    log_q = agent.log_q(torch.from_numpy(fixed.observation[:, :-1]).reshape(1, -1, 2))[0]
    assert fixed.log_q == pytest.approx(log_q[:, 1].mean().item(), abs=1e-6)


def test_some_skills_key_frames_and_a_shorter_episode(box: Path, tmp_path: Path, run: Run) -> None:
    more = ("--skills", "2, 0", "--format", "png", "--steps", 5, "--episodes", 1, "--deterministic")
    status, printed, err = run(rollout.command, "--model", box, "--out", tmp_path / "seen", *more)
    assert (status, err) == (0, "")
    assert sorted(path.name for path in tmp_path.glob("seen/skill-*")) == [
        "skill-00-frames.png", "skill-00-plot.png", "skill-02-frames.png", "skill-02-plot.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "seen/skill-00-frames.png") as strip:
        assert strip.width > 4 * strip.height
    table = json.loads((tmp_path / "seen/skills.json").read_text())
    assert [row["length_mean"] for row in table["skills"]] == [5, 5] and table["deterministic"]
    # The box rewards nothing.
    assert table["best"] is None and "every skill has the return 0, so none is better" in printed


def test_films_are_as_fast_as_asked(box: Path) -> None:
    agent, config, _ = load_agent(box)
    for fps, duration in ((None, None), (10, 100)):
        with films.open_camera(config, fps) as camera:
            assert camera.reason == ""
            film = camera.film(agent, 0, seed=0, steps=6)
        assert film is not None and 2 <= len(film.frames) <= 7
        assert duration is None or round(1000 / film.fps) == duration


class Blind(gymnasium.Env):
    """Twelve observations that follow the action; it cannot be seen."""

    observation_space = gymnasium.spaces.Box(-9, 9, (3, 4), np.float32)
    action_space = gymnasium.spaces.Box(-1, 3, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=(3, 4)).astype(np.float32)
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.state = self.state + np.float32(action.sum() - 2)
        return self.state, 1.0, bool(abs(self.state).max() > 4), False, {}


def test_an_environment_that_cannot_render_is_plotted(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Tests/Blind-v0", Blind, max_episode_steps=12)
    monkeypatch.setitem(gymnasium.registry, "Tests/Blind-v0", spec)
    model = save(tmp_path / "model", "Tests/Blind-v0", 12, 2)
    status, printed, err = run(rollout.command, "--model", model, "--out", tmp_path / "seen", "--skills", "0,1")
    assert (status, err) == (0, "")
    assert (
        printed.startswith("no films, only plots: Tests/Blind-v0 has no render mode rgb_array\n")
        and "skill selection" in printed
    )
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [
        "skill-00-plot.png", "skill-01-plot.png", "skills.json", "skills.png",
    ]  # fmt: skip
    row = json.loads((tmp_path / "seen/skills.json").read_text())["skills"][0]
    assert row["return_mean"] == row["length_mean"] <= 12


def test_an_environment_whose_first_picture_fails_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Dark(Blind):
        def __init__(self, render_mode: str | None = None):
            self.render_mode, self.metadata = render_mode, {"render_modes": ["rgb_array"]}

        def render(self) -> None:
            raise RuntimeError("no light")

        def close(self) -> None:
            closed.append(self.render_mode)
            if self.render_mode:
                raise RuntimeError("no light to close either")

    spec = gymnasium.envs.registration.EnvSpec("Tests/Dark-v0", Dark, max_episode_steps=12)
    monkeypatch.setitem(gymnasium.registry, "Tests/Dark-v0", spec)
    with films.open_camera(Config(env="Tests/Dark-v0")) as camera:
        assert camera.env is None and camera.reason.endswith("cannot be rendered here (RuntimeError: no light)")
        # None: the one that is only asked whether it can draw.
        assert closed == [None, "rgb_array"]


def test_no_opengl_is_one_line(car: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from papers.diayn import simulators

    def blind(*arguments: object, make: Callable = simulators.make_env) -> gymnasium.Env:
        if "rgb_array" in arguments:
            raise RuntimeError("an OpenGL platform library\nhas not been loaded")
        return make(*arguments)

    monkeypatch.setattr(simulators, "make_env", blind)
    with films.open_camera(load_agent(car)[1]) as camera:
        assert camera.reason.count("\n") == 0 and "MUJOCO_GL=egl" in camera.reason
        assert camera.film(load_agent(car)[0], 0) is None


# ---------------------------------------------------------------- imitation


def test_the_skill_of_an_expert(box: Path, tmp_path: Path, run: Run) -> None:
    agent, _, _ = load_agent(box)
    states = np.random.default_rng(0).uniform(0, 1, (40, 2)).astype(np.float32)
    np.save(tmp_path / "expert.npy", states.astype(np.float64))
    best, posterior = rollout.imitate(agent, states)
    sums = agent.log_q(torch.from_numpy(states)[None])[0].sum(0)
    assert best == int(sums.argmax()) and posterior.sum() == pytest.approx(1, abs=1e-6)
    expert = ("--model", box, "--imitate", tmp_path / "expert.npy")
    status, printed, err = run(rollout.command, *expert)
    assert (status, err) == (0, "") and printed.startswith(f"imitation: skill {best}, posterior {posterior[best]:.3f} ")
    # With --out the imitator is shown.
    assert run(rollout.command, *expert, "--out", tmp_path / "seen", "--episodes", 1, "--format", "png")[0] == 0
    assert json.loads((tmp_path / "seen/skills.json").read_text())["skills"][0]["skill"] == best


# ---------------------------------------------------------------- what is wrong is one line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--skills", "3"), "no skill 3: the model has skills 0 to 2"),
        (("--skills", "-1"), "no skill -1"),
        (("--skills", "one"), "--skills one: give numbers with commas"),
        (("--format", "mp4"), "no format 'mp4'; there is gif, png"),
        (("--episodes", 0), "--episodes must be at least 1, not 0"),
        (("--fps", 0), "--fps must be at least 1, not 0"),
        (("--steps", -1), "--steps must be at least 0"),
        (
            ("--env", "InvertedPendulum-v5"),
            "InvertedPendulum-v5 has 4 observations, and the model is of an environment",
        ),
        (("--env", "Nothing-v7"), "no environment 'Nothing-v7'"),
        (("--import", "no_such_env"), "--import no_such_env: there is no such module"),
        (("--imitate", "none.npy"), "--imitate none.npy: there is no such file"),
        (("--imitate", "text.npy"), "--imitate text.npy is no .npy file of numbers"),
        (("--imitate", "zip.npy"), "--imitate zip.npy is no .npy file of numbers"),
        (("--imitate", "flat.npy"), "give an array of numbers [T, 2]"),
        (("--imitate", "wide.npy"), "its states have 3 numbers, and the model's 2"),
        (("--imitate", "nan.npy"), "holds numbers that are not finite"),
        (("--out", "text.npy/seen"), "text.npy is a file: choose a folder"),
    ],
)
def test_wrong_rollouts(
    more: tuple, message: str, box: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and no more")
    for name, array in (("flat", np.zeros(4)), ("wide", np.zeros((4, 3))), ("nan", np.full((4, 2), np.nan))):
        np.save(tmp_path / f"{name}.npy", array)
    status, out, err = run(rollout.command, "--model", box, "--out", "seen", *more)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_folder_without_a_model(box: Path, tmp_path: Path, run: Run) -> None:
    model = tmp_path / "model"

    def answer() -> str:
        status, _, err = run(rollout.command, "--model", model, "--out", tmp_path / "seen")
        assert status == 2 and err.count("\n") == 1
        return err

    assert "holds no model: give the --out folder of papers.diayn.train" in answer()
    model.mkdir()
    settings = (box / "settings.json").read_text()
    (model / "settings.json").write_text(settings)
    assert "has no weights.safetensors: train again" in answer()
    (model / "weights.safetensors").write_bytes((box / "weights.safetensors").read_bytes()[:500])
    assert "damaged" in answer()
    (model / "settings.json").write_text("{}")
    assert "is damaged (without action_size, config, observation_size): train again" in answer()
    (model / "settings.json").write_text(json.dumps({**json.loads(settings), "config": []}))
    assert "settings.json holds no model: give the --out folder of papers.diayn.train" in answer()
    (model / "model.json").write_text(settings)
    assert "damaged or not of this model" in answer()
    (model / "model.json").write_text(json.dumps({"schema_version": 9}))
    assert "schema version 9" in answer()
    (model / "run.json").write_text("{}")
    (model / "model.json").unlink()
    assert "has not finished" in answer()
    many = Agent(Config(env="DIAYN/Box-v0", skills=3, width=16), 2, 2, 25)
    goals = tmp_path / "goals"
    goals.mkdir()
    save_agent(many, goals)
    status, _, err = run(rollout.command, "--model", goals, "--out", tmp_path / "seen")
    assert status == 2 and "holds 25 agents that learnt a task each" in err
    assert run(rollout.command, "--out", tmp_path)[2].startswith("error: --model is missing")
    assert run(rollout.command, "--model", box)[2].startswith("error: --out is missing")


def test_import_stands_in_for_the_trainings_module(
    box: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = json.loads((box / "settings.json").read_text())
    model = tmp_path / "model"
    shutil.copytree(box, model)
    (model / "model.json").write_text(json.dumps({**known, "module": "module_of_old"}))
    (tmp_path / "module_of_today.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    command = ("--model", model, "--out", tmp_path / "seen", "--episodes", 1, "--format", "png", "--skills", "0")
    status, _, err = run(rollout.command, *command)
    assert status == 2 and "module_of_old: there is no such module" in err
    assert run(rollout.command, *command, "--import", "module_of_today")[0] == 0
    assert "module_of_today" in sys.modules
    monkeypatch.delitem(sys.modules, "module_of_today")


def test_a_run_of_the_experiments_is_a_model_too(box: Path) -> None:
    from papers.diayn.own_data import load_skills

    agent, info = load_skills(box)
    assert (info.env, info.skills, info.module, info.returns) == ("DIAYN/Box-v0", 3, "", ())
    assert info.config == {**asdict(agent.config), "features": []}
