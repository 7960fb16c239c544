"""The measurements measure what they say."""

from types import SimpleNamespace

import pytest
import torch

from common.runs import Execution, Stopped
from papers.sparse_transformer import measure
from papers.sparse_transformer.measure_config import Context, Iteration, Length, Memory, Speed
from papers.sparse_transformer.method import Pattern


def place(stop: bool = False):
    """What a measurement needs of a run's folder."""
    return SimpleNamespace(execution=Execution(), stop_requested=stop, report=lambda *_: None, data_dir=None)


def test_the_slope_of_a_power_is_its_exponent():
    assert measure.slope([4, 16, 64], [n**1.5 for n in (4, 16, 64)]) == pytest.approx(1.5)


def test_actions_are_timed_in_turns_after_one_round_that_does_not_count():
    order: list[str] = []
    actions = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = measure.in_turns(actions, 3, place(), {"a": 2})
    assert "".join(order) == "ab" + "aab" * 3
    assert [len(found) for found in times.values()] == [3, 3]
    with pytest.raises(Stopped):
        measure.in_turns(actions, 1, place(stop=True))


@pytest.mark.parametrize("pattern", [Pattern("strided", 7), Pattern("fixed", 7, 2)])
def test_both_paths_are_given_the_same_inputs_and_agree(pattern):
    case = measure.Attending(pattern, 40, 2, 8, 3, "cpu")
    for fast, plain in zip(case.passes(case.sparse), case.passes(case.masked()), strict=True):
        assert torch.allclose(fast, plain, atol=2e-6)
    assert not torch.allclose(case.passes(case.sparse)[0], case.passes(measure.causal)[0], atol=1e-3)


def test_speed_gives_every_ratio_with_its_spread():
    config = {"pattern": "fixed", "summary": 2, "sizes": [16, 64, 144], "heads": [1, 1, 2], "calls": [2, 1, 1]}
    found = measure.speed({**config, "head_size": 8, "dense_limit": 64, "repeats": 3, "seed": 1000}, place(), {})
    ratios = {f"{way}_ratio_{n}" for way in ("masked", "causal") for n in (16, 64)}
    times = {f"sparse_ms_{n}" for n in (16, 64, 144)}
    assert set(found) == {"largest_difference", "slope", "causal_slope", *ratios, *times}
    assert all(found[name]["n"] == 3 and found[name]["mean"] > 0 for name in ratios | times)


def test_the_peak_of_memory_is_noticed_after_it_has_passed():
    measure.forget_peak()
    before = measure.peak_memory()
    torch.ones(60_000_000)  # 240 MB, given back at once
    assert 0.2e9 < measure.peak_memory() - before < 0.4e9


@pytest.mark.parametrize("layers", [0, 2])
def test_length_counts_what_comes_with_the_pass(layers):
    config = {"context": 1 << 14, "stride": 128, "width": 16, "layers": layers, "seed": 1000}
    found = measure.length(config, place(), {})
    # 0 where the pass fits into memory that the process had before.
    assert 0 <= found["working_gb"] < 0.4 and found["working_gb"] < found["peak_gb"]
    assert found["step_seconds"] > 0


def test_invariant_14_a_further_layer_keeps_one_tensor_of_n_by_d():
    tiny = {"context": 128, "stride": 16, "width": 16, "seed": 1000}
    assert measure.memory_per_layer(tiny, place(), {}) == {"layer_tensors": 1}
    assert measure.memory_per_layer({**tiny, "pattern": "dense"}, place(), {}) == {"layer_tensors": 1}
    assert measure.memory_per_layer({**tiny, "recompute": False}, place(), {})["layer_tensors"] > 8


def test_settings_that_make_no_sense_are_refused():
    for settings, config in (
        (Speed, {"pattern": "dense"}),
        (Speed, {"sizes": [64]}),
        (Length, {"context": 0}),
        (Length, {"layers": 2, "heads": 3}),
        (Context, {"min_context": 0}),
        (Memory, {"layers": 0}),
        (Iteration, {"methods": {"strided": {}}}),
        (Iteration, {"methods": {"dense": {"pattern": "dense"}, "fixed": {"pattern": "fixed"}}}),
    ):
        with pytest.raises(ValueError):
            settings.of(config)
        with pytest.raises(TypeError, match="unknown settings: nonsense"):
            settings.of({"nonsense": 1})
