"""The networks' sizes, and the fast CoordConv generator against the plain one."""

import pytest
import torch
from torch import nn

from papers.coordconv.gan.config import Config
from papers.coordconv.gan.networks import (
    CoordConvGenerator,
    DeconvGenerator,
    Discriminator,
    Encoder,
    build_discriminator,
    build_generator,
)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_invariant_5_parameter_counts() -> None:
    with torch.device("meta"):
        assert count(DeconvGenerator()) == 6_413_315
        assert count(Discriminator()) == 4_316_545
        assert count(Discriminator(coords="first")) == 4_319_745
    assert count(CoordConvGenerator()) == 444_931


def test_invariant_4_split_generator_equals_the_plain_one() -> None:
    torch.manual_seed(0)
    fast, plain = CoordConvGenerator(256, 16, 0.5), CoordConvGenerator(256, 16, 0.5, plain=True)
    plain.load_state_dict(fast.state_dict())
    z = torch.rand(3, 256) * 2 - 1
    ours, theirs = fast(z), plain(z)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for images in (ours, theirs):
        images.square().mean().backward()
        assert images.shape == (3, 3, 16, 16)
    for (name, parameter), other in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_generator_knows_where_a_pixel_is_only_from_its_coordinates() -> None:
    generator = CoordConvGenerator(4, 16, 0.125)
    z = torch.rand(1, 4)
    inner = generator(z)[0, :, 4:12, 4:12].flatten(1)
    assert inner.std(1).max() > 1e-3
    with torch.no_grad():
        generator.pointwise[0].weight[:, 4:] = 0
    inner = generator(z)[0, :, 4:12, 4:12].flatten(1)
    assert inner.std(1).max() < 1e-6


@pytest.mark.parametrize("canvas", [16, 32, 64])
def test_shapes_and_scaled_widths(canvas: int) -> None:
    small = {"canvas": canvas, "generator_width": 1 / 32, "network_width": 1 / 32, "latent": 8}
    for generator in ("deconv", "deconv-coords", "coordconv"):
        network = build_generator(Config.of({**small, "generator": generator}))
        assert network(torch.zeros(2, 8)).shape == (2, 3, canvas, canvas)
    images = torch.zeros(2, 3, canvas, canvas)
    sizes = []
    for coords in ("none", "first", "all"):
        network = build_discriminator(Config.of({**small, "discriminator_coords": coords}))
        features = network.features(images)
        assert torch.equal(network.judge(features), network(images)) and network(images).shape == (2,)
        sizes.append(count(network))
    assert sizes[0] < sizes[1] < sizes[2] and sizes[1] - sizes[0] == 2 * 25 * 2
    mean, log_variance = Encoder(8, canvas, 1 / 32)(images)
    assert mean.shape == log_variance.shape == (2, 8)


def test_coordinates_reach_every_transposed_convolution() -> None:
    with_coords, without = DeconvGenerator(8, 64, 1 / 32, coords=True), DeconvGenerator(8, 64, 1 / 32)
    extra = [layer.in_channels for layer in with_coords.deconvs]
    assert extra == [layer.in_channels + 2 for layer in without.deconvs] and len(extra) == 4
    assert [tuple(layer.kernel_size) for layer in without.deconvs] == [(5, 5)] * 4
