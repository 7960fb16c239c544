"""Not-so-Clevr: the images, the splits and the IOU (spec, invariants 6-8)."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from papers.coordconv.data import RELEASED_GREY, SPLITS, NotSoClevr, iou


def test_invariant_6_samples_and_pixels():
    data = NotSoClevr()
    assert len(data) == 3136 and data.centers.min() == 4 and data.centers.max() == 59
    total, lit = torch.zeros(64, 64), []
    for index in torch.arange(len(data)).split(448):
        images = data.squares(index)
        assert images.dtype == torch.float32 and images.shape == (len(index), 64, 64)
        lit.append(images.sum((1, 2)))
        total += images.sum(0)
    assert (torch.cat(lit) == 81).all()
    assert total[32, 32] == 81 and total[0, 0] == 1


def test_small_canvas():
    data = NotSoClevr(32, 5)
    assert len(data) == 784 and data.centers.unique().tolist() == list(range(2, 30))
    assert (data.squares(torch.arange(784)).sum((1, 2)) == 25).all()


def test_images_as_the_paper_makes_them():
    """One-hot images are an identity matrix, padded; squares are these under a box filter."""
    data = NotSoClevr(16, 5)
    everything = torch.arange(len(data))
    onehot = F.pad(torch.eye(144).view(144, 1, 12, 12), (2, 2, 2, 2))
    assert torch.equal(data.onehot(everything), onehot)
    assert torch.equal(data.squares(everything), F.conv2d(onehot, torch.ones(1, 1, 5, 5), padding=2)[:, 0])
    assert torch.equal(data.labels(everything), onehot.flatten(1).argmax(1))


def test_row_is_y_and_column_is_x():
    data = NotSoClevr(16, 5)
    index = (data.centers == torch.tensor([7, 3])).all(1).nonzero()[0]
    assert data.labels(index).tolist() == [3 * 16 + 7]
    assert data.onehot(index)[0, 0, 3, 7] == 1
    assert data.squares(index)[0, 1:6, 5:10].sum() == 25
    assert data.labels(index.view(1, 1)).shape == (1, 1)


@pytest.mark.parametrize(
    ("canvas", "square", "name", "train", "test"),
    [
        (64, 9, "uniform", 2509, 627),
        (64, 9, "quadrant", 2352, 784),
        (64, 9, "quadrant-released", 2407, 729),
        (32, 5, "uniform", 627, 157),
        (32, 5, "quadrant", 588, 196),
        (32, 5, "quadrant-released", 615, 169),
    ],
)
def test_invariant_7_counts(canvas: int, square: int, name: str, train: int, test: int):
    assert tuple(map(len, NotSoClevr(canvas, square).split(name, 3))) == (train, test)


@pytest.mark.parametrize("name", SPLITS)
def test_invariant_7_disjoint_and_whole(name: str):
    data = NotSoClevr()
    train, test = data.split(name, 7)
    assert train.dtype == test.dtype == torch.int64
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(3136))
    again = data.split(name, 7)
    assert torch.equal(train, again[0]) and torch.equal(test, again[1])
    depends_on_seed = not torch.equal(data.split(name, 8)[1][:100], test[:100])
    assert depends_on_seed == name.startswith("uniform")


def test_quadrants():
    data = NotSoClevr()
    _, test = data.split("quadrant")
    assert data.centers[test].min() == 32
    _, test = data.split("quadrant-released")
    assert data.centers[test].min() == 33


def test_coins_of_the_released_split():
    data = NotSoClevr()
    sizes = [len(data.split("uniform-released", seed)[1]) for seed in range(10)]
    assert len(set(sizes)) > 1
    assert all(abs(size - 784) < 4 * (3136 * 3 / 16) ** 0.5 for size in sizes)


def test_errors():
    with pytest.raises(UserError, match="no split 'half'"):
        NotSoClevr(16, 5).split("half")
    for square in (4, 17):
        with pytest.raises(UserError, match="odd side that fits"):
            NotSoClevr(16, square)


def test_invariant_8_iou():
    data = NotSoClevr()
    corner = torch.tensor([0])
    square = data.squares(corner)

    def shifted(x: int, y: int) -> torch.Tensor:
        return data.squares(corner + y * data.side + x)

    assert iou(square > 0, shifted(1, 0)).item() == pytest.approx(0.8)
    assert iou(square > 0, shifted(1, 1)).item() == pytest.approx(0.653061, abs=1e-6)
    assert iou(square > 0, shifted(2, 0)).item() == pytest.approx(0.636364, abs=1e-6)
    assert iou(torch.zeros_like(square), square).item() == 0
    assert iou(2 * square - 1, square).item() == 1
    both = iou(torch.cat([square, shifted(1, 0)]) - 0.5, torch.cat([square, square]))
    assert both.tolist() == pytest.approx([1, 0.8])


def test_released_grey_squares():
    grey = NotSoClevr(16, 5, brightness=RELEASED_GREY).squares(torch.arange(4))
    assert iou(grey > 0, grey).tolist() == pytest.approx([0.50196] * 4, abs=1e-5)
