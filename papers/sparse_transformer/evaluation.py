"""Bits per token with a minimum context: windows that slide, each token scored once (Table 3; spec 3.7)."""

from collections.abc import Iterator
from math import log

import torch
from torch import Tensor

from papers.sparse_transformer.network import SparseTransformer

Windows = tuple[range, int, int]
"""Where windows of one shape begin; how long they are; which of their tokens is the first to be scored."""


def windows(length: int, context: int, min_context: int) -> Iterator[Windows]:
    """The windows over `length` tokens whose scored parts cover each token once, in order.

    The first scores all of its tokens. The next ones begin context - min_context tokens later each and score the
    tokens that are new to them; the last one is shorter where the tokens end. ValueError unless 0 <= m < n.
    """
    if not 0 <= min_context < context:
        raise ValueError(f"the minimum context must lie in 0..{context - 1}, not {min_context}")
    if length:
        yield range(1), min(context, length), 0
    stride = context - min_context
    whole = max(0, (length - context) // stride)
    if whole:
        yield range(stride, whole * stride + 1, stride), context, min_context
    last = (whole + 1) * stride
    if last + min_context < length:
        yield range(last, last + 1), length - last, min_context


@torch.no_grad()
def token_bits(
    model: SparseTransformer, tokens: Tensor, context: int, min_context: int = 0, batch_size: int = 16
) -> Tensor:
    """The cost of each token in bits, -log2 p, float32 in the shape of tokens, on the model's device.

    tokens: any integers, [L] (a stream) or [N, L] (items, each on its own); L of any size. context: n, what the model
    sees at once; min_context: m, tokens that a token has before it at least, but for the first m (`windows`).
    batch_size: windows at a time. The model is left in the mode that it was in.
    """
    rows = tokens if tokens.dim() == 2 else tokens[None]
    device = model.start.device
    found = torch.empty(rows.shape, dtype=torch.float32, device=device)
    was_training = model.training
    model.eval()
    try:
        for starts, size, first in windows(rows.shape[1], context, min_context):
            begins = torch.arange(starts.start, starts.stop, starts.step)
            offsets = torch.arange(size)
            for chunk in torch.arange(len(rows) * len(begins)).split(batch_size):
                row, at = (chunk // len(begins))[:, None], begins[chunk % len(begins)][:, None] + offsets
                row, at = row.to(rows.device), at.to(rows.device)
                nats = model.nats(rows[row, at].to(device, torch.int64))
                found[row.to(device), at[:, first:].to(device)] = nats[:, first:] / log(2)
    finally:
        model.train(was_training)
    return found.view(tokens.shape)


def bits(model: SparseTransformer, tokens: Tensor, context: int, min_context: int = 0, batch_size: int = 16) -> float:
    """Mean cost of a token in bits: bits per byte, or per dimension of an image. Arguments as of `token_bits`."""
    return token_bits(model, tokens, context, min_context, batch_size).double().mean().item()
