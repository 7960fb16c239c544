"""The cached sampler against the full forward, the keys it reads, and the tokens it draws."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from common.random import Stream, seeded
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.method import Pattern
from papers.sparse_transformer.network import SparseTransformer
from papers.sparse_transformer.sampling import Cache, Sampler, choose, generate

N, VOCABULARY = 45, 11
"""45 is no multiple of any stride here, and beyond the second square of the cubic pattern's 4."""
FIXED: dict[str, Any] = {"pattern": "fixed", "stride": 8, "summary": 3}
NETWORKS: dict[str, dict[str, Any]] = {
    "dense": {"pattern": "dense"},
    "local": {"pattern": "local", "stride": 6},
    "local of l keys": {"pattern": "local", "stride": 6, "inclusive": False},
    "strided": {"pattern": "strided", "stride": 6},
    "strided 1": {"pattern": "strided", "stride": 1},
    "strided beyond n": {"pattern": "strided", "stride": 64},
    "strided heads": {"pattern": "strided", "stride": 6, "combine": "heads"},
    "strided interleaved": {
        "pattern": "strided", "stride": 6, "combine": "interleaved", "cycle": ("columns", "window"),
    },
    "cubic": {"pattern": "cubic", "stride": 4},
    "cubic 1": {"pattern": "cubic", "stride": 1},
    "fixed": FIXED,
    "fixed rotated": FIXED | {"summary": 2, "rotate": True},
    "fixed rotated, some cells never seen": FIXED | {"stride": 7, "rotate": True},
    "fixed, whole blocks": FIXED | {"stride": 5, "summary": 5},
    "fixed beyond n": FIXED | {"stride": 64, "summary": 8},
    "fixed heads": FIXED | {"combine": "heads"},
    "fixed heads rotated": FIXED | {"combine": "heads", "rotate": True},
    "fixed interleaved": FIXED | {"combine": "interleaved"},
    "fixed interleaved rotated": FIXED | {"combine": "interleaved", "rotate": True},
}  # fmt: skip


def build(context: int = N, **settings: Any) -> SparseTransformer:
    """A network of two layers and four heads whose parameters are all random, its output too."""
    small = {"data": "bytes", "layers": 2, "width": 16, "heads": 4, "dropout": 0.0, "positions": "linear"}
    config = Config.of({**small, "context": context, **settings})
    with seeded(Stream(3, "network")):
        model = SparseTransformer(config, VOCABULARY, None)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def tokens_of(batch: int, n: int = N) -> Tensor:
    return Stream(5, "tokens").integers(torch.arange(batch), n, VOCABULARY)


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_are_the_full_forward(name: str) -> None:
    """Invariant 16: at every position, from the start and after a prompt of any length."""
    model, tokens = build(**NETWORKS[name]), tokens_of(2)
    with torch.no_grad():
        expected = model(tokens)
    assert expected.std() > 0.3
    for prompt in (0, 1, 8, 29):
        sampler = Sampler(model, batch_size=2)
        if prompt:
            sampler.prefill(tokens[:, :prompt])
        last = tokens[:, prompt - 1] if prompt else None
        for t in range(prompt, N):
            logits = sampler.step(last)
            assert torch.allclose(logits, expected[:, t], atol=1e-5, rtol=1e-5), (prompt, t)
            last = tokens[:, t]
        with pytest.raises(ValueError, match="made for 45 positions"):
            sampler.step(last)


@pytest.mark.parametrize("shift", ["code", "aligned"])
@pytest.mark.parametrize("positions", ["data", "attention", "none"])
def test_steps_know_their_positions(shift: str, positions: str) -> None:
    """Invariant 16 for the other embeddings, here on images of 5 x 3 pixels of 3 colours, with half-size queries."""
    config = {"positions": positions, "shift": shift, "query_width": 0.5, "pattern": "strided", "stride": 9}
    small = {"data": "cifar10", "context": N, "layers": 2, "width": 16, "heads": 2, "dropout": 0.0}
    model = SparseTransformer(Config.of({**small, **config}), VOCABULARY, (5, 3, 3)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    tokens, sampler = tokens_of(1), Sampler(model)
    with torch.no_grad():
        expected = model(tokens)
    found = [sampler.step(tokens[:, t - 1] if t else None) for t in range(N)]
    assert torch.allclose(torch.stack(found, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_reads_the_keys_of_its_pattern_alone(name: str) -> None:
    """The cost of a token: the row of the mask, up to the c cells of the own block that A2 alone reads with a mask."""
    model = build(**NETWORKS[name])
    sampler, tokens = Sampler(model), tokens_of(1)
    rows: Tensor = torch.zeros(N, dtype=torch.int64)
    spare = 0
    for block in model.blocks:
        patterns: tuple[Pattern, ...] = block.attention.patterns
        size = 4 // len(patterns)
        for g, pattern in enumerate(patterns):
            rows += pattern.mask(N, 4)[g * size : (g + 1) * size].sum((0, 2))
            spare += size * pattern.summary * (pattern.kind == "summaries")
    for t in range(N):
        sampler.step(tokens[:, t - 1] if t else None)
        assert rows[t] <= sampler.keys_read <= rows[t] + spare, t


def test_a_step_costs_the_root_of_the_length() -> None:
    """The last of 4,096 tokens reads about 2 sqrt(n) keys; a window and fixed attention keep little more than that."""
    keys = torch.zeros(1, 2, 4096, 1)
    for pattern, read, kept in (
        (Pattern("strided", 64), 127, 4096),
        (Pattern("window", 64), 65, 65),
        (Pattern("fixed", 256, 16), 256 + 15 * 16, 256 + 16 * 16),
        (Pattern("summaries", 256, 16, rotate=True), 16 * 16, 16 * 16),
    ):
        cache = Cache(pattern, range(2), 4096, keys, keys)
        cache.fill(keys, keys)
        assert sum(piece.keys.shape[2] for piece in cache.pieces(4095)) == read
        assert cache.line[0].shape[2] + cache.compact[0].shape[2] == kept


# ---------------------------------------------------------------- what is drawn


class Known:
    """A model whose next token is `probabilities` whatever came before."""

    def __init__(self, probabilities: list[float]):
        self.logits = torch.tensor(probabilities).log()
        self.config, self.start, self.blocks = SimpleNamespace(context=64), torch.zeros(2), ()

    def eval(self) -> "Known":
        return self

    def embed(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, 2)

    def embed_token(self, tokens: Tensor, t: int) -> Tensor:
        return torch.zeros(len(tokens), 2)

    def norm(self, x: Tensor) -> Tensor:
        return x

    def head(self, x: Tensor) -> Tensor:
        return self.logits.expand(*x.shape[:2], -1)


P = [0.05, 0.4, 0.1, 0.25, 0.2]


def test_tokens_follow_the_distribution() -> None:
    for temperature, top_p, expected in (
        (1.0, 1.0, np.array(P)),
        (0.5, 1.0, np.array(P) ** 2 / (np.array(P) ** 2).sum()),
        (1.0, 0.8, np.array([0, 0.4, 0, 0.25, 0.2]) / 0.85),
        (1.0, 0.3, np.array([0, 1, 0, 0, 0])),
    ):
        model: Any = Known(P)
        drawn = generate(model, 50, temperature=temperature, top_p=top_p, batch_size=100)
        counts = np.bincount(drawn.flatten().numpy(), minlength=5)
        assert (counts[expected == 0] == 0).all()
        if (expected > 0).sum() > 1:
            likely = expected > 0
            assert chisquare(counts[likely], 5000 * expected[likely]).pvalue > 0.001, (temperature, top_p)


def test_the_inverse_of_the_cumulative_distribution() -> None:
    """Sorted: 1 up to 0.4, 3 up to 0.65, 4 up to 0.85, 2 up to 0.95, 0 up to 1."""
    uniform = torch.tensor([0.0, 0.39, 0.41, 0.64, 0.66, 0.86, 0.96, 1 - 2**-24])
    logits = torch.tensor(P).log().expand(8, 5)
    assert choose(logits, uniform).tolist() == [1, 1, 3, 3, 4, 2, 0, 0]
    assert choose(logits, uniform, top_p=0.6).tolist() == [1, 1, 1, 3, 3, 3, 3, 3]
    assert choose(logits, uniform, temperature=0.0).tolist() == [1] * 8
    assert choose(logits, uniform, temperature=1e-3).tolist() == [1] * 8
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            choose(logits, uniform, **wrong)


def test_draws_are_a_function_of_seed_and_place() -> None:
    model, prompt = build(pattern="strided", stride=6), tokens_of(1, 9)[0]
    every = generate(model, 12, prompt, seed=1, batch_size=5)
    assert every.shape == (5, 12) and every.dtype == torch.int64
    assert torch.equal(every, generate(model, 12, prompt, seed=1, batch_size=5))
    assert not torch.equal(every, generate(model, 12, prompt, seed=2, batch_size=5))
    # In two chunks, and with the first tokens given as a prompt.
    assert torch.equal(every[2:], generate(model, 12, prompt, seed=1, batch_size=3, first=2))
    longer = torch.cat([prompt.expand(5, 9), every[:, :4]], 1)
    assert torch.equal(every[:, 4:], generate(model, 8, longer, seed=1, batch_size=5))
    greedy = generate(model, 12, prompt, temperature=0, seed=1, batch_size=2)
    assert torch.equal(greedy[0], greedy[1]) and torch.equal(greedy, generate(model, 12, prompt, 0, 1.0, 2, 2))
    with torch.no_grad():
        assert greedy[0, 0] == model(torch.cat([prompt, prompt[:1]])[None])[0, 9].argmax()


def test_what_does_not_fit_is_refused() -> None:
    model = build(pattern="dense")
    with pytest.raises(ValueError, match="40 tokens of prompt and 6 new ones do not fit into the context of 45"):
        generate(model, 6, tokens_of(1, 40)[0])
    with pytest.raises(ValueError, match="do not fit"):
        generate(model, 0)
    with pytest.raises(ValueError, match=r"1\.\.45"):
        Sampler(model, length=46)
    sampler = Sampler(model, length=4)
    with pytest.raises(ValueError, match="at most 4 tokens, not 5"):
        sampler.prefill(tokens_of(1, 5))
    sampler.step()
    with pytest.raises(ValueError, match="a prompt comes first"):
        sampler.prefill(tokens_of(1, 2))
