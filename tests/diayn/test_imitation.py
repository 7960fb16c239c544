"""Skills are inferred from an expert's states, and distances are to what the expert did."""

from dataclasses import replace
from math import pi

import pytest
import torch

from common.errors import UserError
from common.random import Stream, seeded
from papers.diayn import imitation
from papers.diayn.config import Config
from papers.diayn.method import imitation_scores
from papers.diayn.networks import Agent
from papers.diayn.simulators import make_env

CHEETAH = Config(env="HalfCheetah-v5", skills=3, width=8)


class Given:
    """A classifier whose log q(z|s) are the states themselves."""

    config = Config(skills=3)

    def log_q(self, observation):
        return observation


def test_invariant_12_scores_and_posterior():
    rows = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]]).log()
    sums, posterior = imitation_scores(rows)
    assert sums.tolist() == pytest.approx([-2.81341, -2.47694, -6.90776], abs=1e-5)
    assert posterior.tolist() == pytest.approx([0.41379, 0.57931, 0.00690], abs=1e-5)
    found = imitation.infer_skills(Given(), torch.cat([rows, torch.zeros(1, 3)])[:, None], [3])
    assert found.skill.tolist() == [1]
    assert torch.allclose(found.scores[0], sums / 3) and torch.allclose(found.posterior[0], posterior)


@pytest.mark.parametrize("reads", ["state", "next"])
def test_only_states_of_the_experts_episode_count(reads):
    config = Config(env="DIAYN/Box-v0", skills=3, width=8, classifier_input=reads)
    with seeded(Stream(1, "agent")):
        agent = Agent(config, 2, 2).requires_grad_(False)
    states = Stream(1, "states").uniform(torch.arange(6), 8).view(6, 4, 2)
    lengths = [5, 1, 3, 2]
    found = imitation.infer_skills(agent, states, lengths)
    for expert, length in enumerate(lengths):
        first = int(reads == "next")
        log_q = agent.log_q(states[None, first : first + length, expert])[0]
        assert torch.allclose(found.scores[expert], log_q.mean(0), atol=1e-6)
        assert torch.allclose(found.posterior[expert], log_q.sum(0).softmax(0), atol=1e-5)
    assert torch.equal(found.skill, found.posterior.argmax(1))


def test_distance_is_the_root_of_the_mean_square_over_the_experts_states():
    expert = torch.zeros(3, 2, 2)
    student = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[6.0, 8.0]]])
    apart = imitation.distances(expert, [2, 1], student)
    assert apart[:, 0].tolist() == pytest.approx([(125 / 3) ** 0.5, 12.5**0.5])


def test_metrics_of_the_chosen_the_nearest_and_the_mean_skill():
    scores = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]])
    apart = torch.tensor([[0.4, 0.1], [0.9, 0.2]])
    found = imitation.imitation_metrics(
        imitation.Inferred(scores, torch.tensor([[0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1])), apart
    )
    expected = {"distance": 0.3, "best_distance": 0.15, "random_distance": 0.4, "correlation": -1, "confidence": 0.75}
    assert found == pytest.approx(expected)
    assert imitation.correlation(torch.ones(3), torch.arange(3)) == 0


def test_poses_touch_the_ground_with_the_right_end():
    import mujoco

    model = make_env(CHEETAH).unwrapped.model
    data = mujoco.MjData(model)

    def heights(pose: str, row: int = 0) -> dict[str, float]:
        states, _ = imitation.pose_states(CHEETAH, pose, 8)
        assert states.shape == (9, 17)
        data.qpos[:] = [0, *states[row, :8].tolist()]
        mujoco.mj_forward(model, data)
        assert not any(contact.dist < -0.02 for contact in data.contact[: data.ncon])
        return {name: float(data.geom(name).xpos[2]) for name in ("head", "torso", "bfoot", "ffoot")}

    upright, handstand, faceplant = heights("upright"), heights("handstand"), heights("faceplant")
    assert upright["head"] > upright["torso"] > upright["bfoot"]
    assert handstand["head"] < handstand["torso"] < handstand["bfoot"]
    assert faceplant["torso"] < faceplant["bfoot"] and faceplant["head"] > handstand["head"] - 0.1
    assert heights("flip", 4)["torso"] < heights("flip", 4)["ffoot"]  # on its back


def test_a_flip_is_a_turn_with_its_velocity_and_a_held_pose_rests():
    states, seconds = imitation.pose_states(CHEETAH, "flip", 40)
    assert float(states[-1, 1] - states[0, 1]) == pytest.approx(2 * pi, abs=1e-5)
    assert torch.allclose(states[:, 10], torch.full((41,), 2 * pi / (40 * seconds)), rtol=1e-4)
    assert not bool(imitation.pose_states(CHEETAH, "upright", 4)[0][:, 8:].any())
    with_positions, _ = imitation.pose_states(replace(CHEETAH, positions=True), "flip", 40)
    assert with_positions.shape == (41, 18) and torch.equal(with_positions[:, 1:], states)
    with pytest.raises(UserError, match="HalfCheetah"):
        imitation.pose_states(Config(env="Hopper-v5"), "flip", 4)


def test_errors_of_poses_know_no_whole_turns():
    pitch = torch.tensor([[0.0, 0.0], [9.0, 9.0], [-pi / 2, 3.5 * pi], [-pi / 2 + 0.2, 3.5 * pi - 0.4]])
    assert imitation.pose_errors(pitch, "upright", 0, 1).tolist() == pytest.approx([0.1, 0.2], abs=1e-5)
    turning = torch.linspace(0, 4 * pi, 11)[:, None] * torch.tensor([1.0, 0.0])
    rates = imitation.pose_errors(turning, "flip", 4 * pi / 5, 0.5)
    assert rates.tolist() == pytest.approx([0, 4 * pi / 5], abs=1e-5)
