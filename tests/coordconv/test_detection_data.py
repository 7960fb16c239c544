"""Scattered digits: against Pillow digit by digit, boxes, splits, and images that depend on their index alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.random import Stream
from papers.coordconv.detection import data


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return data.sources("digits", 0, None)


def plain_image(
    digits: np.ndarray, count: int, index: int, seed: int, binarised: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One image the slow way: Pillow draws each cropped digit on the 120 x 120 canvas. (image, boxes)"""
    canvas = np.zeros((120, 120))
    stream = Stream(seed, "images")
    boxes = data.place(stream.child("boxes"), torch.tensor([index]), 3)[0].numpy()
    for p, (i, j, height, width) in enumerate(boxes.astype(float)):
        digit = digits[stream.child(f"digit {p}").epochs(range(count), 1, len(digits))[index, 0]]
        rows, columns = np.flatnonzero(digit.sum(1)), np.flatnonzero(digit.sum(0))
        crop = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        crop = (255 * crop).round().astype(np.uint8) if binarised else crop
        down, right = crop.shape[0] / height, crop.shape[1] / width
        affine = (right, 0, -(j - width / 2) * right, 0, down, -(i - height / 2) * down)
        drawn = Image.fromarray(crop).transform((120, 120), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        canvas += np.asarray(drawn)
    boxes[:, :2] -= 28
    return np.minimum(canvas, 1.0)[28:92, 28:92], boxes


@pytest.mark.parametrize("binarised", [False, True])
def test_images_are_what_pillow_draws(digits: tuple[np.ndarray, np.ndarray], binarised: bool) -> None:
    source = digits[0][:50]
    images = data.scatter(source, 60, 3, Stream(3, "images"), binarised)
    assert images.images.shape == (60, 64, 64) and images.boxes.shape == (60, 3, 4)
    for index in (0, 7, 59):
        expected, boxes = plain_image(source, 60, index, 3, binarised)
        assert np.array_equal(images.boxes[index].numpy(), boxes)
        error = np.abs(images.images[index].numpy() / 255 - expected)
        # Positions are float32 here and float64 there: a pixel on the edge of a box, or of a grey level, may differ.
        assert (error > 0.004).mean() < 0.002, error.max()
    if binarised:
        assert set(images.images.unique().tolist()) == {0, 255}


def test_boxes_hold_their_digits(digits: tuple[np.ndarray, np.ndarray]) -> None:
    one = data.scatter(digits[0], 200, 1, Stream(0, "images"))
    sizes = one.boxes[:, 0, 2:]
    assert sizes.min() >= 15 and sizes.max() <= 25
    canvas = one.boxes[:, 0, :2] + 28
    assert (canvas >= sizes / 2 - 1e-4).all() and (canvas + sizes / 2 <= 120 + 1e-4).all()
    seen = 0
    for image, (i, j, height, width) in zip(one.images, one.boxes[:, 0].tolist(), strict=True):
        lit = image.nonzero() + 0.5
        if len(lit) == 0:
            assert not (8 < i < 56 and 8 < j < 56)
            continue
        low, high = lit.min(0).values, lit.max(0).values
        assert low[0] >= i - height / 2 and high[0] <= i + height / 2
        assert low[1] >= j - width / 2 and high[1] <= j + width / 2
        inside = height / 2 < i < 64 - height / 2 and width / 2 < j < 64 - width / 2
        if inside:  # and it fills its box
            seen += 1
            assert (high - low)[0] > 0.8 * height - 2 and (high - low)[1] > 0.8 * width - 2
    assert seen > 20


def test_an_image_is_a_function_of_seed_and_index(digits: tuple[np.ndarray, np.ndarray]) -> None:
    few, many = (data.scatter(digits[0], count, 5, Stream(4, "images")) for count in (10, data.CHUNK + 20))
    assert torch.equal(few.images, many.images[:10]) and torch.equal(few.boxes, many.boxes[:10])
    other = data.scatter(digits[0], 10, 5, Stream(5, "images"))
    assert not torch.equal(few.images, other.images)
    batch = few.gather(torch.tensor([3, 1]))
    assert batch.shape == (2, 1, 64, 64) and batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch[0, 0], few.images[3] / 255)


def test_the_parts_of_digits_are_disjoint_and_drawn_by_the_seed(digits: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = digits
    assert len(train) == 1438 and len(test) == 359 and train.max() == test.max() == 1.0
    whole = {image.tobytes() for part in digits for image in part}
    assert len(whole) > 1790  # nearly all are different, so none went lost
    assert not np.array_equal(test, data.sources("digits", 1, None)[1])


def test_mnist_comes_from_its_own_parts(tmp_path: Path) -> None:
    from tests.miniatures import write_mnist

    write_mnist(tmp_path)
    train, test = data.sources("mnist", 0, tmp_path)
    assert train.shape[1:] == test.shape[1:] == (28, 28) and train.dtype == np.float32 and train.max() <= 1
    assert data.scatter(train, 8, 5, Stream(0, "images")).images.any()
