"""Exact factorised attention whose cost is that of the pairs it sees, forward and backward, on any device.

    O = sum_p exp(L_p - L) O_p,   L = logsumexp_p L_p

merges the outputs O_p and log-sum-exps L_p of disjoint tiles (`papers.sparse_transformer.tiles`) into one softmax over
all keys. No n x n tensor exists, neither here nor in the backward pass, which recomputes each tile's weights from the
merged L. `papers.sparse_transformer.method.masked_attention` computes the same plainly and is the test's oracle.
"""

from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from papers.sparse_transformer.kernels import Kernel, Settings, kernel_for
from papers.sparse_transformer.method import Pattern, Patterns, head_patterns
from papers.sparse_transformer.tiles import Tile, tiles_of

ALONE = 2048
"""From how many positions on a CPU computes one head after the other."""


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    patterns: Patterns,
    scale: float | None = None,
    dropout: float = 0.0,
    key: int = 0,
    kernel: Kernel | None = None,
) -> Tensor:
    """softmax(q_i K_S^T scale) V_S over the keys S that the pattern gives each query i (Eq. 2-3).

    q, k: [B, H, n, D]; v: [B, H, n, Dv], shapes and conventions as in `scaled_dot_product_attention`. Returns
    [B, H, n, Dv] in the type of v. patterns: one for all heads, or one for each of as many equal groups of heads.
    scale: 1 / sqrt(D) by default. A query without a key gives 0. dropout: of attention weights, a function of key and
    position (`method.keep_mask`). kernel: how tiles are computed; by default the fastest that does it here.
    Gradients are exact; differentiating them again raises RuntimeError. Raises ValueError where shapes do not fit.
    """
    if q.shape != k.shape or q.shape[:-1] != v.shape[:-1] or q.dim() != 4:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise ValueError(f"q, k [B, H, n, D] and v [B, H, n, Dv] are needed, not {shapes}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout lies in [0, 1), not {dropout}")
    batch, heads, n, size = q.shape
    if n == 0:
        return torch.zeros_like(v)
    scale = 1 / sqrt(size) if scale is None else scale
    kernel = kernel_for(q, v, dropout) if kernel is None else kernel
    value_size = v.shape[-1]
    if kernel.one_size and size != value_size:
        # Zeros change no score and no output, only what they cost.
        q, k = (F.pad(x, (0, max(0, value_size - size))) for x in (q, k))
        v = F.pad(v, (0, max(0, size - value_size)))
    parts = _head_groups(patterns, heads)
    number = torch.arange(batch * heads, device=q.device).view(batch, heads) if dropout > 0 else None
    found = []
    for pattern, first, members in parts:
        tiles = tiles_of(pattern, n, first, kernel.banded)
        settings = Settings(scale, dropout, key, None if number is None else number[:, members].flatten())
        if len(parts) == 1:
            return _Attention.apply(q, k, v, tiles, settings, kernel)[..., :value_size]
        found.append(_Attention.apply(q[:, members], k[:, members], v[:, members], tiles, settings, kernel))
    output = torch.cat(found, 1)[..., :value_size]
    order = [head for _, _, members in parts for head in range(heads)[members]]
    if order == list(range(heads)):
        return output
    return output[:, torch.tensor(order, device=q.device).argsort()]


def _head_groups(patterns: Patterns, heads: int) -> list[tuple[Pattern, int, slice]]:
    """Heads that see the same keys: their pattern, the first of them within its group, and which they are."""
    found = []
    for pattern, first, last in head_patterns(patterns, heads):
        turns = pattern.stride // pattern.summary if pattern.rotate and pattern.has_summaries else 1
        for turn in range(min(turns, last - first)):
            # `rotate` counts heads over the whole layer, so that groups of a layer differ too.
            found.append((pattern, first + turn, slice(first + turn, last, turns)))
    return found


class _Attention(torch.autograd.Function):
    """All tiles of one pattern, merged. q, k, v: [B, H, n, D]."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: tuple[Tile, ...], settings: Settings, kernel: Kernel
    ) -> Tensor:
        flat = [_flat(x) for x in (q, k, v)]
        wide = torch.promote_types(v.dtype, torch.float32)
        output = torch.zeros_like(flat[2], dtype=wide)
        lse = output.new_full((*output.shape[:2], 1), -inf)
        for heads in _at_once(flat[0]):
            _forward(*(x[heads] for x in (*flat, output, lse)), tiles, settings.of(heads), kernel)
        ctx.tiles, ctx.settings, ctx.kernel = tiles, settings, kernel
        output = output.to(v.dtype)
        ctx.save_for_backward(q, k, v, output, lse)
        return output.view(v.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        found = _Gradients.apply(gradient, *ctx.saved_tensors, ctx.tiles, ctx.settings, ctx.kernel)
        return *found, None, None, None


class _Gradients(torch.autograd.Function):
    """The gradients of `_Attention`: a function of its own, so that differentiating them is an error and not zero."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        output: Tensor,
        lse: Tensor,
        tiles: tuple[Tile, ...],
        settings: Settings,
        kernel: Kernel,
    ) -> tuple[Tensor, ...]:
        flat = [_flat(x) for x in (q, k, v, gradient.to(v.dtype))]
        wide = torch.promote_types(v.dtype, torch.float32)
        found = [torch.zeros_like(x, dtype=wide) for x in flat[:3]]
        for heads in _at_once(flat[0]):
            parts = (x[heads] for x in (*flat, output, lse, *found))
            _backward(*parts, tiles, settings.of(heads), kernel)
        return tuple(g.view(x.shape).to(x.dtype) for g, x in zip(found, (q, k, v), strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            "sparse attention cannot be differentiated twice: use papers.sparse_transformer.method.masked_attention"
        )


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    tiles: tuple[Tile, ...],
    settings: Settings,
    kernel: Kernel,
) -> None:
    """Fill output [N, n, D] and lse [N, n, 1], of which the first is 0 and the second -inf."""
    for tile in tiles:
        queries, keys = tile.queries, tile.keys
        part, part_lse = kernel.forward(queries.take(q), keys.take(k), keys.take(v), tile, settings)
        if tile.fresh:
            queries.put(output, part)
            queries.put(lse, part_lse)
        else:
            _merge(tile, output, lse, part, part_lse)


def _merge(tile: Tile, output: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Take a tile's output and log-sum-exp into those of its queries, in place."""
    output, lse = tile.queries.view(output), tile.queries.view(lse)
    part, part_lse = part.reshape(output.shape).to(output.dtype), part_lse.reshape(lse.shape)
    if tile.skip:
        output, lse, part, part_lse = (x[..., tile.skip :, :] for x in (output, lse, part, part_lse))
    both = torch.logaddexp(lse, part_lse)
    output.mul_((lse - both).exp_()).addcmul_(part, (part_lse - both).exp_())
    lse.copy_(both)


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gradient: Tensor,
    output: Tensor,
    lse: Tensor,
    into_q: Tensor,
    into_k: Tensor,
    into_v: Tensor,
    tiles: tuple[Tile, ...],
    settings: Settings,
    kernel: Kernel,
) -> None:
    """Fill the gradients into_q, into_k and into_v [N, n, D], which are 0."""
    for tile in tiles:
        queries, keys = tile.queries, tile.keys
        rows_lse = queries.take(lse)[..., 0]
        if tile.skip:
            # exp(s - inf) = 0: a row without a key has no part in any gradient.
            rows_lse = rows_lse.clone()
            rows_lse[..., : tile.skip] = inf
        dq, dk, dv = kernel.backward(
            queries.take(gradient), queries.take(q), keys.take(k), keys.take(v), queries.take(output), rows_lse,
            tile, settings,
        )  # fmt: skip
        if tile.fresh:
            queries.put(into_q, dq)
        else:
            queries.add(into_q, dq)
        keys.add(into_k, dk)
        keys.add(into_v, dv)


def _at_once(x: Tensor) -> list[slice]:
    """Which of the N heads of x [N, n, D] are computed together: all, or on a CPU each alone where that is long enough
    to be worth its calls, since its tiles then find it in the cache."""
    heads, n, _ = x.shape
    together = 1 if x.device.type == "cpu" and n >= ALONE else heads
    return [slice(first, first + together) for first in range(0, heads, together)]


def _flat(x: Tensor) -> Tensor:
    """[B, H, n, D] as a contiguous [B H, n, D], which tiles are views of."""
    return x.reshape(-1, *x.shape[2:]).contiguous()
