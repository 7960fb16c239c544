"""Classification with an extra front layer: the networks, the batched resampling, the folders and exact resuming."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from common.random import Stream
from common.runs import Folder, RunSpec, execute
from papers.coordconv.imagenet import data, experiments
from papers.coordconv.imagenet.config import Config
from papers.coordconv.imagenet.data import ImageNet, Shapes, read_image, shape_masks, write_miniature
from papers.coordconv.imagenet.networks import build
from papers.coordconv.imagenet.resample import MEAN, STD, centre_crops, random_crops, resample, weights
from tests import toy

CPU = torch.device("cpu")
SMOKE = {experiment.name: experiment for experiment in experiments.EXPERIMENTS["smoke"]}
RESNET = Config.of({**SMOKE["imagenet"].config, "front": "conv"})


def spec_of(experiment: str, folder: Path, method: str = "coordconv", **changes) -> RunSpec:
    found = SMOKE[experiment]
    config = {**found.config, **found.methods[method], **changes}
    return RunSpec("coordconv", "smoke", experiment, method, 1000, experiments.RUN, config, folder)


# ---------------------------------------------------------------- networks and settings


def test_the_resnet_is_resnet_50_and_the_arms_differ_by_16_weights():
    with torch.device("meta"):
        plain, ours = (build(Config(front=front), 1000, 3) for front in ("conv", "coordconv"))
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (plain, ours)]
    # 25,557,032 for three channels; five more into its 7x7x64 convolution; the front layer itself.
    assert sizes[0] == 25_557_032 + 5 * 7 * 7 * 64 + (3 * 8 + 8)
    assert sizes[1] - sizes[0] == 2 * 8


def test_rates_warm_up_and_drop():
    config = Config()
    images = 25_600  # 100 steps an epoch
    assert config.steps(images) == 9000 and config.steps(images, 1) == 100
    rates = [config.rate(step, images) for step in (0, 249, 499, 2999, 3000, 6000, 8000, 8999)]
    assert rates == pytest.approx([0.1 / 500, 0.05, 0.1, 0.1, 0.01, 1e-3, 1e-4, 1e-4])
    assert dataclasses.replace(config, batch_size=1024).rate(200, images) == pytest.approx(0.4)


def test_settings_nobody_knows_are_refused():
    with pytest.raises(TypeError, match="unknown settings: depth"):
        Config.of({"depth": 50})
    for bad in ({"front": "coords"}, {"batch_size": 0}, {"noise": -1.0}, {"drop_epochs": [60, 30]}):
        with pytest.raises(ValueError):
            Config.of(bad)


# ---------------------------------------------------------------- resampling


def picture(height: int, width: int) -> Image.Image:
    values = Stream(3, "picture").integers(0, height * width * 3, 256).view(height, width, 3)
    return Image.fromarray(values.numpy().astype(np.uint8))


def batch_of(*images: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """Canvases whose rest is not empty, and sizes."""
    canvas = torch.full((len(images), 80, 80, 3), 200, dtype=torch.uint8)
    for i, image in enumerate(images):
        canvas[i, : image.height, : image.width] = torch.from_numpy(np.asarray(image).copy())
    return canvas, torch.tensor([[image.height, image.width] for image in images])


def pixels(batch: torch.Tensor) -> np.ndarray:
    """Back to 0..255, [B, H, W, 3]."""
    assert batch.is_contiguous(memory_format=torch.channels_last)
    return ((batch.permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)) * 255).numpy()


def test_crop_flip_and_resize_are_those_of_pil():
    images = [picture(60, 80), picture(33, 47), picture(20, 11)]
    canvas, sizes = batch_of(*images)
    crops = torch.tensor([[3, 7, 50, 61], [0, 2, 33, 40], [5, 1, 10, 9]]).float()
    flip = torch.tensor([True, False, True])
    ours = pixels(resample(canvas, sizes, crops, 24, flip))
    for i, (image, (top, left, height, width)) in enumerate(zip(images, crops.tolist(), strict=True)):
        theirs = image.crop((left, top, left + width, top + height)).resize((24, 24), Image.Resampling.BILINEAR)
        theirs = np.asarray(theirs)[:, ::-1] if flip[i] else np.asarray(theirs)
        assert np.abs(ours[i] - theirs).max() < 1.1  # PIL rounds after each of its two passes


def test_evaluation_resizes_the_short_side_and_cuts_the_centre_out():
    images = [picture(60, 80), picture(71, 50), picture(41, 41)]
    canvas, sizes = batch_of(*images)
    ours = pixels(resample(canvas, sizes, centre_crops(sizes, 28).float(), 28))
    for image, mine in zip(images, ours, strict=True):
        scale = 32 / min(image.size)  # 28 * 256 / 224
        width, height = int(image.width * scale + 1e-9), int(image.height * scale + 1e-9)
        left, top = round((width - 28) / 2), round((height - 28) / 2)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        theirs = np.asarray(resized.crop((left, top, left + 28, top + 28)))
        assert np.abs(mine - theirs).max() < 1.1


def test_training_in_bfloat16_does_not_blur_images():
    canvas, sizes = batch_of(picture(60, 80))
    crops = torch.tensor([[3.0, 7.0, 50.0, 61.0]])
    exact = resample(canvas, sizes, crops, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample(canvas, sizes, crops, 24), exact)


def test_weights_average():
    size = torch.tensor([10.0])
    matrix = weights(torch.zeros(1), size, torch.zeros(1), size, 12, 10)[0]
    assert torch.equal(matrix[:, :10], torch.eye(10)) and not matrix[:, 10:].any()


def test_random_crops_lie_inside_and_spread():
    sizes = torch.tensor([[375, 500], [100, 20], [10, 400]]).repeat(200, 1)
    crops = random_crops(sizes, Stream(0, "crops").uniform(0, 600 * 40).view(600, 10, 4))
    top, left, height, width = crops.unbind(-1)
    assert (crops == crops.round()).all() and (top >= 0).all() and (left >= 0).all()
    assert (height >= 1).all() and (top + height <= sizes[:, 0]).all() and (left + width <= sizes[:, 1]).all()
    share = (height * width / (375 * 500))[::3]
    assert share.min() < 0.15 and share.max() > 0.9 and 0.45 < share.mean() < 0.62
    shapes = (width / height)[::3]
    assert shapes.min() > 0.74 and shapes.max() < 1.35
    # Nothing of an allowed shape and 8 % of the area fits into 10x400: the largest central crop is taken.
    assert (crops[2::3] == torch.tensor([0.0, 193.0, 10.0, 13.0])).all()


# ---------------------------------------------------------------- folders of images


def test_batches_are_functions_of_the_step(tmp_path):
    write_miniature(tmp_path)
    first, second = (ImageNet(RESNET, 7, tmp_path, CPU) for _ in range(2))
    assert (first.num_classes, first.num_train, first.num_test) == (3, 12, 6)
    steps = [first.batch(step) for step in (0, 1, 2, 3)]
    for step in (2, 0, 3):
        images, labels = second.batch(step)
        assert torch.equal(images, steps[step][0]) and torch.equal(labels, steps[step][1])
    # Two steps are an epoch, which shows every image once.
    assert torch.cat([steps[0][1], steps[1][1]]).bincount().tolist() == [4, 4, 4]
    assert not torch.equal(steps[0][0], ImageNet(RESNET, 8, tmp_path, CPU).batch(0)[0])
    test = list(first.evaluation())
    assert [len(labels) for _, labels in test] == [4, 2]
    assert torch.cat([labels for _, labels in test]).tolist() == [0, 0, 1, 1, 2, 2]
    # Every class has a colour of its own, which no crop takes away.
    assert all((images.mean((2, 3)).argmax(1) == labels).all() for images, labels in (*steps, *test))


def test_large_images_are_reduced_and_odd_ones_made_rgb(tmp_path):
    path = tmp_path / "x.JPEG"
    picture(50, 200).save(path)
    assert read_image(path, 100).shape == (25, 100, 3) and read_image(path, 200).shape == (50, 200, 3)
    picture(20, 30).convert("CMYK").save(path)
    assert read_image(path, 100).shape == (20, 30, 3)
    picture(20, 30).convert("L").save(path, format="PNG")
    assert read_image(path, 10).shape == (7, 10, 3)


@pytest.mark.parametrize("content", [b"no image", None])
def test_a_broken_file_fails_the_run_by_its_name(content, tmp_path, monkeypatch):
    root = tmp_path / "data" / "imagenet"
    write_miniature(root)
    broken = root / "train/n02/n02_1.JPEG"
    broken.write_bytes(content or broken.read_bytes()[:300])
    spec = spec_of("imagenet", tmp_path / "run", dataset="imagenet")
    record = execute(dataclasses.replace(spec, data_dir=tmp_path / "data"))
    assert record["status"] == "failed"
    assert record["error"].startswith(f"{broken} cannot be read as an image (") and "replace it" in record["error"]
    monkeypatch.delenv("DATA_DIR", raising=False)
    record = execute(spec)
    assert record["error"].startswith("DATA_DIR is not set, so ImageNet was not found: put it into DATA_DIR/imagenet")


# ---------------------------------------------------------------- generated shapes


def test_shapes_differ_and_lie_anywhere():
    masks = shape_masks().flatten(1)
    differences = (masks[:, None] - masks).abs().sum(-1) + 1000 * torch.eye(8)
    assert differences.min() >= 8
    source = Shapes(Config(dataset="shapes", model="convnet", batch_size=400, noise=0.0, test_images=30), 5, CPU)
    images, labels = source.batch(0)
    assert images.shape == (400, 1, 32, 32) and labels.bincount(minlength=8).min() > 25
    # A shape is whole wherever it is, and no pixel is left out.
    assert torch.equal((images > 0).sum((1, 2, 3)), masks.sum(1).long()[labels])
    assert (images.sum((0, 1, 2)) > 0).all() and (images.sum((0, 1, 3)) > 0).all()
    with pytest.raises(UserError):
        data.imagenet_root(Path("/nowhere"))
    again = Shapes(source.config, 5, CPU)
    assert torch.equal(again.batch(3)[0], source.batch(3)[0]) and not torch.equal(source.batch(3)[0], images)
    other = Shapes(source.config, 6, CPU)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(other.evaluation(), source.evaluation(), strict=True))


# ---------------------------------------------------------------- whole runs


def stop(folder: Folder) -> None:
    folder.stop_requested = True


@pytest.mark.parametrize("experiment", SMOKE)
def test_a_stopped_run_ends_as_an_undisturbed_one(experiment, tmp_path):
    whole, stopped = spec_of(experiment, tmp_path / "whole"), spec_of(experiment, tmp_path / "stopped")
    record = execute(whole)
    assert record["status"] == "finished", record["error"]
    assert {"top1_error", "top5_error"} == set(record["metrics"])
    assert all(0 <= value <= 100 for value in record["metrics"].values())
    while (again := execute(stopped, on_folder=stop))["status"] == "stopped":
        pass
    assert again["status"] == "finished" and len(again["resumed"]) >= 1
    assert toy.end_state(stopped.folder) == toy.end_state(whole.folder)


def test_the_arms_differ_in_the_front_layer_only(tmp_path):
    config = Config.of({**SMOKE["imagenet-shapes"].config, "front": "conv"})
    plain, ours = (build(dataclasses.replace(config, front=front), 8, 1) for front in ("conv", "coordconv"))
    shapes = [{name: tuple(p.shape) for name, p in model.body.named_parameters()} for model in (plain, ours)]
    assert shapes[0] == shapes[1]
    assert ours.front.conv.weight.shape == (8, 3, 1, 1) and plain.front.weight.shape == (8, 1, 1, 1)


def test_experiments_and_claims_fit_together():
    assert {claim.id for claim in experiments.CLAIMS} == {"C8", "C8.top1"}
    for name, found in experiments.EXPERIMENTS.items():
        for experiment in found:
            for changes in experiment.methods.values():
                Config.of({**experiment.config, **changes})
        for claim in experiments.CLAIMS:
            if name in claim.rules:
                runs = {(e.name, method) for e in found for method in e.methods}
                assert set(claim.rules[name].quantity.requires) <= runs
