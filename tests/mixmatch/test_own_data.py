"""MixMatch on the user's own image folders: `papers.mixmatch.train` and `papers.mixmatch.predict`."""

import csv
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.curves import read_rows
from common.data.images import image_files
from common.errors import UserError
from common.files import lock
from papers.mixmatch import module, predict, train
from papers.mixmatch.own_data import fingerprint, read_image, read_images, scan

TINY = """
model: convnet
size: 8
steps: 6
batch_size: 6
unlabeled_batch_size: 4
num_views: 3
noise: 0.1
log_every: 1
evaluate_every: 3
checkpoint_every: 2
steps_per_call: 3
threads: 1
device: cpu
"""
CLASSES = {"bird": 5, "cat": 3, "dog": 1}
random = np.random.default_rng(0)


def picture(path: Path, label: int, grey: bool = False) -> None:
    """A noisy picture whose brightness tells its class, in the format of the file's name; 12x9 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = 40 + 80 * label + random.integers(-30, 30, (9, 12, 3))
    if grey:
        pixels = pixels[..., :1].repeat(3, axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def build(root: Path, test: bool = True, grey: bool = False) -> Path:
    """A data folder: imbalanced labels, unlabelled images in several formats and nested, hidden files."""
    for label, (name, count) in enumerate(CLASSES.items()):
        for i in range(count):
            picture(root / name / f"{i}.png", label, grey)
        for i in range(7):
            picture(root / "unlabeled" / f"from {label}" / f"{i}.{('png', 'jpg', 'bmp', 'gif')[i % 4]}", label, grey)
        for i in range(4 if test else 0):
            picture(root / "test" / name / f"{i}.png", label, grey)
    (root / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "._0.png").write_bytes(b"x")
    (root / "tiny.yaml").write_text(TINY)
    return root


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("original") / "pets")


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "pets"))


Run = Callable[..., tuple[int, str, str]]


def train_on(run: Run, data: Path, out: Path, *more: object) -> tuple[int, str, str]:
    return run(train.command, "--data", data, "--out", out, "--config", data / "tiny.yaml", *more)


@pytest.fixture(scope="module")
def trained(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained on the original folder."""
    out = tmp_path_factory.mktemp("trained") / "model"
    arguments = ["--data", original, "--out", out, "--config", original / "tiny.yaml"]
    assert train.command([str(argument) for argument in arguments]) == 0
    return out


# ---------------------------------------------------------------- training


def test_model_file_says_what_was_trained(trained: Path) -> None:
    info = json.loads((trained / "model.json").read_text())
    assert next(iter(info)) == "schema_version" and info["schema_version"] == 1
    assert (info["model"], info["class_names"]) == ("convnet", ["bird", "cat", "dog"])
    assert (info["size"], info["channels"], info["scale"], info["offset"]) == (8, 3, 2 / 255, -1.0)
    assert info["examples"]["labeled"] == CLASSES and info["examples"]["unlabeled"] == 21
    assert info["examples"]["test"] == 12 == info["test_error"]["examples"]
    assert info["test_error"]["low"] <= info["test_error"]["percent"] <= info["test_error"]["high"]
    assert info["config"]["num_views"] == 3 and info["config"]["unlabeled_batch_size"] == 4
    names = {row["name"] for row in read_rows(trained / "curves.csv")}
    assert names == {"train_loss", "train_labeled_loss", "train_unlabeled_loss", "test_error", "train_error"}


def test_predictions_have_the_error_that_training_reported(trained: Path, original: Path, run: Run) -> None:
    status, out, err = run(
        predict.command, "--model", trained, "--images", original / "test", "--probabilities", "--top", 2
    )
    assert (status, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [*rows[0]] == [
        "file", "class", "probability", "class_2", "probability_2", "p(bird)", "p(cat)", "p(dog)",
    ]  # fmt: skip
    wrong = sum(row["class"] != row["file"].split("/")[0] for row in rows)
    assert 100 * wrong / 12 == pytest.approx(json.loads((trained / "model.json").read_text())["test_error"]["percent"])
    for row in rows:
        values = {name: float(row[f"p({name})"]) for name in CLASSES}
        assert sum(values.values()) == pytest.approx(1, abs=1e-5)
        assert values[row["class"]] == float(row["probability"]) == max(values.values())
        assert float(row["probability_2"]) == sorted(values.values())[1]


def test_the_same_command_does_nothing_twice(data: Path, tmp_path: Path, run: Run) -> None:
    status, out, err = train_on(run, data, tmp_path / "model", "--steps", 2)
    assert (status, err) == (0, "")
    assert "9 labelled images (bird 5, cat 3, dog 1), 21 unlabelled, 12 test images; 8x8 colour" in out
    assert "test error: " in out and "95 % interval" in out and "12 images" in out
    before = (tmp_path / "model/weights.safetensors").stat().st_mtime_ns
    status, out, _ = train_on(run, data, tmp_path / "model", "--steps", 2)
    assert status == 0 and "finished already" in out
    assert (tmp_path / "model/weights.safetensors").stat().st_mtime_ns == before


def test_interrupted_training_ends_as_if_it_had_not_been(
    trained: Path, original: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, calls = module.SemiSupervised.loss, []

    def interrupted(self: module.SemiSupervised, *arguments: object) -> object:
        calls.append(self.step)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return losses(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module.SemiSupervised, "loss", interrupted)
    status, out, _ = train_on(run, original, tmp_path / "model")
    assert status == 130 and "stopped (interrupted): the same command resumes" in out
    assert len(calls) == 4 and not (tmp_path / "model/weights.safetensors").exists()
    status, out, err = run(predict.command, "--model", tmp_path / "model", "--images", original / "test")
    assert status == 2 and "has not finished: run the same train command again" in err
    assert train_on(run, original, tmp_path / "model")[0] == 0
    assert len(calls) == 6
    for name in ("weights.safetensors", "model.json"):
        assert (tmp_path / "model" / name).read_bytes() == (trained / name).read_bytes()
    values = [
        [(r["step"], r["name"], r["value"]) for r in read_rows(p / "curves.csv")] for p in (trained, tmp_path / "model")
    ]
    assert values[0] == values[1]


def test_time_limit(original: Path, tmp_path: Path, run: Run) -> None:
    status, out, err = train_on(run, original, tmp_path / "model", "--time_limit", 1e-9)
    assert (status, err) == (1, "") and "stopped (time limit): the same command resumes" in out


def test_other_data_moves_the_old_model_aside(data: Path, tmp_path: Path, run: Run) -> None:
    assert train_on(run, data, tmp_path / "model", "--steps", 1)[0] == 0
    picture(data / "cat" / "new.png", 1)
    status, out, _ = train_on(run, data, tmp_path / "model", "--steps", 2)
    assert (
        status == 0
        and "kept beside it as .old-N: it had " in out
        and "steps 1 instead of 2" in out
        and "another data" in out
    )
    assert json.loads((tmp_path / "model.old-1/model.json").read_text())["examples"]["labeled"]["cat"] == 3
    assert json.loads((tmp_path / "model/model.json").read_text())["examples"]["labeled"]["cat"] == 4


def test_without_test_images_no_error_is_reported(tmp_path: Path, run: Run) -> None:
    data = build(tmp_path / "grey", test=False, grey=True)
    status, out, _ = train_on(run, data, tmp_path / "model", "--steps", 2)
    assert status == 0
    assert "only the training losses are measured" in out and "test error: not known" in out and "8x8 grey" in out
    info = json.loads((tmp_path / "model/model.json").read_text())
    assert info["test_error"] is None and info["examples"]["test"] is None and info["channels"] == 1
    assert "test_error" not in {row["name"] for row in read_rows(tmp_path / "model/curves.csv")}
    # Colour images are made grey for a grey model.
    picture(tmp_path / "new.jpg", 2)
    assert predict.predict_images(*predict.load_model(tmp_path / "model"), [tmp_path / "new.jpg"]).shape == (1, 3)


def test_supervised_needs_no_unlabelled_images(data: Path, tmp_path: Path, run: Run) -> None:
    shutil.rmtree(data / "unlabeled")
    assert train_on(run, data, tmp_path / "model", "--method", "supervised", "--steps", 1)[0] == 0
    status, _, err = train_on(run, data, tmp_path / "model", "--steps", 1)
    assert status == 2 and err == f"error: {data / 'unlabeled'} is missing or empty: put the unlabelled images there\n"


def test_a_loss_that_is_not_finite_is_one_line(original: Path, tmp_path: Path, run: Run) -> None:
    for _ in range(2):
        status, _, err = train_on(run, original, tmp_path / "model", "--learning_rate", 1e38)
        assert status == 2 and err.count("\n") == 1
        assert (
            "is not finite at step" in err and "lower --learning_rate (it was 1e+38) or --unlabeled_weight (75)" in err
        )


def test_unreadable_files(data: Path, tmp_path: Path, run: Run) -> None:
    (data / "cat" / "2.png").write_bytes((data / "cat" / "0.png").read_bytes()[:60])
    (data / "test" / "dog" / "notes.txt").write_text("not an image")
    (data / "unlabeled" / "empty.jpg").touch()
    status, _, err = train_on(run, data, tmp_path / "model", "--steps", 1)
    assert status == 2 and err.count("\n") == 1 and "cat/2.png cannot be read as an image (" in err
    assert "--skip_unreadable" in err
    status, out, err = train_on(run, data, tmp_path / "model", "--steps", 1, "--skip-unreadable")
    assert (status, err) == (0, "") and "left out: 3 files that cannot be read as images" in out
    info = json.loads((tmp_path / "model/model.json").read_text())
    assert info["examples"]["labeled"]["cat"] == 2 and info["examples"]["unreadable"] == 3
    status, out, err = run(predict.command, "--model", tmp_path / "model", "--images", data / "test")
    assert status == 2 and "dog/notes.txt cannot be read as an image (it has no known image format)" in err
    status, out, err = run(
        predict.command, "--model", tmp_path / "model", "--images", data / "test", "--skip_unreadable"
    )
    assert status == 0 and len(out.splitlines()) == 13 and err.startswith("left out: 1 files")


def test_repeated_test_images_are_told(data: Path, tmp_path: Path, run: Run) -> None:
    shutil.copy(data / "cat" / "0.png", data / "test" / "cat" / "again.png")
    _, out, _ = train_on(run, data, tmp_path / "model", "--steps", 1)
    assert "warning: 1 test images are also among the training images" in out


MISUSES = {
    "no folder": (["--data", "{data}/none"], "is not a folder"),
    "no data": (["--data", ""], "--data is missing"),
    "no class": (["--data", "{data}/cat"], "no class folders"),
    "one class": (["--data", "{data}/one"], "only one class folder, only"),
    "empty class": (["--data", "{data}/empty"], "b has no images"),
    "nothing unlabelled": (["--data", "{data}/test"], "unlabeled is missing or empty"),
    "unknown test class": (["--data", "{data}/unknown"], "test/c is no class with labelled images: these are a, b"),
    "test without classes": (["--data", "{data}/flat"], "test has no class folders"),
    "output in the data": (["--out", "{data}/model"], "lies inside the data folder"),
    "output is a file": (["--out", "{data}/../file"], "is a file: choose a folder"),
    "output holds files": (["--out", "{data}/.."], "holds other files"),
    "unknown method": (["--method", "mixmach"], "no method 'mixmach'; there is supervised, "),
    "unknown model": (["--model", "resnet"], "no model 'resnet'; there is convnet, "),
    "unknown device": (["--device", "tpu"], "no device 'tpu'"),
    "no such device": (["--device", "cuda"], "no cuda device on this machine"),
    "unknown mixing": (["--mixing", "yx.x"], "no mixing 'yx.x'"),
    "not a number": (["--learning_rate", "nan"], "learning_rate"),
    "negative": (["--noise", "-0.1"], "noise must be a number from 0 up"),
    "no steps": (["--steps", "0"], "steps must be at least 1"),
    "a word": (["--steps", "many"], '"steps"'),
    "unknown flag": (["--stepz", "4"], "--stepz"),
    "tiny size": (["--size", "3"], "--size must be at least 4"),
    "channels": (["--channels", "2"], "--channels is 1, 3 or 0"),
    "large crop": (["--reflect_crop", "8"], "--reflect_crop 8 must be smaller than --size 8"),
    "small for the network": (["--model", "convnet13"], "needs --size 28"),
    "time limit": (["--time_limit", "0"], "time limit"),
    "threads": (["--threads", "0"], "--threads must be at least 1"),
    "no such settings": (["--config", "{data}/none.yaml"], "none.yaml"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_one_line(misuse: str, data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for place in (
        "one/only",
        "one/unlabeled",
        "empty/a",
        "unknown/a",
        "unknown/b",
        "unknown/unlabeled",
        "unknown/test/c",
    ):
        picture(data / place / "0.png", 0)
    for place in ("flat/a", "flat/b", "flat/unlabeled", "flat/test"):
        picture(data / place / "0.png", 0)
    (data / "empty" / "b").mkdir()
    (tmp_path / "file").touch()
    arguments, text = MISUSES[misuse]
    status, _, err = train_on(run, data, tmp_path / "model", *[a.format(data=data) for a in arguments])
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert text in err
    assert not (tmp_path / "model").exists()


def test_two_trainings_of_one_folder(original: Path, tmp_path: Path, run: Run) -> None:
    with lock(tmp_path / ".model.lock"):
        status, _, err = train_on(run, original, tmp_path / "model")
    assert status == 2 and "is in use by process" in err


def test_settings_follow_from_method_steps_and_size() -> None:
    settings = train.settings_of({}, size=32)
    assert (settings.method, settings.model, settings.steps) == ("mixmatch", "wrn-28-2", 10_000)
    assert (settings.ramp_steps, train.settings_of({"steps": 10**6}, size=32).ramp_steps) == (10_000, 16_384)
    assert (settings.ema_decay, settings.bn_momentum, settings.reflect_crop) == (0.999, 0.01, 4)
    short = train.settings_of({"steps": 500, "ema_decay": None, "alpha": 0.5}, size=96, device="cuda")
    assert (short.ema_decay, short.bn_momentum, short.reflect_crop, short.steps_per_call) == (0.98, 0.1, 12, 32)
    assert (short.alpha, short.unlabeled_weight) == (0.5, 75)
    teacher = train.settings_of({"method": "mean-teacher", "steps": 100}, size=32)
    assert (teacher.unlabeled_weight, teacher.weight_decay, teacher.ramp_steps) == (50, 0.2, 40)


# ---------------------------------------------------------------- predicting


def test_predicting_from_paths_and_arrays(trained: Path, original: Path, run: Run, tmp_path: Path) -> None:
    model, info = predict.load_model(trained)
    assert not model.training and info.class_names == ("bird", "cat", "dog")
    paths = image_files(original / "unlabeled")
    together = predict.predict_images(model, info, paths)
    assert together.shape == (21, 3) and together.dtype == np.float32
    assert np.allclose(together, predict.predict_images(model, info, read_images(paths, 8, 3).images, batch_size=4))
    with pytest.raises(ValueError, match="uint8"):
        predict.predict_images(model, info, np.zeros((2, 9, 8, 3), np.uint8))
    status, out, _ = run(predict.command, "--model", trained, "--images", paths[0], "--out", tmp_path / "one.csv")
    assert status == 0 and "1 images" in out
    (row,) = csv.DictReader((tmp_path / "one.csv").open())
    assert row["file"] == paths[0].name and float(row["probability"]) == pytest.approx(together[0].max(), abs=1e-5)


def test_misuse_of_predict_is_one_line(trained: Path, original: Path, tmp_path: Path, run: Run) -> None:
    model, images = tmp_path / "model", original / "test"
    shutil.copytree(trained, model)
    (tmp_path / "nothing").mkdir()

    def error(*arguments: object) -> str:
        status, out, err = run(predict.command, *arguments)
        assert (status, out) == (2, "") and err.count("\n") == 1, err
        return err

    assert "holds no model (no model.json)" in error("--model", tmp_path / "nothing", "--images", images)
    assert "--images is missing" in error("--model", model)
    assert "holds no images" in error("--model", model, "--images", tmp_path / "nothing")
    assert "does not exist" in error("--model", model, "--images", tmp_path / "none")
    assert "--top lies between 1 and the 3" in error("--model", model, "--images", images, "--top", 4)
    assert "no device 'x'" in error("--model", model, "--images", images, "--device", "x")
    info = json.loads((model / "model.json").read_text())
    (model / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes()[:500])
    assert "weights.safetensors is damaged" in error("--model", model, "--images", images)
    (model / "weights.safetensors").unlink()
    assert "weights.safetensors is missing" in error("--model", model, "--images", images)
    (model / "model.json").write_text(json.dumps({**info, "schema_version": 2}))
    assert "has schema version 2, and this code reads 1" in error("--model", model, "--images", images)
    (model / "model.json").write_text(json.dumps({"schema_version": 1}))
    assert "model.json is damaged" in error("--model", model, "--images", images)
    (model / "model.json").write_text("{")
    assert "is not valid JSON" in error("--model", model, "--images", images)


# ---------------------------------------------------------------- reading images


def read(image: Image.Image, path: Path, channels: int = 3, **options: object) -> np.ndarray:
    image.save(path, **options)  # type: ignore[arg-type]
    return read_image(path, 4, channels)


def test_every_mode_becomes_grey_or_colour(tmp_path: Path) -> None:
    ramp = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    grey, colour = Image.fromarray(ramp), Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], 2))
    assert (read(grey, tmp_path / "a.png", 1)[..., 0] == ramp).all()
    assert (read(grey, tmp_path / "a.png") == ramp[..., None]).all()
    assert (read(colour, tmp_path / "b.png") == np.asarray(colour)).all()
    assert (read(colour, tmp_path / "b.bmp", 1)[..., 0] == np.asarray(colour.convert("L"))).all()
    assert (read(grey, tmp_path / "b.gif", 1)[..., 0] == ramp).all()
    # 16 bits lose the lower byte; Pillow's own conversion would clip.
    deep = Image.fromarray(ramp.astype(np.uint16) * 256 + 77)
    assert (read(deep, tmp_path / "c.png", 1)[..., 0] == ramp).all()
    assert (read(deep, tmp_path / "c.tif")[..., 1] == ramp).all()
    wide = Image.fromarray(ramp.astype(np.int32) * 256)
    assert (read(wide, tmp_path / "d.tif", 1)[..., 0] == ramp).all()
    assert (read(Image.fromarray((ramp / 255).astype(np.float32)), tmp_path / "e.tif", 1)[..., 0] == ramp).all()
    with pytest.raises(ValueError, match=r"outside 0\.\.65535"):
        read(Image.fromarray(ramp.astype(np.int32) * 70_000), tmp_path / "f.tif")
    black = read(Image.fromarray(ramp > 100), tmp_path / "g.png", 1)
    assert set(np.unique(black)) == {0, 255}
    palette = read(colour.quantize(16), tmp_path / "h.png")
    assert np.abs(palette.astype(int) - np.asarray(colour)).max() < 40
    ink = read(colour.convert("CMYK"), tmp_path / "i.jpg", quality=100)
    assert np.abs(ink.astype(int) - np.asarray(colour)).mean() < 12


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2, :, 3] = 255
    for name, image in {
        "rgba.png": Image.fromarray(clear),
        "la.png": Image.fromarray(clear).convert("LA"),
        "palette.gif": Image.fromarray(clear),
    }.items():
        pixels = read(image, tmp_path / name)
        assert (pixels[:2] == 0).all() and (pixels[2:] == 255).all(), name


def test_exif_turns_and_the_middle_is_cut(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60, 0], pixels[:, :20, 1], pixels[20:, 20:60, 2] = 255, 255, 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    upright = read(image, tmp_path / "a.png")
    # The outer quarters are gone (but for what the filter takes over the edge), the lower half is red and blue.
    assert (upright[..., 0] > 225).all() and upright[..., 1].max() < 30
    assert (upright[:2, :, 2] < 30).all() and (upright[2:, :, 2] > 200).all()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    turned = read(image, tmp_path / "b.jpg", exif=exif, quality=100)
    assert np.abs(turned.astype(int) - np.rot90(upright, -1).astype(int)).max() < 40


def test_large_images_are_antialiased(tmp_path: Path) -> None:
    board = (np.indices((400, 400)).sum(0) % 2 * 255).astype(np.uint8)
    for name in ("a.png", "a.jpg"):
        assert np.abs(read(Image.fromarray(board), tmp_path / name, 1).astype(int) - 127).max() < 12


def test_grey_images_take_one_channel_unless_told(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", 0, grey=True)
    paths = image_files(tmp_path)
    assert read_images(paths, 8).images.shape == (3, 8, 8, 1)
    assert read_images(paths, 8, channels=3).images.shape == (3, 8, 8, 3)
    picture(tmp_path / "3.png", 0)
    assert read_images(image_files(tmp_path), 8).images.shape == (4, 8, 8, 3)


def test_fingerprint_is_of_names_and_content(data: Path, original: Path) -> None:
    first = fingerprint(scan(original))
    os.utime(data / "cat" / "0.png", (1, 1))
    assert fingerprint(scan(data)) == first
    (data / "cat" / "0.png").rename(data / "cat" / "9.png")
    renamed = fingerprint(scan(data))
    shutil.move(data / "cat" / "9.png", data / "dog" / "9.png")
    assert len({first, renamed, fingerprint(scan(data))}) == 3


def test_linked_folders_are_followed_once(data: Path, tmp_path: Path) -> None:
    (data / "unlabeled" / "again").symlink_to(data / "unlabeled")
    (tmp_path / "link").symlink_to(data)
    assert len(scan(tmp_path / "link").unlabeled) == 21
    (data / "cat").chmod(0)
    try:
        if os.access(data / "cat", os.R_OK):
            pytest.skip("root reads everything")
        with pytest.raises(UserError, match="correct its permissions"):
            scan(data)
    finally:
        (data / "cat").chmod(0o755)
