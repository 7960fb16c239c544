"""Factorised self-attention (Child et al., 2019, Sec. 4): which keys a query sees, and attention over exactly those.

Positions count from 0 and every set is causal: a query i only sees keys j <= i. Two sets of about sqrt(n) keys each,
A1 and A2, replace the n keys of dense attention so that two of them in a row still connect every j <= i:

    strided   A1 = {i-l, ..., i}                  A2 = {j : (i - j) mod l = 0}
    fixed     A1 = {j : j div l = i div l}        A2 = {j : j mod l >= l - c}

`masked_attention` is the plain way to attend, an n x n mask in a softmax: obviously right, with no saving at all. It is
the oracle of `papers.sparse_transformer.blocks`, which computes the same from the keys that are seen alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, sqrt

import torch
from torch import Tensor

KINDS = ("dense", "window", "columns", "strided", "block", "summaries", "fixed", "cubic")
FACTORS = {"strided": ("window", "columns"), "fixed": ("block", "summaries")}
"""The sets A1 and A2 whose union a merged pattern is (Sec. 4.2)."""


@dataclass(frozen=True)
class Pattern:
    """The keys that each query of one attention head sees (Sec. 4.1-4.3; spec, 3.1).

    kind: "dense"; "window" (A1) and "columns" (A2) of strided attention, and "strided", their union; "block" (A1) and
        "summaries" (A2) of fixed attention, and "fixed", their union; "cubic", strided attention in p = 3 factors:
        the last l positions, every l-th of the last l^2, and every l^2-th.
    stride: l.
    summary: c, the cells at the end of each block that later blocks see; for "summaries" and "fixed".
    inclusive: whether a window ends with offset l, as in the paper, or with l - 1, as in the released code. The unions
        hold offset l either way.
    rotate: head h sees a sub-block of c cells of its own, counted from the end of the block (Sec. 4.3).
    Raises ValueError for values that make no sense.
    """

    kind: str
    stride: int = 128
    summary: int = 0
    inclusive: bool = True
    rotate: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no attention pattern '{self.kind}'; there is {', '.join(KINDS)}")
        if self.stride < 1:
            raise ValueError(f"the stride must be at least 1, not {self.stride}")
        if self.has_summaries and not 1 <= self.summary <= self.stride:
            raise ValueError(f"summary must lie in 1..{self.stride} (the stride), not {self.summary}")

    @property
    def has_summaries(self) -> bool:
        """Whether the pattern reads the summary cells of earlier blocks."""
        return self.kind in ("summaries", "fixed")

    def summary_cells(self, head: int) -> tuple[int, int]:
        """First and last cell of a block, plus one, that are its summary for this head: j mod l in [first, last)."""
        turn = head % (self.stride // self.summary) if self.rotate else 0
        return self.stride - self.summary * (turn + 1), self.stride - self.summary * turn

    def mask(self, n: int, heads: int = 1, device: torch.device | str | None = None) -> Tensor:
        """Which keys (columns) each query (row) sees: bool [heads, n, n]."""
        i = torch.arange(n, device=device)[:, None]
        j = torch.arange(n, device=device)
        return torch.stack([self.allowed(i, j, head) for head in range(heads)])

    def allowed(self, i: Tensor, j: Tensor, head: int = 0) -> Tensor:
        """Whether query i sees key j, elementwise with broadcasting: the definition of every pattern."""
        stride, offset = self.stride, i - j
        causal = offset >= 0
        if self.kind == "dense":
            return causal
        if self.kind == "window":
            return causal & (offset <= stride if self.inclusive else offset < stride)
        if self.kind == "columns":
            return causal & (offset % stride == 0)
        if self.kind == "strided":
            return causal & ((offset <= stride) | (offset % stride == 0))
        if self.kind == "cubic":
            square = stride * stride
            near = (offset <= stride) | ((offset % stride == 0) & (offset <= square))
            return causal & (near | (offset % square == 0))
        same_block = (i // stride) == (j // stride)
        if self.kind == "block":
            return causal & same_block
        first, last = self.summary_cells(head)
        in_summary = (j % stride >= first) & (j % stride < last)
        return causal & (in_summary | same_block if self.kind == "fixed" else in_summary)

    def pairs(self, n: int) -> int:
        """How many (query, key) pairs head 0 computes on n positions (spec, 11.2): the cost, in dot products."""
        whole, rest = divmod(n, self.stride)
        in_blocks = whole * _triangle(self.stride) + _triangle(rest)
        if self.kind == "dense":
            return _triangle(n)
        if self.kind in ("window", "strided", "cubic"):
            reach = self.stride if self.kind != "window" or self.inclusive else self.stride - 1
            window = _triangle(n) - _triangle(max(0, n - reach - 1))
            if self.kind == "window":
                return window
            if self.kind == "cubic":
                # Offsets k l for k = 2..l, then k l^2 for k >= 2. A stride of 1 leaves nothing out.
                if self.stride == 1:
                    return _triangle(n)
                square = self.stride**2
                middle = sum(max(0, n - k * self.stride) for k in range(2, self.stride + 1))
                return window + middle + sum(max(0, n - k * square) for k in range(2, n // square + 1))
            return window + sum(max(0, n - k * self.stride) for k in range(2, whole + 1))
        if self.kind == "columns":
            return self.stride * _triangle(whole) + rest * (whole + 1)
        if self.kind == "block":
            return in_blocks
        earlier = self.summary * (self.stride * (_triangle(whole) - whole) + rest * whole)
        if self.kind == "fixed":
            return in_blocks + earlier
        own = whole * _triangle(self.summary) + _triangle(max(0, rest - (self.stride - self.summary)))
        return earlier + own


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


Patterns = Pattern | Sequence[Pattern]
"""One for all heads, or one for each of as many equal groups of heads, in order."""


def head_patterns(patterns: Patterns, heads: int) -> tuple[tuple[Pattern, int, int], ...]:
    """The pattern, first head and last head plus one of each group. ValueError when the heads do not divide."""
    groups = (patterns,) if isinstance(patterns, Pattern) else tuple(patterns)
    if not groups or heads % len(groups):
        raise ValueError(f"{heads} heads do not divide into {len(groups)} equal groups")
    size = heads // len(groups)
    return tuple((pattern, g * size, (g + 1) * size) for g, pattern in enumerate(groups))


def layer_patterns(
    pattern: str,
    combine: str = "merged",
    layer: int = 0,
    *,
    stride: int = 128,
    summary: int = 0,
    rotate: bool = False,
    inclusive: bool = True,
    cycle: Sequence[str] = (),
) -> tuple[Pattern, ...]:
    """What the heads of one layer see (Sec. 4.2's three ways of using several sets): one or one a group of heads.

    pattern: "dense", "local" (A1 of strided alone), "strided", "fixed" or "cubic". combine, for strided and fixed:
    "merged", every head sees the union in one softmax; "heads", one half of the heads A1 and the other A2;
    "interleaved", layer r uses one set, A1 and A2 in turns or the kinds in `cycle`. ValueError for anything else.
    """

    def one(kind: str) -> Pattern:
        return Pattern(kind, stride, summary if kind in ("summaries", "fixed") else 0, inclusive, rotate)

    if combine not in ("merged", "heads", "interleaved"):
        raise ValueError(f"no way '{combine}' to combine; there is merged, heads, interleaved")
    if cycle and combine != "interleaved":
        raise ValueError("cycle is a setting of interleaved attention alone")
    if pattern in ("dense", "local", "cubic"):
        if combine != "merged":
            raise ValueError(f"{pattern} attention has no two sets to combine as '{combine}'")
        return (one("window" if pattern == "local" else pattern),)
    if pattern not in FACTORS:
        raise ValueError(f"no attention '{pattern}'; there is dense, local, strided, fixed, cubic")
    if combine == "merged":
        return (one(pattern),)
    if combine == "heads":
        return tuple(one(kind) for kind in FACTORS[pattern])
    kinds = tuple(cycle) or FACTORS[pattern]
    return (one(kinds[layer % len(kinds)]),)


# ---------------------------------------------------------------- attention over a set, plainly


@lru_cache(maxsize=8)
def _cached_mask(pattern: Pattern, n: int, heads: int, device: torch.device) -> Tensor:
    return pattern.mask(n, heads, device)


def full_mask(patterns: Patterns, n: int, heads: int, device: torch.device) -> Tensor:
    """The mask of all heads: bool [H, n, n]."""
    groups = head_patterns(patterns, heads)
    return torch.cat([_cached_mask(pattern, n, last, device)[first:last] for pattern, first, last in groups])


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    patterns: Patterns,
    scale: float | None = None,
    dropout: float = 0.0,
    key: int = 0,
) -> Tensor:
    """a(x_i, S_i) = softmax(q_i K_S^T scale) V_S for every i (Eq. 2-3), with the n x n scores that this saves.

    q, k: [B, H, n, D]; v: [B, H, n, Dv]. Returns [B, H, n, Dv]. scale: 1 / sqrt(D) by default. A query without a key
    (in "summaries") gives 0. dropout: the probability with which an attention weight is dropped, as
    `keep_mask(key, ...)` says; the paper uses none. Computes in float32 at least.
    """
    batch, heads, n, size = q.shape
    mask = full_mask(patterns, n, heads, q.device)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * (1 / sqrt(size) if scale is None else scale)
    scores = scores.masked_fill(~mask, -inf)
    peak = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(wide).min)
    weights = (scores - peak.detach()).exp()
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(wide).tiny)
    if dropout > 0:
        head = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1)
        position = torch.arange(n, device=q.device)
        weights = weights * keep_mask(key, dropout, head, position[:, None], position) / (1 - dropout)
    return (weights @ v.to(wide)).to(v.dtype)


def keep_mask(key: int, dropout: float, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Which attention weights dropout keeps: a function of the key and of (batch and head, query, key) alone.

    int64 tensors that broadcast with one another; bool. Hence any decomposition drops the same weights as the plain
    path, and a backward pass needs no stored mask. The integers are mixed by two rounds of multiply and xor-shift.
    """
    x = (head * 0x1F123BB5 + i) * 0x2545F491 + j * 0x9E3779B1 + (key & 0x7FFFFFFFFFFF)
    for multiplier in (0x6C8E9CF570932BD5, 0x2127599BF4325C37):
        x = (x ^ ((x >> 32) & 0xFFFFFFFF)) * multiplier
    return ((x >> 40) & 0xFFFFFF) >= int(dropout * 2**24)
