"""The user's own files as a corpus, and the training run on them. The command is `train`; importing loads no torch.

    any files            bytes, one file after the other; .gz, .bz2, .xz and .zip are decompressed
    images of one size   a folder of image files, or one .npy/.npz with a uint8 array [N, H, W] or [N, H, W, C]
    recordings           WAV files, as 8-bit mu-law samples
    chorales             a JSON file like Jsb16thSeparated.json

The last twentieth is for the test and the one before for validation (of images, random ones).
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import read_json, write_json
from common.runs import Folder
from papers.sparse_transformer.config import Config

if TYPE_CHECKING:
    from papers.sparse_transformer.data import Corpus

SCHEMA_VERSION = 1
KINDS = ("auto", "bytes", "images", "audio", "chorales")
RATE = 12_000
OWN_SETTINGS = ("kind", "rate")
"""What a run on own data has in its config besides `Config`: what the files are, samples of a recording a second."""

SUMMARY = 8
CONTEXT = 512
UNITS = {"text": "byte", "bytes": "byte", "image": "dimension", "audio": "sample", "midi": "token"}
"""What one token is, for bits per token."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of the weights in a folder.

    decode: how samples are shown, "text", "image", "audio", "midi" or "bytes". vocabulary: every token lies below it.
    grid: (H, W, C) of an image, else None. label: the data's name. config: the settings it was trained with. rate:
    samples of a recording a second. tokens: of each part. bits: per token, of "test", "validation" and "train", at the
    end; of evaluation_items windows each where that is not 0.
    """

    decode: str
    vocabulary: int
    grid: tuple[int, ...] | None
    label: str
    config: Mapping[str, Any]
    rate: int = RATE
    tokens: Mapping[str, int] = field(default_factory=dict)
    bits: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    schema_version: int = SCHEMA_VERSION

    @property
    def context(self) -> int:
        """Tokens that the model sees at once."""
        return int(self.config["context"])


def read_info(folder: Path) -> ModelInfo:
    """Of a training on own data its `model.json`, of a run of the experiments its `settings.json`.

    UserError where there is neither, the training has not finished, or the file is another version's or damaged.
    """
    path = folder / "model.json"
    if not path.exists():
        if not (folder / "settings.json").exists():
            if (folder / "run.json").exists():
                raise UserError(f"the training in {folder} has not finished: run the same train command again")
            raise UserError(f"{folder} holds no model: give the --out folder of papers.sparse_transformer.train")
        path = folder / "settings.json"
    document = read_json(path)
    version = document.get("schema_version", SCHEMA_VERSION) if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, and this code reads {SCHEMA_VERSION}: use the code it was trained "
            "with, or train again"
        )
    known = {entry.name for entry in fields(ModelInfo)}
    if missing := {"decode", "vocabulary", "grid", "label", "config"} - set(document):
        raise UserError(f"{path} is damaged (without {', '.join(sorted(missing))}): train again")
    values = {name: value for name, value in document.items() if name in known}
    grid = values["grid"]
    return ModelInfo(**{**values, "grid": None if grid is None else tuple(grid)})


# ---------------------------------------------------------------- data


def read(path: Path, kind: str = "auto", rate: int = RATE, context: int | None = None) -> "Corpus":
    """The files as tokens; once, although the command and the run both ask. UserError as `data.corpus_of_files`."""
    from papers.sparse_transformer.readers import files_of

    state = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files_of([path]))
    if not any(size for _, _, size in state):
        raise UserError(f"{path} is empty: give a file or a folder with data")
    return _read(path, kind, rate, context, state)


@functools.lru_cache(maxsize=1)
def _read(path: Path, kind: str, rate: int, context: int | None, state: tuple[tuple[str, int, int], ...]) -> "Corpus":
    from papers.sparse_transformer.data import corpus_of_files

    return corpus_of_files([path], context, kind, rate)


def fingerprint(corpus: "Corpus") -> str:
    """Hash of every token and of what tokens are (32 hex digits). A copy of the files elsewhere has the same."""
    total = hashlib.sha256(f"{corpus.kind} {corpus.vocabulary} {corpus.grid} {corpus.decode}".encode())
    for part in (corpus.train, corpus.validation, corpus.test):
        total.update(f" {part.shape} ".encode())
        total.update(part.tobytes())
    return total.hexdigest()[:32]


def tokens_of(corpus: "Corpus") -> dict[str, int]:
    """How many tokens each part has."""
    return {name: int(getattr(corpus, name).size) for name in ("train", "validation", "test")}


def describe(corpus: "Corpus", config: Config) -> list[str]:
    """Data and network in words, one line each."""
    if corpus.grid is None:
        counts, what = tokens_of(corpus), {"midi": "notes", "audio": "samples"}.get(corpus.decode, "bytes")
        shape = ""
    else:
        counts, what = {name: len(getattr(corpus, name)) for name in ("train", "validation", "test")}, "images"
        shape = "; {}x{} {}".format(*corpus.grid[:2], {1: "grey", 3: "colour"}.get(corpus.grid[2], "pixels"))
    summary = f", summary {config.summary}" if config.summary else ""
    return [
        f"data: {corpus.decode}, {counts['train']:,} {what} to train on, {counts['validation']:,} for validation, "
        f"{counts['test']:,} for the test{shape}",
        f"network: {config.layers} layers of width {config.width}, context {config.context:,}, {config.pattern} "
        f"attention" + ("" if config.pattern == "dense" else f" with stride {config.stride}{summary}"),
    ]


# ---------------------------------------------------------------- settings


def settings_of(given: Mapping[str, Any], corpus: "Corpus", device: str = "cpu") -> Config:
    """All settings; what is not given, or None, follows from the data, steps and context.

    ValueError as `Config`; UserError for a context or a stride that does not fit the data.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if corpus.grid is not None:
        context = prod(corpus.grid)
        if chosen.setdefault("context", context) != context:
            raise UserError(
                f"--context {chosen['context']:,}: an image of this data has {context:,} tokens; leave it out"
            )
    context = int(chosen.setdefault("context", CONTEXT))
    steps = int(chosen.get("steps", DEFAULTS["steps"]))
    pattern = chosen.setdefault("pattern", "fixed" if corpus.decode in ("text", "bytes") else "strided")
    stride = int(chosen.setdefault("stride", _stride(pattern, context, int(chosen.get("summary", SUMMARY)), corpus)))
    if stride > context:
        raise UserError(f"--stride {stride} is more than the context {context}: choose one near {round(sqrt(context))}")
    defaults = {
        **DEFAULTS,
        "data": "bytes",
        "summary": min(SUMMARY, stride) if pattern == "fixed" else 0,
        "positions": "attention" if corpus.grid is None else "data",
        "recompute": context > 4096,
        "warmup": max(1, steps // 20),
        "ema_decay": max(0.0, min(0.999, 1 - 10 / max(1, steps))),
        "evaluate_every": max(1, steps // 10),
        "checkpoint_every": min(200, max(1, steps // 10)),
        "steps_per_call": 1 if device == "cpu" else 16,
    }
    return Config.of({**defaults, **chosen})


DEFAULTS: dict[str, Any] = {
    "layers": 4,
    "width": 128,
    "heads": 4,
    "feedforward": 4.0,
    "query_width": 1.0,
    "dropout": 0.1,
    "steps": 1000,
    "batch_size": 8,
    "learning_rate": 0.002,
    "beta2": 0.99,
    "evaluation_items": 64,
    "log_every": 20,
}
"""A network for a laptop, instead of the paper's for CIFAR-10."""


def _stride(pattern: str, context: int, summary: int, corpus: "Corpus") -> int:
    """One row of an image; else where attention costs least: sqrt(c n) for fixed, the paper's sqrt(n) for the others,
    the cube root of n for cubic; a multiple of the voices of chorales."""
    if corpus.grid is not None and pattern != "cubic":
        return prod(corpus.grid[1:])
    least = {"fixed": sqrt(max(1, summary) * context), "cubic": context ** (1 / 3)}.get(pattern, sqrt(context))
    return min(context, max(1, round(least / corpus.unit)) * corpus.unit)


# ---------------------------------------------------------------- the run


def run(config: Mapping[str, Any], folder: Folder, needs: Mapping[str, Path]) -> dict[str, Any]:
    """The run function: train on the files at `folder.data_dir`; writes the weights, settings.json and model.json.

    config: `Config`'s settings, OWN_SETTINGS and the seed. {"test_bits", "validation_bits", "train_bits"} per token
    and "seconds_per_step".
    """
    settings = Config.of({name: value for name, value in config.items() if name not in OWN_SETTINGS})
    seed, rate = int(config["seed"]), int(config["rate"])
    assert folder.data_dir is not None
    try:
        corpus = read(folder.data_dir, config["kind"], rate, settings.context)
        print(*describe(corpus, settings), sep="\n", flush=True)
        from papers.sparse_transformer.module import train

        metrics = train(settings, corpus, seed, folder)
    except MemoryError:
        raise UserError("the memory is not enough: lower --batch_size, --width or --context") from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise UserError(
            "the GPU's memory is not enough: lower --batch_size or --microbatch, or give --recompute true"
        ) from None
    info = ModelInfo(
        decode=corpus.decode,
        vocabulary=corpus.vocabulary,
        grid=corpus.grid,
        label=corpus.label,
        config=asdict(settings),
        rate=rate,
        tokens=tokens_of(corpus),
        bits={name.removesuffix("_bits"): value for name, value in metrics.items() if name.endswith("_bits")},
        seed=seed,
    )
    write_json(folder.path / "model.json", {"schema_version": info.schema_version, **asdict(info)})
    return metrics
