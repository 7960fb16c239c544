"""A labelled image set that lives on the device as uint8, from which a batch is one gather.

CIFAR-10 takes 184 MB this way; loader processes, queues and copies from the host disappear, and there is no loader
state to save: which images a step reads comes from `common.random` (`Stream.epochs`), how they are augmented from
`Augmentation.draw`.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from common.data.augment import PIXEL_OFFSET, PIXEL_SCALE, Augmentation

_PLAIN = Augmentation()


class DeviceImages:
    """Images uint8 [N, H, W, C] and labels int64 [N] on one device.

    `scale` and `offset` turn pixels into floats: x * scale + offset (default [-1, 1]; digits use 1/8 and -1).
    Images without labels (`labels=None`) get -1.
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor | None = None,
        device: torch.device | str = "cpu",
        scale: float = PIXEL_SCALE,
        offset: float = PIXEL_OFFSET,
    ):
        tensor = torch.as_tensor(images)
        if tensor.dtype != torch.uint8 or tensor.ndim != 4:
            raise ValueError(f"images must be uint8 [N, H, W, C], not {tensor.dtype} {list(tensor.shape)}")
        self.images = tensor.contiguous().to(device)
        self.labels = torch.full((len(tensor),), -1) if labels is None else torch.as_tensor(labels).to(torch.int64)
        if self.labels.shape != (len(tensor),):
            raise ValueError(f"{len(tensor)} images need as many labels, not {list(self.labels.shape)}")
        self.labels = self.labels.to(device)
        self.device, self.scale, self.offset = self.images.device, scale, offset

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), as a network sees it."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def gather(self, index: Tensor, augmentation: Augmentation = _PLAIN, draws: Tensor | None = None) -> Tensor:
        """The images at index (int64 [n], on the device), augmented by the draws of one step.

        float32 [n, C, H, W] in channels_last memory; draws with several views give [views * n, C, H, W].
        """
        return augmentation.apply(self.images, index, draws, self.scale, self.offset)

    def subset(self, index: np.ndarray | Tensor) -> "DeviceImages":
        """A copy with only the images at index, e.g. the labelled part of a split."""
        index = torch.as_tensor(index).to(self.device)
        return DeviceImages(self.images[index], self.labels[index], self.device, self.scale, self.offset)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Everything once, in order and without augmentation, as (images, labels); the last batch may be smaller."""
        for first in range(0, len(self), batch_size):
            index = torch.arange(first, min(first + batch_size, len(self)), device=self.device)
            yield self.gather(index), self.labels[index]
