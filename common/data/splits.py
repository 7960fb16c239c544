"""Which images are labelled: the splits of the semi-supervised protocol.

NumPy's legacy generator (`RandomState`) is used because its shuffles are frozen for ever, and because the official
code used it: with the official file order the same seed gives the official split.
"""

from typing import NamedTuple

import numpy as np

from common.errors import UserError


class Split(NamedTuple):
    """labeled: int64 [n], in the order in which they were chosen; unlabeled: int64, the rest in ascending order."""

    labeled: np.ndarray
    unlabeled: np.ndarray


def labeled_split(labels: np.ndarray, num_labeled: int, seed: int, num_classes: int | None = None) -> Split:
    """The official split of google-research/mixmatch (spec, section 9).

    Each class's list of images is shuffled, classes in order, by one generator with this seed. Then an image is taken
    again and again from the class with the largest deficit against the training distribution: the first largest
    n_c / max(n) - taken_c / max(taken). So the labelled images have the proportions of the classes, and a larger
    split with the same seed begins with the smaller one. labels: [N] integers from 0; num_classes: from the labels
    where None. UserError when more labels are asked for than there are images.
    """
    labels = np.asarray(labels)
    if not 0 < num_labeled <= len(labels):
        raise UserError(f"{num_labeled} labelled images of {len(labels)} is impossible: choose 1 to {len(labels)}")
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    generator = np.random.RandomState(seed)
    queues = [np.flatnonzero(labels == label) for label in range(num_classes)]
    for queue in queues:
        generator.shuffle(queue)
    sizes = np.array([len(queue) for queue in queues])
    wanted, taken = sizes / sizes.max(), np.zeros(num_classes, np.int64)
    chosen = np.empty(num_labeled, np.int64)
    for position in range(num_labeled):
        deficit = wanted - taken / max(taken.max(), 1)
        label = int(np.where(taken < sizes, deficit, -np.inf).argmax())
        chosen[position] = queues[label][taken[label]]
        taken[label] += 1
    return Split(chosen, without(len(labels), chosen))


def fold_split(folds: np.ndarray, fold: int, num_images: int) -> Split:
    """STL-10's predefined fold (from 0): its training images are labelled, the others of num_images are not."""
    if not 0 <= fold < len(folds):
        raise UserError(f"there is no fold {fold}: choose 0 to {len(folds) - 1}")
    return Split(folds[fold], without(num_images, folds[fold]))


def train_test_split(num_images: int, num_test: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random disjoint training and test indices (int64, ascending) for a set that comes without a test part."""
    if not 0 < num_test < num_images:
        raise UserError(f"{num_test} test images of {num_images} is impossible: choose 1 to {num_images - 1}")
    test = np.sort(np.random.RandomState(seed).permutation(num_images)[:num_test])
    return without(num_images, test), test


def without(count: int, index: np.ndarray) -> np.ndarray:
    """0..count-1 without the given ones, ascending."""
    keep = np.ones(count, bool)
    keep[index] = False
    return np.flatnonzero(keep)
