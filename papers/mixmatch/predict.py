"""Classes of new images by a trained model: `python -m papers.mixmatch.predict --model FOLDER --images FOLDER`.

As a library:

    model, info = load_model("runs/pets")
    probabilities = predict_images(model, info, ["a.jpg", "b.png"])     # [2, number of classes]
"""

import csv
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.command import parse
from common.data.images import image_files, readable_name
from common.errors import UserError, main
from common.files import read_json, write_text
from papers.mixmatch.own_data import OWN_SETTINGS, SCHEMA_VERSION, ModelInfo, read_images

if TYPE_CHECKING:
    from torch import nn

BATCH_SIZE = 256


def read_info(folder: Path) -> ModelInfo:
    """The `model.json` of a trained model. UserError where there is none, or it is another version's or damaged."""
    path = folder / "model.json"
    if not path.exists():
        if (folder / "run.json").exists():
            raise UserError(f"the training in {folder} has not finished: run the same train command again")
        raise UserError(f"{folder} holds no model (no model.json): give the --out folder of papers.mixmatch.train")
    document = read_json(path)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, and this code reads {SCHEMA_VERSION}: use the code it was trained "
            "with, or train again"
        )
    if missing := {field.name for field in fields(ModelInfo)} ^ set(document):
        raise UserError(f"{path} is damaged ({', '.join(sorted(missing))}): train again")
    return ModelInfo(**{**document, "class_names": tuple(document["class_names"])})


def load_model(folder: Path | str, device: str = "cpu") -> tuple["nn.Module", ModelInfo]:
    """A trained network (averaged weights, evaluation mode) and what is known of it.

    It maps float images [N, info.channels, H, W], pixel * info.scale + info.offset, to logits [N, number of classes].
    Raises UserError in one line for a folder without a model and for missing or damaged files.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from papers.mixmatch.config import Config
    from papers.mixmatch.module import build_model

    folder = Path(folder)
    info = read_info(folder)
    path = folder / "weights.safetensors"
    config = Config.of({name: value for name, value in info.config.items() if name not in OWN_SETTINGS})
    model = build_model(config, len(info.class_names), info.channels)
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: train again") from None
    except (SafetensorError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:100]
        raise UserError(f"{path} is damaged or not of this model ({cause}): train again") from None
    return model.to(torch.device(device)).eval(), info


def predict_images(
    model: "nn.Module",
    info: ModelInfo,
    images: Sequence[Path | str] | np.ndarray,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Class probabilities float32 [N, number of classes] of image files, or of uint8 images [N, size, size, C].

    Raises UserError naming a file that cannot be read, and ValueError for an array of another shape or type.
    """
    import torch

    if not isinstance(images, np.ndarray):
        images = read_images([Path(path) for path in images], info.size, info.channels).images
    expected = (info.size, info.size, info.channels)
    if images.dtype != np.uint8 or images.shape[1:] != expected:
        raise ValueError(f"images must be uint8 [N, {expected}], not {images.dtype} {list(images.shape)}")
    device = next(model.parameters()).device
    rows = [np.empty((0, len(info.class_names)), np.float32)]
    with torch.inference_mode():
        for first in range(0, len(images), batch_size):
            pixels = torch.from_numpy(images[first : first + batch_size]).to(device).permute(0, 3, 1, 2)
            rows.append(model(pixels.float() * info.scale + info.offset).float().softmax(1).cpu().numpy())
    return np.concatenate(rows)


def table(
    info: ModelInfo, names: Sequence[str], probabilities: np.ndarray, top: int = 1, every: bool = False
) -> Iterator[list[str]]:
    """Rows of the CSV file: file, then `top` pairs of class and probability, then every class's if wanted."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    for name, row, best in zip(names, probabilities, order, strict=True):
        pairs = itertools.chain.from_iterable((info.class_names[i], f"{row[i]:.6f}") for i in best)
        yield [name, *pairs, *([f"{value:.6f}" for value in row] if every else [])]


def header(info: ModelInfo, top: int = 1, every: bool = False) -> list[str]:
    """The names of the columns of `table`."""
    pairs = [text + ("" if i == 0 else f"_{i + 1}") for i in range(top) for text in ("class", "probability")]
    return ["file", *pairs, *([f"p({name})" for name in info.class_names] if every else [])]


def build_parser() -> Any:
    """The command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="python -m papers.mixmatch.predict",
        description="Classify images with a trained model; the answer is CSV: file, class, probability.",
        exit_on_error=False,
    )
    parser.add_argument("--model", default=None, type=str | None, help="the --out folder of the training (required)")
    parser.add_argument("--images", default=None, type=str | None, help="an image or a folder of images (required)")
    parser.add_argument("--out", default=None, type=str | None, help="CSV file to write; without it, standard output")
    parser.add_argument("--top", default=1, type=int, help="how many of the likeliest classes")
    parser.add_argument("--probabilities", action="store_true", help="add a column with the probability of each class")
    parser.add_argument(
        "--skip_unreadable", "--skip-unreadable", action="store_true", help="leave out unreadable files"
    )
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


def command(arguments: Sequence[str] | None = None) -> int:
    """The whole command; the exit status. UserError for everything the user can mend."""
    parsed = parse(build_parser(), arguments)
    for name in ("model", "images"):
        if not parsed[name]:
            raise UserError(f"--{name} is missing: give --model FOLDER --images FOLDER; --help explains them")
    info = read_info(Path(parsed.model))
    if not 1 <= parsed.top <= len(info.class_names):
        raise UserError(f"--top lies between 1 and the {len(info.class_names)} classes of the model, not {parsed.top}")
    if parsed.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {parsed.batch_size}")
    paths, names = _files(Path(parsed.images))

    from common.engines import probe_devices
    from common.paper import Preset
    from common.reproduce import Options, choose_execution

    options = Options(device=parsed.device)
    options.check()
    model, info = load_model(parsed.model, choose_execution(Preset("", (), "", ""), options, probe_devices()).device)
    unreadable: list[str] = []

    def rows() -> Iterator[list[str]]:
        yield header(info, parsed.top, parsed.probabilities)
        for first in range(0, len(paths), parsed.batch_size):
            part = slice(first, first + parsed.batch_size)
            read = read_images(paths[part], info.size, info.channels, parsed.skip_unreadable)
            unreadable.extend(read.unreadable)
            kept = [names[part][i] for i in read.kept]
            yield from table(info, kept, predict_images(model, info, read.images), parsed.top, parsed.probabilities)

    if parsed.out:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows())
        write_text(Path(parsed.out), text.getvalue())
        print(f"{len(paths) - len(unreadable)} images: {parsed.out}")
    else:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows())
        sys.stdout.flush()
    if unreadable:
        print(f"left out: {len(unreadable)} files that cannot be read; the first: {unreadable[0]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main(command)
