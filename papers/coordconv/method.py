"""CoordConv (Liu et al. 2018, arXiv 1807.03247): convolutions that know where they are.

Read from top to bottom: the coordinate channels (Sec. 3 of the paper), the layer that appends them, the convolutions
built on it, the shortcut for decoders that start from one vector per sample, and `convert_model`, which puts the idea
into any network without changing what it computes. Where the released code and its ports differ from the paper, an
option of `Scheme` names the difference; the defaults are the paper's.

The coordinates are constants: no parameters, no gradient, the same for every sample, and nothing of them enters a
state_dict. In eager mode they are computed once for each shape, dtype and device and shared by all layers. Inside
`torch.compile`, `torch.export` and ONNX export they are part of the graph, so that height and width may be dynamic.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import pi, prod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

# Numbers in a map of coordinates up to which it is kept (16 MB in float32). Larger ones are computed again each time,
# which costs little beside the convolution that follows.
CACHED_BELOW = 1 << 22


@dataclass(frozen=True)
class Scheme:
    """Which coordinate channels there are, in which order and on which scale.

    Args:
        with_r: append the distance from the centre, rr = sqrt(xx^2 + yy^2 + ...); the paper's experiments do without.
        scaling: "scaled": every axis runs over exactly [-1, 1]. "raw": pixel numbers 0..n-1. "fourier": each scaled
            coordinate v becomes sin(f v), cos(f v) for the frequencies f = pi/2 * 2^k, k = 0..fourier_bands-1. The
            lowest is half a wave over the axis, so that the two ends differ.
        order: "xy": xx along the width first, then yy along the height, then zz along the depth. "yx": the reverse,
            i.e. the order of the array's axes, which mkocabas' port emits. rr is last in either.
        radius_center: what is subtracted from each coordinate before rr. 0.0 is the released code; the snippet printed
            in the paper has 0.5, which is off the centre, and most ports copied it.
        normalize: "per-axis": xx is divided by W-1 and yy by H-1. "official": the released code exchanges the two, so
            that non-square maps leave [-1, 1]; 2-D only.
        singleton: an axis of length 1 has no scale. "zero": its coordinate is 0. "official": the released code's
            0/0, which is NaN.
        fourier_bands: number of frequencies, used with scaling="fourier" only.
    """

    with_r: bool = False
    scaling: Literal["scaled", "raw", "fourier"] = "scaled"
    order: Literal["xy", "yx"] = "xy"
    radius_center: float = 0.0
    normalize: Literal["per-axis", "official"] = "per-axis"
    singleton: Literal["zero", "official"] = "zero"
    fourier_bands: int = 4

    def __post_init__(self):
        """Check the values.

        Raises:
            ValueError: an unknown name, or no Fourier band.
        """
        allowed = {
            "scaling": ("scaled", "raw", "fourier"),
            "order": ("xy", "yx"),
            "normalize": ("per-axis", "official"),
            "singleton": ("zero", "official"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, not {getattr(self, name)!r}")
        if self.fourier_bands < 1:
            raise ValueError(f"fourier_bands must be at least 1, not {self.fourier_bands}")

    def channels(self, dims: int) -> int:
        """How many channels they are on maps of `dims` axes."""
        return dims * (2 * self.fourier_bands if self.scaling == "fourier" else 1) + self.with_r


# ---------------------------------------------------------------- coordinates: Sec. 3


def coordinates(
    size: Sequence[int],
    scheme: Scheme = Scheme(),
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The coordinate channels of a map: size (W,), (H, W) or (D, H, W) -> [E, *size] with E = scheme.channels(dims).

    They are computed in float32 at least and then rounded to `dtype` (None: torch's default). Mind that neighbours on
    an axis longer than 513 pixels may coincide in bfloat16, and on one longer than 4097 in float16.

    Raises:
        ValueError: normalize="official" on maps that are not 2-D.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    _check_dims(scheme, len(size))
    # Everything below is tensor arithmetic without branches on sizes: exporters can keep them symbolic.
    axes = [torch.arange(n, dtype=torch.promote_types(dtype, torch.float32), device=device) for n in size]
    if scheme.scaling != "raw":
        last = [axis[-1:] for axis in axes]  # n - 1
        divisors = last if scheme.normalize == "per-axis" else last[::-1]
        axes = [_scaled(axis, divisor, scheme.singleton) for axis, divisor in zip(axes, divisors, strict=True)]
    maps = torch.meshgrid(*axes, indexing="ij")
    positions = maps[::-1] if scheme.order == "xy" else maps

    channels = list(positions)
    if scheme.scaling == "fourier":
        phases = [pi / 2 * 2**k * v for v in positions for k in range(scheme.fourier_bands)]
        channels = [wave for phase in phases for wave in (phase.sin(), phase.cos())]
    if scheme.with_r:
        channels.append(torch.stack([(v - scheme.radius_center).square() for v in positions]).sum(dim=0).sqrt())
    return torch.stack(channels).to(dtype)


def _scaled(axis: Tensor, divisor: Tensor, singleton: str) -> Tensor:
    """2 v / divisor - 1 for v = 0, 1, ..., written so that v = 0 and v = divisor give exactly -1 and 1."""
    values = (2 * axis - divisor) / divisor
    return values if singleton == "official" else torch.where(divisor == 0, torch.zeros_like(values), values)


def _check_dims(scheme: Scheme, dims: int) -> None:
    if dims not in (1, 2, 3):
        raise ValueError(f"coordinates exist for 1, 2 or 3 axes, not {dims}")
    if scheme.normalize == "official" and dims != 2:
        raise ValueError("normalize='official' copies released code that is 2-D only: use 'per-axis'")


@functools.lru_cache(maxsize=16)
def _kept_coordinates(size: tuple[int, ...], scheme: Scheme, dtype: torch.dtype, device: torch.device) -> Tensor:
    # The first caller may be inside inference_mode or a torch.func transform; what is kept must know of neither.
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        return coordinates(size, scheme, dtype, device)


def _is_eager(x: Tensor) -> bool:
    """Whether x is an ordinary tensor and nothing records: tracers must see how constants come about, and a CUDA graph
    must own what it reads."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) not in (Tensor, nn.Parameter):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def tile(vector: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat a vector over a map, as decoders do before AddCoords: [B, C] -> [B, C, *size], a view without a copy."""
    return vector.reshape(*vector.shape, *[1] * len(size)).expand(*vector.shape, *size)


class AddCoords(nn.Module):
    """Append coordinate channels: [B, C, *size] -> [B, C + E, *size], in the order [input, xx, yy, zz, rr].

    xx runs along the width (the last axis), yy along the height, zz along the depth: on 3-D maps [B, C, D, H, W] the
    appended channels are xx (W), yy (H), zz (D), on sequences [B, C, L] only xx. Any size, square or not; the batch
    axis may be missing; channels-last inputs stay channels-last. E is `extra_channels`.

    Args:
        dims: 1, 2 or 3, the axes of the maps.
        with_r, scheme: see `Scheme`.

    Raises:
        TypeError: an option that `Scheme` does not have.
        ValueError: a bad value; at call time, an input with another number of axes.
    """

    def __init__(self, dims: int = 2, with_r: bool = False, **scheme: Any):
        super().__init__()
        self.dims = dims
        self.scheme = Scheme(with_r=with_r, **scheme)
        _check_dims(self.scheme, dims)

    @property
    def extra_channels(self) -> int:
        """E: 2 in the paper, 3 with the radius."""
        return self.scheme.channels(self.dims)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, *size] -> [B, C + E, *size]; integers become torch's default floating type."""
        if x.ndim not in (self.dims + 1, self.dims + 2):
            raise ValueError(
                f"expected [B, C, {', '.join('DHW'[-self.dims :])}] or the same without B, got {tuple(x.shape)}"
            )
        channel = -self.dims - 1
        coords = self.channels(x.shape[channel + 1 :], x)
        coords = coords.expand(*x.shape[:channel], *coords.shape)
        if _is_eager(x) and not x.is_contiguous() and x.stride(channel) == 1 and x.stride(-1) == x.shape[channel]:
            # Channels-last, which torch.cat would give up, since the expanded coordinates do not have that format.
            return torch.cat([x.movedim(channel, -1), coords.movedim(channel, -1)], dim=-1).movedim(-1, channel)
        return torch.cat([x, coords], dim=channel)

    def channels(self, size: Sequence[int], like: Tensor) -> Tensor:
        """The coordinate channels [E, *size] alone, of dtype and device of `like`. Not to be changed in place."""
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        if _is_eager(like) and prod(size) * self.extra_channels <= CACHED_BELOW:
            return _kept_coordinates(tuple(size), self.scheme, dtype, like.device)
        return coordinates(size, self.scheme, dtype, like.device)

    def extra_repr(self) -> str:
        changed = (f"{k}={v!r}" for k, v in vars(self.scheme).items() if v != getattr(Scheme(), k))
        return ", ".join([f"dims={self.dims}", *changed])


# ---------------------------------------------------------------- convolutions


class _CoordConv(nn.Module):
    """`add_coords`, then an ordinary convolution `conv` with E more input channels."""

    dims: ClassVar[int]
    convolution: ClassVar[type[nn.Module]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        with_r: bool = False,
        **scheme: Any,
    ):
        super().__init__()
        options = {"stride": stride, "padding": padding, "dilation": dilation, "bias": bias}
        options |= {"padding_mode": padding_mode, "device": device, "dtype": dtype}
        self._assemble(in_channels, out_channels, kernel_size, groups, options, {"with_r": with_r} | scheme)

    def _assemble(self, in_channels, out_channels, kernel_size, groups: int, options: dict, scheme: dict) -> None:
        if groups != 1:
            raise ValueError(f"groups={groups}: only the last group would see the coordinates; use groups=1")
        self.add_coords = AddCoords(self.dims, **scheme)
        channels = in_channels + self.add_coords.extra_channels
        self.conv = self.convolution(channels, out_channels, kernel_size, **options)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, *size] -> [B, out_channels, *new size]; B may be missing."""
        return self.conv(self.add_coords(x))

    @property
    def weight(self) -> nn.Parameter:
        """`conv.weight`: the last E input channels are those of the coordinates."""
        return self.conv.weight

    @property
    def bias(self) -> nn.Parameter | None:
        """`conv.bias`."""
        return self.conv.bias

    @property
    def in_channels(self) -> int:
        """Of the input, without the coordinates."""
        return self.conv.in_channels - self.add_coords.extra_channels

    @property
    def out_channels(self) -> int:
        """Of the output."""
        return self.conv.out_channels


class CoordConv1d(_CoordConv):
    """nn.Conv1d that sees the position: its arguments, in its order, then those of `AddCoords` by keyword.

    The state_dict has `conv.weight` [out_channels, in_channels + E, k] and `conv.bias`. Everything about nn.Conv1d
    holds, `padding_mode` too; the coordinate channels are padded like the others, so zeros stand for the middle of the
    map beyond its border, and with "circular" the position wraps. ValueError for groups other than 1.
    """

    dims = 1
    convolution = nn.Conv1d


class CoordConv2d(_CoordConv):
    """nn.Conv2d that sees the position (Sec. 3 of the paper); see `CoordConv1d` for arguments, state and padding.

    It has E * out_channels * k^2 more weights, E = 2, or 3 with the radius; where these are 0 it is nn.Conv2d.
    """

    dims = 2
    convolution = nn.Conv2d


class CoordConv3d(_CoordConv):
    """nn.Conv3d that sees the position; see `CoordConv1d`, and `AddCoords` for the order of the axes."""

    dims = 3
    convolution = nn.Conv3d


class CoordConvTranspose2d(_CoordConv):
    """nn.ConvTranspose2d whose input map has coordinates: its arguments, then those of `AddCoords` by keyword.

    The state_dict has `conv.weight` [in_channels + E, out_channels, k, k] and `conv.bias`. The coordinates are those of
    the smaller map, before upsampling. ValueError for groups other than 1.
    """

    dims = 2
    convolution = nn.ConvTranspose2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        with_r: bool = False,
        **scheme: Any,
    ):
        nn.Module.__init__(self)
        options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        options |= {"bias": bias, "padding_mode": padding_mode, "device": device, "dtype": dtype}
        self._assemble(in_channels, out_channels, kernel_size, groups, options, {"with_r": with_r} | scheme)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H', W']; `output_size` as for nn.ConvTranspose2d."""
        return self.conv(self.add_coords(x), output_size)


# ---------------------------------------------------------------- decoders: a vector on a grid (spec 11)


def split_conv1x1(z: Tensor, weight: Tensor, bias: Tensor | None, coords: Tensor) -> Tensor:
    """conv1x1(concat(tile(z), coords)) as W_z z + W_c coords + b: once per sample plus once per grid.

    z [B, C], weight [O, C + E, 1, ...], bias [O] or None, coords [E, *size] -> [B, O, *size].
    """
    features = z.shape[-1]
    w = weight.flatten(1)
    at_samples = F.linear(z, w[:, :features], bias)
    at_pixels = torch.tensordot(w[:, features:], coords, dims=1)
    return at_samples.reshape(*at_samples.shape, *[1] * (coords.ndim - 1)) + at_pixels


class SplitCoordConv1x1(CoordConv2d):
    """CoordConv2d(in_channels, out_channels, 1) on a tiled vector, computed without tiling; the same state_dict.

    Args:
        in_channels, out_channels, bias, options (device, dtype, with_r, scheme): as `CoordConv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True, **options: Any):
        super().__init__(in_channels, out_channels, 1, bias=bias, **options)

    def forward(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        """z [B, in_channels] and the map's (H, W) -> [B, out_channels, H, W]."""
        return split_conv1x1(z, self.weight, self.bias, self.add_coords.channels(size, z))


# ---------------------------------------------------------------- any model

COUNTERPARTS: dict[type[nn.Module], type[_CoordConv]] = {
    layer.convolution: layer for layer in (CoordConv1d, CoordConv2d, CoordConv3d, CoordConvTranspose2d)
}
# What nn.Module keeps its hooks in. The handles that callers hold refer to the dictionaries themselves.
_HOOKS = ["_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks"]
_HOOKS += ["_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"]

Where = Literal["all", "first"] | Collection[str] | Callable[[str, nn.Module], bool]


def convert_model(module: nn.Module, where: Where = "all", with_r: bool = False, **scheme: Any) -> nn.Module:
    """Swap convolutions of any model for CoordConvs, in place, without changing what it computes.

    Weights and biases are kept, and the coordinates start with weights of zero. Modes, hooks, `requires_grad`, dtype
    and device stay; a layer used in several places is swapped once. Weights become new, larger parameters (biases stay
    the same ones): make optimisers afterwards.

    Args:
        module: the model; not changed where an error is raised.
        where: which of its nn.Conv1d/2d/3d and nn.ConvTranspose2d. "all"; "first" in the order of `named_modules`; a
            list of their names; or a function of (name, layer) that says yes or no. "all" and "first" pass over layers
            with groups (depthwise ones) and subclasses, since these compute something else. What is a CoordConv already
            stays as it is.
        with_r, scheme: see `Scheme`. With singleton="official", maps of length 1 turn NaN at once.

    Returns:
        The same model, or, where `module` is itself a convolution, its counterpart.

    Raises:
        ValueError: nothing to swap; a name that is no such layer; a chosen layer with groups; one whose weight is
            computed (weight or spectral norm, pruning), shared with another module or not initialised yet.
    """
    layers = _convolutions(module)
    if isinstance(where, str):
        usual = [name for name, layer in layers.items() if _is_usual(layer)]
        if where not in ("all", "first"):
            raise ValueError(f"where must be 'all', 'first', a list of names or a function, not {where!r}")
        chosen = usual if where == "all" else usual[:1]
    elif callable(where):
        chosen = [name for name, layer in layers.items() if where(name, layer)]
    else:
        chosen = list(where)
        if unknown := [name for name in chosen if name not in layers]:
            raise ValueError(f"{', '.join(unknown)}: no such convolution; there are {', '.join(layers) or 'none'}")
    if not chosen:
        raise ValueError(f"where={where!r} chooses none of the model's {len(layers)} convolutions")

    swapped: dict[nn.Module, _CoordConv] = {}
    for name in chosen:
        if layers[name] not in swapped:
            _check_swap(name, layers[name], module)
            swapped[layers[name]] = _counterpart(layers[name], {"with_r": with_r} | scheme)
    if module in swapped:
        return swapped[module]
    for name, layer in layers.items():
        if layer in swapped:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, swapped[layer])
    return module


def _convolutions(module: nn.Module) -> dict[str, nn.Module]:
    """All of a model by name, a shared one under each of its names; not those inside of a CoordConv."""
    modules = dict(module.named_modules(remove_duplicate=False))
    return {
        name: layer
        for name, layer in modules.items()
        if isinstance(layer, tuple(COUNTERPARTS)) and not isinstance(modules.get(name.rpartition(".")[0]), _CoordConv)
    }


def _is_usual(layer: nn.Module) -> bool:
    """Without groups and no subclass. Lazy and parametrised layers are subclasses in name only."""
    lazy = isinstance(layer._parameters.get("weight"), UninitializedParameter)
    return layer.groups == 1 and (lazy or parametrize.type_before_parametrizations(layer) in COUNTERPARTS)


def _check_swap(name: str, layer: nn.Module, model: nn.Module) -> None:
    """ValueError where the weight of a layer cannot simply be extended by zeros."""
    weight = layer._parameters.get("weight")
    owners = sum(any(p is weight for p in m._parameters.values()) for m in model.modules())
    if isinstance(weight, UninitializedParameter):
        problem = "is not initialised yet: run the model once before"
    elif parametrize.is_parametrized(layer) or not {"weight", "bias"} <= layer._parameters.keys():
        problem = "has a computed weight (weight norm, spectral norm, pruning): undo that, convert, redo it"
    elif not _is_usual(layer):
        problem = f"is a {type(layer).__name__} with groups={layer.groups}; only plain ones without groups convert"
    elif owners > 1:
        problem = "shares its weight with another layer: give it a copy first, or leave it out of `where`"
    else:
        return
    raise ValueError(f"convolution {name!r} {problem}")


@torch.no_grad()
def _counterpart(old: nn.Module, options: dict[str, Any]) -> _CoordConv:
    """The CoordConv that computes what `old` does: its weights, and zeros for the coordinates."""
    names = ["stride", "padding", "dilation", "padding_mode", *(["output_padding"] if old.transposed else [])]
    options = {name: getattr(old, name) for name in names} | options
    # On "meta" nothing is allocated, and no random number is drawn that would move the caller's other draws.
    new = COUNTERPARTS[type(old)](
        old.in_channels, old.out_channels, old.kernel_size, bias=old.bias is not None, device="meta", **options
    )
    # Input channels are the second axis of a weight, of a transposed convolution the first; F.pad counts from the last.
    later_axes = new.dims + old.transposed
    weight = F.pad(old.weight, [0, 0] * later_axes + [0, new.add_coords.extra_channels])
    new.conv.weight = nn.Parameter(weight, requires_grad=old.weight.requires_grad)
    new.conv.bias = old.bias
    for hooks in _HOOKS:
        setattr(new, hooks, getattr(old, hooks))
    return new.train(old.training)
