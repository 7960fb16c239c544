"""Factorised attention in Hugging Face models, through the attention interface of `transformers`.

    register(Pattern("strided", stride=32))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sparse")

Any causal decoder that asks the interface for its attention (GPT-2, Llama and most since) trains with it, and generates
with or without a cache of keys and values. Nothing of the model changes, so weights go back and forth.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from papers.sparse_transformer.attention import check_right_padding, dropout_key, sparse_attention
from papers.sparse_transformer.method import Patterns, head_patterns

LayerPatterns = Patterns | Callable[[int], Patterns]
"""The pattern of all layers, or a function from the number of a layer to its pattern (interleaved attention)."""


def register(pattern: LayerPatterns, name: str = "sparse") -> None:
    """Make `attn_implementation=name` mean attention over `pattern`; another call with the name replaces it.

    Whole sequences take the fast path. New tokens after cached ones attend exactly over the keys that the pattern lets
    them see, at the cost of dense attention. `attention_mask` may pad on the right; padding on the left, sliding
    windows, packed sequences and cross-attention raise ValueError.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> tuple[Tensor, None]:
        layer = getattr(module, "layer_idx", None)
        patterns = pattern(layer or 0) if callable(pattern) else pattern
        _check_options(module, attention_mask, options)
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            # Grouped-query heads: each key head serves `shared` query heads in a row.
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        if attention_mask is None and query.shape[2] == key.shape[2]:
            output = sparse_attention(query, key, value, patterns, scaling, dropout, dropout_key(dropout))
        else:
            output = _some_rows(query, key, value, attention_mask, patterns, scaling, dropout)
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, _positions)


def _positions(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **others: Any,
) -> Tensor | None:
    """What layers get as their mask: None for whole sequences, else the positions of the queries, int64 [1, 1, q, 1].

    attention_mask: bool [B, kv_length], False at padding.
    """
    from transformers.masking_utils import causal_mask_function

    if mask_function is not causal_mask_function or kv_offset != 0:
        raise ValueError(
            "sparse attention is causal over one whole sequence: no bidirectional, sliding-window or packed masks; "
            "choose another attn_implementation"
        )
    whole = q_length == kv_length
    if attention_mask is not None:
        if not whole and not bool(attention_mask[:, : int(q_offset) + q_length].all()):
            raise ValueError(
                "sparse attention with a cache takes no padding, since tokens would sit at wrong positions: generate "
                "from prompts of one length at a time"
            )
        check_right_padding(attention_mask)
    return None if whole else (torch.arange(q_length, device=device) + q_offset).view(1, 1, -1, 1)


def _some_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor | None,
    patterns: Patterns,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Queries at `positions` (int64 [1, 1, q, 1]; None: the last ones) over all keys that are there: [B, H, q, D].

    Keys of a cache with free slots lie after the queries and so are never seen.
    """
    i = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=key.device)
    i = i[:, None] if positions is None else positions[0, 0]
    j = torch.arange(key.shape[2], device=key.device)
    rows = []
    for pattern, first, last in head_patterns(patterns, query.shape[1]):
        turning = pattern.rotate and pattern.has_summaries
        for head in range(first, last if turning else first + 1):
            rows.append(pattern.allowed(i, j, head).expand(1 if turning else last - first, -1, -1))
    return nn.functional.scaled_dot_product_attention(
        query, key, value, torch.cat(rows)[None], dropout_p=dropout, scale=scaling
    )


def _check_options(module: nn.Module, mask: Tensor | None, options: dict[str, Any]) -> None:
    if not getattr(module, "is_causal", True) or options.get("is_causal") is False:
        raise ValueError("sparse attention is causal: this model attends in both directions or to another sequence")
    asked = [name for name in ("softcap", "s_aux", "position_bias", "sliding_window") if options.get(name) is not None]
    if asked:
        raise ValueError(f"sparse attention has no {', '.join(asked)}, which this model needs")
    if mask is not None and mask.dtype != torch.int64:
        raise ValueError(
            "sparse attention takes no ready-made mask: give attention_mask as [B, n], padded on the right"
        )
