"""Small convolutional networks: one for 8x8 digits and the 13-layer network of the semi-supervised literature.

`stack_convnets` makes several of the first kind one network, which a CPU core trains faster than one after the other.
"""

from collections.abc import Sequence

import torch
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


class _StackedLinear(nn.Linear):
    """Dense layers side by side: weight [S * L, F], bias [S * L]; input [N, S * F] -> [N, S, L]."""

    def forward(self, input: Tensor) -> Tensor:
        """Features [N, S * F] -> logits [N, S, L]."""
        x = input.unflatten(1, (-1, self.in_features)).transpose(0, 1)
        weight, bias = (each.unflatten(0, (len(x), -1)) for each in (self.weight, self.bias))
        return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2)).transpose(0, 1)


class StackedConvNet(nn.Module):
    """S networks of one shape as one: every tensor is those of the `models`, concatenated on dimension 0.

    The convolutions are grouped by network, and what BatchNorm does to a channel concerns no other, so the networks
    stay strangers to each other, and `batch_norm_mode` divides the input as it does for one. The tensors keep the names
    they have in `ConvNet`. (Mapping one
    network over the tensors with `torch.func.vmap` was tried too, and gained nothing.)
    """

    def __init__(self, models: Sequence[ConvNet]):
        super().__init__()
        first, size = models[0], len(models)
        self.size = size

        def stacked(layer: nn.Module) -> nn.Module:
            if isinstance(layer, nn.Conv2d):
                channels = size * layer.in_channels, size * layer.out_channels
                return nn.Conv2d(*channels, 3, layer.stride[0], padding=1, groups=size, bias=False)
            if isinstance(layer, GhostBatchNorm2d):
                return GhostBatchNorm2d(size * layer.num_features, layer.eps, layer.momentum)
            assert isinstance(layer, nn.LeakyReLU)
            return nn.LeakyReLU(layer.negative_slope, inplace=True)

        with torch.device("meta"):  # no random numbers for weights that are overwritten
            self.body = nn.Sequential(*map(stacked, first.body))
            self.head = _StackedLinear(first.num_features, size * first.head.out_features)
        states = [model.state_dict() for model in models]
        # The count of batches is a scalar and the same in all.
        joined = {name: torch.cat([s[name] for s in states]) if t.ndim else t.clone() for name, t in states[0].items()}
        self.load_state_dict(joined, assign=True)
        self.train(first.training)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, S * in_channels, H, W], network by network -> logits [N, S, num_classes]."""
        return self.head(self.body(x).mean(dim=(2, 3)))

    def member(self, number: int) -> dict[str, Tensor]:
        """The state_dict of one network, as a `ConvNet` loads it; views of this one's tensors."""
        return {name: t.chunk(self.size)[number] if t.ndim else t for name, t in self.state_dict().items()}


def stack_convnets(models: Sequence[ConvNet]) -> StackedConvNet:
    """One network that computes what these compute, for training them together; their tensors are copied.

    Raises:
        ValueError: no models, or some of another shape or with other constants than the first one.
    """
    if not models or len({str(model) for model in models}) > 1:
        raise ValueError("only networks of one shape can be stacked")
    return StackedConvNet(models)


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
