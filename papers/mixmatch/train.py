"""MixMatch, or one of its baselines, on your own images: `python -m papers.mixmatch.train --data FOLDER --out FOLDER`.

The data folder is described in `own_data`. The same command resumes what was interrupted and repeats nothing that is
finished; other data, settings or code move the old output folder aside and start anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from common.command import parse
from common.errors import UserError, main
from common.own_data import PLAIN, check_out, execution_of, finish, options_of
from common.runs import Data, Execution, RunSpec
from papers.mixmatch.config import CHOICES, Config
from papers.mixmatch.own_data import fingerprint, scan
from papers.mixmatch.reproduce import baselines

NAMED_DATA = ("dataset", "split", "num_labeled")
NO_FLAGS = (*NAMED_DATA, "median_of")
# Shorter than the paper's 2^20 steps, and averages that follow; the rest of `Config` stays as it is.
DEFAULTS: dict[str, Any] = {
    "method": "mixmatch",
    "steps": 10_000,
    "median_of": 1,
    "evaluate_every": 500,
    "checkpoint_every": 200,
    "log_every": 50,
    "evaluation_batch_size": 256,
}
# What follows from method, steps, size and device where it is not given: see `settings_of`.
DERIVED = (
    "bn_momentum",
    "ema_decay",
    "ramp_steps",
    "reflect_crop",
    "steps_per_call",
    "unlabeled_weight",
    "weight_decay",
    "alpha",
    "label_smoothing",
)
HELP = {
    "method": "mixmatch or a baseline to compare with",
    "model": "wrn-stl10 suits 96 pixels, convnet is small and fast",
    "conv_bias": "biases in the Wide ResNet's convolutions",
    "bn_momentum": "of BatchNorm's running statistics; default 100 / steps, between 0.001 and 0.1",
    "steps": "optimisation steps",
    "batch_size": "labelled images a step",
    "unlabeled_batch_size": "unlabelled images a step",
    "learning_rate": "Adam's, constant",
    "weight_decay": "times the learning rate, a step; default 0.02, or the baseline's own",
    "ema_decay": "of the averaged weights; default 1 - 10 / steps, at most 0.999",
    "ramp_steps": "steps over which the unlabelled weight rises; default all, at most 16384 (baselines: 0.4 steps)",
    "unlabeled_weight": "lambda_U; default 75, or the baseline's own. Lower it when training is unstable",
    "num_views": "K, augmented views of an unlabelled image",
    "temperature": "T of the sharpening; 1 for none",
    "alpha": "of MixUp's Beta distribution; default 0.75",
    "mixing": "what labelled and unlabelled images are mixed with",
    "per_item_lambda": "one lambda an image, or one a step",
    "batch_norm": "how BatchNorm sees the batches of a step",
    "interleave": "exchange images between the mixed batches",
    "guess_with": "weights that guess labels",
    "unlabeled_loss": "of the unlabelled images",
    "threshold": "Pseudo-Label's",
    "vat_epsilon": "VAT's",
    "entropy_weight": "VAT's",
    "label_smoothing": "of the labels; default 0, or the baseline's own",
    "flip": "mirror at random; say false where left and right mean something (digits, text)",
    "reflect_crop": "random moves by so many pixels, reflected at the border; default size / 8",
    "shift": "random moves by so many pixels, black at the border",
    "cutout": "side of a square that is blanked",
    "noise": "standard deviation of Gaussian noise (pixels lie in -1..1)",
    "evaluate_every": "steps between two measurements of the test error",
    "checkpoint_every": "steps between two checkpoints",
    "log_every": "steps between two measurements of the losses",
    "steps_per_call": "steps between two looks at Ctrl-C; default 4, on a GPU 32",
    "evaluation_batch_size": "images at once when the error is measured",
}


def build_parser() -> Any:
    """The command line: the settings of `Config` by name, and where and how to train."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="python -m papers.mixmatch.train",
        description="Train on a folder of images: a sub-folder of labelled images for each class, one named "
        "'unlabeled', and optionally 'test' with a sub-folder for each class.",
        exit_on_error=False,
    )
    parser.add_argument("--data", default=None, type=str | None, help="the folder of images (required)")
    parser.add_argument("--out", default=None, type=str | None, help="folder for the trained model (required)")
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_argument("--size", default=32, type=int, help="side to which images are scaled and cut")
    parser.add_argument("--channels", default=0, type=int, help="1 grey, 3 colour, 0 as the images are")
    parser.add_argument(
        "--skip_unreadable", "--skip-unreadable", action="store_true", help="leave out unreadable files"
    )
    parser.add_argument("--seed", default=0, type=int, help="of initialisation, order and augmentation")
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
        if name in NO_FLAGS:
            continue
        about = HELP.get(name, "") + (f" ({', '.join(CHOICES[name])})" if name in CHOICES else "")
        kind: Any = setting.type
        if name in DERIVED:
            parser.add_argument(f"--{name}", default=None, type=kind | None, help=about)
        else:
            parser.add_argument(f"--{name}", default=DEFAULTS.get(name, setting.default), type=kind, help=about)
    return parser


def settings_of(given: Mapping[str, Any], size: int, device: str = "cpu") -> Config:
    """All settings; what is not given, or None, follows from method, steps, size and device. ValueError as `Config`."""
    chosen = {name: value for name, value in given.items() if value is not None}
    steps, method = chosen.get("steps", DEFAULTS["steps"]), chosen.get("method", DEFAULTS["method"])
    defaults = {
        **DEFAULTS,
        "bn_momentum": min(0.1, max(0.001, 100 / max(1, steps))),
        "ema_decay": max(0.0, min(0.999, 1 - 10 / max(1, steps))),
        # A weight that rises early makes a network that knows nothing confirm its own guesses: on digits (500 steps,
        # two seeds) the error was 17 % with a ramp over a tenth of the steps, 6 % over all of them.
        "ramp_steps": min(steps, 16_384),
        "reflect_crop": size // 8,
        "steps_per_call": 4 if device == "cpu" else 32,
        **baselines("cifar10", steps).get(method, {}),
    }
    return Config(**{**defaults, **chosen})


def _check(parsed: Any) -> Config:
    """Everything that can be said of the arguments alone."""
    for name in ("data", "out"):
        if not parsed[name]:
            raise UserError(f"--{name} is missing: give --data FOLDER --out FOLDER; --help explains them")
    if parsed.size < 4:
        raise UserError(f"--size must be at least 4, not {parsed.size}")
    if parsed.channels not in (0, 1, 3):
        raise UserError(f"--channels is 1, 3 or 0 (as the images are), not {parsed.channels}")
    if parsed.threads is not None and parsed.threads < 1:
        raise UserError(f"--threads must be at least 1, not {parsed.threads}")
    options_of(parsed).check()
    try:
        settings = settings_of(_given(parsed), parsed.size)
    except ValueError as error:
        raise UserError(str(error)) from None
    if settings.reflect_crop >= parsed.size:
        raise UserError(f"--reflect_crop {settings.reflect_crop} must be smaller than --size {parsed.size}")
    if settings.model == "convnet13" and parsed.size < 28:
        raise UserError(f"the model convnet13 needs --size 28 or more, not {parsed.size}")
    return settings


def _given(parsed: Any) -> dict[str, Any]:
    return {field.name: parsed[field.name] for field in fields(Config) if field.name not in NO_FLAGS}


def _check_out(out: Path, data: Path) -> None:
    if out == data or data in out.parents:
        raise UserError(f"--out {out} lies inside the data folder, where it would be taken for images: choose another")
    check_out(out)


def make_spec(parsed: Any, execution: Execution) -> RunSpec:
    """The run as `common.runs` knows it. UserError for a data folder that cannot be used; no image is opened."""
    data, out = Path(parsed.data).resolve(), Path(parsed.out).resolve()
    settings = settings_of(_given(parsed), parsed.size, execution.device)
    _check_out(out, data)
    config = {name: value for name, value in asdict(settings).items() if name not in NAMED_DATA}
    return RunSpec(
        paper="mixmatch",
        preset="own-data",
        experiment="own-data",
        method=settings.method,
        seed=parsed.seed,
        function="papers.mixmatch.own_data:run",
        config={**config, "size": parsed.size, "channels": parsed.channels, "skip_unreadable": parsed.skip_unreadable},
        folder=out,
        execution=execution,
        data=(Data("own-data", data.name, fingerprint(scan(data, settings.views_needed > 0))),),
        data_dir=data,
        tensorboard=parsed.tensorboard,
    )


def command(arguments: Sequence[str] | None = None) -> int:
    """The whole command; the exit status. UserError for everything the user can mend."""
    parsed, console = parse(build_parser(), arguments), Console()
    settings = _check(parsed)
    # Looked at before torch is imported, so that a wrong folder is answered at once.
    scan(Path(parsed.data), settings.views_needed > 0)
    execution = execution_of(parsed)
    spec = make_spec(parsed, execution)
    advice = (
        f"lower --learning_rate (it was {settings.learning_rate:g}) or --unlabeled_weight "
        f"({settings.unlabeled_weight:g})"
    )
    info = finish(spec, parsed.time_limit, console, advice)
    if isinstance(info, int):
        return info
    out = Path(parsed.out)
    console.print(f"model: {out / 'weights.safetensors'} (averaged weights), {out / 'model.json'}", **PLAIN)
    if error := info["test_error"]:
        console.print(
            f"test error: {error['percent']:.2f} % (95 % interval {error['low']:.2f} to {error['high']:.2f}, "
            f"{error['examples']} images)",
            **PLAIN,
        )
    else:
        console.print(f"test error: not known without a folder {Path(parsed.data) / 'test'}", **PLAIN)
    console.print(f"next: python -m papers.mixmatch.predict --model {out} --images FOLDER", **PLAIN)
    return 0


if __name__ == "__main__":
    main(command)
