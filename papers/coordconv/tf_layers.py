"""Convolutions that pad and start as TensorFlow's do, so that the networks are the paper's to the pixel (spec 4)."""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal that is cut off at +-2."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after an axis of `size` for an output of ceil(size / stride); the odd one goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def he_normal_(weight: Tensor, fan_in: int) -> Tensor:
    """Fill in place with He et al.'s normal numbers, cut off at 2 std; the std after cutting is sqrt(2 / fan_in)."""
    std = sqrt(2 / fan_in) / TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def glorot_uniform_(weight: Tensor, fan_in: int, fan_out: int) -> Tensor:
    """Fill in place with Glorot & Bengio's uniform numbers in +-sqrt(6 / (fan_in + fan_out)), Keras's default."""
    limit = sqrt(6 / (fan_in + fan_out))
    return nn.init.uniform_(weight, -limit, limit)


def _fill(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, fan_in: int, fan_out: int, initial: str) -> None:
    if initial == "he":
        he_normal_(layer.weight, fan_in)
    elif initial == "glorot":
        glorot_uniform_(layer.weight, fan_in, fan_out)
    else:
        raise ValueError(f"no initialisation '{initial}'; there is he, glorot")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's 'same' padding: H x W -> ceil(H / stride) x ceil(W / stride).

    Where PyTorch pads both sides alike, TensorFlow puts the odd pixel after: kernel 5 with stride 2 pads an even size
    by (1, 2), kernel 3 with stride 2 by (0, 1), kernel 2 with stride 1 by (0, 1).

    Args:
        in_channels, out_channels, kernel_size, stride: as nn.Conv2d's (one int for both axes).
        initial: "he" (truncated normal) or "glorot" (uniform) kernels; biases start at 0.
        padding_mode: "zeros", or "circular": the padded pixels come from the other side.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        initial: str = "he",
        padding_mode: str = "zeros",
    ) -> None:
        self.initial = initial
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.wrap = "circular" if padding_mode == "circular" else "constant"

    def reset_parameters(self) -> None:
        """Keras's: a kernel's fan is its channels times its area."""
        area = self.kernel_size[0] * self.kernel_size[1]
        _fill(self, self.in_channels * area, self.out_channels * area, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        return self._convolve(x, self.weight, self.bias)

    def without_bias(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The same with no bias, and with other weights if given."""
        return self._convolve(x, self.weight if weight is None else weight, None)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (top, bottom), (left, right) = (
            same_padding(size, k, s) for size, k, s in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        if self.wrap == "constant" and top == bottom and left == right:
            return F.conv2d(x, weight, bias, self.stride, (top, left))
        if top or bottom or left or right:
            x = F.pad(x, (left, right, top, bottom), self.wrap)
        return F.conv2d(x, weight, bias, self.stride)


class SameConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution with TensorFlow's 'same' padding: H x W -> stride * H x stride * W.

    Of the full output of stride * (n - 1) + kernel, floor((kernel - stride) / 2) pixels are dropped at the start and
    stride * n are kept. With kernel 3 and stride 2 that drops the last one; PyTorch's `output_padding` drops the first.

    Args:
        in_channels, out_channels, kernel_size, stride: as nn.ConvTranspose2d's; kernel_size >= stride.
        initial: "he" or "glorot". Keras takes the fan-in of the backward pass: out_channels * kernel_size^2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 2, initial: str = "he"
    ) -> None:
        if kernel_size < stride:
            raise ValueError(f"a kernel of {kernel_size} leaves gaps with stride {stride}: take a larger one")
        self.initial = initial
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.dropped = (kernel_size - stride) // 2

    def reset_parameters(self) -> None:
        """Keras's: channels of output and input count the other way round than in a convolution."""
        area = self.kernel_size[0] * self.kernel_size[1]
        _fill(self, self.out_channels * area, self.in_channels * area, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, stride * H, stride * W]."""
        height, width = (size * s for size, s in zip(x.shape[-2:], self.stride, strict=True))
        full = F.conv_transpose2d(x, self.weight, self.bias, self.stride, self.dropped)
        return full[..., :height, :width]


class Dense(nn.Linear):
    """A linear layer that starts as Keras's do: `initial` "he" or "glorot" weights, zero bias."""

    def __init__(self, in_features: int, out_features: int, initial: str = "he") -> None:
        self.initial = initial
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Weights as `initial` says."""
        _fill(self, self.in_features, self.out_features, self.initial)


class BatchNorm(nn.Module):
    """Batch normalisation with TensorFlow's eps 1e-5 and momentum 0.9 (PyTorch's 0.1), and no counter of batches.

    In training the running statistics are updated in place; under `torch.func.vmap` they must be stacked beside the
    parameters (`torch.func.stack_module_state` does that), and each member then has statistics of its own.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, ...] -> the same shape."""
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)
