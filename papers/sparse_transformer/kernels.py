"""Dense attention of one tile, forward and backward, with its log-sum-exp: three ways to compute the same.

    flash on a CPU    PyTorch's fused kernel; takes masks; float32, float64, bfloat16 and float16
    flash on a GPU    PyTorch's FlashAttention; float16 and bfloat16; takes no mask, but knows windows
    matmul            anywhere, any type, with dropout: two products and a softmax, some problems at a time

The backward pass of a tile is the usual one of flash attention, given the output and log-sum-exp of the WHOLE
attention in place of the tile's own: P_ij = exp(s_ij - L_i) is then the weight in the merged softmax and
D_i = <dO_i, O_i> its correction (spec, 11.1).
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from papers.sparse_transformer.method import keep_mask
from papers.sparse_transformer.tiles import Tile

CHUNK = 1 << 22
"""Scores that the matmul way holds at once (of one problem if that has more)."""


class Settings(NamedTuple):
    """What holds for all tiles of a call. heads: int64 [N], the number of each of the N = B H in dropout's mask."""

    scale: float
    dropout: float = 0.0
    key: int = 0
    heads: Tensor | None = None

    def of(self, part: slice) -> "Settings":
        """The settings of some of the N."""
        return self if self.heads is None else self._replace(heads=self.heads[part])


class Kernel(NamedTuple):
    """forward(q, k, v, tile, settings) -> (o, L); backward(do, q, k, v, o, L, tile, settings) -> (dq, dk, dv).

    q, do, o: [N, problems, rows, D]; k, v: [N, problems, key rows, D]; L: [N, problems, rows], float32 at least.
    banded: as in `tiles_of`. one_size: whether v must have the head size of q and k.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    banded: bool
    one_size: bool


@lru_cache(maxsize=64)
def _bias(tile: Tile, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """A tile's mask as numbers to add to the scores: [rows, key rows], 0 or -inf; None where nothing is masked."""
    allowed = tile.allowed(device)
    if allowed is None:
        return None
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, -inf)


# ---------------------------------------------------------------- flash attention on a CPU


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, tile: Tile, settings: Settings) -> tuple[Tensor, Tensor]:
    bias = None if tile.causal else _bias(tile, q.dtype, q.device)
    q, k, v = (_as_batch(x) for x in (q, k, v))
    o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, tile.causal, attn_mask=bias, scale=settings.scale
    )
    return (o.transpose(0, 1), lse.transpose(0, 1)) if o.shape[1] == 1 else (o, lse)


def _cpu_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, tile: Tile, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    bias = None if tile.causal else _bias(tile, q.dtype, q.device)
    do, q, k, v, o, lse = (_as_batch(x) for x in (do, q, k, v, o, lse))
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        do, q, k, v, o, lse, 0.0, tile.causal, attn_mask=bias, scale=settings.scale
    )
    return (dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)) if dq.shape[1] == 1 else (dq, dk, dv)


def _as_batch(x: Tensor) -> Tensor:
    """[1, problems, ...] as [problems, 1, ...]: the kernel lays its gradients out as [batch, rows, heads, D], so
    problems that are batches have theirs in one piece."""
    return x.transpose(0, 1) if x.shape[0] == 1 else x


# ---------------------------------------------------------------- flash attention on a GPU


def _rows_first(x: Tensor) -> Tensor:
    """[N, problems, rows, D] as the [batch, rows, heads, D] of FlashAttention, with one head."""
    return x.flatten(0, 1).unsqueeze(2)


def _cuda_forward(q: Tensor, k: Tensor, v: Tensor, tile: Tile, settings: Settings) -> tuple[Tensor, Tensor]:
    shape = q.shape
    o, lse, *_ = torch.ops.aten._flash_attention_forward(
        *(_rows_first(x) for x in (q, k, v)), None, None, q.shape[2], k.shape[2], 0.0, tile.causal, False,
        scale=settings.scale, **_window(tile),
    )  # fmt: skip
    return o.squeeze(2).view(shape), lse[:, 0, : shape[2]].unflatten(0, shape[:2])


def _cuda_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, tile: Tile, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    none = torch.empty(0, dtype=torch.int64, device=q.device)  # lengths and random state, neither of which is used
    found = torch.ops.aten._flash_attention_backward(
        *(_rows_first(x) for x in (do, q, k, v, o)), lse.flatten(0, 1).unsqueeze(1).contiguous(), None, None,
        q.shape[2], k.shape[2], 0.0, tile.causal, none, none, scale=settings.scale, **_window(tile),
    )  # fmt: skip
    dq, dk, dv = (x.squeeze(2).unflatten(0, q.shape[:2]) for x in found)
    return dq, dk, dv


def _window(tile: Tile) -> dict[str, int]:
    return {} if tile.window is None else {"window_size_left": tile.window, "window_size_right": 0}


# ---------------------------------------------------------------- matmul and softmax


def _problems(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Ranges of the first two axes that together hold about CHUNK scores each."""
    at_once = max(1, CHUNK // (q.shape[2] * k.shape[2]))
    for n in range(q.shape[0]):
        for first in range(0, q.shape[1], at_once):
            yield slice(n, n + 1), slice(first, first + at_once)


def _keep(tile: Tile, settings: Settings, part: tuple[slice, slice], dtype: torch.dtype) -> Tensor:
    """What dropout leaves of a part's weights, times 1 / (1 - dropout): [n, problems, rows, key rows]."""
    assert settings.heads is not None
    device = settings.heads.device
    i, j = tile.queries.positions(device)[part[1]], tile.keys.positions(device)[part[1]]
    head = settings.heads[part[0]].view(-1, 1, 1, 1)
    keep = keep_mask(settings.key, settings.dropout, head, i[..., :, None], j[..., None, :])
    return keep.to(dtype).div_(1 - settings.dropout)


def _scores(q: Tensor, k: Tensor, tile: Tile, settings: Settings) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)).mul_(settings.scale)
    bias = _bias(tile, wide, q.device)
    return scores if bias is None else scores.add_(bias)


def _matmul_forward(q: Tensor, k: Tensor, v: Tensor, tile: Tile, settings: Settings) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    o = q.new_empty((*q.shape[:3], v.shape[3]), dtype=wide)
    lse = q.new_empty(q.shape[:3], dtype=wide)
    for part in _problems(q, k):
        scores = _scores(q[part], k[part], tile, settings)
        lse[part] = scores.logsumexp(-1)
        weights = scores.sub_(lse[part][..., None]).exp_()
        if settings.dropout > 0:
            weights.mul_(_keep(tile, settings, part, wide))
        o[part] = weights @ v[part].to(wide)
    return o, lse


def _matmul_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, tile: Tile, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = (torch.empty(x.shape, dtype=wide, device=x.device) for x in (q, k, v))
    for part in _problems(q, k):
        gradient, keys, values = do[part].to(wide), k[part].to(wide), v[part].to(wide)
        weights = _scores(q[part], k[part], tile, settings).sub_(lse[part][..., None]).exp_()
        into_weights = gradient @ values.transpose(-1, -2)
        if settings.dropout > 0:
            keep = _keep(tile, settings, part, wide)
            dv[part] = (weights * keep).transpose(-1, -2) @ gradient
            into_weights.mul_(keep)
        else:
            dv[part] = weights.transpose(-1, -2) @ gradient
        correction = (gradient * o[part].to(wide)).sum(-1, keepdim=True)
        into_scores = weights.mul_(into_weights.sub_(correction)).mul_(settings.scale)
        dq[part] = into_scores @ keys
        dk[part] = into_scores.transpose(-1, -2) @ q[part].to(wide)
    return dq, dk, dv


CPU_FLASH = Kernel(_cpu_forward, _cpu_backward, banded=False, one_size=True)
CUDA_FLASH = Kernel(_cuda_forward, _cuda_backward, banded=True, one_size=True)
MATMUL = Kernel(_matmul_forward, _matmul_backward, banded=False, one_size=False)


def kernel_for(q: Tensor, v: Tensor, dropout: float) -> Kernel:
    """The fastest kernel for this device, type, head size and dropout."""
    if dropout > 0:
        return MATMUL
    if q.device.type == "cpu":
        return CPU_FLASH
    size = max(q.shape[-1], v.shape[-1])
    fits = q.dtype in (torch.float16, torch.bfloat16) and size <= 256 and size % 8 == 0
    # FlashAttention needs Ampere or newer.
    fits = fits and q.device.type == "cuda" and torch.cuda.get_device_capability(q.device) >= (8, 0)
    return CUDA_FLASH if fits else MATMUL
