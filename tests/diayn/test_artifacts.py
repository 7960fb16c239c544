"""What a finished run leaves for the pictures."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from common.random import Stream, seeded
from papers.diayn import artifacts, registration
from papers.diayn.config import Config
from papers.diayn.environments import make_environments
from papers.diayn.networks import Agent


def settings(env: str = "DIAYN/Box-v0", **changes: Any) -> Config:
    return Config.of({"env": env, "skills": 3, "width": 4, "horizon": 6, **changes})


def agent_of(config: Config) -> Agent:
    environments = make_environments(config, [0], 1, "cpu")
    with seeded(Stream(0, "initialisation")):
        agent = Agent(config, environments.observation_size, environments.action_size)
    return agent.eval().requires_grad_(False)


def folder(path: Path, seed: int = 1000) -> Any:
    return SimpleNamespace(artifact=lambda name: path / name, spec=SimpleNamespace(seed=seed))


def saved(path: Path, config: Config, seed: int = 1000, **more: Any) -> dict[str, np.ndarray]:
    artifacts.save(agent_of(config), config, folder(path, seed), **more)
    with np.load(path / "skills.npz") as arrays:
        return {name: arrays[name] for name in arrays}


def test_episodes_in_a_plane_are_kept_whole(tmp_path: Path) -> None:
    found = saved(tmp_path, settings())
    assert found["trajectories"].shape == (3, 4, 7, 2) and found["trajectories"].dtype == np.float32
    assert (found["trajectories"][:, :, 0] == 0.5).all() and found["alive"].all() and (found["lengths"] == 6).all()
    assert np.abs(np.diff(found["trajectories"], axis=2)).max() <= 0.1 + 1e-6
    assert found["plane"] and found["extent"].tolist() == [[0, 1], [0, 1]] and "frames" not in found


def test_they_are_those_of_each_skill(tmp_path: Path) -> None:
    config = settings()
    agent = agent_of(config)
    policy: Any = agent.policy
    with torch.no_grad():
        # The means of skill z go all one way: 1 in x for skill 0, -1 for skill 1, 1 in y for skill 2.
        for weights in policy.tensors():
            weights.zero_()
        policy.w1[0, 2:5, :3] = torch.eye(3)
        policy.w2[0, :3, :3] = torch.eye(3)
        policy.w3[0, :3, :2] = torch.tensor([[9.0, 0.0], [-9.0, 0.0], [0.0, 9.0]])
        policy.b3[..., 2:] = -5.0
    ends = artifacts.episodes(agent, config, 0)["trajectories"][:, :, -1]
    assert np.allclose(ends.mean(1), [[1, 0.5], [0, 0.5], [0.5, 1]], atol=0.02)


def test_later_seeds_leave_the_untrained_returns_alone_and_tasks_nothing(tmp_path: Path) -> None:
    before = {f"return_skill_{skill:02d}": float(skill) for skill in range(3)}
    artifacts.save(agent_of(settings()), settings(), folder(tmp_path, 1001), before)
    task = settings(reward="task")
    artifacts.save(agent_of(task), task, folder(tmp_path), {"task_return": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["untrained.npz"]
    with np.load(tmp_path / "untrained.npz") as arrays:
        assert arrays["returns"].tolist() == [0, 1, 2]


def test_long_episodes_are_thinned_and_end_with_their_last_state(tmp_path: Path) -> None:
    config = settings("InvertedPendulum-v5", horizon=450)
    found = artifacts.episodes(agent_of(config), config, 0)
    assert found["steps"][:2].tolist() == [0, 3] and found["steps"][-1] == 450
    assert found["trajectories"].shape == (3, 1, 151, 2) and not found["plane"] and found["entries"] == [0, 1]
    # An untrained pole falls soon; the state that it stays in belongs to the episode once.
    last = found["alive"].sum(-1) - 1
    assert (found["lengths"] < 450).all() and (last == -(-found["lengths"] // 3)).all()
    ways = found["trajectories"][:, 0]
    assert all(np.array_equal(way[end], way[-1]) for way, end in zip(ways, last[:, 0], strict=True))


def test_key_frames_of_what_can_be_drawn(tmp_path: Path) -> None:
    found = saved(tmp_path, settings("DIAYN/MountainCar-v0", skills=8, horizon=2, evaluation_horizon=9))
    frames = found["frames"]
    assert frames.shape[:2] == (6, 5) and frames.dtype == np.uint8 and max(frames.shape[2:4]) <= 96
    assert (found["frame_steps"] == [0, 2, 4, 7, 9]).all() and len(set(found["frame_skills"].tolist())) == 6
    assert (np.diff(found["frame_returns"]) >= 0).all()
    returns = found["returns"].mean(1)
    assert {returns.argmin(), returns.argmax()} <= set(found["frame_skills"].tolist())
    assert not np.array_equal(frames[0, 0], frames[0, -1])


def test_a_machine_that_cannot_draw_leaves_no_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_display(*_: Any, **__: Any) -> None:
        raise RuntimeError("no OpenGL")

    monkeypatch.setattr(artifacts, "make_drawable", no_display)
    found = saved(tmp_path, settings("InvertedPendulum-v5"))
    assert "frames" not in found and found["returns"].shape == (3, 1)


def test_an_environment_without_pictures_is_not_asked_for_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(registration.OwnEnv, "metadata", {"render_modes": []})
    assert "frames" not in saved(tmp_path, settings("DIAYN/MountainCar-v0"))
    assert not [warning for warning in recwarn if "render_mode" in str(warning.message)]


def test_a_robot_is_followed_by_its_own_camera() -> None:
    class Model:
        ncam = 2

        def camera(self, number: int) -> SimpleNamespace:
            return SimpleNamespace(name=("fixed", "track")[number])

    renderer = SimpleNamespace(camera_id=None)
    bare: Any = SimpleNamespace(model=Model(), mujoco_renderer=renderer)
    artifacts.follow(SimpleNamespace(unwrapped=bare))  # type: ignore[arg-type]
    assert renderer.camera_id == 1
    artifacts.follow(SimpleNamespace(unwrapped=object()))  # type: ignore[arg-type]


def test_frames_are_shrunk_by_whole_squares() -> None:
    image = np.zeros((200, 300, 4), np.uint8)
    image[:4, :4, 0], image[:4, 4:8, 1] = 100, 200
    small = artifacts._small(image)
    assert small.shape == (50, 75, 3) and small[0, 0].tolist() == [100, 0, 0] and small[0, 1].tolist() == [0, 200, 0]
    assert artifacts._small(np.zeros((60, 96, 3))).shape == (60, 96, 3)
