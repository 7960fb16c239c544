"""Training: the schedule, the optimiser step by step, loss scaling, microbatches, evaluation."""

from dataclasses import replace
from math import cos, log, pi

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.runs import Execution
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.data import Corpus
from papers.sparse_transformer.evaluation import bits
from papers.sparse_transformer.module import (
    LanguageModel,
    LossScale,
    initial_model,
    learning_rate,
    make_module,
    seconds_per_step,
)

SMALL = Config(
    data="python", context=16, stride=4, layers=2, width=8, heads=2, feedforward=2, positions="attention", dropout=0.0,
    recompute=False, steps=20, batch_size=4, learning_rate=0.02, warmup=4, ema_decay=0.9, evaluation_items=3,
    evaluation_batch_size=2, steps_per_call=4, clip=0.05,
)  # fmt: skip
TEXT = np.tile(np.arange(6, dtype=np.uint8), 60)


def corpus_of(text: np.ndarray = TEXT) -> Corpus:
    return Corpus("stream", text[:240], text[240:300], text[300:], 6, None, "counting", "bytes")


def prepare(config: Config = SMALL, precision: str = "float32", seed: int = 1) -> LanguageModel:
    return make_module(config, corpus_of(), seed, Execution(precision=precision))


def state(module: LanguageModel) -> list[torch.Tensor]:
    """Weights, averages and moments, as copies."""
    moments = [value for entry in module.optimizer.state.values() for value in entry.values()]
    return [tensor.detach().clone() for tensor in (*module.state_dict().values(), *moments)]


def test_the_learning_rate():
    """Invariant 11."""
    config = replace(SMALL, steps=110, warmup=10, learning_rate=2.0)
    found = [learning_rate(config, step) / 2 for step in (0, 4, 9, 34, 59, 109)]
    assert found == pytest.approx([0.1, 0.5, 1.0, 0.853553, 0.5, 0.0], abs=1e-6)
    assert learning_rate(replace(config, warmup=0), 0) == pytest.approx(1 + cos(pi / 110))
    assert learning_rate(replace(config, steps=10), 9) == pytest.approx(2.0)


def test_a_step_is_clipped_adamw_with_decay_of_matrices_alone():
    config = replace(SMALL, weight_decay=0.5)
    module, corpus = prepare(config).double(), corpus_of()
    model = initial_model(config, corpus, 1).double()
    weights = list(model.parameters())
    averages = [weight.detach().clone() for weight in weights]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    for step in range(6):
        index = module.draw(range(step, step + 1))["index"][0]
        tokens = torch.stack([torch.from_numpy(corpus.train)[i : i + 16] for i in index]).long()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        gradients = torch.autograd.grad(loss, weights)
        norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
        rate = learning_rate(config, step)
        with torch.no_grad():
            for weight, gradient, average, (first, second) in zip(weights, gradients, averages, moments, strict=True):
                gradient = gradient * min(1.0, 0.05 / norm.item())
                first.mul_(0.9).add_(gradient, alpha=0.1)
                second.mul_(0.999).add_(gradient**2, alpha=0.001)
                if weight.dim() >= 2:
                    weight -= rate * 0.5 * weight
                update = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                weight -= rate * update
                average.lerp_(weight, 0.1)
        found = module.training_step((step, step + 1))["loss_bits"].item()
        assert found == pytest.approx(loss.item() / log(2), rel=1e-6)
    for mine, expected in zip(module.average.parameters(), averages, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-8)
        assert mine.grad_fn is None and not mine.requires_grad


def test_embeddings_are_decayed_on_request():
    sizes = []
    for decayed in (True, False):
        groups = prepare(replace(SMALL, decay_embeddings=decayed)).optimizer.param_groups
        assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
        sizes.append([len(group["params"]) for group in groups])
    assert sizes == [[12, 19], [9, 22]]


def test_ranges_of_steps_are_cut_anywhere():
    config = replace(SMALL, dropout=0.2, attention_dropout=0.1, recompute=True)
    one, other = prepare(config), prepare(config)
    for bounds in ((0, 1), (1, 3), (3, 5)):
        first = one.training_step(bounds)
    second = other.training_step((0, 5))
    assert torch.equal(first["loss_bits"], second["loss_bits"])
    assert all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True))


def test_pieces_of_a_batch_give_its_gradient():
    one, other = prepare(), prepare(replace(SMALL, microbatch=1))
    for step in range(3):
        losses = [module.training_step((step, step + 1))["loss_bits"] for module in (one, other)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    ends = [torch.cat([weight.flatten() for weight in module.weights]) for module in (one, other)]
    torch.testing.assert_close(*ends, rtol=0, atol=2e-3)
    keys = [one.keys(0, 0), prepare(replace(SMALL, attention_dropout=0.1)).keys(0, 1)]
    assert keys[0] == [] and len(set(keys[1])) == 2


def test_the_loss_scale_halves_and_doubles():
    scale = LossScale(patience=3)
    found = []
    for finite in (True, True, True, False, True, True, False, True, True, True):
        scale.update(torch.tensor(finite))
        found.append(scale.scale.item() / 2**16)
    assert found == [1, 1, 2, 1, 1, 1, 0.5, 0.5, 0.5, 1]
    assert LossScale().patience == 1000 and LossScale().scale == 65536


def test_an_overflow_skips_the_step_and_nothing_else():
    module = prepare(replace(SMALL, loss_scaling=True, ema_decay=0.0))
    module.training_step((0, 2))
    before = state(module)
    module.loss_scale.scale.fill_(2.0**127)
    module.training_step((2, 3))
    assert module.loss_scale.scale == 2.0**126 and module.loss_scale.good == 0
    module.loss_scale.scale.fill_(2.0**16)
    module.loss_scale.good.fill_(2)
    after = state(module)
    assert len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    module.training_step((3, 4))
    assert not torch.equal(state(module)[0], before[0])


def test_half_precision_trains_like_single():
    ends = {}
    for name, module in {
        "float32": prepare(),
        "bfloat16": prepare(precision="bfloat16"),
        "float16": prepare(replace(SMALL, loss_scaling=True)),
    }.items():
        first = module.training_step((0, 1))["loss_bits"].item()
        assert first == pytest.approx(log(6) / log(2), abs=1e-6)
        ends[name] = module.training_step((1, 20))["loss_bits"].item()
    assert ends["float32"] < 2.0
    assert ends["bfloat16"] == pytest.approx(ends["float32"], abs=0.1)
    assert ends["float16"] == pytest.approx(ends["float32"], abs=0.05)


def test_evaluation_scores_the_parts_and_the_test_split_at_the_end():
    module = prepare()
    module.training_step((0, 4))
    found = module.evaluate()
    assert set(found) == {"validation_bits", "train_bits"}
    spread = torch.from_numpy(corpus_of().validation[:48]).view(3, 16)
    assert found["validation_bits"] == pytest.approx(bits(module.average, spread, 16), rel=1e-6)
    module.step = 20
    assert module.evaluate()["validation_bits"] == found["validation_bits"] and "test_bits" in module.evaluate()
    whole = prepare(replace(SMALL, evaluation_items=0, min_context=8, ema_decay=0.0))
    whole.step = 20
    stream = torch.from_numpy(corpus_of().test)
    assert whole.evaluate()["test_bits"] == bits(whole.model, stream, 16, 8, 2)
    some = prepare(replace(SMALL, min_context=8))
    assert some.evaluate()["validation_bits"] == bits(some.average, torch.from_numpy(TEXT[240:288]), 16, 8, 2)


def test_a_grid_of_images_is_learned_from_items():
    images = np.tile(np.array([[0, 1], [2, 3]], dtype=np.uint8), (9, 2, 2)).reshape(9, 16)
    corpus = Corpus("items", images, images[:2], images[:2], 4, (4, 4, 1), "checks", "image")
    config = replace(SMALL, positions="data", clip=1.0)
    module = make_module(config, corpus, 0, Execution())
    assert module.training_step((0, 20))["loss_bits"].item() < 1.0
    assert module.evaluate().keys() == {"validation_bits", "train_bits"}


def test_the_time_of_a_step_leaves_evaluations_out(tmp_path):
    rows = [
        (10, 5.0, "train_loss_bits"),
        (20, 6.0, "train_loss_bits"),
        (20, 9.0, "validation_bits"),
        (30, 10.0, "train_loss_bits"),
    ]
    rows += [(40, 10.5, "train_loss_bits"), (45, 11.0, "train_loss_bits")]
    lines = ["step,samples,seconds,name,value", *(f"{step},0,{s},{name},1.0" for step, s, name in rows)]
    (tmp_path / "curves.csv").write_text("\n".join(lines) + "\n")
    assert seconds_per_step(tmp_path / "curves.csv") == pytest.approx(0.1)
    (tmp_path / "curves.csv").write_text("\n".join(lines[:2]) + "\n")
    assert seconds_per_step(tmp_path / "curves.csv") == pytest.approx(0.5)
