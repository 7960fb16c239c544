"""Key points in your own images by regression: `python -m papers.coordconv.train --images FOLDER --targets CSV --out
FOLDER`.

The table is described in `own_data`, the networks in `keypoints`. The same command resumes what was interrupted and
repeats nothing that is finished; other data, settings or code move the old output folder aside and start anew.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from common.command import parse
from common.errors import UserError, main
from common.own_data import PLAIN, check_out, execution_of, finish, options_of
from common.runs import Data, Execution, RunSpec
from papers.coordconv.own_data import CHOICES, Config, Parts, fingerprint, split

# What follows from the backbone, size and steps where it is not given: see `settings_of`.
DERIVED = ("size", "learning_rate", "shift", "evaluate_every", "checkpoint_every", "steps_per_call")
HELP = {
    "backbone": "small is fast on a CPU; the ResNets need the package transformers",
    "coords": "which convolutions of the backbone know the coordinates; none is the plain network to compare with",
    "coordinates": "how they enter: scaled to [-1, 1], as pixel numbers, or as Fourier features",
    "radius": "the distance from the middle as a third coordinate",
    "head": "heatmap learns well from few images; pooled is the usual regression head, blind to places",
    "pretrained": "weights of a ResNet: a folder written by save_pretrained, or a hub name such as microsoft/resnet-18",
    "size": "side to which images are stretched; default 64, for a ResNet 128",
    "channels": "1 grey, 3 colour, 0 as the images are (the ResNets always take colour)",
    "targets": "CSV file with the columns file and x,y or nose_x,nose_y,... in pixels (required)",
    "validation": "part of the rows that is held out to choose the best weights by, or a CSV file with other rows",
    "test": "CSV file with rows that are only measured on, at the end",
    "steps": "optimisation steps",
    "batch_size": "images a step",
    "learning_rate": "AdamW's highest; it rises over a 20th of the steps, then falls; default 0.002, ResNets 0.0005",
    "weight_decay": "AdamW's",
    "shift": "random moves of images and points by up to so many pixels of the stretched image; default size / 16",
    "noise": "standard deviation of Gaussian noise (pixels lie in -1..1)",
    "evaluate_every": "steps between two measurements of the validation error; default a 20th of the steps",
    "checkpoint_every": "steps between two checkpoints; default a 20th of the steps, at most 200",
    "log_every": "steps between two measurements of the loss",
    "steps_per_call": "steps between two looks at Ctrl-C; default 4, on a GPU 32",
    "evaluation_batch_size": "images at once when the error is measured",
}


def build_parser() -> Any:
    """The command line: the settings of `Config` by name, and where and how to train."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="python -m papers.coordconv.train",
        description="Learn to find key points in images from a folder of images and a CSV file with the points.",
        exit_on_error=False,
    )
    parser.add_argument("--images", default=None, type=str | None, help="the folder of images (required)")
    parser.add_argument("--out", default=None, type=str | None, help="folder for the trained model (required)")
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_argument("--seed", default=0, type=int, help="of initialisation, held-out rows, order and augmentation")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--compile", default="auto", help="torch.compile: auto (on a GPU), yes or no")
    parser.add_argument("--deterministic", action="store_true", help="torch's deterministic algorithms")
    parser.add_argument("--threads", default=None, type=int | None, help="of the processor; default all cores")
    parser.add_argument("--time_limit", default=None, type=float | None, help="seconds after which to stop, resumable")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard files too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for setting in fields(Config):
        name = setting.name
        about = HELP[name] + (f" ({', '.join(CHOICES[name])})" if name in CHOICES else "")
        kind: Any = setting.type
        if name in DERIVED or name == "targets":
            parser.add_argument(f"--{name}", default=None, type=kind | None, help=about)
        else:
            # A fraction on the command line and a number in a YAML file are both meant.
            kind = str | float if name == "validation" else kind
            parser.add_argument(f"--{name}", default=setting.default, type=kind, help=about)
    return parser


def settings_of(given: Mapping[str, Any], device: str = "cpu") -> Config:
    """All settings; what is not given, or None, follows from backbone, steps and size. ValueError as `Config`."""
    chosen = {name: value for name, value in given.items() if value is not None}
    small = chosen.get("backbone", "small") == "small"
    steps, size = chosen.get("steps", Config.steps), chosen.get("size", 64 if small else 128)
    defaults = {
        "size": size,
        "learning_rate": 0.002 if small else 0.0005,
        "shift": max(1, size // 16),
        "evaluate_every": max(1, steps // 20),
        "checkpoint_every": min(200, max(1, steps // 20)),
        "steps_per_call": 4 if device == "cpu" else 32,
    }
    if "validation" in chosen:
        chosen["validation"] = str(chosen["validation"])
    return Config(**{**defaults, **chosen})


def _check(parsed: Any) -> Config:
    """Everything that can be said of the arguments alone."""
    for name in ("images", "targets", "out"):
        if not parsed[name]:
            raise UserError(f"--{name} is missing: give --images FOLDER --targets CSV --out FOLDER; see --help")
    if parsed.threads is not None and parsed.threads < 1:
        raise UserError(f"--threads must be at least 1, not {parsed.threads}")
    options_of(parsed).check()
    try:
        settings = settings_of(_given(parsed))
    except ValueError as error:
        raise UserError(str(error)) from None
    images, out = Path(parsed.images), Path(parsed.out)
    if not images.is_dir():
        raise UserError(f"--images {images} is not a folder: give the folder of the images that the table names")
    if images.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out} lies inside the folder of images: choose another")
    check_out(out)
    return settings


def _given(parsed: Any) -> dict[str, Any]:
    """The settings, with the tables' paths relative to the images: a copy of both elsewhere is the same data."""
    given = {setting.name: parsed[setting.name] for setting in fields(Config)}
    for name in ("targets", "validation", "test"):
        path = given[name]
        if path and not (name == "validation" and _is_number(path)):
            if not Path(path).is_file():
                raise UserError(f"--{name} {path}: there is no such file")
            given[name] = os.path.relpath(path, parsed.images)
    return given


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


def _weights_fingerprint(pretrained: str) -> str:
    """Hash of a local folder's files; a hub name stands for itself."""
    if not Path(pretrained).is_dir():
        return pretrained
    total = hashlib.sha256()
    for path in sorted(path for path in Path(pretrained).iterdir() if path.is_file()):
        with open(path, "rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:32]


def make_spec(parsed: Any, parts: Parts, execution: Execution) -> RunSpec:
    """The run as `common.runs` knows it."""
    images = Path(parsed.images).resolve()
    settings = settings_of(_given(parsed), execution.device)
    data = [Data("own-data", images.name, fingerprint(parts))]
    if settings.pretrained:
        data.append(Data("pretrained", Path(settings.pretrained).name, _weights_fingerprint(settings.pretrained)))
    return RunSpec(
        paper="coordconv",
        preset="own-data",
        experiment="own-data",
        method="plain" if settings.coords == "none" else f"coordconv-{settings.coords}",
        seed=parsed.seed,
        function="papers.coordconv.own_data:run",
        config=asdict(settings),
        folder=Path(parsed.out).resolve(),
        execution=execution,
        data=tuple(data),
        data_dir=images,
        tensorboard=parsed.tensorboard,
    )


def in_words(errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The errors of `model.json`, one line each, with what to think of them."""
    remarks = {"validation": " (the weights were chosen by it, so it is a little low)", "train": ""}
    return [
        f"{name} error: {error['pixels']:.2f} pixels, {error['percent']:.2f} % of the diagonal, mean over "
        f"{error['points']:.0f} points{remarks.get(name, '')}"
        for name, error in sorted(errors.items(), reverse=True)
    ]


def command(arguments: Sequence[str] | None = None) -> int:
    """The whole command; the exit status. UserError for everything the user can mend."""
    parsed, console = parse(build_parser(), arguments), Console()
    settings = _check(parsed)
    parts = split(Path(parsed.images), settings, parsed.seed)
    execution = execution_of(parsed)
    if settings.backbone != "small":
        from papers.coordconv.keypoints import resnet_config

        resnet_config(settings)
    spec = make_spec(parsed, parts, execution)
    advice = f"lower --learning_rate (it was {settings.learning_rate:g})"
    info = finish(spec, parsed.time_limit, console, advice)
    if isinstance(info, int):
        return info
    out = Path(parsed.out)
    kept = "best on validation, of" if "validation" in info["errors"] else "the last, of"
    console.print(
        f"model: {out / 'weights.safetensors'} ({kept} step {info['best_step']}), {out / 'model.json'}", **PLAIN
    )
    console.print(*in_words(info["errors"]), sep="\n", **PLAIN)
    console.print(f"next: python -m papers.coordconv.predict --model {out} --images FOLDER", **PLAIN)
    return 0


if __name__ == "__main__":
    main(command)
