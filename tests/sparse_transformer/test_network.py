"""The network: the spec's counts, initialisation, embeddings, causality and recomputation."""

from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from common.errors import UserError
from common.random import Stream, seeded
from papers.sparse_transformer import network
from papers.sparse_transformer.config import Config
from papers.sparse_transformer.network import SparseTransformer, gelu

CIFAR = Config()
ENWIK8 = Config(
    data="enwik8", context=12_288, pattern="fixed", summary=32, stride=128, layers=30, width=512, heads=8,
    feedforward=4, query_width=1, positions="attention", dropout=0.4,
)  # fmt: skip
IMAGENET = Config(data="imagenet64", context=12_288, stride=128, layers=48, width=512, heads=16, feedforward=4,
                  query_width=1, dropout=0.01)  # fmt: skip
SMALL = Config(
    data="python", context=24, stride=4, layers=2, width=8, heads=2, feedforward=2, positions="attention", dropout=0.0,
    recompute=False,
)  # fmt: skip
PATTERNS = {
    "dense": {"pattern": "dense"},
    "local": {"pattern": "local"},
    "strided": {},
    "strided-heads": {"combine": "heads", "inclusive": False},
    "strided-interleaved": {"combine": "interleaved", "cycle": ("columns", "window")},
    "fixed": {"pattern": "fixed", "summary": 1, "rotate": True},
    "fixed-heads": {"pattern": "fixed", "summary": 2, "combine": "heads"},
    "fixed-interleaved": {"pattern": "fixed", "summary": 1, "combine": "interleaved"},
    "cubic": {"pattern": "cubic", "stride": 3},
}


def build(config: Config, vocabulary: int = 11, grid: tuple[int, ...] | None = None, seed: int = 3):
    """A network whose output is not 0."""
    with seeded(Stream(seed, "initialisation")):
        model = SparseTransformer(config, vocabulary, grid)
        model.head.weight.data.normal_(0, 0.3)
    return model


def some_tokens(batch: int, n: int, vocabulary: int = 11) -> torch.Tensor:
    return Stream(5, "tokens").integers(torch.arange(batch), n, vocabulary)


@pytest.mark.parametrize(
    ("config", "grid", "per_block", "total"),
    [
        (CIFAR, (32, 32, 3), 461_312, 59_196_928),
        (ENWIK8, None, 3_152_384, 94_949_888),
        (IMAGENET, (64, 64, 3), 3_152_384, 151_645_184),
        (replace(IMAGENET, layers=96), (64, 64, 3), 3_152_384, 302_959_616),
    ],
)
def test_parameter_counts(config, grid, per_block, total):
    """Invariant 9."""
    with torch.device("meta"):
        model = SparseTransformer(config, 256, grid)
    assert sum(tensor.numel() for tensor in model.blocks[0].parameters()) == per_block
    assert sum(tensor.numel() for tensor in model.parameters()) == total


def test_the_activation():
    """Invariant 8."""
    found = gelu(torch.tensor([-3.0, -1.0, 0.5, 1.0, 3.0]))
    expected = torch.tensor([-0.018071, -0.154204, 0.350388, 0.845796, 2.981929])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("full", "grid", "token", "table", "linear"),
    [
        (CIFAR, (32, 32, 3), 0.0078125, 0.0045105, 0.0220971),
        (ENWIK8, None, 0.0055243, 0.0039063, 0.015625),
    ],
)
def test_standard_deviations_at_the_start(full, grid, token, table, linear):
    """Invariant 10: a block's weights depend on the number of layers, so the deep factor is put in by hand."""
    config = replace(full, layers=1)
    with seeded(Stream(0, "initialisation")):
        model = SparseTransformer(config, 256, grid)

    def check(tensor: torch.Tensor, expected: float) -> None:
        assert tensor.std().item() == pytest.approx(expected, rel=0.03) and abs(tensor.mean().item()) < expected / 20

    check(model.tokens.weight, token)
    check(torch.cat([*model.tables]), table)
    attention, feedforward = model.blocks[0].attention, model.blocks[0].feedforward
    check(attention.qkv.weight, linear)
    check(feedforward.inner.weight, linear)
    check(attention.output.weight, linear / sqrt(2))
    check(feedforward.outer.weight, linear / sqrt(full.feedforward) / sqrt(2))
    assert all(not linear.bias.any() for linear in (attention.qkv, attention.output, feedforward.inner))
    assert not model.head.weight.any() and (model.norm.eps, model.blocks[0].norm1.eps) == (1e-6, 1e-5)


def test_the_residual_factor_and_the_papers_initialisation():
    """Invariant 10: 0.0625 at N = 128, 0.1290994 at N = 30."""
    for layers, factor in ((128, 0.0625), (30, 0.1290994)):
        plain = replace(SMALL, layers=layers, width=16, scaled_residual=False)
        models = [build(replace(plain, scaled_residual=scaled)) for scaled in (False, True)]
        for part in ("attention.output", "feedforward.outer", "attention.qkv"):
            one, other = (model.blocks[layers - 1].get_submodule(part).weight for model in models)
            torch.testing.assert_close(other, one * (factor if "qkv" not in part else 1.0), rtol=1e-5, atol=0)
    code, paper = (build(replace(SMALL, width=64, init=init)) for init in ("code", "paper"))
    ratio = paper.blocks[0].attention.qkv.weight / code.blocks[0].attention.qkv.weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, sqrt(0.125)))


@pytest.mark.parametrize("name", ["strided", "fixed"])
def test_the_first_loss_is_the_logarithm_of_the_vocabulary(name):
    """Invariant 10."""
    model = SparseTransformer(replace(SMALL, **PATTERNS[name]), 256)
    nats = model.nats(some_tokens(2, 24, 256))
    assert nats.shape == (2, 24) and torch.equal(nats, nats[:1, :1].expand(2, 24))
    assert nats[0, 0].item() == pytest.approx(log(256), abs=1e-6) == pytest.approx(5.545177, abs=1e-6)


def test_positions_of_tokens():
    """Invariant 12."""
    with torch.device("meta"):
        image = SparseTransformer(replace(CIFAR, layers=1), 256, (32, 32, 3))
        text = SparseTransformer(replace(ENWIK8, layers=1), 256)
    assert image.coordinates(100) == (1, 1, 1) and image.coordinates(3071) == (31, 31, 2)
    assert text.coordinates(12_287) == (95, 127) and text.coordinates(130) == (1, 2)
    assert [len(table) for table in image.tables] == [32, 32, 3] and [len(table) for table in text.tables] == [96, 128]


@pytest.mark.parametrize("shift", ["code", "aligned"])
@pytest.mark.parametrize("positions", ["data", "attention", "linear", "none"])
def test_slots_carry_the_token_before_and_a_position(shift, positions):
    config = replace(SMALL, shift=shift, positions=positions)
    model = build(config, grid=(3, 4, 2) if positions == "data" else None)
    tokens = some_tokens(2, 24)
    slots = model.embed(tokens)
    rows = model.positions(24)
    rows = torch.zeros(24, 8) if rows is None else rows
    for t in range(24):
        at = model.embed_token(tokens[:, t - 1] if t else None, t)
        torch.testing.assert_close(at.expand(2, -1), slots[:, t])
        carried = model.start if t == 0 else model.tokens(tokens[:, t - 1])
        position = rows[t] if shift == "aligned" else rows[t - 1] * (t > 0)
        torch.testing.assert_close(slots[:, t], (carried + position).expand(2, -1))
    if positions == "data":
        expected = model.tables[0][2] + model.tables[1][1] + model.tables[2][1]
        torch.testing.assert_close(rows[2 * 8 + 1 * 2 + 1], expected)


def test_a_grey_image_has_tables_for_rows_and_columns_alone():
    assert SparseTransformer(replace(SMALL, positions="data"), 4, (4, 6, 1)).axes == (4, 6)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_no_logits_depend_on_their_own_token_or_later_ones(name, plain):
    """Invariant 7."""
    model = build(replace(SMALL, plain=plain, **PATTERNS[name])).double().eval()
    tokens = some_tokens(1, 23)
    # Row r of the batch has token r changed.
    changed = tokens.repeat(24, 1)
    changed[:23] = (changed[:23] + torch.eye(23, dtype=torch.int64)) % 11
    with torch.no_grad():
        logits = model(changed)
    moved = (logits[:23] - logits[23]).abs().amax(-1) > 1e-12
    assert not moved.tril().any(), "row t: token t changed; column: where logits moved"
    assert moved[torch.arange(22), torch.arange(1, 23)].all()


@pytest.mark.parametrize("name", PATTERNS)
def test_the_fast_path_is_the_masked_one(name):
    config = replace(SMALL, **PATTERNS[name])
    fast, plain = build(config).double(), build(replace(config, plain=True)).double()
    tokens = some_tokens(2, 22)
    losses = [model.nats(tokens).mean() for model in (fast, plain)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)
    for loss in losses:
        loss.backward()
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("attention_dropout", [0.0, 0.3])
@pytest.mark.parametrize("half", [False, True])
def test_recomputation_changes_neither_loss_nor_gradients(attention_dropout, half):
    """Invariant 14, first half."""
    config = replace(SMALL, dropout=0.3, attention_dropout=attention_dropout)
    results = []
    for recompute in (False, True):
        model = build(replace(config, recompute=recompute))
        with seeded(Stream(7, "dropout")), torch.autocast("cpu", torch.bfloat16, half, cache_enabled=False):
            loss = model.nats(some_tokens(3, 24), [5, 6]).mean()
        loss.backward()
        results.append([loss, *(tensor.grad for tensor in model.parameters() if tensor.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert len(results[0]) > 20


def saved_bytes(config: Config, batch: int, n: int) -> int:
    """Bytes of all distinct tensors that a forward pass keeps for the backward pass, weights left out."""
    model = build(config)
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.nats(some_tokens(batch, n)).mean()
    assert loss.requires_grad and alive
    return sum(kept.values())


def test_each_further_layer_keeps_its_input_alone():
    """Invariant 14, second half: n d bytes a layer of what is stored for the backward pass."""
    config, batch, n = replace(SMALL, recompute=True, dropout=0.1), 2, 24
    sizes = [saved_bytes(replace(config, layers=layers), batch, n) for layers in (2, 3, 6)]
    one = batch * n * config.width * 4
    assert sizes[1] - sizes[0] == one and sizes[2] - sizes[1] == 3 * one
    without = [saved_bytes(replace(config, layers=layers, recompute=False), batch, n) for layers in (2, 3)]
    assert without[1] - without[0] > 8 * one


def test_long_sequences_make_their_logits_in_pieces(monkeypatch):
    tokens, results = some_tokens(3, 23), []
    for at_once in (network.LOGITS_AT_ONCE, 11 * 10):
        monkeypatch.setattr(network, "LOGITS_AT_ONCE", at_once)
        model = build(SMALL).double()
        nats = model.nats(tokens)
        nats.mean().backward()
        results.append([nats, *(tensor.grad for tensor in model.parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-14)


def test_what_fits_nowhere_is_said():
    with pytest.raises(UserError, match="images"):
        SparseTransformer(replace(SMALL, positions="data"), 4)
    with pytest.raises(UserError, match="24"):
        SparseTransformer(replace(SMALL, positions="data"), 4, (2, 2, 3))
    with pytest.raises(ValueError, match="context"):
        build(SMALL)(some_tokens(1, 25))
    with pytest.raises(UserError, match=r"settings\.json"):
        network.load_model("nowhere")


def test_settings_that_make_no_sense_are_refused():
    for wrong in (
        {"heads": 3},
        {"query_width": 0.3},
        {"feedforward": 0.0},
        {"pattern": "round"},
        {"pattern": "dense", "combine": "heads"},
        {"combine": "heads", "heads": 1},
        {"cycle": ("window",)},
        {"combine": "interleaved", "cycle": ("block",)},
        {"pattern": "fixed"},
        {"summary": 3},
        {"dropout": 1.0},
        {"context": 0},
        {"min_context": 3072},
        {"microbatch": 5},
        {"learning_rate": 0.0},
        {"clip": float("nan")},
    ):
        with pytest.raises(ValueError):
            Config.of(wrong)
    with pytest.raises(TypeError, match="layer"):
        Config.of({"layer": 3})
    assert Config.of({"combine": "interleaved", "cycle": ["columns", "window"], "seed": 1}).cycle == (
        "columns",
        "window",
    )
