"""Coordinates, layers and `convert_model`: the invariants of the specification by number, and plain oracles."""

import copy
import inspect
import io
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from papers.coordconv import method
from papers.coordconv.method import (
    AddCoords,
    CoordConv1d,
    CoordConv2d,
    CoordConv3d,
    CoordConvTranspose2d,
    Scheme,
    SplitCoordConv1x1,
    convert_model,
    coordinates,
    tile,
)

torch.set_num_threads(1)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=3)
LAYERS = [CoordConv1d, CoordConv2d, CoordConv3d, CoordConvTranspose2d]


def plain_coordinates(size: list[int], with_r: bool, scaling: str, order: str, center: float) -> torch.Tensor:
    """Pixel by pixel, as the paper writes it."""
    out = torch.zeros(len(size) + with_r, *size, dtype=torch.float64)
    for pixel in itertools.product(*map(range, size)):
        position = [
            float(v) if scaling == "raw" else (2 * v / (n - 1) - 1 if n > 1 else 0.0)
            for v, n in zip(pixel, size, strict=True)
        ]
        channels = position[::-1] if order == "xy" else position
        if with_r:
            channels = [*channels, math.sqrt(sum((v - center) ** 2 for v in position))]
        out[(slice(None), *pixel)] = torch.tensor(channels, dtype=torch.float64)
    return out


def small_input(layer: type[nn.Module], channels: int = 3, **options) -> torch.Tensor:
    return torch.randn(2, channels, *(5, 6, 4)[: layer.dims], **options)


def numbers(*rows: float) -> torch.Tensor:
    return torch.tensor(rows)


# ---------------------------------------------------------------- AddCoords


def test_invariant_1_square_map():
    added = AddCoords(with_r=True)(torch.zeros(1, 1, 5, 5))[0, 1:]
    row = numbers(-1, -0.5, 0, 0.5, 1)
    assert torch.equal(added[0], row.expand(5, 5))
    assert torch.equal(added[1], added[0].T)
    torch.testing.assert_close(added[2][[0, 2, 0], [0, 2, 1]], numbers(1.4142135, 0, 1.118034))


def test_invariant_2_non_square_map():
    xx, yy = AddCoords()(torch.zeros(1, 1, 4, 6))[0, 1:]
    torch.testing.assert_close(xx, numbers(-1, -0.6, -0.2, 0.2, 0.6, 1).expand(4, 6))
    torch.testing.assert_close(yy, numbers(-1, -1 / 3, 1 / 3, 1)[:, None].expand(4, 6))
    assert xx.min() == yy.min() == -1 and xx.max() == yy.max() == 1


@settings(max_examples=60, deadline=None)
@given(
    SIZES, st.booleans(), st.sampled_from(["scaled", "raw"]), st.sampled_from(["xy", "yx"]), st.sampled_from([0, 0.5])
)
def test_any_shape_equals_the_pixel_by_pixel_definition(size, with_r, scaling, order, center):
    scheme = Scheme(with_r=with_r, scaling=scaling, order=order, radius_center=center)
    expected = plain_coordinates(size, with_r, scaling, order, center)
    torch.testing.assert_close(coordinates(size, scheme, torch.float64), expected, rtol=1e-12, atol=1e-12)
    x = torch.randn(2, 3, *size)
    layer = AddCoords(len(size), with_r, scaling=scaling, order=order, radius_center=center)
    out = layer(x)
    assert out.shape[1] == 3 + layer.extra_channels == 3 + len(size) + with_r
    assert torch.equal(out[:, :3], x)
    torch.testing.assert_close(out[:, 3:], expected.float().expand(2, *expected.shape))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(2, 300), min_size=1, max_size=2), st.sampled_from([torch.float16, torch.float32]))
def test_the_range_is_exact_and_symmetric(size, dtype):
    coords = coordinates(size, dtype=dtype).flatten(1)
    assert (coords.amin(dim=1) == -1).all() and (coords.amax(dim=1) == 1).all()
    assert torch.equal(coords, -coords.flip(1))


def test_the_order_of_three_axes_is_width_height_depth():
    xx, yy, zz = AddCoords(3)(torch.zeros(1, 0, 2, 3, 5))[0]
    assert torch.equal(xx[0, 0], numbers(-1, -0.5, 0, 0.5, 1))
    assert torch.equal(yy[0, :, 0], numbers(-1, 0, 1))
    assert torch.equal(zz[:, 0, 0], numbers(-1, 1))


def test_options_for_the_quirks_of_public_code():
    # The released code divides the columns 0..4 by H - 1 = 2 and the rows 0..2 by W - 1 = 4.
    xx, yy = coordinates((3, 5), Scheme(normalize="official"))
    assert torch.equal(xx[0], numbers(-1, 0, 1, 2, 3)) and torch.equal(yy[:, 0], numbers(-1, -0.5, 0))
    yy, xx = coordinates((2, 3), Scheme(order="yx"))
    assert torch.equal(xx[0], numbers(-1, 0, 1)) and torch.equal(yy[:, 0], numbers(-1, 1))
    rr = coordinates((3, 3), Scheme(with_r=True, radius_center=0.5))[2]
    torch.testing.assert_close(rr[[0, 1, 2], [0, 1, 2]], numbers(1.5 * 2**0.5, 0.5**0.5, 0.5**0.5))
    xx, yy = coordinates((1, 3), Scheme(singleton="official"))
    assert torch.equal(xx, numbers(-1, 0, 1)[None]) and yy.isnan().all()
    assert torch.equal(coordinates((1, 3))[1], torch.zeros(1, 3))
    assert torch.equal(coordinates((1, 3), Scheme(normalize="official"))[0], torch.zeros(1, 3))
    xx, yy = coordinates((2, 3), Scheme(scaling="raw"))
    assert torch.equal(xx[0], numbers(0, 1, 2)) and torch.equal(yy[:, 0], numbers(0, 1))


def test_fourier_features_are_waves_of_the_scaled_coordinate():
    layer = AddCoords(1, with_r=True, scaling="fourier", fourier_bands=2)
    out = layer(torch.zeros(1, 0, 3))[0]
    assert layer.extra_channels == len(out) == 5
    expected = [[-1, 0, 1], [0, 1, 0], [0, 0, 0], [-1, 1, -1], [1, 0, 1]]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_coordinates_have_the_dtype_of_the_input(dtype):
    out = AddCoords(with_r=True)(torch.zeros(1, 1, 7, 10, dtype=dtype))[0, 1:]
    assert out.dtype == dtype
    assert torch.equal(out, coordinates((7, 10), Scheme(with_r=True), torch.float64).to(dtype))
    conv = CoordConv2d(1, 2, 3, dtype=dtype)
    assert conv(torch.zeros(1, 1, 7, 10, dtype=dtype)).dtype == dtype


def test_integers_missing_batch_axes_and_layouts():
    assert AddCoords()(torch.zeros(1, 1, 2, 2, dtype=torch.uint8)).dtype == torch.float32
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(AddCoords()(x[0]), AddCoords()(x)[0])
    last = x.to(memory_format=torch.channels_last)
    assert AddCoords()(last).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(AddCoords()(last), AddCoords()(x))
    assert AddCoords()(torch.zeros(2, 3, 0, 4)).shape == (2, 5, 0, 4)


def test_bad_values_are_told():
    for options in ({"scaling": "log"}, {"order": "zyx"}, {"normalize": "both"}, {"singleton": "nan"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be one of"):
            AddCoords(**options)
    for bad in (lambda: AddCoords(4), lambda: AddCoords(3, normalize="official"), lambda: Scheme(fourier_bands=0)):
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(ValueError, match="expected \\[B, C, H, W\\]"):
        AddCoords()(torch.zeros(3, 3))
    with pytest.raises(TypeError):
        AddCoords(scale="raw")


def test_constants_are_shared_and_leave_no_trace():
    layer = AddCoords(with_r=True)
    method._kept_coordinates.cache_clear()
    with torch.inference_mode():
        layer(torch.zeros(1, 1, 4, 7))
    conv = nn.Conv2d(4, 1, 1)
    conv(layer(torch.zeros(1, 1, 4, 7))).sum().backward()  # a tensor made in inference mode could not be saved for it

    like = torch.zeros(1)
    assert layer.channels((4, 7), like) is AddCoords(with_r=True).channels((4, 7), like)
    assert layer.channels((4, 7), like) is not layer.channels((4, 7), like.double())
    assert method._kept_coordinates.cache_info().currsize == 2
    twin = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    assert torch.equal(twin(torch.zeros(1, 1, 4, 7)), layer(torch.zeros(1, 1, 4, 7)))
    assert not layer.state_dict() and not list(layer.buffers()) and repr(layer) == "AddCoords(dims=2, with_r=True)"


def test_large_maps_are_not_kept(monkeypatch):
    monkeypatch.setattr(method, "CACHED_BELOW", 20)
    before = method._kept_coordinates.cache_info()
    out = AddCoords()(torch.zeros(1, 0, 3, 11))
    assert method._kept_coordinates.cache_info() == before
    assert torch.equal(out[0], coordinates((3, 11)))


def test_stacked_parameters_under_torch_func():
    """Invisible to vmap and grad, and what is kept inside of them serves outside."""
    method._kept_coordinates.cache_clear()
    net = nn.Sequential(CoordConv2d(2, 3, 3, padding=1, with_r=True), nn.ReLU(), CoordConvTranspose2d(3, 1, 2, 2))
    members = [{k: torch.randn_like(v) for k, v in net.state_dict().items()} for _ in range(3)]
    stacked = {k: torch.stack([m[k] for m in members]) for k in members[0]}
    x = torch.randn(3, 2, 2, 5, 4)

    def loss(parameters, inputs):
        return torch.func.functional_call(net, parameters, (inputs,)).square().mean()

    gradients = torch.func.vmap(torch.func.grad(loss))(stacked, x)
    assert coordinates((5, 4), Scheme(with_r=True)).equal(AddCoords(with_r=True).channels((5, 4), x))
    assert AddCoords(with_r=True).channels((5, 4), x).numpy().any()  # has memory of its own
    for i, member in enumerate(members):
        alone = torch.func.grad(loss)(member, x[i])
        for name, gradient in alone.items():
            torch.testing.assert_close(gradients[name][i], gradient, rtol=1e-5, atol=1e-6)
    tiled = tile(torch.randn(2, 3, 4), (5, 4))
    assert torch.func.vmap(AddCoords())(tiled.transpose(0, 1)).shape == (3, 2, 6, 5, 4)


# ---------------------------------------------------------------- convolutions


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("with_r", [False, True])
def test_invariant_3_zero_weights_on_coordinates_are_the_plain_convolution(layer, with_r):
    coord, plain = layer(3, 5, 3, padding=1, with_r=with_r), layer.convolution(3, 5, 3, padding=1)
    added = sum(p.numel() for p in coord.parameters()) - sum(p.numel() for p in plain.parameters())
    assert added == (layer.dims + with_r) * 5 * 3**layer.dims
    channel = 0 if layer is CoordConvTranspose2d else 1
    with torch.no_grad():
        coord.weight.narrow(channel, 3, layer.dims + with_r).zero_()
        coord.weight.narrow(channel, 0, 3).copy_(plain.weight)
        coord.bias.copy_(plain.bias)
    x = small_input(layer)
    torch.testing.assert_close(coord(x), plain(x), rtol=0, atol=1e-6)


OPTIONS = [
    {},
    {"padding": 1, "padding_mode": "circular", "with_r": True},
    {"padding": "same", "padding_mode": "reflect", "dilation": 2, "scaling": "raw"},
    {"stride": 2, "padding": 1, "bias": False, "order": "yx", "scaling": "fourier", "fourier_bands": 2},
]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("options", OPTIONS)
def test_output_and_gradients_equal_explicit_concatenation(layer, options):
    options = {"dtype": torch.float64} | options
    if layer is CoordConvTranspose2d:
        options = {k: v for k, v in options.items() if k not in ("padding_mode", "padding")}
    scheme = {k: v for k, v in options.items() if k in ("with_r", "scaling", "order", "fourier_bands")}
    coord = layer(3, 4, 3, **options)
    coords = coordinates((5, 6, 4)[: layer.dims], Scheme(**scheme), torch.float64)
    oracle = layer.convolution(3 + len(coords), 4, 3, **{k: v for k, v in options.items() if k not in scheme})
    oracle.load_state_dict({k.removeprefix("conv."): v for k, v in coord.state_dict().items()})
    x = small_input(layer, dtype=torch.float64)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = coord(mine)
    expected = oracle(torch.cat([theirs, coords.expand(2, *coords.shape)], dim=1))
    torch.testing.assert_close(out, expected)
    target = torch.randn_like(out)
    gradients = torch.autograd.grad((out * target).sum(), [mine, *coord.parameters()])
    others = torch.autograd.grad((expected * target).sum(), [theirs, *oracle.parameters()])
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layer", LAYERS)
def test_drop_in_signature_and_state(layer):
    theirs = list(inspect.signature(layer.convolution.__init__).parameters)
    mine = inspect.signature(layer.__init__).parameters
    assert list(mine)[: len(theirs)] == theirs
    for name, parameter in inspect.signature(layer.convolution.__init__).parameters.items():
        assert mine[name].default == parameter.default and mine[name].kind == parameter.kind
    coord = layer(3, 4, 2)
    assert list(coord.state_dict()) == ["conv.weight", "conv.bias"]
    assert (coord.in_channels, coord.out_channels) == (3, 4)
    assert coord.weight is coord.conv.weight and coord.bias is coord.conv.bias
    with pytest.raises(ValueError, match="groups=2"):
        layer(4, 4, 3, groups=2)


def test_transposed_convolution_takes_an_output_size():
    layer = CoordConvTranspose2d(2, 3, 3, stride=2)
    assert layer(torch.zeros(1, 2, 4, 5), output_size=[10, 12]).shape == (1, 3, 10, 12)


# ---------------------------------------------------------------- decoders


@pytest.mark.parametrize("with_r", [False, True])
def test_invariant_4_the_split_equals_the_convolution(with_r):
    split, full = SplitCoordConv1x1(6, 8, with_r=with_r), CoordConv2d(6, 8, 1, with_r=with_r)
    full.load_state_dict(split.state_dict())
    z = torch.randn(3, 6)
    torch.testing.assert_close(split(z, (5, 9)), full(tile(z, (5, 9))), rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(split(z, (5, 9)).square().sum(), list(split.parameters())),
        torch.autograd.grad(full(tile(z, (5, 9))).square().sum(), list(full.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(1, 3), st.booleans())
def test_the_split_holds_on_maps_of_any_dimension(size, batch, bias):
    coords = coordinates(size, dtype=torch.float64)
    z = torch.randn(batch, 4, dtype=torch.float64)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1](4 + len(coords), 5, 1, bias=bias, dtype=torch.float64)
    expected = conv(torch.cat([tile(z, size), coords.expand(batch, *coords.shape)], dim=1))
    torch.testing.assert_close(method.split_conv1x1(z, conv.weight, conv.bias, coords), expected)


# ---------------------------------------------------------------- any model


class Branches(nn.Module):
    """One layer in two places, a depthwise one, a transposed one, a dense one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.ModuleList([nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular", bias=False)] * 2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.up = nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 3, 2, padding=1, output_padding=1))
        self.dense = nn.Linear(2, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        for layer in self.twice:
            x = x + layer(x)
        return self.dense(self.up(self.depthwise(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scheme", [{}, {"with_r": True, "scaling": "fourier"}, {"scaling": "raw"}])
def test_converting_leaves_the_function_unchanged(dtype, scheme):
    model = Branches().to(dtype).eval()
    x = torch.randn(2, 3, 8, 5, dtype=dtype)
    before, draw = model(x), torch.random.get_rng_state()
    assert convert_model(model, **scheme) is model
    assert torch.equal(draw, torch.random.get_rng_state())
    torch.testing.assert_close(model(x), before, rtol=0, atol=2e-2 if dtype == torch.bfloat16 else 1e-6)
    assert isinstance(model.stem, CoordConv2d) and isinstance(model.up[1], CoordConvTranspose2d)
    assert model.twice[0] is model.twice[1] and isinstance(model.twice[0], CoordConv2d)
    assert type(model.depthwise) is nn.Conv2d and not any(m.training for m in model.modules())
    assert {p.dtype for p in model.parameters()} == {dtype}

    copied = convert_model(Branches().to(dtype), **scheme)
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied.eval()(x), model(x))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert torch.load(io.BytesIO(buffer.getvalue()), weights_only=True).keys() == model.state_dict().keys()


def test_training_moves_the_coordinates_weights():
    model = convert_model(Branches())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 8, 6)).square().sum().backward()
    optimizer.step()
    for weight in (model.stem.weight[:, 3:], model.twice[0].weight[:, 4:], model.up[1].weight[4:]):
        assert weight.abs().max() > 0


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("first", ["stem"]),
        (["up.1"], ["up.1"]),
        ({"stem", "up.1"}, ["stem", "up.1"]),
        (["twice.1"], ["twice.0", "twice.1"]),
        (lambda name, layer: layer.in_channels == 3, ["stem"]),
    ],
)
def test_where_chooses(where, expected):
    model = convert_model(Branches(), where)
    assert [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, tuple(LAYERS))] == expected
    rest = convert_model(model, lambda name, layer: layer.groups == 1 and name != "depthwise")
    assert sum(type(m) in (nn.Conv2d, nn.ConvTranspose2d) for m in rest.modules()) == 1 + 3  # depthwise, and inner ones


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d])
def test_a_bare_convolution_gives_its_counterpart(layer):
    plain = layer(3, 4, 3, stride=2)
    coord = convert_model(plain)
    x = small_input(type(coord))
    torch.testing.assert_close(coord(x), plain(x), rtol=0, atol=1e-6)
    assert type(coord).convolution is layer and coord.bias is plain.bias


def test_hooks_flags_and_formats_are_kept():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()).to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    seen = []
    handle = model[0].register_forward_hook(lambda layer, args, out: seen.append((type(layer), args[0].shape[1])))
    model[0].register_full_backward_hook(lambda layer, grad_in, grad_out: seen.append("backward"))
    model.train()
    model[0].eval()
    convert_model(model)
    model(torch.randn(1, 2, 4, 4, requires_grad=True)).sum().backward()
    assert seen == [(CoordConv2d, 2), "backward"]
    handle.remove()
    model(torch.randn(1, 2, 4, 4))
    assert len(seen) == 2
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert not model[0].conv.training and model[1].training
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


class Standardised(nn.Conv2d):
    """A subclass that computes something else."""


def refused() -> dict[str, tuple[nn.Module, object, str]]:
    conv = nn.Conv2d(2, 2, 3)
    tied = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    tied[1].weight = tied[0].weight
    pruned = nn.Conv2d(2, 2, 3)
    prune.random_unstructured(pruned, "weight", 0.5)
    return {
        "parametrised": (
            nn.Sequential(nn.utils.parametrizations.weight_norm(conv)),
            "all",
            "'0' has a computed weight",
        ),
        "pruned": (nn.Sequential(pruned), "all", "computed weight"),
        "tied": (tied, ["1"], "shares its weight"),
        "lazy": (nn.Sequential(nn.LazyConv2d(2, 3)), "all", "not initialised"),
        "groups": (Branches(), ["depthwise"], "groups=4"),
        "subclass": (nn.Sequential(Standardised(2, 2, 3)), lambda name, layer: True, "is a Standardised"),
        "skipped": (nn.Sequential(Standardised(2, 2, 3)), "all", "none of the model's 1"),
        "nothing": (nn.Linear(2, 2), "all", "none of the model's 0"),
        "name": (Branches(), ["stem", "branch"], "branch: no such convolution; there are stem, twice.0"),
        "word": (Branches(), "last", "'all', 'first', a list"),
        "scheme": (Branches(), "all", "order must be one of"),
    }


@pytest.mark.parametrize("case", list(refused()))
def test_what_cannot_be_converted_is_refused_and_untouched(case):
    model, where, message = refused()[case]
    before = list(model.modules())
    with pytest.raises(ValueError, match=message):
        convert_model(model, where, **({"order": "z"} if case == "scheme" else {}))
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))


def test_a_transformers_resnet():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetModel(config).eval()
    count = sum(type(m) is nn.Conv2d for m in model.modules())
    x = torch.randn(1, 3, 32, 40)
    before = model(x).last_hidden_state
    convert_model(model, with_r=True)
    assert sum(isinstance(m, CoordConv2d) for m in model.modules()) == count > 5
    torch.testing.assert_close(model(x).last_hidden_state, before, rtol=0, atol=1e-6)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, CoordConv2d):
                layer.weight[:, -3:] = 0.1
    assert not torch.allclose(model(x).last_hidden_state, before)
