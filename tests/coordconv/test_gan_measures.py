"""The measures on images whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from papers.coordconv.gan.data import SortOfClevr
from papers.coordconv.gan.measures import Layout, Scene, distribution, entropy, histogram, look, smoothness

TWO = Layout(64, 2, "both")
ONE = Layout(32, 1, "square")


def square(x: int, y: int, side: int = 11, strength: float = 1.0) -> Tensor:
    """A white 32 x 32 image [3, 32, 32] with a blue square around (x, y), as dark as `strength`."""
    image = torch.ones(3, 32, 32)
    half = side // 2
    image[:2, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1] = 1 - 2 * strength
    return image


def test_the_data_are_right() -> None:
    images = SortOfClevr(0, 400)
    scene = look(images.gather(torch.arange(400)), TWO)
    assert scene.right.all() and scene.present.all()
    assert np.array_equal(scene.centers[:, 1], images.centers[:, 1].numpy()), "red hides nothing of itself"
    # Red hides some of blue: its centre moves a little.
    assert np.abs(scene.centers[:, 0] - images.centers[:, 0].numpy()).max() < 2
    numbers = distribution(scene, TWO)
    assert numbers["right_objects"] == 100 and numbers["missing_blue"] == numbers["missing_red"] == 0
    assert set(numbers) == {
        *(f"entropy_{name}" for name in ("blue", "red", "difference")),
        *("missing_blue", "missing_red", "right_objects"),
    }


def test_wrong_images_are_not_right() -> None:
    good, empty = square(10, 20), torch.ones(3, 32, 32)
    twice = torch.minimum(square(6, 6), square(25, 25))
    huge, speck = square(16, 16, 25), square(16, 16, 3)
    red = square(10, 20)[[2, 1, 0]]
    with_specks = torch.minimum(good, square(28, 3, 3))
    scene = look(torch.stack([good, empty, twice, huge, speck, red, with_specks]), ONE)
    assert scene.right.tolist() == [True, False, False, False, False, False, True]
    assert scene.present[:, 0].tolist() == [True, False, True, True, False, False, True]
    assert scene.centers[0, 0].tolist() == [10, 20] and np.isnan(scene.centers[1]).all()
    numbers = distribution(scene, ONE)
    assert numbers["missing_blue"] == pytest.approx(300 / 7) and numbers["right_objects"] == pytest.approx(200 / 7)


def test_entropy_of_known_histograms() -> None:
    # One point in each bin; all in one; beyond the edge; none.
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 5.5 + 10
    assert entropy(grid, 10, 54) == pytest.approx(math.log(64)) == pytest.approx(4.158883)
    assert entropy(np.full((9, 2), 30.0), 10, 54) == 0
    assert entropy(np.zeros((0, 2)), 10, 54) == 0
    counts = histogram(np.array([[9.0, 30.0], [53.9, 10.0], [70.0, 10.0]]), 10, 54)
    assert counts[3, 0] == 1 and counts[0, 7] == 2 and counts.sum() == 3, "rows are y, columns x"
    half = np.array([[12.0, 12.0]] * 5 + [[50.0, 50.0]] * 5)
    assert entropy(half, 10, 54) == pytest.approx(math.log(2))


def test_moving_is_smooth_and_fading_is_not() -> None:
    frames = 9
    moves = [square(6 + 2 * t, 10) for t in range(frames)]
    share = [t / (frames - 1) for t in range(frames)]
    # In the middle frame both are half as dark, and both are seen: two steps of 8 pixels, six of none.
    fades = [torch.minimum(square(6, 10, strength=1 - s), square(22, 10, strength=s)) for s in share]
    moved = smoothness(look(torch.stack(moves), ONE), ONE, frames)
    faded = smoothness(look(torch.stack(fades), ONE), ONE, frames)
    assert moved == pytest.approx({"step_variance": 0.0, "kept_mass": 100.0, "path_length": 16.0})
    assert faded["path_length"] == pytest.approx(16) and faded["step_variance"] == pytest.approx(12)
    assert faded["kept_mass"] == pytest.approx(800 / 9)
    # Two paths: the mean of both. Nothing anywhere: no movement, no mass.
    both = smoothness(look(torch.stack([*moves, *fades]), ONE), ONE, frames)
    assert both["step_variance"] == pytest.approx(6)
    nothing = smoothness(look(torch.ones(frames, 3, 32, 32), ONE), ONE, frames)
    assert nothing == {"step_variance": 0.0, "kept_mass": 0.0, "path_length": 0.0}


def test_a_path_that_begins_without_its_object_waits_where_it_appears() -> None:
    centers = np.full((4, 1, 2), np.nan)
    centers[2:, 0] = [[5.0, 5.0], [5.0, 9.0]]
    scene = Scene(centers, np.array([[0], [0], [121], [121]]), np.zeros(4, bool))
    found = smoothness(scene, ONE, 4)
    assert found["path_length"] == 4 and found["kept_mass"] == 50
