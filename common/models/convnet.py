"""Small convolutional networks: one for 8x8 digits and the 13-layer network of the semi-supervised literature."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from common.models.norm import GhostBatchNorm2d


class ConvNet(nn.Module):
    """3x3 convolutions (stride 2 in all but the first and the last), each with BatchNorm and leaky ReLU; pool; dense.

    With the default widths: conv32, conv64 with stride 2, conv64. The convolutions have no bias (BatchNorm would absorb
    it); all weights start as PyTorch initialises them.

    Args:
        num_classes: number of outputs.
        in_channels: image channels.
        widths: output channels of the convolutions.
        momentum, eps: BatchNorm's (PyTorch's convention for the momentum).
        negative_slope: of the leaky ReLU.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (32, 64, 64),
        momentum: float = 0.05,
        eps: float = 1e-5,
        negative_slope: float = 0.1,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, width) in enumerate(zip((in_channels, *widths), widths, strict=False)):
            stride = 2 if 0 < i < len(widths) - 1 else 1
            layers.append(nn.Conv2d(before, width, 3, stride, padding=1, bias=False))
            layers.append(GhostBatchNorm2d(width, eps, momentum))
            layers.append(nn.LeakyReLU(negative_slope, inplace=True))
        self.body = nn.Sequential(*layers)
        self.num_features = widths[-1]
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> pooled features [N, num_features]."""
        return self.body(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, num_classes]."""
        return self.head(self.features(x))


class ConvNet13(nn.Module):
    """The 13-layer network of MixMatch's appendix C, for 32x32 images (from 28x28 up).

    Three convolutions of `filters` channels, max-pool, three of twice as many, max-pool, then 4 * filters (3x3 without
    padding), 2 * filters and `filters` (both 1x1), average pool, dense. Leaky ReLU comes before BatchNorm, as in the
    official `CNN13`, which takes TensorFlow's default slope of 0.2 and default initialisation (Glorot-uniform kernels,
    zero biases). The Mean Teacher original has dropout, noise and weight normalisation; this one has none.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        filters: int = 128,
        momentum: float = 0.001,
        eps: float = 1e-3,
        negative_slope: float = 0.2,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels

        def add(width: int, kernel: int, padding: int) -> None:
            nonlocal channels
            layers.append(nn.Conv2d(channels, width, kernel, padding=padding))
            layers.append(nn.LeakyReLU(negative_slope, inplace=True))
            layers.append(GhostBatchNorm2d(width, eps, momentum))
            channels = width

        for width in (filters, 2 * filters):
            for _ in range(3):
                add(width, kernel=3, padding=1)
            layers.append(nn.MaxPool2d(2))
        add(4 * filters, kernel=3, padding=0)
        add(2 * filters, kernel=1, padding=0)
        add(filters, kernel=1, padding=0)
        self.body = nn.Sequential(*layers)
        self.num_features = filters
        self.head = nn.Linear(filters, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> pooled features [N, num_features]."""
        return F.adaptive_avg_pool2d(self.body(x), 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, num_classes]."""
        return self.head(self.features(x))
