"""Training: whose gradient moves what, what D sees, the VAE's loss, and runs that resume bit-equal."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.runs import Execution, RunSpec, execute, read_record
from papers.coordconv.gan.config import Config
from papers.coordconv.gan.experiments import LSUN_METHODS, RUN, SMOKE, TINY, TWO, VAE
from papers.coordconv.gan.module import GAN, Generative, load_images
from papers.coordconv.gan.module import VAE as Autoencoder
from tests import faults, toy
from tests.faults import Fault

METHODS = {experiment.name: experiment for experiment in SMOKE}


def built(experiment: str, method: str, **changes: Any) -> Generative:
    """The module of a smoke run, ready to take steps."""
    found = METHODS[experiment]
    config = Config.of({**found.config, **found.methods[method], **changes})
    model = GAN if config.model == "gan" else Autoencoder
    module = model(config, load_images(config, 0, None), 0, Execution())
    module.configure_optimizers()
    module.on_fit_start()
    return module


def state(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_invariant_15_one_step_of_d_two_of_g_and_g_never_moves_d() -> None:
    module = built(TWO, "coordconv")
    steps = []
    wrapped = module.generator_step

    def watched(z: Tensor, other: Tensor | None) -> Tensor:
        before, moving = state(module.discriminator), state(module.generator)
        loss = wrapped(z, other)
        assert equal(before, state(module.discriminator)), "a step of G moved D"
        assert not equal(moving, state(module.generator))
        steps.append(z)
        return loss

    module.generator_step = watched
    before = state(module.generator)
    draws = {name: tensor[0] for name, tensor in module.draw(range(1)).items()}
    module.discriminator_step(module.images.gather(draws["index"]), draws["z"])
    assert equal(before, state(module.generator)), "the step of D moved G"
    module = built(TWO, "coordconv")
    module.generator_step, wrapped = watched, module.generator_step
    module.training_step((0, 1))
    assert {int(entry["step"]) for entry in module.g_optimizer.state.values()} == {2}
    assert {int(entry["step"]) for entry in module.d_optimizer.state.values()} == {1}
    assert len(steps) == 2 and torch.equal(steps[0], steps[1]), "two steps on the same z"
    group = module.g_optimizer.param_groups[0]
    assert group["betas"] == (0.9, 0.99) and group["lr"] == 5e-4 and module.d_optimizer.param_groups[0]["lr"] == 1e-4


def test_losses_are_those_of_the_paper() -> None:
    module = built(TWO, "gan-features")
    draws = {name: tensor[0] for name, tensor in module.draw(range(1)).items()}
    real, z, other = module.images.gather(draws["index"]), draws["z"], module.images.gather(draws["other"])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    with torch.no_grad():
        fake = torch.tanh(module.generator(z))
        on_real, on_fake = module.discriminator(real), module.discriminator(fake)
        expected = entropy(on_real, torch.ones(4)) + entropy(on_fake, torch.zeros(4))
    assert module.discriminator_step(real, z) == pytest.approx(expected.item(), rel=1e-5)
    with torch.no_grad():
        fake = torch.tanh(module.generator(z))
        distance = (module.discriminator.features(other) - module.discriminator.features(fake)).abs().mean()
        expected = entropy(module.discriminator(fake), torch.ones(4)) + distance
    assert module.generator_step(z, other) == pytest.approx(expected.item(), rel=1e-5)
    assert not torch.equal(draws["index"], draws["other"])


def test_d_sees_a_coordconv_generator_before_its_tanh() -> None:
    z = torch.rand(2, 8)
    for method, raw in (("coordconv", True), ("coordconv-tanh", False), ("gan", False)):
        module = built(TWO, method)
        output = module.generator(z)
        assert torch.equal(module.fake(z), output if raw else torch.tanh(output))
        assert torch.equal(module.squash(output), torch.tanh(output)), "saved samples are squashed"


def test_batch_norm_sees_real_and_generated_images_apart() -> None:
    module = built(TWO, "coordconv")
    seen = []
    module.discriminator.register_forward_hook(lambda *arguments: seen.append(arguments[1][0].shape[0]))
    module.training_step((0, 1))
    assert seen == [4, 4, 4, 4], "real, fake, and the two steps of G: batches of their own"


def test_ranges_of_steps_may_be_cut_anywhere() -> None:
    ends = []
    for cuts in ((0, 4), (0, 1, 4)):
        module = built(TWO, "coordconv-features")
        for bounds in pairwise(cuts):
            module.training_step(bounds)
        ends.append(module.state_dict())
    assert equal(*ends)


def test_the_vae_minimises_the_negative_evidence_bound() -> None:
    module = built(VAE, "coordconv", latent=3)
    draws = {name: tensor[0] for name, tensor in module.draw(range(1)).items()}
    x = module.images.gather(draws["index"])
    with torch.no_grad():
        mean, log_variance = module.encoder(x)
        posterior = torch.distributions.Normal(mean, torch.exp(log_variance / 2))
        logits = module.generator(mean + posterior.stddev * draws["noise"])
        likelihood = torch.distributions.Bernoulli(logits=logits).log_prob((x > 0).float()).sum((1, 2, 3)).mean()
        divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    losses = module.iterate(draws)
    assert losses["reconstruction"] == pytest.approx(-likelihood.item(), rel=1e-4)
    assert losses["kl"] == pytest.approx(divergence.item(), rel=1e-3)
    begin, end = module.path_ends(2)
    path = module.paths().view(2, 4, 3)
    torch.testing.assert_close(path[:, 0], begin)
    torch.testing.assert_close(path[:, -1], end)
    assert torch.equal(module.squash(logits), torch.tanh(logits / 2))


@pytest.mark.parametrize(("experiment", "method"), [(e.name, m) for e in SMOKE for m in e.methods])
def test_every_smoke_run_finishes_with_its_measures(experiment: str, method: str, tmp_path: Path) -> None:
    found = METHODS[experiment]
    config = {**found.config, **found.methods[method], "steps": 2, "evaluate_every": 2, "log_every": 2}
    record = execute(spec_of(tmp_path / method, experiment, config))
    assert record["status"] == "finished", record["error"]
    expected = {"pixel_std", "entropy_blue", "step_variance", "kept_mass", "path_length", "right_objects"}
    assert expected | {"data_entropy_blue"} <= set(record["metrics"])
    assert record["metrics"]["pixel_std"] > 0, "images depend on their latent vectors"
    assert ("entropy_difference" in record["metrics"]) == (experiment == TWO)
    with np.load(tmp_path / method / "seed-1000" / "artifacts" / "gan.npz") as arrays:
        assert arrays["samples"].shape == (32, 16, 16, 3) and arrays["paths"].shape == (8, 16, 16, 3)
        assert arrays["centers"].shape == (32, 2 if experiment == TWO else 1, 2)


def test_lsun_trains_on_a_folder_and_says_what_is_missing(tmp_path: Path) -> None:
    config = {**TINY, **LSUN_METHODS["coordconv"], "steps": 2, "dataset": "lsun-bedrooms"}
    record = execute(spec_of(tmp_path / "without", "gan-lsun", config, data_dir=tmp_path))
    assert record["status"] == "failed" and "there is no folder" in record["error"]
    (tmp_path / "lsun-bedrooms").mkdir()
    for i in range(4):
        Image.new("RGB", (20 + i, 20), (60 * i, 0, 0)).save(tmp_path / "lsun-bedrooms" / f"{i}.png")
    record = execute(spec_of(tmp_path / "with", "gan-lsun", config, data_dir=tmp_path))
    assert record["status"] == "finished", record["error"]
    assert set(record["metrics"]) == {"pixel_std", "data_pixel_std"}


def spec_of(folder: Path, experiment: str, config: Mapping[str, Any], data_dir: Path | None = None) -> RunSpec:
    return RunSpec(
        "coordconv", "smoke", experiment, folder.name, 1000, RUN, config, folder / "seed-1000", data_dir=data_dir
    )


# Eight steps in ranges of two, a checkpoint after each, evaluations at 4 and 8.
MODULE = "papers.coordconv.gan.module"
CHAINS = {
    (TWO, "coordconv-d"): [Fault(f"{MODULE}:GAN.generator_step", 7, "after"), Fault("os:replace", 9)],
    (VAE, "coordconv"): [Fault(f"{MODULE}:Generative.evaluate", 2)],
}


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(("experiment", "method"), CHAINS)
def test_a_killed_run_ends_as_an_undisturbed_one(experiment: str, method: str, tmp_path: Path) -> None:
    config = {**METHODS[experiment].config, **METHODS[experiment].methods[method]}
    whole, spec = (spec_of(tmp_path / name / "run", experiment, config) for name in ("whole", "killed"))
    assert faults.run_with(whole) == 0
    for fault in CHAINS[experiment, method]:
        assert faults.run_with(spec, fault) == -9, f"{fault} was not reached"
    assert faults.run_with(spec) == 0
    assert toy.end_state(spec.folder) == toy.end_state(whole.folder)
    record = read_record(spec.folder)
    assert record is not None and record["status"] == "finished" and record["resumed"]
    arrays = [np.load(folder / "artifacts" / "gan.npz") for folder in (whole.folder, spec.folder)]
    assert all(np.array_equal(arrays[0][name], arrays[1][name], equal_nan="centers" in name) for name in arrays[0])
