"""How often a claim holds when nothing is there: the false `held` rate must not pass 5 % (it is 2.5 % by design).

Paired differences of two methods of equal skill, judged with gate = null = 0 at n = 3, 5, 10 and 20 seeds: normal
scores, and accuracies on 100 and 500 test examples at base rates from a coin's to 99.9 %. Accuracies are discrete, so a
few seeds can agree exactly and leave no spread at all; that stays far below the limit even at n = 3 (at most 1.1 %
of cases, where few differences are possible and the rest of the tail is light), and a result that is the same on every
seed for a reason must be able to hold. So there is no special rule for a spread of zero.
"""

import numpy as np
import pytest

from common.claims import Rule, judge, level, measure
from common.statistics import t_quantile

REPETITIONS = 20_000
LIMIT = 0.05
RULE = Rule(quantity=level("e", "m", "x", "percent"), better="higher", gate=0.0, null=0.0, seeds=5, data="simulated")


def held(values: np.ndarray) -> np.ndarray:
    """`held` of RULE for every row of values [R, n], vectorised."""
    n = values.shape[1]
    mean, std = values.mean(axis=1), values.std(axis=1, ddof=1)
    return (mean >= 0) & (mean - t_quantile(n - 1) * std / np.sqrt(n) > 1e-9)


def normal_differences(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.normal(size=(REPETITIONS, n)) - generator.normal(size=(REPETITIONS, n))


def binomial_differences(generator: np.random.Generator, n: int, examples: int, rate: float) -> np.ndarray:
    scores = generator.binomial(examples, rate, size=(2, REPETITIONS, n)) * (100 / examples)
    return scores[0] - scores[1]


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_false_held_rate_normal(n):
    rate = held(normal_differences(np.random.default_rng(n), n)).mean()
    assert rate <= LIMIT
    assert rate == pytest.approx(0.025, abs=0.005)  # 4.5 standard errors: the test is neither lax nor needlessly shy


@pytest.mark.parametrize("n", [3, 5, 10, 20])
@pytest.mark.parametrize("examples", [100, 500])
def test_false_held_rate_binomial(n, examples):
    generator = np.random.default_rng(100 * examples + n)
    for rate in (0.5, 0.7, 0.9, 0.95, 0.98, 0.99, 0.998, 0.999):
        assert held(binomial_differences(generator, n, examples, rate)).mean() <= LIMIT, rate


def test_the_simulation_judges_as_the_code_does():
    generator = np.random.default_rng(0)
    for n in (3, 10):
        for values in (normal_differences(generator, n)[:300], binomial_differences(generator, n, 100, 0.98)[:300]):
            found = [judge(RULE, measure(row)).verdict == "held" for row in values.tolist()]
            assert found == held(values).tolist()


def test_a_percentile_bootstrap_would_cover_too_little():
    """Why Student's t: a 95 % percentile bootstrap of 3-5 seeds covers the true mean in 68-83 % of cases."""
    generator = np.random.default_rng(1)
    for n, low, high in ((3, 0.65, 0.80), (5, 0.78, 0.88)):
        samples = generator.normal(size=(2000, n))
        means = samples[np.arange(2000)[:, None, None], generator.integers(n, size=(2000, 400, n))].mean(axis=2)
        ends = np.quantile(means, [0.025, 0.975], axis=1)
        bootstrap = ((ends[0] <= 0) & (ends[1] >= 0)).mean()
        width = t_quantile(n - 1) * samples.std(axis=1, ddof=1) / np.sqrt(n)
        student = (np.abs(samples.mean(axis=1)) <= width).mean()
        assert low < bootstrap < high
        assert student == pytest.approx(0.95, abs=0.02)
