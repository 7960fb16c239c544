"""The equations against numbers computed by hand (spec, section 12) and against autograd."""

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.diayn import method

LOGITS = torch.tensor([[2.0, 0.0, -1.0, 0.5]])
ONE_HOT = torch.eye(4)


def test_pseudo_reward_invariant_1():
    log_q = LOGITS.log_softmax(-1)
    assert log_q[0].tolist() == pytest.approx([-0.3423, -2.3423, -3.3423, -1.8423], abs=5e-5)
    prior = torch.full((4,), 0.25)
    first = method.pseudo_reward(log_q, ONE_HOT[:1], prior.log())
    assert first.item() == pytest.approx(1.04394, abs=5e-6)
    assert method.pseudo_reward(log_q, ONE_HOT[2:3], prior.log()).item() == pytest.approx(-1.95606, abs=5e-6)
    official = method.log_prior_official(prior.double())
    got = method.pseudo_reward(log_q.double(), ONE_HOT[:1], official).item()
    assert log(4) + log_q[0, 0].item() - got == pytest.approx(log(1 + 4e-6), abs=1e-9)
    assert method.pseudo_reward(log_q, ONE_HOT[:1], None).item() == pytest.approx(-0.3423, abs=5e-5)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=9), st.data())
def test_reward_never_passes_log_k_invariant_2(logits, data):
    k = len(logits)
    skill = torch.eye(k, dtype=torch.float64)[data.draw(st.integers(0, k - 1))][None]
    log_q = torch.tensor([logits], dtype=torch.float64).log_softmax(-1)
    uniform = torch.full((k,), -log(k), dtype=torch.float64)
    assert method.pseudo_reward(log_q, skill, uniform).item() <= log(k) + 1e-12
    assert method.pseudo_reward(uniform[None], skill, uniform).item() == 0


def test_reward_is_log_k_where_the_classifier_is_sure_invariant_2():
    sure = torch.tensor([[0.0, -1e9, -1e9]])
    assert method.pseudo_reward(sure, torch.eye(3)[:1], torch.full((3,), -log(3))).item() == pytest.approx(log(3))


@pytest.mark.parametrize(
    ("u", "stable", "official"),
    [(0.5, -0.240229, -0.240228), (-2.0, -2.650005, -2.649991), (10.0, -18.613706, -13.807300)],
)
def test_squash_terms_invariant_3(u, stable, official):
    value = torch.tensor([u], dtype=torch.float64)
    assert method.log_squash(value).item() == pytest.approx(stable, abs=5e-7)
    assert method.log_squash_official(value).item() == pytest.approx(official, abs=5e-7)
    if u == 10.0:
        assert method.log_squash_official(value.float()).item() == pytest.approx(-13.8155, abs=5e-5)


def test_squash_is_the_logarithm_of_the_derivative_of_tanh():
    u = torch.linspace(-4, 4, 33, dtype=torch.float64)[:, None]
    assert torch.allclose(method.log_squash(u), torch.log1p(-(u.tanh() ** 2))[:, 0], atol=1e-9)


def test_tanh_gaussian_invariant_4():
    given_ = [torch.tensor(values, dtype=torch.float64) for values in ([0.2, -0.4], [-1.0, 0.3], [0.5, -1.2])]
    action, log_pi = method.tanh_gaussian(*given_)
    assert action.atanh().tolist() == pytest.approx([0.3839, -2.0198], abs=5e-5)
    assert action.tolist() == pytest.approx([0.3661, -0.9654], abs=5e-5)
    assert log_pi.item() == pytest.approx(0.849315, abs=5e-7)


def test_the_density_of_actions_integrates_to_one():
    mean, log_std = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[-0.5]], dtype=torch.float64)
    a = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1, None]
    noise = (a.atanh() - mean) / log_std.exp()
    density = method.tanh_gaussian(mean, log_std, noise)[1].exp()
    assert torch.trapezoid(density, a[:, 0]).item() == pytest.approx(1, abs=1e-4)


@given(st.integers(0, 50))
def test_policy_gradient_is_autograd_s(seed):
    torch.manual_seed(seed)
    output = (3 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()  # some log sigmas are clamped
    noise, of_action = torch.randn(2, 4, 3, dtype=torch.float64)
    of_log_pi = torch.randn(4, dtype=torch.float64)
    action, log_pi = method.tanh_gaussian(*method.gaussian_of(output), noise)
    ((action * of_action).sum() + (log_pi * of_log_pi).sum()).backward()
    ours = method.tanh_gaussian_gradient(output.detach(), noise, of_action, of_log_pi)
    assert torch.allclose(ours, output.grad, atol=1e-10)


@given(st.integers(0, 50))
def test_loss_gradients_are_autograd_s(seed):
    torch.manual_seed(seed)
    logits, skill = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True), torch.randint(0, 3, (2, 5))
    loss, gradient = method.cross_entropy(logits.log_softmax(-1), torch.nn.functional.one_hot(skill, 3))
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), skill, reduction="none").mean(-1)
    assert torch.allclose(loss, expected)
    assert torch.allclose(gradient, torch.autograd.grad(expected.sum(), logits)[0])
    q, target = torch.randn(2, 5, dtype=torch.float64, requires_grad=True), torch.randn(2, 5, dtype=torch.float64)
    loss, gradient = method.squared_loss(q, target)
    assert torch.allclose(gradient, torch.autograd.grad(loss.sum(), q)[0])


def test_learned_prior_invariant_5():
    p = method.learned_prior(torch.tensor([-0.1, -1.0, -3.0, 9.0]), torch.tensor([True, True, True, False]))
    assert p.tolist() == pytest.approx([0.57541, 0.23395, 0.03166, 0.15898], abs=6e-6)
    assert method.effective_skills(p).item() == pytest.approx(2.88503, abs=6e-6)
    same = method.learned_prior(torch.full((7,), -2.0), torch.ones(7, dtype=torch.bool))
    assert method.effective_skills(same).item() == pytest.approx(7, abs=1e-5)


def test_effective_skills_invariant_6():
    assert method.effective_skills(torch.tensor([0.55, 0.30, 0.10, 0.05])).item() == pytest.approx(2.91552, abs=5e-6)
    uniform = torch.full((50,), 0.02, dtype=torch.float64)
    assert method.effective_skills(uniform).item() == pytest.approx(50)
    assert method.entropy(uniform).item() == pytest.approx(3.912023, abs=5e-7)
    assert method.effective_skills(torch.tensor([1.0, 0.0])).item() == 1


def test_mixture_density_invariant_7():
    logits = torch.tensor([0.0, log(3)])
    mean, log_std = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), log(0.5))
    x = torch.tensor([0.8])
    density = method.mixture_log_prob(x, logits, mean, log_std)
    assert density.item() == pytest.approx(-0.592920, abs=5e-6)
    assert method.mixture_log_prob(x, logits + 7, mean, log_std).item() == pytest.approx(density.item(), abs=1e-5)


def test_mixture_samples_have_the_mixture_s_shares_and_moments():
    logits = torch.tensor([0.0, log(3)]).expand(20_000, 2)
    mean = torch.tensor([[-1.0], [1.0]]).expand(20_000, 2, 1)
    torch.manual_seed(0)
    x = method.mixture_sample(torch.rand(20_000), torch.randn(20_000, 1), logits, mean, torch.full_like(mean, -3))
    assert (x > 0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert x[x > 0].std().item() == pytest.approx(torch.tensor(-3.0).exp().item(), rel=0.05)


@pytest.mark.parametrize(("terminated", "target"), [(False, 3.175), (True, 0.7)])
def test_critic_target_invariant_8(terminated, target):
    y = method.critic_target(torch.tensor(0.7), 0.99, torch.tensor(terminated), torch.tensor(2.5))
    assert y.item() == pytest.approx(target)


def test_imitation_invariant_12():
    q = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]])
    sums, posterior = method.imitation_scores(q.log())
    assert sums.tolist() == pytest.approx([-2.81341, -2.47694, -6.90776], abs=5e-6)
    assert sums.argmax().item() == 1
    assert posterior.tolist() == pytest.approx([0.41379, 0.57931, 0.00690], abs=5e-6)


def test_mutual_information_is_the_entropy_where_skills_are_known_for_sure():
    p = torch.tensor([0.5, 0.25, 0.25])
    assert method.mutual_information(torch.zeros(3), p).item() == pytest.approx(method.entropy(p).item())
    assert method.mutual_information(p.log(), p).item() == pytest.approx(0, abs=1e-6)
