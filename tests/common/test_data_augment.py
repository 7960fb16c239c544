"""Batched augmentation against a plain per-image NumPy oracle, bit for bit; its draws; the device-resident loader."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.augment import FIELDS, Augmentation
from common.data.loader import DeviceImages
from common.random import Stream

torch.set_num_threads(1)


def oracle(image: np.ndarray, augmentation: Augmentation, draw: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """One image [H, W, C] the slow way, by np.pad and slices; float32 [C, H, W], without noise."""
    height, width, _ = image.shape
    flip, crop_row, crop_column, shift_row, shift_column, cut_row, cut_column, _ = (int(value) for value in draw)
    if flip:
        image = image[:, ::-1]
    pad = augmentation.reflect_crop
    image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    image = image[crop_row : crop_row + height, crop_column : crop_column + width]
    border = augmentation.shift
    image = np.pad(image, ((border, border), (border, border), (0, 0)))
    image = image[shift_row : shift_row + height, shift_column : shift_column + width]
    result = image.astype(np.float32) * np.float32(scale) + np.float32(offset)
    if augmentation.cutout:
        row, column = cut_row * height // 65536, cut_column * width // 65536
        first_row, first_column = row - augmentation.cutout // 2, column - augmentation.cutout // 2
        last_row, last_column = first_row + augmentation.cutout, first_column + augmentation.cutout
        result[max(first_row, 0) : max(last_row, 0), max(first_column, 0) : max(last_column, 0)] = 0
    return result.transpose(2, 0, 1)


def pixels(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def assert_equals_oracle(images: np.ndarray, augmentation: Augmentation, seed: int, count: int, scale: float) -> None:
    index = np.random.default_rng(seed).integers(0, len(images), count)
    draws = augmentation.draw(Stream(seed, "augmentation"), range(3, 5), count)[1]
    batch = augmentation.apply(torch.from_numpy(images), torch.from_numpy(index), draws, scale, -1.0)
    expected = np.stack(
        [oracle(images[i], augmentation, draw, scale, -1.0) for i, draw in zip(index, draws.numpy(), strict=True)]
    )
    assert batch.dtype == torch.float32
    assert batch.numpy().tobytes() == expected.astype(np.float32).tobytes()
    assert batch.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(flip=True),
        Augmentation(reflect_crop=4),
        Augmentation(flip=True, reflect_crop=4),
        Augmentation(shift=2),
        Augmentation(cutout=16),
        Augmentation(cutout=5),
        Augmentation(flip=True, reflect_crop=3, shift=2, cutout=7),
    ],
)
@pytest.mark.parametrize("shape", [(6, 32, 32, 3), (6, 12, 17, 1), (4, 9, 5, 4)])
def test_equals_the_plain_oracle(augmentation: Augmentation, shape: tuple[int, ...]) -> None:
    assert_equals_oracle(pixels(shape), augmentation, 11, 40, 2 / 255)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    channels=st.integers(1, 4),
    flip=st.booleans(),
    crop=st.integers(0, 12),
    shift=st.integers(0, 15),
    cutout=st.integers(0, 30),
    seed=st.integers(0, 2**40),
)
def test_equals_the_plain_oracle_at_any_size(
    height: int, width: int, channels: int, flip: bool, crop: int, shift: int, cutout: int, seed: int
) -> None:
    augmentation = Augmentation(flip, min(crop, height - 1, width - 1), shift, cutout)
    assert_equals_oracle(pixels((3, height, width, channels), seed), augmentation, seed, 8, 1 / 8)


def test_reflection_needs_a_larger_image() -> None:
    images = torch.zeros(2, 8, 4, 3, dtype=torch.uint8)
    augmentation = Augmentation(reflect_crop=4)
    with pytest.raises(ValueError, match="reflect_crop=4 needs images larger than 8x4"):
        augmentation.apply(images, torch.tensor([0]), augmentation.draw(Stream(0, "a"), 0, 1))
    with pytest.raises(ValueError, match="needs the draws of a step"):
        augmentation.apply(images, torch.tensor([0]), None)
    with pytest.raises(ValueError, match="shift must not be negative"):
        Augmentation(shift=-1)


EVERYTHING = Augmentation(flip=True, reflect_crop=4, shift=1, cutout=8, noise=0.1)


def test_one_chunk_equals_step_by_step() -> None:
    images, index = torch.from_numpy(pixels((5, 16, 16, 3))), torch.tensor([4, 0, 2, 2])
    stream = Stream(5, "augmentation")
    chunk = EVERYTHING.draw(stream, range(10, 17), 4)
    assert chunk.shape == (7, 4, len(FIELDS))
    alone = torch.stack([EVERYTHING.draw(stream, step, 4) for step in range(10, 17)])
    given_tensor = EVERYTHING.draw(stream, torch.arange(10, 17), 4)
    assert torch.equal(chunk, alone) and torch.equal(chunk, given_tensor)
    for draws, single in zip(chunk, alone, strict=True):
        assert torch.equal(EVERYTHING.apply(images, index, draws), EVERYTHING.apply(images, index, single))


def test_views_are_rows_of_draws() -> None:
    images, index = torch.from_numpy(pixels((5, 16, 16, 3))), torch.tensor([4, 0, 2])
    stream = Stream(5, "augmentation")
    draws = EVERYTHING.draw(stream, range(2), 3, views=2)
    assert draws.shape == (2, 2, 3, len(FIELDS))
    assert torch.equal(draws[:, 0], EVERYTHING.draw(stream, range(2), 3))
    both = EVERYTHING.apply(images, index, draws[1])
    assert both.shape == (6, 3, 16, 16)
    assert torch.equal(both[:3], EVERYTHING.apply(images, index, draws[1, 0]))
    assert torch.equal(both[3:], EVERYTHING.apply(images, index, draws[1, 1]))
    assert not torch.equal(both[:3], both[3:])


def test_a_transform_leaves_the_draws_of_the_others() -> None:
    stream = Stream(5, "augmentation")
    everything, crop = EVERYTHING.draw(stream, range(4), 6), Augmentation(reflect_crop=4).draw(stream, range(4), 6)
    assert torch.equal(everything[..., 1:3], crop[..., 1:3])
    assert not crop[..., [0, 3, 4, 5, 6, 7]].any()


def test_statistics_of_the_draws() -> None:
    augmentation = Augmentation(flip=True, reflect_crop=4, shift=1, cutout=3)
    draws = augmentation.draw(Stream(1, "augmentation"), range(200), 100).reshape(-1, len(FIELDS)).numpy()
    total = len(draws)
    for column, values in ((0, 2), (1, 9), (2, 9), (3, 3), (4, 3)):
        counts = np.bincount(draws[:, column], minlength=values)
        assert len(counts) == values
        expected = total / values
        assert ((counts - expected) ** 2 / expected).sum() < values - 1 + 5 * np.sqrt(2 * values)  # chi-squared
    for column in (5, 6):
        counts = np.bincount(draws[:, column] * 32 >> 16, minlength=32)
        assert len(counts) == 32 and ((counts - total / 32) ** 2 / (total / 32)).sum() < 31 + 5 * np.sqrt(62)
    assert np.abs(np.corrcoef(draws[:, :7].T) - np.eye(7)).max() < 0.04


def test_noise_is_gaussian_and_different_everywhere() -> None:
    images, index = torch.full((2, 16, 16, 3), 16, dtype=torch.uint8), torch.arange(200) % 2
    augmentation = Augmentation(noise=0.1)
    draws = augmentation.draw(Stream(2, "augmentation"), range(2), 200)
    first, second = (augmentation.apply(images, index, step, 1 / 8, -1.0) - 1 for step in draws)
    assert abs(first.mean()) < 0.002 and abs(first.std() - 0.1) < 0.001
    assert len(first.flatten(1).unique(dim=0)) == 200 and not torch.equal(first, second)
    assert abs(np.corrcoef(first.flatten(1).numpy()) - np.eye(200)).max() < 0.3


def test_apply_is_one_graph_for_the_compiler() -> None:
    augmentation = Augmentation(flip=True, reflect_crop=2, shift=1, cutout=4)
    images, index = torch.from_numpy(pixels((5, 10, 10, 3))), torch.tensor([4, 0, 2])
    draws = augmentation.draw(Stream(5, "augmentation"), 0, 3)
    compiled = torch.compile(lambda i, d: augmentation.apply(images, i, d), backend="eager", fullgraph=True)
    assert torch.equal(compiled(index, draws), augmentation.apply(images, index, draws))


class TestDeviceImages:
    def test_gather_scales_and_keeps_the_memory_order(self) -> None:
        images = pixels((9, 8, 10, 3))
        loader = DeviceImages(images, np.arange(9) % 3)
        batch = loader.gather(torch.tensor([2, 7]))
        expected = images[[2, 7]].astype(np.float32) * np.float32(2 / 255) - np.float32(1)
        assert np.array_equal(batch.permute(0, 2, 3, 1).numpy(), expected)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert loader.image_shape == (3, 8, 10) and len(loader) == 9
        assert batch.min() >= -1 and batch.max() <= 1

    def test_digits_scale(self) -> None:
        digits = DeviceImages(np.array([0, 8, 16], np.uint8).reshape(3, 1, 1, 1), scale=1 / 8)
        assert digits.gather(torch.arange(3)).flatten().tolist() == [-1, 0, 1]
        assert digits.labels.tolist() == [-1, -1, -1]

    def test_gather_augments(self) -> None:
        loader = DeviceImages(pixels((9, 8, 10, 1)), scale=1 / 8)
        index, draws = torch.tensor([1, 1]), EVERYTHING.draw(Stream(0, "a"), range(3), 2)
        expected = EVERYTHING.apply(loader.images, index, draws[2], 1 / 8, -1.0)
        assert torch.equal(loader.gather(index, EVERYTHING, draws[2]), expected)

    def test_batches_visit_everything_once_in_order(self) -> None:
        loader = DeviceImages(pixels((10, 4, 4, 3)), np.arange(10))
        images, labels = zip(*loader.batches(4), strict=True)
        assert [len(batch) for batch in images] == [4, 4, 2]
        assert torch.cat(labels).tolist() == list(range(10))
        assert torch.equal(torch.cat(images), loader.gather(torch.arange(10)))

    def test_subset(self) -> None:
        loader = DeviceImages(pixels((10, 4, 4, 3)), np.arange(10), scale=1 / 8, offset=0.5)
        part = loader.subset(np.array([7, 3]))
        assert part.labels.tolist() == [7, 3]
        assert torch.equal(part.gather(torch.tensor([0, 1])), loader.gather(torch.tensor([7, 3])))

    def test_wrong_input(self) -> None:
        with pytest.raises(ValueError, match="images must be uint8"):
            DeviceImages(np.zeros((2, 3, 3, 1), np.float32))
        with pytest.raises(ValueError, match="2 images need as many labels"):
            DeviceImages(np.zeros((2, 3, 3, 1), np.uint8), np.zeros(3))
