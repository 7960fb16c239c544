"""Not-so-Clevr: a square at every place of a small canvas (spec 9), generated exactly and kept on the device."""

import torch
from torch import Tensor

from common.errors import UserError
from common.random import Stream

SPLITS = ("uniform", "uniform-released", "quadrant", "quadrant-released")
RELEASED_GREY = 128 / 255


class NotSoClevr:
    """All centres at which a square fits on the canvas, with their images; sample i = (y - r) * side + (x - r).

    Of 64x64 pixels and 9x9 squares: x and y in 4..59, 3,136 samples; of 32x32 and 5x5: 2..29, 784 samples.

    Args:
        canvas: height and width of the images in pixels.
        square: side of the squares in pixels, odd; r = square // 2.
        device: where the tensors are.
        brightness: of a square's pixels. The released script draws RELEASED_GREY, with which a perfect painter has an
            IOU of 0.502 (spec 8); squares here are white.

    Raises:
        UserError: if the square's side is even or it does not fit.
    """

    def __init__(
        self, canvas: int = 64, square: int = 9, device: torch.device | str = "cpu", brightness: float = 1.0
    ) -> None:
        if square % 2 == 0 or not 0 < square <= canvas:
            raise UserError(f"a square of {square} pixels on a canvas of {canvas}: take an odd side that fits")
        self.canvas, self.square, self.brightness = canvas, square, brightness
        self.device = torch.device(device)
        self.side = canvas - square + 1
        axis = torch.arange(square // 2, square // 2 + self.side, device=self.device)
        self.centers = torch.stack([axis.repeat(self.side), axis.repeat_interleave(self.side)], dim=1)
        self._axis = torch.arange(canvas, device=self.device)
        self._pixels = torch.arange(canvas * canvas, device=self.device)

    def __len__(self) -> int:
        return len(self.centers)

    def labels(self, index: Tensor) -> Tensor:
        """Indices [...] -> the centre's pixel in the flattened image, y * canvas + x, int64 [...]."""
        x, y = self.centers[index].unbind(-1)
        return y * self.canvas + x

    def onehot(self, index: Tensor) -> Tensor:
        """Indices [B] -> images of the centre, float32 [B, 1, canvas, canvas]: 1 at row y, column x."""
        lit = self.labels(index)[:, None] == self._pixels
        return lit.float().view(-1, 1, self.canvas, self.canvas)

    def squares(self, index: Tensor) -> Tensor:
        """Indices [B] -> images of the square, float32 [B, canvas, canvas], `brightness` inside and 0 outside."""
        near = (self.centers[index][:, :, None] - self._axis).abs() <= self.square // 2
        return (near[:, 1, :, None] & near[:, 0, None, :]).float() * self.brightness

    def split(self, name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The samples to train and to test on, int64 each, in ascending order (spec 8; counts at 64/9 and 32/5).

        - "uniform": 80 % at random to train on, to the nearest whole number: 2,509/627 and 627/157.
        - "uniform-released": each sample is tested on with probability 1/4.
        - "quadrant": the lower right quarter of the centres is tested on: 2,352/784 and 588/196.
        - "quadrant-released": x > canvas / 2 and y > canvas / 2: 2,407/729 and 615/169.

        Raises:
            UserError: for another name.
        """
        draws = Stream(seed, "split", self.device)
        test = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        if name == "uniform":
            test[draws.permutation(0, len(self))[round(0.8 * len(self)) :]] = True
        elif name == "uniform-released":
            test = draws.uniform(0, len(self)) < 0.25
        elif name == "quadrant":
            test = (self.centers >= self.canvas / 2).all(dim=1)
        elif name == "quadrant-released":
            test = (self.centers > self.canvas / 2).all(dim=1)
        else:
            raise UserError(f"no split '{name}'; there is {', '.join(SPLITS)}")
        return (~test).nonzero().flatten(), test.nonzero().flatten()


def iou(painted: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of each image: sum(painted * target) / count(painted or target) (spec 3), float [...].

    Args:
        painted: [..., H, W], bool, or logits: painted where sigmoid(logit) > 0.5, so a logit of 0 is not.
        target: [..., H, W] float; its pixels count where they are not 0.
    """
    painted = painted if painted.dtype == torch.bool else painted > 0
    union = (painted | (target != 0)).sum(dim=(-2, -1))
    return (painted * target).sum(dim=(-2, -1)) / union
