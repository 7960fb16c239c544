"""PATE's aggregation and its accounting."""

import itertools
import math

import numpy as np
import pytest

from papers.mixmatch import pate


def test_votes_are_counted_by_class():
    predictions = np.array([[0, 2], [0, 1], [1, 2]])
    assert pate.votes_of(predictions, 3).tolist() == [[2, 1, 0], [0, 1, 2]]


def test_answers_without_noise_are_the_confident_majorities():
    votes = np.array([[9, 1, 0], [4, 3, 3], [0, 2, 8]])
    generator = np.random.RandomState(0)
    assert pate.answer(votes, 8, 1e-9, 1e-9, generator).tolist() == [0, -1, 2]


def test_a_wide_threshold_noise_refuses_about_half_at_the_threshold():
    votes = np.tile([20, 10], (4000, 1))
    answered = pate.answer(votes, 20, 5.0, 1e-9, np.random.RandomState(0)) >= 0
    assert abs(answered.mean() - 0.5) < 0.03


def test_flip_probability_bounds_what_noise_does():
    votes = np.array([[14, 10, 6]])
    sigma = 4.0
    bound = math.exp(pate.log_flip_probability(votes, sigma)[0])
    noisy = votes + np.random.RandomState(0).normal(0, sigma, (200_000, 3))
    flipped = (noisy.argmax(1) != 0).mean()
    assert flipped <= bound < 1.3 * flipped


def test_data_dependent_loss_never_exceeds_the_gaussian_one_and_falls_with_agreement():
    sigma, orders = 40.0, pate.ORDERS
    losses = []
    for gap in (0, 20, 100, 200):
        log_q = pate.log_flip_probability(np.array([[gap, 0]]), sigma)
        losses.append(pate.gaussian_max_rdp(log_q, sigma))
        assert (losses[-1] <= orders / sigma**2 + 1e-12).all()
        assert (losses[-1] >= 0).all()
    assert losses[0] == pytest.approx(orders / sigma**2)
    for weaker, stronger in itertools.pairwise(losses):
        assert (stronger <= weaker + 1e-12).all()
    assert losses[-1][10] < 0.05 * losses[0][10]


def test_epsilon_of_the_gaussian_mechanism():
    # One Gaussian answer: Renyi loss order / sigma^2; the best real-valued order gives the closed form, a grid near it.
    sigma = 10.0
    best = 1 / sigma**2 + 2 * math.sqrt(math.log(1 / pate.DELTA)) / sigma
    found = pate.epsilon(pate.ORDERS / sigma**2)
    assert best <= found < 1.01 * best


def test_privacy_loss_adds_up_and_pays_for_refused_queries():
    votes = np.tile([250, 0, 0], (20, 1))
    answered = np.ones(20, bool)
    all_answered = pate.privacy_loss(votes, answered, 200.0, 40.0)
    none_answered = pate.privacy_loss(votes, ~answered, 200.0, 40.0)
    half_asked = pate.privacy_loss(votes[:10], answered[:10], 200.0, 40.0)
    assert 0 < none_answered <= all_answered
    assert half_asked < all_answered
