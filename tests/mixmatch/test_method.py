"""MixMatch's functions and class: the invariants of the specification by number, and equality with plain versions."""

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.models.convnet import ConvNet
from common.models.norm import GhostBatchNorm2d
from common.models.wide_resnet import WideResNet
from common.random import Stream
from papers.mixmatch import method
from papers.mixmatch.method import Draws, MixMatch, sharpen

torch.set_num_threads(1)
MODES = ["".join((a, ".", b)) for a, b in itertools.product(method.LABELED_MIXES, method.UNLABELED_MIXES)]


def net(dtype: torch.dtype = torch.float64, classes: int = 4, seed: int = 0) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(classes, widths=(4, 6, 6)).to(dtype)


def plain_net(**options) -> nn.Module:
    """The same network with PyTorch's own BatchNorm."""
    model = net(**options)
    for i, layer in enumerate(model.body):
        if isinstance(layer, GhostBatchNorm2d):
            model.body[i] = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum).to(layer.weight.dtype)
    return model


def step_input(b: int = 6, u: int = 6, k: int = 2, classes: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(b, 1, 6, 6, generator=g).to(dtype)
    views = torch.randn(k, u, 1, 6, 6, generator=g).to(dtype)
    targets = torch.randint(classes, (b,), generator=g)
    draws = MixMatch().draw(Stream(seed, "mixup"), 3, b + k * u)
    return x, targets, views, draws


def gradients(model: nn.Module, loss: method.Loss) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss.total, list(model.parameters()), allow_unused=True))


def assert_same(one, other, model_one, model_other, rtol: float = 1e-9) -> None:
    for a, b in zip(one[:3], other[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)
    torch.testing.assert_close(one.guesses, other.guesses, rtol=rtol, atol=rtol)
    for a, b in zip(gradients(model_one, one), gradients(model_other, other), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)
    for (name, a), (_, b) in zip(model_one.named_buffers(), model_other.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol, msg=name)


# ---------------------------------------------------------------- invariants 1-15


@pytest.mark.parametrize(
    ("p", "temperature", "expected"),
    [
        ([0.6, 0.4], 0.5, [0.692308, 0.307692]),
        ([0.5, 0.3, 0.2], 0.5, [0.657895, 0.236842, 0.105263]),
        ([0.5, 0.3, 0.2], 0.25, [0.865651, 0.112188, 0.022161]),
        ([0.5, 0.3, 0.2], 1.0, [0.5, 0.3, 0.2]),
        ([0.4, 0.3, 0.3], 0.1, [0.898774, 0.050613, 0.050613]),
        ([0.25] * 4, 0.03, [0.25] * 4),
    ],
)
def test_invariant_01_sharpen(p, temperature, expected):
    assert sharpen(torch.tensor(p), temperature).tolist() == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any),
    st.floats(0.02, 5.0),
)
@settings(deadline=None)
def test_invariant_02_sharpening_keeps_argmax_and_ties(counts, temperature):
    p = torch.tensor(counts, dtype=torch.float32)
    p = p / p.sum()
    q = sharpen(p, temperature)
    assert torch.isfinite(q).all() and q.sum().item() == pytest.approx(1, abs=1e-5)
    assert ((p == p.max()) == (q == q.max())).all()
    order = p.argsort(stable=True)
    assert (q[order].diff() >= 0).all()
    assert (q[p == p[0]] == q[0]).all()


@pytest.mark.parametrize(("alpha", "mean"), [(0.75, 0.778209), (0.5, 0.818310), (0.25, 0.881380), (1.0, 0.75)])
def test_invariant_03_lambda(alpha, mean):
    lam = MixMatch(alpha=alpha).draw(Stream(0, "test"), torch.arange(100), 2_000).lam
    coefficient = method.mixup_coefficient(lam)
    assert coefficient.min() >= 0.5 and coefficient.max() <= 1
    assert coefficient.double().mean().item() == pytest.approx(mean, abs=1.5e-3)


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(2, 6))
@settings(max_examples=25, deadline=None)
def test_invariant_04_mixed_labels_sum_to_one(seed, n, classes):
    p = torch.rand(n, classes, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)
    lam, permutation = MixMatch().draw(Stream(seed, "test"), 0, n)
    _, mixed = method.mixup(p, p, lam, permutation)
    torch.testing.assert_close(mixed.sum(dim=-1), torch.ones(n))


def test_invariant_04_example():
    p = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.5, 0.25]])
    for lam in (0.8, 0.2):
        mixed = method.mix(p[:1], p[1:], torch.tensor([lam]))
        assert mixed[0].tolist() == pytest.approx([0.85, 0.10, 0.05])


def test_invariant_05_interleave():
    assert method.interleave_offsets(64, 3) == [0, 21, 42, 64]
    batches = [torch.arange(64) + 100 * i for i in range(3)]
    swapped = method.interleave(batches)
    assert [(swapped[0] // 100 == i).sum().item() for i in range(3)] == [21, 21, 22]
    for a, b in zip(method.interleave(swapped), batches, strict=True):
        assert torch.equal(a, b)
    order, inverse, sizes = method.interleave_order((64, 64, 64), torch.device("cpu"))
    assert torch.equal(torch.cat(batches)[order], torch.cat(swapped)) and torch.equal(order, inverse)
    assert sizes == (64, 64, 64)


@given(st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_invariant_05_interleave_is_its_own_inverse(size, count):
    batches = list(torch.arange(size * count).split(size))
    for a, b in zip(method.interleave(method.interleave(batches)), batches, strict=True):
        assert torch.equal(a, b)


def test_invariant_06_ramp():
    mixmatch = MixMatch(unlabeled_weight=75)
    for images, weight in [(0, 0), (64, 0.0045776), (524_288, 37.5), (1_048_576, 75), (5_000_000, 75)]:
        assert mixmatch.weight(images) == pytest.approx(weight, abs=1e-7)
        assert float(mixmatch.weight(torch.tensor(images))) == pytest.approx(weight, abs=1e-6)
    assert MixMatch(ramp_images=0).weight(0) == 75


def test_invariant_07_unlabeled_loss():
    prediction = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    assert method.unlabeled_loss(prediction.log(), targets).item() == pytest.approx(0.0666667, abs=1e-6)


def test_invariant_08_labeled_loss():
    logits, targets = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.8, 0.2, 0.0]])
    assert method.labeled_loss(logits, targets).item() == pytest.approx(0.607228, abs=1e-6)


def test_invariant_10_decay_and_average():
    model = WideResNet(blocks=1, filters=4)
    before = copy.deepcopy(model.state_dict())
    method.decay_weights(method.kernels(model), 0.02 * 0.002)
    kernels = {id(w) for w in method.kernels(model)}
    for name, p in model.named_parameters():
        factor = 0.99996 if id(p) in kernels else 1.0
        assert (id(p) in kernels) == (p.ndim > 1)
        torch.testing.assert_close(p, before[name] * factor, rtol=1e-6, atol=0)
    average = [torch.ones(3, dtype=torch.float64)]
    for _ in range(693):
        method.update_average(average, [torch.zeros(3, dtype=torch.float64)], 0.999)
    assert average[0][0].item() == pytest.approx(0.5, abs=2e-4)
    assert average[0][0].item() == pytest.approx(0.5 ** (693 / 692.8), rel=1e-4)


def test_invariant_11_every_kernel_and_norm_gets_a_gradient():
    torch.manual_seed(0)
    model = WideResNet(num_classes=4, blocks=2, filters=6, in_channels=1).double()
    x, targets, views, draws = step_input()
    MixMatch().loss(model, x, targets, views, 1.0, draws).total.backward()
    for name, p in model.named_parameters():
        absorbed = name.endswith("bias") and ("conv" in name or "shortcut" in name or "stem" in name)
        size = p.grad.abs().max()
        assert size < 1e-10 if absorbed else size > 1e-6, name


@pytest.mark.parametrize("batch_norm", ["ghost", "official", "frozen", "all-batches"])
def test_invariant_12_running_statistics(batch_norm):
    model, oracle = net(), net()
    x, targets, views, draws = step_input()
    mixmatch = MixMatch(batch_norm=batch_norm)
    norm, first = model.body[1], oracle.body[0]
    mixmatch.guess(model, views)
    assert norm.num_batches_tracked == (2 if batch_norm == "all-batches" else 0)
    if batch_norm != "all-batches":
        assert norm.running_mean.abs().max() == 0
    mixmatch.loss(model, x, targets, views, 1.0, draws)
    if batch_norm == "all-batches":
        assert norm.num_batches_tracked == 2 + 5
        return
    assert norm.num_batches_tracked == 1
    mixed, _ = method.mixup(torch.cat([x, *views]), torch.zeros(18, 4), *draws)
    batches = mixed.chunk(3)
    seen = batches[0] if batch_norm == "frozen" else method.interleave(batches)[0]
    torch.testing.assert_close(norm.running_mean, 0.05 * first(seen).mean(dim=(0, 2, 3)))
    variance = first(seen).transpose(0, 1).flatten(1).var(dim=1, correction=1)
    torch.testing.assert_close(norm.running_var, 0.95 + 0.05 * variance)


def test_invariant_13_without_mixing_it_is_supervised_learning():
    x, targets, views, draws = step_input()
    draws = Draws(torch.ones_like(draws.lam), draws.permutation)
    for evaluation in (True, False):
        model = net().train(not evaluation)
        mine = gradients(model, MixMatch().loss(model, x, targets, views, 0.0, draws))
        supervised = torch.autograd.grad(F.cross_entropy(model(x), targets), list(model.parameters()))
        same = [torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(mine, supervised, strict=True)]
        assert all(same) if evaluation else not any(same[:-1])


def test_invariant_14_guesses_are_shared_constants():
    model = net()
    x, targets, views, draws = step_input()
    loss = MixMatch(mixing=".").loss(model, x, targets, views, 1.0, draws)
    assert not loss.guesses.requires_grad
    # Unmixed, every view's squared error is against the same bits.
    seen = []
    original = method.unlabeled_loss
    try:
        method.unlabeled_loss = lambda logits, p: (seen.append(p), original(logits, p))[1]
        MixMatch(mixing=".").loss(model, x, targets, views, 1.0, draws)
    finally:
        method.unlabeled_loss = original
    assert torch.equal(seen[0][:6], seen[0][6:])
    p = torch.full((6, 4), 0.25, dtype=torch.float64, requires_grad=True)
    assert not method.guess_labels(views.flatten(2)[..., :4].requires_grad_(), 0.5).requires_grad
    method.unlabeled_loss(model(x), p).backward()
    assert p.grad is None
    # With the prediction branch cut off nothing reaches the parameters.
    frozen = copy.deepcopy(model).requires_grad_(False)
    assert not MixMatch().loss(frozen, x, targets, views, 1.0, draws).total.requires_grad


def test_invariant_15_classes_may_be_renamed():
    model, renamed = net(), net()
    new = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        renamed.head.weight[new] = model.head.weight.clone()
        renamed.head.bias[new] = model.head.bias.clone()
    x, targets, views, draws = step_input()
    loss = MixMatch().loss(model, x, targets, views, 2.0, draws)
    other = MixMatch().loss(renamed, x, new[targets], views, 2.0, draws)
    torch.testing.assert_close(other.guesses[:, new], loss.guesses)
    torch.testing.assert_close(other.labeled, loss.labeled)
    torch.testing.assert_close(other.unlabeled, loss.unlabeled)
    again = MixMatch().loss(net(), x, targets, views, 2.0, draws)
    assert again.total.item() == pytest.approx(loss.total.item(), abs=1e-6)


# ---------------------------------------------------------------- the fast path against the plain one


@pytest.mark.parametrize("batch_norm", ["ghost", "official"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_loss_equals_the_plain_one(batch_norm, k):
    x, targets, views, draws = step_input(k=k, b=7, u=7)
    model, plain = net(), plain_net()
    plain.load_state_dict(model.state_dict())
    fast = MixMatch(batch_norm=batch_norm).loss(model, x, targets, views, 3.0, draws)
    p = F.one_hot(targets, 4).double()
    assert_same(fast, method.plain_loss(plain, x, p, views, 3.0, draws), model, plain)


@pytest.mark.parametrize("batch_norm", ["ghost", "all-batches", "frozen"])
@pytest.mark.parametrize(("b", "u", "k"), [(4, 7, 2), (9, 3, 3), (5, 6, 1)])
def test_unequal_batches_and_plain_batch_norm(batch_norm, b, u, k):
    # A model whose BatchNorm knows one batch only gets separate forwards: the same numbers.
    x, targets, views, draws = step_input(b, u, k)
    model, plain = net(), plain_net()
    plain.load_state_dict(model.state_dict())
    mixmatch = MixMatch(batch_norm=batch_norm)
    fast = mixmatch.loss(model, x, targets, views, 3.0, draws)
    assert fast.guesses.shape == (u, 4)
    assert_same(fast, mixmatch.loss(plain, x, targets, views, 3.0, draws), model, plain)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_every_dealt_batch_stands_for_the_mixture(b, u, k):
    order, inverse, sizes = method.interleave_order((b, *(u,) * k), torch.device("cpu"))
    n = b + k * u
    assert order.sort().values.tolist() == list(range(n)) and torch.equal(order[inverse], torch.arange(n))
    assert sum(sizes) == n and max(sizes) - min(sizes) <= 1
    first = order[: sizes[0]]
    shares = [b, *(u,) * k]
    for source, share in enumerate(shares):
        start = sum(shares[:source])
        assert abs(((first >= start) & (first < start + share)).sum().item() - share / (k + 1)) <= 1


@pytest.mark.parametrize(("limit", "forwards"), [(1 << 15, 2), (1, 5)])
def test_large_batches_on_a_cpu_are_not_joined(monkeypatch, limit, forwards):
    monkeypatch.setattr(method, "CPU_JOINS_BELOW", limit)
    x, targets, views, draws = step_input()
    model, calls = net(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    MixMatch().loss(model, x, targets, views, 1.0, draws)
    assert len(calls) == forwards


def test_all_batches_differs_in_statistics_only():
    x, targets, views, draws = step_input()
    one, other = net(), net()
    a = MixMatch(batch_norm="all-batches").loss(one, x, targets, views, 3.0, draws)
    b = MixMatch().loss(other, x, targets, views, 3.0, draws)
    torch.testing.assert_close(a.total, b.total)
    assert not torch.allclose(one.body[1].running_mean, other.body[1].running_mean)


def test_interleaving_off_changes_the_batches():
    x, targets, views, draws = step_input()
    on = MixMatch().loss(net(), x, targets, views, 3.0, draws)
    off = MixMatch(interleave=False).loss(net(), x, targets, views, 3.0, draws)
    frozen = MixMatch(batch_norm="frozen").loss(net(), x, targets, views, 3.0, draws)
    assert not torch.allclose(on.total, off.total)
    torch.testing.assert_close(off.total, frozen.total)


@pytest.mark.parametrize("mixing", MODES)
def test_mixing_modes(mixing):
    b, u, k = 4, 4, 2
    labeled, unlabeled = mixing.split(".")
    for seed in range(5):
        permutation = Stream(seed, "p").permutation(0, b + k * u)
        partner = method.partners(mixing, permutation, b, k)
        left, right = partner[:b].tolist(), partner[b:].tolist()
        if labeled == "":
            assert left == list(range(b))
        elif labeled == "xx":
            assert sorted(left) == list(range(b))
        else:
            assert left == permutation[:b].tolist()
        if unlabeled == "":
            assert right == list(range(b, b + k * u))
        elif unlabeled == "yy":
            assert sorted(right) == list(range(b, b + k * u))
        elif unlabeled == "yxy":
            assert right == permutation[b:].tolist()
        else:
            assert sorted(right[:u]) == sorted(right[u:]) == list(range(b))


def test_partners_are_uniform():
    permutations = Stream(0, "p").permutation(torch.arange(6_000), 9)
    partner = torch.stack([method.partners("xx.yx", p, 3, 2) for p in permutations])
    for item in range(9):
        frequency = torch.bincount(partner[:, item], minlength=9)[:3] / 6_000
        assert (frequency - 1 / 3).abs().max() < 0.03


def test_unmixed_items_are_exactly_themselves():
    items = torch.randn(8, 3, 2, 2)
    lam, permutation = MixMatch().draw(Stream(0, "m"), 0, 8)
    mixed = method.mix(items, items[method.partners(".yy", permutation, 4, 1)], lam)
    assert torch.equal(mixed[:4], items[:4]) and not torch.equal(mixed[4:], items[4:])


# ---------------------------------------------------------------- the class


def test_guessing_model():
    x, targets, views, draws = step_input()
    model, teacher = net(), net(seed=5).eval()
    before = copy.deepcopy(teacher.state_dict())
    loss = MixMatch(batch_norm="all-batches").loss(model, x, targets, views, 1.0, draws, guess_model=teacher)
    expected = MixMatch().guess(teacher.train(), views)
    torch.testing.assert_close(loss.guesses, expected)
    loss.total.backward()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_one_lambda_per_step_and_chunks_of_draws():
    stream, n = Stream(3, "mixup"), 18
    chunk = MixMatch().draw(stream, torch.arange(4), n)
    assert chunk.lam.shape == chunk.permutation.shape == (4, n)
    one = MixMatch().draw(stream, 2, n)
    assert torch.equal(chunk.lam[2], one.lam) and torch.equal(chunk.permutation[2], one.permutation)
    x, targets, views, _ = step_input()
    single = MixMatch(per_item_lambda=False)
    draws = single.draw(stream, 2, n)
    assert draws.lam.shape == (1,)
    same = Draws(draws.lam.expand(n), draws.permutation)
    scalar = Draws(draws.lam[0], draws.permutation)
    losses = [single.loss(net(), x, targets, views, 1.0, d).total for d in (draws, same, scalar)]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_any_module_any_classes_and_soft_targets():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 11))
    x, views = torch.randn(3, 5), torch.randn(4, 6, 5)
    mixmatch = MixMatch(loss_type="cross-entropy")
    loss = mixmatch.loss(
        model, x, torch.rand(3, 11).softmax(-1), views, torch.tensor(2.0), mixmatch.draw(Stream(0, "m"), 0, 27)
    )
    assert loss.guesses.shape == (6, 11) and torch.isfinite(loss.total)
    torch.testing.assert_close(loss.total.detach(), loss.labeled + 2 * loss.unlabeled)


def test_alignment_moves_guesses_towards_the_prior():
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1])
    alignment = method.DistributionAlignment(prior, decay=0.0)
    p = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    aligned = alignment(p)
    torch.testing.assert_close(aligned.sum(-1), torch.ones(50))
    torch.testing.assert_close(alignment.average, p.mean(0))
    assert (aligned.mean(0) - prior).abs().max() < 0.05 < (p.mean(0) - prior).abs().max()
    x, targets, views, draws = step_input()
    guesses = MixMatch().loss(net(), x, targets, views, 1.0, draws, alignment=alignment).guesses
    assert guesses[:, 0].mean() > MixMatch().guess(net(), views)[:, 0].mean()


def test_labels_and_losses_stay_in_float32_under_autocast():
    x, targets, views, draws = step_input(dtype=torch.float32)
    model = net(torch.float32)
    exact = MixMatch().loss(net(torch.float32), x, targets, views, 1.0, draws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = MixMatch().loss(model, x, targets, views, 1.0, draws)
        assert model(x).dtype == torch.bfloat16
    assert {t.dtype for t in loss} == {torch.float32}
    torch.testing.assert_close(loss.guesses.sum(-1), torch.ones(6), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss.total, exact.total, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("batch_norm", ["ghost", "official"])
@pytest.mark.parametrize("mixing", ["xxy.yxy", "xx.yx"])
def test_no_value_is_read_back_from_the_device(batch_norm, mixing):
    # Tensors on "meta" have no values: reading one raises.
    with torch.device("meta"):
        model = ConvNet(4, widths=(4, 6, 6))
        x, views, targets = torch.zeros(6, 1, 6, 6), torch.zeros(2, 6, 1, 6, 6), torch.zeros(6, dtype=torch.int64)
        draws = Draws(torch.zeros(18), torch.zeros(18, dtype=torch.int64))
        mixmatch = MixMatch(batch_norm=batch_norm, mixing=mixing)
        weight = mixmatch.weight(torch.zeros((), dtype=torch.int64))
        mixmatch.loss(model, x, targets, views, weight, draws).total.backward()


def test_a_step_of_training_in_channels_last_lowers_the_loss():
    x, targets, views, draws = step_input(dtype=torch.float32)
    model = net(torch.float32).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        loss = MixMatch().loss(model, x, targets, views, 1.0, draws)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"alpha": 0.0},
        {"mixing": "xx"},
        {"mixing": "yy.xx"},
        {"batch_norm": "sync"},
        {"loss_type": "l1"},
    ],
)
def test_bad_values_are_refused(options):
    with pytest.raises(ValueError):
        dataclasses.replace(MixMatch(), **options)


def test_shapes_that_do_not_fit_are_refused():
    x, targets, views, draws = step_input()
    for bad in [(x, targets[:3], views, draws), (x, targets, views[0], draws), (x[:4], targets[:4], views, draws)]:
        with pytest.raises(ValueError, match="do not fit"):
            MixMatch().loss(net(), *bad[:3], 1.0, bad[3])
