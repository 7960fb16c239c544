"""The block decomposition: its tiles cover each pair exactly once, and what it computes is what the mask computes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from papers.sparse_transformer import blocks, kernels
from papers.sparse_transformer.blocks import sparse_attention
from papers.sparse_transformer.kernels import CPU_FLASH, MATMUL, Kernel
from papers.sparse_transformer.method import KINDS, Pattern, layer_patterns, masked_attention
from papers.sparse_transformer.tiles import tiles_of
from tests.sparse_transformer.test_method import patterns

BANDED = Kernel(kernels._matmul_forward, kernels._matmul_backward, banded=True, one_size=True)
"""The tiles of flash attention on a GPU, computed by products."""


def inputs(shape: tuple[int, ...], value_size: int | None = None, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v and the gradient of the output. The heads are not contiguous, as those of a projection are not."""
    generator = torch.Generator().manual_seed(sum(shape))
    batch, heads, n, size = shape
    sizes = (size, size, value_size or size, value_size or size)
    return [torch.randn(batch, n, heads, s, generator=generator, dtype=dtype).transpose(1, 2) for s in sizes]


def passes(attend, tensors: list[Tensor], *arguments, **options) -> list[Tensor]:
    """Output, dq, dk, dv."""
    q, k, v = (x.detach().clone().requires_grad_() for x in tensors[:3])
    output = attend(q, k, v, *arguments, **options)
    return [output.detach(), *torch.autograd.grad(output, (q, k, v), tensors[3])]


def largest_difference(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(one, other, strict=True))


@given(patterns(), st.one_of(st.integers(1, 130), st.integers(200, 600)), st.integers(0, 5), st.booleans())
@settings(max_examples=50, deadline=None)
def test_tiles_cover_every_pair_exactly_once(pattern: Pattern, n: int, head: int, banded: bool) -> None:
    times = torch.zeros(n, n, dtype=torch.int64)
    for tile in tiles_of(pattern, n, head, banded):
        queries, keys, allowed = tile.queries.positions(), tile.keys.positions(), tile.allowed()
        assert not banded or allowed is None or tile.causal, "flash attention on a GPU takes no mask"
        if allowed is None:
            allowed = torch.ones(queries.shape[1], keys.shape[1], dtype=torch.bool)
        assert allowed[tile.skip :].any(1).all() and not allowed[: tile.skip].any()
        for rows, columns in zip(queries, keys, strict=True):
            times.index_put_((rows[:, None], columns[None]), allowed.long(), accumulate=True)
    assert torch.equal(times, pattern.mask(n, head + 1)[head].long())


@given(
    patterns(),
    st.integers(1, 80),
    st.integers(1, 4),
    st.sampled_from([(4, 4), (4, 8), (8, 4)]),
    st.sampled_from([None, MATMUL, BANDED]),
    st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=60, deadline=None)
def test_any_pattern_equals_the_mask_in_float64(pattern, n, heads, sizes, kernel, dropout) -> None:
    """Invariant 6: every length, stride, head count and head size."""
    tensors = inputs((2, heads, n, sizes[0]), sizes[1], torch.float64)
    kernel = MATMUL if dropout and kernel is None else kernel
    fast = passes(sparse_attention, tensors, pattern, None, dropout, 77, kernel=kernel)
    assert largest_difference(fast, passes(masked_attention, tensors, pattern, None, dropout, 77)) < 1e-12


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("combine", ["merged", "heads", "interleaved"])
@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_every_way_of_combining_equals_the_mask(name: str, combine: str, rotate: bool) -> None:
    chosen = layer_patterns(name, combine, 1, stride=8, summary=2, rotate=rotate)
    tensors = inputs((2, 6, 45, 8), dtype=torch.float64)
    fast, plain = passes(sparse_attention, tensors, chosen), passes(masked_attention, tensors, chosen)
    assert largest_difference(fast, plain) < 1e-12


@pytest.mark.parametrize("n, stride", [(1000, 32), (2100, 48), (600, 512)])
@pytest.mark.parametrize("kind", ["strided", "fixed", "dense", "window"])
def test_invariant_6_in_float32_at_lengths_of_many_tiles(kind: str, n: int, stride: int) -> None:
    pattern = Pattern(kind, stride, 8)
    tensors = inputs((1, 2 if n < 2000 else 1, n, 64))
    fast, plain = passes(sparse_attention, tensors, pattern), passes(masked_attention, tensors, pattern)
    assert largest_difference(fast, plain) < 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_invariant_6_gradients_are_those_of_finite_differences(kind: str) -> None:
    q, k, v = (x.requires_grad_() for x in inputs((1, 1, 24, 3), 2, torch.float64)[:3])
    assert torch.autograd.gradcheck(lambda *x: sparse_attention(*x, Pattern(kind, 4, 1)), (q, k, v))


@pytest.mark.parametrize("kind", ["strided", "window"])
@pytest.mark.parametrize("n", [5, 40])
def test_invariant_6_a_stride_of_the_whole_length_is_dense_attention(kind: str, n: int) -> None:
    tensors = inputs((2, 2, n, 8))
    fast = passes(sparse_attention, tensors, Pattern(kind, n))
    dense = passes(torch.nn.functional.scaled_dot_product_attention, tensors, is_causal=True)
    assert largest_difference(fast, dense) < 5e-6


@pytest.mark.parametrize("kind", ["strided", "fixed", "cubic"])
def test_invariant_7_nothing_after_a_position_changes_it(kind: str) -> None:
    tensors = inputs((1, 2, 70, 8))
    before = sparse_attention(*tensors[:3], Pattern(kind, 8, 2))
    for x in tensors[:3]:
        x[:, :, 33:] += 1
    after = sparse_attention(*tensors[:3], Pattern(kind, 8, 2))
    assert torch.equal(before[:, :, :33], after[:, :, :33]) and not torch.equal(before[:, :, 33], after[:, :, 33])


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
@pytest.mark.parametrize("kernel", [CPU_FLASH, MATMUL])
def test_half_precision_merges_in_float32(dtype: torch.dtype, tolerance: float, kernel: Kernel) -> None:
    tensors = inputs((1, 2, 300, 16), dtype=dtype)
    for pattern in (Pattern("strided", 16), Pattern("fixed", 16, 4)):
        fast = passes(sparse_attention, tensors, pattern, kernel=kernel)
        exact = passes(masked_attention, [x.float() for x in tensors], pattern)
        assert fast[0].dtype == fast[1].dtype == dtype
        assert largest_difference(fast, exact) < tolerance


def test_a_merge_in_float32_loses_nothing_that_the_tiles_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved log-sum-exp is float32 although the inputs are bfloat16: its rounding would move every weight."""
    seen = []
    monkeypatch.setattr(blocks, "_merge", lambda tile, output, lse, *rest: seen.append((output.dtype, lse.dtype)))
    sparse_attention(*inputs((1, 1, 64, 8), dtype=torch.bfloat16)[:3], Pattern("strided", 8))
    assert seen and set(seen) == {(torch.float32, torch.float32)}


def test_one_head_at_a_time_is_the_same_as_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs((2, 2, 100, 8), dtype=torch.float64)
    together = passes(sparse_attention, tensors, Pattern("fixed", 8, 2), None, 0.2, 5)
    monkeypatch.setattr(blocks, "ALONE", 1)
    assert largest_difference(passes(sparse_attention, tensors, Pattern("fixed", 8, 2), None, 0.2, 5), together) < 1e-12


def test_products_in_small_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs((2, 2, 100, 8), dtype=torch.float64)
    whole = passes(sparse_attention, tensors, Pattern("strided", 8), None, 0.2, 5)
    monkeypatch.setattr(kernels, "CHUNK", 64)
    assert largest_difference(passes(sparse_attention, tensors, Pattern("strided", 8), None, 0.2, 5), whole) < 1e-12


def test_invariant_15_no_tensor_has_n_times_n_elements() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    n, largest = 4096, 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(found):
                if isinstance(leaf, Tensor):
                    largest = max(largest, leaf.untyped_storage().nbytes() // leaf.element_size())
            return found

    tensors = inputs((1, 1, n, 8))
    for pattern in (Pattern("strided", 64), Pattern("fixed", 64, 8)):
        for kernel in (CPU_FLASH, MATMUL):
            with Largest():
                passes(sparse_attention, tensors, pattern, kernel=kernel)
    assert largest <= kernels.CHUNK and largest < n * n


def test_differentiating_twice_is_a_clear_error() -> None:
    q, k, v = (x.requires_grad_() for x in inputs((1, 1, 20, 4))[:3])
    (gradient,) = torch.autograd.grad(sparse_attention(q, k, v, Pattern("strided", 4)).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "shapes, options, message",
    [
        (((1, 2, 8, 4), (1, 2, 9, 4), (1, 2, 8, 4)), {}, r"q, k \[B, H, n, D\] and v"),
        (((2, 8, 4),) * 3, {}, r"q, k \[B, H, n, D\] and v"),
        (((1, 3, 8, 4),) * 3, {"patterns": (Pattern("window"), Pattern("columns"))}, "3 heads do not divide"),
        (((1, 2, 8, 4),) * 3, {"dropout": 1.0}, r"dropout lies in \[0, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, options, message: str) -> None:
    q, k, v = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        sparse_attention(q, k, v, **{"patterns": Pattern("strided", 4), **options})


def test_an_empty_sequence_gives_an_empty_output() -> None:
    empty = torch.zeros(1, 2, 0, 4)
    assert sparse_attention(empty, empty, empty, Pattern("strided", 4)).shape == (1, 2, 0, 4)


def test_the_order_of_rotated_heads_is_kept() -> None:
    """Heads are computed group by group, and come back in their places."""
    tensors = inputs((1, 7, 50, 4), dtype=torch.float64)
    pattern = Pattern("fixed", 8, 2, rotate=True)
    together = sparse_attention(*tensors[:3], pattern)
    for head in range(7):
        mask = pattern.mask(50, 8)[head]
        alone = torch.nn.functional.scaled_dot_product_attention(*(x[:, head] for x in tensors[:3]), attn_mask=mask)
        torch.testing.assert_close(together[:, head], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_kernel_is_called_with_arguments_and_gives_shapes_that_fit(kind: str) -> None:
    """As far as a CPU can tell: PyTorch's own shape functions of FlashAttention, on tensors without data."""
    x = torch.empty(2, 96, 64, device="meta", dtype=torch.bfloat16)
    for tile in tiles_of(Pattern(kind, 16, 4), 96, banded=True):
        parts = tile.queries.take(x), tile.keys.take(x), tile.keys.take(x)
        output, lse = kernels.CUDA_FLASH.forward(*parts, tile, kernels.Settings(0.125))
        assert output.shape == parts[0].shape and lse.shape == parts[0].shape[:3] and lse.dtype == torch.float32
        gradients = kernels.CUDA_FLASH.backward(output, *parts, output, lse, tile, kernels.Settings(0.125))
        assert [g.shape for g in gradients] == [part.shape for part in parts]
