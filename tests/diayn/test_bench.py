"""Every case of the benchmark runs, and both of its paths compute the same; no test asserts a time."""

import numpy as np

from common.bench import Setting
from common.runs import Execution
from papers.diayn import bench

SMALL = Setting(Execution(), "cpu (test)", small=True)


def test_every_case_and_that_both_paths_agree():
    found = {row["case"].removesuffix(" (smoke)"): row for row in bench.rows(SMALL)}
    updates = {"update: box, 64x64", "update v2018: box, 64x64", "update, 5 seeds stacked: box, 64x64"}
    boxes = {f"env box, {copies} {words}" for copies in (16, 80) for words in ("copies", "NumPy copies")}
    assert set(found) == updates | boxes | {"training step"}
    for case, row in found.items():
        assert row["equivalence"] <= 1e-5 and row["ratio"] > 0, case
    assert all(found[case]["floor"] > 0 and found[case]["unit"] == "us/update" for case in updates)


def test_the_cases_are_those_of_the_issue():
    (box, *small), (_, *cheetah) = bench.SIZES["box, 64x64"], bench.SIZES["HalfCheetah, 64x64"]
    assert small == [2, 2] and cheetah == [17, 6] and box.width == 64 and box.batch_size == 128
    assert set(bench.COPIES) == {16, 80, 256, 1024} and bench.BOX_CONFIG.copies == 16


def test_the_box_by_hand_is_the_paper_s():
    """Invariant 10 on the benchmark's plain environment."""
    env = bench.NumpyBox()
    place, _ = env.reset()
    assert place.tolist() == [0.5, 0.5]
    moves = [(0.1, 0.05), *[(0.1, 0.1)] * 4, (0.1, -0.1)]
    places = [env.step(np.array(move, np.float32))[0] for move in moves]
    expected = [(0.6, 0.55), (0.7, 0.65), (0.8, 0.75), (0.9, 0.85), (1.0, 0.95), (1.0, 0.85)]
    assert np.allclose(places, expected, atol=1e-6)
    assert np.allclose(env.step(np.array([-0.3, 0.0], np.float32))[0], (0.9, 0.85), atol=1e-6)


def test_the_floor_counts_the_products_of_an_update(monkeypatch):
    """Worked out for the twin variant: products of the forward passes and of the gradients that are needed."""
    config, observation, action = bench.SIZES["box, 64x64"]
    monkeypatch.setattr(bench, "matrix_seconds", lambda device, small: 1e-6)
    skills, width, batch = config.skills, config.width, config.batch_size
    hidden, state = width * width, observation + skills
    policy, critic, classifier = (
        (inputs * width, hidden, width * outputs)
        for inputs, outputs in ((state, 2 * action), (state + action, 1), (observation, skills))
    )
    # Forward; the weights' gradient is as much again; the inputs' gradient but for the first layer.
    trained = sum(3 * sum(each) - each[0] for each in (policy, critic, critic, classifier))
    # pi(s'), both targets, and both critics of the policy's action, with the gradient of that action alone.
    others = sum(policy) + 2 * sum(critic) + 2 * (2 * sum(critic) - critic[0] + action * width)
    floor = bench.floor_of(bench.learner_of(config, observation, action, 1, "cpu"), SMALL)
    # Small ones (of output layers) may be computed in another way.
    assert abs(floor / (2 * batch * (trained + others)) - 1) < 0.05
