"""Wide ResNets (Zagoruyko and Komodakis 2016) as in the official MixMatch code, to the padding.

Differences from the usual PyTorch version: TensorFlow's SAME padding, which is asymmetric where the stride is 2; leaky
ReLU 0.1; BatchNorm with eps 1e-3 and momentum 0.001; convolutions with a bias; and the first block of the first stage
activates its input before the shortcut branches off.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from common.models.norm import GhostBatchNorm2d


class SameConv2d(nn.Conv2d):
    """A square convolution with TensorFlow's SAME padding: output size ceil(size / stride), for even and odd sizes.

    The total padding is max((ceil(size / stride) - 1) * stride + kernel - size, 0), the smaller half before.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Input [N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]."""
        top, bottom = self._padding(input.shape[2])
        left, right = self._padding(input.shape[3])
        if (top, left) == (bottom, right):
            return F.conv2d(input, self.weight, self.bias, self.stride, (top, left))
        return F.conv2d(F.pad(input, (left, right, top, bottom)), self.weight, self.bias, self.stride)

    def _padding(self, size: int) -> tuple[int, int]:
        stride, kernel = self.stride[0], self.kernel_size[0]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class Block(nn.Module):
    """Pre-activation residual block: BN, act, conv3x3, BN, act, conv3x3, plus the (projected) shortcut."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        activate_shortcut: bool,
        conv_bias: bool,
        eps: float,
        momentum: float,
        negative_slope: float,
    ):
        super().__init__()
        self.activate_shortcut, self.negative_slope = activate_shortcut, negative_slope
        self.bn1 = GhostBatchNorm2d(in_channels, eps, momentum)
        self.conv1 = SameConv2d(in_channels, out_channels, 3, stride, conv_bias)
        self.bn2 = GhostBatchNorm2d(out_channels, eps, momentum)
        self.conv2 = SameConv2d(out_channels, out_channels, 3, 1, conv_bias)
        project = in_channels != out_channels or stride != 1
        self.shortcut = SameConv2d(in_channels, out_channels, 1, stride, conv_bias) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """Input [N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]."""
        # In place: nothing else reads a BatchNorm's output, and its backward needs only its input.
        h = F.leaky_relu(self.bn1(x), self.negative_slope, inplace=True)
        if self.activate_shortcut:
            x = h
        h = F.leaky_relu(self.bn2(self.conv1(h)), self.negative_slope, inplace=True)
        h = self.conv2(h)
        return h + (x if self.shortcut is None else self.shortcut(x))


class WideResNet(nn.Module):
    """The Wide ResNet of the MixMatch experiments (Sec. 4.1 and the official code's `ResNet`).

    Args:
        num_classes: number of outputs.
        blocks: residual blocks per stage; the depth is 2 * blocks * stages + 4 for 3 stages.
        filters: width of the first stage, doubled by each further one (32 for WRN-28-2, 135 for the large one).
        stages: 3 for 32x32 images, 4 for STL-10. Every stage but the first halves the image.
        in_channels: image channels.
        conv_bias: the official code's convolutions have a bias, though a later BatchNorm absorbs each of them (the
            true gradient is zero, and Adam turns its rounding noise into moves).
        eps, momentum: BatchNorm's (PyTorch's convention for the momentum).
        negative_slope: of the leaky ReLU.

    Kernels start from N(0, 2 / (k^2 out_channels)), the dense kernel Glorot-normal, biases 0, BatchNorm 1 and 0.
    """

    def __init__(
        self,
        num_classes: int = 10,
        blocks: int = 4,
        filters: int = 32,
        stages: int = 3,
        in_channels: int = 3,
        conv_bias: bool = True,
        eps: float = 1e-3,
        momentum: float = 0.001,
        negative_slope: float = 0.1,
    ):
        super().__init__()
        self.negative_slope = negative_slope
        self.stem = SameConv2d(in_channels, 16, 3, bias=conv_bias)
        layers, width = [], 16
        for stage in range(stages):
            for block in range(blocks):
                first = block == 0
                stride = 2 if first and stage else 1
                activate = first and stage == 0
                out = filters << stage
                layers.append(Block(width, out, stride, activate, conv_bias, eps, momentum, negative_slope))
                width = out
        self.blocks = nn.Sequential(*layers)
        self.bn = GhostBatchNorm2d(width, eps, momentum)
        self.head = nn.Linear(width, num_classes)
        self.num_features = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
            elif isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> pooled features [N, num_features]."""
        h = F.leaky_relu(self.bn(self.blocks(self.stem(x))), self.negative_slope, inplace=True)
        return h.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, num_classes]."""
        return self.head(self.features(x))


# Name -> what differs from the defaults (WRN-28-2).
VARIANTS: dict[str, dict[str, int]] = {
    "wrn-28-2": {},
    "wrn-28-2-large": {"filters": 135},
    "wrn-stl10": {"stages": 4},
    "wrn-10-1": {"blocks": 1, "filters": 16},
    "wrn-10-2": {"blocks": 1},
}


def wide_resnet(name: str, num_classes: int = 10, in_channels: int = 3, **options) -> WideResNet:
    """The variant of that name: wrn-28-2, wrn-28-2-large (26M), wrn-stl10 (4 stages), wrn-10-1 or wrn-10-2.

    `options` are further arguments of `WideResNet`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in VARIANTS:
        raise ValueError(f"unknown Wide ResNet {name!r}: choose one of {', '.join(VARIANTS)}")
    return WideResNet(num_classes, in_channels=in_channels, **{**VARIANTS[name], **options})
