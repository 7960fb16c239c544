"""Sort-of-CLEVR, generated, and LSUN, read from a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from papers.coordconv.gan.data import FolderImages, SortOfClevr, circle_half_widths, read_folder, shape_areas
from papers.coordconv.gan.measures import Layout, entropies

WHITE, BLUE, RED = [1.0, 1.0, 1.0], [-1.0, -1.0, 1.0], [1.0, -1.0, -1.0]


def test_a_circle_has_the_row_widths_of_the_spec() -> None:
    widths = [2 * half + 1 for half in circle_half_widths(10)[::-1]]
    assert widths == [1, 9, 13, 15, 17, 17, 19, 19, 19, 19, 21]
    assert shape_areas(10) == [441, 317] and shape_areas(10, "square") == [441]
    # Symmetric about the diagonal, as a circle is.
    for radius in (2, 5, 13):
        half = circle_half_widths(radius)
        assert all((y <= half[x]) == (x <= half[y]) for x in range(radius + 1) for y in range(radius + 1))


def test_invariant_13_distribution_of_centres() -> None:
    images, layout = SortOfClevr(0, 100_000), Layout(64, 2, "both")
    found = entropies(images.centers.numpy(), layout)
    assert found == pytest.approx({"blue": 4.150, "red": 4.118, "difference": 3.836}, abs=0.005)
    few = entropies(images.centers[:1000].numpy(), layout)
    assert few == pytest.approx({"blue": 4.12, "red": 4.08, "difference": 3.82}, abs=0.03)
    assert images.centers.min() == 10 and images.centers.max() == 53
    apart = (images.centers[:, 0] - images.centers[:, 1]).square().sum(-1)
    assert apart.min() >= 400
    assert images.circles.float().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def test_an_image_is_a_function_of_seed_and_index() -> None:
    many, few = SortOfClevr(3, 12_000), SortOfClevr(3, 20)
    assert torch.equal(many.centers[:20], few.centers) and torch.equal(many.circles[:20], few.circles)
    assert not torch.equal(few.centers, SortOfClevr(4, 20).centers)
    assert not torch.equal(few.centers, SortOfClevr(3, 20, stream="unseen objects").centers)


@pytest.mark.parametrize(("canvas", "areas"), [(64, (441, 317)), (32, (121, 81))])
def test_drawing_is_exact_and_red_lies_over_blue(canvas: int, areas: tuple[int, int]) -> None:
    images = SortOfClevr(1, 200, canvas)
    index = torch.arange(200)
    drawn, masks = images.gather(index), images.masks(index)
    assert drawn.shape == (200, 3, canvas, canvas) and drawn.is_contiguous(memory_format=torch.channels_last)
    expected = torch.tensor(areas)[images.circles]
    assert torch.equal(masks.sum((2, 3)), expected)
    for i in range(50):
        (bx, by), (rx, ry) = images.centers[i].tolist()
        picture = drawn[i].permute(1, 2, 0)
        assert picture[ry, rx].tolist() == RED and picture[by, bx].tolist() in (BLUE, RED)
        red, blue = masks[i, 1], masks[i, 0] & ~masks[i, 1]
        assert (picture[red] == torch.tensor(RED)).all() and (picture[blue] == torch.tensor(BLUE)).all()
        assert (picture[~red & ~masks[i, 0]] == torch.tensor(WHITE)).all()
    assert (masks[:, 0] & masks[:, 1]).any(), "some objects overlap"


def test_one_square() -> None:
    images = SortOfClevr(0, 64, 32, objects=1, shapes="square")
    drawn = images.gather(torch.arange(64))
    assert images.centers.shape == (64, 1, 2) and images.circles.sum() == 0
    assert ((drawn[:, 1] < 0).sum((1, 2)) == 121).all() and (drawn[:, 2] == 1).all()


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    folder = tmp_path / "lsun-bedrooms"
    with pytest.raises(UserError, match="DATA_DIR is not set"):
        read_folder(None, 16)
    with pytest.raises(UserError, match="no folder"):
        read_folder(tmp_path, 16)
    (folder / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        read_folder(tmp_path, 16)
    # Twice as wide as high: red, then green in the middle half, then blue.
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, :16, 0] = wide[:, 16:48, 1] = wide[:, 48:, 2] = 255
    Image.fromarray(wide).save(folder / "inner" / "b.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(folder / "a.webp", lossless=True)
    Image.new("L", (8, 8), 255).save(folder / "c.JPG", format="jpeg")
    images = read_folder(tmp_path, 16)
    assert images.shape == (3, 16, 16, 3) and images[1].min() >= 250, "in the order of paths; grey as RGB"
    assert all((image[2:-2, 2:-2] == (0, 255, 0)).all() for image in images[[0, 2]]), "the middle is cut out"
    assert len(read_folder(tmp_path, 16, limit=2)) == 2
    batch = FolderImages(images).gather(torch.tensor([1, 0]))
    assert batch.shape == (2, 3, 16, 16) and batch[1, :, 8, 8].tolist() == [-1, 1, -1]
    (folder / "d.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"d\.jpg cannot be read"):
        read_folder(tmp_path, 16)
