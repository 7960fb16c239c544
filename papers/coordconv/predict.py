"""Key points in new images by a trained model: `python -m papers.coordconv.predict --model FOLDER --images FOLDER`.

As a library:

    model, info = load_model("runs/cats")
    points = predict_points(model, info, ["a.jpg", "b.png"])     # [2, K, 2]: x and y in pixels of each image
"""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.command import parse
from common.data.images import image_files, open_image, readable_name
from common.errors import UserError, main
from common.files import atomic_path, read_json, write_text
from papers.coordconv.own_data import (
    SCHEMA_VERSION,
    Config,
    ModelInfo,
    read_images,
    to_pixels,
)

if TYPE_CHECKING:
    from torch import nn

BATCH_SIZE = 256
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#ffe119")


def read_info(folder: Path) -> ModelInfo:
    """The `model.json` of a trained model. UserError where there is none, or it is another version's or damaged."""
    path = folder / "model.json"
    if not path.exists():
        if (folder / "run.json").exists():
            raise UserError(f"the training in {folder} has not finished: run the same train command again")
        raise UserError(f"{folder} holds no model (no model.json): give the --out folder of papers.coordconv.train")
    document = read_json(path)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, and this code reads {SCHEMA_VERSION}: use the code it was trained "
            "with, or train again"
        )
    if missing := {field.name for field in fields(ModelInfo)} ^ set(document):
        raise UserError(f"{path} is damaged ({', '.join(sorted(missing))}): train again")
    return ModelInfo(**{**document, "columns": tuple(document["columns"])})


def load_model(folder: Path | str, device: str = "cpu") -> tuple["nn.Module", ModelInfo]:
    """A trained network (evaluation mode) and what is known of it.

    It maps float images [N, info.channels, S, S], pixel * info.scale + info.offset, to coordinates [N, K, 2] between -1
    and 1 at the edges. Raises UserError in one line for a folder without a model and for missing or damaged files.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from papers.coordconv.keypoints import build

    folder = Path(folder)
    info = read_info(folder)
    path = folder / "weights.safetensors"
    model = build(Config(**info.config), info.channels, len(info.columns) // 2, info.backbone_config)
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: train again") from None
    except (SafetensorError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:100]
        raise UserError(f"{path} is damaged or not of this model ({cause}): train again") from None
    return model.to(torch.device(device)).eval(), info


def predict_points(
    model: "nn.Module",
    info: ModelInfo,
    images: Sequence[Path | str] | np.ndarray,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Key points float64 [N, K, 2], (x, y) in pixels of each image, of image files of any size, or of uint8 images
    [N, H, W, info.channels].

    Raises UserError naming a file that cannot be read, and ValueError for an array of another shape or type.
    """
    import torch

    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != info.channels:
            raise ValueError(
                f"images must be uint8 [N, H, W, {info.channels}], not {images.dtype} {list(images.shape)}"
            )
        sizes = np.tile(np.array([images.shape[2], images.shape[1]]), (len(images), 1))
        images = _stretched(images, info.size)
    else:
        images, sizes = read_images([Path(path) for path in images], info.size, info.channels)
    device = next(model.parameters()).device
    rows = [np.empty((0, len(info.columns) // 2, 2), np.float32)]
    with torch.inference_mode():
        for first in range(0, len(images), batch_size):
            pixels = torch.from_numpy(images[first : first + batch_size]).to(device).permute(0, 3, 1, 2)
            rows.append(model(pixels.float() * info.scale + info.offset).float().cpu().numpy())
    return to_pixels(np.concatenate(rows), sizes)


def _stretched(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, H, W, C] as [N, size, size, C], resampled as files are."""
    from PIL import Image

    if images.shape[1:3] == (size, size):
        return images
    rows = [
        np.asarray(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).resize((size, size)))
        for image in images
    ]
    return np.array(rows, np.uint8).reshape(len(images), size, size, images.shape[3])


def draw(path: Path, columns: Sequence[str], points: np.ndarray, target: Path) -> None:
    """Write the image with its key points [K, 2] marked, and named where they have names, as `target` (PNG)."""
    from PIL import ImageDraw

    image = open_image(path)
    pen = ImageDraw.Draw(image)
    radius = max(2.0, min(image.size) / 50)
    for k, (x, y) in enumerate(points):
        colour = COLOURS[k % len(COLOURS)]
        for r, shade in ((radius, colour), (radius + 1, "white")):
            pen.ellipse((x - r, y - r, x + r, y + r), outline=shade)
        pen.line((x - radius, y, x + radius, y), colour)
        pen.line((x, y - radius, x, y + radius), colour)
        if name := columns[2 * k][:-2]:
            pen.text((x + radius + 2, y - radius), name, fill=colour, stroke_width=1, stroke_fill="white")
    with atomic_path(target) as temporary:
        image.save(temporary, format="PNG")


def build_parser() -> Any:
    """The command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="python -m papers.coordconv.predict",
        description="Find key points with a trained model; the answer is CSV: file and the columns it was trained on.",
        exit_on_error=False,
    )
    parser.add_argument("--model", default=None, type=str | None, help="the --out folder of the training (required)")
    parser.add_argument("--images", default=None, type=str | None, help="an image or a folder of images (required)")
    parser.add_argument("--out", default=None, type=str | None, help="CSV file to write; without it, standard output")
    parser.add_argument("--draw", default=None, type=str | None, help="folder for the images with their points drawn")
    parser.add_argument("--batch_size", default=BATCH_SIZE, type=int, help="images at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _files(images: Path) -> tuple[list[Path], list[str]]:
    if not images.exists():
        raise UserError(f"{images} does not exist: give --images an image or a folder of images")
    if not images.is_dir():
        return [images], [readable_name(images.name)]
    paths = image_files(images)
    if not paths:
        raise UserError(f"{images} holds no images: give --images another folder")
    return paths, [readable_name(path.relative_to(images).as_posix()) for path in paths]


def _check(parsed: Any) -> None:
    for name in ("model", "images"):
        if not parsed[name]:
            raise UserError(f"--{name} is missing: give --model FOLDER --images FOLDER; --help explains them")
    if parsed.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {parsed.batch_size}")
    if parsed.draw:
        images, target = Path(parsed.images).resolve(), Path(parsed.draw).resolve()
        if images in (target, *target.parents):
            raise UserError(f"--draw {parsed.draw} lies inside the folder of images: choose another")
        if target.exists() and not target.is_dir():
            raise UserError(f"--draw {parsed.draw} is a file: choose a folder")


def command(arguments: Sequence[str] | None = None) -> int:
    """The whole command; the exit status. UserError for everything the user can mend."""
    parsed = parse(build_parser(), arguments)
    _check(parsed)
    info = read_info(Path(parsed.model))
    paths, names = _files(Path(parsed.images))

    from common.engines import probe_devices
    from common.paper import Preset
    from common.reproduce import Options, choose_execution

    options = Options(device=parsed.device)
    options.check()
    model, info = load_model(parsed.model, choose_execution(Preset("", (), "", ""), options, probe_devices()).device)

    def rows() -> Iterator[list[str]]:
        yield ["file", *info.columns]
        for first in range(0, len(paths), parsed.batch_size):
            part = slice(first, first + parsed.batch_size)
            for path, name, points in zip(
                paths[part], names[part], predict_points(model, info, paths[part]), strict=True
            ):
                if parsed.draw:
                    target = Path(parsed.draw, name)
                    draw(path, info.columns, points, target.with_name(target.name.removesuffix(".png") + ".png"))
                yield [name, *(f"{value:.2f}" for value in points.flat)]

    if parsed.out:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows())
        write_text(Path(parsed.out), text.getvalue())
        print(f"{len(paths)} images: {parsed.out}" + (f", drawn in {parsed.draw}" if parsed.draw else ""))
    else:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows())
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    main(command)
