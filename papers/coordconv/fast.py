"""The per-pixel network and the decoder of `networks.py` as one differentiable function each, made for a CPU's cache.

Three things make a training step of these small networks slow: passes over memory between the products, feature maps
that leave the cache between forward and backward, and products that use half of the vector unit. Here products are
oneDNN's, what surrounds them happens in place, and a per-pixel network works block by block.

Each `autograd.Function` takes tensors with a leading axis of S networks that have weights of their own; alone, S = 1.
`torch.func.vmap` over stacked parameters ends in the same code (`_stacked`). On a CPU the networks take turns, which
keeps each one's features in the cache; on a GPU their products are batched. They can be differentiated once, not twice.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2048
"""Pixels that pass through a per-pixel network at once on a CPU, so that their features stay in its cache."""

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [..., M, K] @ b [..., K, N]. `a` has no gaps.

    One float32 network on a CPU takes oneDNN's product (the one that torch.compile uses): on processors where MKL keeps
    to half of the vector width, AMD's, it is twice as fast as torch.mm.
    """
    if ONEDNN and a.ndim == 2 and len(a) > 1 and a.device.type == "cpu" and a.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return a @ b


def _in_turns(x: Tensor) -> bool:
    """Whether the networks of a stack are computed one after the other; if not, their products are batched."""
    return x.device.type == "cpu"


def _stacked(in_dims: Sequence[int | None], size: int, args: Sequence[Any]) -> list[Any]:
    """The arguments under vmap with its axis of networks put into the leading one."""
    flat = []
    for dim, arg in zip(in_dims, args, strict=True):
        if isinstance(arg, Tensor):
            arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            arg = arg.flatten(0, 1)
        flat.append(arg)
    return flat


def _unstacked(out: Tensor, size: int) -> Tensor:
    return out.unflatten(0, (size, -1))


def _alone(*tensors: Tensor) -> list[Tensor]:
    """One network as a stack; under autocast in its dtype, since gradients by hand would miss it."""
    kind = tensors[0].device.type
    if torch.is_autocast_enabled(kind):
        tensors = tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)
    return [tensor[None] for tensor in tensors]


def _rectify(grad: Tensor, activated: Tensor) -> Tensor:
    """Set grad to 0, in place, where the ReLU's output is 0."""
    return torch.ops.aten.threshold_backward.grad_input(grad, activated, 0, grad_input=grad)


# ---------------------------------------------------------------- the per-pixel network


class _PixelLayers(torch.autograd.Function):
    """vectors [S, B, d], coords [S, e, P], then weight [S, N, K] and bias [S, N, 1] of each layer -> [S, B, P].

    Features are [channels, pixels of a block], with an axis of networks before where a stack is computed at once. They
    are computed again in the backward pass, which is cheaper than writing them to memory and reading them back.
    """

    @staticmethod
    def forward(vectors: Tensor, coords: Tensor, *layers: Tensor) -> Tensor:
        out = vectors.new_empty(*vectors.shape[:2], coords.shape[2])
        for parts in _members(out, *_first_layer(vectors, coords, *layers[:2]), *layers[2:]):
            for into, _, _, hidden, weights, biases in _blocks(*parts):
                last = weights[-1] @ hidden[-1]
                into.copy_(last.add_(biases[-1]).view(into.shape))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        vectors, coords, *layers = ctx.saved_tensors
        sample, pixel = _first_layer(vectors, coords, *layers[:2])
        rest = layers[2:]
        totals = [torch.zeros_like(tensor) for tensor in (sample, pixel, *rest)]
        parts_of_totals = _members(grad, *totals)
        for parts, (_, *sums) in zip(_members(grad, sample, pixel, *rest), parts_of_totals, strict=True):
            turned = [weight.mT.contiguous() for weight in parts[3::2]]
            for above_all, rows, columns, hidden, _, _ in _blocks(*parts):
                above = above_all.flatten(-2)[..., None, :]
                for i in range(len(turned) - 1, -1, -1):
                    sums[2 + 2 * i].add_(product(above, hidden[i].mT))
                    sums[3 + 2 * i].add_(above.sum(-1, keepdim=True))
                    below = turned[i] * above if i == len(turned) - 1 else product(turned[i], above)
                    above = _rectify(below, hidden[i])
                above = above.unflatten(-1, above_all.shape[-2:])
                sums[0][..., rows].add_(above.sum(-1))
                sums[1][..., columns].add_(above.sum(-2))
        of_first = torch.cat([torch.bmm(totals[0], vectors), torch.bmm(totals[1], coords.mT)], dim=2)
        return None, None, of_first, totals[0].sum(2, keepdim=True), *totals[2:]

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Tensor) -> tuple[Tensor, int]:
        return _unstacked(_PixelLayers.apply(*_stacked(in_dims, info.batch_size, args)), info.batch_size), 0


def _first_layer(vectors: Tensor, coords: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """W [vector; coords] + b = W_v vector, once for each sample, + (W_c coords + b), once for each pixel (spec 11).

    [S, C, B] and [S, C, P].
    """
    for_vector, for_coords = weight.split([vectors.shape[2], coords.shape[1]], dim=2)
    return torch.bmm(for_vector, vectors.mT), torch.baddbmm(bias, for_coords, coords)


def _members(*stacks: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors of each network, or those of all at once."""
    return zip(*stacks, strict=True) if _in_turns(stacks[0]) else iter([stacks])


def _blocks(
    out: Tensor, sample: Tensor, pixel: Tensor, *layers: Tensor
) -> Iterator[tuple[Tensor, slice, slice, list[Tensor], Sequence[Tensor], Sequence[Tensor]]]:
    """Block by block of out [..., B, P]: that part of it, its samples, its pixels, what each layer but the last gives
    there ([..., C, b * p]; sample [..., C, B] and pixel [..., C, P] add up to the first), and weights and biases."""
    samples, pixels = out.shape[-2:]
    weights, biases = layers[::2], layers[1::2]
    some_pixels = min(pixels, BLOCK) if _in_turns(out) else pixels
    some_samples = max(1, BLOCK // some_pixels) if _in_turns(out) else samples
    for column in range(0, pixels, some_pixels):
        columns = slice(column, column + some_pixels)
        for row in range(0, samples, some_samples):
            rows = slice(row, row + some_samples)
            hidden = [(sample[..., rows, None] + pixel[..., None, columns]).relu_().flatten(-2)]
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                hidden.append(product(weight, hidden[-1]).add_(bias).relu_())
            yield out[..., rows, columns], rows, columns, hidden, weights, biases


def pixel_layers(vectors: Tensor, coords: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """1x1 convolutions with ReLU between, of each vector beside the coordinates of each pixel.

    Args:
        vectors: [B, d]; no gradient flows into them.
        coords: [e, P].
        weights: [N, K] of each layer; the first has K = d + e, the last N = 1.
        biases: [N] of each layer.

    Returns:
        [B, P].
    """
    layers = [tensor for pair in zip(weights, biases, strict=True) for tensor in (pair[0], pair[1][:, None])]
    return _PixelLayers.apply(*_alone(vectors, coords, *layers))[0]


# ---------------------------------------------------------------- the decoder


class _Decoder(torch.autograd.Function):
    """vectors [S, B, C], then weight [S, C, O, k, k] and bias [S, O] of each transposed convolution, then gain, shift,
    running mean and running variance [S, O] of each BatchNorm -> maps [S, B, H, W, 1], H = W = 2^layers.

    TensorFlow's 'same' drops its odd pixel at the end, torch's padding at the start. So the whole decoder runs on maps
    turned by 180 degrees, with the kernels turned too, and nothing needs to be cropped; only the last map is turned
    back. In training mode a bias before a BatchNorm has the gradient 0; the running statistics move in place.
    """

    @staticmethod
    def forward(training: bool, momentum: float, eps: float, layers: int, *tensors: Tensor) -> tuple[Tensor, Any]:
        vectors, kernels, biases, norms = _decoder_tensors(layers, tensors)
        turned = [kernel.flip(3, 4) for kernel in kernels]
        outs, kept = [], []
        for turn in _turns(vectors):
            x = vectors[turn, :, None, None]
            for i, norm in enumerate(norms):
                before = _double(x, turned[i][turn], biases[i][turn])
                after, *batch = _normalise(before, *(tensor[turn] for tensor in norm), training, momentum, eps)
                kept += [x, before, *batch]
                x = after.relu_()
            kept += [x]
            outs += [_double(x, turned[-1][turn], biases[-1][turn])]
        return _joined(outs).flip(2, 3), (turned, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Any]) -> None:
        ctx.training, _, ctx.eps, ctx.layers, *tensors = inputs
        turned, kept = output[1]
        ctx.inputs = len(tensors)
        _, _, _, norms = _decoder_tensors(ctx.layers, tensors)
        if ctx.training:
            # Batch statistics are what counts, and the next forward pass moves the running ones.
            norms = [(gain, shift, None, None) for gain, shift, _, _ in norms]
        others = tensors[: 1 + 2 * ctx.layers]
        ctx.save_for_backward(*others, *(tensor for norm in norms for tensor in norm), *turned, *kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        saved, layers = ctx.saved_tensors, ctx.layers
        vectors, _, _, norms = _decoder_tensors(layers, saved[: ctx.inputs])
        turned, kept = saved[ctx.inputs : ctx.inputs + layers], iter(saved[ctx.inputs + layers :])
        found: dict[str, list[Any]] = {}
        grad = grad.flip(2, 3)
        for turn in _turns(vectors):
            inner = [[next(kept) for _ in range(4)] for _ in norms]
            x, above = next(kept), grad[turn]
            found.setdefault(f"bias {layers - 1}", []).append(above.sum((1, 2, 3)))
            for i in range(layers - 1, -1, -1):
                wanted = i > 0 or ctx.needs_input_grad[4]
                above, of_kernel = _double_gradient(above, x, turned[i][turn], wanted)
                found.setdefault(f"kernel {i}", []).append(of_kernel)
                if i == 0:
                    break
                _rectify(above, x)
                x, *batch = inner[i - 1]
                gain, _, *running = norms[i - 1]
                running = running if ctx.training else [tensor[turn] for tensor in running]
                above, *of_norm = _normalise_gradient(above, *batch, gain[turn], *running, ctx.eps)
                of_bias = torch.zeros_like(of_norm[1]) if ctx.training else above.sum((1, 2, 3))
                for name, part in zip(("gain", "shift", "bias"), (*of_norm, of_bias), strict=True):
                    found.setdefault(f"{name} {i - 1}", []).append(part)
            if above is not None:
                found.setdefault("vectors", []).append(above[:, :, 0, 0])
        grads = [_joined(found["vectors"]) if ctx.needs_input_grad[4] else None]
        for i in range(layers):
            grads += [_joined(found[f"kernel {i}"]).flip(3, 4), _joined(found[f"bias {i}"])]
        for i in range(layers - 1):
            grads += [_joined(found[f"gain {i}"]), _joined(found[f"shift {i}"]), None, None]
        return None, None, None, None, *grads

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        out, _ = _Decoder.apply(*_stacked(in_dims, info.batch_size, args))
        return (_unstacked(out, info.batch_size), None), (0, None)


def _turns(x: Tensor) -> list[slice]:
    """The networks that are computed together."""
    return [slice(i, i + 1) for i in range(len(x))] if _in_turns(x) else [slice(None)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def _decoder_tensors(layers: int, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor], list[Any]]:
    vectors, *rest = tensors
    pairs, norms = rest[: 2 * layers], rest[2 * layers :]
    return vectors, pairs[::2], pairs[1::2], [norms[i : i + 4] for i in range(0, len(norms), 4)]


def _image(maps: Tensor) -> Tensor:
    """[1, N, H, W, C] -> [N, C, H, W] with channels last in memory."""
    return maps[0].movedim(-1, 1)


def _double(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Transposed convolution, stride 2: x [s, N, H, W, C], weight [s, C, O, k, k], bias [s, O] -> [s, N, 2H, 2W, O].

    One network calls torch's, which is at its best with channels last. A stack has one batched product that gives the
    k x k contributions of every pixel, and adds them up by shifts.
    """
    k = weight.shape[-1]
    if len(x) == 1:
        out = F.conv_transpose2d(_image(x), weight[0], bias[0], 2, (k - 1) // 2, k % 2)
        return out.contiguous(memory_format=torch.channels_last).movedim(1, -1)[None]
    s, n, h, w, c = x.shape
    o, more, drop = weight.shape[2], (k + 1) // 2 - 1, (k - 1) // 2
    taps = torch.bmm(x.reshape(s, n * h * w, c), weight.permute(0, 1, 3, 4, 2).flatten(2))
    taps = taps.view(s, n, h, w, k, k, o)
    full = x.new_zeros(s, n, h + more, 2, w + more, 2, o)
    full += bias.view(s, 1, 1, 1, 1, 1, o)
    for p in range(more + 1):
        for q in range(more + 1):
            part = taps[:, :, :, :, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2].transpose(3, 4)
            full[:, :, p : p + h, : part.shape[3], q : q + w, : part.shape[5]] += part
    full = full.view(s, n, 2 * (h + more), 2 * (w + more), o)
    return full[:, :, drop : drop + 2 * h, drop : drop + 2 * w].contiguous()


def _double_gradient(above: Tensor, x: Tensor, weight: Tensor, wanted: bool) -> tuple[Any, Tensor]:
    """The gradients of x (if wanted) and weight from that of the result."""
    k = weight.shape[-1]
    drop, out_pad = (k - 1) // 2, k % 2
    if len(x) == 1:
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            _image(above), _image(x), weight[0], None, [2, 2], [drop, drop], [1, 1], True, [out_pad, out_pad], 1,
            [wanted, True, False],
        )  # fmt: skip
        return of_x.movedim(1, -1)[None] if wanted else None, of_weight[None]
    s, n, h, w, c = x.shape
    o, after = weight.shape[2], k - 2 - drop
    padded = F.pad(above.flatten(0, 1), (0, 0, drop, after, drop, after))
    taps = padded.unfold(1, k, 2).unfold(2, k, 2).movedim(3, 5).reshape(s, n * h * w, k * k * o)
    of_weight = torch.bmm(x.reshape(s, n * h * w, c).mT, taps).view(s, c, k, k, o).permute(0, 1, 4, 2, 3)
    if not wanted:
        return None, of_weight
    return torch.bmm(taps, weight.permute(0, 1, 3, 4, 2).flatten(2).mT).view(x.shape), of_weight


def _normalise(
    x: Tensor, gain: Tensor, shift: Tensor, running_mean: Tensor, running_var: Tensor, training: bool, momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """BatchNorm of x [s, N, H, W, C], the rest [s, C]; also mean and 1 / std of the batch (training), [s, C]."""
    if len(x) == 1:
        out, mean, scale = torch.native_batch_norm(
            _image(x), gain[0], shift[0], running_mean[0], running_var[0], training, momentum, eps
        )
        return out.movedim(1, -1)[None], mean[None], scale[None]
    flat = x.flatten(1, 3).to(gain.dtype)
    mean, var = running_mean, running_var
    if training:
        count = flat.shape[1]
        var, mean = torch.var_mean(flat, dim=1, correction=0)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)), momentum)
    scale = torch.rsqrt(var + eps)
    out = torch.addcmul(shift[:, None], flat - mean[:, None], (gain * scale)[:, None])
    return out.view(x.shape).to(x.dtype), mean, scale


def _normalise_gradient(
    above: Tensor, x: Tensor, mean: Tensor, scale: Tensor, gain: Tensor, running_mean: Tensor | None,
    running_var: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, gain and shift; mean and scale as `_normalise` gave them, no running statistics: training."""
    training = running_var is None
    if len(x) == 1:
        running = (None, None) if training else (running_mean[0], running_var[0])
        of_x, of_gain, of_shift = torch.ops.aten.native_batch_norm_backward(
            _image(above), _image(x), gain[0], *running, mean[0], scale[0], training, eps, [True, True, True]
        )
        return of_x.movedim(1, -1)[None], of_gain[None], of_shift[None]
    flat, above = x.flatten(1, 3).to(gain.dtype), above.flatten(1, 3).to(gain.dtype)
    normal = (flat - mean[:, None]) * scale[:, None]
    of_shift, of_gain = above.sum(1), (above * normal).sum(1)
    if training:
        above = above - (of_shift[:, None] + normal * of_gain[:, None]) / flat.shape[1]
    return (above * (gain * scale)[:, None]).view(x.shape).to(x.dtype), of_gain, of_shift


def decoder(
    vectors: Tensor, layers: Sequence[tuple[Tensor, Tensor]], norms: Sequence[Sequence[Tensor]], training: bool,
    momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """Transposed convolutions of TensorFlow's 'same' kind with stride 2, BatchNorm and ReLU after all but the last.

    Args:
        vectors: [B, C], seen as 1x1 maps.
        layers: weight [C, O, k, k] and bias [O] of each convolution; the last has O = 1.
        norms: gain, shift, running mean and running variance [O] of each BatchNorm; under vmap the running statistics
            must be stacked too, for in training mode they move in place.
        training, momentum, eps: BatchNorm's.

    Returns:
        [B, H, W] with H = W = 2^layers.
    """
    first, *tensors = _alone(vectors, *(tensor for pair in layers for tensor in pair))
    statistics = [tensor[None] for norm in norms for tensor in norm]
    out, _ = _Decoder.apply(training, momentum, eps, len(layers), first, *tensors, *statistics)
    return out[0].squeeze(-1)
