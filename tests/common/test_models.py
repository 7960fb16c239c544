"""Parameter counts, padding and initialisation of the networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.models.convnet import ConvNet, ConvNet13, stack_convnets
from common.models.norm import GhostBatchNorm2d, batch_norm_mode
from common.models.wide_resnet import SameConv2d, WideResNet, wide_resnet

torch.set_num_threads(1)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("wrn-28-2", {}, 1_469_642),
        ("wrn-28-2", {"conv_bias": False}, 1_467_610),
        ("wrn-28-2-large", {}, 25_985_290),
        ("wrn-28-2-large", {"num_classes": 100}, 26_033_980),
        ("wrn-stl10", {}, 5_933_770),
    ],
)
def test_invariant_09_parameter_counts(name, options, parameters):
    with torch.device("meta"):
        assert count(wide_resnet(name, **options)) == parameters


def test_invariant_09_convolutions():
    with torch.device("meta"):
        convolutions = [m for m in wide_resnet("wrn-28-2").modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 28
    assert sum(m.kernel_size == (1, 1) for m in convolutions) == 3


@pytest.mark.parametrize("size", range(4, 12))
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_same_padding_is_tensorflows(size, kernel, stride):
    conv = SameConv2d(2, 3, kernel, stride).double()
    x = torch.randn(2, 2, size, size + 1, dtype=torch.float64)
    out = conv(x)
    assert out.shape[2:] == (math.ceil(size / stride), math.ceil((size + 1) / stride))
    # The plain reading: every output position looks at `kernel` rows from i * stride - before, zeros outside.
    before = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) // 2 for n in x.shape[2:]]
    wide = F.pad(x, (4, 4, 4, 4))
    for i, j in [(0, 0), (out.shape[2] - 1, out.shape[3] - 1), (1, 0)]:
        top, left = i * stride - before[0] + 4, j * stride - before[1] + 4
        window = wide[:, :, top : top + kernel, left : left + kernel]
        expected = torch.einsum("nchw,ochw->no", window, conv.weight) + conv.bias
        torch.testing.assert_close(out[:, :, i, j], expected)


def test_an_even_size_is_padded_after_only():
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    out = conv(torch.arange(16.0).view(1, 1, 4, 4))
    assert out.flatten().tolist() == [45.0, 39.0, 66.0, 50.0]


@pytest.mark.parametrize("name", ["wrn-10-1", "wrn-10-2"])
@pytest.mark.parametrize(("size", "last"), [(8, 2), (28, 7), (32, 8), (33, 9)])
def test_sizes_and_features(name, size, last):
    model = wide_resnet(name, num_classes=7, in_channels=1).eval()
    x = torch.randn(2, 1, size, size)
    assert model.blocks(model.stem(x)).shape[2:] == (last, last)
    assert model.features(x).shape == (2, model.num_features)
    torch.testing.assert_close(model(x), model.head(model.features(x)))
    assert model(x).shape == (2, 7)


def plain_forward(model: WideResNet, x: torch.Tensor) -> torch.Tensor:
    """Spec section 4 written out for blocks read off the model, nothing in place."""

    def act(bn: nn.Module, h: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(F.batch_norm(h, None, None, bn.weight, bn.bias, True, 0.0, 1e-3), 0.1)

    def conv(layer: nn.Conv2d, h: torch.Tensor) -> torch.Tensor:
        n, k, s = h.shape[2], layer.kernel_size[0], layer.stride[0]
        total = max((math.ceil(n / s) - 1) * s + k - n, 0)
        before, after = total // 2, total - total // 2
        return F.conv2d(F.pad(h, (before, after, before, after)), layer.weight, layer.bias, s)

    x = conv(model.stem, x)
    for number, block in enumerate(model.blocks):
        h = act(block.bn1, x)
        if number == 0:
            x = h
        h = conv(block.conv2, act(block.bn2, conv(block.conv1, h)))
        x = h + (conv(block.shortcut, x) if block.shortcut is not None else x)
    return model.head(act(model.bn, x).mean(dim=(2, 3)))


@pytest.mark.parametrize("filters", [4, 16])
def test_forward_and_gradients_equal_the_plain_reading(filters):
    torch.manual_seed(1)
    model = WideResNet(num_classes=3, blocks=2, filters=filters).double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    out, expected = model(x), plain_forward(model, x)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    mine = torch.autograd.grad(out.square().sum(), kernels)
    theirs = torch.autograd.grad(expected.square().sum(), kernels)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_initialisation_and_batch_norm_constants():
    torch.manual_seed(0)
    model = wide_resnet("wrn-10-2")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 4_000:
            std = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels))
            assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
            assert layer.weight.abs().max() > 2.5 * std  # not truncated
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.bias.abs().max() == 0
        if isinstance(layer, GhostBatchNorm2d):
            assert (layer.eps, layer.momentum) == (1e-3, 0.001)
            assert (layer.weight == 1).all() and (layer.bias == 0).all()
    assert model.head.weight.std().item() == pytest.approx(math.sqrt(2 / (128 + 10)), rel=0.1)


def test_convnet():
    model = ConvNet(num_classes=4)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions] == [
        (1, 32, 1),
        (32, 64, 2),
        (64, 64, 1),
    ]
    assert all(m.momentum == 0.05 for m in model.modules() if isinstance(m, GhostBatchNorm2d))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 4)
    assert ConvNet(in_channels=3, widths=(8, 12)).features(torch.randn(2, 3, 9, 9)).shape == (2, 12)


@pytest.mark.parametrize(("groups", "update"), [(1, "all"), (2, "first"), ((2, 1, 3), "none")])
def test_stacked_convnets_are_the_networks_side_by_side(groups, update):
    torch.manual_seed(0)
    models = [ConvNet(num_classes=4, in_channels=2, widths=(3, 5, 6)).double() for _ in range(3)]
    for model in models:
        for layer in model.modules():
            if isinstance(layer, GhostBatchNorm2d):
                nn.init.uniform_(layer.weight)
                nn.init.uniform_(layer.running_var)
    before = torch.get_rng_state()
    stack = stack_convnets(models)
    assert torch.equal(torch.get_rng_state(), before) and not any(p.is_meta for p in stack.parameters())
    images = torch.randn(3, 6, 2, 8, 8, dtype=torch.float64)

    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with batch_norm_mode(model, groups, update):
            return model(x)

    logits = forward(stack, images.transpose(0, 1).flatten(1, 2))
    assert logits.shape == (6, 3, 4)
    logits.square().sum().backward()
    gradients = dict(stack.named_parameters())
    for i, model in enumerate(models):
        alone = forward(model, images[i])
        torch.testing.assert_close(logits[:, i], alone, rtol=1e-12, atol=1e-12)
        alone.square().sum().backward()
        for name, parameter in model.named_parameters():
            gradient = gradients[name].grad
            assert gradient is not None
            torch.testing.assert_close(gradient.chunk(3)[i], parameter.grad, rtol=1e-10, atol=1e-12)
        # The statistics moved alike, and a member can be taken out again.
        assert list(stack.member(i)) == list(model.state_dict())
        other = ConvNet(num_classes=4, in_channels=2, widths=(3, 5, 6)).double()
        other.load_state_dict(stack.member(i))
        torch.testing.assert_close(other.eval()(images[i]), model.eval()(images[i]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(stack.eval()(images.transpose(0, 1).flatten(1, 2))[:, 2], models[2](images[2]))


def test_only_networks_of_one_shape_are_stacked():
    for models in ([], [ConvNet(), ConvNet(widths=(8, 12))], [ConvNet(), ConvNet(momentum=0.1)]):
        with pytest.raises(ValueError, match="one shape"):
            stack_convnets(models)


def test_convnet13():
    with torch.device("meta"):
        convolutions = [m for m in ConvNet13().modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [128] * 3 + [256] * 3 + [512, 256, 128]
    model = ConvNet13(num_classes=5, filters=4)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert model.body(torch.randn(2, 3, 32, 32)).shape == (2, 4, 6, 6)
    kinds = [type(m) for m in model.body[:3]]
    assert kinds == [nn.Conv2d, nn.LeakyReLU, GhostBatchNorm2d]
    model(torch.randn(2, 3, 32, 32)).sum().backward()


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="wrn-28-2"):
        wide_resnet("resnet")
