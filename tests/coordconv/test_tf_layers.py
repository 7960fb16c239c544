"""TensorFlow's padding and initialisation (spec 4 and invariant 14)."""

from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from papers.coordconv.tf_layers import (
    BatchNorm,
    Dense,
    SameConv2d,
    SameConvTranspose2d,
    same_padding,
)


@given(size=st.integers(1, 70), kernel=st.integers(1, 9), stride=st.integers(1, 3))
def test_same_padding(size: int, kernel: int, stride: int):
    before, after = same_padding(size, kernel, stride)
    assert before <= after <= before + 1
    # Less padding would lose an output or (padding without need) there is none at all.
    outputs = (size + before + after - kernel) // stride + 1 if size + before + after >= kernel else 0
    assert outputs == -(-size // stride) or (before == after == 0 and outputs >= -(-size // stride))


def test_paddings_of_the_spec():
    assert same_padding(64, 5, 2) == (1, 2)
    assert same_padding(64, 3, 2) == (0, 1)
    assert [same_padding(64, k, 1) for k in (2, 4)] == [(0, 1), (1, 2)]


def test_invariant_14_transposed_convolution():
    layer = SameConvTranspose2d(1, 1, 3)
    nn.init.ones_(layer.weight)
    assert torch.equal(layer(torch.ones(1, 1, 1, 1)), torch.ones(1, 1, 2, 2))
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, 10).view(1, 1, 3, 3))
    assert layer(torch.ones(1, 1, 1, 1))[0, 0].tolist() == [[1, 2], [4, 5]]
    torchs = nn.functional.conv_transpose2d(torch.ones(1, 1, 1, 1), layer.weight, None, 2, 1, 1)
    assert torchs[0, 0].tolist() == [[5, 6], [8, 9]]


@settings(deadline=None, max_examples=15)
@given(
    kernel=st.integers(2, 5), stride=st.integers(1, 2), height=st.integers(1, 5), width=st.integers(1, 5),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_transposed_convolution_is_the_gradient_of_the_convolution(
    kernel: int, stride: int, height: int, width: int, seed: int
):
    """TensorFlow defines it so."""
    torch.manual_seed(seed)
    layer = SameConvTranspose2d(3, 2, kernel, stride).double()
    convolution = SameConv2d(2, 3, kernel, stride).double()
    with torch.no_grad():
        convolution.weight.copy_(layer.weight)
        layer.bias.normal_()
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    larger = torch.zeros(2, 2, stride * height, stride * width, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(convolution(larger), larger, x)
    torch.testing.assert_close(layer(x), gradient + layer.bias[:, None, None])


@settings(deadline=None, max_examples=15)
@given(kernel=st.integers(1, 5), stride=st.integers(1, 2), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_convolution_by_hand(kernel: int, stride: int, size: int, seed: int):
    torch.manual_seed(seed)
    layer = SameConv2d(2, 3, kernel, stride).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(1, 2, size, size, dtype=torch.float64)
    outputs, (before, _) = -(-size // stride), same_padding(size, kernel, stride)
    expected = layer.bias[:, None, None].repeat(1, outputs, outputs)
    for i in range(outputs):
        for j in range(outputs):
            for a in range(kernel):
                for b in range(kernel):
                    row, column = i * stride + a - before, j * stride + b - before
                    if 0 <= row < size and 0 <= column < size:
                        expected[:, i, j] = expected[:, i, j] + layer.weight[:, :, a, b] @ x[0, :, row, column]
    torch.testing.assert_close(layer(x)[0], expected)


def test_circular_convolution_moves_with_its_input():
    for kernel in (2, 3):
        layer = SameConv2d(1, 2, kernel, padding_mode="circular")
        x = torch.randn(1, 1, 6, 6)
        torch.testing.assert_close(layer(x.roll((1, 2), (2, 3))), layer(x).roll((1, 2), (2, 3)))


def test_he_normal():
    layers = {
        SameConv2d(40, 50, 5): 40 * 25,
        # Keras counts the channels of a transposed convolution the other way round.
        SameConvTranspose2d(40, 50, 5): 50 * 25,
        Dense(400, 100): 400,
    }
    for layer, fan_in in layers.items():
        std = sqrt(2 / fan_in)
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert layer.weight.abs().max() <= 2 * std / 0.8796
        assert layer.weight.abs().max() > 1.95 * std / 0.8796
        assert not layer.bias.any()


def test_glorot_uniform():
    for layer in (SameConv2d(40, 50, 5, initial="glorot"), SameConvTranspose2d(40, 50, 5, initial="glorot")):
        limit = sqrt(6 / (90 * 25))
        assert 0.99 * limit < layer.weight.abs().max() <= limit
        assert layer.weight.std().item() == pytest.approx(limit / sqrt(3), rel=0.02)


def test_values_that_make_no_sense():
    with pytest.raises(ValueError, match="no initialisation 'zeros'"):
        Dense(2, 2, "zeros")
    with pytest.raises(ValueError, match="leaves gaps"):
        SameConvTranspose2d(2, 2, 1)


def test_batch_norm_is_torchs():
    ours, torchs = BatchNorm(3).double(), nn.BatchNorm2d(3, eps=1e-5, momentum=0.1).double()
    for step in range(3):
        x = torch.randn(4, 3, 2, 2, dtype=torch.float64) * (step + 1) + step
        torch.testing.assert_close(ours(x), torchs(x))
    ours.eval(), torchs.eval()
    torch.testing.assert_close(ours(x), torchs(x))
    assert list(ours.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, torchs.state_dict()[name])
