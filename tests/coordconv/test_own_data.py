"""Key points in the user's own images: `papers.coordconv.train` and `papers.coordconv.predict`."""

import csv
import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.curves import read_rows
from common.data.images import open_image
from common.errors import UserError
from papers.coordconv import keypoints, predict, train
from papers.coordconv.method import CoordConv2d
from papers.coordconv.own_data import (
    Config,
    ModelInfo,
    errors_of,
    fingerprint,
    read_images,
    split,
    to_pixels,
    to_square,
)
from papers.coordconv.tables import read_table

TINY = """
size: 32
steps: 6
batch_size: 8
validation: 0.25
log_every: 1
evaluate_every: 2
checkpoint_every: 2
steps_per_call: 3
threads: 1
device: cpu
"""
COUNT = 32
random = np.random.default_rng(0)


def square(path: Path, size: tuple[int, int], x: float, y: float) -> None:
    """A white square on dark noise whose middle is (x, y), the side an eighth of the image's, so that all images look
    alike once they are stretched."""
    width, height = size
    pixels = random.integers(0, 40, (height, width), dtype=np.uint8)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels[(abs(columns - x) <= width / 12) & (abs(rows - y) <= height / 12)] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def build(root: Path) -> Path:
    """A folder of squares of several sizes, its table beside it, and a YAML file with settings for a short run."""
    rows: list[Sequence[object]] = [("file", "x", "y")]
    for i in range(COUNT):
        width, height = (int(side) for side in random.integers(32, 80, 2))
        x, y = int(random.integers(0.15 * width, 0.85 * width)), int(random.integers(0.15 * height, 0.85 * height))
        name = f"{'ab'[i % 2]}/{i}.{('png', 'bmp', 'gif')[i % 3]}"
        square(root / "images" / name, (width, height), x, y)
        rows.append((name, x, y))
    write(root / "targets.csv", rows)
    (root / "tiny.yaml").write_text(TINY)
    return root


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("original") / "squares")


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "squares"))


Run = Callable[..., tuple[int, str, str]]


def arguments_of(data: Path, out: Path) -> list[object]:
    return [
        "--images", data / "images", "--targets", data / "targets.csv", "--out", out, "--config", data / "tiny.yaml",
    ]  # fmt: skip


def train_on(run: Run, data: Path, out: Path, *more: object) -> tuple[int, str, str]:
    return run(train.command, *arguments_of(data, out), *more)


LONGER = ("--steps", "160", "--learning_rate", "0.005", "--evaluate_every", "40", "--log_every", "40")


@pytest.fixture(scope="module")
def trained(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt the squares."""
    out = tmp_path_factory.mktemp("trained") / "model"
    assert train.command([str(argument) for argument in (*arguments_of(original, out), *LONGER)]) == 0
    return out


@pytest.fixture(scope="module")
def tiny(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after six steps."""
    out = tmp_path_factory.mktemp("tiny") / "model"
    assert train.command([str(argument) for argument in arguments_of(original, out)]) == 0
    return out


# ---------------------------------------------------------------- training


def test_squares_are_found_in_images_of_any_size(trained: Path, original: Path, run: Run, tmp_path: Path) -> None:
    info = json.loads((trained / "model.json").read_text())
    assert info["errors"]["validation"]["pixels"] < 3 and info["errors"]["train"]["percent"] < 4
    status, out, err = run(
        predict.command, "--model", trained, "--images", original / "images",
        "--out", tmp_path / "found.csv", "--draw", tmp_path / "drawn",
    )  # fmt: skip
    assert (status, err) == (0, "") and f"{COUNT} images: " in out
    # The answer is a table as training reads it, in pixels of each image.
    found = read_table(tmp_path / "found.csv", original / "images")
    given = read_table(original / "targets.csv", original / "images")
    index = [given.files.index(name) for name in found.files]
    distance = errors_of(found.points, given.points[index], found.sizes)
    assert found.columns == ("x", "y") and distance["points"] == COUNT and distance["pixels"] < 3
    assert sorted(path.relative_to(tmp_path / "drawn").as_posix() for path in (tmp_path / "drawn").rglob("*.png")) == [
        name.removesuffix(".png") + ".png" for name in found.files
    ]
    with Image.open(tmp_path / "drawn/a/0.png") as drawn:
        assert drawn.mode == "RGB" and drawn.size == tuple(found.sizes[found.files.index("a/0.png")])
        colours = {colour for _, colour in drawn.getcolors(10_000)}
    assert (230, 25, 75) in colours


def test_model_file_says_what_was_trained(trained: Path) -> None:
    info = json.loads((trained / "model.json").read_text())
    assert next(iter(info)) == "schema_version" and info["schema_version"] == 1
    assert (info["columns"], info["size"], info["channels"], info["seed"]) == (["x", "y"], 32, 1, 0)
    assert info["examples"] == {"train": 24, "validation": 8, "without_points": 0}
    assert (info["config"]["backbone"], info["config"]["coords"], info["backbone_config"]) == ("small", "first", None)
    assert not {"targets", "validation", "test", "pretrained"} & set(info["config"])
    curves = [row for row in read_rows(trained / "curves.csv") if row["name"] == "validation_error"]
    best = min(curves, key=lambda row: float(row["value"]))
    assert info["best_step"] == int(best["step"])
    assert info["errors"]["validation"]["pixels"] == pytest.approx(float(best["value"]))


def test_the_same_command_does_nothing_twice(data: Path, tmp_path: Path, run: Run) -> None:
    status, out, err = train_on(run, data, tmp_path / "model")
    assert (status, err) == (0, "")
    assert "24 images to train on, 8 for validation; 1 key point; 32x32 grey" in out
    assert (
        "validation error: " in out and "chosen by it" in out and "train error: " in out and "best on validation" in out
    )
    before = (tmp_path / "model/weights.safetensors").stat().st_mtime_ns
    status, out, _ = train_on(run, data, tmp_path / "model")
    assert status == 0 and "finished already" in out
    assert (tmp_path / "model/weights.safetensors").stat().st_mtime_ns == before
    status, out, _ = train_on(run, data, tmp_path / "model", "--steps", 1, "--coords", "none")
    assert status == 0 and "it had coords first instead of none" in out and "steps 6 instead of 1" in out
    assert (tmp_path / "model.old-1/model.json").exists()


def test_interrupted_training_ends_as_if_it_had_not_been(
    tiny: Path, original: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimise, calls = keypoints.Regression.optimise, []

    def interrupted(self: keypoints.Regression, step: int, *arguments: Any) -> Any:
        calls.append(step)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return optimise(self, step, *arguments)

    monkeypatch.setattr(keypoints.Regression, "optimise", interrupted)
    status, out, _ = train_on(run, original, tmp_path / "model")
    assert status == 130 and "stopped (interrupted): the same command resumes" in out
    assert len(calls) == 3 and not (tmp_path / "model/weights.safetensors").exists()
    status, out, err = run(predict.command, "--model", tmp_path / "model", "--images", original / "images")
    assert status == 2 and "has not finished: run the same train command again" in err
    assert train_on(run, original, tmp_path / "model")[0] == 0
    assert calls == [0, 1, 2, 3, 4, 5]
    for name in ("weights.safetensors", "model.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tiny / name).read_bytes()
    values = [
        [(r["step"], r["name"], r["value"]) for r in read_rows(p / "curves.csv")] for p in (tiny, tmp_path / "model")
    ]
    assert values[0] == values[1]


def test_time_limit(original: Path, tmp_path: Path, run: Run) -> None:
    status, out, err = train_on(run, original, tmp_path / "model", "--time_limit", 1e-9)
    assert (status, err) == (1, "") and "stopped (time limit): the same command resumes" in out


@pytest.mark.parametrize(
    "more",
    [
        ("--head", "pooled", "--coords", "all", "--coordinates", "fourier", "--radius", "true", "--noise", 0.1),
        ("--coords", "none", "--channels", 3, "--shift", 0),
        ("--coordinates", "raw"),
    ],
    ids=lambda more: str(more[1]),
)
def test_other_networks(more: tuple, original: Path, tmp_path: Path, run: Run) -> None:
    assert train_on(run, original, tmp_path / "model", "--steps", 1, *more)[0] == 0
    model, info = predict.load_model(tmp_path / "model")
    converted = sum(isinstance(layer, CoordConv2d) for layer in model.modules())
    assert converted == {"none": 0, "first": 1, "all": 5}[info.config["coords"]]
    points = predict.predict_points(model, info, sorted((original / "images/a").iterdir()))
    assert points.shape == (COUNT // 2, 1, 2) and np.isfinite(points).all()


def test_missing_points_and_tables_of_their_own(data: Path, tmp_path: Path, run: Run) -> None:
    rows = list(csv.reader((data / "targets.csv").open()))[1:]
    table = [("file", "tail_y", "tail_x", "nose_x", "nose_y")]
    table += [(name, "", "", x, y) if i % 2 else (name, y, x, "", "") for i, (name, x, y) in enumerate(rows)]
    write(data / "targets.csv", [*table[:17], (*table[17][:1], "", "", "", ""), *table[18:21]])
    write(tmp_path / "validation.csv", [table[0], *table[21:25]])
    write(tmp_path / "test.csv", [table[0], *table[25:]])
    more = ("--validation", tmp_path / "validation.csv", "--test", tmp_path / "test.csv")
    status, out, err = train_on(run, data, tmp_path / "model", *more)
    assert (status, err) == (0, "")
    assert "19 images to train on, 4 for validation, 8 for the test; 2 key points" in out
    assert "missing: 19 of the 38 points" in out and "left out: 1 rows without any point" in out
    assert "test error: " in out and "mean over 8 points\n" in out
    _, info = predict.load_model(tmp_path / "model")
    assert info.columns == ("tail_x", "tail_y", "nose_x", "nose_y")
    assert {name: error["points"] for name, error in info.errors.items()} == {"test": 8, "train": 19, "validation": 4}


def test_without_validation_the_last_weights_are_kept(original: Path, tmp_path: Path, run: Run) -> None:
    status, out, _ = train_on(run, original, tmp_path / "model", "--validation", 0, "--steps", 3)
    assert status == 0 and "the last, of step 3" in out and "no error of the model is known" in out
    info = json.loads((tmp_path / "model/model.json").read_text())
    assert set(info["errors"]) == {"train"} and info["examples"]["train"] == COUNT


def test_a_pretrained_resnet_of_a_local_folder(original: Path, tmp_path: Path, run: Run) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8, "layer_type": "basic"}
    torch.manual_seed(0)
    resnet = transformers.ResNetModel(transformers.ResNetConfig(**settings)).eval()
    classifier = transformers.ResNetForImageClassification(resnet.config)
    classifier.resnet.load_state_dict(resnet.state_dict())
    classifier.save_pretrained(tmp_path / "resnet")
    more = ("--backbone", "resnet18", "--pretrained", tmp_path / "resnet", "--size", 32, "--coords", "all")
    assert train_on(run, original, tmp_path / "model", "--steps", 2, *more)[0] == 0
    shutil.move(tmp_path / "resnet", tmp_path / "elsewhere")
    model, info = predict.load_model(tmp_path / "model")
    assert info.channels == 3 and info.backbone_config["hidden_sizes"] == [8, 16]
    assert predict.predict_points(model, info, sorted((original / "images/a").iterdir())[:2]).shape == (2, 1, 2)
    # What was learnt elsewhere is there at the start, converted or not.
    config = Config(backbone="resnet18", pretrained=str(tmp_path / "elsewhere"), coords="all")
    images = torch.rand(2, 3, 32, 32)
    converted = keypoints.build(config, 3, 1).eval().backbone.resnet
    assert torch.equal(converted(images).last_hidden_state, resnet(images).last_hidden_state)
    status, _, err = train_on(run, original, tmp_path / "model", *more)
    assert status == 2 and err.startswith(f"error: --pretrained {tmp_path / 'resnet'} cannot be loaded (")
    (tmp_path / "elsewhere/model.safetensors").write_bytes(b"x" * 100)
    status, _, err = train_on(
        run, original, tmp_path / "new", "--backbone", "resnet18", "--pretrained", tmp_path / "elsewhere"
    )
    assert status == 2 and "cannot be loaded (" in err and err.count("\n") == 1


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_the_usual_resnets(backbone: str) -> None:
    pytest.importorskip("transformers")
    with torch.device("meta"):
        network = keypoints.build(Config(backbone=backbone), 3, 2)
    count = sum(p.numel() for p in network.backbone.resnet.parameters())
    # He et al. 2016: 11.7 and 25.6 million, of which the classifier has 0.5 and 2.0; the coordinates add 2 * 64 * 49.
    assert count == {"resnet18": 11_176_512, "resnet50": 23_508_032}[backbone] + 2 * 64 * 49


def test_a_loss_that_is_not_finite_is_one_line(original: Path, tmp_path: Path, run: Run) -> None:
    for _ in range(2):
        status, _, err = train_on(run, original, tmp_path / "model", "--learning_rate", 1e38)
        assert status == 2 and err.count("\n") == 1
        assert "is not finite at step" in err and "lower --learning_rate (it was 1e+38)" in err


def test_settings_follow_from_backbone_and_steps() -> None:
    settings = train.settings_of({})
    assert (settings.size, settings.shift, settings.learning_rate, settings.steps_per_call) == (64, 4, 0.002, 4)
    resnet = train.settings_of({"backbone": "resnet50", "steps": 10_000, "validation": 0.1}, "cuda")
    assert (resnet.size, resnet.shift, resnet.learning_rate, resnet.steps_per_call) == (128, 8, 0.0005, 32)
    assert (resnet.evaluate_every, resnet.checkpoint_every, resnet.fraction) == (500, 200, 0.1)


# ---------------------------------------------------------------- misuse

TABLES = {
    "no header": ("a/0.png,3,4\n", "row 1 has no column 'file'"),
    "empty": ("", "is empty: its first row names the columns"),
    "no rows": ("file,x,y\n", "has no rows below its header"),
    "no pairs": ("file\na/0.png\n", "row 1 names no key point"),
    "half a pair": ("file,nose_x\na/0.png,3\n", "row 1 has the column 'nose_x' without 'nose_y'"),
    "other column": ("file,x,y,label\n", "row 1: the column 'label' is no half of a key point"),
    "column twice": ("file,x,y,x\n", "row 1 names the column 'x' twice"),
    "short row": ("file,x,y\na/0.png,3\n", "row 2 has 2 cells and the header 3"),
    "no such file": ("file,x,y\na/0.png,3,4\n\na/none.png,3,4\n", "row 4, column file: there is no file"),
    "outside the folder": ("file,x,y\n../targets.csv,3,4\n", "row 2, column file: '../targets.csv' is no file below"),
    "no name": ("file,x,y\n,3,4\n", "row 2, column file: '' is no file below"),
    "file twice": ("file,x,y\na/0.png,3,4\n./a/0.png,3,4\n", "row 3: a/0.png is there already in row 2"),
    "no number": ("file,x,y\na/0.png,3,four\n", "row 2, column y: 'four' is not a number"),
    "not finite": ("file,x,y\na/0.png,inf,4\n", "row 2, column x: inf is not finite"),
    "half a point": ("file,x,y\na/0.png,3,\n", "row 2, column y is empty and its partner is not"),
    "no point at all": ("file,x,y\na/0.png,,\n", "column x: every cell is empty"),
    "outside": (
        "file,x,y\na/0.png,3,4\nb/1.bmp,500,4\n",
        "row 3, columns x and y: the point (500, 4) lies outside b/1",
    ),
    "no image": ("file,x,y\na/0.png,3,4\nnotes.txt,3,4\n", "notes.txt cannot be read as an image (it has no known"),
    "torn": ("file,x,y\na/0.png,3,4\ntorn.png,3,4\n", "torn.png cannot be read as an image ("),
    "quotes": ('file,x,y\n"a/0.png,3,4\n', "is not CSV ("),
    "one row": ("file,x,y\na/0.png,3,4\n", "has only one row with a point"),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_bad_table_is_one_line(table: str, data: Path, tmp_path: Path, run: Run) -> None:
    text, message = TABLES[table]
    (data / "images/notes.txt").write_text("not an image")
    whole = (data / "images/a/0.png").read_bytes()
    (data / "images/torn.png").write_bytes(whole[: len(whole) // 2])
    (data / "targets.csv").write_text(text)
    status, _, err = train_on(run, data, tmp_path / "model")
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert message in err and str(data) in err
    assert not (tmp_path / "model").exists() or table == "torn"


MISUSES = {
    "no images": (["--images", ""], "--images is missing"),
    "no targets": (["--targets", ""], "--targets is missing"),
    "no such folder": (["--images", "{data}/none"], "is not a folder"),
    "no such table": (["--targets", "{data}/none.csv"], "none.csv: there is no such file"),
    "no such validation": (["--validation", "{data}/none.csv"], "--validation {data}/none.csv: there is no such file"),
    "table is an image": (["--targets", "{data}/images/a/0.png"], "is not UTF-8 text"),
    "shared rows": (["--test", "{data}/targets.csv"], "targets.csv names a/0.png, which"),
    "other points": (["--test", "{data}/other.csv"], "has the columns eye_x,eye_y and"),
    "nothing to test": (["--test", "{data}/blank.csv"], "every cell is empty"),
    "fraction": (["--validation", "1.5"], "validation is a fraction in [0, 1) or a CSV file, not 1.5"),
    "output in the images": (["--out", "{data}/images/model"], "lies inside the folder of images"),
    "output is a file": (["--out", "{data}/targets.csv"], "is a file: choose a folder"),
    "output holds files": (["--out", "{data}"], "holds other files"),
    "unknown backbone": (["--backbone", "vit"], "no backbone 'vit'; there is small, resnet18, resnet50"),
    "unknown coords": (["--coords", "last"], "no coords 'last'; there is none, first, all"),
    "unknown coordinates": (["--coordinates", "polar"], "no coordinates 'polar'"),
    "unknown head": (["--head", "dense"], "no head 'dense'; there is heatmap, pooled"),
    "pretrained and small": (["--pretrained", "x"], "the small one has none"),
    "unknown device": (["--device", "tpu"], "no device 'tpu'"),
    "no such device": (["--device", "cuda"], "no cuda device on this machine"),
    "not a number": (["--learning_rate", "nan"], "learning_rate"),
    "no learning": (["--learning_rate", "0"], "learning_rate must be above 0"),
    "no steps": (["--steps", "0"], "steps must be at least 1"),
    "a word": (["--steps", "many"], '"steps"'),
    "unknown flag": (["--stepz", "4"], "--stepz"),
    "tiny size": (["--size", "15"], "size must be at least 16"),
    "channels": (["--channels", "2"], "channels is 1, 3 or 0"),
    "large shift": (["--shift", "16"], "shift 16 must be below half of size 32"),
    "time limit": (["--time_limit", "0"], "time limit"),
    "threads": (["--threads", "0"], "--threads must be at least 1"),
    "no such settings": (["--config", "{data}/none.yaml"], "none.yaml"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_one_line(misuse: str, data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    square(data / "images/new.png", (40, 40), 20, 20)
    write(data / "other.csv", [("file", "eye_x", "eye_y"), ("new.png", 20, 20)])
    write(data / "blank.csv", [("file", "x", "y"), ("new.png", "", "")])
    arguments, text = MISUSES[misuse]
    status, _, err = train_on(run, data, tmp_path / "model", *[a.format(data=data) for a in arguments])
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert text.format(data=data) in err
    assert not (tmp_path / "model").exists()


def test_misuse_of_predict_is_one_line(tiny: Path, original: Path, tmp_path: Path, run: Run) -> None:
    model, images = tmp_path / "model", original / "images"
    shutil.copytree(tiny, model)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/0.png").touch()

    def error(*arguments: object) -> str:
        status, out, err = run(predict.command, *arguments)
        assert (status, out) == (2, "") and err.count("\n") == 1, err
        return err

    assert "holds no model (no model.json)" in error("--model", tmp_path / "nothing", "--images", images)
    assert "--images is missing" in error("--model", model)
    assert "holds no images" in error("--model", model, "--images", tmp_path / "nothing")
    assert "does not exist" in error("--model", model, "--images", tmp_path / "none")
    assert "no device 'x'" in error("--model", model, "--images", images, "--device", "x")
    assert "--batch_size must be at least 1" in error("--model", model, "--images", images, "--batch_size", 0)
    assert "lies inside the folder of images" in error("--model", model, "--images", images, "--draw", images / "x")
    assert "is a file" in error("--model", model, "--images", images, "--draw", original / "tiny.yaml")
    broken = error("--model", model, "--images", tmp_path / "broken", "--out", tmp_path / "found.csv")
    assert "broken/0.png cannot be read as an image (it is empty)" in broken and not (tmp_path / "found.csv").exists()
    info = json.loads((model / "model.json").read_text())
    (model / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes()[:500])
    assert "weights.safetensors is damaged" in error("--model", model, "--images", images)
    (model / "weights.safetensors").unlink()
    assert "weights.safetensors is missing" in error("--model", model, "--images", images)
    (model / "model.json").write_text(json.dumps({**info, "schema_version": 2}))
    assert "has schema version 2, and this code reads 1" in error("--model", model, "--images", images)
    (model / "model.json").write_text(json.dumps({"schema_version": 1}))
    assert "model.json is damaged" in error("--model", model, "--images", images)


# ---------------------------------------------------------------- predicting and reading


def test_predicting_from_paths_and_arrays(tiny: Path, original: Path, run: Run) -> None:
    model, info = predict.load_model(tiny)
    assert not model.training and isinstance(info, ModelInfo)
    paths = sorted((original / "images/a").glob("*.png"))
    together = predict.predict_points(model, info, paths)
    assert np.allclose(together, predict.predict_points(model, info, paths, batch_size=3), atol=1e-4)
    for path, points in zip(paths, together, strict=True):
        array = np.asarray(open_image(path))[None, ..., :1]
        assert np.allclose(predict.predict_points(model, info, array)[0], points, atol=0.05)
    with pytest.raises(ValueError, match="uint8"):
        predict.predict_points(model, info, np.zeros((2, 9, 8, 3), np.uint8))
    status, out, _ = run(predict.command, "--model", tiny, "--images", paths[0])
    (row,) = csv.DictReader(io.StringIO(out))
    assert status == 0 and row["file"] == paths[0].name
    assert [float(row["x"]), float(row["y"])] == pytest.approx(together[0, 0], abs=0.006)


def test_points_follow_their_images(tmp_path: Path) -> None:
    """Stretching and the random moves of training take the points along."""
    sizes = np.array([[64, 32], [90, 120]])
    points = np.array([[[20.0, 10.0]], [[70.0, 33.0]]])
    for (width, height), (x, y), name in zip(sizes, points[:, 0], "ab", strict=True):
        square(tmp_path / f"{name}.png", (int(width), int(height)), x, y)
    images, found = read_images([tmp_path / "a.png", tmp_path / "b.png"], 32)
    assert (found == sizes).all() and images.shape == (2, 32, 32, 1)
    square_points = to_square(points, sizes)
    assert np.allclose(to_pixels(square_points, sizes), points, atol=1e-5)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Spy(keypoints.Regression):
        def optimise(self, step, index, draws, targets):  # type: ignore[no-untyped-def]
            seen.append((self.images["train"].gather(index, self.augmentation, draws), targets))
            return {}

    module = Spy(keypoints.KeyPoints(torch.nn.Identity(), torch.nn.Identity()), Config(size=32, batch_size=2, shift=3),
                 {"train": keypoints.PartOfData(images, points, sizes)}, 0, keypoints.Execution())  # fmt: skip
    module.on_fit_start()
    module.training_step((0, 4))
    moved = set()
    for batch, targets in seen:
        for image, target in zip(batch[:, 0], targets[:, 0], strict=True):
            rows, columns = (image > 0).nonzero().float().mean(0)
            assert torch.allclose(torch.stack([columns, rows]), (target + 1) * 16 - 0.5, atol=0.6)
            moved.add((round(float(columns)), round(float(rows))))
    assert len(moved) > 4


def test_loss_ignores_what_is_missing_or_moved_out() -> None:
    nan = float("nan")
    predicted = torch.tensor([[[0.5, 0.0], [0.2, 0.2]], [[0.1, 0.1], [0.3, 0.3]]], requires_grad=True)
    targets = torch.tensor([[[0.1, 0.0], [nan, nan]], [[1.01, 0.0], [nan, nan]]])
    loss = keypoints.regression_loss(predicted, targets)
    assert loss.item() == pytest.approx(0.4 - 0.02)
    loss.backward()
    assert predicted.grad is not None and (predicted.grad != 0).sum() == 1 and predicted.grad.isfinite().all()
    assert keypoints.regression_loss(predicted, torch.full((2, 2, 2), nan)).item() == 0


def test_heatmap_reads_the_place_of_a_peak() -> None:
    head = keypoints.HeatmapHead(1, 1)
    features = torch.zeros(1, 1, 4, 8)
    assert torch.allclose(head(features), torch.zeros(1, 1, 2), atol=1e-6)
    features[0, 0, 1, 6] = 1
    with torch.no_grad():
        head.scores.weight.fill_(50.0)
        assert torch.allclose(head(features), torch.tensor([[[2 * 6.5 / 8 - 1, 2 * 1.5 / 4 - 1]]]), atol=1e-6)
        head.offsets.bias.copy_(torch.tensor([0.1, -0.2]))
        assert torch.allclose(head(features), torch.tensor([[[0.725, -0.45]]]), atol=1e-6)


def test_errors_are_of_known_points_in_pixels_of_the_original() -> None:
    points = np.array([[[3.0, 4.0], [np.nan, np.nan]], [[10.0, 10.0], [0.0, 0.0]]])
    predicted = np.array([[[0.0, 0.0], [9.0, 9.0]], [[10.0, 10.0], [0.0, 1.0]]])
    error = errors_of(predicted, points, np.array([[30, 40], [6, 8]]))
    assert error == {"pixels": 2.0, "percent": pytest.approx(100 * (5 / 50 + 1 / 10) / 3), "points": 3}


def test_tables_of_spreadsheets_are_read(tmp_path: Path) -> None:
    square(tmp_path / "ä 1.png", (40, 20), 20, 10)
    for delimiter, text in (
        (";", "﻿file;nose_x;nose_y\r\nä 1.png;12.5; 7 \r\n"),
        ("\t", "file\tnose_x\tnose_y\nä 1.png\t12.5\t7"),
    ):
        (tmp_path / "targets.csv").write_bytes(text.encode())
        table = read_table(tmp_path / "targets.csv", tmp_path)
        assert table.columns == ("nose_x", "nose_y") and table.files == ("ä 1.png",), delimiter
        assert table.points.tolist() == [[[12.5, 7.0]]] and table.sizes.tolist() == [[40, 20]]


def test_images_are_upright_eight_bits_and_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (10, 20)
    write(tmp_path / "targets.csv", [("file", "x", "y"), ("turned.png", 5, 18)])
    assert read_table(tmp_path / "targets.csv", tmp_path).sizes.tolist() == [[10, 20]]
    ramp = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    for name, array in {"a.png": ramp.astype(np.uint16) * 257, "b.tif": (ramp / 255).astype(np.float32)}.items():
        Image.fromarray(array).save(tmp_path / name)
        assert (np.asarray(open_image(tmp_path / name))[..., 1] == ramp).all(), name
    Image.fromarray(ramp.astype(np.int32) * 70_000).save(tmp_path / "c.tif")
    with pytest.raises(UserError, match=r"c\.tif cannot be read as an image \(its values lie outside 0\.\.65535\)"):
        read_images([tmp_path / "c.tif"], 4)
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "clear.png")
    assert (np.asarray(open_image(tmp_path / "clear.png")) == 255).all()


def test_held_out_rows_and_fingerprint_are_functions_of_data_and_seed(original: Path, tmp_path: Path) -> None:
    def parts(root: Path, seed: int, name: str = "targets.csv") -> Any:
        return split(root / "images", Config(targets=f"../{name}", validation="0.25"), seed)

    first = parts(original, 0)
    assert len(first.validation.files) == 8 and not set(first.validation.files) & set(first.train.files)
    assert parts(original, 1).validation.files != first.validation.files
    copied = Path(shutil.copytree(original, tmp_path / "copy"))
    assert fingerprint(parts(copied, 0)) == fingerprint(first) != fingerprint(parts(copied, 1))
    rows = list(csv.reader((copied / "targets.csv").open()))
    write(copied / "other.csv", [*rows[:-1], [rows[-1][0], "16", "16.5"]])
    assert fingerprint(parts(copied, 0, "other.csv")) != fingerprint(first)
    square(copied / "images" / rows[1][0], (40, 40), 20, 20)
    assert fingerprint(parts(copied, 0)) != fingerprint(first)
