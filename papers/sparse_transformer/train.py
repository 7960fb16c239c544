"""A Sparse Transformer on your own text, images, recordings or any bytes: `python -m papers.sparse_transformer.train
--data FILE_OR_FOLDER --out FOLDER`.

What the files may be is described in `own_data`; `papers.sparse_transformer.sample` draws from the result. The same
command resumes what was interrupted and repeats nothing that is finished; other data, settings or code move the old
output folder aside and start anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from common.command import parse
from common.errors import UserError, main
from common.own_data import PLAIN, check_out, execution_of, finish, options_of
from common.runs import Data, Execution, RunSpec
from papers.sparse_transformer.config import CHOICES, Config
from papers.sparse_transformer.own_data import CONTEXT, DEFAULTS, KINDS, RATE, UNITS, fingerprint, read, settings_of

if TYPE_CHECKING:
    from papers.sparse_transformer.data import Corpus

# What follows from data, pattern, context and steps where it is not given: see `own_data.settings_of`.
DERIVED = (
    "context",
    "pattern",
    "stride",
    "summary",
    "positions",
    "recompute",
    "warmup",
    "ema_decay",
    "evaluate_every",
    "checkpoint_every",
    "steps_per_call",
)
HELP = {
    "context": f"tokens that the network sees at once, n; default {CONTEXT}, of images all of them",
    "pattern": "which keys a query sees; default strided, for text and bytes fixed",
    "combine": "both sets of a pattern in one softmax (merged), one for each half of the heads, or layers in turns",
    "cycle": "for interleaved: the layers' sets in turns, e.g. columns,window,window,window",
    "stride": "l; default a row of an image, else about the square root of the context (fixed: of c times it)",
    "summary": "c of fixed attention: cells of each block that later blocks see; default 8",
    "rotate": "fixed attention: every head has summary cells of its own",
    "inclusive": "windows of l + 1 keys as in the paper, not l as in its code",
    "layers": "residual blocks",
    "width": "of the residual stream, d",
    "heads": "of each attention",
    "feedforward": "hidden units, as a multiple of the width",
    "query_width": "width of queries and keys, as a multiple of the width",
    "positions": "what has position embeddings; default the attention's grid, of images rows, columns and channels",
    "shift": "which position goes with a token: its own (code) or that of the token it predicts (aligned)",
    "init": "standard deviation of the initial weights",
    "scaled_residual": "initial weights at the end of a residual branch are divided by sqrt(2 layers)",
    "dropout": "at the end of residual branches; raise it for little data",
    "attention_dropout": "of attention weights (the paper uses none)",
    "recompute": "compute attention and feed-forward again in the backward pass, to save memory; default from 4,097 on",
    "plain": "attention through an n x n mask: slow, to compare with",
    "steps": "optimisation steps",
    "batch_size": "sequences a step",
    "microbatch": "sequences at once, if not the whole batch: saves memory",
    "learning_rate": "AdamW's highest; it rises over the warm-up, then falls to 0",
    "warmup": "steps over which the learning rate rises; default a 20th of all",
    "weight_decay": "AdamW's",
    "decay_embeddings": "whether embeddings decay too",
    "clip": "largest norm of the gradient; 0 for any",
    "beta2": "AdamW's",
    "ema_decay": "of the averaged weights; default 1 - 10 / steps, at most 0.999; 0 for none",
    "loss_scaling": "float16 with dynamic loss scaling, on a GPU without bfloat16",
    "evaluate_every": "steps between two measurements of the bits; default a 10th of the steps",
    "evaluation_batch_size": "sequences at once when bits are measured",
    "evaluation_items": "images or pieces of a context that bits are measured on; 0 for all",
    "min_context": "tokens that each one has before it at least when bits are measured",
    "checkpoint_every": "steps between two checkpoints; default a 10th of the steps, at most 200",
    "log_every": "steps between two measurements of the loss",
    "steps_per_call": "steps between two looks at Ctrl-C; default 1, on a GPU 16",
    "cuda_graph": "on a GPU, replay a step as one graph where there is no dropout",
}
FLAGS = [setting for setting in fields(Config) if setting.name in HELP]
"""The settings of `Config` but those of the data sets by name."""


def build_parser() -> Any:
    """The command line: the settings of `Config` by name, and where and how to train."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="python -m papers.sparse_transformer.train",
        description="Train a Sparse Transformer on any files: text, images of one size, WAV files, chorales or bytes.",
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--data", default=None, type=str | None, help="file or folder (required)")
    add("--out", default=None, type=str | None, help="folder for the trained model (required)")
    add("--config", action="config", help="YAML file with any of these settings")
    add("--kind", default="auto", help=f"what the files are ({', '.join(KINDS)}); auto looks at their names")
    add("--rate", default=RATE, type=int, help="samples a second to which recordings are brought")
    add("--seed", default=0, type=int, help="of initialisation, order and dropout")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--precision", default="auto", help="auto, float32 or bfloat16")
    add("--compile", default="auto", help="torch.compile: auto (on a GPU), yes or no")
    add("--deterministic", action="store_true", help="torch's deterministic algorithms")
    add("--threads", default=None, type=int | None, help="of the processor; default all cores")
    add("--time_limit", default=None, type=float | None, help="seconds after which to stop, resumable")
    add("--tensorboard", action="store_true", help="write TensorBoard files too")
    add("--debug", action="store_true", help="show the traceback of an error")
    for setting in FLAGS:
        name = setting.name
        about = HELP[name] + (f" ({', '.join(CHOICES[name])})" if name in CHOICES else "")
        kind: Any = str if name == "cycle" else setting.type
        if name in DERIVED:
            add(f"--{name}", default=None, type=kind | None, help=about)
        else:
            default = "" if name == "cycle" else DEFAULTS.get(name, setting.default)
            add(f"--{name}", default=default, type=kind, help=about)
    return parser


def _given(parsed: Any) -> dict[str, Any]:
    given = {setting.name: parsed[setting.name] for setting in FLAGS}
    return {**given, "cycle": tuple(filter(None, given["cycle"].replace(" ", "").split(",")))}


def _check(parsed: Any) -> None:
    """Everything that can be said of the arguments alone."""
    for name in ("data", "out"):
        if not parsed[name]:
            raise UserError(f"--{name} is missing: give --data FILE_OR_FOLDER --out FOLDER; --help explains them")
    if parsed.kind not in KINDS:
        raise UserError(f"no kind of data '{parsed.kind}'; there is {', '.join(KINDS)}")
    for name in ("threads", "context", "stride", "steps"):
        if parsed[name] is not None and parsed[name] < 1:
            raise UserError(f"--{name} must be at least 1, not {parsed[name]}")
    if not 100 <= parsed.rate <= 384_000:
        raise UserError(f"--rate lies in 100..384000 samples a second, not {parsed.rate}")
    for name in ("pattern", "positions"):
        if parsed[name] is not None and parsed[name] not in CHOICES[name]:
            raise UserError(f"no {name} '{parsed[name]}'; there is {', '.join(CHOICES[name])}")
    options_of(parsed).check()
    data, out = Path(parsed.data), Path(parsed.out)
    if not data.exists():
        raise UserError(f"--data {data}: there is no such file or folder")
    if data.is_dir() and data.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out} lies inside the data folder, where it would be taken for data: choose another")
    check_out(out)


def _settings(parsed: Any, corpus: "Corpus", device: str) -> Config:
    try:
        return settings_of(_given(parsed), corpus, device)
    except ValueError as error:
        raise UserError(str(error)) from None


def make_spec(parsed: Any, corpus: "Corpus", execution: Execution) -> RunSpec:
    """The run as `common.runs` knows it."""
    data = Path(parsed.data).resolve()
    settings = _settings(parsed, corpus, execution.device)
    return RunSpec(
        paper="sparse_transformer",
        preset="own-data",
        experiment="own-data",
        method=settings.pattern,
        seed=parsed.seed,
        function="papers.sparse_transformer.own_data:run",
        config={**asdict(settings), "cycle": list(settings.cycle), "kind": parsed.kind, "rate": parsed.rate},
        folder=Path(parsed.out).resolve(),
        execution=execution,
        data=(Data("own-data", data.name, fingerprint(corpus)),),
        data_dir=data,
        tensorboard=parsed.tensorboard,
    )


def in_words(bits: Mapping[str, float], decode: str) -> list[str]:
    """The bits of `model.json`, one line each, with what to think of them."""
    remarks = {"test": " (of data that training never saw)", "train": " (of data that it was trained on)"}
    unit = f"bits per {UNITS[decode]}"
    return [f"{name}: {bits[name]:.3f} {unit}{remarks[name]}" for name in ("test", "train") if name in bits]


def command(arguments: Sequence[str] | None = None) -> int:
    """The whole command; the exit status. UserError for everything the user can mend."""
    parsed, console = parse(build_parser(), arguments), Console()
    _check(parsed)
    execution = execution_of(parsed)
    corpus = read(Path(parsed.data).resolve(), parsed.kind, parsed.rate, parsed.context or CONTEXT)
    spec = make_spec(parsed, corpus, execution)
    advice = f"lower --learning_rate (it was {spec.config['learning_rate']:g})"
    info = finish(spec, parsed.time_limit, console, advice)
    if isinstance(info, int):
        return info
    out = Path(parsed.out)
    averaged = " (averaged weights)" if info["config"]["ema_decay"] else ""
    console.print(f"model: {out / 'weights.safetensors'}{averaged}, {out / 'model.json'}", **PLAIN)
    console.print(*in_words(info["bits"], info["decode"]), sep="\n", **PLAIN)
    where = "" if info["decode"] == "text" else " --out FOLDER"
    console.print(f"next: python -m papers.sparse_transformer.sample --model {out}{where}", **PLAIN)
    return 0


if __name__ == "__main__":
    main(command)
