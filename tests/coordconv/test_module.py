"""The stacked module: equal to its members alone, exact where the spec is exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common import jobs
from common.jobs import StackSpec
from common.runs import Execution, RunSpec, Stackable, execute
from papers.coordconv.config import Config, TimeTo, steps_for, train_size
from papers.coordconv.data import NotSoClevr
from papers.coordconv.module import Supervised, first_step, make_module, seconds_per_step

SMALL = {"canvas": 8, "square": 3, "batch_size": 4, "steps_per_call": 2, "evaluation_batch_size": 12}
TASKS = {
    "coordconv": Config(**SMALL),
    "deconv": Config(network="deconv", kernel=2, **SMALL),
    "renderer": Config(task="rendering", loss="sigmoid", **SMALL),
    "regression": Config(task="regression", loss="mse", **SMALL),
}


def members(config: Config) -> tuple[list[Config], list[int]]:
    """Three runs of one shape that differ in everything that may differ."""
    changes = (
        {"learning_rate": 0.002, "l2": 0.0},
        {"learning_rate": 0.005, "l2": 0.001, "split": "quadrant"},
        {"learning_rate": 0.001, "l2": 0.01, "decay_every": 20},
    )
    return [replace(config, **change) for change in changes], [3, 4, 5]


def prepare(configs, seeds, dtype=torch.float32) -> Supervised:
    module = Supervised(configs, seeds, Execution()).to(dtype)
    module.configure_optimizers()
    module.on_fit_start()
    return module


@pytest.mark.parametrize("name", TASKS)
def test_stacked_losses_and_outputs_are_those_of_the_runs_alone(name):
    configs, seeds = members(TASKS[name])
    stack = prepare(configs, seeds)
    index = torch.arange(4)

    def outputs(module: Supervised) -> torch.Tensor:
        # A constant added to all logits changes nothing: its gradient is nothing but rounding.
        (found,) = module.stack(module.inputs(index.expand(module.size, -1)))
        return found.flatten(2).log_softmax(2) if module.config.task == "classification" else found

    losses = [stack.training_step((step, step + 1))["loss"] for step in range(3)]
    together = outputs(stack)
    for number in range(3):
        alone = prepare(configs[number : number + 1], seeds[number : number + 1])
        for step in range(3):
            expected = alone.training_step((step, step + 1))["loss"]
            torch.testing.assert_close(losses[step][number : number + 1], expected, rtol=1e-5, atol=1e-7)
        expected = outputs(alone)[0]
        assert (together[number] - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["coordconv", "deconv", "regression"])
def test_stacked_parameters_stay_those_of_the_runs_alone_for_fifty_steps(name):
    configs, seeds = (part[1:] for part in members(TASKS[name]))
    stack = prepare(configs, seeds, torch.float64)
    stack.training_step((0, 50))
    found = stack.evaluate()
    for number in range(2):
        alone = prepare(configs[number : number + 1], seeds[number : number + 1], torch.float64)
        alone.training_step((0, 50))
        for key, tensor in alone.stack.member(0).items():
            # A bias before BatchNorm has a gradient of nothing but rounding, which Adam blows up; its mean follows it.
            useless = name == "deconv" and ((key.startswith("convs") and tensor.dim() == 1) or "mean" in key)
            assert (stack.stack.member(number)[key] - tensor).abs().max() <= (1e-6 if useless else 1e-9)
        assert found[number] == pytest.approx(alone.evaluate()[0], abs=1e-6)


def test_a_member_that_diverges_leaves_the_others_untouched():
    configs, seeds = members(TASKS["deconv"])
    healthy, ill = prepare(configs, seeds), prepare(configs, seeds)
    with torch.no_grad():
        ill.stack.weights[1].fill_(float("nan"))
    first, second = healthy.training_step((0, 5))["loss"], ill.training_step((0, 5))["loss"]
    assert second[1].isnan()
    for number in (0, 2):
        assert first[number] == second[number]
        assert torch.equal(healthy.stack.weights[number], ill.stack.weights[number])
        assert healthy.evaluate()[number] == ill.evaluate()[number]


def test_uniform_logits_cost_the_logarithm_of_the_number_of_pixels():
    """Invariant 9."""
    module = make_module([Config()], [0], Execution())
    loss = module.data_loss(torch.zeros(1, 16, 64, 64), torch.arange(16)[None])
    assert loss.item() == pytest.approx(8.317766, abs=1e-5)


def test_the_learning_rate_falls_at_most_four_times():
    """Invariant 16."""
    per_epoch = steps_for(1, "uniform", 16)
    assert per_epoch == 157
    config = Config(learning_rate=0.01, decay_every=200 * per_epoch)
    rates = [config.learning_rate_at(epoch * per_epoch) for epoch in (0, 199, 200, 400, 600, 800, 1000, 5000)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-6, 1e-6], rel=1e-12)


def test_each_member_follows_its_own_schedule():
    configs, seeds = members(TASKS["coordconv"])
    module = prepare(configs, seeds)
    for step, expected in ((19, [0.002, 0.005, 0.001]), (20, [0.002, 0.005, 1e-4]), (99, [0.002, 0.005, 1e-7])):
        module.set_rates(step)
        assert [group["lr"] for group in module.optimizer.param_groups] == pytest.approx(expected)


def test_the_penalty_is_added_to_the_loss_and_counts_kernels_only():
    configs, seeds = members(TASKS["deconv"])
    module = prepare(configs, seeds, torch.float64)
    index = module.draw(range(1))[0]
    expected = []
    for number, config in enumerate(configs):
        kernels = [tensor for tensor in module.stack.member(number).values() if tensor.dim() > 1]
        expected.append(config.l2 * sum(float(kernel.square().sum()) for kernel in kernels))
    with_penalty = module.loss(index)
    data = module.data_loss(module.stack(module.inputs(index))[0], index)
    assert (with_penalty - data).tolist() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad((module.l2 * module.stack.penalty()).sum(), module.stack.weights)
    wanted = 2 * module.l2[:, None] * module.stack.weights * module.stack.kernel_mask
    torch.testing.assert_close(gradient, wanted)
    biases = [name for name, shape in module.stack.shapes.items() if len(shape) == 1]
    assert biases and module.stack.kernel_mask.sum() < module.stack.num_parameters


def test_one_step_is_adam_as_pytorch_writes_it():
    config = replace(TASKS["coordconv"], l2=0.01)
    module = make_module([config], [1], Execution())
    tensors = [tensor.clone().requires_grad_() for tensor in module.stack.member(0).values()]
    optimizer = torch.optim.Adam(tensors, config.learning_rate, betas=(0.9, 0.99), eps=1e-8)
    network, names = module.stack.network, list(module.stack.member(0))
    for step in range(3):
        index = module.draw(range(step, step + 1))[0]
        outputs = torch.func.functional_call(network, dict(zip(names, tensors, strict=True)), module.inputs(index)[0])
        penalty = sum(tensor.square().sum() for tensor in tensors if tensor.dim() > 1)
        loss = module.data_loss(outputs[None], index)[0] + 0.01 * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert module.training_step((step, step + 1))["loss"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_metrics_of_known_predictions():
    module = make_module([TASKS["coordconv"]], [0], Execution())
    predicted = module.data.centers.expand(1, -1, -1).clone()
    predicted[0, :, 0] += 3
    predicted[0, :, 1] -= 4
    found = {name: value.item() for name, value in module.averages(module.scores(predicted)).items()}
    assert found == {
        f"{side}_{name}": value
        for side in ("train", "test")
        for name, value in (("accuracy", 0.0), ("distance", 5.0), ("manhattan", 7.0))
    }
    pixels = make_module([TASKS["regression"]], [0], Execution())
    found = pixels.averages(pixels.scores(pixels.data.centers + torch.tensor([[[0.4, -0.3]]])))
    assert found["test_error"].item() == pytest.approx(0.5, abs=1e-5) and found["train_exact"].item() == 100.0


def test_regression_keeps_the_weights_with_the_lowest_training_loss():
    module = make_module([TASKS["regression"]] * 2, [0, 1], Execution())
    module.training_step((0, 30))
    before = module.evaluate()
    with torch.no_grad():
        module.stack.weights[0] *= 3
    assert module.evaluate()[0]["train_error"] != before[0]["train_error"]
    module.use_best()
    assert [found["test_error"] for found in module.evaluate()] == [found["test_error"] for found in before]


def spec_of(folder, seed: int, changes: dict, **more) -> RunSpec:
    config = {**SMALL, "steps": 12, "evaluate_every": 4, "checkpoint_every": 3, "log_every": 2, **changes}
    return RunSpec(
        "coordconv", "smoke", "experiment", "method", seed, "papers.coordconv.module:run", config,
        folder / "coordconv" / "smoke" / "experiment" / "method" / f"seed-{seed}", **more,
    )  # fmt: skip


def stacked(folder, changes: dict) -> StackSpec:
    stackable = Stackable("papers.coordconv.module:run_stack", "one")
    return StackSpec(tuple(spec_of(folder, seed, changes, stackable=stackable) for seed in (1, 2)))


def contents(folder) -> tuple[bytes, list[str]]:
    lines = (folder / "curves.csv").read_text().splitlines()
    rows = [",".join(line.split(",")[:2] + line.split(",")[3:]) for line in lines]
    return (folder / "weights.safetensors").read_bytes(), rows


@pytest.mark.parametrize("changes", [{"network": "deconv", "kernel": 2}, {"task": "regression", "loss": "mse"}])
def test_a_stack_that_is_stopped_and_resumed_ends_in_the_same_bits(tmp_path, changes):
    whole, broken = stacked(tmp_path / "whole", changes), stacked(tmp_path / "broken", changes)
    records = jobs.execute(whole)
    assert [record["status"] for record in records] == ["finished"] * 2

    def stop_early(job):
        reported = job.report
        job.report = lambda step, *more: setattr(job, "stop_requested", step >= 5) or reported(step, *more)

    first = jobs.execute(broken, on_open=stop_early)
    assert [record["status"] for record in first] == ["stopped"] * 2
    again = jobs.execute(broken)
    assert [record["metrics"] for record in again] == [record["metrics"] for record in records]
    assert all(record["resumed"] and record["stacked"] == 2 for record in again)
    for one, other in zip(whole.runs, broken.runs, strict=True):
        assert contents(one.folder) == contents(other.folder)


def test_a_run_leaves_weights_and_predictions(tmp_path):
    spec = spec_of(tmp_path, 7, {"task": "rendering", "loss": "mse"})
    record = execute(spec)
    assert record["status"] == "finished", record["error"]
    assert 0 <= record["metrics"]["test_rendering_iou"] <= 1 and record["metrics"]["parameters"] > 0
    found = np.load(spec.folder / "artifacts" / "predictions.npz")
    assert found["painted"].shape == found["targets"].shape == (8, 8, 8) and found["in_train"].sum() == 29
    assert first_step(spec.folder / "curves.csv", "test_rendering_iou", 0.0) == 4
    assert first_step(spec.folder / "curves.csv", "test_rendering_iou", 2.0) is None


def test_times_until_a_target(tmp_path):
    needs = {"method": spec_of(tmp_path, 1, {}), "baseline": spec_of(tmp_path, 2, {"network": "deconv", "kernel": 2})}
    for need in needs.values():
        execute(need)

    def compare(name: str) -> dict:
        spec = RunSpec(
            "coordconv", "smoke", "time-to", name, 1, "papers.coordconv.module:run_time_to", {"target": 100.0},
            tmp_path / name, needs=needs, exclusive=True,
        )  # fmt: skip
        record = execute(spec)
        assert record["status"] == "finished", record["error"]
        return record["metrics"]

    def reach(need: RunSpec, step: int) -> None:
        with open(need.folder / "curves.csv", "a", encoding="utf-8") as file:
            file.write(f"{step},0,0.0,test_accuracy,100.0\n")

    neither = compare("neither")
    assert "time_ratio" not in neither and neither["baseline_seconds"]["high"] is None
    reach(needs["method"], 4)
    one = compare("one")
    assert one["method_seconds"] == pytest.approx(4e-3 * one["method_step_ms"]) and one["time_ratio"]["high"] is None
    assert one["time_ratio"]["low"] == pytest.approx(3 * one["baseline_step_ms"] / one["method_step_ms"])
    reach(needs["baseline"], 8)
    both = compare("both")
    assert both["time_ratio"] == pytest.approx(both["baseline_seconds"] / both["method_seconds"])


def test_the_probe_times_a_stack():
    assert seconds_per_step({**SMALL, "seed": 3}, 2, Execution()) > 0


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(TypeError, match="epochs"):
        Config.of({"epochs": 3})
    for wrong in (
        {"network": "transformer"},
        {"loss": "mse"},
        {"learning_rate": 0.0},
        {"square": 4},
        {"steps": 0},
        {"beta2": 1.0},
        {"centre_loss": "mse"},
    ):
        with pytest.raises(ValueError):
            Config.of(wrong)
    with pytest.raises(ValueError, match="target"):
        TimeTo.of({"target": 0})
    with pytest.raises(TypeError, match="level"):
        TimeTo.of({"level": 3})
    with pytest.raises(ValueError, match="shape"):
        Supervised([TASKS["coordconv"], TASKS["deconv"]], [0, 1], Execution())


@pytest.mark.parametrize(("canvas", "square"), [(64, 9), (32, 5)])
@pytest.mark.parametrize("split", ["uniform", "quadrant", "quadrant-released"])
def test_train_sizes_are_the_data_sets(canvas, square, split):
    assert train_size(split, canvas, square) == len(NotSoClevr(canvas, square).split(split, 0)[0])
