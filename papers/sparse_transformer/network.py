"""The network: embeddings, pre-activation residual blocks, initialisation and recomputation (Sec. 5; spec 3.2-3.5)."""

from collections.abc import Sequence
from math import ceil, prod, sqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from common.files import read_json
from papers.sparse_transformer.blocks import sparse_attention
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.method import Pattern, layer_patterns, masked_attention

WEIGHTS, SETTINGS = "weights.safetensors", "settings.json"
LOGITS_AT_ONCE = 1 << 26
"""Logits (numbers, not bytes) that a loss holds at the same time; more are made, and made again, piece by piece."""


def gelu(x: Tensor) -> Tensor:
    """f(x) = x sigmoid(1.702 x), the paper's activation (Sec. 5.2; spec 3.3)."""
    # silu does both directions in one pass over memory each.
    return F.silu(1.702 * x) / 1.702


def patterns_of(config: Config, layer: int) -> tuple[Pattern, ...]:
    """What the heads of layer 0, 1, ... see."""
    return layer_patterns(
        config.pattern,
        config.combine,
        layer,
        stride=config.stride,
        summary=config.summary,
        rotate=config.rotate,
        inclusive=config.inclusive,
        cycle=config.cycle,
    )


class Attention(nn.Module):
    """Factorised self-attention of several heads: one projection to q, k, v, and W_p (Eq. 2-3; spec 3.2).

    Queries and keys may be narrower than values (`query_width`); the scale is that of the queries' head size.
    """

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.heads, self.patterns = config.heads, patterns_of(config, layer)
        self.dropout = config.attention_dropout
        self.attend = masked_attention if config.plain else sparse_attention
        self.sizes = (config.query_size, config.query_size, config.width)
        self.qkv = nn.Linear(config.width, sum(self.sizes))
        self.output = nn.Linear(config.width, config.width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k [B, H, n, d_qk / H] and v [B, H, n, d / H] of x [B, n, d]: views of one tensor."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).split(self.sizes, -1))
        return q, k, v

    def merge(self, o: Tensor) -> Tensor:
        """What the heads found, [B, H, n, d / H], through W_p: [B, n, d]."""
        return self.output(o.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, key: int = 0) -> Tensor:
        """x: [B, n, d], normalised; key: of the attention dropout, where there is any. [B, n, d]."""
        dropout = self.dropout if self.training else 0.0
        return self.merge(self.attend(*self.split(x), self.patterns, dropout=dropout, key=key))


class FeedForward(nn.Module):
    """ff(x) = W_2 f(W_1 x + b_1) + b_2 (Sec. 5.2)."""

    def __init__(self, config: Config):
        super().__init__()
        self.inner = nn.Linear(config.width, config.hidden)
        self.outer = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, d] of [B, n, d]."""
        return self.outer(gelu(self.inner(x)))


class Block(nn.Module):
    """H + a(H) + b(H), with a(H) = dropout(attention(LN(H))) and b(H) = dropout(ff(LN(H + a(H)))) (Eq. 11-14)."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.dropout = config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(config.width, eps=1e-5), nn.LayerNorm(config.width, eps=1e-5)
        self.attention, self.feedforward = Attention(config, layer), FeedForward(config)
        self.initialise(config)

    @torch.no_grad()
    def initialise(self, config: Config) -> None:
        """Draw the weights (Sec. 5.2 and 6; spec 3.5). LayerNorm keeps gain 1 and bias 0."""
        final = 1 / sqrt(2 * config.layers) if config.scaled_residual else 1.0
        attention, feedforward = self.attention, self.feedforward
        for linear, factor in (
            (attention.qkv, 1.0),
            (attention.output, final),
            (feedforward.inner, 1.0),
            (feedforward.outer, final),
        ):
            inputs = linear.in_features
            deviation = sqrt(0.125 / inputs) if config.init == "code" else 0.125 / sqrt(inputs)
            linear.weight.normal_(0, factor * deviation)
            linear.bias.zero_()

    def compile_residual(self) -> None:
        """Compile all but the attention, whose kernels are chosen by hand. Recomputation then repeats compiled code."""
        self.attention.attend = torch.compiler.disable(self.attention.attend)
        self.residual = torch.compile(self.residual)  # type: ignore[method-assign]

    def residual(self, x: Tensor, key: int = 0) -> Tensor:
        """The block, keeping whatever its backward pass needs."""
        x = x + F.dropout(self.attention(self.norm1(x), key), self.dropout, self.training)
        return x + F.dropout(self.feedforward(self.norm2(x)), self.dropout, self.training)

    def forward(self, x: Tensor, key: int = 0, recompute: bool = False) -> Tensor:
        """[B, n, d] of the residual stream [B, n, d].

        recompute: keep x alone for the backward pass, which then computes attention and feed-forward again (Sec. 5.4);
        dropout begins from the same state of torch's generators, so it drops the same.
        """
        if not (recompute and torch.is_grad_enabled()):
            return self.residual(x, key)
        random = self.training and self.dropout > 0
        return checkpoint(self.residual, x, key, use_reentrant=False, preserve_rng_state=random)


class SparseTransformer(nn.Module):
    """An autoregressive model of n tokens: logits of each one from those before it.

    vocabulary: number of tokens, V. grid: rows, columns and channels of the images that the tokens are, None for
    sequences. Initialised by torch's current generator; W_out is 0, so that the first loss is ln V.
    Raises UserError for positions along the data where there is no grid, or one smaller than the context.
    """

    def __init__(self, config: Config, vocabulary: int, grid: tuple[int, ...] | None = None):
        super().__init__()
        self.config, self.vocabulary, self.grid = config, vocabulary, grid
        self.axes = _axes(config, grid)
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.tables = nn.ParameterList(torch.empty(size, config.width) for size in self.axes)
        self.start = nn.Parameter(torch.empty(config.width))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, vocabulary, bias=False)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the embeddings (Sec. 5.3 and 6; spec 3.5); the output is 0 at first."""
        config = self.config
        deviation = 0.125 / sqrt(config.width)
        for tensor in (self.tokens.weight, self.start):
            tensor.normal_(0, deviation)
        for table in self.tables:
            table.normal_(0, deviation / sqrt(len(self.tables)))
        self.head.weight.zero_()

    # ------------------------------------------------------------ embedding

    def positions(self, n: int) -> Tensor | None:
        """The sum of the position tables' rows at data positions 0..n-1, [n, d]; None without tables (Eq. 15)."""
        if not self.axes:
            return None
        total: Tensor | None = None
        for axis, table in enumerate(self.tables):
            # A table lies along its axis of the grid and is the same along the others.
            shape = [1] * len(self.axes)
            shape[axis] = self.axes[axis]
            part = table.view(*shape, -1)
            total = part if total is None else total + part
        assert total is not None
        return total.flatten(0, -2)[:n]

    def coordinates(self, t: int) -> tuple[int, ...]:
        """Where data position t lies on the grid of the position tables (invariant 12)."""
        found: list[int] = []
        for size in reversed(self.axes):
            t, rest = divmod(t, size)
            found.append(rest)
        return tuple(reversed(found))

    def position(self, t: int) -> Tensor:
        """The position vector in slot t, [d]: of the token that the slot holds ("code") or that it predicts."""
        at = t - 1 if self.config.shift == "code" else t
        total = torch.zeros_like(self.start)
        if at >= 0:
            for table, row in zip(self.tables, self.coordinates(at), strict=True):
                total = total + table[row]
        return total

    def embed_token(self, token: Tensor | None, t: int) -> Tensor:
        """What slot t carries, [B, d], given the token before it, int64 [B]; in slot 0 the start vector, and no token
        gives a batch of one."""
        if t:
            assert token is not None
            return self.tokens(token) + self.position(t)
        return (self.start + self.position(0)).expand(1 if token is None else len(token), -1)

    def embed(self, tokens: Tensor) -> Tensor:
        """All slots of tokens int64 [B, n]: float [B, n, d], shifted by one (spec 3.4)."""
        batch, n = tokens.shape
        if n > self.config.context:
            raise ValueError(f"{n} tokens are more than the context of {self.config.context}")
        start, before = self.start.expand(batch, 1, -1), self.tokens(tokens[:, :-1])
        positions = self.positions(n)
        if positions is None:
            return torch.cat((start, before), 1)
        if self.config.shift == "aligned":
            return torch.cat((start, before), 1) + positions
        return torch.cat((start, before + positions[:-1]), 1)

    # ------------------------------------------------------------ forward

    def hidden(self, tokens: Tensor, keys: Sequence[int] = ()) -> Tensor:
        """The normalised residual stream after the last block, [B, n, d], of tokens int64 [B, n]."""
        x = self.embed(tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, keys[layer] if keys else 0, self.config.recompute)
        return self.norm(x)

    def forward(self, tokens: Tensor, keys: Sequence[int] = ()) -> Tensor:
        """Logits [B, n, V] of tokens int64 [B, n], n up to the context: [:, t] predicts tokens[:, t] from [:, :t].

        keys: of the attention dropout, one a layer, where there is any.
        """
        return self.head(self.hidden(tokens, keys))

    def nats(self, tokens: Tensor, keys: Sequence[int] = ()) -> Tensor:
        """The cost of each token, -ln p(token given those before it): float32 [B, n].

        Logits of long sequences are made in pieces, of which the backward pass keeps none.
        """
        hidden, targets = self.hidden(tokens, keys).flatten(0, 1), tokens.flatten()
        rows = max(1, LOGITS_AT_ONCE // self.vocabulary)
        if len(targets) <= rows:
            return self._nats(hidden, targets).view_as(tokens)
        pieces = [
            checkpoint(self._nats, *piece, use_reentrant=False, preserve_rng_state=False)
            for piece in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat(pieces).view_as(tokens)

    def _nats(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(hidden)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")


def _axes(config: Config, grid: tuple[int, ...] | None) -> tuple[int, ...]:
    """Sizes of the position tables: of the data's grid (without axes of one value) or of the attention's."""
    if config.positions == "none":
        return ()
    if config.positions == "linear":
        return (config.context,)
    if config.positions == "attention":
        return ceil(config.context / config.stride), config.stride
    if grid is None:
        raise UserError("positions 'data' need images; sequences take 'attention', 'linear' or 'none'")
    if prod(grid) < config.context:
        raise UserError(f"the context {config.context} is longer than an image of {prod(grid)} tokens; make it so long")
    return tuple(size for size in grid if size > 1)


def load_model(path: Path | str) -> tuple[SparseTransformer, Config, dict[str, Any]]:
    """The trained network of a run, on the CPU and in evaluation mode; its settings; and `settings.json` whole.

    path: the run's folder, or a file in it. UserError when there is no trained model.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"no {name} in {folder}; give the folder of a finished training")
    settings = read_json(folder / SETTINGS)
    config, grid = Config.of(settings["config"]), settings["grid"]
    model = SparseTransformer(config, settings["vocabulary"], None if grid is None else tuple(grid))
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval(), config, settings
