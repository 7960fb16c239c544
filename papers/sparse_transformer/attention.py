"""Factorised self-attention as a layer: `SparseSelfAttention` where a model has `nn.MultiheadAttention`.

Shapes and conventions are those of `scaled_dot_product_attention`: q, k and v are [B, H, n, D] (batch, heads,
positions, size of a head), the scale is 1 / sqrt(D), and True in a mask of keys means "attended". The functional form
is `sparse_attention(q, k, v, pattern)`, here from `papers.sparse_transformer.blocks`. A layer is always causal.
"""

from math import inf

import torch
from torch import Tensor, nn

from papers.sparse_transformer.blocks import sparse_attention
from papers.sparse_transformer.method import Pattern, Patterns, head_patterns, layer_patterns, masked_attention

__all__ = ["Pattern", "SparseSelfAttention", "attention_weights", "layer_patterns", "sparse_attention"]


class SparseSelfAttention(nn.Module):
    """Causal multi-head self-attention over a sparse set of keys (Sec. 4), a drop-in for `nn.MultiheadAttention`.

    Parameters have the names and shapes of `nn.MultiheadAttention` (in_proj_weight, in_proj_bias, out_proj), so that
    its state_dict loads; `from_dense` makes this layer of that one. As `self_attn` of an `nn.TransformerEncoderLayer`
    it needs no mask; the layer's fused inference path, which knows dense attention alone, is kept out.

    Args:
        embed_dim, num_heads, dropout, bias, batch_first, device, dtype: as nn.MultiheadAttention's, except that
            batch_first is True by default. dropout acts on attention weights, while training.
        pattern: "dense", "local", "strided", "fixed" or "cubic", made with the settings that follow; or a `Pattern`,
            or a sequence of them, one for each of as many equal groups of heads, for which nothing else is read.
        stride: l, about the square root of the context. summary: c, for "fixed".
        combine: "merged" (each head sees the union of the two sets) or "heads" (half of the heads each set).
        rotate: heads of "fixed" see sub-blocks of their own. inclusive: windows of l + 1 keys, as in the paper.
    Raises ValueError for values that make no sense.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        batch_first: bool = True,
        pattern: Patterns | str = "strided",
        stride: int = 128,
        summary: int = 0,
        combine: str = "merged",
        rotate: bool = False,
        inclusive: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout lies in [0, 1), not {dropout}")
        if isinstance(pattern, str):
            if combine not in ("merged", "heads"):
                raise ValueError(f"one layer combines its sets as 'merged' or 'heads', not '{combine}'")
            pattern = layer_patterns(
                pattern, combine, stride=stride, summary=summary, rotate=rotate, inclusive=inclusive
            )
        self.patterns: tuple[Pattern, ...] = tuple(group for group, _, _ in head_patterns(pattern, num_heads))
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.dropout, self.batch_first = dropout, batch_first
        # nn.TransformerEncoder and its layer ask for this before their fused path, which would attend densely.
        self._qkv_same_embed_dim = False
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, device=device, dtype=dtype))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim, device=device, dtype=dtype)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as nn.MultiheadAttention does: Glorot's uniform numbers for the projections in, biases 0."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj.reset_parameters()
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    @classmethod
    def from_dense(
        cls, attention: nn.MultiheadAttention, pattern: Patterns | str = "strided", **options: int | bool | str
    ) -> "SparseSelfAttention":
        """The layer with the (shared) parameters of `attention`. options: stride, summary, combine, rotate, inclusive.

        ValueError where `attention` has what this layer lacks: keys or values of another size, extra keys.
        """
        if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("a MultiheadAttention with kdim, vdim, add_bias_kv or add_zero_attn cannot be made sparse")
        layer = cls(
            attention.embed_dim, attention.num_heads, attention.dropout, attention.in_proj_bias is not None,
            batch_first=attention.batch_first, pattern=pattern, device="meta", **options,  # type: ignore[arg-type]
        )  # fmt: skip
        layer.in_proj_weight, layer.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        layer.out_proj.weight, layer.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias
        return layer.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend: output as `query` and, where asked for, the weights.

        query: [B, n, embed_dim] with batch_first, else [n, B, embed_dim]; or [n, embed_dim]. Any n.
        key, value: None, or `query` itself.
        key_padding_mask: [B, n] (or [n]), True or -inf at padding. Padding must come last: no real position sees it
            then. The outputs there mean nothing.
        need_weights: return the weights too, [B, n, n], averaged over heads (average_attn_weights), else
            [B, H, n, n]. That is for looking at short sequences: they take the n^2 cells that sparse attention saves.
        attn_mask: None, or the causal mask [n, n], which adds nothing; is_causal says that it is, and saves the check.
        Raises ValueError for another key, value or mask.
        """
        if any(other is not None and other is not query for other in (key, value)):
            raise ValueError("SparseSelfAttention attends to query alone: leave key and value out, or give query again")
        if query.dim() not in (2, 3) or query.shape[-1] != self.embed_dim:
            raise ValueError(f"query must be [B, n, {self.embed_dim}] or [n, {self.embed_dim}], not {[*query.shape]}")
        batched = query.dim() == 3
        x = query if batched else query[None]
        x = x if self.batch_first or not batched else x.transpose(0, 1)
        batch, n, _ = x.shape
        if attn_mask is not None and not is_causal:
            _check_causal(attn_mask, n)
        if key_padding_mask is not None:
            check_right_padding(_padding(key_padding_mask).view(batch, n).logical_not())
        projected = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.view(batch, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        seed = dropout_key(dropout)
        attended = sparse_attention(q, k, v, self.patterns, dropout=dropout, key=seed)
        output = self.out_proj(attended.transpose(1, 2).reshape(batch, n, self.embed_dim))
        output = output if self.batch_first or not batched else output.transpose(0, 1)
        weights = None
        if need_weights:
            weights = attention_weights(q, k, self.patterns, dropout=dropout, key=seed)
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        return output if batched else output[0], weights

    def extra_repr(self) -> str:
        """What print() shows beside the parameters."""
        kinds = ", ".join(
            f"{p.kind} (stride {p.stride}" + (f", summary {p.summary})" if p.summary else ")") for p in self.patterns
        )
        return f"{self.embed_dim}, num_heads={self.num_heads}, {kinds}"


def attention_weights(
    q: Tensor, k: Tensor, patterns: Patterns, scale: float | None = None, dropout: float = 0.0, key: int = 0
) -> Tensor:
    """The weights that `masked_attention` gives each key, [B, H, n, n]; 0 outside the pattern. q, k: [B, H, n, D]."""
    batch, heads, n, _ = q.shape
    # Values that are the unit vectors turn the outputs into the weights themselves.
    unit = torch.eye(n, dtype=q.dtype, device=q.device).expand(batch, heads, n, n)
    return masked_attention(q, k, unit, patterns, scale, dropout, key)


def dropout_key(dropout: float) -> int:
    """A fresh key for `keep_mask` from torch's CPU generator: `manual_seed` and checkpointing govern it; no sync."""
    return int(torch.randint(1 << 46, ())) if dropout > 0 else 0


def check_right_padding(real: Tensor) -> None:
    """ValueError unless in each row of bool [B, n] (True: a token, False: padding) all padding comes last."""
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise ValueError(
            "sparse attention counts positions from the first one, so padding must come last: pad on the right "
            "(padding_side='right')"
        )


def _padding(mask: Tensor) -> Tensor:
    """nn.MultiheadAttention's padding mask, True or -inf at padding, as bool."""
    return mask if mask.dtype == torch.bool else mask == -inf


def _check_causal(mask: Tensor, n: int) -> None:
    hidden = _padding(mask)
    future = torch.ones(n, n, dtype=torch.bool, device=mask.device).triu(1)
    plain = mask.dtype == torch.bool or bool((mask.masked_fill(hidden, 0) == 0).all())
    if mask.shape[-2:] != future.shape or not plain or not bool((hidden == future).all()):
        raise ValueError(
            f"attn_mask must be None or the causal mask [{n}, {n}]: which keys are seen is the pattern's to say"
        )
