"""The official labelled split against a slow plain version; STL-10's folds; random test splits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.splits import fold_split, labeled_split, train_test_split
from common.errors import UserError


def plain_split(labels: list[int], num_labeled: int, seed: int, num_classes: int) -> list[int]:
    """The rule of the spec's section 9 in words: lists, one global seed, largest deficit first."""
    np.random.seed(seed)
    by_class: list[list[int]] = []
    for label in range(num_classes):
        by_class.append([i for i, value in enumerate(labels) if value == label])
    for members in by_class:
        np.random.shuffle(members)
    largest = max(len(members) for members in by_class)
    taken = [0] * num_classes
    chosen: list[int] = []
    while len(chosen) < num_labeled:
        best, best_deficit = -1, -np.inf
        for label in range(num_classes):
            if taken[label] == len(by_class[label]):
                continue
            deficit = len(by_class[label]) / largest - taken[label] / max(*taken, 1)
            if deficit > best_deficit:
                best, best_deficit = label, deficit
        chosen.append(by_class[best][taken[best]])
        taken[best] += 1
    return chosen


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_classes=st.integers(2, 7), seed=st.integers(0, 1000))
def test_equals_the_plain_version(data: st.DataObject, num_classes: int, seed: int) -> None:
    labels = data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=60))
    num_labeled = data.draw(st.integers(1, len(labels)))
    split = labeled_split(np.array(labels), num_labeled, seed, num_classes)
    assert split.labeled.tolist() == plain_split(labels, num_labeled, seed, num_classes)
    assert split.unlabeled.tolist() == sorted(set(range(len(labels))) - set(split.labeled.tolist()))


def test_balanced_sets_give_balanced_labels() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(2000) % 10)
    for num_labeled in (20, 250, 1000):
        split = labeled_split(labels, num_labeled, seed=1)
        assert np.bincount(labels[split.labeled]).tolist() == [num_labeled // 10] * 10
        assert split.labeled.dtype == np.int64 and len(split.unlabeled) == 2000 - num_labeled


def test_uneven_sets_give_proportional_labels() -> None:
    sizes = np.array([500, 1000, 250, 125])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), sizes))
    counts = np.bincount(labels[labeled_split(labels, 150, seed=3).labeled])
    assert np.abs(counts - 150 * sizes / sizes.sum()).max() <= 1.5


def test_seeds_differ_and_larger_splits_begin_with_smaller() -> None:
    labels = np.arange(300) % 10
    small, large = labeled_split(labels, 20, 5), labeled_split(labels, 100, 5)
    assert np.array_equal(large.labeled[:20], small.labeled)
    assert not np.array_equal(small.labeled, labeled_split(labels, 20, 6).labeled)


def test_everything_can_be_labelled_but_no_more() -> None:
    labels = np.array([0, 0, 0, 2, 2])
    assert sorted(labeled_split(labels, 5, 0, num_classes=3).labeled.tolist()) == [0, 1, 2, 3, 4]
    for wrong in (0, 6):
        with pytest.raises(UserError, match=f"{wrong} labelled images of 5"):
            labeled_split(labels, wrong, 0)


def test_folds() -> None:
    folds = np.array([[3, 1], [0, 4]])
    split = fold_split(folds, 1, 6)
    assert split.labeled.tolist() == [0, 4] and split.unlabeled.tolist() == [1, 2, 3, 5]
    with pytest.raises(UserError, match="no fold 2: choose 0 to 1"):
        fold_split(folds, 2, 6)


def test_train_test_split() -> None:
    train, test = train_test_split(1797, 500, seed=0)
    assert len(train) == 1297 and len(test) == 500
    assert sorted([*train, *test]) == list(range(1797))
    assert not np.array_equal(test, train_test_split(1797, 500, seed=1)[1])
    with pytest.raises(UserError, match="5 test images of 5"):
        train_test_split(5, 5, 0)
