"""Splits of the experiments and the generated textures."""

import numpy as np
import pytest

from common.errors import UserError
from papers.mixmatch.config import Config
from papers.mixmatch.data import DIGITS_TEST, load_split, textures
from tests import miniatures


def test_digits_split_is_disjoint_balanced_and_a_function_of_the_seed():
    config = Config(dataset="digits", num_labeled=20)
    split, again, other = (load_split(config, seed, None) for seed in (7, 7, 8))
    images, labels = split.labeled
    assert np.bincount(labels).tolist() == [2] * 10
    assert len(split.test[1]) == DIGITS_TEST
    assert len(split.unlabeled) == 1797 - DIGITS_TEST - 20
    np.testing.assert_array_equal(images, again.labeled[0])
    assert not np.array_equal(images, other.labeled[0])

    def keys(part):
        return {image.tobytes() for image in part}

    assert not keys(images) & keys(split.unlabeled)
    assert not keys(images) & keys(split.test[0])


def test_textures_are_balanced_deterministic_and_use_the_range():
    images, labels = textures(200, seed=3, size=16)
    assert images.shape == (200, 16, 16, 3)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [20] * 10
    np.testing.assert_array_equal(images, textures(200, seed=3, size=16)[0])
    assert 60 < images.mean() < 195
    assert images.std() > 40


def test_a_textures_class_is_its_orientation():
    # The dominant frequency of the spectrum must turn with the class.
    images, labels = textures(300, seed=5)
    grey = images.mean(-1) - images.mean((1, 2, 3), keepdims=True)[..., 0]
    spectrum = np.abs(np.fft.fft2(grey)) ** 2
    frequency = np.fft.fftfreq(32)
    y, x = np.meshgrid(frequency, frequency, indexing="ij")
    peak = spectrum.reshape(len(images), -1).argmax(1)
    angle = np.arctan2(y.ravel()[peak], x.ravel()[peak]) % np.pi
    off = np.abs(angle - labels * np.pi / 10)
    off = np.minimum(off, np.pi - off)
    assert np.median(off) < np.pi / 20


def test_more_labels_than_images_is_one_clear_line():
    with pytest.raises(UserError, match="fewer than 5000 labels"):
        load_split(Config(dataset="digits", num_labeled=5000), 0, None)


def test_extra_images_join_the_pool(tmp_path):
    miniatures.write_svhn(tmp_path, count=60)
    plain = load_split(Config(dataset="svhn", num_labeled=20), 0, tmp_path)
    extra = load_split(Config(dataset="svhn+extra", num_labeled=20), 0, tmp_path)
    assert len(extra.unlabeled) > len(plain.unlabeled)
    assert len(plain.labeled[1]) == len(extra.labeled[1]) == 20


def test_stl10_uses_the_predefined_fold_and_its_unlabelled_images(tmp_path):
    miniatures.write_stl10(tmp_path, count=20, unlabeled=15, fold_size=5)
    split = load_split(Config(dataset="stl10", num_labeled=5), 3, tmp_path)
    other = load_split(Config(dataset="stl10", num_labeled=5), 4, tmp_path)
    assert len(split.labeled[1]) == 5
    assert len(split.unlabeled) == 20 - 5 + 15
    assert not np.array_equal(split.labeled[0], other.labeled[0])


def test_all_labels_leave_the_images_as_the_pool(tmp_path):
    miniatures.write_mnist(tmp_path, count=60)
    split = load_split(Config(dataset="mnist", num_labeled=0), 0, tmp_path)
    assert len(split.labeled[1]) == len(split.unlabeled) == 60
