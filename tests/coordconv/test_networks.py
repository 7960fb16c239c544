"""The networks: exact sizes, and the fast formulation against the plain one, alone and stacked."""

from collections.abc import Mapping
from math import log
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from common.errors import UserError
from common.random import Stream, seeded
from papers.coordconv import fast
from papers.coordconv.networks import NETWORKS, Entry, build

DEFAULTS = {
    "task": "classification", "network": "coordconv", "canvas": 64, "square": 9, "multiplier": 1, "kernel": 1,
    "coordinates": "scaled", "radius": False, "render_softmax": True, "render_kernel": 3, "pooling": "max",
    "relu": False, "padding": "zeros", "plain": False,
}  # fmt: skip
RENDERING, REGRESSION = {"task": "rendering"}, {"task": "regression"}
DECONV = {"network": "deconv", "kernel": 3}


def network(**settings: Any) -> nn.Module:
    with seeded(Stream(settings.pop("seed", 0), "initialisation")):
        return build(SimpleNamespace(**DEFAULTS | settings))


def count(**settings: Any) -> int:
    return sum(parameter.numel() for parameter in network(**settings).parameters())


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, 7_553),
        ({"multiplier": 2}, 29_441),
        *(
            ({"network": "deconv", "multiplier": m, "kernel": k}, expected)
            for m, row in enumerate(
                ([46_465, 103_585, 183_553], [183_041, 409_921, 727_553], [409_729, 919_009, 1_632_001]), 1
            )
            for k, expected in enumerate(row, 2)
        ),
        ({**DECONV, "canvas": 32}, 66_529),
        ({**DECONV, "canvas": 32, "multiplier": 2}, 262_081),
        ({"network": "upsample", "multiplier": 2, "kernel": 3}, 409_921),
        ({"network": "upsample-coordconv", "multiplier": 2, "kernel": 3}, 419_155),
        ({**RENDERING, "render_kernel": 1}, 8_074),
        ({**RENDERING, "render_kernel": 1, "multiplier": 2}, 9_490),
        ({**RENDERING, "render_kernel": 3}, 11_850),
        ({**RENDERING, "render_kernel": 3, "multiplier": 2}, 24_210),
        ({**RENDERING, **DECONV, "multiplier": 2}, 409_921),
        (REGRESSION, 906),
        ({**REGRESSION, "network": "conv-uniform"}, 72_850),
        ({**REGRESSION, "network": "conv-uniform", "multiplier": 2}, 159_330),
        ({**REGRESSION, "network": "conv-quadrant"}, 12_914),
        ({**REGRESSION, "network": "conv-quadrant", "multiplier": 2}, 49_890),
    ],
    ids=str,
)
def test_invariant_5_parameters(settings: Mapping[str, Any], parameters: int):
    assert count(**settings) == parameters


def test_weights_that_coordinates_cost():
    assert count() - count(network="no-coords") == 2 * 32
    assert count(radius=True) - count() == 32
    assert count(**REGRESSION, radius=True) - count(**REGRESSION) == 8


def inputs(settings: Mapping[str, Any], batch: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    canvas, generator = settings.get("canvas", 64), torch.Generator().manual_seed(seed)
    if settings.get("task") == "regression":
        return torch.rand(batch, 1, canvas, canvas, generator=generator).to(dtype)
    return torch.randint(0, canvas, (batch, 2), generator=generator).to(dtype)


@pytest.mark.parametrize("canvas", [8, 16, 32, 64])
def test_shapes(canvas: int):
    for task, names in NETWORKS.items():
        for name in names:
            kernel = 3 if name.startswith(("deconv", "upsample")) else 1
            settings = {"task": task, "network": name, "canvas": canvas, "kernel": kernel}
            with torch.no_grad():
                out = network(**settings)(inputs(settings, 2))
            assert out.shape == ((2, 2) if task == "regression" else (2, canvas, canvas))
            assert out.isfinite().all()


ARMS: dict[str, dict[str, Any]] = {
    "coordconv": {},
    "coordconv-blocks": {"canvas": 64},
    "radius-raw": {"radius": True, "coordinates": "raw"},
    "fourier": {"network": "fourier", "coordinates": "fourier", "multiplier": 2},
    "no-coords": {"network": "no-coords"},
    "mlp": {"network": "mlp"},
    **{f"deconv-{k}": {"network": "deconv", "kernel": k} for k in (2, 3, 4, 5)},
    "upsample": {"network": "upsample", "kernel": 3},
    "upsample-coordconv": {"network": "upsample-coordconv", "kernel": 2, "padding": "circular"},
    "rendering": {"task": "rendering"},
    "rendering-raw-logits": {"task": "rendering", "render_softmax": False, "padding": "circular"},
    "regression": {"task": "regression"},
    "regression-radius": {"task": "regression", "radius": True, "pooling": "mean", "padding": "circular"},
    "regression-relu": {"task": "regression", "relu": True, "multiplier": 2},
    "regression-no-coords": {"task": "regression", "network": "no-coords"},
    "conv-uniform": {"task": "regression", "network": "conv-uniform"},
    "conv-quadrant": {"task": "regression", "network": "conv-quadrant"},
}


def pair(arm: str, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Plain and fast with the same weights, biases and BatchNorm statistics that are not 0 and 1."""
    settings = {"canvas": 16, "seed": seed} | ARMS[arm]
    plain, quick = network(**settings, plain=True), network(**settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in plain.state_dict().items():
            if tensor.ndim == 1:
                tensor += 0.2 * torch.rand(tensor.shape, generator=generator) if "running" in name else 0.05
    assert list(plain.state_dict()) == list(quick.state_dict())
    quick.load_state_dict(plain.state_dict())
    return plain, quick


def assert_alike(measured: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(expected.abs().max().item(), 1e-3)
    assert (measured - expected).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("arm", ARMS)
def test_fast_is_plain(arm: str, dtype: torch.dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    plain, quick = (model.to(dtype) for model in pair(arm))
    x = inputs({"canvas": 16} | ARMS[arm], 3, dtype)
    outs = plain(x), quick(x)
    assert_alike(outs[1], outs[0], tolerance)
    direction = torch.rand_like(outs[0]) - 0.3
    for out in outs:
        (out * direction).sum().backward()
    largest = max(parameter.grad.abs().max().item() for parameter in plain.parameters())
    for a, b in zip(plain.parameters(), quick.parameters(), strict=True):
        # A bias before BatchNorm has no effect: its plain gradient is rounding, beside the others' size.
        assert (a.grad - b.grad).abs().max() <= tolerance * max(largest, 1e-3)
    for a, b in zip(plain.buffers(), quick.buffers(), strict=True):
        assert_alike(b, a, tolerance)
    plain.eval(), quick.eval()
    with torch.no_grad():
        assert_alike(quick(x), plain(x), tolerance)


@pytest.mark.parametrize("batched", [False, True], ids=["in-turns", "batched"])
@pytest.mark.parametrize("arm", ["coordconv", "no-coords", "deconv-2", "deconv-3", "deconv-4", "deconv-5", "rendering",
                                 "upsample-coordconv", "regression", "conv-uniform", "conv-quadrant"])  # fmt: skip
def test_stacked_is_alone(arm: str, batched: bool, monkeypatch: pytest.MonkeyPatch):
    """Outputs, gradients and BatchNorm's statistics of three networks under vmap are those of each; "batched" is the
    way of a GPU."""
    if batched:
        monkeypatch.setattr(fast, "_in_turns", lambda x: False)
    alone, stacked = zip(*(pair(arm, seed) for seed in range(3)), strict=True)
    alone, stacked = [model.double() for model in alone], [model.double() for model in stacked]
    settings = {"canvas": 16} | ARMS[arm]
    x = torch.stack([inputs(settings, 4, torch.float64, seed) for seed in range(3)])
    state = tuple(stack_module_state(stacked))
    assert not any(stacked[0].get_buffer(name).data_ptr() == tensor.data_ptr() for name, tensor in state[1].items())
    before = {name: tensor.clone() for name, tensor in state[1].items()}

    def forward(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(stacked[0], (parameters, buffers), (x,))

    outs = vmap(forward)(*state, x)
    outs.square().sum().backward()
    for i, model in enumerate(alone):
        out = model(x[i])
        assert_alike(outs[i], out, 1e-9)
        out.square().sum().backward()
        largest = max(parameter.grad.abs().max().item() for parameter in model.parameters())
        for name, parameter in model.named_parameters():
            assert (state[0][name].grad[i] - parameter.grad).abs().max() <= 1e-9 * largest
        for name, buffer in model.named_buffers():
            assert_alike(state[1][name][i], buffer, 1e-9)
            assert not torch.equal(state[1][name], before[name])
    stacked[0].eval()
    with torch.no_grad():
        outs = vmap(forward)(*state, x)
    for i, model in enumerate(alone):
        assert_alike(outs[i], model.eval()(x[i]), 1e-9)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    model, x = network(canvas=16).double(), inputs({"canvas": 16}, 3, torch.float64)
    results = []
    for block in (100, 256, 600, 2048):
        monkeypatch.setattr(fast, "BLOCK", block)
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        results.append([out, *(parameter.grad.clone() for parameter in model.parameters())])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_gradient_reaches_what_is_below():
    """The decoder's input may be another network's output, as a vector of learnt features."""
    model = network(**DECONV, canvas=8).double()
    vectors = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    layers = [(conv.weight, conv.bias) for conv in model.convs]
    norms = [(norm.weight, norm.bias, norm.running_mean, norm.running_var) for norm in model.norms]
    for training in (True, False):
        (by_hand,) = torch.autograd.grad(
            fast.decoder(vectors, layers, norms, training, 0, 1e-5).square().sum(), vectors
        )
        for i in range(2):
            step = torch.zeros_like(vectors)
            step[i, 0] = 1e-6
            with torch.no_grad():
                up, down = (
                    fast.decoder(vectors + sign * step, layers, norms, training, 0, 1e-5).square().sum()
                    for sign in (1, -1)
                )
            assert by_hand[i, 0].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-4)


@pytest.mark.parametrize("plain", [True, False])
def test_invariant_10_without_coordinates_all_pixels_are_alike(plain: bool):
    out = network(network="no-coords", plain=plain)(inputs({}, 3)).flatten(1)
    assert (out - out[:, :1]).abs().max() < 1e-6
    assert out[:, 0].unique().numel() == 3
    # Invariant 9: uniform logits cost ln 4096.
    assert F.cross_entropy(out, torch.tensor([0, 77, 4095])).item() == pytest.approx(log(4096), abs=1e-5)


def test_entries():
    xy = torch.tensor([[0.0, 63.0], [31.5, 21.0]])
    torch.testing.assert_close(Entry("scaled", 64)(xy), torch.tensor([[-1.0, 1.0], [0.0, -1 / 3]]))
    assert torch.equal(Entry("raw", 64)(xy), xy)
    waves = Entry("fourier", 64)(xy)
    assert waves.shape == (2, Entry("fourier", 64).channels) == (2, 24)
    torch.testing.assert_close(waves[0, :4], torch.tensor([-1.0, 0.0, 0.0, -1.0]), atol=1e-6, rtol=0)
    pixels = torch.cartesian_prod(torch.arange(64.0), torch.arange(64.0))
    assert torch.pdist(Entry("fourier", 64)(pixels[:128])).min() > 0.5


def test_centre_of_the_renderer():
    model = network(**RENDERING, canvas=16)
    x = inputs({"canvas": 16}, 2)
    logits, centre = model(x, with_centre=True)
    assert torch.equal(logits, model(x)) and torch.equal(centre, model.centre(x))


def test_zero_padding_leaks_position_and_circular_does_not():
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 8, 8] = 1
    moved = image.roll((7, 7), (2, 3))
    for padding, leaks in (("circular", False), ("zeros", True)):
        model = network(**REGRESSION, network="no-coords", canvas=16, padding=padding, pooling="mean")
        assert ((model(image) - model(moved)).abs().max() > 1e-5).item() == leaks


def test_initialisation_depends_on_the_generator_alone():
    first, again, other = network(), network(), network(seed=1)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.convs[0].weight, other.convs[0].weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "conv-uniform"}, "no network 'conv-uniform' for classification"),
        ({**REGRESSION, "network": "deconv"}, "no network 'deconv' for regression"),
        ({"canvas": 48}, "power of two"),
        ({"network": "deconv"}, "kernel=2 or more"),
        ({**DECONV, "padding": "circular"}, "padding='zeros'"),
        ({"kernel": 3}, "kernel=1"),
    ],
)
def test_settings_that_do_not_go_together(settings: Mapping[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        network(**settings)
