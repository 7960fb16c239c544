"""Windows that slide: what they score, and with which context."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.random import Stream, seeded
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.evaluation import bits, token_bits, windows
from papers.sparse_transformer.network import SparseTransformer

CONFIG = Config(
    data="python", context=8, pattern="dense", stride=4, layers=1, width=8, heads=2, positions="attention", dropout=0.0
)


def model_of(config: Config = CONFIG) -> SparseTransformer:
    with seeded(Stream(2, "initialisation")):
        model = SparseTransformer(config, 7)
        model.head.weight.data.normal_(0, 0.5)
    return model


def stream(length: int) -> torch.Tensor:
    return Stream(4, "tokens").integers(0, length, 7)


def plainly(model: SparseTransformer, tokens: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Bits of each token of a stream, one forward pass for each."""
    found = []
    for t in range(len(tokens)):
        begin = 0 if t < n else ((t - n) // (n - m) + 1) * (n - m)
        logits = model(tokens[None, begin : t + 1])[0, -1]
        found.append(-logits.log_softmax(0)[tokens[t]] / torch.tensor(2.0).log())
    return torch.stack(found)


@settings(max_examples=50, deadline=None)
@given(length=st.integers(0, 60), context=st.integers(1, 12), data=st.data())
def test_windows_score_each_token_once_with_the_minimum_context(length, context, data):
    least = data.draw(st.integers(0, context - 1))
    scored = []
    for starts, size, first in windows(length, context, least):
        assert 0 <= first < size <= context
        for start in starts:
            assert start + size <= length and first == (least if start else 0)
            scored += range(start + first, start + size)
    assert scored == list(range(length))


def test_the_papers_windows():
    """Spec 3.7: context 12,288 with minimum 6,144 scores 6,144 tokens a window, with 12,160 only 128: 48 times more."""
    n, length = 12_288, 122_880
    counts = {m: sum(len(starts) for starts, _, _ in windows(length, n, m)) for m in (0, 6_144, 12_160)}
    assert counts == {0: 10, 6_144: 1 + (length - n) // 6_144, 12_160: 1 + (length - n) // 128}
    assert (counts[12_160] - 1) // (counts[6_144] - 1) == 48


@pytest.mark.parametrize(("length", "least"), [(29, 0), (29, 3), (29, 7), (8, 2), (5, 4), (16, 4)])
def test_bits_are_those_of_single_forward_passes(length, least):
    model, tokens = model_of(), stream(length)
    found = token_bits(model, tokens.to(torch.uint8), 8, least, batch_size=2)
    torch.testing.assert_close(found, plainly(model, tokens, 8, least), rtol=1e-5, atol=1e-5)
    assert bits(model, tokens, 8, least) == pytest.approx(found.mean().item(), rel=1e-5)
    assert model.training


def test_items_do_not_see_each_other():
    model, items = model_of(replace(CONFIG, shift="aligned")), stream(40).view(4, 10)
    found = token_bits(model, items, 8, 6, batch_size=3)
    for item, row in zip(items, found, strict=True):
        torch.testing.assert_close(row, token_bits(model, item, 8, 6), rtol=1e-5, atol=1e-5)


def test_an_impossible_minimum_is_refused():
    with pytest.raises(ValueError, match="minimum"):
        token_bits(model_of(), stream(20), 8, 8)
