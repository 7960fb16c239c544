"""PATE (Papernot et al. 2018, arXiv 1802.08908) as MixMatch's section 4.3 uses it.

Teachers trained on disjoint shards of private data vote on queries. Confident-GNMax answers a query when its largest
vote count plus noise passes a threshold, and then with the class whose noisy count is largest. A student learns from
the answers and from the unlabelled queries; only the answers cost privacy.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special
from sklearn.linear_model import LogisticRegression

from common.errors import UserError
from common.files import atomic_path
from common.random import Stream
from common.runs import Folder
from papers.mixmatch.config import Config
from papers.mixmatch.data import Split, load_split

PATE_SETTINGS = ("num_teachers", "num_private", "threshold_sigma", "answer_sigma", "vote_threshold")
DELTA = 1e-5
ORDERS = np.concatenate([np.arange(1.25, 10, 0.25), np.arange(10, 257)])


def votes_of(predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """How many teachers chose each class: predictions int [teachers, queries] -> counts [queries, classes]."""
    return (predictions[:, :, None] == np.arange(num_classes)).sum(0)


def answer(
    votes: np.ndarray, threshold: float, threshold_sigma: float, answer_sigma: float, generator: np.random.RandomState
) -> np.ndarray:
    """Confident-GNMax (Algorithm 1): the answer to each query, or -1; votes [queries, classes] -> int64 [queries]."""
    confident = votes.max(1) + generator.normal(0, threshold_sigma, len(votes)) >= threshold
    noisy = (votes + generator.normal(0, answer_sigma, votes.shape)).argmax(1)
    return np.where(confident, noisy, -1).astype(np.int64)


def log_flip_probability(votes: np.ndarray, sigma: float) -> np.ndarray:
    """log of the bound on P(the noisy winner is another), each query (Proposition 7): [queries, classes] -> [queries].

    Counts that differ by d flip with probability erfc(d / (2 sigma)) / 2 under noise of variance sigma^2 on each.
    """
    gaps = votes.max(1, keepdims=True) - votes
    gaps = np.sort(gaps, axis=1)[:, 1:]
    bound = special.erfc(gaps / (2 * sigma)).sum(1) / 2
    return np.log(np.clip(bound, 1e-300, 1 - 1 / votes.shape[1]))


def gaussian_max_rdp(log_q: np.ndarray, sigma: float, orders: np.ndarray = ORDERS) -> np.ndarray:
    """Renyi privacy loss of answering each query once, summed: [orders]. Theorem 6, never above order / sigma^2.

    log_q: log of the bound on a different answer, [queries].
    """
    total = np.zeros(len(orders))
    for value in log_q:
        loss = orders / sigma**2
        mu2 = sigma * math.sqrt(-value)
        mu1 = mu2 + 1
        eps1, eps2 = mu1 / sigma**2, mu2 / sigma**2
        q = math.exp(value)
        allowed = mu2 > 1 and value <= (mu2 - 1) * eps2 - mu2 * math.log(mu1 / (mu1 - 1) * mu2 / (mu2 - 1)) and q < 1
        if allowed:
            # A and B of the theorem, in logarithms.
            log_a = math.log1p(-q) - math.log1p(-math.exp((value + eps2) * (mu2 - 1) / mu2))
            log_b = eps1 - value / (mu1 - 1)
            terms = np.logaddexp(math.log1p(-q) + (orders - 1) * log_a, value + (orders - 1) * log_b)
            loss = np.where(orders <= mu1, np.minimum(loss, terms / (orders - 1)), loss)
        total += loss
    return total


def epsilon(rdp: np.ndarray, delta: float = DELTA, orders: np.ndarray = ORDERS) -> float:
    """The (epsilon, delta) guarantee that Renyi losses [orders] imply: min of rdp + log(1 / delta) / (order - 1)."""
    return float((rdp + math.log(1 / delta) / (orders - 1)).min())


def privacy_loss(votes: np.ndarray, answered: np.ndarray, threshold_sigma: float, answer_sigma: float) -> float:
    """Epsilon at delta 1e-5 of all queries: votes [queries, classes], answered bool [queries].

    Every query pays for its noisy threshold (sensitivity 1: order / (2 sigma^2), independent of the data); the answered
    ones pay for the noisy maximum, as little as their votes agree. The value itself depends on the private votes.
    """
    threshold = len(votes) * ORDERS / (2 * threshold_sigma**2)
    return epsilon(threshold + gaussian_max_rdp(log_flip_probability(votes[answered], answer_sigma), answer_sigma))


def _settings(config: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    return (
        Config.of({name: value for name, value in config.items() if name not in PATE_SETTINGS}),
        {name: config[name] for name in PATE_SETTINGS},
    )


def _public(config: Config, pate: Mapping[str, Any], seed: int, data_dir: Path | None) -> tuple[Split, Split]:
    """The private data and the queries, which share their test images. num_private 0: the whole training set is private
    and the test images are the queries, as in the paper (10,000 of them; the others test the student)."""
    everything = load_split(Config(**{**vars(config), "num_labeled": 0}), seed, data_dir)
    images, labels = everything.labeled
    private = pate["num_private"]
    if private:
        queries, answers, test = images[private:], labels[private:], everything.test
        images, labels = images[:private], labels[:private]
    else:
        order = np.random.RandomState(seed).permutation(len(everything.test[1]))
        queries, answers = (part[order[:10_000]] for part in everything.test)
        test = everything.test[0][order[10_000:]], everything.test[1][order[10_000:]]
    shape = everything.num_classes, everything.scale
    return Split((images, labels), images, test, *shape), Split((queries, answers), queries, test, *shape)


def run_teachers(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train the teachers (multinomial logistic regression on disjoint shards) and answer the queries.

    Writes artifacts/answers.npz: votes [queries, classes], answers [queries] (-1 for none).
    """
    settings, pate = _settings(config)
    seed = int(config["seed"])
    private, queries = _public(settings, pate, seed, folder.data_dir)
    (images, labels), (query_images, truth) = private.labeled, queries.labeled

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1) * private.scale - 1.0

    shards = np.array_split(
        np.random.RandomState(Stream(seed, "shards").derived_seed() % 2**32).permutation(len(labels)),
        pate["num_teachers"],
    )
    predictions, accuracies = [], []
    for number, shard in enumerate(shards):
        teacher = LogisticRegression(max_iter=200).fit(flat(images[shard]), labels[shard])
        predictions.append(teacher.predict(flat(query_images)))
        accuracies.append((teacher.predict(flat(private.test[0])) == private.test[1]).mean())
        folder.report(number + 1, len(shards), {})
    votes = votes_of(np.stack(predictions), private.num_classes)
    noise = np.random.RandomState(Stream(seed, "noise").derived_seed() % 2**32)
    answers = answer(votes, pate["vote_threshold"], pate["threshold_sigma"], pate["answer_sigma"], noise)
    # Asking ends with the last answer that is wanted: queries that were never put cost nothing.
    wanted = settings.num_labeled or len(answers)
    asked = int(np.flatnonzero(np.cumsum(answers >= 0) <= wanted)[-1]) + 1
    answers[asked:] = -1
    answered = answers >= 0
    if not answered.any():
        raise UserError("the teachers answered no query: lower vote_threshold")
    with atomic_path(folder.artifact("answers.npz")) as temporary, open(temporary, "wb") as file:
        np.savez(file, votes=votes, answers=answers)
    return {
        "asked": float(asked),
        "answered": float(answered.sum()),
        "answer_accuracy": 100.0 * float((answers == truth)[answered].mean()),
        "teacher_accuracy": 100.0 * float(np.mean(accuracies)),
        "epsilon": privacy_loss(votes[:asked], answered[:asked], pate["threshold_sigma"], pate["answer_sigma"]),
    }


def run_student(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """Train a student on the answered queries; the others are its unlabelled images."""
    from papers.mixmatch.module import train

    settings, pate = _settings(config)
    seed = int(config["seed"])
    _, queries = _public(settings, pate, seed, folder.data_dir)
    with np.load(needs["teachers"] / "artifacts" / "answers.npz") as stored:
        answers = stored["answers"]
    chosen = np.flatnonzero(answers >= 0)
    rest = np.setdiff1d(np.arange(len(answers)), chosen)
    images = queries.labeled[0]
    pool = images[rest] if len(rest) else images
    split = Split((images[chosen], answers[chosen]), pool, queries.test, queries.num_classes, queries.scale)
    metrics = train(settings, split, seed, folder)
    return {"test_accuracy": 100.0 - metrics["test_error"], "train_error": metrics["train_error"]}
