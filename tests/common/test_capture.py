"""Replayed steps are the eager steps: on a stand-in for a GPU that, like one, runs nothing while it records."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.capture import WARM_UP_CALLS, StepGraph
from common.runs import Execution
from common.trainer import autocast
from papers.mixmatch.bench import digits_config, make_module
from papers.mixmatch.data import load_split


class FakeCapture:
    """Recording leaves every state tensor as it was; a replay runs the function on whatever the static inputs hold and
    writes the outputs where the recording put them."""

    def __init__(self, state: Callable[[], list[Tensor]]):
        self.state, self.log = state, []

    def warm_up(self, function):
        self.log.append("eager")
        return function()

    def record(self, function):
        self.log.append("record")
        before = [tensor.detach().clone() for tensor in self.state()]
        outputs = function()
        with torch.no_grad():
            for tensor, value in zip(self.state(), before, strict=True):
                tensor.copy_(value)

        def replay() -> None:
            self.log.append("replay")
            for name, value in function().items():
                outputs[name].copy_(value)

        return replay, outputs


def test_every_call_is_one_step():
    total = torch.zeros(2)
    fake = FakeCapture(lambda: [total])
    graph = StepGraph(lambda inputs: {"total": total.add_(inputs["x"]).clone()}, fake)
    expected = torch.zeros(2)
    for i in range(7):
        x = torch.tensor([1.0, 2.0]) * i
        expected += x
        torch.testing.assert_close(graph({"x": x})["total"], expected)
        x.zero_()  # the caller may reuse its tensors
    torch.testing.assert_close(total, expected)
    assert fake.log == ["eager"] * WARM_UP_CALLS + ["record"] + ["replay"] * (7 - WARM_UP_CALLS)


def test_without_a_capture_it_is_the_function():
    graph = StepGraph(lambda inputs: {"double": 2 * inputs["x"]})
    for size in (1, 2, 3, 4, 5):
        assert graph({"x": torch.ones(size)})["double"].tolist() == [2.0] * size


@pytest.mark.parametrize("other", [{"x": torch.ones(3)}, {"x": torch.ones(2).double()}, {"y": torch.ones(2)}, {}])
def test_other_inputs_than_the_recorded_are_refused(other):
    graph = StepGraph(lambda inputs: {"double": 2 * inputs["x"]}, FakeCapture(list))
    for _ in range(WARM_UP_CALLS + 1):
        graph({"x": torch.ones(2)})
    with pytest.raises(ValueError, match="recorded step"):
        graph(other)


def whole_state(module) -> list[Tensor]:
    state = module.optimizer.state
    return [*module.state_dict().values(), *(state[p][k] for p in module.parameters_ for k in state[p])]


@pytest.mark.parametrize("changes", [{}, {"guess_with": "ema"}, {"method": "mean-teacher"}, {"method": "vat"}])
def test_a_captured_training_equals_the_eager_one(changes):
    config = digits_config(batch_size=8, unlabeled_batch_size=8, **changes)
    split = load_split(config, 0, None)
    eager, captured = (make_module(config, split, Execution()) for _ in range(2))
    captured.one_step = StepGraph(captured.optimise, FakeCapture(lambda: whole_state(captured)))
    for bounds in ((0, 2), (2, 7), (7, 8)):
        outputs, replayed = eager.training_step(bounds), captured.training_step(bounds)
        assert outputs.keys() == replayed.keys()
        assert all(torch.equal(outputs[name], replayed[name]) for name in outputs)
    assert all(torch.equal(a, b) for a, b in zip(whole_state(eager), whole_state(captured), strict=True))
    assert eager.model.body[1].num_batches_tracked == 8


def test_shorter_precision_follows_the_weights_within_one_range_of_steps():
    # Lightning's autocast lies around the range; converted weights must not outlive the step that changes them.
    config = digits_config(batch_size=8, unlabeled_batch_size=8)
    split = load_split(config, 0, None)
    execution = Execution(precision="bfloat16")
    together, single = (make_module(config, split, execution) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        together.training_step((0, 4))
    for step in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            single.training_step((step, step + 1))
    assert all(torch.equal(a, b) for a, b in zip(whole_state(together), whole_state(single), strict=True))
    assert all(p.dtype == torch.float32 for p in together.parameters())


def test_autocast_is_off_in_full_precision():
    with autocast(Execution()):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(Execution(precision="bfloat16")):
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()
