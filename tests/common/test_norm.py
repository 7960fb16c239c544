"""GhostBatchNorm2d equals separate forwards; the mode's effects; conversion."""

import pytest
import torch
from torch import nn

from common.models.norm import GhostBatchNorm2d, batch_norm_mode, can_group, convert_batch_norm

torch.set_num_threads(1)


def layers(features: int = 5, dtype: torch.dtype = torch.float64) -> tuple[GhostBatchNorm2d, nn.BatchNorm2d]:
    torch.manual_seed(0)
    ghost, plain = GhostBatchNorm2d(features, 1e-3, 0.05), nn.BatchNorm2d(features, 1e-3, 0.05)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    ghost.load_state_dict(plain.state_dict())
    return ghost.to(dtype), plain.to(dtype)


def separate(plain: nn.BatchNorm2d, parts: tuple[torch.Tensor, ...], update: str) -> torch.Tensor:
    outputs = []
    for i, part in enumerate(parts):
        recorded = update == "all" or (update == "first" and i == 0)
        with batch_norm_mode(plain, update="all" if recorded else "none"):
            outputs.append(plain(part))
    return torch.cat(outputs)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    for (name, x), (other, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("update", ["all", "first", "none"])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (3, 5, 4), (6,)])
@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_equals_separate_forwards(update, sizes, memory):
    ghost, plain = layers()
    x = torch.randn(sum(sizes), 5, 6, 7, dtype=torch.float64).to(memory_format=memory)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with batch_norm_mode(ghost, sizes, update):
        out = ghost(mine)
    expected = separate(plain, theirs.split(sizes), update)
    weights = torch.randn_like(expected)
    (out.sin() * weights).sum().backward()
    (expected.sin() * weights).sum().backward()
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ghost.weight.grad, plain.weight.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ghost.bias.grad, plain.bias.grad, rtol=1e-10, atol=1e-12)
    assert_same_state(ghost, plain)
    assert out.is_contiguous(memory_format=memory)


@pytest.mark.parametrize("update", ["all", "first", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_compiled_form_equals_the_native_one(update, dtype):
    # Parameters stay in float32 beside bf16 activations, as autocast has it.
    parameters = torch.float32 if dtype == torch.bfloat16 else dtype
    ghost, _ = layers(dtype=parameters)
    viewed, _ = layers(dtype=parameters)
    x = torch.randn(12, 5, 6, 7).to(dtype)
    with batch_norm_mode(ghost, 3, update):
        expected = ghost(x)
    out = viewed._as_view(x, 3, {"all": 3, "first": 1, "none": 0}[update])
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(viewed.running_mean, ghost.running_mean)
    torch.testing.assert_close(viewed.running_var, ghost.running_var)


def test_a_compiler_takes_the_whole_layer_in_one_graph():
    ghost, plain = layers()
    compiled = torch.compile(ghost, backend="eager", fullgraph=True)
    x = torch.randn(12, 5, 6, 7, dtype=torch.float64)
    with batch_norm_mode(ghost, 3, "first"):
        out = compiled(x)
    torch.testing.assert_close(out, separate(plain, x.split(4), "first"))
    assert_same_state(ghost, plain)


def test_evaluation_ignores_the_mode():
    ghost, plain = layers()
    x = torch.randn(7, 5, 3, 3, dtype=torch.float64)
    with batch_norm_mode(ghost.eval(), 3, "all"):
        torch.testing.assert_close(ghost(x), plain.eval()(x))
    assert_same_state(ghost, plain)


def test_mode_is_put_back_even_after_an_error():
    ghost, plain = layers()
    model = nn.Sequential(ghost.eval())
    with pytest.raises(RuntimeError), batch_norm_mode(model, 4, "none", training=True):
        assert (ghost.groups, ghost.update, ghost.training) == (4, "none", True)
        raise RuntimeError
    assert (ghost.groups, ghost.update, ghost.training) == (1, "all", False)
    with batch_norm_mode(plain, update="none"):
        plain(torch.randn(2, 5, 3, 3, dtype=torch.float64))
    assert plain.track_running_stats and plain.num_batches_tracked == 0 and plain.running_mean.abs().max() == 0


def test_misuse_is_refused():
    ghost, plain = layers()
    assert can_group(ghost) and can_group(nn.Linear(2, 2)) and not can_group(nn.Sequential(ghost, plain))
    with pytest.raises(ValueError, match="convert_batch_norm"), batch_norm_mode(plain, 2):
        pass
    with pytest.raises(ValueError, match="update"), batch_norm_mode(plain, 1, "some"):
        pass
    with pytest.raises(ValueError, match="do not divide"), batch_norm_mode(ghost, 2):
        ghost(torch.randn(3, 5, 2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="add up"), batch_norm_mode(ghost, (2, 2)):
        ghost(torch.randn(3, 5, 2, 2, dtype=torch.float64))


def test_conversion_keeps_tensors_and_sharing():
    shared = nn.BatchNorm2d(3)
    cumulative = nn.BatchNorm2d(3, momentum=None)
    model = nn.Sequential(
        shared, nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), shared), cumulative
    )
    parameters, state = list(model.parameters()), {k: v.clone() for k, v in model.state_dict().items()}
    model.eval()
    assert convert_batch_norm(model) is model
    assert model[0] is model[1][2] and type(model[0]) is GhostBatchNorm2d and type(model[1][1]) is GhostBatchNorm2d
    assert model[2] is cumulative and not model[0].training
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert state.keys() == model.state_dict().keys()
    assert type(convert_batch_norm(nn.BatchNorm2d(2))) is GhostBatchNorm2d
    model.train()(torch.randn(4, 3, 2, 2))
    assert model[0].num_batches_tracked == 2
