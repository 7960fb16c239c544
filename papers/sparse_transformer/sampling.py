"""Sampling a token at a time with cached keys and values, at O(sqrt(n)) keys a token (spec, 11.4).

The released sampler recomputes the keys and values of the whole prefix at every token. Here each layer keeps, for every
pattern, only what later queries can see, laid out so that the keys of a query are a few slices and never a gather:

    dense, columns, strided, cubic    all keys in a line: a column is every l-th of them
    window                            a ring of the last l + 1 (or l) keys
    block, fixed                      the own block, which the next block overwrites
    summaries, fixed                  the c cells that each earlier block shows, compact; rotated heads have their own

So fixed attention keeps l + c n/l keys a head, and a window l + 1, whatever the length.
"""

from collections.abc import Sequence
from math import inf, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from common.random import Stream
from papers.sparse_transformer.method import Pattern, head_patterns

if TYPE_CHECKING:
    from papers.sparse_transformer.network import SparseTransformer


class Piece(NamedTuple):
    """Keys [B, H, r, D] and values [B, H, r, Dv] that a query reads.

    seen: which of them each head sees, bool [H, 1, r], or None for all.
    """

    keys: Tensor
    values: Tensor
    seen: Tensor | None = None


def visible(pattern: Pattern, t: int) -> list[slice]:
    """The keys of query t, each once, as slices of the line of all positions: dense, columns, strided and cubic."""
    stride = pattern.stride
    if pattern.kind == "dense":
        return [slice(0, t + 1)]
    if pattern.kind == "columns":
        return [slice(t % stride, t + 1, stride)]
    slices = [slice(max(0, t - stride), t + 1)]
    square = stride * stride
    # From offset 2 l on: offset l is in the window.
    reach = t if pattern.kind == "strided" else min(t, square)
    if reach >= 2 * stride:
        slices.append(slice(t - reach // stride * stride, t - stride, stride))
    if pattern.kind == "cubic" and t >= 2 * square:
        slices.append(slice(t % square, t - square, square))
    return slices


class Cache:
    """What the queries to come can see, for one group of heads of one layer.

    heads: their numbers in the layer, on which the summary cells of rotated heads depend; length: the most positions.
    Keys and values are kept in float32 at least, as Sec. 5.5 has it for sampling.
    """

    def __init__(self, pattern: Pattern, heads: range, length: int, keys: Tensor, values: Tensor):
        """keys, values: [B, H, any, D or Dv], like which the buffers are made."""
        self.pattern, self.heads = pattern, heads
        stride, summary = pattern.stride, pattern.summary
        rows = {"window": stride + pattern.inclusive, "block": stride, "fixed": stride, "summaries": 0}
        self.rows = min(length, rows.get(pattern.kind, length))
        cells = -(-length // stride) * summary if pattern.has_summaries else 0

        def buffers(count: int) -> tuple[Tensor, Tensor]:
            made = [
                torch.zeros(*like.shape[:2], count, like.shape[3], device=like.device, dtype=_wide(like))
                for like in (keys, values)
            ]
            return made[0], made[1]

        self.line, self.compact = buffers(self.rows), buffers(cells)
        self.first = torch.tensor([self._cells(head)[0] for head in heads], device=keys.device)[:, None, None]
        self.cell = torch.arange(summary, device=keys.device)

    def _cells(self, head: int) -> tuple[int, int]:
        return self.pattern.summary_cells(head) if self.pattern.has_summaries else (0, 0)

    def store(self, t: int, keys: Tensor, values: Tensor) -> None:
        """Put in position t: keys [B, H, 1, D] and values [B, H, 1, Dv]."""
        pattern = self.pattern
        for buffer, new in zip(self.line, (keys, values), strict=True):
            if self.rows:
                buffer[:, :, t % self.rows] = new[:, :, 0]
        if not pattern.has_summaries:
            return
        block, r = divmod(t, pattern.stride)
        # The heads whose summary holds this cell are those of one turn: every (l div c)-th, from `start` on.
        turn = (pattern.stride - 1 - r) // pattern.summary
        turns = pattern.stride // pattern.summary if pattern.rotate else 1
        if turn < turns:
            start = (turn - self.heads.start) % turns
            row = block * pattern.summary + r - (pattern.stride - pattern.summary * (turn + 1))
            for buffer, new in zip(self.compact, (keys, values), strict=True):
                buffer[:, start::turns, row] = new[:, start::turns, 0]

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Put in positions 0..p-1 at once: keys [B, H, p, D] and values [B, H, p, Dv]."""
        p, stride, summary = keys.shape[2], self.pattern.stride, self.pattern.summary
        if self.rows:
            kept = torch.arange(max(0, p - self.rows), p, device=keys.device)
            for buffer, new in zip(self.line, (keys, values), strict=True):
                buffer[:, :, kept % self.rows] = new[:, :, kept].to(buffer.dtype)
        if self.pattern.has_summaries:
            for h, head in enumerate(self.heads):
                first, last = self._cells(head)
                whole, rest = divmod(p, stride)
                count = whole * summary + min(max(rest - first, 0), last - first)
                cell = torch.arange(count, device=keys.device)
                position = cell // summary * stride + first + cell % summary
                for buffer, new in zip(self.compact, (keys, values), strict=True):
                    buffer[:, h, :count] = new[:, h, position].to(buffer.dtype)

    def pieces(self, t: int) -> list[Piece]:
        """What query t sees, position t included: views, without a copy."""
        kind, stride, summary = self.pattern.kind, self.pattern.stride, self.pattern.summary
        keys, values = self.line
        if kind == "window":
            slices = [slice(0, min(t + 1, self.rows))]
        elif kind in ("block", "fixed"):
            slices = [slice(0, t % stride + 1)]
        elif kind == "summaries":
            slices = []
        else:
            slices = visible(self.pattern, t)
        pieces = [Piece(keys[:, :, part], values[:, :, part]) for part in slices]
        if self.pattern.has_summaries:
            block, r = divmod(t, stride)
            earlier, own = block * summary, (block + 1) * summary
            keys, values = self.compact
            if block:
                pieces.append(Piece(keys[:, :, :earlier], values[:, :, :earlier]))
            if kind == "summaries":
                seen = self.first + self.cell <= r
                pieces.append(Piece(keys[:, :, earlier:own], values[:, :, earlier:own], seen))
        return pieces


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def attend(queries: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """One softmax over all pieces: queries [B, H, 1, D] -> [B, H, 1, Dv]; 0 where nothing is seen (Eq. 2-3)."""
    dtype = _wide(queries)
    scaled = queries.to(dtype) / sqrt(queries.shape[-1])
    scores = [scaled @ piece.keys.transpose(-1, -2) for piece in pieces]
    masked = any(piece.seen is not None for piece in pieces)
    if masked:
        scores = [
            s if piece.seen is None else s.masked_fill(~piece.seen, -inf)
            for s, piece in zip(scores, pieces, strict=True)
        ]
    weights = torch.cat(scores, -1).softmax(-1)
    if masked:
        weights = weights.nan_to_num(0.0)
    parts = weights.split([piece.keys.shape[2] for piece in pieces], -1)
    return torch.stack([w @ piece.values for w, piece in zip(parts, pieces, strict=True)]).sum(0)


class Sampler:
    """Steps through a SparseTransformer a slot at a time; the logits are those of the full forward (invariant 16).

    batch_size: sequences at once. length: the most positions that will be visited, by default the model's context.
    position: the slot that comes next. keys_read: keys that the last step read, of all heads and layers, a sequence.
    """

    def __init__(
        self,
        model: "SparseTransformer",
        batch_size: int = 1,
        device: torch.device | str | None = None,
        length: int | None = None,
    ):
        """Raises ValueError for a length beyond the context, where the model has no positions."""
        context = model.config.context
        self.length = context if length is None else length
        if not 1 <= self.length <= context:
            raise ValueError(f"length must lie in 1..{context} (the context), not {self.length}")
        self.model = model.eval()
        self._blocks: list[Any] = list(model.blocks)
        self.batch_size = batch_size
        self.device = model.start.device if device is None else torch.device(device)
        self.position, self.keys_read = 0, 0
        self._caches: list[list[Cache]] = []

    def _open(self, layer: int, keys: Tensor, values: Tensor) -> list[Cache]:
        if layer == len(self._caches):
            groups = head_patterns(self._blocks[layer].attention.patterns, keys.shape[1])
            self._caches.append(
                [
                    Cache(pattern, range(first, last), self.length, keys[:, first:last], values[:, first:last])
                    for pattern, first, last in groups
                ]
            )
        return self._caches[layer]

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> None:
        """Visit the slots that predict tokens [B, p] in one forward pass, before any step; the next step takes the last
        of them. ValueError when that is too many, or too late."""
        if self.position or tokens.shape[1] > self.length:
            raise ValueError(f"a prompt comes first and has at most {self.length} tokens, not {tokens.shape[1]}")
        x = self.model.embed(tokens.to(self.device))
        for layer, block in enumerate(self._blocks):
            attention = block.attention
            q, k, v = attention.split(block.norm1(x))
            for cache in self._open(layer, k, v):
                part = slice(cache.heads.start, cache.heads.stop)
                cache.fill(k[:, part], v[:, part])
            x = x + attention.merge(attention.attend(q, k, v, attention.patterns))
            x = x + block.feedforward(block.norm2(x))
        self.position = tokens.shape[1]

    @torch.inference_mode()
    def step(self, tokens: Tensor | None = None) -> Tensor:
        """Visit the next slot: logits [B, V] of its token, given the token before it, [B] (None at the first slot).

        Raises ValueError after the last position.
        """
        t, model = self.position, self.model
        if t >= self.length:
            raise ValueError(f"the sampler was made for {self.length} positions")
        if tokens is None:
            tokens = torch.zeros(self.batch_size, dtype=torch.int64, device=self.device)
        x = model.embed_token(tokens, t)[:, None]
        self.keys_read = 0
        for layer, block in enumerate(self._blocks):
            attention = block.attention
            q, k, v = attention.split(block.norm1(x))
            outputs = []
            for cache in self._open(layer, k, v):
                part = slice(cache.heads.start, cache.heads.stop)
                cache.store(t, k[:, part], v[:, part])
                pieces = cache.pieces(t)
                self.keys_read += len(cache.heads) * sum(piece.keys.shape[2] for piece in pieces)
                outputs.append(attend(q[:, part], pieces).to(v.dtype))
            x = x + attention.merge(torch.cat(outputs, 1))
            x = x + block.feedforward(block.norm2(x))
        self.position = t + 1
        return model.head(model.norm(x))[:, 0]


def choose(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Tokens [B] drawn from logits [B, V] by uniforms [B] in [0, 1), by inverting the cumulative distribution.

    temperature divides the logits; 0 takes the likeliest. top_p: only the likeliest tokens count that are needed to
    reach this probability together (nucleus sampling). ValueError for a temperature below 0 or a top_p outside (0, 1].
    """
    if not 0 <= temperature < inf:
        raise ValueError(f"temperature must be a number from 0 up, not {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p lies above 0 and up to 1, not {top_p}")
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = (logits.float() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(-1)
    kept = cumulative - probabilities < top_p
    total = torch.where(kept, cumulative, 0).amax(-1, keepdim=True)
    # Rounding may put the last cumulative value at the uniform itself: the rank stays among the kept.
    rank = (cumulative <= uniform[:, None] * total).sum(-1)
    rank = torch.minimum(rank, kept.sum(-1) - 1)
    return order.gather(-1, rank[:, None])[:, 0]


def generate(
    model: "SparseTransformer",
    count: int,
    prompt: Tensor | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 1,
    first: int = 0,
) -> Tensor:
    """`batch_size` sequences of `count` new tokens, int64 [batch_size, count], after a prompt [p] or [batch_size, p].

    Draw t of sequence number first + b is a function of (seed, position t, number) alone: many sequences may be drawn
    in several calls with their numbers. temperature, top_p: as `choose`. ValueError where prompt and new tokens do not
    fit into the context.
    """
    device = model.start.device
    begin = 0 if prompt is None else prompt.shape[-1]
    if count < 1 or begin + count > model.config.context:
        raise ValueError(
            f"{begin} tokens of prompt and {count} new ones do not fit into the context of {model.config.context}"
        )
    steps = torch.arange(begin, begin + count, device=device)
    uniform = Stream(seed, "sampling", device).uniform(steps, first + batch_size)[:, first:]
    sampler = Sampler(model, batch_size, length=begin + count)
    tokens: Tensor | None = None
    if prompt is not None and begin:
        prompt = prompt.to(device).expand(batch_size, begin)
        sampler.prefill(prompt)
        tokens = prompt[:, -1]
    drawn = []
    for t in range(count):
        tokens = choose(sampler.step(tokens), uniform[t], temperature, top_p)
        drawn.append(tokens)
    return torch.stack(drawn, 1)
