"""The baselines' losses against plain versions, their statistics, teachers and gradients."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models.convnet import ConvNet
from common.models.norm import GhostBatchNorm2d
from common.random import Stream
from papers.mixmatch import baselines
from papers.mixmatch.baselines import Batch
from papers.mixmatch.method import Loss

torch.set_num_threads(1)

Method = Callable[[nn.Module, nn.Module, Batch, float], Loss]
METHODS: dict[str, Method] = {
    "supervised": lambda model, teacher, batch, weight: baselines.supervised(model, batch),
    "pseudo_label": lambda model, teacher, batch, weight: baselines.pseudo_label(model, batch, weight, 0.3),
    "pi_model": lambda model, teacher, batch, weight: baselines.pi_model(model, batch, weight),
    "mean_teacher": baselines.mean_teacher,
    "vat": lambda model, teacher, batch, weight: baselines.vat(model, batch, weight),
    "ssl_mixup": lambda model, teacher, batch, weight: baselines.ssl_mixup(model, batch, weight),
    "ict": baselines.ict,
}


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(4, widths=(4, 6, 6)).to(dtype)


def plain(model: nn.Module) -> nn.Module:
    """The same network with PyTorch's own BatchNorm, hence one forward a batch."""
    model = copy.deepcopy(model)
    for i, layer in enumerate(model.body):
        if isinstance(layer, GhostBatchNorm2d):
            new = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum).to(layer.weight.dtype)
            new.load_state_dict(layer.state_dict())
            model.body[i] = new.train(layer.training)
    return model


def batch_of(b: int = 5, u: int = 7, dtype: torch.dtype = torch.float64) -> Batch:
    g = torch.Generator().manual_seed(1)
    stream = Stream(0, "test")
    return Batch(
        x=torch.randn(b, 1, 6, 6, generator=g).to(dtype),
        targets=torch.randint(4, (b,), generator=g),
        views=torch.randn(2, u, 1, 6, 6, generator=g).to(dtype),
        lam_labeled=stream.beta(0, b, 0.75),
        lam_unlabeled=stream.beta(1, u, 0.75),
        direction=stream.normal(0, (u, 1, 6, 6)).to(dtype),
    )


def silent(model: nn.Module, x: Tensor) -> Tensor:
    """Logits with batch statistics of a copy: nothing recorded."""
    return torch.func.functional_call(
        model.train(), {k: v.clone() for k, v in model.state_dict(keep_vars=True).items()}, x
    )


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------- what all of them share


@pytest.mark.parametrize("name", METHODS)
def test_ghost_equals_separate_forwards_and_only_labeled_statistics_move(name):
    model, teacher, batch = net(), net(3), batch_of()
    other, other_teacher = plain(model), plain(teacher)
    teacher_state = copy.deepcopy(teacher.state_dict())
    loss = METHODS[name](model, teacher, batch, 2.0)
    expected = METHODS[name](other, other_teacher, batch, 2.0)
    close(loss.total, expected.total)
    mine = torch.autograd.grad(loss.total, list(model.parameters()))
    theirs = torch.autograd.grad(expected.total, list(other.parameters()))
    for a, b in zip(mine, theirs, strict=True):
        # VAT's finite difference of 1e-6 leaves fewer digits.
        torch.testing.assert_close(a, b, rtol=1e-4 if name == "vat" else 1e-8, atol=1e-7 if name == "vat" else 1e-10)
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    x = batch.x
    if name == "ssl_mixup":
        lam = torch.maximum(batch.lam_labeled, 1 - batch.lam_labeled).double()[:, None, None, None]
        x = lam * x + (1 - lam) * x.flip(0)
    assert model.body[1].num_batches_tracked == 1
    close(model.body[1].running_mean, 0.05 * model.body[0](x).mean(dim=(0, 2, 3)))
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, teacher_state[key])
    assert all(p.grad is None for p in (*teacher.parameters(), *model.parameters()))


@pytest.mark.parametrize("name", METHODS)
def test_results_are_constants_in_float32_but_for_the_total(name):
    model, teacher, batch = net(dtype=torch.float32), net(3, torch.float32), batch_of(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = METHODS[name](model, teacher, batch, 1.0)
    assert loss.total.requires_grad and torch.isfinite(loss.total)
    for value in loss[1:]:
        assert value is None or (not value.requires_grad and value.dtype == torch.float32)
    if loss.guesses is not None:
        torch.testing.assert_close(loss.guesses.sum(-1), torch.ones(7), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_no_value_is_read_back_from_the_device(name):
    with torch.device("meta"):
        model, teacher = ConvNet(4, widths=(4, 6, 6)), ConvNet(4, widths=(4, 6, 6))
    tensors = vars(batch_of(dtype=torch.float32))
    batch = Batch(**{key: value.to("meta") for key, value in tensors.items()})
    METHODS[name](model, teacher, batch, torch.zeros((), device="meta")).total.backward()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("supervised",)])
def test_weight_scales_the_unlabeled_term_only(name):
    teacher, batch = net(3), batch_of()
    one, three = (METHODS[name](net(), teacher, batch, weight) for weight in (1.0, torch.tensor(3.0)))
    torch.testing.assert_close(one.unlabeled, three.unlabeled)
    torch.testing.assert_close(three.total - one.total, 2 * one.unlabeled)


def test_what_is_missing_is_named():
    batch = Batch(batch_of().x, batch_of().targets, batch_of().views[:1])
    with pytest.raises(ValueError, match="2 unlabelled"):
        baselines.pi_model(net(), batch, 1.0)
    with pytest.raises(ValueError, match="direction"):
        baselines.vat(net(), batch, 1.0)
    with pytest.raises(ValueError, match="lam_unlabeled"):
        baselines.ict(net(), net(), batch, 1.0)


# ---------------------------------------------------------------- each against its formula


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_supervised(smoothing):
    model, batch = net(), batch_of()
    expected = F.cross_entropy(silent(model, batch.x), batch.targets, label_smoothing=smoothing)
    close(baselines.supervised(model, batch, smoothing).total, expected)
    soft = F.one_hot(batch.targets, 4).double()
    close(baselines.supervised(net(), Batch(batch.x, soft), smoothing).total, expected)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.35, 1.0])
def test_pseudo_label(threshold):
    model, batch = net(), batch_of()
    logits = silent(model, batch.views[0])
    value = 0.0
    for row in logits:
        if row.softmax(0).max() > threshold:
            value = value - row.log_softmax(0).max()
    loss = baselines.pseudo_label(model, batch, 1.0, threshold)
    torch.testing.assert_close(loss.unlabeled, torch.as_tensor(value, dtype=torch.float64).detach() / len(logits))
    assert torch.equal(loss.guesses.argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize("method", ["pi_model", "mean_teacher"])
def test_consistency(method):
    model, batch = net(), batch_of()
    teacher = net(3).eval()  # its BatchNorm uses batch statistics all the same
    first = silent(model if method == "pi_model" else net(3), batch.views[0]).softmax(-1)
    second = silent(model, batch.views[1]).softmax(-1)
    expected = F.mse_loss(second, first.detach())
    loss = METHODS[method](model, teacher, batch, 1.0)
    close(loss.unlabeled, expected.detach())
    labeled = F.cross_entropy(silent(model, batch.x), batch.targets)
    expected_gradients = torch.autograd.grad(labeled + expected, list(model.parameters()))
    for a, b in zip(torch.autograd.grad(loss.total, list(model.parameters())), expected_gradients, strict=True):
        close(a, b)


def test_normalized():
    tiny = torch.tensor([[[3e-25, -4e-25]], [[0.0, 0.0]], [[30.0, 40.0]]])
    out = baselines.normalized(tiny.double())
    close(out[2], torch.tensor([[0.75, 1.0]]).double() / (1e-6 + 0.75**2 + 1) ** 0.5)
    assert out[1].abs().max() == 0 and torch.isfinite(out).all()


def test_vat():
    model, batch = net(), batch_of()
    u, epsilon = batch.views[0], 1.5
    clean = silent(model, u)
    log_p = clean.log_softmax(-1).detach()
    offset = 1e-6 * F.normalize(batch.direction.flatten(1), dim=1).view_as(u)
    offset.requires_grad_()
    kl = F.kl_div(silent(model, u + offset).log_softmax(-1), log_p, reduction="batchmean", log_target=True)
    (gradient,) = torch.autograd.grad(kl, offset)
    perturbed = silent(model, u + epsilon * F.normalize(gradient.flatten(1), dim=1).view_as(u)).log_softmax(-1)
    divergence = F.kl_div(log_p, perturbed, reduction="batchmean", log_target=True)
    entropy = torch.distributions.Categorical(logits=clean).entropy().mean()
    labeled = F.cross_entropy(silent(model, batch.x), batch.targets)
    loss = baselines.vat(model, batch, 0.3, epsilon=epsilon, entropy_weight=0.06)
    torch.testing.assert_close(loss.unlabeled, divergence.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss.total, labeled + 0.3 * divergence + 0.06 * entropy, rtol=1e-4, atol=1e-6)


def test_vats_direction_is_worse_than_a_random_one():
    model, batch = net(), batch_of()
    u = batch.views[0]
    clean = silent(model, u).detach()
    random = baselines.kl_divergence(silent(model, u + 1.5 * baselines.normalized(batch.direction)), clean)
    assert baselines.vat(model, batch, 1.0, epsilon=1.5).unlabeled > 2 * random


def test_ssl_mixup():
    model, batch = net(), batch_of()
    u, one_hot = batch.views[0], F.one_hot(batch.targets, 4).double()

    def mixed(values: Tensor, lam: Tensor) -> Tensor:
        rows = []
        for i, coefficient in enumerate(lam):
            coefficient = max(coefficient, 1 - coefficient).double()  # drawn in float32
            rows.append(coefficient * values[i] + (1 - coefficient) * values[len(values) - 1 - i])
        return torch.stack(rows)

    guesses = silent(model, u).softmax(-1).detach()
    labeled = F.cross_entropy(silent(model, mixed(batch.x, batch.lam_labeled)), mixed(one_hot, batch.lam_labeled))
    unlabeled = F.cross_entropy(silent(model, mixed(u, batch.lam_unlabeled)), mixed(guesses, batch.lam_unlabeled))
    close(baselines.ssl_mixup(model, batch).total, labeled + unlabeled)


def test_ict():
    model, teacher, batch = net(), net(3).eval(), batch_of()
    u = batch.views[0]
    lam = torch.maximum(batch.lam_unlabeled, 1 - batch.lam_unlabeled).double()
    q = silent(net(3), u).softmax(-1).detach()
    images = lam[:, None, None, None] * u + (1 - lam[:, None, None, None]) * u.flip(0)
    targets = lam[:, None] * q + (1 - lam[:, None]) * q.flip(0)
    expected = F.mse_loss(silent(model, images).softmax(-1), targets)
    loss = baselines.ict(model, teacher, batch, 10.0)
    close(loss.unlabeled, expected.detach())
    close(loss.total, F.cross_entropy(silent(model, batch.x), batch.targets) + 10 * expected)
    assert not teacher.training
