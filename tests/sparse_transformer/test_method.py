"""The sets of keys and the plain attention over them: the spec's invariants 1-5 and what any pattern must obey."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.sparse_transformer.method import (
    KINDS,
    Pattern,
    full_mask,
    head_patterns,
    keep_mask,
    layer_patterns,
    masked_attention,
)

STRIDED, FIXED = Pattern("strided", 16), Pattern("fixed", 16, 4)


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    stride = draw(st.integers(1, 12))
    return Pattern(
        draw(st.sampled_from(KINDS)), stride, draw(st.integers(1, stride)), draw(st.booleans()), draw(st.booleans())
    )


def test_invariant_1_sizes_of_the_strided_sets() -> None:
    assert Pattern("window", 16).mask(256).sum() == 4216
    assert Pattern("window", 16, inclusive=False).mask(256).sum() == 3976
    assert Pattern("columns", 16).mask(256).sum() == 2176
    for inclusive in (True, False):
        union = Pattern("strided", 16, inclusive=inclusive).mask(256)[0]
        assert union.sum() == 5896 and union[200].sum() == 28
    n, stride = 4096, 64
    m = n // stride
    closed_form = stride * (stride + 1) // 2 + (n - stride) * (stride + 1) + stride * (m - 1) * (m - 2) // 2
    assert Pattern("strided", stride).pairs(n) == closed_form == 389_152


def test_invariant_2_sizes_of_the_fixed_sets() -> None:
    assert Pattern("block", 16).mask(256).sum() == 2176
    summaries = Pattern("summaries", 16, 4).mask(256)[0]
    assert summaries.sum() == 7840
    assert torch.equal((~summaries.any(1)).nonzero().flatten(), torch.arange(12))
    assert FIXED.mask(256).sum() == 9856 and FIXED.mask(256)[0, 200].sum() == 57
    assert Pattern("fixed", 64, 8).pairs(4096) == 1_165_312


def test_invariant_3_two_steps_reach_everything_before() -> None:
    n = 256
    everything, staying = torch.ones(n, n).tril().bool(), torch.eye(n)

    def then(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first.float() @ second.float()) > 0

    near, column = (Pattern(kind, 16, inclusive=False).mask(n)[0] for kind in ("window", "columns"))
    assert torch.equal(then(column, near), everything) and torch.equal(then(near, column), everything)
    own, summaries = (Pattern(kind, 16, 4).mask(n)[0] for kind in ("block", "summaries"))
    union = own | summaries
    assert torch.equal(then(union, union), everything)
    assert torch.equal(then(staying + summaries, staying + own), everything)
    assert not torch.equal(then(summaries, own), everything)
    assert not torch.equal(then(staying + own, staying + summaries), everything)


@pytest.mark.parametrize(
    "pattern, rows, expected",
    [
        (Pattern("strided", 4), [0, 5, 9, 15], [0, 3, 6, 10.714286]),
        (Pattern("fixed", 4, 1), [0, 5, 9, 15, 13], [0, 4, 6.75, 10.714286, 9.2]),
    ],
)
def test_invariant_4_means_over_the_keys(pattern: Pattern, rows: list[int], expected: list[float]) -> None:
    nothing, values = torch.zeros(1, 1, 16, 4), torch.arange(16.0).view(1, 1, 16, 1)
    means = masked_attention(nothing, nothing, values, pattern)[0, 0, rows, 0]
    torch.testing.assert_close(means, torch.tensor(expected))


def test_invariant_5_merging_two_softmaxes_is_one_over_both() -> None:
    scores, values = (torch.tensor([1.0, 2]), torch.tensor([0.0, 3, -1])), (
        torch.tensor([1.0, 0]), torch.tensor([2.0, 5, -1]),
    )  # fmt: skip
    outputs = torch.stack([s.softmax(0) @ v for s, v in zip(scores, values, strict=True)])
    lse = torch.stack([s.logsumexp(0) for s in scores])
    torch.testing.assert_close(lse, torch.tensor([2.313262, 3.065884]))
    merged_lse = lse.logsumexp(0)
    merged = (lse - merged_lse).exp() @ outputs
    torch.testing.assert_close(merged_lse, torch.tensor(3.451914))
    torch.testing.assert_close(outputs, torch.tensor([0.268941, 4.757275]))
    torch.testing.assert_close(merged, torch.tensor(3.319885))
    torch.testing.assert_close(merged, torch.cat(scores).softmax(0) @ torch.cat(values))


@given(patterns(), st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_pairs_counts_the_mask_and_every_pattern_is_causal(pattern: Pattern, n: int) -> None:
    mask = pattern.mask(n)[0]
    assert int(mask.sum()) == pattern.pairs(n)
    assert not mask.triu(1).any()
    if pattern.kind != "summaries":
        assert mask.diagonal().all()


def test_rotated_heads_have_sub_blocks_of_their_own_from_the_end() -> None:
    pattern = Pattern("fixed", 16, 4, rotate=True)
    assert [pattern.summary_cells(head) for head in range(5)] == [(12, 16), (8, 12), (4, 8), (0, 4), (12, 16)]
    masks = pattern.mask(48, 4)
    later = masks[:, 40, :32]
    assert (later.sum(0) == 1).all(), "every earlier cell is the summary of exactly one head"


def test_cubic_attention_reaches_everything_in_three_steps_with_a_cube_root_of_keys() -> None:
    n, stride = 216, 6
    mask = Pattern("cubic", stride).mask(n)[0].float()
    assert torch.equal((mask @ mask @ mask) > 0, torch.ones(n, n).tril().bool())
    assert int(mask.sum(1).max()) <= 3 * stride + 1


def test_three_ways_of_combining() -> None:
    options = {"stride": 8, "summary": 2}
    assert layer_patterns("fixed", **options) == (Pattern("fixed", 8, 2),)
    assert layer_patterns("fixed", "heads", **options) == (Pattern("block", 8), Pattern("summaries", 8, 2))
    kinds = [layer_patterns("strided", "interleaved", layer, **options)[0].kind for layer in range(3)]
    assert kinds == ["window", "columns", "window"]
    cycle = ("columns", "window", "window", "window")
    kinds = [layer_patterns("strided", "interleaved", layer, **options, cycle=cycle)[0].kind for layer in range(5)]
    assert kinds == [*cycle, "columns"]
    assert layer_patterns("local", **options) == (Pattern("window", 8),)
    halves = head_patterns(layer_patterns("strided", "heads", **options), 4)
    assert [(pattern.kind, first, last) for pattern, first, last in halves] == [("window", 0, 2), ("columns", 2, 4)]
    mask = full_mask(layer_patterns("strided", "heads", **options), 32, 4, torch.device("cpu"))
    assert torch.equal(mask[1], Pattern("window", 8).mask(32)[0])
    assert torch.equal(mask[2], Pattern("columns", 8).mask(32)[0])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: Pattern("diagonal"), "no attention pattern 'diagonal'"),
        (lambda: Pattern("strided", 0), "stride must be at least 1"),
        (lambda: Pattern("fixed", 8, 9), "summary must lie in 1..8"),
        (lambda: layer_patterns("dense", "heads"), "no two sets to combine"),
        (lambda: layer_patterns("strided", "alternating"), "no way 'alternating'"),
        (lambda: layer_patterns("strided", cycle=("window",)), "cycle is a setting of interleaved"),
        (lambda: layer_patterns("banded"), "no attention 'banded'"),
        (lambda: head_patterns(layer_patterns("strided", "heads"), 3), "3 heads do not divide into 2"),
    ],
)
def test_values_that_make_no_sense_are_refused(wrong, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_query_without_keys_gives_zero_and_gradients_stay_finite() -> None:
    q, k, v = (torch.randn(1, 1, 24, 4, requires_grad=True) for _ in range(3))
    output = masked_attention(q, k, v, Pattern("summaries", 8, 2))
    assert (output[0, 0, :6] == 0).all() and (output[0, 0, 6:] != 0).any(-1).all()
    output.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_dropout_is_a_function_of_key_and_place_with_the_right_rate() -> None:
    i, j = torch.arange(400)[:, None], torch.arange(400)
    keep = [keep_mask(key, 0.3, torch.tensor(head), i, j) for key, head in ((7, 0), (7, 0), (8, 0), (7, 1))]
    assert torch.equal(keep[0], keep[1])
    for other in keep[2:]:
        agree = (keep[0] == other).float().mean()
        assert abs(agree - (0.7**2 + 0.3**2)) < 0.01
    assert abs(keep[0].float().mean() - 0.7) < 0.005
    # Neither rows nor columns may share their draws.
    assert keep[0].float().mean(0).std() < 0.03 and keep[0].float().mean(1).std() < 0.03
    neighbours = (keep[0][:, 1:] == keep[0][:, :-1]).float().mean()
    assert abs(neighbours - (0.7**2 + 0.3**2)) < 0.01
