"""`SparseSelfAttention` against nn.MultiheadAttention under the same mask, alone and inside torch's own layers."""

import pytest
import torch
from torch import nn

from papers.sparse_transformer.attention import Pattern, SparseSelfAttention, attention_weights
from papers.sparse_transformer.method import full_mask, masked_attention

HALVES = (Pattern("window", 4), Pattern("columns", 4))


def hidden(patterns: Pattern | tuple[Pattern, ...], n: int, batch: int = 2, heads: int = 4) -> torch.Tensor:
    """The mask as nn.MultiheadAttention takes it: True where a key is hidden, [B H, n, n]."""
    return ~full_mask(patterns, n, heads, torch.device("cpu")).repeat(batch, 1, 1)


def pair(pattern: Pattern | tuple[Pattern, ...], **options: bool) -> tuple[nn.MultiheadAttention, SparseSelfAttention]:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(16, 4, batch_first=True, **options)
    sparse = SparseSelfAttention(16, 4, pattern=pattern, **options)
    sparse.load_state_dict(dense.state_dict())
    return dense, sparse


@pytest.mark.parametrize("pattern", [Pattern("strided", 4), Pattern("fixed", 4, 1, rotate=True), HALVES])
def test_it_is_multihead_attention_under_the_patterns_mask(pattern: Pattern) -> None:
    dense, sparse = pair(pattern)
    ours = torch.randn(2, 13, 16, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    expected, weights = dense(theirs, theirs, theirs, attn_mask=hidden(pattern, 13))
    output, nothing = sparse(ours)
    assert nothing is None
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    expected.square().sum().backward()
    output.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)
    for (name, a), b in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=2e-5, rtol=1e-5, msg=name)
    again, shown = sparse(ours, need_weights=True)
    assert torch.equal(again, output)
    torch.testing.assert_close(shown, weights, atol=1e-6, rtol=1e-5)
    each = sparse(ours, need_weights=True, average_attn_weights=False)[1]
    assert each.shape == (2, 4, 13, 13) and not each[hidden(pattern, 13).view_as(each)].any()


def test_layouts_and_the_lack_of_biases_are_those_of_multihead_attention() -> None:
    pattern = Pattern("strided", 4)
    dense, sparse = pair(pattern, bias=False)
    x = torch.randn(2, 9, 16)
    expected = dense(x, x, x, attn_mask=hidden(pattern, 9))[0]
    torch.testing.assert_close(sparse(x, x, x)[0], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(sparse(x[1])[0], expected[1], atol=1e-6, rtol=1e-5)
    assert sparse(x[1], need_weights=True)[1].shape == (9, 9)
    sparse.batch_first = False
    torch.testing.assert_close(sparse(x.transpose(0, 1))[0].transpose(0, 1), expected, atol=1e-6, rtol=1e-5)
    assert [*sparse.state_dict()] == ["in_proj_weight", "out_proj.weight"]


def test_a_dense_layer_becomes_sparse_with_the_same_parameters() -> None:
    dense, sparse = pair(Pattern("fixed", 8, 2))
    made = SparseSelfAttention.from_dense(dense.eval(), "fixed", stride=8, summary=2)
    x = torch.randn(1, 20, 16)
    assert torch.equal(made(x)[0], sparse(x)[0]) and not made.training
    assert made.in_proj_weight is dense.in_proj_weight and made.out_proj.bias is dense.out_proj.bias
    assert "fixed (stride 8, summary 2)" in repr(made)
    with pytest.raises(ValueError, match="cannot be made sparse"):
        SparseSelfAttention.from_dense(nn.MultiheadAttention(16, 4, kdim=8))


@pytest.mark.parametrize("training", [True, False])
def test_it_works_as_self_attn_of_a_transformer_encoder(training: bool) -> None:
    """Without gradients torch would take a fused path that attends densely, and to the future."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True)
    layer.self_attn = SparseSelfAttention(16, 4, pattern="strided", stride=4)  # type: ignore[assignment]
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    x = torch.randn(2, 11, 16)
    padding = torch.zeros(2, 11, dtype=torch.bool)
    padding[1, 8:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(11)
    with torch.set_grad_enabled(training):
        output = model(x)
        for masks in ({"mask": causal}, {"mask": causal, "is_causal": True}, {"src_key_padding_mask": padding}):
            masked = model(x, **masks)
            torch.testing.assert_close(masked[~padding], output[~padding], atol=1e-6, rtol=1e-5)
        changed = x.clone()
        changed[:, 6] = torch.randn(2, 16)
        difference = (model(changed) - output).abs().amax((0, 2))
    assert not difference[:6].any() and (difference[6:] > 1e-6).all()


def test_padding_at_the_end_is_seen_by_no_real_position() -> None:
    dense, sparse = pair(Pattern("strided", 4))
    x = torch.randn(2, 10, 16)
    padding = torch.arange(10).expand(2, 10) >= torch.tensor([[10], [7]])
    expected = dense(x, x, x, attn_mask=hidden(Pattern("strided", 4), 10), key_padding_mask=padding)[0]
    output = sparse(x, key_padding_mask=padding)[0]
    torch.testing.assert_close(output[~padding], expected[~padding], atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="padding must come last"):
        sparse(x, key_padding_mask=padding.flip(1))


def test_what_it_cannot_do_is_an_error() -> None:
    layer, x = SparseSelfAttention(16, 4, pattern="local", stride=4), torch.randn(2, 6, 16)
    with pytest.raises(ValueError, match="attends to query alone"):
        layer(x, x.clone(), x.clone())
    for mask in (torch.zeros(6, 6), torch.zeros(5, 5), torch.zeros(6, 6, dtype=torch.bool), torch.randn(6, 6)):
        with pytest.raises(ValueError, match="or the causal mask"):
            layer(x, attn_mask=mask)
    with pytest.raises(ValueError, match=r"query must be \[B, n, 16\]"):
        layer(torch.randn(2, 6, 8))
    for arguments, options in (((15, 4), {}), ((16, 4, 1.0), {}), ((16, 4), {"pattern": "fixed"}),
                               ((16, 4), {"combine": "interleaved"}), ((16, 4), {"pattern": HALVES + HALVES[:1]}),
                               ((16, 4), {"pattern": "sparse"})):  # fmt: skip
        with pytest.raises(ValueError):
            SparseSelfAttention(*arguments, **options)  # type: ignore[arg-type]


def test_dropout_follows_torchs_seed_and_ends_with_training() -> None:
    layer, x = SparseSelfAttention(16, 4, dropout=0.5, pattern=HALVES), torch.randn(2, 12, 16)
    torch.manual_seed(1)
    first, second = layer(x, need_weights=True), layer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(layer(x)[0], first[0]) and not torch.equal(second, first[0])
    kept = (first[1] > 0).sum() / (~hidden(HALVES, 12)).view(2, 4, 12, 12).any(1).sum()
    assert kept < 0.95
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_weights_are_those_of_the_oracle() -> None:
    q, k, v = (torch.randn(1, 4, 12, 8) for _ in range(3))
    weights = attention_weights(q, k, HALVES, scale=0.5)
    torch.testing.assert_close(weights @ v, masked_attention(q, k, v, HALVES, scale=0.5))
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 12))
